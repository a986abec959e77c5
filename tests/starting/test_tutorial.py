"""docs/own-model.md, from an empty folder: its commands run, and print what it says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "own-model.md"


def commands() -> list[tuple[str, str]]:
    """Each command of the page, and what it shows that it prints."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    found = []
    for block in blocks:
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def in_words(text: str) -> str:
    """Without numbers that differ from machine to machine, and without the width of a terminal."""
    seconds = re.sub(r"[\d.]+ (ms|s|minutes|hours)\b", "N", text)
    return " ".join(re.sub(r"loss [\d.]+", "loss N", re.sub(r"[─-]{5,}", "-----", seconds)).split())


def test_the_page_shows_every_command_from_init_to_check() -> None:
    names = [command.split()[1] for command, _ in commands() if command.startswith("robustness")]
    assert names == ["init", "doctor", "doctor", "evaluate", "check"]


@pytest.mark.slow
def test_from_an_empty_folder_to_a_gate_as_the_page_says(tmp_path: Path) -> None:
    python = Path(sys.executable)
    root = str(PAGE.parent.parent)
    environment = os.environ | {
        "PYTHONPATH": root,
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    own = tmp_path / "own_model.py"
    for command, output in commands():
        words = command.split()
        if words[0] == "robustness":
            words = [str(python), "-m", *words]
        elif words[0] == "python":
            words[0] = str(python)
        mistaken = "SERIOUS" in output
        if mistaken:  # as the page says: the whole trajectory in place of the state at the end
            shutil.copy(own, tmp_path / "kept")
            text = own.read_text(encoding="utf-8")
            assert text.count("states[-1]") == 1
            own.write_text(text.replace("states[-1]", "states"), encoding="utf-8")
        done = subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == (1 if mistaken else 0), done.stderr
        assert in_words(done.stdout) == in_words(output), command
        if mistaken:
            shutil.copy(tmp_path / "kept", own)
