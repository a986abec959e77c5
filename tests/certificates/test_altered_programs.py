"""Programs that only look like those that the proofs are about: each is refused or exact.

Every one of these once had a certified radius inside which its prediction changed, or a bound
below the true norm.
"""

import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from robustness.certificates import CERTIFICATES, Kind, routine
from robustness.certificates.layers import bounds
from robustness.nets import solvers
from robustness.nets.classifiers import NeuralODEClassifier, ResidualBlock
from robustness.nets.encoders import Normalise, constrain
from robustness.nets.fields import TargetSeekingField
from robustness.nets.orthogonal import MaxMin, OrthogonalLinear
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics import arithmetic, norms
from robustness.numerics.norms import conv_spectral_bound, norm_at_any_size
from robustness.threat import Norm

SIDE = 6


def flow(encoder: nn.Module, features: int, normalise: Normalise | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = NeuralODEClassifier(
        normalise or Normalise([0.0], [1.0]),
        encoder,
        TargetSeekingField(2, features, 1.0, 0.5),
        FixedStepSolver("euler", 10),
        2,
    )
    return model.eval()


def images(channels: int = 1) -> Tensor:
    return torch.rand(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def proofs(model: nn.Module, norm: Norm) -> list[str]:
    """Certificates that would call a radius of this model certified."""
    found = []
    for name in routine():
        certificate = CERTIFICATES[name]
        if certificate.refusal(model, norm) is None:
            with torch.no_grad():
                label = model(images()).argmax(dim=1)
            (claim,) = certificate.certify(model, images(), label, norm)
            found += [name] if claim.kind is Kind.CERTIFIED and claim.radius > 0 else []
    return found


class Standardised(nn.Conv2d):
    """Weight standardisation as it is usually written."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.std(), bias)


class Loud(nn.Linear):
    def __call__(self, x: Tensor) -> Tensor:
        return 100 * super().__call__(x)


class Backwards(nn.Sequential):
    def __iter__(self):
        return reversed(list(super().__iter__()))


def standardised() -> nn.Module:
    return flow(nn.Sequential(Standardised(1, 2, 3, padding=1), nn.Flatten()), 2 * SIDE**2)


def loud() -> nn.Module:
    # Without biases a louder layer changes no prediction, and the old proof none of its margins.
    torch.manual_seed(0)
    layers = [nn.Flatten(), Loud(SIDE**2, 3, bias=False), nn.Linear(3, 2, bias=False)]
    return nn.Sequential(*layers).eval()


def loud_flow() -> nn.Module:
    return flow(nn.Sequential(nn.Flatten(), Loud(SIDE**2, 3)), 3)


def backwards() -> nn.Module:
    width = SIDE**2
    turned = Backwards(nn.Linear(width, width), nn.ReLU())
    return flow(nn.Sequential(nn.Flatten(), turned), width)


def parametrised() -> nn.Module:
    model = flow(nn.Sequential(nn.Flatten(), OrthogonalLinear(SIDE**2, 4)), 4)
    constrain(model)
    return model.eval()


def normed() -> nn.Module:
    layer = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(SIDE**2, 3))
    return nn.Sequential(nn.Flatten(), layer, nn.Linear(3, 2)).eval()


def compiled() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).eval()
    model[1].compile(backend="eager")
    return model


def mirrored() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2)
    model.normalise.std.neg_()
    return model


def repelled() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2)
    model.field.coupling = -100.0
    return model


def running_away() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2)
    model.field.rate = -1.0
    return model


def vanishing() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2).double()
    with torch.no_grad():
        model.field.head.weight[0, 0] = 1e-162
    return model


def not_numbers() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).eval()
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    return model


class Drifting(nn.Linear):
    """Its weight is another one at every look."""

    looks = 0

    @property
    def weight(self) -> Tensor:
        Drifting.looks += 1
        return dict(self.named_parameters())["weight"] * (1 + Drifting.looks % 2)


def drifting_layer(bias: bool) -> nn.Module:
    layer = nn.Linear(SIDE**2, 3, bias)
    layer.__class__ = Drifting
    return layer


class Moody(TargetSeekingField):
    """Its gain, a plain number in the class it comes from, is another one at every look."""

    looks = 0

    @property
    def gain(self) -> float:
        Moody.looks += 1
        return 1.0 + Moody.looks % 2

    @gain.setter
    def gain(self, value: float) -> None:
        pass


class Weights(Tensor):
    """Could do anything at every operation."""


class Looking(dict):
    def __getitem__(self, name: str) -> Tensor:
        return 2 * super().__getitem__(name)


def drifting() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), drifting_layer(False), nn.Linear(3, 2, bias=False)]
    return nn.Sequential(*layers).eval()


def drifting_flow() -> nn.Module:
    return flow(nn.Sequential(nn.Flatten(), drifting_layer(True)), 3)


def moody() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2)
    model.field = Moody(2, SIDE**2, 1.0, 0.5)
    return model.eval()


def shadowed() -> nn.Module:
    model = flow(nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)), 3)
    vars(model.encoder[1])["weight"] = torch.rand(3, SIDE**2)
    return model


def tensors_of_a_kind_of_their_own() -> nn.Module:
    model = flow(nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)), 3)
    vars(model.encoder[1])["_parameters"]["weight"] = torch.rand(3, SIDE**2).as_subclass(Weights)
    return model


def looked_up_otherwise() -> nn.Module:
    model = flow(nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3)), 3)
    state = vars(model.encoder[1])
    state["_parameters"] = Looking(state["_parameters"])
    return model


def solved_otherwise() -> nn.Module:
    model = flow(nn.Flatten(), SIDE**2)
    vars(model.solver)["solve"] = partial(FixedStepSolver.solve, model.solver)
    return model


def numbers_with_code() -> nn.Module:
    class Number(float):
        def __mul__(self, other: object) -> object:
            return 2 * other

    model = flow(nn.Flatten(), SIDE**2)
    model.field.gain = Number(1.0)
    return model


CASES = {case.__name__: case for case in (
    standardised, loud, loud_flow, backwards, parametrised, normed, compiled, mirrored, repelled,
    running_away, vanishing, not_numbers, drifting, drifting_flow, moody, shadowed,
    tensors_of_a_kind_of_their_own, looked_up_otherwise, solved_otherwise, numbers_with_code,
)}  # fmt: skip


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_certified_of_a_program_that_is_another(case: str, norm: Norm) -> None:
    assert proofs(CASES[case](), norm) == []


def otherwise(*arguments: object, **settings: object) -> Tensor:
    raise AssertionError("this is another program")


def in_other_words(module: nn.Module, name: str, look: object = nn.Module.__getattr__) -> object:
    return look(module, name)  # type: ignore[operator]


# What a process can replace, each of which once certified images that were misclassified.
REPLACED = [
    (nn.Linear, "forward", otherwise),
    (nn.Linear, "weight", property(otherwise)),
    (nn.Linear, "__call__", otherwise),
    (nn.Module, "__getattr__", in_other_words),
    (nn.Module, "_call_impl", otherwise),
    (nn.Sequential, "__iter__", otherwise),
    (NeuralODEClassifier, "features", otherwise),
    (NeuralODEClassifier, "gain", property(otherwise)),
    (TargetSeekingField, "target", otherwise),
    (FixedStepSolver, "solve", otherwise),
    (functional, "linear", otherwise),
    (solvers, "_odeint", otherwise),
    (torchdiffeq, "odeint", otherwise),
    (Tensor, "softmax", otherwise),
]


@pytest.mark.parametrize(("owner", "name", "other"), REPLACED)
def test_nothing_is_certified_where_a_method_was_replaced_for_all_instances(
    owner: object, name: str, other: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 3))
    models = [flow(layers, 3), nn.Sequential(layers, nn.Linear(3, 2)).eval()]
    before = [refusals(model) for model in models]
    assert all(None in found for found in before)
    monkeypatch.setattr(owner, name, other, raising=False)
    after = [refusals(model) for model in models]
    monkeypatch.undo()
    assert None not in after[0]
    flows_alone = owner in (NeuralODEClassifier, TargetSeekingField, FixedStepSolver)
    assert flows_alone or None not in after[1]
    assert [refusals(model) for model in models] == before


def refusals(model: nn.Module) -> list[str | None]:
    """Why nothing is proved, by every certificate that could prove something."""
    proving = ("target-seeking", "lipschitz-margin", "contraction")
    return [CERTIFICATES[name].refusal(model, Norm.L2) for name in proving]


def test_nothing_is_certified_where_the_code_of_a_method_was_exchanged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).eval()
    assert refusals(model)[1] is None
    monkeypatch.setattr(nn.Linear.forward, "__code__", nn.ReLU.forward.__code__)
    assert refusals(model)[1] is not None


@pytest.mark.slow
def test_nothing_is_certified_where_a_method_was_replaced_before_the_package_was_imported() -> None:
    code = (
        "from torch import nn\n"
        "nn.Linear.forward = lambda layer, x: 100 * nn.functional.linear(x, layer.weight)\n"
        "from robustness.certificates import CERTIFICATES\n"
        "model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()\n"
        "print(CERTIFICATES['lipschitz-margin'].refusal(model, 'L2'))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "no Lipschitz constant is proved for its Linear\n"


class Documented(nn.Linear):
    """Has a helper and a constant of its own, and computes what a linear layer does."""

    unit = "logits"

    def describe(self) -> str:
        return f"{self.out_features} {self.unit}"


def test_a_subclass_that_only_adds_helpers_is_certified() -> None:
    layers = [nn.Flatten(), Documented(SIDE**2, 2)]
    assert proofs(nn.Sequential(*layers).eval(), Norm.L2) == ["lipschitz-margin"]
    model = flow(nn.Flatten(), SIDE**2)
    model.field.gain = np.float64(1.0)
    assert "target-seeking" in proofs(model, Norm.L2)


def test_the_same_programs_unaltered_are_certified() -> None:
    assert {"target-seeking", "contraction"} <= set(proofs(flow(nn.Flatten(), SIDE**2), Norm.L2))
    plain = nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 2)).eval()
    assert proofs(plain, Norm.L2) == ["lipschitz-margin"]


def test_a_hook_on_every_module_of_the_process_ends_all_proofs() -> None:
    model = flow(nn.Flatten(), SIDE**2)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert proofs(model, Norm.L2) == []
    finally:
        handle.remove()
    assert proofs(model, Norm.L2)


def test_images_are_not_stretched_over_the_channels_of_the_means() -> None:
    layer = Normalise([0.5] * 3, [0.5] * 3)
    with pytest.raises(ValueError, match="expected images of 3 channels, got 1"):
        layer(images())
    with pytest.raises(ValueError, match="expected images of 3 channels, got 1"):
        bounds.propagate(layer, bounds.Tube.around(images(), torch.zeros(1)))
    assert layer(images(3)).shape == (1, 3, SIDE, SIDE)


def test_a_channel_without_a_partner_is_no_pair() -> None:
    with pytest.raises(ValueError, match="expected an even number of channels, got 3"):
        MaxMin()(images(3))


def test_branches_of_different_shapes_are_not_added() -> None:
    block = ResidualBlock(4)
    block.outer = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="expected branches of one shape"):
        bounds.propagate(block, bounds.Tube.around(torch.rand(1, 4), torch.ones(1)))


@pytest.mark.parametrize("terms", [2**24 - 1, 2**24, 2**24 + 2**10, 2**30])
def test_a_sum_of_too_many_terms_has_no_bound(terms: int) -> None:
    assert arithmetic.gamma(terms) == math.inf
    size = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert bool((arithmetic.rounding(size, (1, terms), 1.0) == math.inf).all())
    assert 0 < arithmetic.gamma(2**20) < 0.1


@pytest.mark.parametrize("scale", [1e-162, 1e-300, 1.0, 1e150])
def test_the_norm_of_a_tiny_kernel_is_not_lost(scale: float) -> None:
    kernel = torch.full((2, 2, 1, 1), scale, dtype=torch.float64)
    assert 2 * scale <= norms.convolution_norm(kernel, 1).value <= 2.001 * scale


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308])
def test_a_kernel_that_is_no_number_or_overflows_has_no_finite_norm(value: float) -> None:
    kernel = torch.full((2, 2, 3, 3), value, dtype=torch.float64)
    assert norms.convolution_norm(kernel, 1).value == math.inf


def test_a_batch_norm_whose_terms_cancel_has_no_bound() -> None:
    layer = nn.BatchNorm2d(1, eps=1e-3).eval()
    assert bounds.lipschitz(layer) is not None
    assert layer.running_var is not None
    layer.running_var.fill_(-1e-3 + 1e-9)
    assert bounds.lipschitz(layer) is None
    cancelling = nn.BatchNorm2d(1, eps=-0.5).eval()
    assert bounds.lipschitz(cancelling) is None


def test_a_kernel_that_is_no_square_has_no_bound() -> None:
    layer = nn.Conv2d(1, 1, 3)
    layer.weight = nn.Parameter(torch.rand(1, 1, 3, 9))
    assert bounds.lipschitz(layer) is None
    for bound in (norm_at_any_size, lambda w: conv_spectral_bound(w, (SIDE, SIDE), 1)):
        with pytest.raises(ValueError, match="square kernel"):
            bound(layer.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_pixels_of_another_precision_are_refused(dtype: torch.dtype) -> None:
    model, label = flow(nn.Flatten(), SIDE**2), torch.tensor([0])
    for name in ("lyapunov", "target-seeking", "contraction"):
        with pytest.raises(ValueError, match="expected images in float32"):
            CERTIFICATES[name].certify(model, images().to(dtype), label, Norm.L2)


def test_parametrised_layers_are_certified_again_once_they_are_plain() -> None:
    model = normed()
    assert parametrize.is_parametrized(model[1])
    parametrize.remove_parametrizations(model[1], "weight")
    assert proofs(model, Norm.L2) == ["lipschitz-margin"]
