"""The certificate of recorded programs: radii that hold, for models that nobody described."""

import pytest
import torch
from solved import Solved
from torch import Tensor, nn

from robustness import api
from robustness.attacks import Ascent
from robustness.certificates import CERTIFICATES, Kind, ProgramCertificate
from robustness.data import load_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import FixedStepSolver
from robustness.programs.network import Ball, Bounds, Network, margin_rows
from robustness.programs.record import record
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model

SHAPE = (1, 4, 4)


def solved() -> nn.Module:
    return Solved().eval()


def gelu() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Flatten(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 3)
    return nn.Sequential(*layers).eval()


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)),
    ).eval()


def images_of(count: int) -> Tensor:
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
def test_a_gain_that_was_moved_is_bounded_as_one_that_never_did() -> None:
    found = []
    for moving in (False, True):
        torch.manual_seed(0)
        field = LyaNetField(3, 2, "normalised", 2.0, moving=moving)
        flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
        solver = FixedStepSolver("euler", 2)
        model = NeuralODEClassifier(Normalise([0.5], [0.5]), flat, field, solver, classes=3).eval()
        images = images_of(1)
        labels = model(images).argmax(dim=1)
        found.append(ProgramCertificate().certify(model, images, labels, Norm.LINF))
    constant, moved = found
    assert max(claim.radius for claim in constant) > 1e-3
    assert [c.radius for c in moved] == pytest.approx([c.radius for c in constant], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("make", [solved, gelu, normed])
def test_radii_of_a_users_module_hold_against_an_ascent_just_inside(make, norm) -> None:
    model, images = make(), images_of(2)
    labels = model(images).argmax(dim=1)
    certificate = ProgramCertificate()
    assert certificate.refusal(model, norm) is None
    found = certificate.certify(model, images, labels, norm)
    assert all(claim.kind is Kind.CERTIFIED and claim.radius > 1e-3 for claim in found)
    for image, label, claim in zip(images, labels, found, strict=True):
        threat = ThreatModel(norm, claim.radius * (1 - 1e-6))
        ascent = Ascent("targeted", 20, starts=2)
        one, of = image.unsqueeze(0), label.unsqueeze(0)
        (proposed,) = ascent.propose(model, one, of, threat, 0)
        inside = norm.project(proposed, one, threat.eps)
        assert int(model(inside).argmax()) == int(label)


@pytest.mark.parametrize("make", [solved, gelu, normed])
def test_bounds_of_margins_lie_below_dense_samples_and_near_them(make) -> None:
    model, images = make(), images_of(3)
    labels = model(images).argmax(dim=1)
    network = Network(record(model, SHAPE))
    eps = torch.full((3,), 0.01, dtype=torch.float64)
    ball = Ball(images.double().unsqueeze(1), eps, Norm.LINF)
    rows, _ = margin_rows(3, labels)
    with torch.no_grad():
        bound = Bounds(network, ball, network.bends).lower(len(network) - 1, rows)
        generator = torch.Generator().manual_seed(1)
        corners = (torch.rand((400, *images.shape), generator=generator).round() * 2 - 1) * 0.01
        points = (
            ball.box.low[:, 0]
            .float()
            .maximum(ball.box.high[:, 0].float().minimum(images + corners))
        )
        logits = torch.stack([model(batch) for batch in points]).double()
    margins = (rows.squeeze(2) @ logits.unsqueeze(3)).squeeze(3)
    assert (margins >= bound).all()
    assert (margins.amin(dim=0) - bound < 0.25).all()


def test_rounding_is_charged_so_that_a_point_has_a_margin_below_its_exact_one() -> None:
    model, images = gelu(), images_of(4)
    labels = model(images).argmax(dim=1)
    network = Network(record(model, SHAPE))
    ball = Ball(images.double().unsqueeze(1), torch.zeros(4, dtype=torch.float64), Norm.LINF)
    rows, _ = margin_rows(3, labels)
    with torch.no_grad():
        bound = Bounds(network, ball).lower(len(network) - 1, rows)
        exact = (rows.squeeze(2) @ gelu().double()(images.double()).unsqueeze(2)).squeeze(2)
    assert ((exact - bound) > 1e-8).all()
    assert ((exact - bound) < 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eps"), [("digits/node", 0.0005), ("digits/resnet", 0.01)])
def test_zoo_entries_are_proved_through_every_step_that_runs(name: str, eps: float) -> None:
    loaded, images = load_model(name), load_images("digits", "test")
    pixels, labels = images.images[:1], images.labels[:1]
    network = Network(record(loaded.module, (1, 8, 8)))
    radii = torch.full((1,), eps, dtype=torch.float64)
    ball = Ball(pixels.double().unsqueeze(1), radii, Norm.LINF)
    rows, _ = margin_rows(10, labels)
    with torch.no_grad():
        bound = Bounds(network, ball, network.bends).lower(len(network) - 1, rows)
    assert (bound > 0).all()


@pytest.mark.slow
def test_lines_reach_several_times_as_far_as_the_lipschitz_margin() -> None:
    loaded, images = load_model("digits/resnet"), load_images("digits", "test")
    pixels, labels = images.images[:8], images.labels[:8]
    medians = [
        torch.tensor(
            [c.radius for c in CERTIFICATES[name].certify(loaded.module, pixels, labels, Norm.LINF)]
        ).median()
        for name in ("program", "lipschitz-margin")
    ]
    assert medians[0] >= 5 * medians[1] > 0


def test_an_adaptive_solver_has_radius_0_and_the_reason() -> None:
    model, images = Solved("dopri5").eval(), images_of(2)
    labels = model(images).argmax(dim=1)
    found = ProgramCertificate().certify(model, images, labels, Norm.LINF)
    assert [claim.radius for claim in found] == [0.0, 0.0]
    assert "the path depends on the image" in found[0].reason


def test_a_radius_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    model, images = gelu(), images_of(3)
    labels = model(images).argmax(dim=1)
    together = ProgramCertificate().certify(model, images, labels, Norm.LINF)
    alone = [
        ProgramCertificate().certify(model, images[i : i + 1], labels[i : i + 1], Norm.LINF)[0]
        for i in range(3)
    ]
    for first, second in zip(together, alone, strict=True):
        assert abs(first.radius - second.radius) <= 0.04 * first.radius


@pytest.mark.slow
def test_certify_audits_the_named_certificate_and_inspect_names_the_operations() -> None:
    rows = api.certify("digits/resnet", "Linf", "program", samples=1, workers=1, audit=1)
    assert any(row.radius > 0 and row.certificate == "program" for row in rows)
    found = api.inspect("digits/node")
    assert found.operations["addmm"] > 10
    assert found.cut is not None
    assert found.refusal is None
    assert found.certificates["program"][Norm.LINF] is None
    assert found.certificates["target-seeking"][Norm.L2] is not None
