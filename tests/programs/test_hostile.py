"""Programs written to be bounded wrongly: bounds hold, or the program is refused in words."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import bounds_of
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates import Limit, ProgramCertificate
from robustness.programs.graph import Refusal
from robustness.programs.network import Network
from robustness.programs.record import record
from robustness.threat import Norm

# Function of an image of 16 pixels and of shape (1, 16).
Function = Callable[[Tensor], Tensor]


class Does(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images.flatten(1)).reshape(1, -1)[:, :16]


def _padded(x: Tensor) -> Tensor:
    return functional.pad(x[:, :4], (1, 1), value=3.0)


def _beside_whole_numbers(x: Tensor) -> Tensor:
    return torch.cat([(x[:, :4] > 0.2).long(), torch.tensor([[3, 2]])], dim=1).float()


def _summed_truths(x: Tensor) -> Tensor:
    return ((x > 0.2) + (x > 0.1)).float()


def _truth_of_a_count(x: Tensor) -> Tensor:
    return (x > 0.1).sum(dim=1, keepdim=True).bool().float()


def _overflowing(x: Tensor) -> Tensor:
    return ((x > 0.1).long() * 2**40 * 2**30).float()


def _beyond_float32(x: Tensor) -> Tensor:
    return ((x > 0.1).long() * (2**24 + 1)).float() - 2.0**24


def _cut_off(x: Tensor) -> Tensor:
    return x.sum(dim=1, dtype=torch.int64).float()


def _bits(x: Tensor) -> Tensor:
    return ((x > 0.1).long().view(torch.float64) * 1e300).float()


def _from_nowhere(x: Tensor) -> Tensor:
    """The square root of numbers below 0 made a number again by a comparison."""
    return torch.where((x - 2).sqrt().relu() >= 0, x, x - 1)


def _divided_by_nothing(x: Tensor) -> Tensor:
    return torch.where(((x - x) / (x - x)).clamp(0, 1) >= 0, x, x - 1)


def _wide_number(x: Tensor) -> Tensor:
    return (x + torch.tensor(0.1, dtype=torch.float64)) * 2.0**20


def _wide_value(x: Tensor) -> Tensor:
    return x + x.double().sum()


def _times_alpha(x: Tensor) -> Tensor:
    return torch.add(x, torch.full((16,), 0.7), alpha=1 / 3)


def _partly_constant(x: Tensor) -> Tensor:
    z = x.clone()
    z[0, :4] = 0.25
    z[:, 5] = torch.tensor(2.0)
    z[:, 6:8] = x[0, 0]
    z[:, 9:10].zero_()
    return z * 2


def _wholly_constant(x: Tensor) -> Tensor:
    z = x.clone()
    z.copy_(torch.full((1, 16), 0.5))
    return z + x


def _overwritten_behind(x: Tensor) -> Tensor:
    z = x * 2
    view = z.view(4, 4)[1]
    first = view * 1
    z[0, 4:6] = x[0, :2]
    view.mul_(3)
    return torch.cat([first, view, z.view(4, 4)[1]]).unsqueeze(0)


def _transposed_write(x: Tensor) -> Tensor:
    z = (x * 1).view(4, 4)
    z.t()[0] += z[2]
    return z.reshape(1, 16)


def _larger_power(x: Tensor) -> Tensor:
    return (x + 0.1) ** torch.full((1, 1, 1), 2.0)


def _of_vast_numbers(x: Tensor) -> Tensor:
    return functional.layer_norm(x * 1e25, (16,))


def _over_its_sum(x: Tensor) -> Tensor:
    return x / x.sum() + x.norm()


def _rearranged(x: Tensor) -> Tensor:
    return x[:, [3, 0, 2]] * 2


def _looked_up(x: Tensor) -> Tensor:
    return torch.arange(4.0)[(x > 0.2).long()]


def _threshold_of_another_kind(x: Tensor) -> Tensor:
    return (x.sum() > torch.tensor(0.1, dtype=torch.float64)).float() * x


def _changed_entry_by_entry(x: Tensor) -> Tensor:
    return x.clone().apply_(lambda v: v * 2)


def _unwritten(x: Tensor) -> Tensor:
    return torch.empty(1, 16) * 0 + x


CASES = [f for name, f in list(globals().items()) if name.startswith("_") and callable(f)]
REFUSED = {
    _truth_of_a_count: "truth values",
    _summed_truths: "truth values",
    _cut_off: "numbers that become integers",
    _bits: "bits read as another number",
    _wide_value: "values of different precision",
    _larger_power: "an exponent other than the number 2",
    _unwritten: "bit for bit",
    _looked_up: "the shape of index",
    _threshold_of_another_kind: "a number of another precision",
    _changed_entry_by_entry: "leaves torch",
}


@pytest.mark.parametrize("function", CASES)
def test_bounds_of_programs_that_were_written_against_them_hold(function: Function) -> None:
    model = Does(function).eval()
    generator = torch.Generator().manual_seed(4)
    images = torch.rand((2, 1, 4, 4), generator=generator) * 0.5 + 0.3
    if function in REFUSED:
        with pytest.raises(Refusal, match=REFUSED[function]):
            bounds_of(model, images, 0.05)
        return
    eps = 0.05
    bounds = bounds_of(model, images, eps)
    last, classes = len(bounds.network) - 1, bounds.network.program.output.shape[1]
    eye = torch.eye(classes, dtype=torch.float64).view(1, classes, 1, classes)
    rows = torch.cat([eye, -eye], dim=1).expand(2, -1, -1, -1)
    with torch.no_grad():
        lower = bounds.lower(last, rows)
        moves = torch.rand((40, *images.shape), generator=generator).sub(0.5).mul(1.98 * eps)
        moves[:10], moves[10] = moves[:10].sign() * 0.99 * eps, 0.0
        for points in (images + moves).clamp(0, 1):
            logits = torch.cat([model(point.unsqueeze(0)) for point in points]).double()
            # What is no number is above nothing.
            assert ((torch.cat([logits, -logits], dim=1) >= lower) | lower.isinf()).all()
            assert (lower.isinf() | torch.cat([logits, -logits], dim=1).isfinite()).all()


@pytest.mark.parametrize(("side", "known"), [(90, True), (91, False)])
def test_an_entry_over_a_length_is_known_to_be_small_of_few_entries_only(side, known) -> None:
    network = Network(record(Does(functional.normalize).eval(), (1, side, side)))
    limits = [
        step.operation.limit
        for step in network.steps
        if hasattr(step, "operation") and hasattr(step.operation, "limit")
    ]
    assert [limit < 2 for limit in limits] == [known]


def test_a_constant_that_is_scaled_rounds_twice() -> None:
    bounds = bounds_of(Does(_times_alpha), torch.full((1, 1, 4, 4), 0.5), 0.0)
    product, unit = 0.7 / 3, 2.0**-24
    assert float(bounds.errors[2].min()) >= unit * (0.5 + product) + unit * product


def test_values_that_are_no_number_leave_nothing_proved() -> None:
    images = torch.full((1, 1, 4, 4), 0.5)
    for function in (_from_nowhere, _divided_by_nothing):
        bounds = bounds_of(Does(function), images, 0.01)
        rows = torch.ones(1, 1, 1, 16, dtype=torch.float64)
        with torch.no_grad():
            assert bounds.lower(len(bounds.network) - 1, rows).item() == -torch.inf


@pytest.fixture
def flushing() -> object:
    if not torch.set_flush_denormal(True):
        pytest.skip("denormals cannot be flushed here")
    yield
    torch.set_flush_denormal(False)


def test_flushed_denormals_are_within_bounds(flushing: None) -> None:
    def above_zero(x: Tensor) -> Tensor:
        return (x > 0).float()

    def root(x: Tensor) -> Tensor:
        return (x + 0).sqrt() * 1e20

    images = torch.zeros(1, 1, 4, 4)
    images.view(torch.int32).add_(2000)
    for function in (above_zero, root):
        bounds = bounds_of(Does(function), images, 0.0)
        eye = torch.eye(16, dtype=torch.float64).view(1, 16, 1, 16)
        with torch.no_grad():
            lower = bounds.lower(len(bounds.network) - 1, eye)
            assert (Does(function)(images).double() >= lower).all()


class Counts(nn.Module):
    """Another model at every second call."""

    def __init__(self, tensor: bool) -> None:
        super().__init__()
        self.calls = torch.zeros(1) if tensor else 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return images.flatten(1) * (1 - 2 * (self.calls % 2))


class Remembers(nn.Module):
    """Adds the last image's values."""

    def __init__(self) -> None:
        super().__init__()
        self.last = torch.zeros(1, 16)

    def forward(self, images: Tensor) -> Tensor:
        last, self.last = self.last, images.flatten(1)
        return last + images.flatten(1)


class CountsAside(Counts):
    """Counts its calls as many vector fields do, and computes the same."""

    def forward(self, images: Tensor) -> Tensor:
        super().forward(images)
        return images.flatten(1) * 2


@pytest.mark.parametrize("make", [lambda: Counts(False), lambda: Counts(True), Remembers])
def test_a_model_that_its_calls_change_is_refused(make) -> None:
    with pytest.raises(Refusal, match=r"two recordings differ|for the next|bit for bit"):
        record(make().eval(), (1, 4, 4))


def test_a_model_that_counts_its_calls_and_computes_the_same_is_not() -> None:
    assert len(record(CountsAside(False).eval(), (1, 4, 4)).nodes) == 3


def test_weights_in_mapped_memory_are_recorded_as_their_copies_are(tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = [nn.Flatten(), nn.Linear(16, 61), nn.ReLU(), nn.Linear(61, 3)]
    save_file(nn.Sequential(*layers).state_dict(), tmp_path / "weights.safetensors")
    model = nn.Sequential(*layers).eval()
    model.load_state_dict(load_file(tmp_path / "weights.safetensors"), assign=True)
    # Sums over numbers that do not lie at a multiple of 16 bytes.
    assert any(weights.data_ptr() % 16 for weights in model.parameters())
    image = torch.rand((1, 1, 4, 4), generator=torch.Generator().manual_seed(2))
    (claim,) = ProgramCertificate().certify(model, image, model(image).argmax(dim=1), Norm.LINF)
    assert claim.radius > 0


class TwoFaced(nn.Module):
    """Whose copy is another model."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        return Does(lambda x: x * 2)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * 2.1


def test_a_copy_that_is_another_model_is_not_taken_for_it() -> None:
    with pytest.raises(Refusal, match="bit for bit"):
        record(TwoFaced().eval(), (1, 4, 4))


class Compiled(nn.Linear):
    """As `Module.compile` leaves it; nothing is compiled here."""

    _compiled_call_impl = staticmethod(lambda x: x)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Flatten(), torch.jit.script(nn.Linear(16, 3))).eval(),
        lambda: nn.Sequential(nn.Flatten(), Compiled(16, 3)).eval(),
    ],
)
def test_compiled_models_are_refused(make) -> None:
    assert "compiled" in str(ProgramCertificate().refusal(make(), Norm.LINF))


@pytest.mark.parametrize(
    ("classes", "pixel", "reason"),
    [(1, 0.5, "one class"), (3, 1.5, "pixel box"), (3, torch.nan, "not finite"), (2, 0.0, "")],
)
def test_images_and_classes_at_the_edge(classes: int, pixel: float, reason: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).eval()
    image = torch.full((1, 1, 4, 4), pixel)
    label = model(image).argmax(dim=1)
    (claim,) = ProgramCertificate().certify(model, image, label, Norm.LINF)
    assert reason in claim.reason
    assert (claim.radius > 0) == (reason == "")
    assert (claim.limit is Limit.PREDICTION) == (reason != "")


def test_a_tie_is_not_certified() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    with torch.no_grad():
        model[1].weight[1] = model[1].weight[0]
        model[1].bias.zero_()
    image = torch.full((1, 1, 4, 4), 0.5)
    (claim,) = ProgramCertificate().certify(model, image, torch.tensor([0]), Norm.LINF)
    assert claim.radius == 0
