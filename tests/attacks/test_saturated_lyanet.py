"""A real LyaNet whose states saturate, trained here: the suite is not fooled and says so."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustness.attacks import PGD, Ascent, Stage, Status, judge, views_of, worst_case
from robustness.attacks.checks.gradient_audits import masked_gradients
from robustness.data import load_images
from robustness.threat import Norm, ThreatModel
from robustness.training.loop import train
from robustness.zoo import load_model

pytestmark = pytest.mark.slow

THREAT = ThreatModel(Norm.LINF, 0.1)

# The zoo's digits/lyanet with a larger gain: states grow in proportion to exp(gain kappa / n).
RECIPE = """
description = "LyaNet with saturating states"

[data]
name = "digits"
shape = [1, 8, 8]
classes = 10

[model]
kind = "neural-ode"
normalise = { mean = [0.3053], std = [0.3760] }
encoder = { kind = "mlp", widths = [256] }
field = { kind = "lyanet", variant = "normalised", width = 16, gain = 10.0 }
solver = { kind = "fixed", method = "rk4", steps = 8, horizon = 1.0 }

[training]
loss = { kind = "lyapunov-monte-carlo", states = 128 }
epochs = 20
batch_size = 64
learning_rate = 4e-3
weight_decay = 1e-4
averaging = 0.998
augmentation = { rotate = 8.0, shift = 0.4, scale = 0.05, shear = 0.1 }
"""


@pytest.fixture(scope="module")
def saturated(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    folder: Path = tmp_path_factory.mktemp("zoo") / "saturated"
    folder.mkdir()
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    train(folder, quiet=True)
    return load_model(str(folder)).module


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_images("digits", "test")
    return data.images[:64], data.labels[:64]


def test_the_worst_case_breaks_what_a_plain_attack_calls_robust(saturated, problem) -> None:
    images, labels = problem
    candidates = PGD(20).propose(saturated, images, labels, THREAT, seed=0)
    plain = judge(saturated, images, labels, candidates, THREAT)
    views = [v for v in views_of(saturated) if v.name in ("rescaled", "horizon/4")]
    stages = [Stage(Ascent("margin", 20), view) for view in views]
    outcomes = worst_case(saturated, images, labels, THREAT, stages)
    believed, true = (
        sum(outcome.status is Status.ROBUST for outcome in found) for found in (plain, outcomes)
    )
    assert believed > 38  # more than 60% of 64 under PGD-20
    assert true < 0.6 * believed


def test_the_masked_gradients_flag_is_up(saturated, problem) -> None:
    images, labels = problem
    flag = masked_gradients(saturated, images[:32], labels[:32], THREAT)
    assert flag.raised
    assert flag.value is not None
    assert flag.value < 0.01
