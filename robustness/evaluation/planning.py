"""From a suite to its plan: every kind of job is asked what it does to each model."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from robustness.data import ImageSet
from robustness.errors import UsageError, in_words, is_exhausted, is_interruption
from robustness.evaluation.executors.processes import begin_turn
from robustness.evaluation.jobs import KINDS, Asked
from robustness.evaluation.jobs.attack import in_order
from robustness.evaluation.jobs.base import release_of_kind
from robustness.evaluation.plan import Job, ModelInfo, Plan
from robustness.evaluation.suite import Suite
from robustness.numerics.devices import ON_CPU, Placement, beside
from robustness.zoo import Absent, LoadedModel


def make_plan(
    suite: Suite,
    images: ImageSet,
    models: list[LoadedModel],
    placement: Placement = ON_CPU,
) -> Plan:
    """Plan every job of `suite`, with models that are where they are judged.

    Raises:
        UsageError: a model does not take the data set's images or has other classes, or there is
            no kind of job that the suite names.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(suite.seed))
    for name in suite.jobs:
        KINDS.require(name)
    infos: list[ModelInfo] = []
    for index, loaded in enumerate(models):
        begin_turn(index)
        _require_logits(loaded, images)
        infos.append(ModelInfo.of(loaded, suite.data, images.shape))
    jobs: list[Job] = []
    for index in range(len(models)):
        begin_turn(index)
        jobs += _jobs(Asked(suite, images, models, infos, index))
    hardware = placement.hardware
    order_of = order.tolist()
    return Plan(suite, images.digest, order_of, infos, jobs, None, placement, hardware)


def _jobs(asked: Asked) -> list[Job]:
    """The jobs of one model: of this package's kinds, and of others' that the suite names."""
    for kind in KINDS.values():
        if not release_of_kind(kind.name) or kind.name in asked.suite.jobs:
            asked.jobs.extend(kind.plan(asked))
    return in_order(asked.suite, asked.jobs)


def _require_logits(loaded: LoadedModel, images: ImageSet) -> None:
    if isinstance(loaded.module, Absent):  # its samples are errors
        return
    for count in (1, min(2, len(images))):
        try:
            with torch.no_grad():
                logits: object = loaded.module(*beside(loaded.module, images.images[:count]))
        except BaseException as error:  # SystemExit too: it is a user's code that runs
            if is_interruption(error) or is_exhausted(error):
                raise
            reason = " ".join(in_words(error).split())
            raise UsageError(
                f"{loaded.name}: expected a model of images {images.shape}, got {reason}; "
                f"check that it fits the data set {images.name}"
            ) from error
        if fault := _fault_of(logits, count, images.classes):
            got, remedy = fault
            raise UsageError(
                f"{loaded.name}: expected a floating-point tensor of logits of shape "
                f"({count}, {images.classes}) for {images.name}, got {got}; {remedy}"
            )


def _fault_of(logits: object, count: int, classes: int) -> tuple[str, str] | None:
    """What is wrong with a model's output, and the line that mends it; None for logits."""
    kind = type(logits).__name__
    if isinstance(logits, tuple | list | Mapping):
        return f"a {kind}", "return its logits alone, such as `return outputs[0]`"
    if isinstance(logits, np.ndarray):
        return "a numpy array", "compute in torch: no gradient passes through numpy"
    if not isinstance(logits, Tensor):
        return f"a {kind}", "end forward with `return logits`"
    if not logits.is_floating_point():
        return f"a tensor of {logits.dtype}", "return logits, not classes; or `logits.float()`"
    if logits.shape != (count, classes):
        shape = tuple(logits.shape)
        return f"{shape}", "check its number of classes, and that it returns a row for each image"
    return None
