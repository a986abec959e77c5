"""The contraction certificate against dense sampling, closed forms, and what it must refuse."""

import math
from typing import Any

import pytest
import torch
from small_models import SHAPE, Blueprint, in_double, random_images
from torch import Tensor, nn

from robustness.certificates import CERTIFICATES, Kind
from robustness.certificates.contraction import contraction_radius
from robustness.certificates.flows import relaxed_flows, tubes
from robustness.certificates.flows.simplex.simplex_tubes import (
    SimplexZonotopes,
    Zonotope,
    excess_range,
)
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.orthogonal import OrthogonalEncoder
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.numerics import norms
from robustness.threat import Norm

METHODS = ["euler", "heun2", "midpoint", "rk4"]
CONTRACTION = CERTIFICATES["contraction"]


def simplex_model(
    method: Any = "euler",
    seed: int = 0,
    classes: int = 4,
    gain: float = 1.0,
    encoder: str = "orthogonal",
    steps: int = 5,
    share: float = 0.4,
    scale: float = 1.0,
) -> NeuralODEClassifier:
    torch.manual_seed(seed)
    width = 6
    net: nn.Module = (
        OrthogonalEncoder(SHAPE, [8], 1, width)
        if encoder == "orthogonal"
        else MLPEncoder(16, [6], width)
    )
    field = SimplexField(classes, width, gain)
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.copy_(scale * torch.randn_like(parameter) / math.sqrt(width))
    solver = FixedStepSolver(method, steps, steps * share / field.rate)
    model = NeuralODEClassifier(Normalise([0.3], [1.0]), net, field, solver, classes, 1 / classes)
    return model.eval().requires_grad_(False)


def seeking_model(method: Any = "euler", seed: int = 0, coupling: float = 2.0) -> Any:
    return Blueprint(method=method, seed=seed, coupling=coupling, offsets=0.1).build()


def perturbed(model: NeuralODEClassifier, images: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
    """Images at most `radius` away: random ones, and by gradient ascent on every rival's lead."""
    generator = torch.Generator().manual_seed(0)
    wide = radius.view(-1, 1, 1, 1)

    def scaled(direction: Tensor) -> Tensor:
        return direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-30)

    found = [
        images + wide * scaled(torch.randn(images.shape, generator=generator, dtype=torch.float64))
        for _ in range(16)
    ]
    twin = in_double(model)
    for rival in range(model.classes):
        delta = 0.3 * wide * scaled(torch.randn(images.shape, generator=generator).double())
        for _ in range(6):
            delta = delta.detach().requires_grad_()
            scores = twin(images + delta)
            lead = scores[:, rival] - scores.gather(1, labels.unsqueeze(1)).squeeze(1)
            (gradient,) = torch.autograd.grad(lead.sum(), delta)
            delta = delta.detach() + 0.3 * wide * scaled(gradient)
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = delta * (wide / length.clamp_min(1e-30)).clamp_max(1)
            found.append(images + delta)
            found.append(images + wide * scaled(delta))
    return torch.stack(found)


def assert_holds(model: NeuralODEClassifier, images: Tensor, name: str = "contraction") -> float:
    labels = model(images).argmax(dim=1)
    radii = CERTIFICATES[name].certify(model, images, labels, Norm.L2)
    assert all(radius.kind is Kind.CERTIFIED for radius in radii)
    lengths = torch.tensor([radius.radius for radius in radii], dtype=torch.float64)
    with torch.enable_grad():
        proposals = perturbed(model, images.double(), labels, lengths)
    for proposal in proposals:
        held = torch.stack(
            [
                Norm.L2.project(p.unsqueeze(0).float(), x.unsqueeze(0), r * (1 - 1e-6))[0]
                for p, x, r in zip(proposal, images, lengths.tolist(), strict=True)
            ]
        )
        assert torch.equal(model(held).argmax(dim=1), labels)
    return float(lengths.mean())


@pytest.mark.slow
@pytest.mark.parametrize(("method", "seed"), list(zip(METHODS, range(4), strict=True)))
def test_no_perturbation_inside_the_radius_changes_a_simplex_models_prediction(method, seed):
    model = simplex_model(method, seed, gain=1.5)
    assert assert_holds(model, random_images(6, seed)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_perturbation_inside_the_radius_changes_a_target_seeking_prediction(method):
    assert assert_holds(seeking_model(method, 3), random_images(6, 3)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("method", "seed"), list(zip(METHODS, range(4), strict=True)))
@pytest.mark.parametrize("local", [True, False])
def test_every_state_of_the_perturbed_program_lies_in_the_tube(method, seed, local):
    """States at the horizon, not only predictions, for tubes small and large."""
    for model in (simplex_model(method, seed, gain=2.0), seeking_model(method, seed)):
        images = random_images(4, seed)
        labels = model(images).argmax(dim=1)
        features = relaxed_flows.perturbed_features(model, images)
        for eps in (0.02, 0.3):
            radius = torch.full((4,), eps, dtype=torch.float64)
            final = relaxed_flows.solve(model, features, radius, labels, local)
            least = final.least_leads(labels)
            for proposal in perturbed(model, images.double(), labels, radius)[::3]:
                states = model(proposal.float()).double()
                leads = states.gather(1, labels.unsqueeze(1)) - states
                assert bool((leads >= least - 1e-6 * eps).masked_fill(least.isinf(), True).all())
                assert bool((states.abs().amax(dim=1) <= final.size + 1e-6 * eps).all())


@pytest.mark.parametrize("method", METHODS)
def test_without_perturbation_the_tube_is_the_solve_of_the_program(method):
    for model in (simplex_model(method), seeking_model(method)):
        images = random_images(4, 0)
        labels = model(images).argmax(dim=1)
        features = relaxed_flows.perturbed_features(model, images)
        final = relaxed_flows.solve(
            model, features, torch.zeros(4, dtype=torch.float64), labels, local=False
        )
        assert isinstance(final, tubes.Ball)
        torch.testing.assert_close(final.centre, model(images).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["euler", "heun2"])
def test_for_a_linear_target_the_radius_is_the_closed_form(method):
    """The change and the lead at the horizon are both 1 - rho^N times those of the target."""
    model = seeking_model(method, 5, coupling=0.0)
    images = random_images(20, 5)
    labels = model(images).argmax(dim=1)
    head = model.field.head
    twin = in_double(model)
    scores = twin.field.head(twin.features(images.double()))
    slopes = norms.pairwise_slopes(head.weight)[labels] * relaxed_flows.pixel_slope(model).value
    lead = scores.gather(1, labels.unsqueeze(1)) - scores
    distance = (lead / slopes).scatter(1, labels.unsqueeze(1), math.inf).amin(dim=1)
    clear = distance > 0.01
    assert int(clear.sum()) > 10
    for local in (False, True):
        radius = contraction_radius(model, images, labels, local)
        assert bool((radius <= distance).all())
        torch.testing.assert_close(radius[clear], distance[clear], rtol=1e-2, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "seed"), list(zip(METHODS, range(4), strict=True)))
def test_bounds_over_the_tube_are_never_worse_than_global_ones(method, seed):
    for model in (simplex_model(method, seed, scale=0.3), seeking_model(method, seed)):
        images = random_images(8, seed)
        labels = model(images).argmax(dim=1)
        everywhere = contraction_radius(model, images, labels, local=False)
        tube = contraction_radius(model, images, labels)
        assert bool((tube >= everywhere).all())
        assert float(tube.sum()) > 1.02 * float(everywhere.sum())


def test_thresholds_of_a_box_of_points_are_bounded_from_both_sides():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    high = low + torch.rand(30, 5, generator=generator, dtype=torch.float64)
    least, most = excess_range(low, high)
    for _ in range(300):
        v = low + (high - low) * torch.rand(30, 5, generator=generator).double().round(decimals=1)
        projected = project_to_simplex(v)
        threshold = (v - projected)[torch.arange(30), v.argmax(dim=1)].unsqueeze(1)
        assert bool((v - threshold >= least - 1e-12).all())
        assert bool((v - threshold <= most + 1e-12).all())


@pytest.mark.parametrize("distance", [0.01, 0.1, 0.5, 2.0])
def test_targets_of_a_zonotope_lie_in_the_zonotope_of_targets(distance):
    """One relaxed step in float64, with states, features and symbols drawn at random."""
    generator = torch.Generator().manual_seed(1)
    model = in_double(simplex_model(seed=2, gain=3.0, classes=5))
    field, n = model.field, 12

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centre = draw(n, 5).softmax(dim=1)
    wide = torch.full((n,), distance, dtype=torch.float64)
    states = Zonotope(
        centre, 0.3 * draw(n, 5, 6), wide, 0.2 * distance * draw(n, 5, 3), 0.1 * wide.view(-1, 1)
        * draw(n, 5).abs()
    )  # fmt: skip
    features, labels = draw(n, 6), centre.argmax(dim=1)
    after = SimplexZonotopes(field, features, wide, labels).relaxed(states, 0.4)
    rows = draw(7, 5)
    reach = after.spread(rows)
    for _ in range(200):
        d = torch.nn.functional.normalize(draw(n, 6), dim=1) * distance
        xi = (2 * torch.rand(n, 3, generator=generator).double() - 1).sign()
        off = states.box * (2 * torch.rand(n, 5, generator=generator).double() - 1).sign()
        eta = centre + (states.linear @ d.unsqueeze(2)).squeeze(2)
        eta = eta + (states.symbols @ xi.unsqueeze(2)).squeeze(2) + off
        stepped = 0.6 * eta + 0.4 * field.target(eta, features + d)
        assert bool((((stepped - after.centre) @ rows.T).abs() <= reach + 1e-9).all())


def test_it_refuses_what_it_has_no_proof_for():
    model = simplex_model()
    assert CONTRACTION.refusal(model, Norm.L2) is None
    steps = simplex_model(share=1.2)
    assert "overshoots" in str(CONTRACTION.refusal(steps, Norm.L2))
    adaptive = simplex_model()
    adaptive.solver = AdaptiveSolver()
    assert "chooses its own steps" in str(CONTRACTION.refusal(adaptive, Norm.L2))
    unknown = simplex_model()
    unknown.field = LyaNetField(4, 3, "normalised", 1.0)
    assert "no bound is known" in str(CONTRACTION.refusal(unknown, Norm.L2))
    hooked = simplex_model()
    hooked.field.register_forward_hook(lambda *_: None)
    assert "alters" in str(CONTRACTION.refusal(hooked, Norm.L2))
    assert "not a neural ODE" in str(CONTRACTION.refusal(nn.Linear(2, 2), Norm.L2))
    for refused in (steps, adaptive, unknown, hooked):
        with pytest.raises(ValueError, match="without"):
            CONTRACTION.certify(refused, random_images(2, 0), torch.zeros(2).long(), Norm.L2)


@pytest.mark.slow
def test_a_wrong_prediction_has_radius_zero_and_neighbours_keep_theirs():
    model, images = simplex_model(), random_images(5, 0)
    labels = model(images).argmax(dim=1)
    together = CONTRACTION.certify(model, images, labels, Norm.L2)
    wrong = labels.clone()
    wrong[2] = (labels[2] + 1) % 4
    mixed = CONTRACTION.certify(model, images, wrong, Norm.L2)
    assert mixed[2].radius == 0
    assert mixed[2].reason == "the prediction is wrong"
    for i in (0, 1, 3, 4):
        assert mixed[i].radius == pytest.approx(together[i].radius, rel=1e-9)


@pytest.mark.slow
def test_the_sum_of_sampled_slopes_would_be_unsound():
    """Jacobians at the centre alone, without the tube, give radii that an attack breaks."""
    broken = 0
    for seed in range(6):
        model = simplex_model(seed=seed, gain=3.0, scale=2.0)
        images = random_images(6, seed)
        labels = model(images).argmax(dim=1)
        twin = in_double(model)
        pixels = images.double().requires_grad_()
        with torch.enable_grad():
            states = twin(pixels)
            leads = states.gather(1, labels.unsqueeze(1)) - states
            slopes = torch.stack(
                [
                    torch.autograd.grad(leads[:, j].sum(), pixels, retain_graph=True)[0]
                    .flatten(1)
                    .norm(dim=1)
                    for j in range(4)
                ],
                dim=1,
            )
            guess = (leads / slopes.clamp_min(1e-9)).detach()
            guess = guess.scatter(1, labels.unsqueeze(1), math.inf).amin(dim=1).clamp_max(2.0)
            proposals = perturbed(model, images.double(), labels, guess)
        broken += int((model(proposals[-1].float()).argmax(dim=1) != labels).sum())
        wrong = [(model(p.float()).argmax(dim=1) != labels).any().item() for p in proposals]
        broken += sum(wrong)
    assert broken > 0
