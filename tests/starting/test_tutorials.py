"""Tutorials of docs/: their files are written, their commands run, and print what they say."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robustness import cli

DOCS = Path(__file__).parent.parent.parent / "docs"
OWN = "small_ode"
_FILE = re.compile(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", re.DOTALL)
_CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
# Frames of tables.
_DRAWN = re.compile(r"[─━┏┓┡┩└┘┳╇┴┃│]+")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def commands(text: str) -> list[tuple[str, str]]:
    """Each command of a page, and what it shows that it prints."""
    parts = [part for block in _CONSOLE.findall(text) for part in block.split("$ ")[1:]]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def alike(said: str, shown: str) -> bool:
    """Whether words are the same, and numbers nearly so: they depend on the processor a little."""
    said, shown = (" ".join(_DRAWN.sub(" ", text).split()) for text in (said, shown))
    if _NUMBER.sub("N", said) != _NUMBER.sub("N", shown):
        return False
    pairs = zip(_NUMBER.findall(said), _NUMBER.findall(shown), strict=True)
    return all(float(a) == pytest.approx(float(b), rel=0.1, abs=2e-3) for a, b in pairs)


def test_numbers_of_a_page_may_differ_a_little_and_words_may_not() -> None:
    assert alike("┃ 0.0512 │ 25.0%", "0.051 25%")
    assert not alike("0.0512 25.0%", "0.051 31.0%")
    assert not alike("3 images", "3 samples")


def call(command: str) -> int:
    """What a shell would do, in this very process where that is the package's command."""
    name, *words = shlex.split(command)
    if name != "robustness":
        return subprocess.run([name, *words], check=False).returncode
    sys.modules.pop(OWN, None)
    if words[0] in ("attack", "certify", "evaluate"):
        words += ["--workers", "1", "--quiet"]
    if words[0] in ("attack", "certify", "evaluate", "inspect"):
        words += ["--in-process"]
    return cli.run(lambda: cli.app(words, standalone_mode=False))


# Every command ends with 0 but these, which find what the page says that they find.
REGRESSION = "robustness check reports/mine --baseline baselines --junit junit.xml"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("certify-torchdiffeq.md", marks=pytest.mark.slow),
        pytest.param("ci-gate.md", marks=pytest.mark.slow),
        "cluster.md",
    ],
)
def test_a_tutorial_does_what_it_says(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    text = page(name)
    files = dict(_FILE.findall(text))
    if "tutorial before" in text:
        files |= dict(_FILE.findall(page("certify-torchdiffeq.md")))
    assert files
    for file, content in files.items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    found = commands(text)
    assert len(found) >= 3
    for command, output in found:
        assert call(command) == (1 if command == REGRESSION else 0), capsys.readouterr().err
        printed = capsys.readouterr().out
        assert alike(printed, output), f"{command} prints\n{printed}"
