"""What `"all"` runs where every routine certificate refuses a model, and what that may cost."""

import re

import pytest
import torch
from torch import nn

from robustness import api
from robustness.certificates import CERTIFICATES, ProgramCertificate, last_resorts, routine
from robustness.certificates.limits import Limit
from robustness.evaluation.suite import Suite
from robustness.programs.network import Network
from robustness.programs.record import record
from robustness.threat import Norm

IMAGES = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(7))
NORMS = [{"norm": norm, "eps": [0.1]} for norm in Norm]


class Own(nn.Module):
    """A classifier of no known class, of whose parts no Lipschitz bound is known."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(nn.functional.gelu(self.first(images.flatten(1))))


def known() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def given(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    return IMAGES, model(IMAGES).argmax(dim=1)


@pytest.mark.slow
def test_a_model_that_all_others_refuse_is_proved_without_naming_a_certificate() -> None:
    model = Own().eval()
    refused = [CERTIFICATES[name].refusal(model, norm) for name in routine() for norm in Norm]
    assert None not in refused
    rows = api.certify(model, "Linf", data=given(model), audit=1, in_process=True)
    assert {row.certificate for row in rows} == {"program"}
    assert all(row.radius > 1e-3 for row in rows)


@pytest.mark.slow
def test_a_model_that_another_speaks_of_is_left_to_it() -> None:
    model = known()
    assert CERTIFICATES["lipschitz-margin"].refusal(model, Norm.LINF) is None
    rows = api.certify(model, "Linf", data=given(model), audit=1, in_process=True)
    assert {row.certificate for row in rows} == {"lipschitz-margin"}


@pytest.mark.parametrize(
    ("certificates", "built"),
    [
        ("all", [*routine(), "program"]),
        (routine(), [*routine(), "program"]),
        (["program", "all"], ["program", *routine()]),
        (["lipschitz-margin"], ["lipschitz-margin"]),
    ],
)
def test_last_resorts_stand_behind_all_others_or_are_named(certificates, built) -> None:
    suite = Suite(name="any", data="digits", models=["a"], threats=NORMS, certificates=certificates)
    assert last_resorts(routine()) == ["program"]
    assert list(suite.build_certificates("a")) == built
    assert suite.last_resorts == (["program"] if built[-1] == "program" else [])


def test_work_is_that_of_the_sums_and_their_operands() -> None:
    network = Network(record(known(), (1, 4, 4)))
    assert 3 * 16 <= network.work <= 3 * 16 + 4 * 16


def test_work_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Own().eval()
    images, labels = given(model)

    def radii(work: int) -> list[float]:
        claims = ProgramCertificate(work=work).certify(model, images, labels, Norm.LINF)
        reasons.update(claim.reason for claim in claims)
        short = [bool(re.search("takes? more (than|work)", claim.reason)) for claim in claims]
        assert [claim.limit is Limit.BUDGET for claim in claims] == short
        assert all(short) or work != 4
        return [claim.radius for claim in claims]

    reasons: set[str] = set()
    free = radii(0)
    assert "more work" not in " ".join(reasons)
    # A ball is worth 3 runs for its boxes and 2 for its rows.
    monkeypatch.setattr(Network, "work", 10**9)
    assert radii(0) == free
    assert radii(4) == [0.0] * 3
    assert "one ball takes more than 4 thousand millions of multiplications" in reasons
    # The image itself, and no ball.
    assert radii(9) == [0.0] * 3
    few = radii(20)
    assert all(0 < radius <= most for radius, most in zip(few, free, strict=True))
    assert "more radii would take more work" in " ".join(reasons)
    assert all(radius < most for radius, most in zip(few[1:], free[1:], strict=True))
