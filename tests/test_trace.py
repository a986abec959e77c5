"""The way from a command to a row of a leaderboard is the one that docs/design.md tells."""

import re
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import robustness
from robustness import api
from robustness.__main__ import main

PACKAGE = Path(robustness.__file__).parent
DESIGN = PACKAGE.parent / "docs/design.md"
HAND_OVER = re.compile(r"^\d+\. `(\S+)` `(\S+)` → `(\S+)` `(\S+)`: ", re.MULTILINE)
SUITE = """
name = "traced"
data = "digits"
samples = 2
models = ["digits/resnet"]
attacks = [{ kind = "fgsm" }]
threats = [{ norm = "Linf", eps = [0.05] }]
"""

Place = tuple[str, str]


def told() -> list[tuple[Place, Place]]:
    """Who hands on to whom, as the document says."""
    section = DESIGN.read_text(encoding="utf-8").split("## From a command to a row")[1]
    steps = HAND_OVER.findall(section.split("\n## ")[0])
    return [((from_, caller), (to, called)) for from_, caller, to, called in steps]


def test_every_hand_over_that_the_documents_tell_is_made_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = told()
    assert 8 <= len(steps) <= 12
    wanted = {called for _, called in steps}
    places: dict[CodeType, Place] = {}
    seen: dict[Place, set[Place]] = {}
    calls: list[Place] = []

    def place(code: CodeType) -> Place:
        if code not in places:
            file = Path(code.co_filename)
            inside = file.relative_to(PACKAGE).as_posix() if PACKAGE in file.parents else ""
            places[code] = inside, code.co_qualname
        return places[code]

    def watch(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and (called := place(frame.f_code)) in wanted:
            calls.append(called)
            callers, above = seen.setdefault(called, set()), frame.f_back
            while above is not None:
                callers.add(place(above.f_code))
                above = above.f_back

    def quiet(leaderboard: object, folder: Path) -> None:
        return

    monkeypatch.setattr(api, "write_report", quiet)
    file = tmp_path / "traced.toml"
    file.write_text(SUITE)
    words = ["evaluate", str(file), "--out", str(tmp_path / "out"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["robustness", *words])
    sys.setprofile(watch)
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.setprofile(None)
    assert ended.value.code == 0
    missing = [f"{c} is not called by {b}" for b, c in steps if b not in seen.get(c, ())]
    assert not missing
    # One after the other; some are called again and again, one of a kind after one of another.
    rest = iter(calls)
    late = [called for _, called in steps if called not in rest]
    assert not late
