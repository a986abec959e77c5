"""Threat models: what is read, what is refused, and projections that are truly inside."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustness.errors import UsageError
from robustness.threat import Norm, ThreatModel, format_eps, parse_eps


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.1", 0.1), (" 1 / 4 ", 0.25), ("1e-3", 1e-3), (2, 2.0), (0.5, 0.5)],
)
def test_a_radius_is_read_as_a_number_or_a_fraction(text, value):
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("0", "-1", "nan", "inf", "-inf", "1e999", "abc", ""),
        *("1/0", "1/2/3", "0/255", "8/-255", "inf/inf", "/"),
        *(0, -0.5, math.nan, math.inf),
        pytest.param(10**400, id="beyond floats"),
    ],
)
def test_what_is_no_radius_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="expected a radius above 0") as caught:
        parse_eps(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        ThreatModel.parse("Linf", text)


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_a_threat_model_cannot_be_built_around_the_check(eps):
    with pytest.raises(UsageError):
        ThreatModel(Norm.L2, eps)


@pytest.mark.parametrize(
    ("text", "norm"),
    [("Linf", Norm.LINF), ("LINF", Norm.LINF), ("inf", Norm.LINF), ("l2", Norm.L2), ("2", Norm.L2)],
)
def test_a_norm_is_read_in_any_case(text, norm):
    assert Norm.parse(text) is norm


@pytest.mark.parametrize("text", ["L1", "", "l 2", "infinity"])
def test_an_unknown_norm_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="expected a norm, Linf or L2") as caught:
        Norm.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("eps", "text"), [(8 / 255, "8/255"), (0.1, "0.1"), (1.0, "1"), (1.58, "1.58"), (1e-3, "0.001")]
)
def test_a_radius_is_written_as_people_write_it(eps, text):
    assert format_eps(eps) == text
    assert parse_eps(text) == pytest.approx(eps, abs=1e-12)


def test_a_threat_is_written_with_its_norm():
    assert str(ThreatModel.parse("Linf", "8/255")) == "ℓ∞ 8/255"
    assert str(ThreatModel.parse("2", 0.5)) == "ℓ2 0.5"


def test_distances_are_per_image_and_in_float64():
    a = torch.zeros(2, 1, 1, 2)
    b = torch.tensor([[[[3.0, 4.0]]], [[[0.0, -2.0]]]])
    assert Norm.L2.distance(a, b).tolist() == [5, 2]
    assert Norm.LINF.distance(a, b).tolist() == [4, 2]
    near = torch.full((1, 1), 1.0), torch.full((1, 1), 1.0 + 2.0**-23)
    assert Norm.LINF.distance(*near).item() == 2.0**-23


@settings(max_examples=150)
@given(
    norm=st.sampled_from(Norm),
    eps=st.floats(1e-9, 10),
    size=st.sampled_from([1, 5, 64, 3072]),
    stretch=st.sampled_from([0.0, 0.5, 1.0, 1 + 1e-7, 1 + 1e-4, 3.0, 100.0]),
    constant=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_projection_is_inside_the_ball_by_a_float64_measurement(
    norm, eps, size, stretch, constant, seed
):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, size)
    if constant:  # equal entries round alike, so that nothing averages out
        centres = torch.rand(3, 1, generator=generator).expand(shape).contiguous()
        delta = torch.randn(3, 1, generator=generator).expand(shape).double()
    else:
        centres = torch.rand(shape, generator=generator)
        delta = torch.randn(shape, generator=generator).double()
    length = norm.distance(delta, torch.zeros_like(delta)).clamp_min(1e-300)
    delta = delta * (eps * stretch / length).unsqueeze(1)
    candidates = (centres.double() + delta).float()
    projected = norm.project(candidates, centres, eps)
    assert projected.dtype == torch.float32
    assert norm.distance(projected, centres).max().item() <= eps
    inside = norm.distance(candidates, centres) <= eps
    assert torch.equal(projected[inside], candidates[inside])
    # What is moved goes back to the surface, up to the rounding of each of its pixels.
    lost = eps - norm.distance(projected, centres)[~inside]
    assert (lost <= 2**-23 * (1 + eps) * (math.sqrt(size) if norm is Norm.L2 else 1)).all()


@pytest.mark.parametrize("norm", Norm)
def test_a_projection_does_not_depend_on_the_other_images(norm):
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(20, 3072, generator=generator)
    candidates = centres + 0.01 * torch.randn(20, 3072, generator=generator)
    together = norm.project(candidates, centres, 0.01)
    for i in range(20):
        alone = norm.project(candidates[i : i + 1], centres[i : i + 1], 0.01)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("norm", Norm)
def test_what_is_clipped_ends_at_the_edge_of_its_own_ball_and_what_is_inside_stays(norm):
    deltas = torch.tensor([[3.0, -4.0], [0.03, 0.04], [0.0, 0.0]])
    clipped = norm.clip(deltas, torch.tensor([1.0, 0.1, 0.5]))
    assert torch.equal(clipped[1:], deltas[1:])
    edge = {Norm.LINF: [1.0, -1.0], Norm.L2: [0.6, -0.8]}[norm]
    torch.testing.assert_close(clipped[0], torch.tensor(edge))


@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e37])
def test_the_steepest_direction_has_unit_size_at_any_scale_and_zero_has_none(scale):
    gradients = scale * torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    torch.testing.assert_close(Norm.L2.steepest(gradients), torch.tensor([[0.6, -0.8], [0.0, 0.0]]))
    assert torch.equal(Norm.LINF.steepest(gradients), torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
