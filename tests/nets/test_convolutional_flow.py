import math

import pytest
import torch
from torch import nn

from robustness.nets.config import ConvContractiveFlowConfig
from robustness.nets.encoders import (
    ChannelPad,
    ConvContractiveFlowEncoder,
    ConvContractiveStep,
    FlowStage,
    constrain,
    release,
)
from robustness.numerics.norms import conv_spectral_bound


def flow(size: int = 8) -> ConvContractiveFlowEncoder:
    torch.manual_seed(0)
    stages = [FlowStage(2, 6, 2, 5, 3), FlowStage(2, 24, 2, 8, 3), FlowStage(2, 96, 1, 7, 1)]
    return ConvContractiveFlowEncoder((1, size, size), stages)


def train_a_little(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Steps that would blow the weights up, were they not constrained."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(10):
        optimiser.zero_grad()
        (-model(torch.rand(4, *shape)).square().sum()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def test_a_step_with_a_single_pixel_kernel_is_the_dense_step_at_every_pixel() -> None:
    step = ConvContractiveStep(2, 1, 1, (2, 2))
    with torch.no_grad():
        step.weight.copy_(torch.tensor([0.6, 0.8]).view(1, 2, 1, 1))
        step.bias.fill_(-0.5)
    z = torch.zeros(1, 2, 2, 2)
    z[0, :, 0, 0] = torch.tensor([1.0, 1.0])
    # W z + b = 1.4 - 0.5 = 0.9 at the first pixel; elsewhere -0.5, which relu stops.
    expected = z.clone()
    expected[0, :, 0, 0] = torch.tensor([1.0 - 0.9 * 0.6, 1.0 - 0.9 * 0.8])
    torch.testing.assert_close(step(z), expected)


def test_the_jacobian_of_a_step_is_symmetric_with_eigenvalues_between_minus_one_and_one() -> None:
    torch.manual_seed(2)
    step = ConvContractiveStep(2, 3, 3, (4, 4))
    release(step)
    z = torch.randn(1, 2, 4, 4)
    jacobian = torch.autograd.functional.jacobian(lambda v: step(v), z).reshape(32, 32)
    torch.testing.assert_close(jacobian, jacobian.T)
    eigenvalues = torch.linalg.eigvalsh(jacobian)
    assert float(eigenvalues.min()) >= -1 - 1e-5
    assert float(eigenvalues.max()) <= 1 + 1e-5
    # The step moves: it is not the identity.
    assert float(eigenvalues.min()) < 0.9


def test_the_flow_never_takes_two_images_further_apart() -> None:
    encoder = flow()
    constrain(encoder)
    train_a_little(encoder, (1, 8, 8))
    release(encoder)
    generator = torch.Generator().manual_seed(5)
    for scale in (1e-3, 0.1, 1.0):
        a = torch.rand(200, 1, 8, 8, generator=generator)
        b = a + scale * torch.randn(200, 1, 8, 8, generator=generator)
        before = (a - b).flatten(1).norm(dim=1)
        after = (encoder(a) - encoder(b)).norm(dim=1)
        assert bool((after <= before * (1 + 1e-4) + 1e-6).all())


def test_deployed_kernels_pass_the_proven_bound_whatever_training_did() -> None:
    encoder = flow()
    constrain(encoder)
    train_a_little(encoder, (1, 8, 8))
    release(encoder)
    steps = [m for m in encoder.modules() if isinstance(m, ConvContractiveStep)]
    assert len(steps) == 5
    for step in steps:
        assert conv_spectral_bound(step.weight, step.size, step.padding) ** 2 <= 2


def test_a_kernel_that_was_never_constrained_is_still_released_within_the_bound() -> None:
    step = ConvContractiveStep(3, 4, 3, (5, 5))
    with torch.no_grad():
        step.weight.mul_(100)
    release(step)
    norm = conv_spectral_bound(step.weight, step.size, step.padding)
    assert norm <= math.sqrt(2)
    assert norm == pytest.approx(math.sqrt(2), rel=1e-5)


def test_release_leaves_the_plain_state_that_the_architecture_loads() -> None:
    encoder = flow()
    names = set(encoder.state_dict())
    constrain(encoder)
    assert set(encoder.state_dict()) != names
    release(encoder)
    assert set(encoder.state_dict()) == names
    images = torch.rand(3, 1, 8, 8)
    fresh = flow()
    fresh.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(fresh(images), encoder(images), rtol=0, atol=0)


def test_the_constrained_norm_is_close_to_the_bound_that_release_enforces() -> None:
    torch.manual_seed(1)
    step = ConvContractiveStep(4, 6, 3, (7, 7))
    constrain(step)
    norm = conv_spectral_bound(step.weight.detach(), step.size, step.padding)
    assert norm == pytest.approx(math.sqrt(2), rel=0.02)


def test_evaluation_leaves_the_norm_estimate_of_training_alone() -> None:
    step = ConvContractiveStep(2, 3, 3, (4, 4))
    constrain(step)
    step.eval()
    before = {key: value.clone() for key, value in step.state_dict().items()}
    step(torch.rand(1, 2, 4, 4))
    for key, value in step.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_padding_with_channels_changes_no_distance() -> None:
    a, b = torch.rand(5, 2, 3, 3), torch.rand(5, 2, 3, 3)
    pad = ChannelPad(4)
    assert pad(a).shape == (5, 6, 3, 3)
    torch.testing.assert_close((pad(a) - pad(b)).norm(), (a - b).norm())


def test_the_number_of_features_follows_from_the_stages() -> None:
    config = ConvContractiveFlowConfig.model_validate(
        {
            "kind": "conv-contractive-flow",
            "stages": [{"channels": 8, "steps": 1, "hidden": 4}],
        }
    )
    encoder, features = config.build((1, 6, 6), None)
    assert features == 8 * 3 * 3
    assert encoder(torch.rand(2, 1, 6, 6)).shape == (2, features)


def test_blocks_that_do_not_divide_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match="divide 7 x 7 pixels"):
        ConvContractiveFlowEncoder((1, 7, 7), [FlowStage(2, 4, 1, 2, 3)])


def test_a_stage_that_would_drop_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4 channels or more, got 3"):
        ConvContractiveFlowEncoder((1, 8, 8), [FlowStage(2, 3, 1, 2, 3)])


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="odd kernel"):
        ConvContractiveStep(2, 2, 2, (4, 4))
