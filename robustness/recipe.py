"""Recipes: all that rebuilds a zoo entry, read from and written back to `recipe.toml`."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    Field,
    model_validator,
)
from torch import nn

from robustness.config import Config
from robustness.errors import UsageError, one_line
from robustness.files import read_file, read_toml, replace_file
from robustness.inputs import (
    Iterations,
    Name,
    NonNegative,
    Positive,
    Seed,
    Threads,
    Width,
    require_memory,
)
from robustness.nets.config import ModelConfig
from robustness.threat import Norm

RECIPE_FILE = "recipe.toml"
WEIGHTS_FILE = "weights.safetensors"


class DataConfig(Config):
    """The data set a recipe trains on."""

    name: Name
    shape: tuple[Width, Width, Width]
    classes: int = Field(ge=2, le=2**20)


class CrossEntropyConfig(Config):
    """Cross-entropy of the logits; through the solver for a neural ODE."""

    kind: Literal["cross-entropy"]


class MonteCarloLyapunovConfig(Config):
    """LyaNet's Lyapunov loss over sampled states, `extent` of the authors' ball of radii.

    `dropout` is the share of the field's hidden units that a training step leaves out.
    """

    kind: Literal["lyapunov-monte-carlo"]
    states: Width = 512
    extent: Positive = 1.0
    dropout: float | None = Field(default=None, gt=0.0, lt=1.0)


class CertifiedLyapunovConfig(Config):
    """The Lyapunov loss of a target-seeking field at its worst over an l2 ball."""

    kind: Literal["certified-lyapunov"]
    eps: Positive
    temperature: Positive


class GrowingBoxConfig(Config):
    """An l-infinity box that grows in training.

    The box grows from nothing to `eps` between the shares `warm_up` and `ramp` of all training
    steps. `clean` is the share of the plain cross-entropy, `regularisation` the weight of the
    regularisers that prepare the network for wide boxes; they fade as the box grows. The
    checkpoint is chosen by what is certified at `test_eps`, which is best smaller than `eps`.
    """

    eps: Positive
    test_eps: Positive
    warm_up: float = Field(default=0.05, ge=0.0, le=1.0)
    ramp: float = Field(default=0.4, ge=0.0, le=1.0)
    clean: float = Field(default=0.0, ge=0.0, le=1.0)
    regularisation: NonNegative = 0.5

    @model_validator(mode="after")
    def _ramp_ends_after_the_warm_up(self) -> "GrowingBoxConfig":
        if self.ramp < self.warm_up:
            raise ValueError(f"expected ramp >= warm_up, got {self.ramp} and {self.warm_up}")
        return self

    def grown(self, progress: float) -> float:
        """Share of `eps` that the box has reached at a share `progress` of the training steps."""
        if progress >= self.ramp:
            return 1.0
        return max(0.0, (progress - self.warm_up) / (self.ramp - self.warm_up))


class CertifiedIntervalConfig(GrowingBoxConfig):
    """The Lyapunov loss of a target-seeking field at its worst over an l-infinity box."""

    kind: Literal["certified-interval"]


class ProvedConfig(GrowingBoxConfig):
    """V at the horizon at its worst over an l-infinity box, by bounds of the recorded program.

    The bounds pass through every step of the solver, whatever the model is made of. `lyapunov` is
    the weight of LyaNet's loss beside it: for a neural ODE on the class state the Monte Carlo loss
    over `states` states in `extent` of the authors' ball, for a ContinuousNet that over the states
    of solved trajectories. `steering` is the weight of the potential of what the softmaxes of
    LyaNet's simplex variant are taken of, at its worst, which has gradients where V has none: V is
    bounded there, and flat where a box is wide.
    """

    kind: Literal["proved"]
    steering: NonNegative = 0.0
    lyapunov: NonNegative = 0.0
    states: Width = 32
    extent: Positive = 0.4


class PathIntegralLyapunovConfig(Config):
    """LyaNet's Lyapunov loss over the states of solved trajectories.

    `through_solver` says whether gradients go through the solved states as well; without, they
    reach the velocities at these states only. `rate` is kappa, the field's own by default.
    """

    kind: Literal["lyapunov-path-integral"]
    through_solver: bool = True
    rate: Positive | None = None


class InvarianceConfig(Config):
    """FI-ODE's loss for a field on the simplex: the margin potential falls at sampled states."""

    kind: Literal["invariance-monte-carlo"]
    states: Width = 64
    rate: Positive
    leak: NonNegative = 0.0


class AdversarialConfig(Config):
    """Cross-entropy at images found by projected gradient descent, eps in pixel units.

    `step_size` is 2.5 eps / steps by default, which reaches the edge from every start.
    """

    kind: Literal["adversarial"]
    norm: Norm = Norm.LINF
    eps: Positive
    steps: Iterations
    step_size: Positive | None = None


class SteadyStateConfig(Config):
    """TisODE's loss: cross-entropy and the distance still travelled after the horizon."""

    kind: Literal["steady-state"]
    weight: Positive


class StableEquilibriumConfig(Config):
    """SODEF's loss: cross-entropy and a stable equilibrium where the solution ends."""

    kind: Literal["stable-equilibrium"]
    equilibrium: NonNegative
    diagonal: NonNegative
    dominance: NonNegative


class AugmentationConfig(Config):
    """Random affine distortion of each training image, then a random crop and mirroring.

    `crop` is the number of black pixels on each side out of which an image of the same size is
    cut; `flip` mirrors every other image.
    """

    rotate: NonNegative = 0.0
    shift: NonNegative = 0.0
    scale: NonNegative = 0.0
    shear: NonNegative = 0.0
    crop: int = Field(default=0, ge=0, le=255)
    flip: bool = False


LossConfig = Annotated[
    CrossEntropyConfig
    | MonteCarloLyapunovConfig
    | PathIntegralLyapunovConfig
    | CertifiedLyapunovConfig
    | CertifiedIntervalConfig
    | ProvedConfig
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
    epochs: Iterations
    batch_size: Width = 64
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Positive
    weight_decay: NonNegative = 0.0
    schedule: Literal["constant", "one-cycle", "cosine", "step"] = "one-cycle"
    cycles: Iterations = 1
    averaging: float = Field(default=0.0, ge=0.0, lt=1.0)
    augmentation: AugmentationConfig = AugmentationConfig()
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    seed: Seed = 0
    threads: Threads = 1
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
    """Which weights belong to the recipe.

    Weights of others are not included. Then `source` says where they come from, `licence` under
    which licence, and `file` is what they are called in the folder that a user keeps them in.
    """

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    source: Name | None = None
    licence: Name | None = None
    file: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][\w.-]{0,99}$")

    @model_validator(mode="after")
    def _of_others_say_all(self) -> "WeightsConfig":
        given = [part is not None for part in (self.source, self.licence, self.file)]
        if any(given) and not all(given):
            raise ValueError("expected source, licence and file together, got some of them only")
        return self


class Published(Config):
    """What others say of weights of theirs, quoted; never an input, and not measured here.

    Accuracies are shares from 0 to 1, `eps` is in pixel units; `basis` says of which models,
    images and program they are.
    """

    norm: Norm = Norm.LINF
    eps: Positive
    clean: float = Field(ge=0.0, le=1.0)
    certified: float = Field(ge=0.0, le=1.0)
    basis: str = Field(min_length=1, max_length=200)


class MeasuredConfig(Config):
    """What training measured and what it cost; informative, never an input."""

    validation_score: float
    validation_accuracy: float
    epoch: int
    seconds: float
    torch: str
    device: str = "cpu"


class Recipe(Config):
    """A zoo entry: data, architecture, training, and the SHA-256 of its weights.

    Weights of others may come with what is `published` of them.
    """

    schema_version: Literal[1] = 1
    description: str
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig | None = None
    weights: WeightsConfig | None = None
    measured: MeasuredConfig | None = None
    published: list[Published] = Field(default_factory=list)

    @model_validator(mode="after")
    def _trained_here_or_elsewhere(self) -> "Recipe":
        if self.training is None and (self.weights is None or self.weights.source is None):
            raise ValueError("expected [training], or [weights] with a source, got neither")
        if self.published and (self.weights is None or self.weights.source is None):
            raise ValueError("expected [[published]] of weights with a source, got it without")
        return self

    @property
    def trained_by(self) -> TrainingConfig:
        """How its weights are found.

        Raises:
            UsageError: they come from elsewhere.
        """
        if self.training is None:
            source = self.weights.source if self.weights else None
            raise UsageError(
                f"expected a recipe with [training], got one whose weights come from {source}; "
                "train another recipe"
            )
        return self.training

    def build(self, copies: int = 2) -> nn.Module:
        """The model with fresh weights, if `copies` of these fit into memory.

        Raises:
            UsageError: the parts do not fit each other, or the model not into memory.
        """
        shape, classes = self.data.shape, self.data.classes
        try:
            with torch.device("meta"):  # shapes alone, whatever their size
                skeleton = self.model.build(shape, classes)
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"the recipe's parts do not fit: {one_line(str(error), 120)}; correct [model]"
            ) from None
        tensors = [*skeleton.parameters(), *skeleton.buffers()]
        size = copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        require_memory(size, f"{copies} copies of the recipe's model")
        return self.model.build(shape, classes)

    @property
    def architecture(self) -> dict[str, Any]:
        """The part of the recipe that decides what function given weights compute."""
        return {
            "data": self.data.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
        }

    @property
    def digest(self) -> str | None:
        """SHA-256 of weights and architecture, which names the model; None without weights."""
        if self.weights is None:
            return None
        identity = json.dumps([self.architecture, self.weights.sha256])
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def training_digest(self) -> str:
        """SHA-256 of everything that decides the trained weights."""
        decisive = self.model_dump(
            mode="json", exclude={"weights", "measured", "description", "published"}
        )
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def read_recipe(folder: Path) -> Recipe:
    """Read the recipe in `folder`.

    Raises:
        UsageError: there is none, or it does not fit.
    """
    return read_toml(folder / RECIPE_FILE, Recipe)


def record_training(folder: Path, sha256: str, measured: MeasuredConfig) -> None:
    """Write the weights' SHA-256 and the measured values into the recipe, keeping the rest."""
    import tomlkit  # dear to import, and needed by training alone

    path = folder / RECIPE_FILE
    document = tomlkit.parse(read_file(path).decode("utf-8"))
    document["weights"] = {"sha256": sha256}
    document["measured"] = measured.model_dump()
    replace_file(path, tomlkit.dumps(document).encode())
