"""What a suite will cost: passes counted on a model that withstands all, times seconds a pass."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.data import ImageSet
from robustness.evaluation.jobs import KINDS, Work
from robustness.evaluation.jobs.base import run_unit
from robustness.evaluation.plan import Job
from robustness.evaluation.planning import make_plan
from robustness.evaluation.suite import Suite
from robustness.identity import describe
from robustness.numerics.devices import finish
from robustness.zoo import LoadedModel

_BATCH = 32
# Kinds of jobs whose passes are those of attacks, whatever the model is made of.
_COUNTED = ("clean", "attack", "worst-case", "nearest")


@dataclass(frozen=True)
class Passes:
    """How many images went through a model: forward, and backward to their pixels."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Cost:
    """Seconds of one core.

    Attributes:
        forward: per image and forward pass, in batches of 32.
        backward: per image, for a gradient by its pixels besides the forward pass; None where
            there is none.
        suite: name of the suite.
        samples: how many images it would take.
        seconds: of its attacks, on images that withstand them all, and in the views of a model
            whose insides are not known; None where there is no gradient. Certificates, audits and
            checks come on top.
    """

    forward: float
    backward: float | None
    suite: str
    samples: int
    seconds: float | None

    def lines(self) -> Iterator[str]:
        """It in words."""
        gradient = "none" if self.backward is None else f"{1000 * self.backward:.3g} ms more"
        forward = f"{1000 * self.forward:.3g} ms"
        yield f"time per image, one core: {forward}, with its gradient {gradient}"
        if self.seconds is not None:
            yield (
                f"attacks of the suite {self.suite} on {self.samples} images that withstand them: "
                f"{_rounded(self.seconds)} of one core, and less on others"
            )


def measure_cost(
    module: nn.Module, images: Float[Tensor, "n c h w"], suite: Suite, available: int, classes: int
) -> Cost:
    """Time a model, and say what the attacks of a suite would take.

    Args:
        module: pixels to logits.
        images: to time it with; the first 32 are taken.
        suite: whose attacks are counted.
        available: how many images the data set has.
        classes: how many it has.
    """
    batch, device = images[:_BATCH], str(images.device)
    forward = _seconds(lambda: _forward(module, batch), device) / len(batch)
    try:
        both = _seconds(lambda: _gradient(module, batch), device) / len(batch)
    except Exception:  # that there is no gradient is another check's to say
        backward = None
    else:
        backward = max(both - forward, 0.0)
    samples = available if suite.samples == "all" else min(suite.samples, available)
    seconds = None
    if backward is not None:
        passes = count_passes(suite, images.shape[1:], samples, classes)
        seconds = passes.forward * forward + passes.backward * backward
    return Cost(forward, backward, suite.name, samples, seconds)


def count_passes(suite: Suite, shape: tuple[int, ...], samples: int, classes: int) -> Passes:
    """Passes of a suite's attacks on images that withstand them.

    They are counted on two images and on a linear model whose every answer is the same class by
    far. Each attack is run at one of its radii, and counted for all.

    Args:
        suite: whose attacks are run.
        shape: of an image, (c, h, w).
        samples: how many images the suite would take.
        classes: how many there are.
    """
    counter = _Steadfast(shape, classes)
    counted = suite.model_copy(
        update={"models": ["steadfast"], "certificates": [], "flags": None, "samples": 2}
    )
    generator = torch.Generator().manual_seed(0)
    images = ImageSet(
        "none", "test", torch.rand(2, *shape, generator=generator), torch.tensor([0, 0]), classes
    )
    loaded = LoadedModel("steadfast", counter, describe(counter).digest, None)
    plan = make_plan(counted, images, [loaded])
    per_image: dict[tuple[Any, ...], Passes] = {}
    forward = backward = 0.0
    for job in plan.jobs:
        if job.kind not in _COUNTED or job.refusal is not None:
            continue
        # The version has the settings; where it names eps too, it is counted anew.
        same = (job.kind, job.name, job.norm, job.version)
        if same not in per_image:
            per_image[same] = _passes_of(job, counted, plan, counter, images)
        many = min(samples, _samples_of(job, suite, samples))
        forward += many * per_image[same].forward
        backward += many * per_image[same].backward
    return Passes(forward, backward)


def _samples_of(job: Job, suite: Suite, samples: int) -> int:
    """How many images an attack is run on: its own restriction is lost where two are counted."""
    listed = [a.samples for a in suite.attacks if a.kind == job.name and a.samples != "all"]
    return min([samples, *(int(n) for n in listed)])


def _passes_of(
    job: Job, suite: Suite, plan: Any, counter: "_Steadfast", images: ImageSet
) -> Passes:
    counter.seen[:] = [0, 0]
    total = 0
    for unit in KINDS[job.kind].units(job, plan, {}):
        chosen = torch.tensor(unit.indices)
        run_unit(
            Work(job, unit, suite, counter, images.images[chosen], images.labels[chosen], {}, {})
        )
        total += len(unit.indices)
    forward, backward = counter.seen
    return Passes(forward / max(total, 1), backward / max(total, 1))


class _Count(torch.autograd.Function):
    """The identity, which notes how many images pass it, forward and backward."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, seen: list[int]) -> Tensor:
        ctx.seen = seen
        seen[0] += len(images)
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        ctx.seen[1] += len(gradient)
        return gradient, None


class _Steadfast(nn.Module):
    """A linear model that answers with class 0 whatever it sees, and has a gradient."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        size = int(torch.Size(shape).numel())
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, size, generator=generator) / size
        self.weight = nn.Parameter(
            weight, requires_grad=False
        )  # by which libraries find the device
        lead = torch.zeros(classes)
        lead[0] = 8.0  # farther than a change of every pixel from 0 to 1 goes
        self.register_buffer("lead", lead)
        self.seen = [0, 0]

    def forward(self, images: Tensor) -> Tensor:
        counted: Any = _Count.apply(images, self.seen)
        return counted.flatten(1) @ self.weight.T + self.lead


def _rounded(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1.0):.0f} s"


def _forward(module: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        module(images)


def _gradient(module: nn.Module, images: Tensor) -> None:
    given = images.clone().requires_grad_()
    torch.autograd.grad(module(given).logsumexp(1).sum(), given)


def _seconds(call: Any, device: str) -> float:
    """The quicker of two calls after a first."""
    call()
    finish(device)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - started)
    return min(times)
