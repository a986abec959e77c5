"""Iterated ascent keeps what came nearest, alike in any company."""

from dataclasses import replace

import pytest
import torch
from toys import CLASSES, Linear, grey_images, make_problem, minimal_distance

from robustness.attacks import IteratedAscent, Stage, Status, View, default_stages, judge
from robustness.attacks.climb import Hunt, Rows
from robustness.attacks.iterated import Search
from robustness.attacks.lanes import Meter, Metered, scores
from robustness.attacks.losses import Loss, margin, nearness, targeted, toward, toward_standardised
from robustness.data import load_images
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


def of(model: torch.nn.Module, **settings: float) -> IteratedAscent:
    return IteratedAscent((View("deployed", model, faithful=True),), **settings)


def on_lyanet() -> tuple[Stage, torch.Tensor, torch.Tensor]:
    stage = default_stages(load_model("digits/lyanet").module, ThreatModel(Norm.LINF, 0.1))[-1]
    assert isinstance(stage.attack, IteratedAscent)
    data = load_images("digits", "test", None)
    return stage, data.images, data.labels


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(Norm))
def test_an_iterated_ascent_breaks_a_linear_model_beyond_its_distance_and_not_below(
    norm: Norm,
) -> None:
    model, images, labels = make_problem(CLASSES, count=6)
    distance = minimal_distance(model, images, labels, norm)
    for factor, expected in ((1.05, Status.ADVERSARIAL), (0.999, Status.ROBUST)):
        for i, eps in enumerate((distance * factor).tolist()):
            one, label, threat = images[i : i + 1], labels[i : i + 1], ThreatModel(norm, eps)
            attack = of(model, rounds=3, annealed=1, lives=1, starts=8)
            found = attack.propose(model, one, label, threat, seed=0)
            assert bool((norm.distance(found[0], one) <= eps + 1e-7).all())
            (verdict,) = judge(model, one, label, found, threat)
            assert verdict.status is expected, (i, factor)


@pytest.mark.slow
def test_what_an_iterated_ascent_finds_does_not_depend_on_company_bit_for_bit() -> None:
    stage, images, labels = on_lyanet()
    attack = replace(stage.attack, rounds=1, annealed=1, lives=2, hope=-1.5, steps=2, lane=16)
    model, threat = load_model("digits/lyanet").module, ThreatModel(Norm.LINF, 0.1)
    rows = torch.arange(4)
    together = attack.propose(model, images[rows], labels[rows], threat, seed=3)[0]
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    shuffled = attack.propose(model, images[order], labels[order], threat, seed=3)[0]
    assert torch.equal(shuffled, together[order])
    alone = attack.propose(model, images[2:3], labels[2:3], threat, seed=3)[0]
    assert torch.equal(alone[0], together[2])


def test_later_rounds_start_beside_what_came_nearest_to_another_class() -> None:
    model, images = Linear(CLASSES), grey_images(5)
    labels = model(images).argmax(dim=1)
    threat = ThreatModel(Norm.LINF, 1e-3)
    near = [
        nearness(
            scores(
                model, of(model, rounds=n, lives=1).propose(model, images, labels, threat, 0)[0]
            ),
            labels,
        )
        for n in (1, 4)
    ]
    assert bool((near[1] >= near[0]).all())
    assert bool((near[1] > nearness(model(images), labels)).all())


def test_the_view_of_an_iterated_ascent_is_paid_for() -> None:
    model, images = Linear(CLASSES), grey_images(2)
    labels, meter = model(images).argmax(dim=1), Meter()
    attack = IteratedAscent(
        (View("twin", Linear(CLASSES)),), rounds=1, annealed=0, lives=1, starts=2, steps=4, lane=4
    )
    threat = ThreatModel(Norm.L2, 1e-6)
    attack.propose(Metered(model, meter), images, labels, threat, seed=0)
    assert meter.gradients == 5 * 4  # a look before each of 4 steps and one after, a lane each
    assert meter.queries == 4 + 5 * 4


def test_only_what_has_come_near_to_another_class_is_climbed_further() -> None:
    model, images = Linear(CLASSES), grey_images(2)
    labels, threat = model(images).argmax(dim=1), ThreatModel(Norm.L2, 1e-6)
    near = nearness(model(images), labels)
    between, costs = float(near.mean()), []
    assert float(near.min()) < between - 1e-3
    for annealed, hope in ((0, between), (1, between), (1, -torch.inf)):
        meter, settings = Meter(), {"annealed": annealed, "hope": hope, "lives": 1}
        attack = of(model, rounds=1, **settings, starts=2, steps=4, lane=2)
        attack.propose(Metered(model, meter), images, labels, threat, seed=0)
        costs.append(meter.gradients)
    one, two, three = costs
    assert two - one == 5 * 2  # a lane for one sample's two starts, before, between and after
    assert three - one == 2 * 5 * 2


def test_a_further_life_is_for_what_came_twice_as_near() -> None:
    model, images = Linear(CLASSES), grey_images(2)
    labels, threat = model(images).argmax(dim=1), ThreatModel(Norm.L2, 1e-6)
    between, costs = float(nearness(model(images), labels).mean()), []
    for lives, hope in ((1, 2 * between), (2, 2 * between), (2, 100 * between)):
        meter, settings = Meter(), {"lives": lives, "hope": hope, "lane": 2}
        attack = of(model, rounds=1, annealed=0, starts=2, steps=4, **settings)
        attack.propose(Metered(model, meter), images, labels, threat, seed=0)
        costs.append(meter.gradients)
    one, two, three = costs
    assert two - one == 5 * 2
    assert three - one == 2 * 5 * 2


def test_a_climb_that_passes_a_thin_wrong_region_stops_there() -> None:
    """Both ends of the way are classified rightly: only a look at every step finds the sliver."""

    class Sliver(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            mean = images.flatten(1).mean(dim=1)
            wrong = ((mean > 0.515) & (mean < 0.535)).to(images.dtype)
            return torch.stack([1 - wrong, 2 * wrong], dim=1)

    bright = View("bright", Linear(2))
    bright.module.weight.data = torch.stack([-torch.ones(36), torch.ones(36)])
    image, label = torch.full((1, 1, 6, 6), 0.5), torch.zeros(1, dtype=torch.int64)
    hunt = Hunt(Sliver(), image, label, Norm.LINF, torch.tensor([0.2]).double(), None)
    rows = Rows.at(image, torch.zeros(1).long(), label, torch.tensor([0.025]))
    hunt.anneal(bright, rows, toward, steps=12)
    assert bool(hunt.found)


def test_the_loss_toward_a_target_is_the_margin_where_the_target_is_the_label() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    labels, targets = torch.tensor([0, 0]), torch.tensor([0, 1])
    expected = torch.stack(
        [margin(logits, labels, labels)[0], targeted(logits, labels, targets)[1]]
    )
    assert torch.equal(toward(logits, labels, targets), expected)


def test_the_standardised_loss_is_deaf_to_a_scaling_of_all_logits() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0]], requires_grad=True)
    label, target = torch.tensor([0]), torch.tensor([2])
    (slope,) = torch.autograd.grad(toward(logits, label, target).sum(), logits)
    assert float((slope * logits.detach()).sum()) < -0.5  # shrinking all logits raises the margin
    value = toward_standardised(logits, label, target)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert float((slope * logits.detach()).sum().abs()) < 1e-6
    assert float(slope.abs().max()) > 0.1
    torch.testing.assert_close(value, toward_standardised(5 * logits, label, target))


def test_each_round_climbs_the_next_views_in_turn_and_every_other_one_standardised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images = Linear(CLASSES), grey_images(1)
    climbed: list[tuple[str, str]] = []

    def noted(hunt: Hunt, view: View, rows: Rows, loss: Loss, steps: int) -> Rows:
        climbed.append((view.name, loss.__name__))
        return rows

    monkeypatch.setattr(Hunt, "anneal", noted)
    views = tuple(View(name, model) for name in "abc")
    attack = IteratedAscent(views, turn=2, rounds=2, annealed=1, lives=1, hope=-torch.inf, starts=2)
    attack.propose(model, images, model(images).argmax(dim=1), ThreatModel(Norm.LINF, 1e-6), 0)
    names, losses = zip(*climbed, strict=True)
    assert "".join(names) == "abcabc"
    assert [loss == "toward" for loss in losses] == [True, True, False, False, True, True]


def test_a_new_life_begins_at_random_and_what_came_nearest_before_is_proposed() -> None:
    model, images = Linear(CLASSES), grey_images(1)
    label, eps = model(images).argmax(dim=1), torch.tensor([1e-3]).double()
    search = Search(Hunt(model, images, label, Norm.LINF, eps, None), 2, seed=0)
    before = float(search.record)
    rival = int(model(images).scatter(1, label[:, None], -torch.inf).argmax())
    ahead = (model.weight[rival] - model.weight[int(label)]).sign().view_as(images)
    near = images + 1e-4 * ahead
    rows = Rows.at(near.repeat(2, 1, 1, 1), torch.tensor([0, 0]), label.repeat(2), torch.ones(2))
    search.hunt.watch(rows, model(rows.x))
    search.keep_best(rows, 2)
    search.begin_anew()
    assert torch.equal(search.kept, images.unsqueeze(1).expand_as(search.kept))
    assert torch.equal(search.candidates(), near)
    assert float(search.record) > before
    assert search.hopeful(before + 1e-9).tolist() == [True]


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e30])
def test_nearness_is_the_same_at_any_scale_and_above_zero_where_the_class_is_another(
    scale: float,
) -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 0.0]])
    labels = torch.tensor([0, 0])
    near = nearness(scale * logits, labels)
    torch.testing.assert_close(near, nearness(logits, labels))
    assert (near > 0).tolist() == [False, True]


def test_the_views_and_settings_of_an_iterated_ascent_are_in_its_version() -> None:
    stage, _, _ = on_lyanet()
    for view in ("horizon/2,", "horizon/2-smooth-backward", "euler-smooth-backward"):
        assert view in stage.version
    attack = stage.attack
    assert isinstance(attack, IteratedAscent)
    for other in (replace(attack, rounds=6), replace(attack, starts=8), replace(attack, steps=9)):
        assert other.version != attack.version
    assert replace(attack, views=attack.views[:2]).version != attack.version
