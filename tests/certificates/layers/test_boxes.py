"""Interval bounds against dense sampling and corners, their rounding, and what they refuse."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import SHAPE, Blueprint, in_double, random_images
from torch import Tensor, nn

from robustness.certificates.layers import boxes
from robustness.certificates.layers.boxes import Box
from robustness.nets.encoders import Normalise


def box_of(images: Tensor, eps: float) -> Box:
    return Box.around(images, torch.full((len(images),), eps))


def images_within(images: Tensor, eps: float, count: int) -> Tensor:
    """Images of the box: corners and inner ones by turns, float32, shape (count, n, ...)."""
    generator = torch.Generator().manual_seed(1)
    noise = 2 * torch.rand(count, *images.shape, generator=generator) - 1
    noise[::2] = noise[::2].sign()
    moved = (images + eps * noise).clamp(0, 1)
    # float32 sums can step over the edge of the box by their rounding.
    return torch.where((moved.double() - images.double()).abs() <= eps, moved, images)


@settings(max_examples=40)
@given(
    encoder=st.sampled_from(["conv-relu", "mlp"]),
    depth=st.integers(1, 3),
    eps=st.sampled_from([0.0, 0.003, 0.1, 0.7]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    offsets=st.sampled_from([0.0, 0.3, 1e3]),
    std=st.sampled_from([1.0, 1e-2]),
    seed=st.integers(0, 2**31),
)
def test_no_float32_activation_of_any_layer_leaves_its_box(
    encoder, depth, eps, scale, offsets, std, seed
):
    plan = Blueprint(encoder=encoder, depth=depth, scale=scale, offsets=offsets, std=std, seed=seed)
    model, images = plan.build(), random_images(4, seed)
    moved, box = images_within(images, eps, 60), box_of(images, eps)
    computed, exact = moved.flatten(0, 1), moved.flatten(0, 1).double()
    precise = in_double(model)
    for layer, other in zip(
        [model.normalise, *model.encoder], [precise.normalise, *precise.encoder], strict=True
    ):
        box, computed, exact = boxes.propagate(layer, box), layer(computed), other(exact)
        for values in (computed.double(), exact):
            values = values.view(60, 4, *values.shape[1:])
            assert (values >= box.low).all()
            assert (values <= box.high).all()
        distance = (computed.double() - exact).abs().view(60, 4, *computed.shape[1:])
        assert (distance <= box.error).all()


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(1, 2, 2, padding=1)])
def test_one_affine_layer_is_bounded_by_its_values_at_corners_and_a_little_rounding(layer):
    image, eps = torch.tensor([[[[0.3, 0.9], [0.05, 0.5]]]]), 0.1
    layer.requires_grad_(False)
    shape = (-1, 4) if isinstance(layer, nn.Linear) else (-1, 1, 2, 2)
    box = box_of(image, eps)
    ends = torch.stack([box.low.flatten(), box.high.flatten()])
    corners = torch.stack(
        [
            torch.stack([ends[side, i] for i, side in enumerate(sides)])
            for sides in itertools.product((0, 1), repeat=4)
        ]
    ).view(shape)
    values = in_double(layer)(corners)
    front = Box(*(part.view(shape) for part in (box.low, box.high, box.error)))
    behind = boxes.propagate(layer, front)
    # Strictly wider than exact arithmetic, by less than a millionth.
    below, above = values.amin(dim=0) - behind.low[0], behind.high[0] - values.amax(dim=0)
    for slack in (below, above):
        assert (slack > 0).all()
        assert (slack < 2e-6).all()
    assert torch.equal(behind.error, behind.error.clamp_min(1e-12))


def test_a_box_without_rounding_is_left_by_the_program_that_runs(monkeypatch):
    """The fault that rounding is there for: sums that cancel end elsewhere in float32."""
    torch.manual_seed(0)
    layer = nn.Linear(200, 50).requires_grad_(False)
    layer.weight.mul_(1e4)
    image = torch.rand(1, 200)
    computed = layer(image).double()
    sound = boxes.propagate(layer, box_of(image, 0.0))
    assert (computed >= sound.low).all()
    assert (computed <= sound.high).all()
    monkeypatch.setattr(boxes, "rounding_of_entries", lambda *factors: torch.zeros_like(factors[1]))
    unsound = boxes.propagate(layer, box_of(image, 0.0))
    assert (computed < unsound.low).any() or (computed > unsound.high).any()


def test_a_relu_that_works_in_place_does_not_spoil_the_box_in_front_of_it():
    box = Box(torch.tensor([[-1.0]]).double(), torch.tensor([[2.0]]).double(), torch.zeros(1, 1))
    behind = boxes.propagate(nn.ReLU(inplace=True), box)
    assert (box.low.item(), box.high.item()) == (-1, 2)
    assert (behind.low.item(), behind.high.item()) == (0, 2)


def test_an_entry_that_relu_blocks_has_no_error_behind_it():
    ends, error = torch.tensor([[-2.0, 1.0]]).double(), torch.full((1, 2), 0.5).double()
    behind = boxes.propagate(nn.ReLU(), Box(ends - 0.5, ends + 0.5, error))
    assert behind.error.tolist() == [[0, 0.5]]


def test_what_may_overflow_has_no_finite_box():
    layer = nn.Linear(2, 1).requires_grad_(False)
    layer.weight.fill_(1e31)
    box = boxes.propagate(layer, box_of(torch.rand(1, 2), 0.1))
    assert not (box.high < torch.inf).any()


def test_a_box_depends_on_nothing_but_its_own_image():
    model, images = Blueprint(encoder="conv-relu", scale=3.0).build(), random_images(4, 0)
    together = boxes.propagate(model.encoder, box_of(images, 0.1))
    bright = torch.cat([images[:1], 1e3 * images[1:]])
    changed = boxes.propagate(model.encoder, box_of(bright, 0.1))
    for before, after in zip(
        (together.low, together.high, together.error),
        (changed.low, changed.high, changed.error),
        strict=True,
    ):
        torch.testing.assert_close(before[0], after[0], rtol=1e-12, atol=0)


class OwnConv(nn.Conv2d):
    def _conv_forward(self, inputs, weight, bias):
        return super()._conv_forward(inputs, 2 * weight, bias)


class OwnReLU(nn.ReLU):
    def forward(self, inputs):
        return super().forward(inputs) + 1


class Reversed(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def replaced() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = lambda inputs: inputs + 1
    return layer


REFUSED = {
    "an unknown layer": (nn.Tanh, "for Tanh"),
    "batch norm": (lambda: nn.BatchNorm2d(2), "for BatchNorm2d"),
    "groups": (lambda: nn.Conv2d(2, 2, 3, groups=2), "Conv2d with groups"),
    "dilation": (lambda: nn.Conv2d(2, 2, 3, dilation=2), "Conv2d with dilation"),
    "mirrored borders": (
        lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
        "Conv2d with padding",
    ),
    "padding in words": (lambda: nn.Conv2d(2, 2, 3, padding="same"), "Conv2d with padding"),
    "a flattened batch": (lambda: nn.Flatten(0), "Flatten with axes"),
    "an altered convolution": (lambda: OwnConv(1, 1, 3), "for OwnConv"),
    "an altered relu": (OwnReLU, "for OwnReLU"),
    "an altered order": (lambda: Reversed(nn.Flatten(), nn.ReLU()), "for Reversed"),
    "a hook": (hooked, "for Linear"),
    "a replaced forward": (replaced, "for ReLU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_layer_without_an_interval_rule_is_refused_wherever_it_stands(case):
    build, message = REFUSED[case]
    inner = nn.Sequential(nn.ReLU(), nn.Sequential(build()))
    assert message in boxes.refusal(inner)
    with pytest.raises(NotImplementedError, match="no interval rule"):
        boxes.propagate(inner, box_of(torch.rand(1, *SHAPE), 0.1))


def test_every_layer_of_the_encoders_for_intervals_has_a_rule():
    for encoder in ("conv-relu", "mlp"):
        assert boxes.refusal(Blueprint(encoder=encoder).build().encoder) is None
    assert boxes.refusal(Normalise([0.0], [1.0])) is None
    assert "ContractiveStep" in boxes.refusal(Blueprint(encoder="flow").build().encoder)
