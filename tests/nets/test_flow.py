"""What a neural ODE predicts without its flow, where that can be told by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier
from robustness.nets.continuous import ContinuousNet, ConvODENet
from robustness.nets.encoders import MLPEncoder, Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.nets.flow import course, without_flow
from robustness.nets.solvers import FixedStepSolver

IMAGES = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Turning(nn.Module):
    """Starts towards class 0, and from half of the horizon on runs towards class 1."""

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        del features
        towards = [1.0, 0.0] if float(t) < 0.5 else [0.0, 9.0]
        return state.new_tensor(towards).expand_as(state)


def neural_ode(field: nn.Module, classes: int, features: int) -> NeuralODEClassifier:
    torch.manual_seed(0)
    encoder = MLPEncoder(16, [8], features)
    solver = FixedStepSolver("euler", 4)
    return NeuralODEClassifier(Normalise([0.3], [0.5]), encoder, field, solver, classes).eval()


def test_without_its_flow_a_neural_ode_predicts_where_it_starts_to_move() -> None:
    model = neural_ode(Turning(), classes=2, features=4)
    flowless = without_flow(model)
    assert flowless is not None
    assert model(IMAGES).argmax(dim=1).eq(1).all()
    assert flowless(IMAGES).argmax(dim=1).eq(0).all()


def test_without_its_flow_a_target_seeking_model_is_its_head_on_the_features() -> None:
    torch.manual_seed(0)
    field = TargetSeekingField(5, 4, gain=10.0, coupling=1.0)
    model = neural_ode(field, classes=5, features=4)
    flowless = without_flow(model)
    assert flowless is not None
    head = field.head(model.encoder((IMAGES - 0.3) / 0.5)).argmax(dim=1)
    assert len(head.unique()) > 1
    assert torch.equal(flowless(IMAGES).argmax(dim=1), head)


def continuous_net() -> ContinuousNet:
    torch.manual_seed(0)
    solver = FixedStepSolver("rk4", 3)
    return ContinuousNet(Normalise([0.0], [1.0]), 1, [4, 6], [1, 2], [], solver, 5).eval()


def test_a_conv_ode_net_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    solver = FixedStepSolver("euler", 2)
    model = ConvODENet(Normalise([0.3], [0.5]), 1, 3, 2, 1, solver, 5).double().eval()
    images = IMAGES.double()

    def convolved(layer: nn.Conv2d, t: float, state: Tensor) -> Tensor:
        # The channel of the time adds t times its kernel, summed where it lies on the image.
        ones = torch.ones_like(state[:, :1])
        of_time = functional.conv2d(ones, layer.weight[:, :1], padding=1)
        of_state = functional.conv2d(state, layer.weight[:, 1:], layer.bias, padding=1)
        return (of_state + t * of_time).relu()

    start = model.conv2(model.conv1((images - 0.3) / 0.5).relu()).relu()
    state = start
    for t in (0.0, 0.5):
        field = model.field
        state = state + 0.5 * convolved(field.conv2, t, convolved(field.conv1, t, state))
    torch.testing.assert_close(model(images), model.head(state.mean(dim=(2, 3))))
    flowless, run = without_flow(model), course(model, images)
    assert flowless is not None
    torch.testing.assert_close(flowless(images), model.head(start.mean(dim=(2, 3))))
    assert torch.equal(run.logits, model(images))
    assert run.nfe == 2


def test_without_its_flows_a_continuous_net_is_itself_with_blocks_that_stand_still() -> None:
    model = continuous_net()
    flowless = without_flow(model)
    assert flowless is not None
    without = flowless(IMAGES)
    assert not torch.allclose(model(IMAGES), without, atol=1e-3)
    for field in model.fields:
        nn.init.zeros_(field.layers[-1].weight)
        nn.init.zeros_(field.layers[-1].bias)
    assert torch.equal(model(IMAGES), without)


def test_filled_channels_leave_the_head_nothing_but_what_the_flow_brings() -> None:
    torch.manual_seed(0)
    solver, normalise = FixedStepSolver("euler", 2), Normalise([0.0], [1.0])
    model = ContinuousNet(normalise, 1, [4, 6], [1, 2], [3], solver, 5, False, 2, size=(4, 4))
    flowless = without_flow(model)
    assert flowless is not None
    torch.testing.assert_close(flowless(IMAGES), model.head[-1].bias.expand(len(IMAGES), 5))
    assert (model(IMAGES).std(dim=0) > 0).all()
    # By hand: the second block's two steps from channels of zeros, then the head on these alone.
    start = model.flow(0, model.transition(0, IMAGES))[-1]
    state = torch.cat([model.transitions[1][:2](start), torch.zeros(len(IMAGES), 2, 1, 1)], dim=1)
    for _ in range(2):
        state = state + 0.5 * model.fields[1].layers(state)
    torch.testing.assert_close(model(IMAGES), model.head[-1](state[:, 4:].flatten(1)))


def test_a_gathered_state_is_one_pixel_set_by_all_in_front_of_it() -> None:
    torch.manual_seed(0)
    solver, normalise = FixedStepSolver("euler", 2), Normalise([0.0], [1.0])
    model = ContinuousNet(normalise, 1, [6], [1], [3], solver, 5, False, 2, True, (4, 4))
    stem, whole = model.transitions[0][0], model.transitions[0][2]
    # By hand: a matrix on all that the stem gives, and a field of matrices.
    seen = stem(IMAGES).relu().flatten(1)
    state = (seen @ whole.weight.flatten(1).mT + whole.bias).relu()
    state = torch.cat([state, torch.zeros(len(IMAGES), 2)], dim=1)
    first, second = model.fields[0].layers[1], model.fields[0].layers[3]
    for _ in range(2):
        hidden = (state.relu() @ first.weight.flatten(1).mT + first.bias).relu()
        state = state + 0.5 * (hidden @ second.weight.flatten(1).mT + second.bias)
    torch.testing.assert_close(model(IMAGES), model.head[-1](state[:, 4:]))


def test_channels_are_filled_and_gathered_within_bounds() -> None:
    solver, normalise = FixedStepSolver("euler", 2), Normalise([0.0], [1.0])
    with pytest.raises(ValueError, match="fewer filled channels than the last width 4"):
        ContinuousNet(normalise, 1, [4], [2], [], solver, 5, filled=4, size=(4, 4))
    with pytest.raises(ValueError, match="norms = false with gathered"):
        ContinuousNet(normalise, 1, [4], [2], [], solver, 5, gathered=True, size=(4, 4))


def test_a_model_without_an_ode_has_no_flow() -> None:
    assert without_flow(ResidualClassifier(Normalise([0.0], [1.0]), 16, 8, 1, 5)) is None
    assert without_flow(nn.Flatten()) is None


@pytest.mark.parametrize("model", [continuous_net(), neural_ode(Turning(), 2, 4)])
def test_a_course_ends_in_the_deployed_logits(model: nn.Module) -> None:
    run = course(model, IMAGES)
    assert torch.equal(run.logits, model(IMAGES))
    # Three steps of rk4 in each of two blocks; four Euler steps.
    assert run.nfe == (24 if isinstance(model, ContinuousNet) else 4)
