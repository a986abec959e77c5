"""What is recorded, what is refused, and that a record is the program."""

import numpy as np
import pytest
import torch
from solved import Solved
from torch import Tensor, nn

from robustness.programs.graph import Refusal
from robustness.programs.record import record
from robustness.zoo import load_model

SHAPE = (1, 4, 4)


class Does(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(self.function(images.flatten(1)))  # type: ignore[operator]


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_a_solver_called_in_forward_unrolls_and_the_record_gives_the_same_bits(method: str) -> None:
    model = Solved(method).eval()
    program = record(model, SHAPE)
    assert program.kinds["tanh"] == 3 * {"euler": 1, "midpoint": 2, "rk4": 4}[method]
    generator = torch.Generator().manual_seed(5)
    for image in torch.rand((5, 1, *SHAPE), generator=generator):
        assert torch.equal(program.run(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits/lyanet", "digits/node", "digits/lyanet-certified"])
def test_zoo_entries_are_recorded_with_every_step_of_their_solvers(name: str) -> None:
    loaded = load_model(name)
    program = record(loaded.module, (1, 8, 8))
    image = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(6))
    assert torch.equal(program.run(image), loaded.module(image))
    assert len(program.nodes) > 100


def _through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.tanh(x.numpy()))


def _through_a_list(x: Tensor) -> Tensor:
    return torch.tensor(x.tolist())


def _into_its_own_weights(x: Tensor) -> Tensor:
    torch.zeros(1)
    WEIGHT.add_(x.mean())
    return x + WEIGHT


WEIGHT = torch.zeros(1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x if bool(x.sum() > 8) else -x, "the path depends on the image"),
        (lambda x: x * x.sum().item(), "the path depends on the image"),
        (lambda x: x[x > 0.5].sum().expand(1, 16), "the path depends on the image"),
        (lambda x: x + torch.randn(1, 16), "draws random numbers"),
        (lambda x: nn.functional.dropout(x, 0.5), "draws random numbers"),
        (_through_numpy, "leaves torch"),
        (_through_a_list, "leaves torch"),
        (_into_its_own_weights, "from outside the program"),
        (lambda x: torch.special.i0(x), "no rule"),
    ],
)
def test_what_cannot_speak_for_other_images_is_refused_in_words(function, reason) -> None:
    from robustness.programs.network import Network

    with pytest.raises(Refusal) as caught:
        Network(record(Does(function).eval(), SHAPE))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adaptive_solver_is_refused_because_its_steps_depend_on_the_image() -> None:
    with pytest.raises(Refusal, match="adaptive solvers"):
        record(Solved("dopri5").eval(), SHAPE)


def test_a_model_that_keeps_what_it_computed_is_left_as_it_was() -> None:
    class Keeps(nn.Module):
        kept: Tensor | None = None

        def forward(self, images: Tensor) -> Tensor:
            self.kept = images.flatten(1)[:, :3]
            return self.kept * 2

    model = Keeps().eval()
    record(model, SHAPE)
    assert type(model.kept) is Tensor


def test_writes_in_place_are_followed_through_views_of_the_same_memory() -> None:
    def function(x: Tensor) -> Tensor:
        buffer = torch.zeros(2, 16)
        row = buffer[1]
        buffer[0] = x[0]
        row += 3 * x[0]
        buffer.mul_(2)
        return row.unsqueeze(0) + buffer[:1]

    model = Does(function).eval()
    program = record(model, SHAPE)
    image = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(1))
    assert torch.equal(program.run(image), model(image))


def test_two_recordings_that_differ_in_a_constant_are_refused() -> None:
    calls = iter(range(100))

    with pytest.raises(Refusal, match="two recordings differ in a constant"):
        record(Does(lambda x: x * float(next(calls))).eval(), SHAPE)
