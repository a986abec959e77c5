"""Attacks that lose what they found, or stop while they still climb, are told from others."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, Linear, grey_images, minimal_distance

from robustness.attacks import PGD, Ascent
from robustness.attacks.ascent import surviving_traces
from robustness.attacks.checks.attack_audits import (
    incomplete_optimisation,
    silent_success,
    silent_successes,
    unfinished,
)
from robustness.attacks.views import View
from robustness.data import load_images
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model

IMAGES = grey_images(24)
LABELS = Linear()(IMAGES).argmax(dim=1)
DISTANCE = minimal_distance(Linear(), IMAGES, LABELS, Norm.LINF)
NEAR = ThreatModel(Norm.LINF, float(DISTANCE.median()))
GREY = torch.full((3, 1, 12, 12), 0.5)
ZEROS = torch.zeros(3, dtype=torch.int64)


class BrighterIsOther(nn.Module):
    """Class 1 for images whose mean is above one half by more than a tenth, else class 0."""

    def forward(self, images: Tensor) -> Tensor:
        lead = images.flatten(1).mean(dim=1) - 0.6
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


@dataclass(frozen=True)
class Walks:
    """Asks the model of images brighter by so much one after the other; returns one of them."""

    points: tuple[float, ...]
    returned: float
    name: str = "walks"
    version: str = "of tests"

    def refusal(self, threat: ThreatModel, classes: int) -> None:
        del threat, classes

    def propose(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, seed: int
    ) -> Tensor:
        del labels, threat, seed
        for point in self.points:
            model(images + point)
        return (images + self.returned).unsqueeze(0)


WIDE, NARROW = ThreatModel(Norm.LINF, 0.2), ThreatModel(Norm.LINF, 0.05)


@pytest.mark.parametrize(
    ("threat", "attack", "silent"),
    [
        (WIDE, Walks((0.0, 0.15, 0.05), returned=0.05), True),
        (WIDE, Walks((0.0, 0.15, 0.05), returned=0.15), False),
        (WIDE, Walks((0.0, 0.05), returned=0.05), False),
        (NARROW, Walks((0.0, 0.15, 0.05), returned=0.05), False),
        (NARROW, Walks((0.0, 0.15, 0.05), returned=0.15), False),
    ],
    ids=["walked-through", "returned", "met-none", "met-outside", "returned-outside"],
)
def test_an_attack_is_silent_where_it_met_what_it_does_not_return(
    threat: ThreatModel, attack: Walks, silent: bool
) -> None:
    flag = silent_success(BrighterIsOther(), GREY, ZEROS, threat, attacks=[attack])
    assert flag.raised is silent, flag
    assert flag.value == float(silent)
    assert f"{3 if silent else 0} of walks (of tests)" in flag.detail


def test_only_samples_that_were_met_are_silent() -> None:
    images = torch.cat([GREY[:1], GREY[:1] - 0.4, GREY[:1]])
    walk = Walks((0.15, 0.0), returned=0.0)
    silent = silent_successes(walk, BrighterIsOther(), images, ZEROS, WIDE)
    assert silent.tolist() == [True, False, True]


class Shell(nn.Module):
    """Another class in a shell of brightness only, which gradients lead through and beyond."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1) - 0.5
        lead = torch.where((mean > 0.08) & (mean < 0.12), 0.1, -0.1)
        lead = lead + mean - mean.detach()
        return torch.stack([torch.zeros_like(lead), lead], dim=1)


def test_the_last_iterate_of_pgd_is_silent_behind_a_shell_and_the_best_of_apgd_is_not() -> None:
    flag = silent_success(Shell(), GREY, ZEROS, WIDE)
    assert flag.raised, flag
    assert flag.value == 1.0
    assert "3 of pgd (torchattacks" in flag.detail
    assert "0 of apgd-ce (pyautoattack" in flag.detail


@pytest.mark.parametrize("norm", list(Norm))
def test_library_attacks_return_what_they_found_on_a_linear_model(norm: Norm) -> None:
    distance = minimal_distance(Linear(), IMAGES, LABELS, norm)
    threat = ThreatModel(norm, float(distance.median()))
    assert not silent_success(Linear(), IMAGES, LABELS, threat).raised


def test_an_attack_that_passes_no_batch_of_all_images_cannot_be_watched() -> None:
    with pytest.raises(ValueError, match="expected batches of 3 images on its way, got none"):
        silent_successes(Walks((), 0.0), BrighterIsOther(), GREY, ZEROS, WIDE)


def test_watching_leaves_the_mode_of_the_model_alone() -> None:
    model = BrighterIsOther().train()
    silent_successes(PGD(), model, GREY, ZEROS, WIDE)
    assert model.training


class Staircase(nn.Module):
    """Only the first pixel that is not yet bright has a slope: a step climbs about one stair."""

    def __init__(self, bright: float, far: float) -> None:
        super().__init__()
        self.bright, self.far = bright, far

    def forward(self, images: Tensor) -> Tensor:
        delta = images.flatten(1) - 0.5
        reached = (delta > self.bright).long().cumprod(dim=1).sum(dim=1)
        following = reached.clamp(max=delta.shape[1] - 1).unsqueeze(1)
        height = reached + delta.gather(1, following).squeeze(1)
        return torch.stack([torch.zeros_like(height), height - self.far], dim=1)


def test_a_climb_that_rises_to_its_end_is_incomplete_and_a_longer_one_is_not() -> None:
    model, ball = Staircase(bright=0.03, far=1e3), ThreatModel(Norm.LINF, 0.1)
    flag = incomplete_optimisation(model, GREY, ZEROS, ball)
    assert flag.raised, flag
    assert flag.value == 1.0
    assert "3 of 3 samples stand" in flag.detail
    longer = incomplete_optimisation(model, GREY, ZEROS, ball, ascent=Ascent("margin", 400))
    assert not longer.raised, longer


def test_one_sample_alone_does_not_raise_the_flag_and_broken_ones_are_not_looked_at() -> None:
    model, ball = Staircase(bright=0.03, far=1e3), ThreatModel(Norm.LINF, 0.1)
    alone = incomplete_optimisation(model, GREY[:1], ZEROS[:1], ball)
    assert (alone.value, alone.raised) == (1.0, False)
    near = incomplete_optimisation(Staircase(bright=0.03, far=0.5), GREY, ZEROS, ball)
    assert (near.value, near.raised) == (0.0, False)
    assert "0 of 3 samples stand" in near.detail


def test_samples_that_the_model_fails_on_do_not_stand() -> None:
    class Fails(nn.Module):
        """No finite logits in the darker half."""

        def forward(self, images: Tensor) -> Tensor:
            logits = BrighterIsOther()(images)
            return torch.where(images.flatten(1).mean(dim=1, keepdim=True) < 0.5, torch.nan, logits)

    images = torch.cat([GREY[:2], GREY[:1] - 0.4])
    flag = incomplete_optimisation(Fails(), images, ZEROS, NARROW)
    assert not flag.raised
    assert " of 3 samples stand" in flag.detail
    failed = surviving_traces(
        Ascent("margin", 5),
        View("deployed", Fails(), faithful=True),
        Fails(),
        images[2:],
        ZEROS[2:],
        Norm.LINF,
        torch.tensor([0.05], dtype=torch.float64),
        0,
    )
    assert failed.shape == (0, 6)


def test_a_climb_of_a_linear_model_is_complete() -> None:
    near = replace(NEAR, eps=0.9 * float(DISTANCE.min()))
    flag = incomplete_optimisation(Linear(), IMAGES, LABELS, near)
    assert (flag.value, flag.raised) == (0.0, False)
    assert "24 of 24 samples stand" in flag.detail


def losses(*values: float) -> Tensor:
    return torch.tensor([values])


STEADY = [float(i) for i in range(21)]
SETTLED = [float(min(i, 10)) for i in range(21)]


@pytest.mark.parametrize(
    ("trace", "still_rising"),
    [
        (STEADY, True),
        (SETTLED, False),
        ([*SETTLED[:20], 10.5], False),
        ([*SETTLED[:20], 10.6], True),
        ([*SETTLED[:9], 10.0, 5.0, *[10.0] * 10], False),
        ([*STEADY[:20], 5.0], True),
        ([-100.0, *SETTLED[1:20], 10.6], False),
        ([0.0, float("nan"), *SETTLED[2:]], False),
        ([0.0, float("nan"), *STEADY[2:]], True),
        ([3.0] * 21, False),
        ([float("nan")] * 21, False),
        ([0.0, 1.0], True),
        ([*[0.0] * 11, *[1.0] * 10], True),
        ([*[0.0] * 10, *[1.0] * 11], False),
    ],
    ids=[
        "steady",
        "settled",
        "less-than-5%",
        "more-than-5%",
        "back-up-to-the-best",
        "fell-behind-the-best",
        "5%-of-a-part-of-the-range",
        "settled-after-nan",
        "steady-after-nan",
        "flat",
        "nothing-finite",
        "short",
        "ten-steps-ago",
        "eleven-steps-ago",
    ],
)
def test_a_climb_is_unfinished_by_the_rise_of_its_best_loss(
    trace: list[float], still_rising: bool
) -> None:
    assert unfinished(losses(*trace)).tolist() == [still_rising]


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e3), (1.0, -1e3)])
def test_neither_the_scale_nor_the_zero_of_a_loss_matters(scale: float, shift: float) -> None:
    for trace in (STEADY, SETTLED, [*SETTLED[:20], 10.4], [*SETTLED[:20], 10.7]):
        assert unfinished(losses(*trace)).equal(unfinished(scale * losses(*trace) + shift))


@pytest.mark.parametrize(
    "ascent", [Ascent("targeted", steps=12, targets=4), Ascent("margin", steps=1)]
)
def test_traces_are_of_the_best_climb_of_each_sample_that_stands(ascent: Ascent) -> None:
    eps = torch.linspace(0.5, 2, len(DISTANCE), dtype=torch.float64) * DISTANCE
    view = View("deployed", Linear(), faithful=True)
    found = surviving_traces(ascent, view, Linear(), IMAGES, LABELS, Norm.LINF, eps, 0)
    (proposed,) = ascent.pursue(view, Linear(), IMAGES, LABELS, Norm.LINF, eps, 0)
    logits = Linear()(proposed)
    true = logits.gather(1, LABELS.unsqueeze(1)).squeeze(1)
    best_wrong = logits.scatter(1, LABELS.unsqueeze(1), -torch.inf).amax(dim=1)
    stands = best_wrong <= true
    assert 0 < int(stands.sum()) < len(stands)
    assert CLASSES == 5, "every wrong class is a target"
    assert found.shape == (int(stands.sum()), ascent.steps + 1)
    torch.testing.assert_close(found.amax(dim=1), (best_wrong - true)[stands])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/resnet", "digits/node", "digits/lyanet-certified"])
def test_attacks_report_what_they_find_and_finish_on_entries_of_the_zoo(name: str) -> None:
    model, digits = load_model(name).module, load_images("digits")
    right = model(digits.images[:20]).argmax(dim=1) == digits.labels[:20]
    images, labels = digits.images[:20][right], digits.labels[:20][right]
    threat = ThreatModel(Norm.LINF, 0.05)
    silent = silent_success(model, images, labels, threat)
    assert (silent.value, silent.raised) == (0.0, False)
    incomplete = incomplete_optimisation(model, images, labels, threat)
    assert not incomplete.raised, incomplete
    assert "stand at" in incomplete.detail


def test_short_climbs_of_a_rugged_field_are_not_over() -> None:
    digits = load_images("digits")
    model, threat = load_model("digits/lyanet").module, ThreatModel(Norm.LINF, 0.05)
    flag = incomplete_optimisation(model, digits.images[:32], digits.labels[:32], threat)
    assert flag.raised, flag
