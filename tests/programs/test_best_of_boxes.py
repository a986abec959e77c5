"""The better of boxes and lines: what it proves, and that it is charged as either is."""

import pytest
import torch
from small import ONE, both, bounds_of
from torch import nn

from robustness.certificates import ProgramCertificate
from robustness.programs.network import margin_rows
from robustness.programs.splitting import split
from robustness.threat import Norm

ROWS, _ = margin_rows(2, torch.tensor([0]))


def kinks(gap: float, *places: float) -> nn.Sequential:
    """Of one pixel x: a margin of the mean of |x - p| / 2 over places p, and a gap."""
    count = len(places)
    first, last = nn.Linear(1, 2 * count), nn.Linear(2 * count, 2)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0], [-1.0]] * count))
        first.bias.copy_(torch.tensor([sign * p for p in places for sign in (-1, 1)]))
        last.weight.copy_(torch.tensor([[0.5 / count] * 2 * count, [0.0] * 2 * count]))
        last.bias.copy_(torch.tensor([gap, 0.0]))
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval()


@pytest.mark.parametrize("norm", list(Norm))
def test_boxes_prove_a_sum_of_rectifiers_that_lines_do_not(norm: Norm) -> None:
    bounds = bounds_of(kinks(0.05, 0.45), ONE, 0.2, norm)
    last = len(bounds.network) - 1
    with torch.no_grad():
        by_lines, by_boxes, best = (
            float(rule(last, ROWS)) for rule in (bounds.by_lines, bounds.by_boxes, bounds.lower)
        )
    # Over [0.3, 0.7] the line below is (x - 0.45) / 2.
    assert by_lines == pytest.approx(-0.075 + 0.05, abs=1e-5)
    assert 0.05 - 1e-5 < by_boxes < 0.05
    assert best == by_boxes


def test_lines_prove_a_difference_that_boxes_do_not() -> None:
    model = kinks(0.01, 0.0)
    with torch.no_grad():
        # max(x, 0) - max(x - 0.3, 0) / 2 over [0.3, 0.7], of which boxes see 0.3 - 0.4 / 2.
        model[1].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -0.3]))
        model[3].weight.copy_(torch.tensor([[1.0, -0.5], [0.0, 0.0]]))
        bounds = bounds_of(model, ONE, 0.2)
        last = len(bounds.network) - 1
        assert float(bounds.by_boxes(last, ROWS)) == pytest.approx(0.11, abs=1e-5)
        assert float(bounds.lower(last, ROWS)) == float(bounds.by_lines(last, ROWS)) > 0.3


def test_the_certificate_takes_the_better_one() -> None:
    label = torch.tensor([0])
    (claim,) = ProgramCertificate(slopes=0).certify(kinks(0.05, 0.45), ONE, label, Norm.LINF)
    # Lines end where x is 0.35; all of [0, 1] holds.
    assert claim.radius > 0.4


def test_boxes_are_charged_with_rounding() -> None:
    bounds = bounds_of(kinks(1e-9, 0.45), ONE, 0.2)
    with torch.no_grad():
        # In exact arithmetic it is 1e-9.
        assert -1e-6 < float(bounds.by_boxes(len(bounds.network) - 1, ROWS)) < -1e-8
        bounds.unbounded[:] = True
        assert float(bounds.lower(len(bounds.network) - 1, ROWS)) == -torch.inf


def test_a_leaf_is_proved_by_its_boxes() -> None:
    bounds = bounds_of(kinks(0.01, 0.4, 0.45), ONE, 0.2)
    last = len(bounds.network) - 1
    found, _ = both(bounds, ROWS, 0)
    assert float(found) < 0
    # One of four undecided rectifiers is split, and no line is chosen.
    assert float(split(bounds, last, ROWS, found, 1, 0)) > 0
