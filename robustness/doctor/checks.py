"""Checks of a model that gives logits: each yields what it finds, and the line that mends it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchdiffeq
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm  # noqa: PLC2701 (no public base)
from torch.overrides import TorchFunctionMode

from robustness.doctor.base import Finding, Patient
from robustness.errors import in_words, is_exhausted, is_interruption, one_line
from robustness.programs.graph import bits

# Of a paired test whether other units are read better.
_SURE = 1e-3
_GAIN = 0.05
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "tsit5", None)
_FEW = 8


class Unknown(Exception):  # noqa: N818
    """What a check needs of the model raised.

    Attributes:
        remedy: what to do.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


def data_scale(patient: Patient) -> Iterator[Finding]:
    """Images that were divided by 255 twice."""
    most = float(patient.images.max())
    if most <= 1.5 / 255:
        yield Finding(
            "data scale",
            True,
            f"the largest pixel is {most:.2g}: the images were divided by 255 twice",
            "np.savez(file, images=images * 255, labels=labels)",
        )


def train_mode(patient: Patient) -> Iterator[Finding]:
    """Parts that stay in training mode, or go back to it, whatever `eval()` says."""
    patient.logits(patient.images[:2])
    paths = [name or "the model" for name, m in patient.module.named_modules() if m.training]
    if paths:
        yield Finding(
            "train mode",
            True,
            f"{len(paths)} of its modules are in training mode after model.eval() and a forward "
            f"pass, the first of them {paths[0]}",
            "model.eval()   # in the factory; and no self.train() in forward",
        )
        patient.module.eval()


def dropout(patient: Patient) -> Iterator[Finding]:
    """Dropout that is on though the model is in evaluation mode."""
    watch = _Dropouts()
    with watch:
        patient.logits(patient.images[:2])
    if watch.seen:
        name, p = watch.seen[0]
        yield Finding(
            "dropout",
            True,
            f"{name} with p = {p:g} is on in evaluation mode: logits are random",
            f"x = F.{name}(x, {p:g}, training=self.training)",
        )


class _Dropouts(TorchFunctionMode):
    """Notes calls of torch's dropouts that drop."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, float]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in _DROPOUTS:
            p = float(given.get("p", args[1] if len(args) > 1 else 0.5))
            if given.get("training", args[2] if len(args) > 2 else True) and p > 0:
                self.seen.append((name, p))
        return func(*args, **given)


_DROPOUTS = (
    *(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d),
    *(functional.alpha_dropout, functional.feature_alpha_dropout),
    *(torch.dropout, torch.alpha_dropout, torch.feature_dropout),
)


def determinism(patient: Patient) -> Iterator[Finding]:
    """Logits that change from one call to the next."""
    images = patient.images[:_FEW]
    first, second = patient.logits(images), patient.logits(images)
    if _same(first, second):
        return
    seeded = []
    for _ in range(2):
        torch.manual_seed(0)
        seeded.append(patient.logits(images))
    change = _relative(first, second)
    if _same(*seeded):
        yield Finding(
            "determinism",
            True,
            f"the same images have other logits at each call ({change:.1%} of their size): the "
            "model draws at random",
            "self.register_buffer('noise', torch.randn(size))   # drawn once; or leave it out",
        )
    else:
        yield Finding(
            "determinism",
            True,
            f"the same images have other logits at each call ({change:.1%} of their size), with "
            "the same seed too: they depend on calls of before",
            "self.calls = 0   # keep nothing between calls: remove what forward writes to self",
        )


def batch_coupling(patient: Patient) -> Iterator[Finding]:
    """Logits of an image that depend on what else is in its batch."""
    image = patient.images[:1]
    others = patient.images[1:_FEW]
    if len(others) == 0:
        return
    noise = torch.rand(others.shape, generator=torch.Generator().manual_seed(0)).to(image.device)
    torch.manual_seed(0)
    beside_images = patient.logits(torch.cat([image, others]))[0]
    torch.manual_seed(0)  # a model that is random is not coupled for that alone
    beside_noise = patient.logits(torch.cat([image, noise]))[0]
    if _same(beside_images, beside_noise):
        return
    change = _relative(beside_images, beside_noise)
    found = f"an image beside others has other logits ({change:.2g} of their size)"
    for name, module in patient.module.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            kind = type(module).__name__
            yield Finding(
                "batch coupling",
                True,
                f"{found}: {name} normalises by the statistics of the batch",
                f"nn.{kind}({module.num_features}, track_running_stats=True)   # and train anew",
            )
            return
    with _solvers() as solves:
        patient.logits(image)
    if any(method in _ADAPTIVE for method, _ in solves.seen):
        yield Finding(
            "batch coupling",
            True,
            f"{found}: its solver takes the same steps for the whole batch",
            "return torch.cat([self.net(image) for image in images.split(1)])",
        )
        return
    yield Finding(
        "batch coupling",
        True,
        found,
        "return torch.cat([self.net(image) for image in images.split(1)])",
    )


def finite_logits(patient: Patient) -> Iterator[Finding]:
    """Logits that are NaN or infinite."""
    logits = patient.logits()
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        yield Finding(
            "finite logits",
            True,
            f"{bad} of {len(logits)} images have logits that are NaN or infinite, which count as "
            "wrong",
            "torch.autograd.set_detect_anomaly(True)   # names the operation; a smaller step helps",
        )


def probabilities(patient: Patient) -> Iterator[Finding]:
    """Probabilities in place of logits."""
    logits = patient.logits()
    if not bool(logits.isfinite().all()) or not bool((logits >= 0).all()):
        return
    if bool(((logits.sum(1) - 1).abs() > 1e-3).any()):
        return
    last = [name for name, m in patient.module.named_modules() if isinstance(m, nn.Softmax)]
    path = last[-1].removeprefix("module.") if last else ""
    yield Finding(
        "probabilities",
        True,
        "the model returns probabilities, rows that sum to 1: the loss of attacks takes their "
        "softmax again, and its gradient is all but gone",
        f"model.set_submodule({path!r}, nn.Identity())" if path else "return logits   # no softmax",
    )


def input_range(patient: Patient) -> Iterator[Finding]:
    """Images that would be read better in other units than [0, 1]."""
    shape = (1, -1, 1, 1)
    mean = patient.images.mean((0, 2, 3)).view(shape)
    std = patient.images.std((0, 2, 3)).clamp_min(1e-6).view(shape)
    tried: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
        ("pixels of 0 to 255", lambda x: x * 255, "images * 255"),
        ("pixels of -1 to 1", lambda x: x * 2 - 1, "images * 2 - 1"),
        (
            "normalised pixels",
            lambda x: (x - mean) / std,
            f"(images - {_numbers(mean)}) / {_numbers(std)}",
        ),
    ]
    if patient.images.shape[1] == 3:
        m, s = (patient.images.new_tensor(values).view(shape) for values in _IMAGENET)
        tried.append(
            (
                "pixels normalised as ImageNet's",
                lambda x: (x - m) / s,
                f"(images - {_numbers(m)}) / {_numbers(s)}",
            )
        )
    yield from _better("input range", patient, tried, "the model was trained on {}")


def normalised_twice(patient: Patient) -> Iterator[Finding]:
    """A model that normalises what its data set, or an outer layer, has normalised already."""
    shape = (1, -1, 1, 1)
    mean = patient.images.mean((0, 2, 3)).view(shape)
    std = patient.images.std((0, 2, 3)).clamp_min(1e-6).view(shape)
    tried: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
        (
            "once more by their mean and deviation",
            lambda x: x * std + mean,
            "remove one of the two: images - mean stands in the factory and in the model",
        ),
        (
            "once more from 0..1 to -1..1",
            lambda x: (x + 1) / 2,
            "remove one of the two: images * 2 - 1 stands in the factory and in the model",
        ),
    ]
    yield from _better(
        "normalised twice", patient, tried, "pixels are normalised {}", remedy_is_line=False
    )


def _better(
    check: str,
    patient: Patient,
    tried: list[tuple[str, Callable[[Tensor], Tensor], str]],
    words: str,
    remedy_is_line: bool = True,
) -> Iterator[Finding]:
    from scipy.stats import binomtest

    plain = patient.correct(patient.images)
    best: tuple[float, Finding] | None = None
    for units, change, line in tried:
        other = patient.correct(change(patient.images))
        won, lost = int((other & ~plain).sum()), int((plain & ~other).sum())
        gain = float((won - lost) / len(plain))
        if gain < _GAIN or binomtest(won, won + lost, alternative="greater").pvalue > _SURE:
            continue
        before, after = float(plain.double().mean()), float(other.double().mean())
        found = (
            f"{words.format(units)}: as they come {before:.0%} of the images are classified "
            f"right, {after:.0%} otherwise"
        )
        remedy = f"return self.net({line})   # in forward" if remedy_is_line else f"# {line}"
        if best is None or after > best[0]:
            best = after, Finding(check, True, found, remedy)
    if best is not None:
        yield best[1]


def accuracy(patient: Patient) -> Iterator[Finding]:
    """Images that are classified no better than by guessing."""
    from scipy.stats import binomtest

    right = patient.correct(patient.images)
    chance = 1 / max(patient.classes, 2)
    count = int(right.sum())
    if binomtest(count, len(right), chance, alternative="greater").pvalue > 0.01:
        yield Finding(
            "accuracy",
            True,
            f"{count} of {len(right)} images are classified right, no more than by guessing among "
            f"{patient.classes} classes",
            "model.load_state_dict(weights)   # trained, and with the classes in the labels' order",
        )


def gradients(patient: Patient) -> Iterator[Finding]:
    """Gradients by the pixels that are not there, are zero or are not numbers."""
    images = patient.images[:32].clone().requires_grad_()
    try:
        logits = patient.module(images)
        top = logits.topk(min(2, logits.shape[1]), dim=1).values
        margin = (top[:, 0] - top[:, -1]).sum()
        (gradient,) = torch.autograd.grad(margin, images, allow_unused=True)
    except BaseException as error:
        if is_interruption(error) or is_exhausted(error):
            raise
        yield Finding(
            "gradients",
            True,
            f"no gradient reaches the pixels ({one_line(in_words(error), 90)}): attacks by "
            "gradient find nothing",
            "return self.net(images)   # without torch.no_grad(), .detach(), .data or numpy",
        )
        return
    if gradient is None:
        gradient = torch.zeros_like(images)
    sizes = gradient.flatten(1).abs().sum(1)
    zero, bad = int((sizes == 0).sum()), int((~sizes.isfinite()).sum())
    if bad:
        yield Finding(
            "gradients",
            True,
            f"the gradients of {bad} of {len(images)} images are NaN or infinite",
            "x.clamp_min(1e-12).sqrt()   # what has no derivative at 0: sqrt, norm, log, acos",
        )
    elif 2 * zero >= len(images):
        yield Finding(
            "gradients",
            True,
            f"the gradients of {zero} of {len(images)} images are exactly zero: attacks by "
            "gradient find nothing",
            "return self.net(images)   # without rounding, argmax, sign or a step function",
        )


def adaptive_tolerance(patient: Patient) -> Iterator[Finding]:
    """An adaptive solver whose tolerance decides the class."""
    images = patient.images[:_FEW]
    with _solvers() as solves:
        before = patient.logits(images)
    adaptive = [(method, rtol) for method, rtol in solves.seen if method in _ADAPTIVE]
    if not adaptive:
        return
    method, rtol = adaptive[0]
    if rtol > _FINEST:
        try:
            with _solvers(tighter=max(_FINEST / rtol, 1e-3)):
                after = patient.logits(images)
        except AssertionError as error:  # by which torchdiffeq says that a step underflows
            raise Unknown(
                f"its solver, {method} of rtol {rtol:g}, fails at a tighter tolerance "
                f"({one_line(in_words(error), 60)})",
                'odeint(f, x, t, method="rk4", options={"step_size": 0.1})',
            ) from error
        top = before.topk(2, dim=1).values
        moved = (before - after).abs().amax(1) > 0.1 * (top[:, 0] - top[:, 1])
        if 4 * int(moved.sum()) >= len(images):
            yield Finding(
                "adaptive tolerance",
                True,
                f"with a tighter tolerance than rtol {rtol:g} the logits of {int(moved.sum())} of "
                f"{len(images)} images move by more than a tenth of the lead of their class",
                "odeint(f, x, t, rtol=1e-5, atol=1e-5)",
            )
            return
    yield Finding(
        "adaptive tolerance",
        False,
        f"the steps of its solver ({method or 'dopri5'}) depend on the image: `certify "
        "--certificate program` proves nothing of it",
        'odeint(f, x, t, method="rk4", options={"step_size": 0.1})   # fixed steps, trained so',
    )


# Single precision follows no finer tolerance.
_FINEST = 1e-6


class _Solves:
    """Calls of torchdiffeq: method and relative tolerance of each."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, float]] = []


@contextmanager
def _solvers(tighter: float = 1.0) -> Iterator[_Solves]:
    """Note what torchdiffeq is asked for, by whatever module has imported its functions.

    Args:
        tighter: what tolerances are multiplied by.
    """
    solves = _Solves()
    wrapped = {
        id(function): _noting(function, solves, tighter)
        for function in (torchdiffeq.odeint, torchdiffeq.odeint_adjoint)
    }
    # A user's module holds the function under a name of its own.
    places = [
        (module, name)
        for module in list(sys.modules.values())
        if not getattr(module, "__name__", "torchdiffeq._").startswith("torchdiffeq._")
        for name, value in list(vars(module).items() if hasattr(module, "__dict__") else ())
        if id(value) in wrapped
    ]
    originals = [(module, name, getattr(module, name)) for module, name in places]
    try:
        for module, name, original in originals:
            setattr(module, name, wrapped[id(original)])
        yield solves
    finally:
        for module, name, original in originals:
            setattr(module, name, original)


def _noting(function: Callable[..., Any], solves: _Solves, tighter: float) -> Callable[..., Any]:
    def solve(func: Any, y0: Any, t: Any, *rest: Any, **settings: Any) -> Any:
        names = ("rtol", "atol", "method")
        settings = dict(zip(names, rest, strict=False)) | settings
        rtol, method = settings.get("rtol", 1e-7), settings.get("method")
        solves.seen.append((method, float(rtol)))
        if tighter != 1.0 and method in _ADAPTIVE:
            settings["rtol"] = rtol * tighter
            settings["atol"] = settings.get("atol", 1e-9) * tighter
        return function(func, y0, t, **settings)

    return solve


def device(patient: Patient) -> Iterator[Finding]:
    """Parts on other devices than the images, and tensors that a move would leave behind."""
    named = [*patient.module.named_parameters(), *patient.module.named_buffers()]
    here = patient.images.device
    elsewhere = [(name, value.device) for name, value in named if value.device != here]
    if elsewhere:
        name, where = elsewhere[0]
        yield Finding(
            "device",
            True,
            f"{len(elsewhere)} tensors of the model are not on {here}, the first of them "
            f"{name.removeprefix('module.')} on {where}",
            f'model.to("{here}")   # and torch.load(file, map_location="{here}")',
        )
    for path, module in patient.module.named_modules():
        known = {id(value) for _, value in [*module.named_parameters(), *module.named_buffers()]}
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and id(value) not in known and value.numel():
                of = f"{path.removeprefix('module.')}." if path.removeprefix("module") else ""
                yield Finding(
                    "device",
                    False,
                    f"the tensor {of}{name} is no buffer: model.to(device) leaves it behind",
                    f'self.register_buffer("{name}", {name})',
                )


def _numbers(values: Tensor) -> str:
    flat = [round(float(value), 4) for value in values.flatten()]
    if len(flat) == 1:
        return f"{flat[0]:g}"
    return f"torch.tensor({flat}).view(-1, 1, 1)"


def _same(first: Float[Tensor, "*shape"], second: Float[Tensor, "*shape"]) -> bool:
    return torch.equal(bits(first), bits(second))


def _relative(first: Tensor, second: Tensor) -> float:
    scale = float(first.abs().max())
    return float((first - second).abs().max()) / scale if scale else 0.0
