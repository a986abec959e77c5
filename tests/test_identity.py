"""A model is told by what it is made of and by what it computes, or what is not told is named."""

import functools
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustness.errors import UsageError
from robustness.identity import describe, fingerprint, probe_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.zoo import load_model, zoo_names

SHAPE = (1, 8, 8)


def flow() -> NeuralODEClassifier:
    torch.manual_seed(0)
    return NeuralODEClassifier(
        Normalise([0.5], [0.5]),
        nn.Flatten(),
        TargetSeekingField(10, 64, 1.0, 0.5),
        FixedStepSolver("euler", 10),
        10,
    ).eval()


@dataclass
class Settings:
    scale: float = 1.0


def scaled(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda x: scale * x


class Scaling(nn.Module):
    """Keeps one attribute of a kind of choice."""

    strength = 1.0

    def __init__(self, kept: object) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :10]


def test_the_same_model_built_twice_is_the_same() -> None:
    assert describe(flow()) == describe(flow())
    assert describe(flow()).unidentified == ()
    assert fingerprint(flow(), SHAPE) == fingerprint(flow(), SHAPE) is not None


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("normalise.std", lambda m: m.normalise.std.mul_(2)),
        ("field.gain", lambda m: setattr(m.field, "gain", 1.0 + 2**-52)),
        ("field.coupling", lambda m: setattr(m.field, "coupling", 0.25)),
        ("field.rate", lambda m: setattr(m.field, "rate", 2.0)),
        ("initial", lambda m: setattr(m, "initial", 1.0)),
        ("solver.steps", lambda m: setattr(m, "solver", replace(m.solver, steps=11))),
        ("field.head.weight", lambda m: m.field.head.weight.data[0].neg_()),
        ("encoder", lambda m: setattr(m, "encoder", nn.Sequential(nn.Flatten()))),
        ("encoder", lambda m: m.encoder.train()),
        ("encoder.hidden", lambda m: setattr(m.encoder, "hidden", None)),
        ("encoder._forward_hooks.0", lambda m: m.encoder.register_forward_hook(print)),
    ],
)
def test_whatever_a_model_is_made_of_tells_it_apart(
    path: str, change: Callable[[nn.Module], object]
) -> None:
    other = flow()
    change(other)
    assert describe(flow()).difference(describe(other)) == path
    assert describe(flow()).digest != describe(other).digest


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (1.0, 1.5),
        (1, True),
        ((1, (2, 3)), (1, (2, 4))),
        ([1, 2], [2, 1]),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (Settings(), Settings(2.0)),
        (types.SimpleNamespace(scale=1), types.SimpleNamespace(scale=2)),
        (torch.ones(2), torch.zeros(2)),
        (torch.float32, torch.float64),
        (np.float32(1), np.float64(1)),
        (np.ones(2), np.zeros(2)),
        (torch.relu, torch.tanh),
        (scaled(1.0), scaled(2.0)),
        (functools.partial(torch.relu, out=None), functools.partial(torch.relu)),
        (Settings(1).__repr__, Settings(2).__repr__),
        ([nn.Linear(1, 1)], [nn.Linear(1, 1)]),
    ],
    ids=lambda value: re.sub(r" at 0x[0-9a-f]+", "", str(value)),  # alike in every process
)
def test_an_attribute_of_any_of_these_kinds_is_told(one: object, two: object) -> None:
    first, second = describe(Scaling(one)), describe(Scaling(two))
    assert first.digest != second.digest
    assert first.unidentified == second.unidentified == ()
    assert first.digest == describe(Scaling(one)).digest


@pytest.mark.parametrize("kept", [object(), iter([1]), np.array([object()]), torch.Generator()])
def test_an_attribute_of_another_kind_is_named(kept: object) -> None:
    (name,) = describe(nn.Sequential(Scaling([0, kept]))).unidentified
    assert name.startswith("0.kept.1 (")


def test_what_contains_itself_is_described_in_finite_time() -> None:
    kept: list[object] = [1]
    kept.append(kept)
    assert describe(Scaling(kept)).unidentified == ()


def test_a_constant_of_a_users_class_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(Scaling(None))
    monkeypatch.setattr(Scaling, "strength", 2.0)
    assert before.difference(describe(Scaling(None))) == f"{__name__}.Scaling.strength"


def test_probe_images_are_images_and_never_change() -> None:
    images = probe_images(SHAPE)
    assert images.shape == (5, *SHAPE)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert torch.equal(images, probe_images(SHAPE))


def test_a_fingerprint_is_of_each_image_alone_and_leaves_no_trace() -> None:
    sizes = []

    class Watching(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            sizes.append((len(images), torch.get_num_threads(), float(torch.tensor(1e-39) * 1)))
            return images.flatten(1)

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    fingerprint(Watching(), SHAPE)
    assert set(sizes) == {(1, 1, 0.0)}
    assert torch.get_num_threads() == 2
    assert float(torch.tensor(1e-39) * 1) > 0
    assert torch.equal(state, torch.get_rng_state())
    torch.set_num_threads(threads)
    with reproducible_arithmetic():
        fingerprint(Watching(), SHAPE)
        assert float(torch.tensor(1e-39) * 1) == 0


class Changing(nn.Module):
    """Another function every `period` calls, or after every so many."""

    def __init__(self, answer: Callable[[int], float]) -> None:
        super().__init__()
        self.calls, self.answer = 0, answer

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) + self.answer(self.calls)


@pytest.mark.parametrize("period", [2, 3, 4, 5, 6, 7, 10])
def test_an_output_that_changes_between_calls_has_no_fingerprint(period: int) -> None:
    assert fingerprint(Changing(lambda calls: calls % period == 0), SHAPE) is None


def test_a_random_output_has_no_fingerprint() -> None:
    assert fingerprint(Changing(lambda _: float(torch.rand(()))), SHAPE) is None
    assert fingerprint(nn.Sequential(nn.Dropout(), nn.Flatten()).train(), SHAPE) is None


def test_a_model_that_fails_still_has_a_fingerprint() -> None:
    nothing = fingerprint(nn.Linear(3, 3), SHAPE)
    numbers = fingerprint(Changing(lambda _: torch.nan), SHAPE)
    tuples = fingerprint(nn.MaxPool2d(2, return_indices=True), SHAPE)
    assert len({nothing, numbers, tuples, None}) == 4
    assert numbers == fingerprint(Changing(lambda _: -torch.nan), SHAPE)


def test_the_zoo_is_told_apart_completely() -> None:
    found = {}
    for name in zoo_names("digits"):
        loaded = load_model(name)
        assert loaded.structure.unidentified == ()
        found[name] = loaded.structure.digest, fingerprint(loaded.module, SHAPE)
        again = load_model(name)
        assert found[name] == (again.structure.digest, fingerprint(again.module, SHAPE))
    assert len(set(found.values())) == len(found)


FACTORY = """
import itertools
import torch
from torch import nn

COUNT = itertools.count()

def untold():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def counted():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    network.rate = next(COUNT)
    return network
"""


@pytest.mark.parametrize(("factory", "part"), [("untold", "1.weight"), ("counted", "rate")])
def test_a_factory_that_gives_another_model_at_every_call_is_named(
    user_code: Callable[[str], str], factory: str, part: str
) -> None:
    with pytest.raises(UsageError, match=rf"same model at every call.*\({part} differs\)"):
        load_model(f"{user_code(FACTORY)}:{factory}")


def test_a_users_model_is_named_by_the_source_of_its_classes(
    user_code: Callable[[str], str],
) -> None:
    source = (
        "from torch import nn\nclass Net(nn.Flatten):\n    def forward(self, x):\n"
        "        return 1.0 * super().forward(x)\n"
    )
    one = load_model(f"{user_code(source)}:Net")
    two = load_model(f"{user_code(source.replace('1.0', '2.0'))}:Net")
    assert one.digest == one.structure.digest != two.digest
    assert f"source of {type(one.module).__module__}" in one.structure.parts
    assert type(one.module).__module__ in sys.modules
