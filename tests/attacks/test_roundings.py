"""The search of roundings: what forgets them is broken by it, and by no ascent."""

from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from robustness.attacks import RoundingSearch, Stage, Status, views_of, worst_case_within
from robustness.attacks.judge import judge_within, predict_alone
from robustness.certificates import ProgramCertificate
from robustness.evaluation.jobs.audit import INSIDE, audit, audit_stages
from robustness.threat import Norm, ThreatModel


def offset(by: float) -> nn.Sequential:
    """A linear model whose hidden values are all moved by a number that the last layer takes off.

    In exact arithmetic that changes nothing.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        model[1].bias += by
        model[2].bias -= by * model[2].weight.sum(dim=1)
    return model


def exact_radii(model: nn.Sequential, images: Tensor, labels: Tensor, norm: Norm) -> Tensor:
    """The distance to the nearest plane between two classes: a proof that forgets rounding."""
    first, last = model[1], model[2]
    weight = last.weight.detach().double() @ first.weight.detach().double()
    bias = last.weight.detach().double() @ first.bias.detach().double() + last.bias.double()
    logits = images.flatten(1).double() @ weight.T + bias.detach()
    slopes = weight[labels].unsqueeze(1) - weight
    order = 1 if norm is Norm.LINF else 2
    radii = (logits.gather(1, labels.unsqueeze(1)) - logits) / slopes.norm(p=order, dim=2)
    return radii.nan_to_num(nan=torch.inf).amin(dim=1)


def planted(count: int) -> tuple[nn.Module, Tensor, Tensor]:
    model, generator = offset(8.0), torch.Generator().manual_seed(1)
    images = torch.rand((count, 1, 4, 4), generator=generator) * 0.4 + 0.3
    return model, images, predict_alone(model, images)[0]


@pytest.mark.slow
def test_a_bound_that_forgets_rounding_is_broken_by_the_audit_and_not_without_the_search() -> None:
    model, images, labels = planted(1)
    radii = exact_radii(model, images, labels, Norm.LINF)
    stages = audit_stages(model, ThreatModel(Norm.LINF, float(radii.max())))
    assert isinstance(stages[-1].attack, RoundingSearch)
    (before,) = worst_case_within(model, images, labels, Norm.LINF, radii * INSIDE, stages[:-1])
    assert before.status is Status.ROBUST
    (after,) = audit(model, images, labels, Norm.LINF, radii, seed=0)
    assert after.status is Status.ADVERSARIAL
    assert (after.attack, after.view) == ("rounding-400", "deployed")
    assert after.image is not None
    distance = float((after.image.double() - images[0].double()).abs().max())
    assert distance == after.linf < float(radii)
    assert int(model(after.image.unsqueeze(0)).argmax()) != labels[0]


@pytest.mark.parametrize("norm", list(Norm))
def test_bounds_that_charge_rounding_stand(norm: Norm) -> None:
    model, images, labels = planted(2)
    claims = ProgramCertificate(slopes=0).certify(model, images, labels, norm)
    radii = torch.tensor([claim.radius for claim in claims], dtype=torch.float64)
    assert (radii > 0.9 * exact_radii(model, images, labels, norm)).all()
    stage = Stage(RoundingSearch(), views_of(model)[0])
    found = worst_case_within(model, images, labels, norm, radii * INSIDE, [stage])
    assert {outcome.status for outcome in found} == {Status.ROBUST}


def test_what_is_found_for_one_image_does_not_depend_on_its_company() -> None:
    model, images, labels = planted(3)
    radii = exact_radii(model, images, labels, Norm.L2) * INSIDE
    search = RoundingSearch(evaluations=20, lane=8)

    def found(part: slice) -> Tensor:
        view = views_of(model)[0]
        given = images[part], labels[part], Norm.L2, radii[part]
        return search.pursue(view, model, *given, 0)[0]

    assert torch.equal(found(slice(0, 3))[2], found(slice(2, 3))[0])


class Coupled(nn.Module):
    """Right wherever an image has company."""

    def forward(self, images: Tensor) -> Tensor:
        right = images.flatten(1)[:, :1] * 0 + 1
        return torch.cat([right, 2 - right] if len(images) > 1 else [-right, right], dim=1)


def test_its_images_are_judged_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module(judge_within.__module__), "predicts_each_by_itself", bool)
    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.int64)
    radii = torch.full((2,), 0.1, dtype=torch.float64)
    for alone in (False, True):
        verdicts = judge_within(
            Coupled(), images, labels, images.unsqueeze(0), Norm.LINF, radii, alone
        )
        assert all((v.status is Status.ADVERSARIAL) == alone for v in verdicts)
