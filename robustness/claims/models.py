"""The five models whose claims are measured: the zoo's recipes, pair by pair, trained as published.

What is altered of LyaNet's published training, and of its rivals', is here and in the report.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from robustness.errors import UsageError, os_failure
from robustness.files import replace_file
from robustness.numerics.devices import CPU
from robustness.recipe import RECIPE_FILE, Recipe, read_recipe
from robustness.results.leaderboard import Summary
from robustness.threat import Norm, ThreatModel
from robustness.training.loop import train
from robustness.zoo import find_entry, load_model

# What is trained for equally long: each pair, ours last, and the network without an ODE by itself.
GROUPS = (("resnet",), ("node", "lyanet"), ("continuousnet", "lyanet-continuousnet"))
MODELS = tuple(name for group in GROUPS for name in group)
PAIRS = {ours: rival for rival, ours in GROUPS[1:]}

# As LyaNet is published (arXiv 2202.02526 and its code): the learning rate falls to a tenth
# halfway, a tenth of the training images is held out, weights are averaged, the gain is 100 at
# first and moves, states are drawn from the whole ball, and half of the field's hidden units are
# left out in a step.
STATES, GAIN, RATE, DROPOUT, HELD_OUT, BATCH = 64, 100.0, 2.0, 0.5, 0.1, 128
_TRAINING = {
    "batch_size": BATCH,
    "schedule": "step",
    "averaging": 0.998,
    "validation": HELD_OUT,
    "weight_decay": 1e-5,
}
_LOSSES: dict[str, dict[str, Any]] = {
    "lyanet": {
        "kind": "lyapunov-monte-carlo",
        "states": STATES,
        "extent": 1.0,
        "dropout": DROPOUT,
    },
    "lyanet-continuousnet": {"kind": "lyapunov-path-integral", "rate": RATE},
}


@dataclass(frozen=True)
class Study:
    """The five models on one data set.

    Attributes:
        data: its name.
        title: as headings call it.
        threat: where the worst case is measured, beside the paper's radii.
        budgets: epochs, of which a group of models takes the first after which the validation
            accuracy of none of them rises any more, or else the last.
        rate: the learning rate at first.
        tuned: other rates, by model, found by validation (`benchmarks/claim_rates.py`).
        seeds: of the committed report, and of any by default.
        looked: how many of these had been looked at before the others were added, to decide what
            they left open.
        smaller: what is smaller than in the zoo's recipe, by the model that the recipe is of.
    """

    data: str
    title: str
    threat: ThreatModel
    budgets: tuple[int, ...]
    rate: float
    smaller: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuned: Mapping[str, float] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3, 4)
    looked: int = 3

    def rate_of(self, name: str) -> float:
        """The learning rate of a model at first."""
        return self.tuned.get(name, self.rate)


STUDIES = {
    study.data: study
    for study in (
        Study(
            "mnist",
            "MNIST",
            ThreatModel(Norm.LINF, 0.1),
            (10, 20),
            3e-3,
            {
                "resnet": {"widths": [8, 16, 32]},
                "continuousnet": {"stem": [8], "widths": [16, 24]},
            },
        ),
        Study(
            "fashion-mnist",
            "Fashion-MNIST",
            ThreatModel(Norm.LINF, 0.1),
            (24,),
            3e-3,
            {
                "resnet": {"widths": [8, 16, 32]},
                "continuousnet": {"stem": [8], "widths": [16, 24]},
            },
        ),
        Study(
            "cifar-10",
            "CIFAR-10",
            ThreatModel(Norm.LINF, 8 / 255),
            (16,),
            4e-3,
            {
                "resnet": {"widths": [8, 16, 32]},
                "node": {
                    "encoder": {
                        "kind": "conv",
                        "widths": [16, 16, 32, 32, 64, 64],
                        "strides": [2, 1, 2, 1, 2, 1],
                    }
                },
                "continuousnet": {"stem": [8], "widths": [16, 24]},
            },
            # Of 0.0003, 0.001 and 0.004, with 41.7, 47.9 and 44.5 % of seed 1's validation images.
            tuned={"lyanet": 1e-3},
        ),
    )
}


class Budget(Summary):
    """How long a model was trained.

    Attributes:
        epochs: of its training.
        best_epoch: the one with the highest validation accuracy, whose weights are kept.
        seconds: of the training, beside whatever else ran.
        gain: of LyaNet's field in the weights that are kept, where training moved it.
    """

    epochs: int
    best_epoch: int
    seconds: float
    gain: Annotated[float | None, Field(exclude_if=lambda gain: gain is None)] = None

    @property
    def settled(self) -> bool:
        """Whether the validation accuracy had stopped rising for a fifth of the epochs."""
        return self.best_epoch <= self.epochs - math.ceil(self.epochs / 5)


def study_of(data: str) -> Study:
    """The study on a data set.

    Raises:
        UsageError: there is none.
    """
    if data not in STUDIES:
        raise UsageError(
            f"expected a data set of the claims, one of {', '.join(STUDIES)}, got {data!r}; "
            "correct --data"
        )
    return STUDIES[data]


def recipe_text(study: Study, name: str, seed: int, epochs: int) -> str:
    """The recipe of one model and seed as TOML, without weights.

    Both of a pair are the same network, but for the gain of LyaNet's field.

    Args:
        study: on which data set.
        name: one of `MODELS`.
        seed: of the initial weights, the order of images, their augmentation, the sampled
            states and the split into training and validation.
        epochs: how long it is trained.
    """
    rival = PAIRS.get(name, name)
    source = find_entry(f"{study.data}/{rival}") / RECIPE_FILE
    import tomlkit  # dear to import, and needed here alone

    document = tomlkit.parse(source.read_text(encoding="utf-8"))
    for part in ("weights", "measured"):
        document.pop(part, None)
    document["description"] = f"{name} of the claims on {study.title}"
    document["model"] |= study.smaller.get(rival, {})
    if name == "lyanet":
        document["model"]["field"] |= {"gain": GAIN, "moving": True}
    training = document["training"]
    for part in ("storage", "precision"):
        training.pop(part, None)
    training |= _TRAINING | {"epochs": epochs, "seed": seed, "learning_rate": study.rate_of(name)}
    training["loss"] = _LOSSES.get(name, {"kind": "cross-entropy"})
    return tomlkit.dumps(document)


def recipe_of(study: Study, name: str, seed: int, epochs: int | None = None) -> Recipe:
    """The recipe of one model and seed, with the first budget unless said."""
    text = recipe_text(study, name, seed, epochs or study.budgets[0])
    return Recipe.model_validate(tomllib.loads(text))


def trained_group(
    study: Study,
    group: tuple[str, ...],
    seed: int,
    work: Path,
    data_dir: Path | None,
    quiet: bool,
    device: str = CPU,
) -> dict[str, tuple[nn.Module, Budget]]:
    """Models that are compared, with the first budget after which none of them gets better.

    Args:
        study: on which data set.
        group: one of `GROUPS`.
        seed: as in `recipe_text`.
        work: folder for recipes, weights and checkpoints; a killed training goes on there.
        data_dir: folder with the official image files; None downloads them.
        quiet: no progress bar.
        device: where they are trained and put.

    Raises:
        UsageError: see `trained`.
    """
    found: dict[str, tuple[nn.Module, Budget]] = {}
    for epochs in study.budgets:
        found = {
            name: trained(study, name, seed, epochs, work, data_dir, quiet, device)
            for name in group
        }
        if all(budget.settled for _, budget in found.values()):
            break
    return found


def trained(
    study: Study,
    name: str,
    seed: int,
    epochs: int,
    work: Path,
    data_dir: Path | None,
    quiet: bool,
    device: str = CPU,
) -> tuple[nn.Module, Budget]:
    """One model of one seed, trained on the first call and read from `work` on later ones.

    Args:
        study: on which data set.
        name: one of `MODELS`.
        seed: as in `recipe_text`.
        epochs: how long.
        work: folder for recipes, weights and checkpoints; a killed training goes on there.
        data_dir: folder with the official image files; None downloads them.
        quiet: no progress bar.
        device: where it is trained and put.

    Raises:
        UsageError: `work` cannot be written to or has another recipe in the model's folder, or the
            images cannot be read.
    """
    folder = folder_of(work, name, seed, epochs)
    begun = _begun(folder, recipe_of(study, name, seed, epochs))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            text = recipe_text(study, name, seed, epochs)
            replace_file(folder / RECIPE_FILE, text.encode())
    except OSError as error:
        raise os_failure(
            error, f"a folder to train in at {folder}", "give another with --out"
        ) from None
    recipe = read_recipe(folder)
    if recipe.weights is None or recipe.measured is None:
        train(folder, resume=True, data_dir=data_dir, quiet=quiet, device=device)
        recipe = read_recipe(folder)
    assert recipe.measured is not None
    measured = recipe.measured
    model = load_model(str(folder)).module
    gain = getattr(getattr(model, "field", None), "gain", None)
    budget = Budget(
        epochs=epochs,
        best_epoch=measured.epoch,
        seconds=measured.seconds,
        gain=float(gain) if isinstance(gain, Tensor) else None,
    )
    return model.to(device), budget


def folder_of(work: Path, name: str, seed: int, epochs: int) -> Path:
    """Where `trained` keeps recipe and weights of one training."""
    return work / f"seed-{seed}" / f"{name}-{epochs}"


def _begun(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds this very training.

    Raises:
        UsageError: it holds another, which may be somebody's.
    """
    file = folder / RECIPE_FILE
    if not file.exists():
        return False
    if read_recipe(folder).training_digest != recipe.training_digest:
        raise UsageError(
            f"expected the recipe of this training at {file}, got another one; move {folder} away, "
            "or give another --out"
        )
    return True
