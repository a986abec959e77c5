"""Differentiable boxes: they hold what is sampled, their gradients are those of the weights."""

import pytest
import torch
from torch import Tensor, nn

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import ContinuousNet, ConvODENet
from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.programs.graph import Refusal
from robustness.programs.live import LiveProgram

SHAPE = (1, 6, 6)


def lyanet(variant: str, method: str = "euler") -> NeuralODEClassifier:
    torch.manual_seed(0)
    encoder = ConvReLUEncoder(SHAPE, [4], [2], 9, 4)
    field = LyaNetField(3, 3, variant, 3.0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    normalise = Normalise([0.1], [0.5])
    return NeuralODEClassifier(normalise, encoder, field, FixedStepSolver(method, 2), 3)


def conv_ode() -> nn.Module:
    torch.manual_seed(0)
    solver = FixedStepSolver("euler", 2)
    return ConvODENet(Normalise([0.1], [0.5]), 1, 4, 2, 1, solver, 3)


def filled(gathered: bool) -> nn.Module:
    torch.manual_seed(0)
    solver, normalise = FixedStepSolver("euler", 2), Normalise([0.1], [0.5])
    model = ContinuousNet(normalise, 1, [5], [2], [3], solver, 3, False, 2, gathered, SHAPE[1:])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def leads(logits: Tensor, labels: Tensor) -> Tensor:
    """Of the label over the other classes, in their order."""
    pairs = zip(logits, labels, strict=True)
    return torch.stack([torch.cat([z[y] - z[:y], z[y] - z[y + 1 :]]) for z, y in pairs])


@pytest.mark.parametrize(
    "model",
    [
        lyanet("simplex", "heun2"),
        lyanet("normalised"),
        conv_ode(),
        filled(gathered=False),
        filled(gathered=True),
    ],
    ids=["simplex", "normalised", "conv-ode", "filled", "gathered"],
)
def test_margins_of_sampled_images_are_above_the_bounds_which_are_exact_at_the_image(model) -> None:
    images, labels = torch.rand(2, *SHAPE), torch.tensor([0, 2])
    live = LiveProgram(model, SHAPE)
    exact = leads(model(images), labels)
    torch.testing.assert_close(live.reach(images, labels, 0.0).margins, exact, rtol=1e-4, atol=1e-4)
    bound = live.reach(images, labels, 0.02).margins
    noise = 2 * torch.rand(100, *images.shape) - 1
    noise[::2] = noise[::2].sign()
    moved = (images + 0.02 * noise).clamp(0, 1).flatten(0, 1)
    with torch.no_grad():
        sampled = leads(model(moved), labels.repeat(100))
    lowest = sampled.view(100, *exact.shape).amin(dim=0)
    assert (bound <= lowest + 1e-5).all()
    assert (bound < exact - 1e-6).all()
    # At the image the bound would not hold for the others.
    assert not (exact <= lowest + 1e-5).all()


def test_the_bound_of_euler_steps_cancels_what_the_solver_adds_and_takes_away() -> None:
    """Of eta' = W x - eta the margin is c (w_y - w_j) x exactly, c = 1 - (1 - h)^k."""

    class Relaxing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(36, 3, bias=False)

        def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
            return self.head(features) - state

    torch.manual_seed(1)
    field = Relaxing()
    solver = FixedStepSolver("euler", 4)
    model = NeuralODEClassifier(Normalise([0.0], [1.0]), nn.Flatten(), field, solver, 3)
    images, labels = 0.5 + 0.1 * torch.rand(2, *SHAPE), torch.tensor([1, 1])
    normals = field.head.weight[1] - field.head.weight[[0, 2]]
    expected = (1 - 0.75**4) * (images.flatten(1) @ normals.T - 0.1 * normals.abs().sum(dim=1))
    found = LiveProgram(model, SHAPE).reach(images, labels, 0.1).margins
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [lyanet("simplex"), conv_ode()], ids=["lyanet", "conv-ode"])
def test_gradients_of_the_bound_are_its_finite_differences(model) -> None:
    """Weights that enter by what is computed from them alone, as at eta(0), have theirs too."""
    images, labels = torch.rand(2, *SHAPE), torch.tensor([0, 2])
    live = LiveProgram(model, SHAPE)

    def bound() -> Tensor:
        reach = live.reach(images, labels, 0.01)
        return reach.margins.sum() + sum(margins.sum() for margins in reach.steered)

    model.zero_grad()
    bound().backward()
    weights = list(model.parameters())
    assert all(parameter.grad is not None for parameter in weights)
    for part in (weights[:2], weights[2:]):  # the first convolution's, and all others
        directions = [torch.randn_like(parameter) for parameter in part]
        step = 1e-3 / max(float(direction.norm()) for direction in directions)
        values = []
        with torch.no_grad():
            for move in (step, -2 * step, step):
                for parameter, direction in zip(part, directions, strict=True):
                    parameter.add_(move * direction)
                values.append(float(bound()))
        slope = (values[0] - values[1]) / (2 * step)
        expected = sum(
            float((parameter.grad * direction).sum())
            for parameter, direction in zip(part, directions, strict=True)
        )
        assert slope == pytest.approx(expected, rel=0.05, abs=0.02)


def test_bounds_follow_the_parameters_and_have_finite_gradients_where_boxes_are_wide() -> None:
    model, images = lyanet("simplex"), torch.rand(2, *SHAPE)
    labels = torch.tensor([0, 2])
    live = LiveProgram(model, SHAPE)
    before = live.reach(images, labels, 0.0).margins
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)
    after = live.reach(images, labels, 0.0).margins
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, leads(model(images), labels), rtol=1e-3, atol=1e-3)
    live.reach(images, labels, 0.5).margins.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_a_model_that_is_not_recorded_is_refused() -> None:
    model = lyanet("simplex")
    model.solver = AdaptiveSolver()
    with pytest.raises(Refusal, match="path depends on the image"):
        LiveProgram(model, SHAPE)
    assert model.training
