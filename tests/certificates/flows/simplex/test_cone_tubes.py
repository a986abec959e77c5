"""Tubes that keep to the label's cone: against sampled states, and against zonotopes alone."""

import pytest
import torch
from small_models import random_images
from test_contraction import perturbed, simplex_model
from torch import Tensor

from robustness.certificates.flows import relaxed_flows, tubes
from robustness.certificates.flows.simplex.cone_cells import Cells
from robustness.certificates.flows.simplex.cone_steps import ConeNetwork, leads_after
from robustness.certificates.flows.simplex.cone_tubes import ConeTube, ConeTubes
from robustness.certificates.flows.simplex.simplex_tubes import SimplexZonotopes, Zonotope
from robustness.nets.simplex import SimplexField, project_to_simplex

CLASSES, WIDTH, SHARE = 4, 6, 0.4


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def steep_field(seed: int) -> SimplexField:
    torch.manual_seed(seed)
    field = SimplexField(CLASSES, WIDTH, 2.0).requires_grad_(False)
    for parameter in field.parameters():
        parameter.copy_(torch.randn_like(parameter) / WIDTH**0.5)
    return field


def anywhere(n: int, distance: Tensor) -> Zonotope:
    """Every state that is near the simplex."""
    centre = torch.full((n, CLASSES), 0.5, dtype=torch.float64)
    point = Zonotope.point(centre, distance, WIDTH)
    return Zonotope(centre, point.linear, distance, point.symbols, torch.full_like(centre, 0.7))


@pytest.mark.parametrize("halvings", [0, 2])
@pytest.mark.parametrize("slack", [-0.2, 0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_every_state_that_a_cell_allows_steps_into_what_is_said(halvings, slack, seed):
    """States a little off the simplex, features at the edge of their ball."""
    field, drift = steep_field(seed), 0.004
    label = seed % CLASSES
    labels = torch.tensor([label])
    centre, distance = draw(1, WIDTH, seed=seed), torch.tensor([0.1], dtype=torch.float64)
    leads = torch.full((1, CLASSES), slack, dtype=torch.float64)
    most = torch.tensor([[0.3, 0.35, 0.25, 0.4]], dtype=torch.float64)
    leads[0, label] = most[0, label] = torch.inf
    wide = torch.tensor([drift], dtype=torch.float64)
    tube = ConeTube(anywhere(1, distance), leads, most, wide)
    after = ConeTubes(field, centre, distance, labels, halvings).relaxed(tube, SHARE)

    states = project_to_simplex(draw(20000, CLASSES, seed=seed) / 2)
    push = torch.nn.functional.normalize(draw(len(states), WIDTH, seed=seed + 1), dim=1)
    off = torch.nn.functional.normalize(draw(len(states), CLASSES, seed=seed + 2), dim=1)
    states = states + 0.99 * drift * off
    allowed = (states[:, [label]] - states >= leads).masked_fill(leads.isinf(), True).all(dim=1)
    allowed &= (states <= most).all(dim=1)
    states, push = states[allowed], push[allowed]
    assert len(states) > 50
    target = field.double().target(states, centre + distance * push)
    moved = (1 - SHARE) * states + SHARE * target
    found = moved[:, [label]] - moved
    assert bool((found >= after.leads).masked_fill(leads.isinf(), True).all())
    assert bool((moved <= after.most).all())
    assert bool(((moved - project_to_simplex(moved)).norm(dim=1) <= after.drift).all())
    # And what is said is not said of everything.
    rivals = torch.arange(CLASSES) != label
    assert float(after.leads[0, rivals].min()) > -1
    assert float(after.most[0, rivals].max()) < 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["euler", "heun2"])
def test_the_cone_holds_tubes_that_zonotopes_lose(method):
    more = 0
    for seed in range(4):
        model = simplex_model(method, seed, gain=2.0, steps=12)
        images = random_images(6, seed)
        labels = model(images).argmax(dim=1)
        features = relaxed_flows.perturbed_features(model, images)
        for eps in (0.02, 0.05, 0.1, 0.2):
            radius = torch.full((6,), eps, dtype=torch.float64)
            near = relaxed_flows.solve(model, features, radius, labels, local=True)
            apart = features.distance(radius)
            zonotopes = SimplexZonotopes(model.field, features.centre, apart, labels)
            start = torch.full((6, model.classes), model.initial, dtype=torch.float64)
            point = Zonotope.point(start, apart, model.field.features)
            alone = tubes.solve(zonotopes, model.solver, model.field.rate, point)
            held, lost = near.least_leads(labels), alone.least_leads(labels)
            # Narrower units change the lines that bound them: not every bound is better.
            assert bool((held > 0)[lost > 0.02].all())
            more += int(((held > 0).all(dim=1) & ~(lost > 0).all(dim=1)).sum())
    assert more > 2


@pytest.mark.slow
def test_cells_in_parts_hold_more_and_every_state_still():
    finer = 0
    for seed in range(4):
        model = simplex_model("euler", seed, gain=2.0, steps=12)
        images = random_images(6, seed)
        labels = model(images).argmax(dim=1)
        features = relaxed_flows.perturbed_features(model, images)
        radius = torch.full((6,), 0.1, dtype=torch.float64)
        whole, parts = (
            relaxed_flows.solve(model, features, radius, labels, True, halvings).least_leads(labels)
            for halvings in (0, 3)
        )
        finer += int((parts > whole + 1e-6).sum())
        for proposal in perturbed(model, images.double(), labels, radius)[::3]:
            states = model(proposal.float()).double()
            leads = states.gather(1, labels.unsqueeze(1)) - states
            assert bool((leads >= parts - 1e-6).masked_fill(parts.isinf(), True).all())
    assert finer > 5


def test_what_is_not_a_convex_combination_is_left_to_the_zonotope():
    distance = torch.tensor([0.1], dtype=torch.float64)
    point = Zonotope.point(torch.full((1, CLASSES), 0.25, dtype=torch.float64), distance, WIDTH)
    start = ConeTube.point(point, torch.tensor([0]))
    for weights in ((-0.5, 1.5), (0.5, 0.6)):
        apart = start.combined(weights, [start, start])
        assert float(apart.drift) == torch.inf
        assert apart.leads.tolist() == [[torch.inf, *[-torch.inf] * 3]]
        # The zonotope knows what it knows.
        assert bool((apart.least_leads(torch.tensor([0]))[0, 1:] == 0).all())
    same = start.combined((0.25, 0.75), [start, start])
    assert float(same.drift) < 1e-6
    assert float(same.leads[0, 1:].abs().max()) < 1e-6


@pytest.mark.parametrize("centre", [0.5, torch.nan, torch.inf])
def test_a_zonotope_that_is_no_number_does_not_switch_units_off(centre):
    """The one unit is always on, and pushes towards the rival."""
    field = SimplexField(2, 1, 1.0).requires_grad_(False)
    field.from_state.weight.zero_()
    field.from_state.bias.fill_(1.0)
    field.to_state.weight.copy_(torch.tensor([[-2.0], [2.0]]))
    field.to_state.bias.copy_(torch.tensor([1.0, -1.0]))
    features, distance = torch.zeros(1, 1).double(), torch.tensor([0.01], dtype=torch.float64)
    zonotope = Zonotope.point(torch.full((1, 2), centre, dtype=torch.float64), distance, 1)
    leads = torch.tensor([[torch.inf, 0.0]], dtype=torch.float64)
    most = torch.tensor([[torch.inf, 0.5]], dtype=torch.float64)
    tube = ConeTube(zonotope, leads, most, torch.tensor([1e-8], dtype=torch.float64))
    after = ConeTubes(field, features, distance, torch.tensor([0]), 2).relaxed(tube, 0.5)
    half = torch.full((1, 2), 0.5, dtype=torch.float64)
    moved = 0.5 * half + 0.5 * field.double().target(half, features)
    assert float(moved[0, 0] - moved[0, 1]) == pytest.approx(-0.5)
    assert float(after.leads[0, 1]) <= -0.5
    assert float(after.most[0, 1]) >= 0.75


def test_bounds_from_no_range_say_nothing():
    cells = Cells.whole(3)
    net = ConeNetwork(
        torch.zeros(2, 3).double(),
        torch.ones(2).double(),
        torch.ones(3, 2).double(),
        torch.zeros(3).double(),
        torch.zeros(1).double(),
    )
    for low, high in ((torch.nan, torch.nan), (torch.nan, 1.0), (1.0, 0.0)):
        ends = (torch.full((1, 2), end, dtype=torch.float64) for end in (low, high))
        found = leads_after(cells, net, 0.5, *ends)
        assert found.least.tolist() == found.proposed.tolist() == [[-torch.inf, -torch.inf]]
