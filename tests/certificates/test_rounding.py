"""The float32 program stays within the allowance that the certificates make for it."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import PIXELS, SHAPE, Blueprint, blueprints, in_double, random_images
from torch import nn

from robustness.certificates.flows import constants, tubes
from robustness.certificates.flows.constants import retained_per_step, target_margins
from robustness.certificates.layers.bounds import Tube, propagate
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ContractiveStep,
    ConvContractiveStep,
    Normalise,
)
from robustness.nets.fields import lyapunov_rate
from robustness.nets.runge_kutta import METHODS
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics import arithmetic
from robustness.threat import Norm


@contextlib.contextmanager
def denormals(flushed: bool) -> Iterator[None]:
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def around(images: torch.Tensor, radius: float, seed: int) -> torch.Tensor:
    """float32 images on the l2 sphere of `radius` around `images`, or just inside."""
    delta = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).double()
    length = Norm.L2.distance(delta, torch.zeros_like(delta)).view(-1, 1, 1, 1)
    return Norm.L2.project((images + radius * delta / length).float(), images, radius)


def lengths(difference: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(difference.flatten(1), dim=1)


@pytest.mark.slow
@settings(max_examples=60)
@given(plan=blueprints(), radius=st.sampled_from([0.0, 1e-3, 0.3, 5.0]), flushed=st.booleans())
def test_computed_activations_stay_within_the_tube(plan, radius, flushed):
    model, images = plan.build(), random_images(6, plan.seed)
    program = nn.Sequential(model.normalise, *model.encoder)
    exact = in_double(program)
    tube = Tube.around(images, torch.full((6,), radius))
    perturbed = around(images, radius, plan.seed)
    with denormals(flushed):
        computed, truth, centre = perturbed, perturbed.double(), images.double()
        for layer, twin in zip(program, exact, strict=True):
            tube = propagate(layer, tube)
            computed, truth, centre = layer(computed), twin(truth), twin(centre)
            assert (lengths(computed.double() - truth) <= tube.error).all()
            # The float64 activations round as well.
            room = 1e-9 * (tube.reach + lengths(centre))
            assert (lengths(truth - centre) <= tube.reach + room).all()
            assert (lengths(tube.centre - centre) <= 1e-9 * lengths(centre)).all()


def step_of(weight: float, bias: float, conv: bool = False) -> nn.Module:
    """A step of one unit, its numbers moved a little by chance."""
    step = ConvContractiveStep(1, 1, 1, (1, 1)) if conv else ContractiveStep(1, 1)
    with torch.no_grad():
        step.weight.fill_(weight).mul_(1 + 0.1 * torch.rand(1))
        step.bias.copy_(bias * step.weight.flatten())
    return step


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(1, 1),
        lambda: nn.Linear(1, 1, bias=False),
        lambda: ContractiveStep(1, 1),
        # z - v rounds most; then W z + b, which cancels to almost nothing; then W^T u.
        lambda: step_of(1e-3, bias=0.0),
        lambda: step_of(1e3, bias=-0.5),
        lambda: step_of(1e3, bias=0.0),
        lambda: step_of(1e-3, bias=0.0, conv=True),
        lambda: step_of(1e3, bias=-0.5, conv=True),
        lambda: step_of(1e3, bias=0.0, conv=True),
        lambda: Normalise([0.37], [0.61]),
    ],
    ids=[
        *("linear", "linear without bias", "step", "idle", "cancelling", "steep"),
        *("idle convolution", "cancelling convolution", "steep convolution", "normalise"),
    ],
)
def test_the_error_of_the_smallest_layers_comes_near_its_bound(layer):
    """A bound that is a few times too small would be broken here."""
    worst = 0.0
    for seed in range(40):
        torch.manual_seed(seed)
        module = layer().requires_grad_(False)
        images = torch.rand(500, 1, 1, 1)
        wide = isinstance(module, Normalise | ConvContractiveStep)
        points = images if wide else images.flatten(1)
        tube = propagate(module, Tube.around(points, torch.zeros(500)))
        error = lengths(module(points).double() - in_double(module)(points.double()))
        assert (error <= tube.error).all()
        worst = max(worst, float((error / tube.error).max()))
    assert worst > 0.15


@pytest.mark.parametrize("terms", [2, 16, 4096])
def test_sums_that_round_the_same_way_and_cancel_stay_within_the_bound(terms):
    layer = nn.Linear(terms, 3)
    with torch.no_grad():
        layer.weight[0].fill_(0.1)
        layer.weight[1] = torch.tensor([1e4, -1e4]).repeat(terms // 2)
        layer.weight[2] = torch.linspace(-1, 1, terms) * 1e-3
        layer.bias.copy_(torch.tensor([-0.01 * terms, 1.0, 0.0]))
    points = torch.cat([torch.full((1, terms), 0.1), torch.rand(20, terms)])
    tube = propagate(layer, Tube.around(points, torch.zeros(21)))
    error = lengths(layer(points).double() - in_double(layer)(points.double()))
    assert (error <= tube.error).all()


@pytest.mark.parametrize("flushed", [False, True])
def test_denormal_weights_and_activations_stay_within_the_tube(flushed):
    with denormals(False):
        layer = nn.Linear(4, 4)
        with torch.no_grad():
            layer.weight.fill_(3e-39)
            layer.bias.fill_(1e-40)
        points = torch.tensor([[1e-3, 2e-3, 3e-3, 4e-3], [1e-39, 0.0, 1e-38, 1e6]])
        exact = in_double(layer)(points.double())
    with denormals(flushed):
        computed = layer(points)
        tube = propagate(layer, Tube.around(points, torch.zeros(2)))
    error = lengths(computed.double() - exact)
    if flushed:
        assert (computed == 0).any()
    assert (error <= tube.error).all()
    assert (tube.error < 1e-25).all()


def test_no_bound_is_given_for_activations_that_might_overflow():
    torch.manual_seed(0)
    encoder = ContractiveFlowEncoder(PIXELS, 3, PIXELS)
    with torch.no_grad():
        for step in list(encoder)[1:]:
            step.weight.mul_(1e8)
    images = torch.rand(3, *SHAPE)
    assert not encoder(images).isfinite().all()
    assert propagate(encoder, Tube.around(images, torch.zeros(3))).error.isinf().all()


def test_the_allowance_of_an_ordinary_model_is_small():
    model, images = Blueprint(steps=10, share=0.386).build(), random_images(6, 0)
    labels = model(images).argmax(dim=1)
    target = target_margins(model, images, labels)
    scores = model.field.target(torch.zeros(6, 3), model.features(images)).abs().max()
    assert target.allowance.max() < 2e-3 * scores


@pytest.mark.slow
@settings(max_examples=60)
@given(plan=blueprints(), share=st.sampled_from([0.0, 0.5, 1.0]), flushed=st.booleans())
def test_computed_logits_keep_at_least_the_share_of_the_reduced_margins(plan, share, flushed):
    """Without coupling the exact margin at the horizon is (1 - rho^N) times the target's."""
    if plan.coupling:
        plan = Blueprint(**{**vars(plan), "coupling": 0.0})
    model, images = plan.build(), random_images(6, plan.seed)
    with denormals(flushed):
        labels = model(images).argmax(dim=1)
        target = target_margins(model, images, labels)
        radius = share * float(target.reach[0])
        perturbed = around(images[:1], radius, plan.seed)
        logits = model(perturbed)[0].double()
    twin = in_double(model)
    with torch.no_grad():
        goal = twin.field.target(
            torch.zeros(1, plan.classes).double(), twin.features(perturbed.double())
        )
    goal = goal[0]
    kept = retained_per_step(model) ** plan.steps
    rivals = [j for j in range(plan.classes) if j != int(labels[0])]
    computed = logits[labels[0]] - logits[rivals]
    promised = (1 - kept) * (goal[labels[0]] - goal[rivals] - target.allowance[0, rivals])
    assert (computed >= promised - 1e-12 * goal.abs().max()).all()


def test_a_softmax_rounds_by_less_than_its_allowance():
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for classes in (2, 3, 7, 10, 17, 100):
        states = 3 * torch.randn(20_000, classes, generator=generator)
        # Half of the pairs are equal, or a few float32 numbers apart.
        nudged = states[:, 0] * (1 + 2.0**-23 * torch.randint(0, 4, (20_000,), generator=generator))
        states[::2, 1] = nudged[::2]
        computed, exact = states.softmax(dim=1).double(), states.double().softmax(dim=1)
        error = (computed[:, 1] - computed[:, 0]) - (exact[:, 1] - exact[:, 0])
        worst = max(worst, float(error.abs().max()) / arithmetic.FLOAT32.unit)
    assert 0.5 < worst <= constants._SOFTMAX_ROUNDINGS


def test_the_allowance_covers_the_sum_of_a_wide_head():
    """With thousands of features the head's own sums round more than the steps do."""
    width = 4000
    model = Blueprint(steps=1, share=0.9998, coupling=0.0, gain=2.0).build()
    model.encoder, model.field.head = nn.Sequential(nn.Flatten()), nn.Linear(width, 3)
    model.requires_grad_(False)
    images = torch.rand(2, 1, 40, 100)
    target = target_margins(model, images, model(images).argmax(dim=1))
    score = model.field.head.weight.norm(dim=1).max() * lengths(model.normalise(images))
    assert (target.allowance.amin(dim=1) >= 2.0 * 2 * width * arithmetic.FLOAT32.unit * score).all()


@pytest.mark.parametrize("method", ["euler", "heun2", "midpoint", "rk4"])
def test_one_step_rounds_by_less_than_its_allowance(method):
    worst = 0.0
    for share in (0.9998, 0.5, 0.01):
        for initial in (0.0, -3.0, 40.0):
            plan = Blueprint(
                method=method, steps=1, share=share, coupling=0.0, classes=10, initial=initial
            )
            model = plan.build()
            features = torch.randn(5000, PIXELS, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                target = model.field.target(torch.zeros(5000, 10), features)

                class Given(nn.Module):
                    """The same relaxation towards a target that is known exactly."""

                    def forward(self, _, state, goal, rate=model.field.rate):
                        return rate * (goal - state)

                start = torch.full_like(target, initial)
                computed = model.solver.solve(Given(), start, target).final.double()
                exact = model.solver.solve(Given(), start.double(), target.double()).final
            size = target.abs().amax(dim=1).clamp_min(abs(initial)).double()
            error = 2 * (computed - exact).abs().amax(dim=1)
            # The grid in float32 makes h kappa another number, which is no rounding of a step.
            drift = 4 * arithmetic.FLOAT32.unit * share * (target - initial).abs().amax(dim=1)
            worst = max(worst, float(((error - drift) / (arithmetic.FLOAT32.unit * size)).max()))
    assert 0.5 < worst <= constants._STEP_ROUNDINGS


class Seeking(nn.Module):
    """Relaxation towards its features."""

    def forward(self, _, state, goal):
        return lyapunov_rate(10) * (goal - state)


@dataclass
class KnownTarget:
    """The same towards targets that are known, which add no rounding of their own."""

    goal: torch.Tensor

    def relaxed(self, states, share):
        centre = (1 - share) * states.centre + share * self.goal
        return tubes.Ball(centre, (1 - share) * states.radius, states.shift)


@pytest.mark.parametrize("method", ["euler", "heun2", "midpoint", "rk4"])
def test_a_step_of_a_tube_rounds_by_less_than_its_method_may(method):
    worst = 0.0
    for share in (0.9998, 0.5, 0.01):
        for initial in (0.1, -3.0, 40.0):
            solver = FixedStepSolver(method, 1, share / lyapunov_rate(10))
            goal = torch.randn(5000, 10, generator=torch.Generator().manual_seed(0))
            start = torch.full_like(goal, initial)
            computed = solver.solve(Seeking(), start, goal).final.double()
            share = tubes.shares(solver, lyapunov_rate(10))[0]
            states = tubes.Ball.point(start.double())
            after = tubes.step(KnownTarget(goal.double()), METHODS[method], states, share)
            apart = (computed - after.centre).abs().amax(dim=1)
            size = torch.maximum(goal.abs().amax(dim=1).double(), start.abs().amax(dim=1).double())
            assert bool((apart * 10**0.5 <= after.radius).all())
            worst = max(worst, float((apart / (arithmetic.FLOAT32.unit * size)).max()))
    assert 0.5 < worst <= METHODS[method].roundings / 2


@pytest.mark.parametrize("seed", range(3))
def test_float64_convolutions_stay_within_bounds_that_norms_give(seed):
    torch.manual_seed(seed)
    step = ConvContractiveStep(2, 3, 3, (5, 4)).double().requires_grad_(False)
    step.bias.copy_(torch.randn(3))
    images = 100 * torch.rand(6, 2, 5, 4)
    with arithmetic.computed_in(torch.float64):
        tube = propagate(step, Tube.around(images, torch.zeros(6)))
        wide = propagate(step, Tube.around(images, torch.ones(6)))
    basis = torch.eye(40, dtype=torch.float64).unflatten(1, (2, 5, 4))
    matrix = nn.functional.conv2d(basis, step.weight, padding=1).flatten(1).numpy()
    matrix = matrix.astype(np.longdouble)
    offset = step.bias.repeat_interleave(20).numpy().astype(np.longdouble)
    start = images.flatten(1).numpy().astype(np.longdouble)
    truth = start - np.maximum(start @ matrix + offset, 0) @ matrix.T
    computed = step(images.double())
    apart = np.linalg.norm((computed.flatten(1).numpy() - truth).astype(float), axis=1)
    apart += np.linalg.norm((tube.centre.flatten(1).numpy() - truth).astype(float), axis=1)
    assert (apart <= tube.error.numpy()).all()
    assert bool((wide.error > tube.error).all())
    # By norms or term by term, the bound is of one size.
    single = step.float()
    fine = propagate(single, Tube.around(images, torch.zeros(6))).error
    ratio = tube.error / arithmetic.FLOAT64.unit / (fine / arithmetic.FLOAT32.unit)
    assert bool(((ratio > 0.5) & (ratio < 20)).all())


def test_a_tube_never_shrinks_what_a_softer_module_cannot():
    """Behind a layer that halves every distance, reach and error halve as well."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.5 * torch.eye(2))
    before = Tube(torch.zeros(1, 2).double(), torch.ones(1).double(), 0.1 * torch.ones(1).double())
    after = propagate(layer, before)
    assert after.reach.item() == pytest.approx(0.5, rel=1e-6)
    assert after.error.item() == pytest.approx(0.05, rel=1e-4)
    assert after.error.item() > 0.05
    assert math.isclose(before.spread.item(), 1.1)


def test_images_are_exact_in_float32_and_start_without_an_error():
    images = torch.rand(2, *SHAPE)
    tube = Tube.around(images, torch.tensor([0.1, 0.2]))
    assert torch.equal(tube.centre.float(), images)
    assert tube.error.tolist() == [0, 0]
