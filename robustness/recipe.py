"""Recipes: all that rebuilds a zoo entry, read from and written back to `recipe.toml`."""

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import BaseModel, Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from robustness.errors import UsageError
from robustness.nets.config import Config, ModelConfig

RECIPE_FILE = "recipe.toml"
WEIGHTS_FILE = "weights.safetensors"


class DataConfig(Config):
    """The data set a recipe trains on."""

    name: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    classes: int = Field(ge=2)


class CrossEntropyConfig(Config):
    """Cross-entropy of the logits; through the solver for a neural ODE."""

    kind: Literal["cross-entropy"]


class MonteCarloLyapunovConfig(Config):
    """LyaNet's Lyapunov loss over sampled states."""

    kind: Literal["lyapunov-monte-carlo"]
    states: PositiveInt = 512


class CertifiedLyapunovConfig(Config):
    """The Lyapunov loss of a target-seeking field at its worst over an l2 ball."""

    kind: Literal["certified-lyapunov"]
    eps: PositiveFloat
    temperature: PositiveFloat


class AugmentationConfig(Config):
    """Random affine distortion of each training image."""

    rotate: NonNegativeFloat = 0.0
    shift: NonNegativeFloat = 0.0
    scale: NonNegativeFloat = 0.0
    shear: NonNegativeFloat = 0.0


LossConfig = Annotated[
    CrossEntropyConfig | MonteCarloLyapunovConfig | CertifiedLyapunovConfig,
    Field(discriminator="kind"),
]


class TrainingConfig(Config):
    """How the weights are found.

    `validation` is the fraction of the training split held out to choose the checkpoint;
    `averaging` is the decay per step of an exponential moving average of the weights, 0 for
    none; `threads` is fixed because the number of threads changes the last bits of a sum.
    """

    loss: LossConfig
    epochs: PositiveInt
    batch_size: PositiveInt = 64
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "one-cycle", "cosine"] = "one-cycle"
    averaging: float = Field(default=0.0, ge=0.0, lt=1.0)
    augmentation: AugmentationConfig = AugmentationConfig()
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: int = 0
    threads: PositiveInt = 1


class WeightsConfig(Config):
    """Which weights belong to the recipe."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MeasuredConfig(Config):
    """What training measured and what it cost; informative, never an input."""

    validation_score: float
    validation_accuracy: float
    epoch: int
    seconds: float
    torch: str
    device: str = "cpu"


class Recipe(Config):
    """A zoo entry: data, architecture, training, and the SHA-256 of its weights."""

    schema_version: Literal[1] = 1
    description: str
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    weights: WeightsConfig | None = None
    measured: MeasuredConfig | None = None

    @property
    def architecture(self) -> dict[str, Any]:
        """The part of the recipe that decides what function given weights compute."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
        }

    @property
    def training_digest(self) -> str:
        """SHA-256 of everything that decides the trained weights."""
        decisive = self.model_dump(mode="json", exclude={"weights", "measured", "description"})
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


Validated = TypeVar("Validated", bound=BaseModel)


def read_toml(path: Path, model: type[Validated]) -> Validated:
    """Read a TOML file into a strict configuration.

    Raises:
        UsageError: the file is missing, is not TOML, or does not fit; the first fault is named.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"expected a TOML file at {path}, got {error.strerror or error}; check the path"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected TOML, got {error}; correct the file") from None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe_validation(error)}") from None


def describe_validation(error: ValidationError) -> str:
    """The first fault of a failed validation, in one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "file"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}; remove it or correct its spelling{more}"
    if first["type"] == "missing":
        return f"missing key {place!r}; add it{more}"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}{more}"


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe in `folder`.

    Raises:
        UsageError: there is none, or it does not fit.
    """
    return read_toml(folder / RECIPE_FILE, Recipe)


def record_training(folder: Path, sha256: str, measured: MeasuredConfig) -> None:
    """Write the weights' SHA-256 and the measured values into the recipe, keeping the rest."""
    path = folder / RECIPE_FILE
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    document["weights"] = {"sha256": sha256}
    document["measured"] = measured.model_dump()
    replace_file(path, tomlkit.dumps(document).encode())


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one atomic step: readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
