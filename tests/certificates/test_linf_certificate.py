"""The l-infinity certificate: margins that hold, radii that were verified, attacks that fail."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import PIXELS, Blueprint, bring_near_a_tie, in_double, random_images
from torch import Tensor, nn

from robustness.certificates import CERTIFICATES, Kind, target_seeking
from robustness.certificates.flows import target_boxes
from robustness.certificates.flows.target_boxes import box_margins, box_radii
from robustness.data import load_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.fields import lyapunov_rate
from robustness.nets.solvers import FixedStepSolver
from robustness.programs.operations import affine
from robustness.threat import Norm
from robustness.training.intervals import certified_by_intervals
from robustness.training.loop import train
from robustness.zoo import load_model

CERTIFICATE = CERTIFICATES["target-seeking"]
RECIPE = """
description = "test"
[data]
name = "digits"
shape = [1, 8, 8]
classes = 10
[model]
kind = "neural-ode"
solver = { kind = "fixed", method = "euler", steps = 5 }
field = { kind = "target-seeking", gain = 1.0, coupling = 1.0 }
encoder = { kind = "conv-relu", widths = [8], strides = [1], outputs = 32 }
[training]
epochs = 10
batch_size = 64
learning_rate = 1e-2
loss = { kind = "certified-interval", eps = 0.06, test_eps = 0.04 }
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> NeuralODEClassifier:
    """A small model of the digits, trained on interval bounds."""
    folder: Path = tmp_path_factory.mktemp("digits")
    (folder / "recipe.toml").write_text(RECIPE)
    train(folder, quiet=True)
    model = load_model(str(folder)).module
    assert isinstance(model, NeuralODEClassifier)
    return model


def target_margins_of(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Exact margins of the target, shape (n, classes)."""
    precise = in_double(model)
    scores = model.field.gain * precise.field.head(precise.features(images.double()))
    return scores.gather(1, labels.unsqueeze(1)) - scores


@pytest.mark.slow
@settings(max_examples=25)
@given(
    encoder=st.sampled_from(["conv-relu", "mlp"]),
    depth=st.integers(1, 3),
    gain=st.sampled_from([0.1, 5.0, 1e4]),
    scale=st.sampled_from([1.0, 4.0]),
    eps=st.sampled_from([0.0, 0.02, 0.2]),
    seed=st.integers(0, 2**31),
)
def test_no_image_of_the_box_has_a_smaller_margin_than_is_proved(
    encoder, depth, gain, scale, eps, seed
):
    plan = Blueprint(encoder=encoder, depth=depth, gain=gain, scale=scale, offsets=0.3, seed=seed)
    model, images = plan.build(), random_images(4, seed)
    labels = model(images).argmax(dim=1)
    proved = box_margins(model, images, labels, torch.full((4,), eps)).margins
    assert (proved.gather(1, labels.unsqueeze(1)) == torch.inf).all()
    generator = torch.Generator().manual_seed(3)
    for draw in range(60):
        noise = 2 * torch.rand(images.shape, generator=generator) - 1
        moved = (images.double() + eps * (noise.sign() if draw % 2 else noise)).clamp(0, 1)
        found = target_margins_of(model, moved, labels)
        other = found.scatter(1, labels.unsqueeze(1), torch.inf)
        assert (other >= proved).all()


def test_the_linear_bound_only_ever_adds_to_the_intervals(monkeypatch):
    plan = Blueprint(encoder="mlp", depth=2, scale=3.0, offsets=0.3, gain=1.0)
    model, images = plan.build(), random_images(6, 1)
    labels = model(images).argmax(dim=1)
    eps = torch.full((6,), 0.1)
    both = box_margins(model, images, labels, eps)
    assert both.linear.any()
    monkeypatch.setattr(
        target_boxes.Bounds,
        "by_lines",
        lambda *given: torch.full(given[2].shape[:2], -1e9).double(),
    )
    intervals = box_margins(model, images, labels, eps)
    assert not intervals.linear.any()
    assert (both.margins >= intervals.margins).all()
    assert (both.margins > intervals.margins + 1e-3)[both.linear].any()


def test_a_radius_was_itself_verified_and_is_nearly_the_largest():
    plan = Blueprint(encoder="conv-relu", scale=3.0, offsets=0.3)
    model, images = plan.build(), random_images(6, 1)
    labels = model(images).argmax(dim=1)
    found = box_radii(model, images, labels)
    assert (found.radii > 0).all()
    assert (box_margins(model, images, labels, found.radii).worst > 0).all()
    beyond = (found.radii * 1.01).clamp_max(1)
    fails = box_margins(model, images, labels, beyond).worst <= 0
    assert (fails | (found.radii == 1)).all()


def test_a_model_that_never_changes_its_mind_is_certified_on_every_image_and_no_further():
    model, images = Blueprint(encoder="conv-relu").build(), random_images(3, 1)
    model.field.head.weight.zero_()
    model.field.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    labels = torch.tensor([1, 1, 1])
    for radius in CERTIFICATE.certify(model, images, labels, Norm.LINF):
        assert radius.radius == pytest.approx(1.0)
        assert radius.radius < 1


def attacked(model: NeuralODEClassifier, images: Tensor, labels: Tensor, eps: Tensor) -> Tensor:
    """Which images projected gradient descent breaks strictly within `eps`, each its own."""
    generator = torch.Generator().manual_seed(0)
    wide, broken = eps.view(-1, 1, 1, 1), torch.zeros(len(images), dtype=torch.bool)
    for _ in range(3):
        delta = wide * (2 * torch.rand(images.shape, generator=generator) - 1)
        for _ in range(12):
            pixels = (images + delta).clamp(0, 1).detach().requires_grad_()
            logits = model(pixels)
            label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            rival = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1)
            (gradient,) = torch.autograd.grad((rival - label).sum(), pixels)
            delta = (pixels.detach() + wide / 4 * gradient.sign() - images).clamp(-wide, wide)
        moved = (images + 0.99999 * delta).clamp(0, 1)
        inside = (moved.double() - images.double()).abs().amax(dim=(1, 2, 3)) < eps
        broken |= (model(moved).argmax(dim=1) != labels) & inside
    return broken


@pytest.mark.slow
def test_projected_gradient_descent_finds_nothing_within_the_certified_radii(trained):
    digits = load_images("digits", "test").take(torch.arange(160))
    found = CERTIFICATE.certify(trained, digits.images, digits.labels, Norm.LINF)
    radii = torch.tensor([radius.radius for radius in found])
    assert {radius.kind for radius in found} == {Kind.CERTIFIED}
    assert (radii >= 0.04).float().mean() > 0.5
    proved = radii > 0
    images, labels, radii = digits.images[proved], digits.labels[proved], radii[proved]
    assert not attacked(trained, images, labels, radii).any()
    # The same attack does succeed beyond.
    assert attacked(trained, images, labels, 3 * radii).float().mean() > 0.1


def test_the_certificate_covers_what_the_loss_was_trained_for(trained):
    """The float32 preview that chose the checkpoint is nearly what is proved."""
    digits = load_images("digits", "test").take(torch.arange(200))
    preview = certified_by_intervals(trained, digits.images, digits.labels, 0.04)
    found = CERTIFICATE.certify(trained, digits.images, digits.labels, Norm.LINF)
    proved = torch.tensor([radius.radius >= 0.04 * (1 - 1e-2) for radius in found])
    assert (proved >= preview).float().mean() > 0.99


@pytest.mark.slow
def test_radii_do_not_depend_on_the_neighbours_in_a_batch():
    plan = Blueprint(encoder="conv-relu", scale=3.0, offsets=0.3)
    model, images = plan.build(), random_images(5, 1)
    labels = model(images).argmax(dim=1)
    together = CERTIFICATE.certify(model, images, labels, Norm.LINF)
    for i, radius in enumerate(together):
        alone = CERTIFICATE.certify(model, images[i : i + 1], labels[i : i + 1], Norm.LINF)[0]
        assert alone.radius == pytest.approx(radius.radius, rel=1e-6)
        assert alone.reason == radius.reason


def test_where_both_routes_apply_the_larger_radius_counts(monkeypatch):
    plan = Blueprint(encoder="mlp", depth=1, offsets=0.3)
    model, images = plan.build(), random_images(6, 1)
    labels = model(images).argmax(dim=1)
    best = CERTIFICATE.certify(model, images, labels, Norm.LINF)
    by_box = box_radii(model, images, labels).radii
    monkeypatch.setattr(target_seeking, "refusal_of_boxes", lambda _: "no boxes")
    by_ball = CERTIFICATE.certify(model, images, labels, Norm.LINF)
    for radius, box, ball in zip(best, by_box.tolist(), by_ball, strict=True):
        assert radius.radius == pytest.approx(max(box, ball.radius), rel=1e-6)
        assert "l2 ball" in ball.reason
        assert ("l2 ball" in radius.reason) == (ball.radius >= box)
    assert any("bound of the margin" in radius.reason for radius in best)


def changed(**attributes: object) -> NeuralODEClassifier:
    model = Blueprint(encoder="conv-relu").build()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model.eval().requires_grad_(False)


def test_a_conv_relu_encoder_is_certified_in_both_norms_and_not_through_the_ball_in_l_infinity():
    model, images = changed(), random_images(2, 1)
    labels = model(images).argmax(dim=1)
    radii = {norm: CERTIFICATE.certify(model, images, labels, norm) for norm in Norm}
    for box, ball in zip(radii[Norm.LINF], radii[Norm.L2], strict=True):
        assert box.radius > ball.radius / math.sqrt(PIXELS)


@pytest.mark.parametrize(
    ("attributes", "reasons"),
    [
        (
            {"solver": FixedStepSolver("euler", 4, 4.01 / lyapunov_rate(3))},
            ["overshoots the target"],
        ),
        (
            {"encoder": nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 5), nn.Tanh())},
            ["no Lipschitz constant", "no interval rule is known for Tanh"],
        ),
        (
            {"encoder": nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (1, -1)))},
            ["no Lipschitz constant", "Flatten with axes"],
        ),
    ],
)
def test_what_neither_route_covers_is_refused_with_both_reasons(attributes, reasons):
    model = changed(**attributes)
    refusal = CERTIFICATE.refusal(model, Norm.LINF)
    for reason in reasons:
        assert reason in refusal
    with pytest.raises(ValueError, match="without"):
        CERTIFICATE.certify(model, random_images(2, 1), torch.tensor([0, 0]), Norm.LINF)


class OwnConv(nn.Conv2d):
    def _conv_forward(self, inputs, weight, bias):
        return super()._conv_forward(inputs, 2 * weight, bias)


class OwnReLU(nn.ReLU):
    def forward(self, inputs):
        return super().forward(inputs) + 1


class Reversed(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def hooked() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda *_: None)
    return layer


def replaced() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = lambda inputs: inputs + 1
    return layer


REFUSED = {
    "an unknown layer": (nn.Tanh, "for Tanh"),
    "batch norm": (lambda: nn.BatchNorm2d(2), "for BatchNorm2d"),
    "a flattened batch": (lambda: nn.Flatten(0), "Flatten with axes"),
    "an altered convolution": (lambda: OwnConv(1, 1, 3), "for OwnConv"),
    "an altered relu": (OwnReLU, "for OwnReLU"),
    "an altered order": (lambda: Reversed(nn.Flatten(), nn.ReLU()), "for Reversed"),
    "a hook": (hooked, "for Linear"),
    "a replaced forward": (replaced, "for ReLU"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_encoder_that_boxes_are_not_meant_for_is_refused_wherever_the_layer_stands(case):
    build, message = REFUSED[case]
    model = changed(encoder=nn.Sequential(nn.ReLU(), nn.Sequential(build())))
    assert message in target_boxes.refusal_of_boxes(model)


def test_every_layer_of_the_encoders_for_intervals_is_known():
    for encoder in ("conv-relu", "mlp"):
        assert target_boxes.refusal_of_boxes(Blueprint(encoder=encoder).build()) is None
    flow = Blueprint(encoder="flow").build()
    assert "ContractiveStep" in target_boxes.refusal_of_boxes(flow)


def test_wrong_predictions_ties_and_broken_logits_have_radius_zero():
    model, images = changed(), random_images(4, 1)
    right = model(images).argmax(dim=1)
    for radius in CERTIFICATE.certify(model, images, (right + 1) % 3, Norm.LINF):
        assert (radius.radius, radius.reason) == (0.0, "the prediction is wrong")
    for parameter in model.field.head.parameters():
        parameter.zero_()
    for radius in CERTIFICATE.certify(model, images, model(images).argmax(dim=1), Norm.LINF):
        assert radius.radius == 0
        assert "rounding" in radius.reason
    broken = Blueprint(encoder="conv-relu", gain=1e20).build()
    for parameter in broken.field.head.parameters():
        parameter.copy_(1e25 * torch.randn_like(parameter))
    assert not broken(images).isfinite().all()
    for label in range(3):
        labels = torch.full((4,), label)
        for radius in CERTIFICATE.certify(broken, images, labels, Norm.LINF):
            assert radius.radius == 0


@pytest.mark.slow
@pytest.mark.parametrize("sound", [True, False])
def test_a_certificate_that_forgets_float32_rounding_is_caught(monkeypatch, sound):
    """Near a tie the program that runs errs on images that exact arithmetic has right."""
    plan = Blueprint(encoder="conv-relu", depth=2, scale=3.0, offsets=1e4, gain=1.0, coupling=0.0)
    if not sound:
        monkeypatch.setattr(
            affine, "rounding_of_entries", lambda *factors: torch.zeros_like(factors[1])
        )
        nothing = torch.zeros(1).double()
        monkeypatch.setattr(target_boxes, "flow_allowance", lambda *_: nothing)
    broken = 0
    for seed in range(10):
        model = Blueprint(**{**plan.__dict__, "seed": seed}).build()
        image = random_images(3, seed)[:1]
        scale = float(in_double(model).features(image.double()).abs().max())
        bring_near_a_tie(model, image[0], 1e-7 * scale)
        labels = target_margins_of(model, image, torch.tensor([0])).argmin(dim=1)
        radius = float(box_radii(model, image, labels).radii)
        for draw in range(10):
            noise = 2 * torch.rand(image.shape, generator=torch.Generator().manual_seed(draw)) - 1
            moved = (image + radius * 0.999 * noise.sign()).clamp(0, 1) if draw else image
            inside = (moved.double() - image.double()).abs().max() <= radius
            if radius > 0 and inside:
                broken += int(model(moved).argmax(dim=1) != labels)
    assert (broken == 0) == sound
