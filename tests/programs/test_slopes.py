"""Lines chosen by ascent: bounds that hold, that are no worse, and that prove more."""

import pytest
import torch
from small import ONE, both, bounds_of, least_of, mixed, planar
from torch import Tensor, nn

from robustness.certificates import ProgramCertificate
from robustness.programs.network import margin_rows
from robustness.threat import Norm


def kink(gap: float) -> nn.Sequential:
    """Of one pixel x: a margin |x - 0.45| / 2 + gap, written as two rectifiers."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        first.bias.copy_(torch.tensor([-0.45, 0.45]))
        last.weight.copy_(torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
        last.bias.copy_(torch.tensor([gap, 0.0]))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval()


def tilted(gap: float) -> nn.Sequential:
    """The same margin, written as one rectifier and a line, so that boxes do not see it."""
    first, last = nn.Linear(1, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [1.0]]))
        first.bias.copy_(torch.tensor([-0.45, 0.0]))
        last.weight.copy_(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        last.bias.copy_(torch.tensor([0.225 + gap, 0.0]))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval()


def test_chosen_slopes_prove_a_kink_that_fixed_ones_do_not() -> None:
    # Over [0.3, 0.7] the line below is (x - 0.45) / 2 with fixed slopes, 0 with the best ones.
    rows, _ = margin_rows(2, torch.tensor([0]))
    found, raised = both(bounds_of(kink(0.05), ONE, 0.2), rows, 20)
    assert float(found) == pytest.approx(-0.075 + 0.05, abs=1e-5)
    assert 0 < float(raised) <= 0.05


def test_an_optimum_within_rounding_is_not_proved() -> None:
    rows, _ = margin_rows(2, torch.tensor([0]))
    bounds = bounds_of(kink(1e-9), ONE, 0.2)
    with torch.no_grad():
        halves = {i: torch.full_like(s, 0.5) for i, s in bounds.shares(3).items()}
        best = float(bounds.by_lines(len(bounds.network) - 1, rows, halves))
    assert len(halves) == 1
    # In exact arithmetic it is 1e-9.
    assert -1e-6 < best < -1e-8


def test_the_certificate_reaches_further_and_nothing_is_lost_without_steps() -> None:
    label = torch.tensor([0])
    radii = [
        ProgramCertificate(slopes=steps).certify(tilted(0.05), ONE, label, Norm.LINF)[0].radius
        for steps in (0, 20)
    ]
    # With fixed slopes (x - 0.45) / 2 + 0.05 must be above 0, so x above 0.35; all of [0, 1] holds.
    assert radii[0] == pytest.approx(0.15, rel=0.05)
    assert radii[1] > 0.4


def test_bounds_lie_below_the_least_of_all_vertices_and_come_nearer_to_it() -> None:
    image = torch.full((1, 1, 1, 2), 0.5)
    nearer = 0
    with torch.no_grad():
        for seed in range(12):
            model, label = planar(seed), torch.tensor([seed % 2])
            rows, _ = margin_rows(2, label)
            found, raised = both(bounds_of(model, image, 0.45), rows, 8)
            ends = (torch.full((2,), end, dtype=torch.float64) for end in (0.05, 0.95))
            least = least_of(model, *ends, rows[0, 0, 0])
            assert float(found) <= float(raised) <= least
            nearer += float(raised) > float(found) + 0.1 * (least - float(found)) + 1e-6
    assert nearer >= 3


@pytest.mark.parametrize("norm", list(Norm))
def test_raised_bounds_hold_at_dense_samples_and_are_nowhere_lower(norm: Norm) -> None:
    model, eps = mixed(), 0.3
    images = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(7))
    labels = torch.arange(4) % 3
    rows, _ = margin_rows(3, labels)
    found, raised = both(bounds_of(model, images, eps, norm), rows, 4)
    assert (raised >= found).all()
    assert (raised > found + 1e-4).any()
    generator = torch.Generator().manual_seed(1)
    moves = torch.randn((500, *images.shape), generator=generator)
    moves = moves.sign() if norm is Norm.LINF else _unit(moves)
    with torch.no_grad():
        points = (images + eps * moves).clamp(0, 1)
        logits = model(points.flatten(0, 1)).double().view(500, 4, 3)
    margins = (rows.squeeze(2) @ logits.unsqueeze(3)).squeeze(3)
    assert (margins >= raised).all()


def _unit(moves: Tensor) -> Tensor:
    return moves / moves.flatten(2).norm(dim=2).view(*moves.shape[:2], 1, 1, 1) * (1 - 1e-6)
