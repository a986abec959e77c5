"""Recipes: all that rebuilds a zoo entry, read from and written back to `recipe.toml`."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tomlkit
from pydantic import (
    BaseModel,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from robustness.errors import UsageError, one_line, os_failure, quoted
from robustness.files import replace_file
from robustness.nets.config import Config, ModelConfig
from robustness.threat import Norm

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
    """LyaNet's Lyapunov loss over sampled states, `extent` of the authors' ball of radii.

    `dropout` is the share of the field's hidden units that a training step leaves out.
    """

    kind: Literal["lyapunov-monte-carlo"]
    states: PositiveInt = 512
    extent: PositiveFloat = 1.0
    dropout: float | None = Field(default=None, gt=0.0, lt=1.0)


class CertifiedLyapunovConfig(Config):
    """The Lyapunov loss of a target-seeking field at its worst over an l2 ball."""

    kind: Literal["certified-lyapunov"]
    eps: PositiveFloat
    temperature: PositiveFloat


class CertifiedIntervalConfig(Config):
    """The Lyapunov loss of a target-seeking field at its worst over an l-infinity box.

    The box grows from nothing to `eps` between the shares `warm_up` and `ramp` of all training
    steps. `clean` is the share of the plain cross-entropy, `regularisation` the weight of the
    regularisers that prepare the network for wide boxes; they fade as the box grows. The
    checkpoint is chosen by what is certified at `test_eps`, which is best smaller than `eps`.
    """

    kind: Literal["certified-interval"]
    eps: PositiveFloat
    test_eps: PositiveFloat
    warm_up: float = Field(default=0.05, ge=0.0, le=1.0)
    ramp: float = Field(default=0.4, ge=0.0, le=1.0)
    clean: float = Field(default=0.0, ge=0.0, le=1.0)
    regularisation: NonNegativeFloat = 0.5

    @model_validator(mode="after")
    def _ramp_ends_after_the_warm_up(self) -> "CertifiedIntervalConfig":
        if self.ramp < self.warm_up:
            raise ValueError(f"expected ramp >= warm_up, got {self.ramp} and {self.warm_up}")
        return self

    def grown(self, progress: float) -> float:
        """Share of `eps` that the box has reached at a share `progress` of the training steps."""
        if progress >= self.ramp:
            return 1.0
        return max(0.0, (progress - self.warm_up) / (self.ramp - self.warm_up))


class PathIntegralLyapunovConfig(Config):
    """LyaNet's Lyapunov loss over the states of solved trajectories.

    `through_solver` says whether gradients go through the solved states as well; without, they
    reach the velocities at these states only. `rate` is kappa, the field's own by default.
    """

    kind: Literal["lyapunov-path-integral"]
    through_solver: bool = True
    rate: PositiveFloat | None = None


class InvarianceConfig(Config):
    """FI-ODE's loss for a field on the simplex: the margin potential falls at sampled states."""

    kind: Literal["invariance-monte-carlo"]
    states: PositiveInt = 64
    rate: PositiveFloat
    leak: NonNegativeFloat = 0.0


class AdversarialConfig(Config):
    """Cross-entropy at images found by projected gradient descent, eps in pixel units.

    `step_size` is 2.5 eps / steps by default, which reaches the edge from every start.
    """

    kind: Literal["adversarial"]
    norm: Norm = Norm.LINF
    eps: PositiveFloat
    steps: PositiveInt
    step_size: PositiveFloat | None = None


class SteadyStateConfig(Config):
    """TisODE's loss: cross-entropy and the distance still travelled after the horizon."""

    kind: Literal["steady-state"]
    weight: PositiveFloat


class StableEquilibriumConfig(Config):
    """SODEF's loss: cross-entropy and a stable equilibrium where the solution ends."""

    kind: Literal["stable-equilibrium"]
    equilibrium: NonNegativeFloat
    diagonal: NonNegativeFloat
    dominance: NonNegativeFloat


class AugmentationConfig(Config):
    """Random affine distortion of each training image, then a random crop and mirroring.

    `crop` is the number of black pixels on each side out of which an image of the same size is
    cut; `flip` mirrors every other image.
    """

    rotate: NonNegativeFloat = 0.0
    shift: NonNegativeFloat = 0.0
    scale: NonNegativeFloat = 0.0
    shear: NonNegativeFloat = 0.0
    crop: NonNegativeInt = 0
    flip: bool = False


LossConfig = Annotated[
    CrossEntropyConfig
    | MonteCarloLyapunovConfig
    | PathIntegralLyapunovConfig
    | CertifiedLyapunovConfig
    | CertifiedIntervalConfig
    | InvarianceConfig
    | AdversarialConfig
    | SteadyStateConfig
    | StableEquilibriumConfig,
    Field(discriminator="kind"),
]


class TrainingConfig(Config):
    """How the weights are found.

    `validation` is the fraction of the training split held out to choose the checkpoint;
    `averaging` is the decay per step of an exponential moving average of the weights, 0 for
    none; schedule `step` divides the learning rate by 10 halfway, as LyaNet's authors do;
    `cycles` restarts schedule and optimiser so many times in equal shares of the epochs, each time
    from the best weights so far (warm restarts, arXiv 1608.03983);
    `threads` is fixed because the number of threads changes the last bits of a sum;
    `precision` is that of the products in forward and backward passes of training (weights,
    sums, constraints and everything that is deployed stay float32).
    `storage` is that of the weights' file: in float16 it holds twice as many, rounded once before
    they are measured, certified and deployed.
    """

    loss: LossConfig
    epochs: PositiveInt
    batch_size: PositiveInt = 64
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat = 0.0
    schedule: Literal["constant", "one-cycle", "cosine", "step"] = "one-cycle"
    cycles: PositiveInt = 1
    averaging: float = Field(default=0.0, ge=0.0, lt=1.0)
    augmentation: AugmentationConfig = AugmentationConfig()
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: int = 0
    threads: PositiveInt = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    storage: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _cycles_share_the_epochs(self) -> "TrainingConfig":
        if self.epochs % self.cycles:
            raise ValueError(
                f"expected epochs to be a multiple of cycles, got {self.epochs} and {self.cycles}"
            )
        return self


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
        raise os_failure(error, f"a TOML file at {path}", "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected TOML, got {error}; correct the file") from None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe_validation(error)}") from None


def describe_validation(error: ValidationError) -> str:
    """The first fault of a failed validation, in one line."""
    # A misspelt key is both unknown and missing; its own spelling says more.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"]) or "file"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {quoted(place)}; remove it or correct its spelling{more}"
    if first["type"] == "missing":
        return f"missing key {place!r}; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if "got " not in message:
        message += f", got {quoted(first['input'])}"
    return f"{one_line(place, 60)}: {one_line(message, 150)}{more}"


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
