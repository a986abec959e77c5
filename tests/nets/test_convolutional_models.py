import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from robustness.nets.config import ConvEncoderConfig, ModelConfig
from robustness.nets.continuous import ContinuousNet, ConvField
from robustness.nets.convolutions import ConvEncoder, ConvResidualBlock, after_stride
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver

MODEL: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)


def build(settings: dict, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Module:
    torch.manual_seed(0)
    return MODEL.validate_python(settings).build(shape, 10).eval()


RESIDUAL = {"kind": "residual-conv", "widths": [4, 8], "blocks": 2, "stem_stride": 2}
CONTINUOUS = {
    "kind": "continuous-net",
    "widths": [8, 16],
    "strides": [2, 2],
    "stem": [4],
    "solver": {"kind": "fixed", "method": "euler", "steps": 3},
}


@pytest.mark.parametrize("settings", [RESIDUAL, CONTINUOUS], ids=lambda s: s["kind"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_model_maps_pixels_to_logits_one_image_at_a_time(
    settings: dict, shape: tuple[int, int, int]
) -> None:
    model = build(settings, shape)
    images = torch.rand(5, *shape)
    together = model(images)
    assert together.shape == (5, 10)
    alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(28, 2), (7, 2), (7, 1), (32, 4)])
def test_the_size_behind_a_stride_is_the_convolutions_own(size: int, stride: int) -> None:
    out = nn.Conv2d(1, 1, 3, stride, 1)(torch.rand(1, 1, size, size))
    assert out.shape[2] == after_stride(size, stride)


def test_an_encoder_gives_as_many_features_as_asked_for() -> None:
    encoder = ConvEncoder((3, 9, 7), [4, 6], [2, 1], 5)
    assert encoder(torch.rand(2, 3, 9, 7)).shape == (2, 5)


def test_an_encoder_needs_one_stride_per_width() -> None:
    with pytest.raises(ValidationError, match="as many strides as widths, got 1 for 2"):
        ConvEncoderConfig(kind="conv", widths=[4, 8], strides=[2])


def test_a_residual_block_whose_convolutions_vanish_is_the_relu() -> None:
    block = ConvResidualBlock(3, 3, 1).eval()
    for parameter in block.residual.parameters():
        nn.init.zeros_(parameter)
    z = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(block(z), z.relu())


class Decay(nn.Module):
    """dz/dt = -z."""

    def forward(self, t: torch.Tensor, state: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        del t, features
        return -state


def test_a_block_is_solved_over_the_horizon_by_the_solver_named() -> None:
    solver = FixedStepSolver("euler", 4, 2.0)
    net = ContinuousNet(Normalise([0.0], [1.0]), 1, [2], [1], [], solver, 3)
    net.fields[0] = Decay()
    start = torch.rand(2, 2, 4, 4)
    states = net.flow(0, start)
    # Euler with h = 1/2 halves the state in every step.
    assert states.shape == (5, 2, 2, 4, 4)
    torch.testing.assert_close(states[-1], start / 16)


def test_the_remaining_network_of_the_last_state_gives_the_models_own_logits() -> None:
    model = build(CONTINUOUS)
    assert isinstance(model, ContinuousNet)
    images = torch.rand(3, 1, 28, 28)
    first = model.flow(0, model.transitions[0](model.normalise(images)))[-1]
    second = model.flow(1, model.transitions[1](first))[-1]
    torch.testing.assert_close(model.remaining(0, first), model(images))
    torch.testing.assert_close(model.remaining(1, second), model(images))


def test_a_convolutional_velocity_is_blind_to_the_batch_while_training() -> None:
    field = ConvField(16).train()
    state = torch.randn(4, 16, 5, 5)
    nothing = torch.zeros(4, 0)
    together = field(torch.zeros(()), state, nothing)
    alone = field(torch.zeros(()), state[:1], nothing[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)


def test_a_continuous_net_without_norms_has_none_and_its_digest_says_so() -> None:
    configs = [MODEL.validate_python(CONTINUOUS | more) for more in ({}, {"norms": False})]
    normed, plain = (config.build((1, 28, 28), 3) for config in configs)
    norms = nn.BatchNorm2d | nn.GroupNorm
    assert any(isinstance(module, norms) for module in normed.modules())
    assert not any(isinstance(module, norms) for module in plain.modules())
    assert all(layer.bias is not None for layer in plain.modules() if isinstance(layer, nn.Conv2d))
    assert plain(torch.rand(2, 1, 28, 28)).shape == (2, 3)
    # An entry from before the setting keeps its digest.
    assert "norms" not in configs[0].model_dump()
    assert configs[1].model_dump()["norms"] is False
