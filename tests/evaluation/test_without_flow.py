"""A suite and a measurement say what a neural ODE predicts without its flow."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustness.api import committed_leaderboards, evaluate
from robustness.cards.measure import MEASURED_FILE, measure, read_measurement
from robustness.data import load_images
from robustness.evaluation.jobs import Work
from robustness.evaluation.jobs.base import run_unit
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.suite import Suite
from robustness.nets.continuous import ContinuousNet
from robustness.nets.encoders import Normalise
from robustness.nets.flow import without_flow
from robustness.nets.solvers import FixedStepSolver
from robustness.results.leaderboard import Proportion
from robustness.zoo import LoadedModel, load_model, zoo_folder, zoo_names

SUITE = {
    "name": "flow",
    "data": "digits",
    "samples": 80,
    "models": ["digits/node", "digits/lyanet-certified", "digits/resnet"],
    "threats": [{"norm": "Linf", "eps": [0.1]}],
    "decay": False,
}


@pytest.mark.slow
def test_a_suite_says_of_every_neural_ode_what_it_predicts_without_its_flow(
    tmp_path: Path,
) -> None:
    board = evaluate(Suite.model_validate(SUITE), out=tmp_path, workers=1)
    node, certified, resnet = board.models
    assert node.samples is not None
    chosen = torch.tensor(node.samples.index)
    images = load_images("digits", "test", None)
    module = load_model("digits/node").module
    flowless = without_flow(module)
    assert flowless is not None
    instead = flowless(images.images[chosen]).argmax(dim=1)
    other = int((instead != module(images.images[chosen]).argmax(dim=1)).sum())
    right = int((instead == images.labels[chosen]).sum())
    assert node.without_flow is not None
    assert other > 0
    assert node.without_flow.other == Proportion.of(other, 80)
    assert node.without_flow.clean == Proportion.of(right, 80)
    assert certified.without_flow is not None
    assert certified.without_flow.other.count == 0
    assert certified.without_flow.clean == certified.clean
    assert resnet.without_flow is None
    # What the zoo knows of the same weights on all 599 test images stands beside it.
    assert node.whole is not None
    assert node.whole.clean.total == 599
    assert node.whole.without_flow == facts("digits/node").without_flow


def test_evaluations_of_a_continuous_net_are_those_of_all_its_blocks() -> None:
    torch.manual_seed(0)
    solver = FixedStepSolver("rk4", 3)
    model = ContinuousNet(Normalise([0.0], [1.0]), 1, [4, 6], [1, 2], [], solver, 10).eval()
    images = load_images("digits", "test", None)
    work = Work(
        Job("clean", 1, 0, 1, 8),
        Unit("", list(range(8)), 0),
        Suite.model_validate(SUITE),
        model,
        images.images[:8],
        images.labels[:8],
    )
    assert [row.nfe for row in run_unit(work).rows] == [24] * 8


def test_no_committed_report_says_of_an_ode_that_there_is_none() -> None:
    for board in committed_leaderboards().values():
        for entry in board.models:
            assert entry.nfe == facts(entry.name).nfe, entry.name


def facts(name: str):
    return read_measurement(zoo_folder() / name / MEASURED_FILE)


def test_every_neural_ode_of_the_zoo_was_measured_without_its_flow() -> None:
    for name in zoo_names():
        if (zoo_folder() / name / MEASURED_FILE).is_file():
            known = facts(name)
            assert (known.without_flow is None) == (known.nfe is None), name


class HalfFailing(nn.Module):
    """Class 0 by a NaN where an image is dark, class 1 elsewhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = images.mean(dim=(1, 2, 3)) < 0.3
        logits = torch.zeros(len(images), 10)
        logits[:, 1] = 1.0
        logits[dark, 0] = torch.nan
        return logits


def test_an_image_whose_class_nobody_knows_counts_as_another(monkeypatch) -> None:
    images = load_images("digits", "test", None)
    loaded = load_model("digits/node")
    monkeypatch.setattr("robustness.cards.measure.without_flow", lambda _: HalfFailing())
    deployed = LoadedModel("digits/node", HalfFailing(), loaded.digest, loaded.recipe)
    dark = int((images.images.mean(dim=(1, 2, 3)) < 0.3).sum())
    assert 0 < dark < 599
    known = measure(deployed, images)
    assert known.without_flow is not None
    assert known.without_flow.other == Proportion.of(dark, 599)
    assert known.without_flow.clean == known.clean
