"""No perturbation inside a certified radius changes the deployed float32 prediction."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_models import (
    BY_MARGINS,
    PIXELS,
    SHAPE,
    Blueprint,
    blueprints,
    bring_near_a_tie,
    in_double,
    random_images,
)
from torch import Tensor

from robustness.certificates import CERTIFICATES, CertifiedRadius, Kind
from robustness.certificates.flows.constants import target_margins
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import ContractiveFlowEncoder
from robustness.threat import Norm

_INSIDE = 1 - 1e-6


def radii_of(
    name: str, model: NeuralODEClassifier, images: Tensor, labels: Tensor, norm: Norm
) -> list[CertifiedRadius]:
    return CERTIFICATES[name].certify(model, images, labels, norm)


def values(radii: list[CertifiedRadius]) -> Tensor:
    return torch.tensor([radius.radius for radius in radii], dtype=torch.float64)


def on_the_sphere(direction: Tensor, norm: Norm, radius: Tensor) -> Tensor:
    """The perturbation of length `radius` that goes farthest along `direction`."""
    wide = radius.view(-1, 1, 1, 1)
    if norm is Norm.LINF:
        return direction.sign() * wide
    length = Norm.L2.distance(direction, torch.zeros_like(direction)).clamp_min(1e-300)
    return direction / length.view(-1, 1, 1, 1) * wide


def random_perturbations(images: Tensor, norm: Norm, radius: Tensor) -> list[Tensor]:
    """Dense on the sphere, and inside the ball."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(24):
        draw = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        share = 1.0 if index % 4 else float(torch.rand(1, generator=generator))
        found.append(on_the_sphere(draw, norm, radius * share))
    return found


def attacks(
    model: NeuralODEClassifier, images: Tensor, labels: Tensor, norm: Norm, radius: Tensor
) -> list[Tensor]:
    """Gradient ascent in float64 on the margin of each rival, with and without the box."""
    twin, found, rivals = in_double(model), [], model.classes
    exact, true = images.double().repeat(rivals, 1, 1, 1), labels.repeat(rivals).unsqueeze(1)
    rival = torch.arange(rivals).repeat_interleave(len(images)).unsqueeze(1)
    radii = radius.repeat(rivals)
    for boxed in (False, True):
        delta = torch.zeros_like(exact)
        for _ in range(6):
            delta.requires_grad_()
            scores = twin.field.head(twin.features(exact + delta))
            margin = scores.gather(1, rival) - scores.gather(1, true)
            (gradient,) = torch.autograd.grad(margin.sum(), delta)
            delta = delta.detach()
            if boxed:  # pixels at the edge of the box cannot move outwards
                moved = exact + delta
                stuck = ((moved >= 1) & (gradient > 0)) | ((moved <= 0) & (gradient < 0))
                gradient = gradient.masked_fill(stuck, 0.0)
            delta = on_the_sphere(gradient, norm, radii)
            if boxed:
                delta = (exact + delta).clamp(0, 1) - exact
            found += delta.split(len(images))
    return found


def assert_nothing_inside_changes_a_prediction(
    model: NeuralODEClassifier, images: Tensor, labels: Tensor, names: list[str], norm: Norm
) -> int:
    """Attack every certified image; gives how many radii there were."""
    radii = {name: values(radii_of(name, model, images, labels, norm)) for name in names}
    largest = torch.stack(list(radii.values())).amax(dim=0)
    directions = torch.stack(attacks(model, images, labels, norm, largest))
    for found in radii.values():
        # The directions of the attack, at the length of this radius.
        wide = (found / largest.clamp_min(1e-300)).view(-1, 1, 1, 1)
        deltas = torch.stack([*random_perturbations(images, norm, found), *(directions * wide)])
        for i in found.nonzero().flatten().tolist():
            radius = found[i].item()
            proposed = (images[i] + deltas[:, i]).float()
            # Interval bounds hold inside the pixel box, where threat models live.
            inside = proposed.clamp(0, 1)
            proposed = torch.cat([proposed, inside]) if norm is Norm.L2 else inside
            centres = images[i].expand_as(proposed)
            held = norm.project(proposed, centres, radius * _INSIDE)
            assert (norm.distance(held, centres) < radius).all()
            logits = model(held)
            assert logits.isfinite().all()
            assert (logits.argmax(dim=1) == labels[i]).all()
    return sum(int((found > 0).sum()) for found in radii.values())


@pytest.mark.slow
@settings(max_examples=20)
@example(plan=Blueprint(share=0.9998, steps=1, gain=1e4, coupling=5.0), tie=1e-4)
@example(plan=Blueprint(share=2e-4, steps=1, coupling=5.0), tie=None)
@example(plan=Blueprint(method="heun2", share=0.9998, scale=30.0, offsets=1e3), tie=1e-2)
@example(plan=Blueprint(encoder="mlp", std=1e-3, gain=1e6, initial=1e4), tie=None)
@given(plan=blueprints(), tie=st.one_of(st.none(), st.sampled_from([1e-6, 1e-4, 1e-2])))
def test_no_perturbation_inside_the_radius_changes_the_prediction(plan, tie):
    model, images = plan.build(), random_images(5, plan.seed)
    if tie is not None:
        bring_near_a_tie(model, images[0], tie)
    labels = model(images).argmax(dim=1)
    for norm in Norm:
        assert_nothing_inside_changes_a_prediction(model, images, labels, list(BY_MARGINS), norm)


@pytest.mark.slow
@settings(max_examples=12)
@given(blueprints(wild=False))
def test_ordinary_models_are_certified_and_hold(plan):
    model, images = plan.build(), random_images(5, plan.seed)
    labels = model(images).argmax(dim=1)
    for norm in Norm:
        count = assert_nothing_inside_changes_a_prediction(
            model, images, labels, ["target-seeking"], norm
        )
        assert count >= 3


def linear_model(depth: int = 0, **changes: object) -> NeuralODEClassifier:
    """A head on the pixels: no steps, or steps whose weights are zero."""
    model = Blueprint(**{"coupling": 1.0, "offsets": 0.0, **changes}).build()
    model.encoder = ContractiveFlowEncoder(PIXELS, depth, 3).eval().requires_grad_(False)
    for parameter in model.encoder.parameters():
        parameter.zero_()
    return model


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("std", [1.0, 0.25])
@pytest.mark.parametrize("classes", [2, 7])
def test_for_a_linear_model_the_l2_radius_is_the_distance_to_the_boundary(depth, std, classes):
    model = linear_model(depth, std=std, classes=classes, method="heun2")
    images = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    weight, bias = model.field.head.weight.double(), model.field.head.bias.double()
    scores = ((images.double().flatten(1) - 0.3) / std) @ weight.T + bias
    margins = scores.gather(1, labels.unsqueeze(1)) - scores
    slopes = torch.linalg.vector_norm(weight[labels].unsqueeze(1) - weight, dim=2) / std
    distances = (margins / slopes).nan_to_num(math.inf).scatter(1, labels.unsqueeze(1), math.inf)
    distance, rival = distances.min(dim=1)
    radius = values(radii_of("target-seeking", model, images, labels, Norm.L2))
    clear = distance > 0.01
    assert clear.sum() > 20
    assert (radius <= distance).all()
    assert (radius[clear] >= 0.99 * distance[clear]).all()
    # And it is no more than the distance: just outside there is another prediction.
    towards = (weight[rival] - weight[labels]).view(-1, *SHAPE)
    step = on_the_sphere(towards, Norm.L2, 1.02 * radius)
    moved = model((images + step).float()).argmax(dim=1)
    assert (moved[clear] != labels[clear]).all()


@pytest.mark.slow
@settings(max_examples=20)
@given(blueprints(wild=False))
def test_each_certificate_is_at_least_as_good_as_the_one_before(plan):
    model, images = plan.build(), random_images(5, plan.seed)
    labels = model(images).argmax(dim=1)
    coarse, sharp, exact = (
        values(radii_of(name, model, images, labels, Norm.L2))
        for name in ("lyapunov", "lyapunov-sharp", "target-seeking")
    )
    assert (sharp >= coarse).all()
    # The cone argument needs no threshold ln 2 and no spectral norm of the whole head.
    assert (exact >= sharp * (1 - 1e-9)).all()


@pytest.mark.slow
@settings(max_examples=20)
@given(plan=blueprints(), name=st.sampled_from(BY_MARGINS))
def test_the_l_infinity_radius_is_the_l2_radius_by_the_root_of_the_pixels_or_more(plan, name):
    model, images = plan.build(), random_images(5, plan.seed)
    labels = model(images).argmax(dim=1)
    l2, linf = (
        values(radii_of(name, model, images, labels, norm)) for norm in (Norm.L2, Norm.LINF)
    )
    assert (linf >= l2 / 4 * (1 - 1e-6)).all()
    if plan.encoder in ("flow", "conv") or name != "target-seeking":
        torch.testing.assert_close(linf, l2 / 4)


@pytest.mark.slow
@settings(max_examples=20)
@given(plan=blueprints(), name=st.sampled_from(BY_MARGINS))
def test_radii_are_certified_finite_within_the_box_and_alike_in_any_batch(plan, name):
    model, images = plan.build(), random_images(5, plan.seed)
    labels = model(images).argmax(dim=1)
    together = radii_of(name, model, images, labels, Norm.L2)
    for i, radius in enumerate(together):
        assert radius.kind is Kind.CERTIFIED
        assert radius.certificate == name
        assert radius.reason
        assert 0 <= radius.radius <= 4
        alone = radii_of(name, model, images[i : i + 1], labels[i : i + 1], Norm.L2)[0]
        assert alone.radius == pytest.approx(radius.radius, rel=1e-6, abs=1e-12)


def test_a_radius_that_covers_the_box_ends_at_its_diagonal():
    """Farther out the rounding of the float32 program is not accounted for."""
    model = linear_model(classes=2)
    model.field.head.bias.copy_(torch.tensor([1000.0, 0.0]))
    images, labels = torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    assert values(radii_of("target-seeking", model, images, labels, Norm.L2)).tolist() == (
        pytest.approx([4.0, 4.0])
    )
    assert values(radii_of("target-seeking", model, images, labels, Norm.LINF)).tolist() == (
        pytest.approx([1.0, 1.0])
    )
    assert target_margins(model, images, labels).reach.tolist() == [4.0, 4.0]


def test_a_head_without_a_bias_is_one_whose_bias_is_zero():
    model, images = linear_model(), random_images(5, 0)
    model.field.head.bias.zero_()
    labels = model(images).argmax(dim=1)
    expected = values(radii_of("target-seeking", model, images, labels, Norm.L2))
    model.field.head.bias = None
    assert torch.equal(values(radii_of("target-seeking", model, images, labels, Norm.L2)), expected)


def test_the_coupling_costs_the_exact_certificate_nothing_but_rounding():
    without = linear_model(coupling=0.0)
    coupled = linear_model(coupling=3.0)
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = without(images).argmax(dim=1)
    assert torch.equal(coupled(images).argmax(dim=1), labels)
    first = values(radii_of("target-seeking", without, images, labels, Norm.L2))
    second = values(radii_of("target-seeking", coupled, images, labels, Norm.L2))
    torch.testing.assert_close(first, second, atol=1e-4, rtol=0)
    assert (first.sum() > 1).item()


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2, 50])
@pytest.mark.parametrize("method", ["euler", "heun2"])
def test_a_perturbed_trajectory_never_leaves_the_cone_where_the_label_leads(method, steps):
    """The induction of the proof, watched at every step and stage of the program that runs."""
    plan = Blueprint(method=method, steps=steps, share=0.9, coupling=5.0, gain=3.0)
    model, images = plan.build(), random_images(6, 3)
    labels = model(images).argmax(dim=1)
    radii = values(radii_of("target-seeking", model, images, labels, Norm.L2))
    assert (radii > 0).sum() >= 3
    images, labels, radii = images[radii > 0], labels[radii > 0], radii[radii > 0]
    leads: list[bool] = []

    class Watched(torch.nn.Module):
        def forward(self, t, state, z):
            margin = state.gather(1, labels.unsqueeze(1)) - state
            leads.append(bool((margin >= 0).all()))
            return model.field(t, state, z)

    for delta in attacks(model, images, labels, Norm.L2, radii * _INSIDE):
        features = model.features((images + delta).float())
        model.solver.solve(Watched(), model.initial_state(features), features)
    assert len(leads) >= steps
    assert all(leads)


def test_a_model_that_breaks_the_assumptions_would_be_found_out():
    """The attack above is strong enough to see a radius that is one per cent too large."""
    model = linear_model(classes=3)
    images = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = model(images).argmax(dim=1)
    radii = values(radii_of("target-seeking", model, images, labels, Norm.L2))
    fooled = torch.zeros(20, dtype=torch.bool)
    for delta in attacks(model, images, labels, Norm.L2, 1.01 * radii):
        fooled |= model((images + delta).float()).argmax(dim=1) != labels
    assert fooled[radii > 0.01].all()


def test_blueprints_differ_by_their_seed_alone_where_nothing_else_changes():
    plan = Blueprint(seed=1)
    first, again, other = plan.build(), plan.build(), replace(plan, seed=2).build()
    image = random_images(2, 0)
    assert torch.equal(first(image), again(image))
    assert not torch.equal(first(image), other(image))
