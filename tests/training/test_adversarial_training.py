import pytest
import torch
from torch import nn

from robustness.threat import Norm
from robustness.training.adversarial import adversarial, perturb


def linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
    return nn.Sequential(nn.Flatten(), layer)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_the_worst_image_of_a_linear_model_in_l_infinity_is_a_corner_of_the_ball() -> None:
    model = linear([[1.0, -2.0], [0.0, 0.0]])
    images = torch.full((3, 1, 1, 2), 0.5)
    found = perturb(model, images, torch.zeros(3, dtype=torch.long), Norm.LINF, 0.1, 5, generator())
    expected = torch.tensor([0.4, 0.6]).expand(3, 1, 1, 2)
    torch.testing.assert_close(found, expected)


def test_the_worst_image_of_a_linear_model_in_l2_lies_along_its_gradient() -> None:
    model = linear([[3.0, 4.0], [0.0, 0.0]])
    images = torch.full((2, 1, 1, 2), 0.5)
    labels = torch.zeros(2, dtype=torch.long)
    found = perturb(model, images, labels, Norm.L2, 0.2, 40, generator(), step_size=0.2)
    expected = torch.tensor([0.5 - 0.12, 0.5 - 0.16]).expand(2, 1, 1, 2)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("norm", list(Norm))
def test_perturbed_images_stay_in_the_ball_and_in_the_pixel_box(norm: Norm) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    images = torch.rand(20, 3, 2, 2).round(decimals=1)
    labels = torch.randint(0, 5, (20,))
    found = perturb(model, images, labels, norm, 0.3, 3, generator())
    assert float(norm.distance(found, images).max()) <= 0.3 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert not found.requires_grad


def test_the_attack_leaves_mode_statistics_and_gradients_of_the_model_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    perturb(
        model, torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 2, 0]), Norm.LINF, 0.1, 3, generator()
    )
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_the_same_seed_finds_the_same_images() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3))
    images, labels = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    first = perturb(model, images, labels, Norm.L2, 0.5, 2, generator())
    second = perturb(model, images, labels, Norm.L2, 0.5, 2, generator())
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_the_adversarial_loss_is_the_cross_entropy_at_the_edge_of_the_ball() -> None:
    model = linear([[1.0, 0.0], [0.0, 1.0]])
    images = torch.full((1, 1, 1, 2), 0.5)
    loss = adversarial(model, images, torch.tensor([0]), Norm.LINF, 0.1, 4, generator())
    # The logits are the pixels: 0.4 and 0.6 at the worst.
    expected = nn.functional.cross_entropy(torch.tensor([[0.4, 0.6]]), torch.tensor([0]))
    torch.testing.assert_close(loss, expected)
