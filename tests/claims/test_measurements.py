"""What the claims are measured with, against answers that are known."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from robustness.attacks import default_stages
from robustness.claims import cost, models, protocol, run
from robustness.claims.cost import variants
from robustness.claims.horizon import (
    along_horizon,
    dopri5_evaluations,
    first_kept,
)
from robustness.claims.models import (
    GROUPS,
    MODELS,
    STUDIES,
    Budget,
    Study,
    recipe_of,
    recipe_text,
    trained,
    trained_group,
)
from robustness.claims.results import SeedResults, keep, read_seed, recipes_digest, stored
from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.evaluation.environment import environment
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.config import LyaNetFieldConfig, NeuralODEConfig
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver
from robustness.recipe import CrossEntropyConfig
from robustness.results.leaderboard import Proportion

STUDY = STUDIES["mnist"]


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


@pytest.fixture
def few_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst case ends early, where it is no matter."""
    monkeypatch.setattr(protocol, "default_stages", lambda m, t: default_stages(m, t, "quick"))


def standing(images: ImageSet, model: nn.Module) -> dict[str, int]:
    return {name: share.count for name, share in protocol.protocols(model, images, STUDY).items()}


@pytest.mark.slow
@pytest.mark.usefixtures("few_stages")
def test_the_papers_radius_is_a_quarter_of_it_in_pixels_where_std_is_a_quarter() -> None:
    eps = 8 / 255
    # Normalised to (x - 0.25) / 0.25, so that class 0 begins at a pixel of 0.375. In pixel units
    # eps moves an image by eps, in the paper's units by eps / 4.
    model = one_pixel(0.25, 0.25, level=0.5)
    for value, in_pixels, in_paper in [
        (0.375 + 1.1 * eps, 1, 1),
        (0.375 + 0.9 * eps, 0, 1),
        (0.375 + 0.2 * eps, 0, 0),
    ]:
        found = standing(pixels([value], [0]), model)
        assert found["pixels linf 8/255"] == in_pixels
        assert found["paper linf 8/255"] == in_paper


@pytest.mark.usefixtures("few_stages")
def test_the_papers_clip_alone_moves_pixels_below_the_mean() -> None:
    # Black is -1 in normalised units, of class 1 below -0.1; clipped to 0 it is of class 0.
    found = standing(pixels([0.0], [1]), one_pixel(0.25, 0.25, level=-0.1))
    assert found["paper linf 8/255"] == 0
    assert found["pixels linf 8/255"] == found["worst linf 0.1"] == 1


class Coupled(nn.Module):
    """Right on every image in company, and wrong on each alone."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise([0.0], [1.0])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        right = float(len(images) > 1)
        scores = torch.stack([torch.full((len(images),), v) for v in (right, 1 - right)], dim=1)
        return scores + 0 * self.normalise(images).flatten(1)


def test_the_judge_decides_and_predicts_each_image_alone() -> None:
    found = standing(pixels([0.2, 0.4, 0.6], [0, 0, 0]), Coupled().eval())
    assert {name: count for name, count in found.items() if not name.startswith("paper")} == {
        "pixels linf 8/255": 0,
        "pixels l2 127/255": 0,
        "wide linf 0.1": 0,
        "worst linf 0.1": 0,
    }


class Saturated(Away):
    """Bounded away from 0 at once and then blown up, so that gradients of the end vanish."""

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        late = (t > 0.3).to(state.dtype)
        return (1 + 1e8 * late) * torch.cat([features, -features], dim=1) + 0 * state


@pytest.mark.slow
def test_views_find_what_saturated_logits_hide() -> None:
    model = one_pixel(0.5, 1.0)
    model.field = Saturated()
    found = standing(pixels([0.55] * 8, [0] * 8), model)
    assert found["wide linf 0.1"] > 0  # gradients that underflow
    assert found["worst linf 0.1"] == 0


def test_rivals_differ_from_lyanets_recipe_in_loss_solver_and_a_gain_that_stays() -> None:
    lyanet, rivals = variants(STUDY, 1)
    assert list(rivals) == ["back-propagation, 5 rk4 steps", "adjoint, 5 rk4 steps"]
    for rival in rivals.values():
        assert rival.training.batch_size == lyanet.training.batch_size
        assert isinstance(rival.training.loss, CrossEntropyConfig)
        assert isinstance(rival.model, NeuralODEConfig)
        assert isinstance(rival.model.field, LyaNetFieldConfig)
        assert not rival.model.field.moving
        field = rival.model.field.model_copy(update={"moving": True})
        as_ours = {"solver": lyanet.model.solver, "field": field}
        assert rival.model.model_copy(update=as_ours) == lyanet.model


def test_the_cost_of_a_step_and_of_an_epoch_is_measured_against_each_rival(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "_BLOCK", 1)
    monkeypatch.setattr(cost, "_BLOCKS", 1)
    monkeypatch.setattr(cost, "_ROUNDS", 1)
    pixels = torch.rand((128, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = ImageSet("mnist", "train", pixels, torch.arange(128) % 10, 10)
    found = cost.step_and_epoch_ratios(STUDY, 1, images)
    rivals = list(variants(STUDY, 1)[1])
    assert set(found) == {f"{what}: {rival}" for what in ("step", "epoch") for rival in rivals}
    assert all(ratio > 0 for ratio in found.values())


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_compared_pair_is_one_network_that_differs_in_its_loss_and_lyanets_gain(
    study: Study,
) -> None:
    for rival, ours in GROUPS[1:]:
        one, other = (recipe_of(study, name, 1) for name in (ours, rival))
        assert one.trained_by.loss != other.trained_by.loss
        assert one.trained_by.learning_rate == study.rate_of(ours)
        as_rival = {"loss": other.trained_by.loss, "learning_rate": study.rate_of(rival)}
        assert one.trained_by.model_copy(update=as_rival) == other.training
        model = one.model
        if isinstance(model, NeuralODEConfig):
            assert isinstance(other.model, NeuralODEConfig)
            assert model.field.gain == 100
            assert isinstance(model.field, LyaNetFieldConfig)
            assert model.field.moving
            model = model.model_copy(update={"field": other.model.field})
        assert model == other.model


def test_another_seed_and_another_budget_are_other_recipes() -> None:
    recipes = {
        recipe_of(STUDY, name, seed, epochs).training_digest
        for name in MODELS
        for seed in (1, 2, 3)
        for epochs in STUDY.budgets
    }
    assert len(recipes) == 30


@pytest.mark.parametrize(
    ("epochs", "best", "settled"),
    [
        (10, 8, True),
        (10, 9, False),
        (10, 10, False),
        (16, 12, True),
        (16, 13, False),
        (1, 1, False),
    ],
)
def test_a_training_has_settled_if_its_last_fifth_was_no_better(
    epochs: int, best: int, settled: bool
) -> None:
    assert Budget(epochs=epochs, best_epoch=best, seconds=1.0).settled is settled


def test_a_pair_is_trained_anew_for_longer_while_either_still_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = {("node", 10): 3, ("lyanet", 10): 10, ("node", 20): 20, ("lyanet", 20): 5}
    best |= {("resnet", 10): 8}
    asked = []

    def train_one(study: Study, name: str, seed: int, epochs: int, *rest: object) -> object:
        del study, seed, rest
        asked.append((name, epochs))
        return nn.Identity(), Budget(epochs=epochs, best_epoch=best[name, epochs], seconds=1.0)

    monkeypatch.setattr(models, "trained", train_one)
    assert STUDY.budgets == (10, 20)
    pair = trained_group(STUDY, ("node", "lyanet"), 1, tmp_path, None, quiet=True)
    alone = trained_group(STUDY, ("resnet",), 1, tmp_path, None, quiet=True)
    assert asked == [*list(best)[:4], ("resnet", 10)]
    # The longest there is, though one of them was better still at its end.
    assert {name: b.epochs for name, (_, b) in pair.items()} == {"node": 20, "lyanet": 20}
    assert [b.settled for _, b in pair.values()] == [False, True]
    assert alone["resnet"][1].epochs == 10


@pytest.mark.parametrize("content", ["of the user", recipe_text(STUDIES["mnist"], "node", 2, 10)])
def test_a_recipe_of_another_training_is_not_written_over(tmp_path: Path, content: str) -> None:
    file = tmp_path / "seed-1" / "node-10" / "recipe.toml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(UsageError):
        trained(STUDY, "node", 1, 10, tmp_path, None, quiet=True)
    assert file.read_text() == content
    assert list(file.parent.iterdir()) == [file]


def test_results_are_kept_part_by_part_and_dropped_when_the_recipes_change(tmp_path: Path) -> None:
    empty = stored(STUDY, 1, tmp_path)
    recipes, here = recipes_digest(STUDY, 1), environment().get("commit")
    assert empty == SeedResults(edition=2, data="mnist", seed=1, recipes=recipes, commit=here)
    half = empty.model_copy(update={"cost": {"step: adjoint": 0.5}})
    keep(half, tmp_path)
    assert stored(STUDY, 1, tmp_path) == half
    with pytest.raises(UsageError, match="expected results on fashion-mnist, got some on mnist"):
        stored(STUDIES["fashion-mnist"], 1, tmp_path)
    keep(half.model_copy(update={"recipes": "of another edition"}), tmp_path)
    assert stored(STUDY, 1, tmp_path) == empty
    (tmp_path / "seed-1.json").write_text("{")
    with pytest.raises(UsageError, match="move it away to measure again"):
        stored(STUDY, 1, tmp_path)


def test_robust_accuracies_of_an_earlier_edition_are_read_and_never_mixed_with_new_ones(
    tmp_path: Path,
) -> None:
    table = {"wide linf 0.1": {"node": Proportion.of(1, 2)}}
    recipes = recipes_digest(STUDY, 1)
    old = SeedResults(seed=1, recipes=recipes, cost={"step: adjoint": 0.5}, robust=table)
    assert old.edition == 1  # as files say that were written before there were editions
    keep(old, tmp_path)
    assert read_seed(1, tmp_path) == old
    assert stored(STUDY, 1, tmp_path) == old.model_copy(update={"edition": 2, "robust": {}})


def test_one_seed_has_no_interval_and_is_refused(tmp_path: Path) -> None:
    for seeds in ((1,), (1, 2, 2)):
        with pytest.raises(UsageError, match="two seeds or more, each once"):
            run.measure_claims(tmp_path, None, seeds=seeds)


def test_a_data_set_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mnist, fashion-mnist, cifar-10, got 'digits'"):
        run.measure_claims(tmp_path, None, data="digits")
    assert not list(tmp_path.iterdir())


def test_radii_of_studies_are_named_as_people_write_them() -> None:
    assert [protocol.words_of(study.threat) for study in STUDIES.values()] == [
        "linf 0.1",
        "linf 0.1",
        "linf 8/255",
    ]
