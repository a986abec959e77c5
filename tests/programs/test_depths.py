"""Boxes in front of every rectifier narrowed by lines, where no affine forms are carried."""

import pytest
import torch
from small import bounds_of
from torch import Tensor, nn

from robustness.certificates import Limit, ProgramCertificate
from robustness.programs.network import Bounds, margin_rows
from robustness.threat import Norm

IMAGES = torch.rand((3, 1, 4, 4), generator=torch.Generator().manual_seed(5))


def residual() -> nn.Module:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 20, 3, padding=1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.ReLU(), nn.Conv2d(20, 20, 3, padding=1)) for _ in range(3)
            )
            self.head = nn.Linear(20 * 16, 3)

        def forward(self, images: Tensor) -> Tensor:
            z = self.first(images)
            for block in self.blocks:
                z = z + block(z)
            return self.head(z.relu().flatten(1))

    torch.manual_seed(2)
    return Residual().eval()


def deep_of(model: nn.Module, eps: float) -> tuple[Bounds, Bounds]:
    plain = bounds_of(model, IMAGES, eps)
    return plain, Bounds(plain.network, plain.ball, plain.network.depths)


def test_deep_boxes_hold_what_is_sampled_and_are_nowhere_wider() -> None:
    model, eps = residual(), 0.05
    plain, deep = deep_of(model, eps)
    assert len(plain.network.depths) == 3
    generator = torch.Generator().manual_seed(1)
    moves = torch.rand((500, *IMAGES.shape), generator=generator) * 2 - 1
    moves[:250] = moves[:250].sign()
    points = (IMAGES + moves * eps * (1 - 1e-6)).clamp(0, 1).flatten(0, 1)
    with torch.no_grad():
        logits = model(points).double().view(500, 3, 3)
        rows, _ = margin_rows(3, logits[0].argmax(dim=1))
        last = len(plain.network) - 1
        lower, before = deep.by_lines(last, rows), plain.by_lines(last, rows)
    for wide, narrow in zip(plain.boxes, deep.boxes, strict=True):
        assert (narrow.low >= wide.low - 1e-12).all()
        assert (narrow.high <= wide.high + 1e-12).all()
    assert ((rows.squeeze(2) @ logits.unsqueeze(3)).squeeze(3) >= lower).all()
    assert (lower > before + 0.05).any()


def test_bounds_in_the_place_of_others_are_those_of_their_own_images() -> None:
    plain, deep = deep_of(residual(), 0.05)
    part = torch.tensor([2, 0])
    mixed = plain.replaced(part, deep.lanes(part))
    rows, _ = margin_rows(3, torch.zeros(3, dtype=torch.long))
    last = len(plain.network) - 1
    with torch.no_grad():
        of_each = [bounds.by_lines(last, rows) for bounds in (plain, deep, mixed)]
    assert torch.allclose(of_each[2][part], of_each[1][part], atol=1e-12)
    assert torch.allclose(of_each[2][1], of_each[0][1], atol=1e-12)
    assert not torch.allclose(of_each[0], of_each[1], atol=1e-3)


@pytest.mark.slow
def test_the_certificate_reaches_further_within_the_work_that_an_image_may_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = residual()
    labels = model(IMAGES).argmax(dim=1)

    def radii(said: str = "most is lost at ") -> list[float]:
        claims = ProgramCertificate(slopes=0).certify(model, IMAGES, labels, Norm.LINF)
        assert all(said in claim.reason for claim in claims)
        assert all((claim.limit is Limit.BUDGET) == ("work" in said) for claim in claims)
        return [claim.radius for claim in claims]

    deep = radii()
    # Every narrowing costs more than an image may.
    dear = torch.full((3,), 1e12, dtype=torch.float64)
    monkeypatch.setattr(Bounds, "work_of", lambda self, _: dear[: len(self.ball.images)])
    plain = radii("narrower boxes would take more work")
    assert all(a >= b for a, b in zip(deep, plain, strict=True))
    assert max(a / b for a, b in zip(deep, plain, strict=True)) > 1.2


def test_what_is_lost_is_named_where_it_is_lost() -> None:
    class Sharp(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            z = images.flatten(1)
            steady = torch.stack([z[:, 0] + 2, z[:, 1]], dim=1)
            # Of its values at both ends lines below say little.
            return steady + 40 * (z[:, 2:4] - 0.5).square()

    images = torch.full((1, 1, 2, 2), 0.5)
    (claim,) = ProgramCertificate(slopes=0).certify(
        Sharp().eval(), images, torch.tensor([0]), Norm.LINF
    )
    assert claim.radius > 0
    assert "most is lost at pow, operation" in claim.reason
