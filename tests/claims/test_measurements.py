"""What the claims are measured with, against answers that are known."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from robustness.claims import protocol, run
from robustness.claims.cost import variants
from robustness.claims.horizon import (
    along_horizon,
    dopri5_evaluations,
    first_kept,
    shorter,
)
from robustness.claims.models import MODELS, recipe_of
from robustness.claims.results import SeedResults, keep, recipes_digest, stored
from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver
from robustness.recipe import CrossEntropyConfig
from robustness.threat import Norm


class Away(nn.Module):
    """eta' = 2 (z, -z) (1 + t): both entries grow like z (2 t + t^2)."""

    rate = 2.0

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return 2 * (1 + t) * torch.cat([features, -features], dim=1) + 0 * state


class Above(nn.Module):
    """How far a pixel lies above a level."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) - self.level


def one_pixel(
    mean: float = 0.0, std: float = 1.0, steps: int = 8, level: float = 0.0
) -> NeuralODEClassifier:
    """Class 0 for a normalised pixel above a level, else class 1."""
    solver = FixedStepSolver("rk4", steps)
    return NeuralODEClassifier(Normalise([mean], [std]), Above(level), Away(), solver, 2).eval()


def pixels(values: list[float], labels: list[int]) -> ImageSet:
    images = torch.tensor(values).view(-1, 1, 1, 1)
    return ImageSet("pixels", "test", images, torch.tensor(labels), 2)


def test_the_potential_along_the_horizon_is_that_of_the_exact_flow() -> None:
    course = along_horizon(one_pixel(), pixels([1.0, 1.0, 1.0], [0, 0, 0]))
    for time, value in zip(course.time, course.potential, strict=True):
        margin = 2 * (2 * time + time**2)
        assert value == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-4)
    assert course.accuracy[1:] == [1.0] * (len(course.time) - 1)


def test_a_share_is_reached_when_accuracy_stays_above_it_for_good() -> None:
    time = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    accuracy = torch.tensor([0.1, 0.8, 0.4, 0.7, 0.9])
    assert first_kept(time, accuracy, 0.6) == 0.75
    assert first_kept(time, accuracy, 0.9) == 1.0
    assert first_kept(time, accuracy, 0.05) == 0.0


def test_dopri5_needs_more_evaluations_for_a_tighter_tolerance() -> None:
    class Turning(Away):
        def forward(self, t, state, features):
            del t, features
            return torch.stack([-20 * state[:, 1], 20 * state[:, 0] + 1], dim=1)

    model = one_pixel()
    model.field = Turning()
    images = pixels([0.5, 0.7], [0, 0])
    assert dopri5_evaluations(model, images, 1e-3) < dopri5_evaluations(model, images, 1e-6)


def test_a_shorter_solver_takes_the_same_steps_and_at_least_one() -> None:
    assert shorter(one_pixel(steps=8), 0.25) == FixedStepSolver("rk4", 2, 0.25)
    assert shorter(one_pixel(steps=3), 0.01) == FixedStepSolver("rk4", 1, 1 / 3)


def standing(units: str, value: float, eps: float) -> bool:
    # Normalised to (x - 0.25) / 0.25, so that class 0 begins at a pixel of 0.375.
    images = pixels([value], [0])
    model = one_pixel(0.25, 0.25, level=0.5)
    found = protocol._standing(model, images.images, images.labels, units, Norm.LINF, eps)
    return bool(found[0])


def test_the_papers_radius_is_a_quarter_of_it_in_pixels_where_std_is_a_quarter() -> None:
    eps = 8 / 255
    # Class 0 reaches down to 0.375. In pixel units eps moves an image by eps, in the paper's
    # units by eps / 4.
    for value, in_pixels, in_paper in [
        (0.375 + 1.1 * eps, True, True),
        (0.375 + 0.9 * eps, False, True),
        (0.375 + 0.2 * eps, False, False),
    ]:
        assert standing("pixels", value, eps) is in_pixels
        assert standing("paper", value, eps) is in_paper


def test_the_papers_clip_alone_moves_pixels_below_the_mean() -> None:
    attacked = []

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.normalise, self.weight = Normalise([0.5], [0.25]), nn.Parameter(torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            attacked.append(images.detach().clone())
            return self.weight * torch.cat([images, 1 - images], dim=1).flatten(1)

    images = pixels([0.0], [1])
    protocol._standing(Recorder().eval(), images.images, images.labels, "paper", Norm.LINF, 1e-6)
    # Black is -2 in normalised units; clipped to 0 it is the mean, 0.5 in pixels.
    assert attacked[-1].item() == pytest.approx(0.5, abs=1e-4)


class Saturated(Away):
    """Bounded away from 0 at once and then blown up, so that gradients of the end vanish."""

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        late = (t > 0.3).to(state.dtype)
        return (1 + 1e8 * late) * torch.cat([features, -features], dim=1) + 0 * state


def test_a_shorter_horizon_finds_what_saturated_logits_hide() -> None:
    model = one_pixel(0.5, 1.0)
    model.field = Saturated()
    images = pixels([0.55] * 8, [0] * 8)
    found = protocol.protocols(model, images)
    assert found["wide linf 0.1"].count > 0  # gradients that underflow
    assert found["short linf 0.1"].count == 0


def test_rivals_differ_from_lyanets_recipe_in_loss_and_solver_alone() -> None:
    lyanet, rivals = variants(1)
    assert len(rivals) == 4
    assert sum("adjoint" in name for name in rivals) == 2
    for rival in rivals.values():
        assert rival.training.batch_size == lyanet.training.batch_size
        assert isinstance(rival.training.loss, CrossEntropyConfig)
        assert rival.model.model_copy(update={"solver": lyanet.model.solver}) == lyanet.model


def test_the_compared_pairs_train_as_long_and_another_seed_is_another_recipe() -> None:
    for ours, rival in (("lyanet", "node"), ("lyanet-continuousnet", "continuousnet")):
        assert recipe_of(ours, 1).training.epochs == recipe_of(rival, 1).training.epochs
    recipes = {recipe_of(name, seed).training_digest for name in MODELS for seed in (1, 2, 3)}
    assert len(recipes) == 15


def test_results_are_kept_part_by_part_and_dropped_when_the_recipes_change(tmp_path: Path) -> None:
    empty = stored(1, tmp_path)
    assert empty == SeedResults(seed=1, recipes=recipes_digest(1))
    half = empty.model_copy(update={"cost": {"step: adjoint": 0.5}})
    keep(half, tmp_path)
    assert stored(1, tmp_path) == half
    keep(half.model_copy(update={"recipes": "of another edition"}), tmp_path)
    assert stored(1, tmp_path) == empty
    (tmp_path / "seed-1.json").write_text("{")
    with pytest.raises(UsageError, match="move it away to measure again"):
        stored(1, tmp_path)


def test_one_seed_has_no_interval_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two seeds or more"):
        run.measure_claims(tmp_path, None, seeds=(1,))
