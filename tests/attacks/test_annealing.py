"""Annealing needs no gradient, stays in ball and box, and pays for what it asks."""

import math

import pytest
import torch
from toys import CLASSES, Linear, grey_images

from robustness.attacks import IteratedAscent, View, judge
from robustness.attacks.annealing import Annealer
from robustness.attacks.climb import Hunt
from robustness.attacks.iterated import Search
from robustness.attacks.judge import Status
from robustness.attacks.lanes import Meter, Metered, lane_of
from robustness.threat import Norm, ThreatModel


class Counting(torch.nn.Module):
    """Two classes by a vote: each of 36 pixels is bright or not, and that is all that counts.

    No point has a gradient. A grey image is told from one of 31 bright pixels or more.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        votes = (images.flatten(1) > 0.51).to(images.dtype).mean(dim=1)
        wrong, idle = votes / 0.85, torch.zeros_like(votes)
        return torch.stack([torch.ones_like(votes), wrong, idle], dim=1)


class Threes(torch.nn.Module):
    """Two classes again: of twelve groups of three pixels those count that are bright as a whole.

    All twelve are needed, and a chain that has some seldom finds the others by itself.
    """

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = (images.flatten(1) > 0.51).to(images.dtype).unflatten(1, (-1, 3))
        wrong = bright.prod(dim=2).mean(dim=1)
        return torch.stack([torch.ones_like(wrong) - 1e-3, wrong, torch.zeros_like(wrong)], dim=1)


def counted(meter: Meter | None = None, **settings: float) -> Status:
    model, image, label = Counting(), torch.full((1, 1, 6, 6), 0.5), torch.zeros(1).long()
    attack = IteratedAscent((View("deployed", model, faithful=True),), rounds=1, **settings)
    threat, watched = ThreatModel(Norm.LINF, 0.1), Metered(model, meter or Meter())
    found = attack.propose(watched, image, label, threat, seed=0)
    (verdict,) = judge(model, image, label, found, threat)
    return verdict.status


def test_annealing_breaks_what_has_no_gradient_and_random_starts_do_not() -> None:
    assert counted(annealed=0) is Status.ROBUST
    assert counted(annealed=1, lives=1, hope=-5.0) is Status.ADVERSARIAL


@pytest.mark.parametrize("seed", range(3))
def test_chains_that_take_pixels_from_each_other_put_together_what_each_has(seed: int) -> None:
    image, eps = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0.1]).double()
    hunt = Hunt(Threes(), image, torch.zeros(1).long(), Norm.LINF, eps, None)
    annealer = Annealer(hunt, [torch.Generator().manual_seed(seed)])
    for _ in range(2):
        annealer.turn(0, image)
    assert bool(hunt.found[0])  # without mating after neither of the turns, for any of the seeds


def test_a_sample_without_hope_is_not_annealed() -> None:
    meters = [Meter(), Meter()]
    for meter, annealed in zip(meters, (0, 2), strict=True):
        assert counted(meter, annealed=annealed, hope=0.0) is Status.ROBUST
    assert meters[0].queries == meters[1].queries > 0


def test_a_smooth_model_is_annealed_for_a_short_turn_alone() -> None:
    model, image = Linear(CLASSES), grey_images(1)
    label, costs = model(image).argmax(dim=1), []
    for annealed in (0, 1, 3):
        meter, settings = (
            Meter(),
            {"rounds": 2, "annealed": annealed, "lives": 1, "hope": -torch.inf},
        )
        attack = IteratedAscent((View("deployed", model, faithful=True),), starts=2, **settings)
        attack.propose(Metered(model, meter), image, label, ThreatModel(Norm.L2, 1e-6), seed=0)
        costs.append((meter.gradients, meter.queries))
    without, one, three = costs
    # Climbs go on, which look at the model too; of annealing there is the one short turn.
    (climbed, looked), (first, asked), (third, seen) = without, one, three
    moves, lane, climbs = 20, lane_of(image), (third - first) // 2
    assert climbs == first - climbed > 0
    assert asked - looked == (moves + 1) * lane
    assert seen == asked


@pytest.mark.parametrize(
    ("nears", "rounds", "turns", "goes_on"),
    [
        ([-0.9995], 2, [True], False),  # twelve times what a short turn gained does not come to 0
        ([-0.99, -0.98], 1, [True, False], True),
        ([-0.99, -0.99, -0.99], 2, [True, False, False], True),
    ],
)
def test_a_sample_is_annealed_if_its_first_turns_gain(
    nears: list[float],
    rounds: int,
    turns: list[bool],
    goes_on: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, eps = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0.1]).double()
    search = Search(Hunt(Counting(), image, torch.zeros(1).long(), Norm.LINF, eps, None), 2, seed=0)
    search.near[0], taken, left = -1.0, [], iter(nears)

    def turn(sample: int, short: bool) -> None:
        taken.append(short)
        search.near[sample, 0] = next(left)

    monkeypatch.setattr(search, "_turn", turn)
    for number in range(rounds):
        search.cool(search.gaining, first=number == 0)
    assert taken == turns
    assert bool(search.gaining) is goes_on


def test_what_is_near_already_has_one_whole_turn_whatever_a_short_one_gains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, eps = torch.full((1, 1, 6, 6), 0.5), torch.tensor([0.1]).double()
    search = Search(Hunt(Counting(), image, torch.zeros(1).long(), Norm.LINF, eps, None), 2, seed=0)
    search.near[0], taken = -0.05, []
    monkeypatch.setattr(search, "_turn", lambda _, short: taken.append(short))
    search.cool(search.gaining, first=True)
    assert taken == [True, False]
    assert not bool(search.gaining)


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 16, 20)])
def test_chains_stay_in_ball_and_box_and_come_nearer(
    norm: Norm, shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), 4))
    model.requires_grad_(False)
    image = torch.rand(1, *shape) * 0.1
    label, eps = model(image).argmax(dim=1), torch.tensor([0.02]).double()
    hunt = Hunt(model, image, label, norm, eps, None)
    annealer = Annealer(hunt, [torch.Generator().manual_seed(1)])
    rows = annealer.turn(0, image)
    for points in (rows.x, rows.nearest):
        assert float(points.min()) >= 0
        assert bool((norm.distance(points, image.expand_as(points)) <= 0.02 + 1e-6).all())
    start = float(hunt.watch(rows, model(image).expand(annealer.chains, -1))[0])
    assert float(rows.near.median()) > start
    assert int((rows.x != image).any(dim=0).sum()) > 10


def test_a_turn_depends_on_the_sample_alone() -> None:
    model, images = Linear(CLASSES), grey_images(3)
    labels, eps = model(images).argmax(dim=1), torch.full((3,), 1e-4).double()
    hunt = Hunt(model, images, labels, Norm.LINF, eps, None)
    several = Annealer(hunt, [torch.Generator().manual_seed(i) for i in range(3)])
    others = [several.turn(i, images[i : i + 1]).x for i in (2, 0, 1)]
    alone = Hunt(model, images[1:2], labels[1:2], Norm.LINF, eps[1:2], None)
    single = Annealer(alone, [torch.Generator().manual_seed(1)]).turn(0, images[1:2]).x
    assert torch.equal(single, others[2])
    assert not torch.equal(single, others[1])
