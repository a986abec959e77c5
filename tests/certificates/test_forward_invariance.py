"""Forward invariance: exact bounds on the cone, branch and bound, and the discrete program."""

import itertools
import math

import pytest
import torch
from small_models import random_images
from test_contraction import assert_holds, simplex_model
from torch import Tensor

from robustness.certificates import CERTIFICATES, Kind, invariance
from robustness.certificates.flows import relaxed_flows
from robustness.certificates.flows.simplex.cone_cells import Cells
from robustness.certificates.flows.simplex.simplex_networks import SimplexNetwork
from robustness.certificates.invariance import ConeStep, InvarianceCertificate, label_first
from robustness.nets.simplex import SimplexField
from robustness.threat import Norm

INVARIANCE = CERTIFICATES["forward-invariance"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_cells(count: int, classes: int) -> Cells:
    ends = draw(2, count, classes - 1).sigmoid().sort(dim=0).values
    return Cells(ends[0], ends[1])


def states_of(x: Tensor) -> Tensor:
    ratios = torch.cat([torch.ones_like(x[..., :1]), x], dim=-1)
    return ratios / ratios.sum(dim=-1, keepdim=True)


def test_the_largest_value_of_a_linear_map_on_a_cell_is_attained_at_a_corner():
    cells, rows = random_cells(20, 5), draw(7, 5, seed=1)
    ends = torch.stack([cells.low, cells.high])
    corners = [
        states_of(torch.stack([ends[bit, :, j] for j, bit in enumerate(bits)], dim=1))
        for bits in itertools.product((0, 1), repeat=4)
    ]
    values = torch.stack([corner @ rows.T for corner in corners])
    torch.testing.assert_close(cells.largest(rows), values.amax(dim=0))
    torch.testing.assert_close(cells.least(rows), values.amin(dim=0))
    # Rows of their own for each cell are the same rows.
    torch.testing.assert_close(cells.largest(rows.expand(20, 7, 5)), values.amax(dim=0))


def test_halves_cover_the_cell_and_the_whole_is_the_cone():
    whole = Cells.whole(4)
    quarters = whole.halves(torch.tensor([0])).halves(torch.tensor([1, 2]))
    sizes = (quarters.high - quarters.low).prod(dim=1)
    assert len(quarters) == 4
    assert float(sizes.sum()) == pytest.approx(1.0)
    states = states_of(draw(50, 3).sigmoid())
    assert bool((states[:, :1] >= states[:, 1:]).all())
    assert bool((whole.largest(torch.eye(4).double())[0] >= states.amax(dim=0)).all())


@pytest.mark.parametrize("distance", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_of_a_step_is_below_every_sampled_lead(distance, seed):
    torch.manual_seed(seed)
    net = label_first(SimplexNetwork.of(SimplexField(4, 6, 2.0)), 2)
    step = ConeStep(net, draw(6, seed=seed), distance, 0.4, 0.0)
    cells = random_cells(30, 4)
    bound, axis = step.least_lead(cells)
    assert axis.shape == (30,)
    wide = cells.high - cells.low
    for trial in range(150):
        states = states_of(cells.low + wide * draw(30, 3, seed=trial).sign().clamp_min(0))
        inner = states_of(cells.low + wide * draw(30, 3, seed=trial).sigmoid())
        push = torch.nn.functional.normalize(draw(6, seed=trial), dim=0) * distance
        for at in (states, inner):
            moved = ConeStep(net, step.features + push, 0.0, 0.4, 0.0)
            assert bool((moved.lead_at(at) >= bound - 1e-9).all())


@pytest.mark.slow
def test_branch_and_bound_decides_what_the_whole_cone_at_once_does_not():
    decided = split = 0
    for seed in range(12):
        model = simplex_model(seed=seed, gain=2.0, scale=1.0)
        images = random_images(6, seed)
        labels = model(images).argmax(dim=1)
        features = relaxed_flows.perturbed_features(model, images)
        small = torch.full((6,), 0.01, dtype=torch.float64)
        at_once = invariance.answers(model, features, labels, small, budget=1)
        branched = invariance.answers(model, features, labels, small, budget=600)
        for coarse, fine in zip(at_once, branched, strict=True):
            assert fine.holds >= coarse.holds
            decided += fine.holds
            split += fine.holds and not coarse.holds
    assert decided > 10
    assert split > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "heun2"])
def test_no_perturbation_inside_the_radius_changes_the_prediction(method):
    found = [
        assert_holds(simplex_model(method, seed, gain=2.0), random_images(6, seed), INVARIANCE.name)
        for seed in range(2)
    ]
    assert max(found) > 0.01


def test_the_boundary_condition_alone_does_not_hold_the_discrete_program():
    """Targets that change over inside the cone: right on the boundary, wrong behind it.

    With two classes and eta_0 the label's entry, the target is the label's corner while eta_0 <
    0.7 and the rival's from 0.75 on. The boundary, eta_0 = 1/2, is safe; a long step goes to
    0.95 and from there back across it.
    """
    field = SimplexField(2, 2, 1.0).requires_grad_(False)
    with torch.no_grad():
        field.from_state.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        field.from_state.bias.copy_(torch.tensor([-0.7, 0.0]))
        field.to_state.weight.copy_(torch.tensor([[-80.0, 0.0], [80.0, 0.0]]))
        field.to_state.bias.copy_(torch.tensor([2.0, -2.0]))
    net = label_first(SimplexNetwork.of(field), 0)
    long = ConeStep(net, torch.zeros(2, dtype=torch.float64), 0.0, 0.9, 1e-6)
    boundary = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    assert float(long.lead_at(boundary)) > 0
    after = 0.1 * boundary + 0.9 * field.double().target(boundary, torch.zeros(1, 2).double())
    assert float(long.lead_at(after)) < 0
    answer = long.answer(500)
    assert not answer.holds
    assert answer.refuted
    # Steps too short to leave the part where the target is right are proved.
    short = ConeStep(net, torch.zeros(2, dtype=torch.float64), 0.0, 0.1, 1e-6)
    assert short.answer(500).holds


def test_out_of_budget_is_not_certified_and_says_so():
    model = simplex_model(seed=1, gain=3.0, scale=2.0)
    images = random_images(8, 1)
    labels = model(images).argmax(dim=1)
    radii = InvarianceCertificate(budget=1).certify(model, images, labels, Norm.L2)
    reasons = [radius.reason for radius in radii if radius.radius == 0]
    assert reasons
    assert all(radius.kind is Kind.CERTIFIED for radius in radii)
    assert any("within 1 cells" in reason or "loses the lead" in reason for reason in reasons)


def test_it_refuses_steps_that_are_not_convex_and_states_off_the_simplex():
    assert INVARIANCE.refusal(simplex_model(), Norm.L2) is None
    assert "convex" in str(INVARIANCE.refusal(simplex_model("rk4"), Norm.L2))
    assert "overshoots" in str(INVARIANCE.refusal(simplex_model(share=1.1), Norm.L2))
    off = simplex_model()
    off.initial = 0.0
    assert "centre" in str(INVARIANCE.refusal(off, Norm.L2))


def test_rounding_that_could_leave_the_simplex_far_behind_is_not_certified():
    model = simplex_model(gain=1e6)
    images = random_images(3, 0)
    labels = model(images).argmax(dim=1)
    radii = INVARIANCE.certify(model, images, labels, Norm.L2)
    assert all(radius.radius == 0 and math.isfinite(radius.radius) for radius in radii)


@pytest.mark.slow
def test_a_radius_is_never_rounded_up_to_float32():
    model, images = simplex_model("euler", 0, gain=2.0), random_images(6, 0)
    labels = model(images).argmax(dim=1)
    features = relaxed_flows.perturbed_features(model, images)
    claims = INVARIANCE.certify(model, images, labels, Norm.L2)
    proved = [
        INVARIANCE.radius(model, features[i : i + 1], labels[i : i + 1]).radius for i in range(6)
    ]
    assert max(proved) > 0
    for claim, radius in zip(claims, proved, strict=True):
        assert claim.radius < radius or radius == 0
