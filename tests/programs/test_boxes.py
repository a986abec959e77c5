"""Boxes of layers against dense sampling and corners, and their rounding."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import boxed, last_box
from torch import Tensor, nn

from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.programs.operations import affine

SHAPE = (1, 4, 4)


def random_images(count: int, seed: int) -> Tensor:
    """Random images, the last one black."""
    images = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    images[-1] = 0.0
    return images


def layers_of(kind: str, depth: int, scale: float = 1.0, offsets: float = 0.0, seed: int = 0):
    """An encoder's layers, frozen."""
    torch.manual_seed(seed)
    if kind == "mlp":
        encoder = MLPEncoder(16, [6] * depth, 5)
    else:
        encoder = ConvReLUEncoder(SHAPE, [3] * depth, [2] + [1] * (depth - 1), 5, 3)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(offsets * torch.randn_like(parameter))
    return encoder.eval().requires_grad_(False)


def images_within(images: Tensor, eps: float, count: int) -> Tensor:
    """Images of the box: corners and inner ones by turns, float32, shape (count, n, ...)."""
    generator = torch.Generator().manual_seed(1)
    noise = 2 * torch.rand(count, *images.shape, generator=generator) - 1
    noise[::2] = noise[::2].sign()
    moved = (images + eps * noise).clamp(0, 1)
    # float32 sums can step over the edge of the box by their rounding.
    return torch.where((moved.double() - images.double()).abs() <= eps, moved, images)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    kind=st.sampled_from(["conv-relu", "mlp"]),
    depth=st.integers(1, 3),
    eps=st.sampled_from([0.0, 0.003, 0.1, 0.7]),
    scale=st.sampled_from([0.1, 3.0, 30.0]),
    offsets=st.sampled_from([0.0, 0.3, 1e3]),
    std=st.sampled_from([1.0, 1e-2]),
    seed=st.integers(0, 2**31),
)
def test_no_float32_activation_of_any_layer_leaves_its_box(
    kind, depth, eps, scale, offsets, std, seed
):
    layers, images = layers_of(kind, depth, scale, offsets, seed), random_images(4, seed)
    moved = images_within(images, eps, 60)
    computed = moved.flatten(0, 1)
    exact = computed.double()
    every = [Normalise([0.3], [std]), *layers]
    for count, layer in enumerate(every, start=1):
        computed, exact = layer(computed), copy.deepcopy(layer).double()(exact)
        box = last_box(boxed(images, eps, *every[:count]))
        for values in (computed.double(), exact):
            values = values.view(60, 4, -1)
            assert (values >= box.low).all()
            assert (values <= box.high).all()


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv2d(1, 2, 2, padding=1)])
def test_one_affine_layer_is_bounded_by_its_values_at_corners_and_a_little_rounding(layer):
    image, eps = torch.tensor([[[[0.3, 0.9], [0.05, 0.5]]]]), 0.1
    layer.requires_grad_(False)
    front = [nn.Flatten()] if isinstance(layer, nn.Linear) else []
    bounds = boxed(image, eps, *front, layer)
    pixels, behind = bounds.boxes[0], last_box(bounds)
    ends = torch.stack([pixels.low.flatten(), pixels.high.flatten()])
    corners = torch.stack(
        [
            torch.stack([ends[side, i] for i, side in enumerate(sides)])
            for sides in itertools.product((0, 1), repeat=4)
        ]
    ).view((-1, 4) if front else (-1, 1, 2, 2))
    values = copy.deepcopy(layer).double()(corners).flatten(1)
    # Strictly wider than exact arithmetic, by less than a millionth.
    below, above = values.amin(dim=0) - behind.low[0], behind.high[0] - values.amax(dim=0)
    for slack in (below, above):
        assert (slack > 0).all()
        assert (slack < 2e-6).all()


def test_a_box_without_rounding_is_left_by_the_program_that_runs(monkeypatch):
    """The fault that rounding is there for: sums that cancel end elsewhere in float32."""
    torch.manual_seed(0)
    layer = nn.Linear(200, 50).requires_grad_(False)
    layer.weight.mul_(1e4)
    image = torch.rand(1, 1, 1, 200)
    computed = layer(image.flatten(1)).double()
    sound = last_box(boxed(image, 0.0, nn.Flatten(), layer))
    assert (computed >= sound.low).all()
    assert (computed <= sound.high).all()
    monkeypatch.setattr(
        affine, "rounding_of_entries", lambda *factors: torch.zeros_like(factors[1])
    )
    unsound = last_box(boxed(image, 0.0, nn.Flatten(), layer))
    assert (computed < unsound.low).any() or (computed > unsound.high).any()


def test_a_relu_that_works_in_place_does_not_spoil_the_box_in_front_of_it():
    shift = Normalise([0.5], [1.0])
    bounds = boxed(torch.tensor([[[[0.4]]]]), 0.3, shift, nn.ReLU(inplace=True))
    names = [node.name for node in bounds.network.program.nodes]
    (before,) = [i for i, name in enumerate(names) if name == "div"]
    assert bounds.boxes[before].low.item() == pytest.approx(-0.4, abs=1e-6)
    behind = last_box(bounds)
    assert behind.low.item() == 0
    assert behind.high.item() == pytest.approx(0.2, abs=1e-6)


def test_an_entry_that_relu_blocks_has_no_error_behind_it():
    layer = nn.Linear(1, 2, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.tensor([[-1.0], [1.0]]))
    behind = last_box(boxed(torch.tensor([[[[0.7]]]]), 0.0, nn.Flatten(), layer, nn.ReLU()))
    assert (behind.low[0, 0].item(), behind.high[0, 0].item()) == (0, 0)
    assert behind.low[0, 1] < behind.high[0, 1]


def test_what_may_overflow_has_no_finite_box():
    layer = nn.Linear(2, 1).requires_grad_(False)
    layer.weight.fill_(1e31)
    box = last_box(boxed(torch.rand(1, 1, 1, 2), 0.1, nn.Flatten(), layer))
    assert not (box.high < torch.inf).any()


def test_a_box_depends_on_nothing_but_its_own_image():
    layers, images = layers_of("conv-relu", 2, scale=3.0), random_images(4, 0)
    together = last_box(boxed(images, 0.1, layers))
    bright = torch.cat([images[:1], 1 - images[1:]])
    changed = last_box(boxed(bright, 0.1, layers))
    for before, after in ((together.low, changed.low), (together.high, changed.high)):
        torch.testing.assert_close(before[0], after[0], rtol=1e-12, atol=0)
        assert not torch.equal(before[1], after[1])


FURTHER = {
    "groups": lambda: nn.Conv2d(2, 2, 3, groups=2),
    "dilation": lambda: nn.Conv2d(2, 2, 3, dilation=2, padding=2),
    "mirrored borders": lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "padding in words": lambda: nn.Conv2d(2, 2, 3, padding="same"),
}


@pytest.mark.parametrize("case", FURTHER)
def test_convolutions_of_every_setting_have_boxes_that_hold_what_is_sampled(case):
    torch.manual_seed(0)
    layer = FURTHER[case]().requires_grad_(False)
    images = torch.rand(2, 2, 5, 5)
    box = last_box(boxed(images, 0.1, layer))
    for moved in images_within(images, 0.1, 40):
        values = layer(moved).double().flatten(1)
        assert (values >= box.low).all()
        assert (values <= box.high).all()
