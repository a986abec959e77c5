"""The Lipschitz margin of discrete networks, and of flows behind ordinary encoders."""

import math

import pytest
import torch
from small_models import PIXELS, SHAPE, Blueprint, in_double, random_images
from torch import nn

from robustness.certificates import CERTIFICATES, Kind
from robustness.certificates.lipschitz_margin import LipschitzMarginCertificate, layers_of
from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier
from robustness.nets.continuous import ContinuousNet
from robustness.nets.convolutions import ConvEncoder, ConvResidualClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver
from robustness.threat import Norm

CERTIFICATE = LipschitzMarginCertificate()
NORMALISE = Normalise([0.3], [0.5])


def frozen(model: nn.Module, scale: float = 1.0) -> nn.Module:
    for parameter in model.parameters():
        parameter.data.mul_(scale)
    return model.eval().requires_grad_(False)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return frozen(nn.Sequential(NORMALISE, nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 4))))


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return frozen(ResidualClassifier(NORMALISE, PIXELS, 6, 2, 4))


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    return frozen(ConvResidualClassifier(NORMALISE, 1, [3, 4], 1, 1, 4), 0.8)


def without_a_last_linear_layer() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return frozen(nn.Sequential(NORMALISE, *layers))


def behind_an_ordinary_encoder() -> NeuralODEClassifier:
    torch.manual_seed(0)
    model = Blueprint(classes=4, coupling=0.5).build()
    model.encoder = frozen(ConvEncoder(SHAPE, [3, 4], [1, 2], PIXELS), 0.8)
    return model.eval().requires_grad_(False)


def radii_of(model: nn.Module, images: torch.Tensor, norm: Norm = Norm.L2, name: str = "") -> list:
    certificate = CERTIFICATES[name or CERTIFICATE.name]
    return certificate.certify(model, images, model(images).argmax(dim=1), norm)


def test_the_radius_of_a_linear_model_is_the_distance_to_its_decision_boundary():
    model, images = linear(), random_images(40, 1)
    labels = model(images).argmax(dim=1)
    weight, bias = model[1][1].weight.double(), model[1][1].bias.double()
    scores = ((images.double().flatten(1) - 0.3) / 0.5) @ weight.T + bias
    margins = scores.gather(1, labels.unsqueeze(1)) - scores
    slopes = torch.linalg.vector_norm(weight[labels].unsqueeze(1) - weight, dim=2) / 0.5
    distances = (margins / slopes).nan_to_num(math.inf).scatter(1, labels.unsqueeze(1), math.inf)
    distance, rivals = distances.min(dim=1)
    found = radii_of(model, images)
    radius = torch.tensor([r.radius for r in found]).double()
    clear = distance > 0.01
    assert clear.sum() > 20
    assert (radius <= distance).all()
    # Nothing is lost but the allowance for float32.
    assert (radius[clear] >= (1 - 1e-3) * distance[clear]).all()
    for result, rival in zip(found, rivals.tolist(), strict=True):
        assert result.radius == 0 or f"class {rival} " in result.reason


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (linear, "lipschitz-margin"),
        (perceptron, "lipschitz-margin"),
        (convolutional, "lipschitz-margin"),
        (without_a_last_linear_layer, "lipschitz-margin"),
        (behind_an_ordinary_encoder, "target-seeking"),
        (behind_an_ordinary_encoder, "lyapunov-sharp"),
    ],
)
def test_no_perturbation_inside_the_radius_changes_the_prediction(build, name, norm):
    model, images = build(), random_images(12, 3)
    labels = model(images).argmax(dim=1)
    certificate = CERTIFICATES[name]
    assert certificate.refusal(model, norm) is None
    found = certificate.certify(model, images, labels, norm)
    assert all(r.kind is Kind.CERTIFIED for r in found)
    radii = torch.tensor([r.radius for r in found])
    if name != "lyapunov-sharp":
        assert (radii > 0).sum() >= 6
    twin, exact = in_double(model), images.double()
    for rival in range(4):
        delta = torch.zeros_like(exact)
        for _ in range(5):
            delta.requires_grad_()
            logits = twin(exact + delta)
            margin = logits[:, rival] - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            (gradient,) = torch.autograd.grad(margin.sum(), delta)
            wide = radii.view(-1, 1, 1, 1)
            if norm is Norm.LINF:
                delta = wide * gradient.sign()
            else:
                length = Norm.L2.distance(gradient, torch.zeros_like(gradient))
                delta = wide * gradient / length.clamp_min(1e-300).view(-1, 1, 1, 1)
        for i in radii.nonzero().flatten().tolist():
            proposed = (exact[i] + delta[i]).float().unsqueeze(0)
            held = norm.project(proposed, images[i : i + 1], float(radii[i]) * (1 - 1e-6))
            assert int(model(held).argmax()) == int(labels[i])


@pytest.mark.slow
def test_a_batch_of_another_size_gives_the_same_radius():
    model, images = convolutional(), random_images(6, 0)
    together = radii_of(model, images)
    for i, radius in enumerate(together):
        alone = radii_of(model, images[i : i + 1])[0]
        assert alone.radius == pytest.approx(radius.radius, rel=1e-6)


def test_a_wrong_prediction_and_a_tie_have_radius_zero():
    model, images = linear(), random_images(4, 0)
    wrong = (model(images).argmax(dim=1) + 1) % 4
    for radius in CERTIFICATE.certify(model, images, wrong, Norm.L2):
        assert (radius.radius, radius.reason) == (0.0, "the prediction is wrong")
    for parameter in model.parameters():
        parameter.zero_()
    for radius in radii_of(model, images):
        assert radius.radius == 0
        assert "rounding" in radius.reason


def test_a_margin_of_float32_rounding_is_not_certified():
    model, images = linear(), random_images(3, 0)[:1]
    twin = in_double(model)
    first, second = twin(images.double())[0].topk(2).indices.tolist()
    for shift, certified in ((1e-7, False), (1e-3, True)):
        scores = twin(images.double())[0]
        model[1][1].bias[first] += (scores[second] - scores[first] + shift).float()
        twin = in_double(model)
        assert (radii_of(model, images)[0].radius > 0) is certified


def test_the_reason_names_the_constant_of_the_encoder():
    model, images = behind_an_ordinary_encoder(), random_images(12, 3)
    reasons = [r.reason for r in radii_of(model, images, name="target-seeking") if r.radius > 0]
    assert reasons
    assert all("behind an encoder of Lipschitz constant" in reason for reason in reasons)
    through = radii_of(model, images, Norm.LINF, "target-seeking")
    assert all("l2 ball" in r.reason for r in through if r.radius > 0)


class Doubled(nn.Sequential):
    def forward(self, z):
        return 2 * super().forward(z)


class Own(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


def hooked() -> nn.Module:
    model = perceptron()
    model.body[-1].register_forward_hook(lambda *call: 2 * call[2])
    return model


def patched() -> nn.Module:
    model = perceptron()
    model.forward = lambda images: images.flatten(1)[:, :4]
    return model


def continuous_net() -> nn.Module:
    return ContinuousNet(NORMALISE, 1, [8], [2], [], FixedStepSolver("euler", 2), 3)


REFUSED = {
    "a neural ODE": (lambda: Blueprint().build(), "is a neural ODE"),
    "ContinuousNet": (continuous_net, "no useful Lipschitz constant"),
    "an unknown model": (Own, "what a Own computes"),
    "an unknown layer": (
        lambda: nn.Sequential(nn.Flatten(), nn.Tanh(), nn.Linear(PIXELS, 3)),
        "proved for its Tanh",
    ),
    "a container of one's own": (
        lambda: nn.Sequential(nn.Flatten(), Doubled(nn.Linear(PIXELS, 3))),
        "proved for its Doubled",
    ),
    "a model in a container of one's own": (
        lambda: Doubled(nn.Flatten(), nn.Linear(PIXELS, 3)),
        "what a Doubled computes",
    ),
    "a hook on the last layer": (hooked, "proved for its Linear"),
    "another forward": (patched, "what a ResidualClassifier computes"),
    "a batch norm in training mode": (
        lambda: convolutional().train(),
        "proved for its BatchNorm2d",
    ),
    "weights in float64": (lambda: linear().double(), "not all finite numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_without_a_proof_is_refused_with_the_reason(case):
    build, reason = REFUSED[case]
    model = build()
    assert reason in CERTIFICATE.refusal(model, Norm.L2)
    with pytest.raises(ValueError, match="without"):
        CERTIFICATE.certify(model, random_images(2, 0), torch.tensor([0, 0]), Norm.L2)


def test_nested_sequences_are_one_sequence_of_layers():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(4, 2))))
    assert [type(layer) for layer in layers_of(model)] == [nn.Flatten, nn.ReLU, nn.Linear]
