"""The training loop: deterministic, resumable at every epoch, best checkpoint kept.

Everything random in an epoch is drawn from a generator seeded by (seed, epoch), so a run that
is interrupted and resumed at an epoch boundary ends with the weights of an uninterrupted one.
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from jaxtyping import Float
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError
from torch import Tensor, nn

from robustness.data import ImageSet, load_images, require_source
from robustness.errors import UsageError, one_line
from robustness.files import read_file, replace_file
from robustness.inputs import file_to_write, folder_to_write
from robustness.inputs import placement as placed
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import ContinuousNet
from robustness.nets.encoders import constrain, release
from robustness.nets.fields import LyaNetField, TargetSeekingField, lyapunov_rate
from robustness.nets.simplex import SimplexField
from robustness.numerics.devices import CPU, arithmetic_on, beside, device_of, hardware
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.recipe import (
    WEIGHTS_FILE,
    AdversarialConfig,
    CertifiedIntervalConfig,
    CertifiedLyapunovConfig,
    CrossEntropyConfig,
    InvarianceConfig,
    LossConfig,
    MeasuredConfig,
    MonteCarloLyapunovConfig,
    PathIntegralLyapunovConfig,
    ProvedConfig,
    Recipe,
    StableEquilibriumConfig,
    SteadyStateConfig,
    TrainingConfig,
    read_recipe,
    record_training,
)
from robustness.terminal import progress_bar
from robustness.training import intervals, losses, stability
from robustness.training.adversarial import adversarial
from robustness.training.augmentation import augment
from robustness.training.proved import ProvedTraining

# Validation batches; a fixed size keeps the chosen checkpoint independent of batch_size.
_VALIDATION_BATCH = 256
# Weights, gradients, two moments of the optimiser, average, best, and a checkpoint of them all.
_COPIES = 11


@dataclass
class _State:
    """What a checkpoint holds."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    best_epoch: int = 0
    epoch: int = 0
    seconds: float = 0.0


def train(
    folder: Path,
    resume: bool = False,
    data_dir: Path | None = None,
    quiet: bool = False,
    device: str | None = None,
) -> MeasuredConfig:
    """Train the recipe in `folder`; write its weights and their SHA-256.

    The checkpoint with the best validation score is kept: certified accuracy at the recipe's
    eps for the certified losses, accuracy otherwise, ties broken by the lower validation loss.

    Args:
        folder: holds `recipe.toml`; receives `weights.safetensors`.
        resume: go on from the last epoch of an interrupted run, where there is one.
        data_dir: folder with the official image files; None downloads them.
        quiet: no progress bar.
        device: `cpu`, `cuda`, `cuda:N` or `mps`. Random draws are the same on all of them, sums
            are not, and so the weights differ.

    Returns:
        What was measured, as written to the recipe.

    Raises:
        UsageError: the recipe does not fit its data or its loss, or a checkpoint is broken.
    """
    recipe, placement = read_recipe(folder), placed(device, None)
    threads_of_training = recipe.trained_by.threads
    _require_own(folder, recipe)
    require_source(recipe.data.name, data_dir)
    images = load_images(recipe.data.name, "train", data_dir)
    if images.shape != recipe.data.shape or images.classes != recipe.data.classes:
        raise UsageError(
            f"{folder}: expected images {recipe.data.shape} of {recipe.data.classes} classes as "
            f"the recipe says, got {images.shape} of {images.classes}; correct [data]"
        )
    try:
        with reproducible_arithmetic(), arithmetic_on(placement):
            torch.set_num_threads(threads_of_training)
            return _train(folder, recipe, images, resume, quiet, placement.device)
    except torch.linalg.LinAlgError as error:
        raise UsageError(
            f"{folder}: expected a finite loss, got weights that are not ({error}); "
            "lower learning_rate"
        ) from None


def _checkpoint(folder: Path, recipe: Recipe) -> Path:
    return folder / "checkpoints" / f"{recipe.training_digest[:16]}.safetensors"


def _require_own(folder: Path, recipe: Recipe) -> None:
    """Refuse to write over weights that are not of this recipe."""
    weights, checkpoint = file_to_write(folder / WEIGHTS_FILE), _checkpoint(folder, recipe)
    folder_to_write(checkpoint.parent)
    # A training that was killed between weights and recipe has left its checkpoint.
    if not weights.exists() or checkpoint.is_file():
        return
    found = hashlib.sha256(read_file(weights)).hexdigest()
    if recipe.weights is None or found != recipe.weights.sha256:
        raise UsageError(
            f"{weights}: expected no weights, or those of which the recipe has the SHA-256, got "
            f"others ({found[:12]}…); move them away"
        )


def _train(
    folder: Path, recipe: Recipe, images: ImageSet, resume: bool, quiet: bool, device: str
) -> MeasuredConfig:
    config = recipe.trained_by
    fit, held_out = _split(images, config)
    steps_per_epoch = math.ceil(len(fit) / config.batch_size)
    state = _fresh_state(recipe, steps_per_epoch, device=device)
    steps = config.epochs * steps_per_epoch
    loss = _loss(config, recipe.data.classes, state.model, steps)
    checkpoint = _checkpoint(folder, recipe)
    if resume and checkpoint.is_file():
        _restore(state, checkpoint)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  validation {task.fields[score]:.4f}"),
        TimeRemainingColumn(),
    )
    with progress_bar(columns, quiet) as progress:
        bar = progress.add_task(
            f"training {folder.name}",
            total=config.epochs,
            completed=state.epoch,
            loss=math.nan,
            score=state.best_score[0],
        )
        while state.epoch < config.epochs:
            started = time.perf_counter()
            mean_loss = _train_epoch(state, config, fit, loss)
            score = _validate(state, config, held_out)
            if not math.isfinite(mean_loss):
                raise UsageError(
                    f"{folder}: expected a finite loss, got {mean_loss} in epoch {state.epoch}; "
                    "lower learning_rate"
                )
            if score >= state.best_score:
                state.best_score, state.best_epoch = score, state.epoch
                state.best = {k: v.clone() for k, v in _deployable(state).items()}
            if state.epoch % (config.epochs // config.cycles) == 0 and state.epoch < config.epochs:
                _restart(state, recipe, steps_per_epoch)
            state.seconds += time.perf_counter() - started
            _save(state, checkpoint)
            progress.update(bar, advance=1, loss=mean_loss, score=score[0])
    measured = _publish(folder, state, held_out, config.storage)
    checkpoint.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds something else
        checkpoint.parent.rmdir()
    return measured


def _split(images: ImageSet, config: TrainingConfig) -> tuple[ImageSet, ImageSet]:
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(images), generator=generator)
    held_out = max(1, round(config.validation * len(images)))
    return images.take(order[held_out:]), images.take(order[:held_out])


def _fresh_state(
    recipe: Recipe,
    steps_per_epoch: int,
    start: dict[str, Tensor] | None = None,
    device: str = CPU,
) -> _State:
    """Model, optimiser and schedule at the first step of a cycle, from plain weights if given."""
    config = recipe.trained_by
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        # A model that predicts in float64 is trained, and its weights are kept, in float32.
        model = recipe.build(copies=_COPIES).float()
        if start is not None:
            model.load_state_dict(start)
        constrain(model)
        model.to(device)
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    optimiser: torch.optim.Optimizer
    if config.optimiser == "sgd":
        optimiser = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, **settings)
    elif config.optimiser == "adamw":
        optimiser = torch.optim.AdamW(model.parameters(), **settings)
    else:
        optimiser = torch.optim.Adam(model.parameters(), **settings)
    steps = config.epochs // config.cycles * steps_per_epoch
    schedule: torch.optim.lr_scheduler.LRScheduler
    if config.schedule == "one-cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, config.learning_rate, total_steps=steps
        )
    elif config.schedule == "cosine":
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    elif config.schedule == "step":
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, math.ceil(steps / 2), gamma=0.1)
    else:
        schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    average = {k: v.clone() for k, v in model.state_dict().items()} if config.averaging else {}
    return _State(model, optimiser, schedule, average)


def _restart(state: _State, recipe: Recipe, steps_per_epoch: int) -> None:
    """Begin the next cycle from the best weights, as they would be deployed."""
    device = str(device_of(state.model))
    plain = _fresh_state(recipe, steps_per_epoch, device=device).model
    plain.load_state_dict(state.best)
    release(plain)
    fresh = _fresh_state(recipe, steps_per_epoch, plain.state_dict(), device)
    state.model.load_state_dict(fresh.model.state_dict())
    state.optimiser.load_state_dict(fresh.optimiser.state_dict())
    state.schedule.load_state_dict(fresh.schedule.state_dict())
    state.average = fresh.average


# Images, labels, source of random draws, share of all training steps that are done.
Loss = Callable[[Tensor, Tensor, torch.Generator, float], Tensor]


def _loss(config: TrainingConfig, classes: int, model: nn.Module, steps: int) -> Loss:
    choice = config.loss
    _require_movable(model, choice)
    if isinstance(choice, CrossEntropyConfig):
        return lambda x, y, *_: losses.cross_entropy(model, x, y)
    if isinstance(choice, AdversarialConfig):
        return lambda x, y, generator, _: adversarial(
            model, x, y, choice.norm, choice.eps, choice.steps, generator, choice.step_size
        )
    if isinstance(choice, ProvedConfig):
        proved = ProvedTraining(choice, model, classes)
        return proved.loss
    if isinstance(choice, PathIntegralLyapunovConfig) and isinstance(model, ContinuousNet):
        rate = choice.rate or lyapunov_rate(classes)
        return lambda x, y, *_: losses.continuous_lyapunov(model, x, y, choice.through_solver, rate)
    if not isinstance(model, NeuralODEClassifier):
        raise UsageError(
            f"expected a neural-ode model for the {choice.kind} loss, got another kind; "
            "use loss kind cross-entropy"
        )
    if isinstance(choice, InvarianceConfig):
        if not isinstance(model.field, SimplexField):
            raise UsageError(
                "expected a simplex field for the invariance-monte-carlo loss, got another; "
                "set [model.field] kind to simplex"
            )
        return lambda x, y, generator, _: losses.invariance_monte_carlo(
            model,
            x,
            y,
            losses.sample_simplex(choice.states, classes, generator).to(x.device),
            choice.rate,
            choice.leak,
        )
    if isinstance(choice, SteadyStateConfig):
        return lambda x, y, *_: stability.steady_state(model, x, y, choice.weight)
    if isinstance(choice, StableEquilibriumConfig):
        return lambda x, y, *_: stability.stable_equilibrium(
            model, x, y, choice.equilibrium, choice.diagonal, choice.dominance
        )
    if isinstance(choice, PathIntegralLyapunovConfig):
        return lambda x, y, *_: losses.path_integral_lyapunov(
            model, x, y, choice.through_solver, choice.rate
        )
    if isinstance(choice, MonteCarloLyapunovConfig):
        if choice.dropout and not isinstance(model.field, LyaNetField):
            raise UsageError(
                "expected a lyanet field for dropout in its hidden units, got another; "
                "remove dropout"
            )
        return _monte_carlo_loss(choice, model, classes, steps)
    if not isinstance(model.field, TargetSeekingField):
        raise UsageError(
            f"expected a target-seeking field for the {choice.kind} loss, got another; "
            "set [model.field] kind to target-seeking"
        )
    if isinstance(choice, CertifiedIntervalConfig):
        return _interval_loss(choice, model)
    return lambda x, y, *_: losses.certified_lyapunov(model, x, y, choice.eps, choice.temperature)


def _require_movable(model: nn.Module, choice: LossConfig) -> None:
    """Refuse a gain that would stay where it is although it was asked to move."""
    field = getattr(model, "field", None)
    if not isinstance(field, LyaNetField) or not isinstance(field.gain, Tensor):
        return
    if not isinstance(choice, MonteCarloLyapunovConfig) or field.largest_gain <= 1:
        raise UsageError(
            "expected a moving gain above 1 with the lyapunov-monte-carlo loss, got "
            f"{field.largest_gain:g} with {choice.kind}; remove moving from [model.field]"
        )


def _monte_carlo_loss(
    choice: MonteCarloLyapunovConfig, model: NeuralODEClassifier, classes: int, steps: int
) -> Loss:
    def loss(x: Tensor, y: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        states = losses.sample_states(choice.states, classes, generator, choice.extent)
        drop = losses.dropout(choice.dropout, generator) if choice.dropout else None
        violations = losses.monte_carlo_violations(model, x, y, states.to(x.device), drop)
        field = model.field
        if isinstance(field, LyaNetField) and isinstance(field.gain, Tensor):
            violated = float((violations.detach() > 0).float().mean())
            field.gain = losses.moved_gain(
                field.gain, field.largest_gain, violated, progress, steps
            )
        return violations.mean()

    return loss


def _interval_loss(choice: CertifiedIntervalConfig, model: NeuralODEClassifier) -> Loss:
    def loss(x: Tensor, y: Tensor, _: torch.Generator, progress: float) -> Tensor:
        grown = choice.grown(progress)
        fading = choice.regularisation * (1 - grown)
        return intervals.certified_interval(model, x, y, grown * choice.eps, choice.clean, fading)

    return loss


def _train_epoch(state: _State, config: TrainingConfig, fit: ImageSet, loss: Loss) -> float:
    done, state.epoch = state.epoch, state.epoch + 1
    generator = torch.Generator().manual_seed(_mix(config.seed, state.epoch))
    state.model.train()
    total = 0.0
    batches = torch.randperm(len(fit), generator=generator).split(config.batch_size)
    for index, batch in enumerate(batches):
        progress = (done + index / len(batches)) / config.epochs
        pixels = augment(fit.images[batch], config.augmentation, generator)
        pixels, labels = beside(state.model, pixels, fit.labels[batch])
        lowered = config.precision == "bfloat16"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=lowered):
            value = loss(pixels, labels, generator, progress)
        state.optimiser.zero_grad()
        value.backward()
        state.optimiser.step()
        state.schedule.step()
        total += float(value.detach()) * len(batch)
        if state.average:
            for key, current in state.model.state_dict().items():
                # An average that starts at the first step, not at the random initialisation.
                steps = state.schedule.last_epoch
                decay = min(config.averaging, (1 + steps) / (10 + steps))
                if current.is_floating_point():
                    state.average[key].mul_(decay).add_(current, alpha=1 - decay)
                else:
                    state.average[key].copy_(current)
    return total / len(fit)


def _mix(seed: int, epoch: int) -> int:
    text = f"{seed}:{epoch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def _deployable(state: _State) -> dict[str, Tensor]:
    return state.average if state.average else state.model.state_dict()


@torch.no_grad()
def _validate(state: _State, config: TrainingConfig, held_out: ImageSet) -> tuple[float, float]:
    """Score and negative loss of the weights that would be deployed."""
    current = {k: v.clone() for k, v in state.model.state_dict().items()}
    state.model.load_state_dict(_deployable(state))
    state.model.eval()
    correct = certified = loss = 0.0
    judge = _certified_judge(config.loss, state.model)
    for start in range(0, len(held_out), _VALIDATION_BATCH):
        images = held_out.images[start : start + _VALIDATION_BATCH]
        labels = held_out.labels[start : start + _VALIDATION_BATCH]
        images, labels = beside(state.model, images, labels)
        logits: Float[Tensor, "n k"] = state.model(images)
        correct += float((logits.argmax(dim=1) == labels).sum())
        if judge is None:
            loss += len(images) * float(nn.functional.cross_entropy(logits, labels))
        else:
            holds, value = judge(images, labels)
            certified += float(holds.sum())
            loss += len(images) * float(value)
    state.model.load_state_dict(current)
    score = (correct if judge is None else certified) / len(held_out)
    return score, -loss / len(held_out)


def _certified_judge(
    choice: LossConfig, module: nn.Module
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What tells which images a certified loss holds for, and the loss; None for other losses.

    The radius is the one that is to be certified, whatever it grows to in training, so that
    the scores of all epochs compare.
    """
    model = cast(NeuralODEClassifier, module)
    if isinstance(choice, CertifiedLyapunovConfig):
        return lambda x, y: (
            losses.certified_margin_radius(model, x, y) > choice.eps,
            losses.certified_lyapunov(model, x, y, choice.eps, choice.temperature),
        )
    if isinstance(choice, ProvedConfig):
        return ProvedTraining(choice, module, 0).judge
    if isinstance(choice, CertifiedIntervalConfig):
        return lambda x, y: (
            intervals.certified_by_intervals(model, x, y, choice.test_eps),
            intervals.certified_interval(model, x, y, choice.test_eps),
        )
    return None


def _save(state: _State, checkpoint: Path) -> None:
    tensors = {f"model/{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"average/{k}": v for k, v in state.average.items()}
    tensors |= {f"best/{k}": v for k, v in state.best.items()}
    optimiser = state.optimiser.state_dict()
    for index, slots in optimiser["state"].items():
        for name, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{index}/{name}"] = value
    scalars = {
        "groups": optimiser["param_groups"],
        "schedule": {
            k: v for k, v in state.schedule.state_dict().items() if not k.startswith("_anneal")
        },
        "best_score": list(state.best_score),
        "best_epoch": state.best_epoch,
        "epoch": state.epoch,
        "seconds": state.seconds,
    }
    content = safetensors.torch.save(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        metadata={"state": json.dumps(scalars)},
    )
    checkpoint.parent.mkdir(exist_ok=True)
    replace_file(checkpoint, content)


def _restore(state: _State, checkpoint: Path) -> None:
    try:
        with safetensors.safe_open(checkpoint, framework="pt") as file:
            scalars = json.loads(file.metadata()["state"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _apply(state, scalars, tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 80)
        raise UsageError(
            f"{checkpoint}: expected a checkpoint of this recipe, got {reason}; "
            "train without --resume"
        ) from None


def _apply(state: _State, scalars: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    state.model.load_state_dict(under("model/"))
    device = device_of(state.model)
    state.average, state.best = (
        {k: v.to(device) for k, v in under(prefix).items()} for prefix in ("average/", "best/")
    )
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in under("optimiser/").items():
        index, name = key.split("/")
        slots.setdefault(int(index), {})[name] = value
    state.optimiser.load_state_dict({"state": slots, "param_groups": scalars["groups"]})
    state.schedule.load_state_dict(scalars["schedule"])
    state.best_score = (scalars["best_score"][0], scalars["best_score"][1])
    state.best_epoch, state.epoch = scalars["best_epoch"], scalars["epoch"]
    state.seconds = scalars["seconds"]


@torch.no_grad()
def _publish(folder: Path, state: _State, held_out: ImageSet, storage: str) -> MeasuredConfig:
    model = state.model
    model.load_state_dict(state.best)
    release(model)
    model.eval()
    ran = hardware(str(device_of(model)))
    model.to(CPU)  # what is published is measured where it is deployed by default
    weights = {k: v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    if storage == "float16":
        weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        model.load_state_dict(weights)
    content = safetensors.torch.save(weights)
    correct = float((model(held_out.images).argmax(dim=1) == held_out.labels).float().mean())
    measured = MeasuredConfig(
        validation_score=round(state.best_score[0], 6),
        validation_accuracy=round(correct, 6),
        epoch=state.best_epoch,
        seconds=round(state.seconds, 1),
        torch=torch.__version__,
        device=ran,
    )
    replace_file(folder / WEIGHTS_FILE, content)
    record_training(folder, hashlib.sha256(content).hexdigest(), measured)
    return measured


def epoch_runner(recipe: Recipe, images: ImageSet, device: str = CPU) -> Callable[[], float]:
    """One epoch of a fresh training over `images` per call, for measuring what it costs.

    A call does all that an epoch of `train` does but validation and checkpoint, and returns the
    mean loss. The schedule is as long as if an epoch had a step per image.
    """
    state = _fresh_state(recipe, len(images), device=device)
    steps = recipe.trained_by.epochs * len(images)
    loss = _loss(recipe.trained_by, recipe.data.classes, state.model, steps)
    return lambda: _train_epoch(state, recipe.trained_by, images, loss)


def step_runner(recipe: Recipe, images: ImageSet, device: str = CPU) -> Callable[[], None]:
    """Loss and back-propagation of one batch per call, for measuring what they cost."""
    model = _fresh_state(recipe, 1, device=device).model.train()
    steps = recipe.trained_by.epochs * len(images)
    loss = _loss(recipe.trained_by, recipe.data.classes, model, steps)
    generator = torch.Generator().manual_seed(recipe.trained_by.seed)

    pixels, labels = beside(model, images.images, images.labels)

    def step() -> None:
        model.zero_grad()
        loss(pixels, labels, generator, 0.0).backward()

    return step
