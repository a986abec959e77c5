"""`robustness doctor`: 0 nothing serious, 1 findings, 2 bad input."""

from pathlib import Path

import pytest

from robustness import api, cli

CODE = """
import torch
from torch import nn
from robustness import load_model


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = load_model("digits/resnet").module

    def forward(self, x):
        return self.net(x), x


def model():
    return Tuple()


def healthy():
    return load_model("digits/resnet").module
"""


def run(line: str) -> int:
    return cli.run(lambda: cli.app(line.split(), standalone_mode=False))


def test_a_healthy_entry_has_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor digits/resnet --samples 32 --suite digits-quick") == 0
    out = capsys.readouterr().out
    assert out.startswith("digits/resnet on 32 images of digits\nnothing found: channels and size")
    assert "time per image, one core: " in out
    assert "attacks of the suite digits-quick on 32 images that withstand them: " in out
    assert out.endswith("nothing serious\n")


@pytest.mark.slow
def test_findings_have_exit_code_1_and_the_line_that_mends_them(
    user_code, capsys: pytest.CaptureFixture[str]
) -> None:
    name = user_code(CODE)
    assert run(f"doctor {name}:model --data digits --samples 32 --in-process") == 1
    lines = capsys.readouterr().out.splitlines()
    (serious,) = (i for i, line in enumerate(lines) if line.startswith("SERIOUS"))
    assert lines[serious].startswith("SERIOUS: output: the model returns a tuple")
    assert lines[serious + 1].startswith("    mend it: return self.net(images)[0]")
    assert lines[-1] == "serious findings: 1"
    assert run(f"doctor {name}:healthy --data digits --in-process") == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("doctor nothing:model --data digits --in-process", "No module named 'nothing'"),
        ("doctor digits/nothing", "the nearest are"),
        ("doctor os:getcwd", "expected --data NAME"),
        ("doctor digits/resnet --data none.npz", "no such file"),
        ("doctor digits/resnet --samples 0", "expected samples from 1"),
        ("doctor digits/resnet --suite none", "expected a suite"),
        ("doctor digits/resnet --unit-timeout 0", "expected seconds above 0"),
    ],
)
def test_bad_input_has_exit_code_2(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_limits_and_folders_reach_the_doctor(
    user_code, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # In a process of its own, as is the rule for a user's code.
    name = user_code("import time\nmodel = lambda: time.sleep(10**6)\n")
    assert run(f"doctor {name}:model --data digits --unit-timeout 0.5 --memory-limit 8GiB") == 3
    assert run(f"doctor digits/resnet --data mnist --data-dir {tmp_path / 'none'}") == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_diagnosis_is_short_in_python() -> None:
    assert repr(api.doctor("digits/resnet", samples=16)) == (
        "<Diagnosis of digits/resnet on 16 images of digits: nothing>"
    )
