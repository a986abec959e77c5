"""Two checkouts are compared by what their command lines write."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from compare_checkouts import main

# A checkout as small as it can be: its package answers `certify` and `evaluate`.
PROGRAM = """
import json, pathlib, sys
command, name = sys.argv[1:3]
if command == "certify":
    file = pathlib.Path(sys.argv[sys.argv.index("--csv") + 1])
    file.write_text("index,label,prediction,radius,kind,certificate\\n7,1,1,{radius!r},certified,x\\n")
else:
    folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    folder.mkdir(parents=True)
    board = dict(models=[dict(errors={errors})], timings={timings!r}, created={timings!r})
    (folder / "leaderboard.json").write_text(json.dumps(board))
sys.exit({code})
"""


@pytest.fixture
def checkout(tmp_path: Path):
    def make(name: str, radius=0.1, errors=0, timings="", code=0) -> str:
        package = tmp_path / name / "robustness"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        program = PROGRAM.format(radius=radius, errors=errors, timings=timings, code=code)
        (package / "__main__.py").write_text(program, encoding="utf-8")
        return str(package.parent)

    return make


def compare(tmp_path: Path, before: str, after: str, *more: str) -> int:
    asked = ["--entries", "mnist/x", "--suites", "small", "--out", str(tmp_path / "out")]
    return main([before, after, *asked, *more])


def test_checkouts_that_differ_in_timings_alone_are_the_same(tmp_path, checkout, capsys) -> None:
    assert compare(tmp_path, checkout("a", timings="1 s"), checkout("b", timings="2 s")) == 0
    assert "3 of 3 agree bit for bit" in capsys.readouterr().out


def test_a_radius_that_differs_in_its_last_bit_is_named(tmp_path, checkout, capsys) -> None:
    one, other = 0.1, 0.1 + 2**-56
    assert compare(tmp_path, checkout("a", radius=one), checkout("b", radius=other)) == 1
    said = capsys.readouterr().out
    assert f"7.radius: '{one!r}' before, '{other!r}' after" in said
    assert "1 of 3 agree bit for bit" in said


def test_a_wanted_change_is_left_out_by_its_path(tmp_path, checkout, capsys) -> None:
    before, after = checkout("a", errors=0), checkout("b", errors=1)
    assert compare(tmp_path, before, after) == 1
    assert "models.0.errors: 0 before, 1 after" in capsys.readouterr().out
    assert compare(tmp_path, before, after, "--ignore", "models.*.errors") == 0


def test_a_checkout_that_fails_is_no_agreement(tmp_path, checkout, capsys) -> None:
    assert compare(tmp_path, checkout("a"), checkout("b", code=2)) == 2
    assert "to end with exit code 0, got 2" in capsys.readouterr().err
