"""The cost of a Monte Carlo LyaNet step, as a multiple of the same step through the solver."""

import statistics
import time
from collections.abc import Callable

import torch

from robustness.claims.models import Study, recipe_of
from robustness.data import ImageSet
from robustness.nets.config import FixedStepConfig, NeuralODEConfig
from robustness.numerics.devices import CPU, finish
from robustness.recipe import CrossEntropyConfig, Recipe
from robustness.training.loop import epoch_runner, step_runner

# Batches of a block; an epoch is measured as interleaved blocks of real training.
_BLOCK, _BLOCKS, _ROUNDS = 6, 2, 12


def variants(study: Study, seed: int) -> tuple[Recipe, dict[str, Recipe]]:
    """LyaNet's recipe, and those of the same model and batch size trained through its solver."""
    lyanet = recipe_of(study, "lyanet", seed)
    assert isinstance(lyanet.model, NeuralODEConfig)
    assert isinstance(lyanet.model.solver, FixedStepConfig)
    solver = lyanet.model.solver
    # What moves a gain is LyaNet's loss alone.
    still = lyanet.model.field.model_copy(update={"moving": False})
    through = lyanet.trained_by.model_copy(
        update={"loss": CrossEntropyConfig(kind="cross-entropy")}
    )
    rivals = {}
    for gradient, by in (("backprop", "back-propagation"), ("adjoint", "adjoint")):
        model = lyanet.model.model_copy(
            update={"solver": solver.model_copy(update={"gradient": gradient}), "field": still}
        )
        rivals[f"{by}, {solver.steps} {solver.method} steps"] = lyanet.model_copy(
            update={"model": model, "training": through}
        )
    return lyanet, rivals


def step_and_epoch_ratios(
    study: Study, seed: int, images: ImageSet, device: str = CPU
) -> dict[str, float]:
    """Monte Carlo cost over each rival's: of a step, and of an epoch with all that it does.

    A step is loss and back-propagation, encoder included. An epoch is measured on blocks of
    batches: augmentation, step, optimiser, schedule, weight averaging. Everything is interleaved,
    so that a busy machine slows all alike.
    """
    lyanet, rivals = variants(study, seed)
    batch = lyanet.trained_by.batch_size
    block = images.take(torch.arange(_BLOCK * batch))
    found = {}
    for name, rival in rivals.items():
        first = images.take(torch.arange(batch))
        ours, theirs = step_runner(lyanet, first, device), step_runner(rival, first, device)
        found[f"step: {name}"] = _ratio(ours, theirs, _ROUNDS, device)
        our_epoch, their_epoch = (epoch_runner(r, block, device) for r in (lyanet, rival))
        found[f"epoch: {name}"] = _ratio(our_epoch, their_epoch, _BLOCKS, device)
    return found


def _ratio(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, device: str
) -> float:
    ours(), theirs()  # the first call allocates
    times = [seconds(ours, device) / seconds(theirs, device) for _ in range(rounds)]
    return round(statistics.median(times), 4)


def seconds(work: Callable[[], object], device: str = CPU) -> float:
    """Processor time of one call, which other programs lengthen less than the clock's.

    On another device than the CPU the clock's, until that device has done all of it.
    """
    clock = time.process_time if device == CPU else time.perf_counter
    finish(device)
    started = clock()
    work()
    finish(device)
    return clock() - started
