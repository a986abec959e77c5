"""The commit that results name is that of the code, and says where the code is not the commit's."""

import subprocess
from pathlib import Path

import pytest

from robustness.cards.measure import MEASURED_FILE
from robustness.cards.page import CARD_FILE
from robustness.cards.proofs import PROVED_FILE
from robustness.evaluation.environment import commit_of

SOURCES = ("robustness/evaluation/environment.py", "models/data/entry/recipe.toml")
MADE = tuple(f"models/data/entry/{name}" for name in (CARD_FILE, MEASURED_FILE, PROVED_FILE))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (*SOURCES, *MADE, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("as committed")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    return tmp_path


def test_code_that_was_changed_is_not_the_commits(checkout: Path) -> None:
    clean = commit_of(checkout)
    assert clean is not None
    assert len(clean) == 40
    for name in SOURCES:
        (checkout / name).write_text("changed")
        assert commit_of(checkout) == f"{clean}, with changes"
        (checkout / name).write_text("as committed")
        assert commit_of(checkout) == clean


def test_what_the_code_makes_is_no_change_of_it(checkout: Path) -> None:
    clean = commit_of(checkout)
    for name in MADE:
        (checkout / name).write_text("changed")
    (checkout / "models/data/another").mkdir()
    (checkout / "models/data/another" / CARD_FILE).write_text("new")
    assert commit_of(checkout) == clean


def test_outside_of_a_checkout_there_is_none(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    assert commit_of(checkout) is None
