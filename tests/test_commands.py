"""Every command on every digits entry of the zoo, and on a user's module of each kind."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from robustness import cli
from robustness.data import load_images
from robustness.zoo import find_entry, zoo_names

ENTRIES = [name for name in zoo_names("digits") if not name.endswith("-certified")]
PROVED = "digits/lyanet-certified"

SUITE = """
name = "tiny"
data = "few.npz"
models = ["digits/resnet"]
threats = [{ norm = "L2", eps = [0.1] }]
attacks = [{ kind = "pgd", steps = 1 }]
certificates = "all"
audit = { samples = 1, largest = 1 }
"""

USERS_CODE = """
import torch
from torch import nn
from torchdiffeq import odeint

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import AdaptiveSolver


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.field = nn.Linear(64, 64)

    def forward(self, x):
        times = torch.tensor([0.0, 1.0])
        return odeint(lambda t, y: self.field(y).tanh(), x.flatten(1), times, method="euler")[-1]


class Branching(nn.Linear):
    def forward(self, x):
        return super().forward(x) if float(x.mean()) > 0.1 else super().forward(1 - x)


def branching():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), Branching(64, 10))


def plain():
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10)
    return nn.Sequential(*layers)


def torchdiffeq():
    torch.manual_seed(0)
    return nn.Sequential(Flow(), nn.Linear(64, 10))


def adaptive():
    torch.manual_seed(0)
    return NeuralODEClassifier(
        Normalise([0.0], [1.0]),
        MLPEncoder(64, [8], 16),
        LyaNetField(10, 4, "normalised", 1.0),
        AdaptiveSolver("dopri5", 1e-3, 1e-3),
        10,
        0.0,
    )


def wrong_shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
"""

# What each command is given, of a model, of its data set where it must be said, and of the folder
# that holds a copy of its recipe; and whether it can do with a module that has no recipe.
COMMANDS: dict[str, tuple[str, bool]] = {
    "evaluate": ("suite.toml --models {model} --workers 1 --quiet --out run", True),
    "report": ("run --out again", True),
    "recompute": ("run --units 3 --workers 1 --quiet", True),
    "compare": ("run again", True),
    "check": ("run --baseline again", True),
    "update-baseline": ("run again", True),
    "attack": ("{model} --eps 0.1 --attack fgsm --workers 1 --quiet --data few.npz", True),
    "certify": ("{model} --workers 1 --audit 1 --quiet --data few.npz", True),
    "inspect": ("{model} --data few.npz", True),
    "card": ("{folder}", False),
    "train": ("{folder}", False),
}
# These run the code of a module.
LOADING = {"evaluate", "attack", "certify", "inspect"}
# These take no model, or find fault with one that is not trained, or want a git repository, and
# have tests of their own; `claims` takes half an hour.
ELSEWHERE = {"models", "claims", "doctor", "export", "init", "history", "merge", "reproduce"}


def run(line: str) -> int:
    return cli.run(lambda: cli.app(line.split(), standalone_mode=False))


def call(command: str, **names: str) -> int:
    return run(f"{command} {COMMANDS[command][0]}".format(**names))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a suite, two images and a user's module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_kinds", raising=False)
    (tmp_path / "suite.toml").write_text(SUITE, encoding="utf-8")
    (tmp_path / "users_kinds.py").write_text(USERS_CODE, encoding="utf-8")
    few = load_images("digits").take(torch.arange(2))
    images = {"images": few.images.numpy(), "labels": few.labels.numpy(), "classes": few.classes}
    np.savez(tmp_path / "few.npz", **images)
    return tmp_path


def test_no_command_is_left_out() -> None:
    assert set(typer.main.get_command(cli.app).commands) == set(COMMANDS) | ELSEWHERE


def every_command_works(entry: str, workplace: Path) -> None:
    shutil.copytree(find_entry(entry), workplace / "entry")
    recipe = workplace / "entry" / "recipe.toml"
    text = re.sub(r"(?m)^(epochs|cycles) = \d+", r"\1 = 1", recipe.read_text(encoding="utf-8"))
    recipe.write_text(text, encoding="utf-8")
    for command in COMMANDS:
        assert call(command, model=entry, folder="entry") == 0, command


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_command_works_on_an_entry_of_the_zoo(entry: str, workplace: Path) -> None:
    every_command_works(entry, workplace)


@pytest.mark.slow
def test_every_command_works_on_the_certified_entry(workplace: Path) -> None:
    every_command_works(PROVED, workplace)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "torchdiffeq", "adaptive"])
def test_every_command_works_on_a_users_module_or_says_what_it_needs(
    kind: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = f"users_kinds:{kind}"
    # One of them in a process of its own, as is the rule for a user's code.
    where = "" if kind == "plain" else " --in-process"
    for command, (_, of_modules) in COMMANDS.items():
        given = model + where if command in LOADING else model
        assert call(command, model=given, folder=model) == (0 if of_modules else 2), command
    assert capsys.readouterr().err.count("\n") == sum(not able for _, able in COMMANDS.values())


def test_a_module_of_another_number_of_classes_is_refused_by_every_command(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in COMMANDS:
        model = "users_kinds:wrong_shape"
        given = f"{model} --in-process" if command in LOADING else model
        assert call(command, model=given, folder=model) == 2
    assert capsys.readouterr().err.count("\n") == len(COMMANDS)
    assert not (workplace / "run").exists()


def test_certify_says_why_nothing_is_certified(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("certify", model="digits/lyanet") == 0
    out = capsys.readouterr().out
    assert "there is an estimate only, which proves nothing" in out
    assert "No image is certified" in out
    assert "certificate program" not in out
    # Of a module that no theorem is about, and whose program depends on the image.
    assert run("certify users_kinds:branching --in-process --data few.npz --workers 1") == 0
    assert "robustness inspect users_kinds:branching" in capsys.readouterr().out


@pytest.mark.slow
def test_certify_prints_each_radius_once(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("certify digits/resnet --data few.npz --workers 1 --audit 1 --norm Linf") == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.strip(" │|").split()[0] for line in lines if "%" in line and "0." in line]
    assert len(shown) == len(set(shown)) > 1


def test_attack_prints_numbers_first_and_stages_on_request(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worst = "attack digits/resnet --eps 0.5 --data few.npz --workers 1 --attack worst-case"
    assert run(worst) == 0
    brief = capsys.readouterr().out.splitlines()
    assert "robust accuracy" in next(line for line in brief if "┃" in line)
    assert max(map(len, brief)) <= 80
    assert brief[-1].startswith("standard effort, ")
    assert run(f"{worst} --verbose") == 0
    whole = capsys.readouterr().out
    assert "…" not in whole
    assert " broken by " in whole
