"""Ascent reaches what a closed form says can be reached, alike in any company."""

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, Linear, Perceptron, grey_images, make_problem, minimal_distance

from robustness.attacks import Ascent, Status, View, default_stages, judge
from robustness.attacks.ascent import LossName, ascend
from robustness.attacks.lanes import LANE_OF_SMALL as LANE
from robustness.attacks.lanes import Meter, Metered, scores, scores_and_gradients
from robustness.attacks.losses import LOSSES, likely_targets
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


@pytest.mark.parametrize("norm", list(Norm))
def test_a_targeted_ascent_is_exact_on_a_linear_model_of_many_classes(norm: Norm) -> None:
    model, images, labels = make_problem(CLASSES)
    distance = minimal_distance(model, images, labels, norm)
    view = View("deployed", model, faithful=True)
    for factor, expected in ((1.01, Status.ADVERSARIAL), (0.999, Status.ROBUST)):
        radii = distance * factor
        found = ascend(Ascent("targeted", 60), view, model, images, labels, norm, radii, seed=0)
        for i, eps in enumerate(radii.tolist()):
            one, label = images[i : i + 1], labels[i : i + 1]
            (verdict,) = judge(model, one, label, found[None, i : i + 1], ThreatModel(norm, eps))
            assert verdict.status is expected, (i, factor, verdict)


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("norm", list(Norm))
def test_every_loss_breaks_two_classes_just_beyond_the_closed_form(
    loss: LossName, norm: Norm
) -> None:
    model, images, labels = make_problem(2)
    distance = minimal_distance(model, images, labels, norm)
    threat = ThreatModel(norm, float(distance.max()) * 1.01)
    candidates = Ascent(loss, 40).propose(model, images, labels, threat, seed=0)
    verdicts = judge(model, images, labels, candidates, threat)
    assert all(v.status is Status.ADVERSARIAL for v in verdicts)


@pytest.mark.parametrize("norm", list(Norm))
def test_candidates_lie_in_ball_and_box(norm: Norm) -> None:
    model, images, labels = Linear(), torch.rand(6, 1, 6, 6).round(), torch.zeros(6).long()
    threat = ThreatModel(norm, 0.3)
    (found,) = Ascent("ce", 8).propose(model, images, labels, threat, seed=1)
    assert found.min() >= 0
    assert found.max() <= 1
    assert bool((norm.distance(found, images) <= threat.eps * (1 + 1e-6)).all())


def test_what_is_found_for_a_sample_does_not_depend_on_its_company() -> None:
    model, images = Perceptron(), grey_images(40)
    labels = model(images).argmax(dim=1)
    threat = ThreatModel(Norm.LINF, 0.02)
    ascent = Ascent("margin", 10, starts=2)
    together = ascent.propose(model, images, labels, threat, seed=3)[0]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = ascent.propose(model, images[order], labels[order], threat, seed=3)[0]
    assert torch.equal(shuffled, together[order])
    few = [7, 31]
    assert torch.equal(
        ascent.propose(model, images[few], labels[few], threat, seed=3)[0], together[few]
    )


@pytest.mark.parametrize("name", ["digits/lyanet", "digits/resnet"])
def test_a_row_of_a_lane_is_the_same_bit_for_bit_and_its_gradient_to_the_last_digits(
    name: str,
) -> None:
    model = load_model(name).module
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(LANE + 3, 1, 8, 8, generator=generator)
    labels = torch.arange(len(images)) % 10

    def gradients(rows: list[int]) -> tuple[Tensor, Tensor]:
        here = labels[rows]
        logits, _, slopes = scores_and_gradients(
            model, images[rows], lambda z, part: LOSSES["ce"](z, here[part], here[part])
        )
        return logits, slopes

    logits, slopes = gradients(list(range(len(images))))
    for rows in ([0], [LANE + 2, 5, 9], list(range(LANE + 2, -1, -1))):
        some_logits, some_slopes = gradients(rows)
        assert torch.equal(some_logits, logits[rows])
        # Sums over a few entries are vectorised across rows, the last of them otherwise.
        steepest = slopes[rows].flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1)
        assert float(((some_slopes - slopes[rows]).abs() / steepest).max()) < 1e-5
    assert torch.equal(scores(model, images[5:6]), logits[5:6])


def test_the_seed_and_the_image_decide_the_draws() -> None:
    model, images, labels = make_problem(2, count=2)
    threat = ThreatModel(Norm.L2, 0.01)
    first, again, other = (
        Ascent("ce", 1).propose(model, images, labels, threat, seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_broken_samples_leave_the_batch() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.lanes = Linear(2), 0

        def forward(self, images: Tensor) -> Tensor:
            self.lanes += len(images) == LANE
            return self.inner(images)

    images = grey_images(2 * LANE)
    model = Counts()
    labels = model.inner(images).argmax(dim=1)
    easy = ThreatModel(Norm.LINF, 0.5)
    Ascent("margin", 20).propose(model, images, labels, easy, seed=0)
    assert model.lanes <= 6  # two lanes per step, gone after the first steps
    model.lanes = 0
    hard = ThreatModel(Norm.LINF, 1e-6)
    Ascent("margin", 20).propose(model, images, labels, hard, seed=0)
    assert model.lanes >= 38


def test_targets_are_wrong_classes_by_falling_logit() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, torch.nan, 5.0]])
    targets = likely_targets(logits, torch.tensor([0, 0]), 9)
    assert targets[0].tolist() == [2, 1]
    assert targets.shape == (2, 2)
    assert 0 not in targets.tolist()[1]


def test_the_ratio_loss_falls_back_to_the_margin_with_two_classes() -> None:
    logits, labels = torch.tensor([[1.0, 4.0]]), torch.tensor([0])
    assert LOSSES["dlr"](logits, labels, labels).tolist() == [3.0]
    three = torch.tensor([[1.0, 4.0, 3.0]])
    assert LOSSES["dlr"](three, labels, labels).tolist() == [1.0]  # (4 - 1) / (4 - 1)


def test_short_lanes_cost_less_where_few_samples_stand() -> None:
    images = grey_images(3)
    labels = Linear(2)(images).argmax(dim=1)
    spent = {}
    for lane in (None, 32):
        meter = Meter()
        attack = Ascent("margin", steps=4, lane=lane)
        threat = ThreatModel(Norm.L2, 1e-6)
        attack.propose(Metered(Linear(2), meter), images, labels, threat, seed=0)
        spent[lane] = meter.queries + meter.gradients
    assert spent[None] == 4 * spent[32]


def test_a_model_made_to_be_certified_is_climbed_in_short_lanes_and_its_version_says_so() -> None:
    for name, short in (("digits/lyanet", False), ("digits/lyanet-certified", True)):
        stages = default_stages(load_model(name).module, ThreatModel(Norm.L2, 0.1))
        said = ["lanes of 32" in s.version for s in stages if isinstance(s.attack, Ascent)]
        assert said
        assert all(flag is short for flag in said)


def test_rugged_fields_are_climbed_from_more_starts_at_the_end() -> None:
    last = {}
    for name in ("mnist/fi-ode", "digits/lyanet", "mnist/lyanet-certified-linf"):
        stage = default_stages(load_model(name).module, ThreatModel(Norm.LINF, 0.1))[-1]
        last[name] = stage.name
    assert last == {
        "mnist/fi-ode": "ascent-targeted-200@deployed",
        "digits/lyanet": "iterated-ascent-28x20@deployed",
        "mnist/lyanet-certified-linf": "ascent-targeted-100@deployed",
    }
