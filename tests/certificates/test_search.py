"""The search for a radius: what is verified, and how soon it is found."""

import math
from collections.abc import Callable

import pytest
import torch

from robustness.certificates.search import RadiusSearch


def tried(margin: Callable[[float], float], most: int = 40) -> tuple[float, float, int]:
    """The bracket of one search, and how many radii were tried."""
    centre = torch.tensor([margin(0.0)], dtype=torch.float64)
    search = RadiusSearch(centre, 0.004, 2**-5, breaks_down=True)
    part, count = torch.tensor([0]), 0
    while bool(search.open[0]) and count < most:
        found = [margin(float(radius)) for radius in search.guess[part]]
        search.record(part, torch.tensor(found, dtype=torch.float64))
        count += 1
    return float(search.verified), float(search.failed), count


@pytest.mark.parametrize("depth", [1.0, 1e6, math.inf])
@pytest.mark.parametrize("edge", [0.0002, 0.0017, 0.0031, 0.2])
def test_a_bound_that_breaks_down_is_found_as_soon_as_one_that_falls(
    edge: float, depth: float
) -> None:
    def margin(radius: float) -> float:
        return 10 - radius if radius <= edge else -depth

    verified, failed, count = tried(margin)
    assert verified <= edge < failed
    assert failed - verified <= 2**-5 * failed
    assert count <= 16


def test_a_margin_that_falls_evenly_is_found_by_its_chord() -> None:
    verified, failed, count = tried(lambda radius: 3.1 - 1000 * radius)
    assert verified <= 0.0031 < failed
    assert count <= 5
