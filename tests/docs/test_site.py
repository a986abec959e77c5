"""Commands, calls and navigation of README and docs are those that there are."""

import ast
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import robustness
from robustness import cli
from robustness.zoo import zoo_folder

ROOT = zoo_folder().parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(cli.app).commands
_BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)


def options(command: str) -> set[str]:
    return {"--help", *(name for given in COMMANDS[command].params for name in given.opts)}


def calls(page: Path) -> list[list[str]]:
    """Every line of a page that calls the package's command, in words."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for _, block in _BLOCK.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += re.findall(r"`(robustness [^`]+)`", text.replace("\n", " "))
    found = []
    for line in lines:
        at = re.search(r"(?:^|\s|/|&& )(robustness +[a-z][\w-]*\b.*)$", line)
        if at and not line.lstrip().startswith(("#", "import", "from")):
            found.append(re.split(r"\s+#|\s{3,}(?![-\[A-Z])", at[1])[0].split())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_and_their_options_exist(page: Path) -> None:
    for _, command, *words in calls(page):
        assert command in COMMANDS, f"robustness {command}"
        for word in words:
            if option := re.match(r"\[?(--[a-z][a-z-]*)", word):
                assert option[1] in options(command), f"robustness {command} {option[1]}"


def test_the_page_of_commands_has_all_of_them() -> None:
    (listed,) = (page for page in PAGES if page.name == "commands.md")
    assert {command for _, command, *_ in calls(listed)} == set(COMMANDS)


def test_every_option_of_a_block_of_commands_is_one_of_a_command() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    known = set().union(*map(options, COMMANDS))
    named = set(re.findall(r"--[a-z][a-z-]*", text))
    assert named
    assert named <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_calls_what_there_is(page: Path) -> None:
    for language, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "robustness":
                assert all(hasattr(robustness, name.name) for name in node.names)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                name = node.func.id
                if name in robustness.__all__ and not name.endswith("Error"):
                    given = {word.arg: None for word in node.keywords if word.arg}
                    inspect.signature(getattr(robustness, name)).bind(*node.args, **given)


def test_every_page_has_its_place_in_the_navigation_once() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    listed = [
        line
        for tree in trees
        for line in tree.split()
        if not line.startswith(":") and line.islower()
    ]
    placed = [name for name in listed if (ROOT / f"docs/{name}.md").exists()]
    assert sorted(placed) == sorted(
        p.stem for p in (ROOT / "docs").glob("*.md") if p.stem != "index"
    )


def test_the_readme_is_one_screen() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    read = re.sub(r"<!--.*?-->", "", text)
    assert len(read.split()) < 600
    assert text.count("![") == 1


def test_shell_words_of_the_readme_are_whole() -> None:
    blocks = _BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    lines = [shlex.split(block) for language, block in blocks if language == "sh"]
    assert [line[-1] for line in lines] == ["evaluate", ".venv-ci/bin/tox"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_for_nothing(tmp_path: Path) -> None:
    for needed in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(needed, reason=f"{needed} is not here; `tox -e docs` has it")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "-d", tmp_path / "trees"]
    done = subprocess.run(
        [*command, ROOT / "docs", tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    pages = {page.stem: page.read_text("utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} <= set(pages)
    for text in pages.values():
        assert re.findall(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=.https?:", text) == []
    assert 'href="../../reports/index.html"' in pages["index"]
    assert 'href="../../CONTRIBUTING.md#weights-of-others"' in pages["findings"]
    assert all(f'id="robustness.{name}"' in pages["api"] for name in robustness.__all__)
