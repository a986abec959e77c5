"""Batches of other sizes than lanes: the same numbers, or lanes."""

import pytest
import torch
from torch import Tensor, nn
from toys import CLASSES, Perceptron, grey_images

import robustness.attacks.lanes as lanes_module
from robustness.attacks import Outcome, default_stages, worst_case
from robustness.attacks.lanes import LANE_OF_SMALL as LANE
from robustness.attacks.lanes import Meter, Metered, scores, scores_and_gradients
from robustness.attacks.losses import LOSSES
from robustness.attacks.views import Rescaled
from robustness.data import load_images
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model

DIGITS = load_images("digits", "test", None)


class CompanyCounts(nn.Module):
    """Logits whose last digits depend on the size of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :CLASSES] + 1e-6 * len(images)


class Flat(nn.Module):
    """Logits without a slope."""

    def forward(self, images: Tensor) -> Tensor:
        return (0 * images).flatten(1)[:, :CLASSES]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How large batches are; sizes are tried out when they are wanted first."""
    seen: list[int] = []
    real = lanes_module.batches_of

    def noted(*arguments: object, **settings: object):
        module, batches = real(*arguments, **settings)
        seen.extend(len(part) for part in batches)
        return module, batches

    monkeypatch.setattr(lanes_module, "_WANTED", 0)
    monkeypatch.setattr(lanes_module, "batches_of", noted)
    return seen


def numbers(model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    labels = torch.arange(len(images)) % CLASSES
    found = scores_and_gradients(
        model, images, lambda z, part: LOSSES["ce"](z, labels[part], labels[part])
    )
    return (*found, scores(model, images))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(5, [LANE // 4]), (LANE - 9, [LANE]), (LANE + 3, [LANE * 3 // 2]), (500, [4 * LANE])],
)
def test_whatever_the_batches_the_numbers_and_the_costs_are_those_of_lanes(
    count: int, expected: list[int], sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, found, costs = Rescaled(load_model("digits/resnet").module), [], []
    for _ in range(2):
        meter = Meter()
        found.append(numbers(Metered(model, meter), DIGITS.images[:count]))
        costs.append((meter.queries, meter.gradients))
        monkeypatch.setattr(lanes_module, "_tried", lambda _: None)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    rows = LANE * -(-count // LANE)
    assert costs == [(rows, rows)] * 2
    assert sizes[:2] == expected * 2  # with gradients, and without


@pytest.mark.parametrize("model", [CompanyCounts(), Flat(), Perceptron()])
def test_lanes_stay_where_others_give_other_numbers_or_nothing_is_known(
    model: nn.Module, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(model, Perceptron):  # which is a user's: nobody knows what it does of others
        monkeypatch.setattr(lanes_module, "predicts_each_by_itself", lambda _: True)
    numbers(model, grey_images(3 * LANE))
    once = [LANE] * 3
    # Of what has no slope, predictions alone say something of an order.
    assert sizes == once + ([3 * LANE] if isinstance(model, Flat) else once)


def test_a_size_is_tried_when_it_has_been_wanted_for_a_while(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "_WANTED", 2)
    model = load_model("digits/resnet").module
    for _ in range(3):
        scores(model, DIGITS.images[: 2 * LANE])
    assert sizes == [LANE] * 4 + [2 * LANE]


def test_a_worst_case_is_the_same_in_lanes_and_in_other_batches(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, threat = load_model("digits/resnet").module, ThreatModel(Norm.LINF, 0.08)

    def outcomes() -> list[Outcome]:
        stages = default_stages(model, threat, "quick")
        return worst_case(model, DIGITS.images[:24], DIGITS.labels[:24], threat, stages)

    found = outcomes()
    assert set(sizes) != {LANE}
    monkeypatch.setattr(lanes_module, "_tried", lambda _: None)
    expected = outcomes()
    assert found == expected
    assert 0 < sum(outcome.image is None for outcome in expected) < 24
    for one, other in zip(found, expected, strict=True):
        assert (one.image is None) is (other.image is None)
        assert one.image is None or torch.equal(one.image, other.image)
