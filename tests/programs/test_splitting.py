"""Balls split by the signs of rectifiers: bounds that hold, and that prove what lines cannot."""

import pytest
import torch
from small import ONE, both, bounds_of, least_of, mixed, planar
from torch import nn

from robustness.certificates import ProgramCertificate
from robustness.errors import UsageError
from robustness.programs.boxes import Box
from robustness.programs.network import margin_rows
from robustness.programs.splitting import split
from robustness.threat import Norm


def twins(gap: float) -> nn.Sequential:
    """Of one pixel x: a margin relu(x - 0.45) - relu(x - 0.45) + gap, which is the gap."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.fill_(-0.45)
        last.weight.copy_(torch.tensor([[1.0, -1.0], [0.0, 0.0]]))
        last.bias.copy_(torch.tensor([gap, 0.0]))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval()


def test_splitting_proves_what_no_choice_of_lines_does() -> None:
    # Over [0.3, 0.7] one twin may be 0 where the chord of the other is at 0.15 * 0.25 / 0.4.
    rows, _ = margin_rows(2, torch.tensor([0]))
    bounds = bounds_of(twins(0.05), ONE, 0.2)
    _, raised = both(bounds, rows, 20)
    assert float(raised) < 0.05 - 0.09
    last = len(bounds.network) - 1
    # One split leaves the other twin open on both halves. Of the four leaves two hold one image
    # each, which only what is imposed on their operands says.
    assert float(split(bounds, last, rows, raised, 2, 20)) == float(raised)
    assert 0 < float(split(bounds, last, rows, raised, 3, 20)) <= 0.05


def test_rounding_is_charged_in_every_leaf() -> None:
    rows, _ = margin_rows(2, torch.tensor([0]))
    bounds = bounds_of(twins(0.05), ONE, 0.2)
    last = len(bounds.network) - 1
    found, _ = both(bounds, rows, 0)
    proved = []
    for error in (0.02, 0.03):
        # Of both logits, where the gap is 0.05.
        bounds.errors[last] = error
        proved.append(float(split(bounds, last, rows, found, 20, 20)) > 0)
    assert proved == [True, False]


def test_rows_that_a_multiplier_cancels_have_rounded_all_the_same() -> None:
    bounds = bounds_of(twins(0.05), ONE, 0.2)
    ((p, _),) = bounds.network.rectified.items()
    pulls = {p: torch.tensor([[1.0, 0.0]], dtype=torch.float64)}
    half, _ = bounds.imposed({p: bounds.boxes[p]}, pulls)
    rows = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    with torch.no_grad():
        # The least value of what is imposed not to lie below 0 is 0.
        found = half.by_lines(p, rows, multipliers={p: torch.ones(1, 1, 2, dtype=torch.float64)})
    assert -1e-10 < float(found) < 0


@pytest.mark.slow
def test_small_networks_are_decided_by_splitting_on_either_side_of_their_least_margin() -> None:
    image, needed = torch.full((1, 1, 1, 2), 0.5), 0
    ends = [torch.full((2,), end, dtype=torch.float64) for end in (0.05, 0.95)]
    with torch.no_grad():
        for seed in range(8):
            model, label = planar(seed), torch.tensor([0])
            rows, _ = margin_rows(2, label)
            least = least_of(model, ends[0], ends[1], rows[0, 0, 0])
            for wanted in (0.02, -1e-4):
                model[3].bias[0] += wanted - least
                least = least_of(model, ends[0], ends[1], rows[0, 0, 0])
                bounds = bounds_of(model, image, 0.45)
                found, _ = both(bounds, rows, 0)
                proved = split(bounds, len(bounds.network) - 1, rows, found, 40, 20)
                assert float(found) <= float(proved) <= least
                assert (float(proved) > 0) == (wanted > 0), seed
                needed += wanted > 0 and float(found) <= 0
    assert needed >= 3


@pytest.mark.parametrize("norm", list(Norm))
def test_bounds_of_leaves_lie_below_dense_samples(norm: Norm) -> None:
    model, eps = mixed(), 0.3
    images = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(7))
    rows, _ = margin_rows(3, torch.arange(4) % 3)
    generator = torch.Generator().manual_seed(1)
    moves = torch.rand((300, *images.shape), generator=generator) * 2 - 1
    if norm is Norm.L2:
        moves = moves / moves.flatten(2).norm(dim=2).view(300, 4, 1, 1, 1) * (1 - 1e-6)
    with torch.no_grad():
        points = (images + eps * moves).clamp(0, 1)
        logits = model(points.flatten(0, 1)).double().view(300, 4, 3)
        sampled = (rows.squeeze(2) @ logits.unsqueeze(3)).squeeze(3).amin(dim=0)
        bounds = bounds_of(model, images, eps, norm)
        last = len(bounds.network) - 1
        found = bounds.by_lines(last, rows)
        assert (split(bounds, last, rows, found, 20, 2) <= sampled).all()


def test_halves_have_narrower_boxes_and_impossible_ones_no_image() -> None:
    bounds = bounds_of(planar(0), torch.full((2, 1, 1, 2), 0.5), 0.45)
    (p,) = bounds.network.rectified
    whole = bounds.boxes[p]
    entry = int(((whole.low[0, 0] < 0) & (whole.high[0, 0] > 0)).nonzero()[0])
    low, high = torch.full_like(whole.low, -torch.inf), torch.full_like(whole.low, torch.inf)
    low[0, 0, entry] = whole.high[0, 0, entry] * 0.9
    low[1, 0, entry] = whole.high[1, 0, entry] + 1e-3
    half, empty = bounds.imposed({p: Box(low, high)}, {})
    assert empty.tolist() == [False, True]
    behind = bounds.network.uses[p][0]
    assert half.boxes[behind].low[0, 0, entry] == low[0, 0, entry]
    assert bounds.boxes[behind].low[0, 0, entry] < low[0, 0, entry]


def test_the_certificate_reaches_further_with_splits() -> None:
    label = torch.tensor([0])
    radii = [
        ProgramCertificate(splits=splits).certify(twins(0.05), ONE, label, Norm.LINF)[0].radius
        for splits in (0, 8)
    ]
    assert 0.05 < radii[0] < radii[1]


@pytest.mark.parametrize("settings", [{"slopes": -1}, {"splits": True}])
def test_budgets_are_whole_numbers(settings) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        ProgramCertificate(**settings)
