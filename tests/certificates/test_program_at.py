"""Radii that are asked for, instead of a search."""

from typing import Any

import pytest
import torch
from torch import nn

from robustness.certificates import ProgramCertificate
from robustness.certificates import program as module
from robustness.errors import UsageError
from robustness.evaluation.suite import Suite
from robustness.programs.network import Ball, Bounds, Network
from robustness.threat import Norm

IMAGES = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(7))


def gelu() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("norm", list(Norm))
def test_the_largest_radius_is_given_that_a_search_passes(norm: Norm) -> None:
    model = gelu()
    labels = model(IMAGES).argmax(dim=1)
    searched = [claim.radius for claim in ProgramCertificate().certify(model, IMAGES, labels, norm)]
    middle = sorted(searched)[1] * 1.1
    asked = (middle, middle / 10, 1e4)
    found = ProgramCertificate(at=asked).certify(model, IMAGES, labels, norm)
    for claim, radius in zip(found, searched, strict=True):
        # What is asked for lies strictly inside of what is claimed, and the search is 3% wide.
        (near,) = (one for one in asked if abs(claim.radius - one) <= 1e-8 * one)
        assert near < claim.radius <= radius * 1.04
        assert near == middle or radius < middle * 1.04
    assert {claim.radius > middle for claim in found} == {True, False}


def test_no_other_ball_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, balls = gelu(), []

    class Counted(Bounds):
        def __init__(self, network: Network, ball: Ball, *rest: Any, **settings: Any) -> None:
            balls.append((sorted(set(ball.radii.tolist())), settings.get("forms", True)))
            super().__init__(network, ball, *rest, **settings)

    monkeypatch.setattr(module, "Bounds", Counted)
    labels = model(IMAGES).argmax(dim=1)
    ProgramCertificate(at=(0.01, 0.001)).certify(model, IMAGES, labels, Norm.LINF)
    # By boxes alone, and where these leave an image open by all there is.
    assert [round(radius, 6) for (radius,), dear in balls if not dear] == [0.0, 0.001, 0.01]
    assert {round(radius, 6) for (radius,), dear in balls if dear} <= {0.0, 0.001, 0.01}
    assert len(balls) <= 6


@pytest.mark.parametrize("at", [(0.0,), (0.1, float("nan")), (float("inf"),)])
def test_radii_are_above_0(at: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="at to be radii above 0"):
        ProgramCertificate(at=at)


def test_a_suite_asks_for_them() -> None:
    table = {"name": "program", "at": [0.2, 0.1]}
    threats = [{"norm": "Linf", "eps": [0.1]}]
    suite = Suite(name="a", data="digits", models=["b"], threats=threats, certificates=[table])
    built = suite.build_certificates("b")["program"]
    assert built == ProgramCertificate(at=(0.1, 0.2))
