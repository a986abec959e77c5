"""What a recipe can name: one validated configuration per network part, each with `build`."""

import operator
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn

from robustness.config import Config
from robustness.inputs import MOST_LAYERS, Depth, Iterations, Kernel, Positive, Width
from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier
from robustness.nets.continuous import ContinuousNet, ConvODENet
from robustness.nets.convolutions import ConvEncoder, ConvReLUEncoder, ConvResidualClassifier
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ConvContractiveFlowEncoder,
    FlowStage,
    MLPEncoder,
    Normalise,
)
from robustness.nets.fields import LyaNetField, TargetSeekingField
from robustness.nets.orthogonal import OrthogonalEncoder
from robustness.nets.runge_kutta import FixedMethod
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver

ImageShape = tuple[int, int, int]
Widths = Annotated[list[Width], Field(min_length=1, max_length=MOST_LAYERS)]


class NormaliseConfig(Config):
    """Per-channel mean and standard deviation, in pixels of [0, 1]."""

    mean: list[float] = Field(default=[0.0], min_length=1)
    std: list[Positive] = Field(default=[1.0], min_length=1)

    def build(self, channels: int) -> Normalise:
        """The normalising layer; one value stands for all channels."""
        mean, std = self.mean, self.std
        if len(mean) == 1:
            mean = mean * channels
        if len(std) == 1:
            std = std * channels
        if len(mean) != channels:
            raise ValueError(f"expected {channels} means for as many channels, got {mean}")
        return Normalise(list(mean), list(std))


class MLPEncoderConfig(Config):
    """A perceptron over flattened pixels."""

    kind: Literal["mlp"]
    widths: Widths

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features (as many as the field asks for)."""
        if features is None:
            raise ValueError("an mlp encoder goes with a field that fixes its number of features")
        pixels = shape[0] * shape[1] * shape[2]
        return MLPEncoder(pixels, list(self.widths), features), features


class ContractiveFlowConfig(Config):
    """Contractive Euler steps over flattened pixels: 1-Lipschitz in l2."""

    kind: Literal["contractive-flow"]
    steps: Depth
    hidden: Width

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features (as many as pixels)."""
        pixels = shape[0] * shape[1] * shape[2]
        if features is not None and features != pixels:
            raise ValueError(
                f"a contractive-flow encoder gives {pixels} features, the field asks for {features}"
            )
        return ContractiveFlowEncoder(pixels, self.steps, self.hidden), pixels


class ConvEncoderConfig(Config):
    """3x3 convolutions with batch norm and ReLU, then a linear layer onto the features."""

    kind: Literal["conv"]
    widths: Widths
    strides: Widths

    @model_validator(mode="after")
    def _as_many_strides_as_widths(self) -> "ConvEncoderConfig":
        _require_equal_lengths(self.widths, self.strides)
        return self

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features (as many as the field asks for)."""
        if features is None:
            raise ValueError("a conv encoder goes with a field that fixes its number of features")
        return ConvEncoder(shape, list(self.widths), list(self.strides), features), features


class ConvReLUEncoderConfig(Config):
    """Convolutions and a linear layer with ReLU and without batch norm, for interval bounds."""

    kind: Literal["conv-relu"]
    widths: Widths
    strides: Widths
    outputs: Width
    kernel: Kernel = 3

    @model_validator(mode="after")
    def _as_many_strides_as_widths(self) -> "ConvReLUEncoderConfig":
        _require_equal_lengths(self.widths, self.strides)
        return self

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features."""
        if features is not None and features != self.outputs:
            raise ValueError(
                f"this conv-relu encoder gives {self.outputs} features, the field asks for "
                f"{features}"
            )
        widths, strides = list(self.widths), list(self.strides)
        encoder = ConvReLUEncoder(shape, widths, strides, self.outputs, self.kernel)
        return encoder, self.outputs


class FlowStageConfig(Config):
    """One resolution of a convolutional contractive flow."""

    unshuffle: Width = 2
    channels: Width
    steps: Depth
    hidden: Width
    kernel: Kernel = 3


class ConvContractiveFlowConfig(Config):
    """Convolutional contractive Euler steps, coarser from stage to stage: 1-Lipschitz in l2."""

    kind: Literal["conv-contractive-flow"]
    stages: list[FlowStageConfig] = Field(min_length=1, max_length=MOST_LAYERS)

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features (as many as the last stage's state has)."""
        stages = [FlowStage(**stage.model_dump()) for stage in self.stages]
        encoder = ConvContractiveFlowEncoder(shape, stages)
        if features is not None and features != encoder.outputs:
            raise ValueError(
                f"this conv-contractive-flow encoder gives {encoder.outputs} features, "
                f"the field asks for {features}"
            )
        return encoder, encoder.outputs


class OrthogonalEncoderConfig(Config):
    """Orthogonal convolutions on ever coarser images, then orthonormal features."""

    kind: Literal["orthogonal"]
    widths: Widths
    layers: Depth = 1

    def build(self, shape: ImageShape, features: int | None) -> tuple[nn.Module, int]:
        """The encoder and its number of features (as many as the field asks for)."""
        if features is None:
            raise ValueError(
                "an orthogonal encoder goes with a field that fixes its number of features"
            )
        return OrthogonalEncoder(shape, list(self.widths), self.layers, features), features


class LyaNetFieldConfig(Config):
    """LyaNet's data-controlled field.

    `feedback` scales its weights on the state at the start. A `moving` gain is at first `gain`,
    and moved by training, see `training.losses.moved_gain`.
    """

    kind: Literal["lyanet"]
    variant: Literal["normalised", "simplex"]
    width: Width
    gain: Positive = 1.0
    # Left out where they are what they were, so that they change no digest.
    feedback: Annotated[Positive, Field(exclude_if=lambda factor: factor == 1.0)] = 1.0
    moving: Annotated[bool, Field(exclude_if=lambda moving: not moving)] = False

    @property
    def features(self) -> int | None:
        """Number of features the field asks its encoder for."""
        return self.width**2

    def build(self, classes: int, features: int) -> nn.Module:
        """The field."""
        del features
        return LyaNetField(
            classes,
            self.width,
            self.variant,
            self.gain,
            feedback=self.feedback,
            moving=self.moving,
        )


class TargetSeekingFieldConfig(Config):
    """Relaxation towards a target that is affine in the features."""

    kind: Literal["target-seeking"]
    gain: Positive = 1.0
    coupling: float = Field(default=0.0, ge=0.0)

    @property
    def features(self) -> int | None:
        """Number of features the field asks its encoder for: any."""
        return None

    def build(self, classes: int, features: int) -> nn.Module:
        """The field."""
        return TargetSeekingField(classes, features, self.gain, self.coupling)


class SimplexFieldConfig(Config):
    """FI-ODE's field: its projection keeps the state on the probability simplex."""

    kind: Literal["simplex"]
    width: Width
    gain: Positive = 1.0

    @property
    def features(self) -> int | None:
        """Number of features the field asks its encoder for."""
        return self.width

    def build(self, classes: int, features: int) -> nn.Module:
        """The field."""
        del features
        return SimplexField(classes, self.width, self.gain)


class FixedStepConfig(Config):
    """A fixed-step Runge-Kutta method."""

    kind: Literal["fixed"] = "fixed"
    method: FixedMethod
    steps: Iterations
    horizon: Positive = 1.0
    gradient: Literal["backprop", "adjoint"] = "backprop"

    def build(self) -> Solver:
        """The solver."""
        return FixedStepSolver(self.method, self.steps, self.horizon, self.gradient)


class AdaptiveConfig(Config):
    """An adaptive Runge-Kutta method."""

    kind: Literal["adaptive"]
    method: Literal["dopri5", "bosh3", "adaptive_heun"] = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    horizon: Positive = 1.0
    max_steps: Iterations = 1000
    gradient: Literal["backprop", "adjoint"] = "backprop"
    coupled: bool = False

    def build(self) -> Solver:
        """The solver."""
        return AdaptiveSolver(**self.model_dump(exclude={"kind"}))


EncoderConfig = Annotated[
    MLPEncoderConfig
    | ContractiveFlowConfig
    | ConvEncoderConfig
    | ConvReLUEncoderConfig
    | ConvContractiveFlowConfig
    | OrthogonalEncoderConfig,
    Field(discriminator="kind"),
]
FieldConfig = Annotated[
    LyaNetFieldConfig | TargetSeekingFieldConfig | SimplexFieldConfig, Field(discriminator="kind")
]
SolverConfig = Annotated[FixedStepConfig | AdaptiveConfig, Field(discriminator="kind")]


class NeuralODEConfig(Config):
    """A neural ODE on the class state."""

    kind: Literal["neural-ode"]
    normalise: NormaliseConfig = NormaliseConfig()
    encoder: EncoderConfig
    field: FieldConfig
    solver: SolverConfig
    initial: float = 0.0
    precision: Literal["float32", "float64"] = "float32"

    def build(self, shape: ImageShape, classes: int) -> nn.Module:
        """The classifier, with fresh weights, in the precision that it predicts with."""
        encoder, features = self.encoder.build(shape, self.field.features)
        model = NeuralODEClassifier(
            self.normalise.build(shape[0]),
            encoder,
            self.field.build(classes, features),
            self.solver.build(),
            classes,
            self.initial,
        )
        return model.double() if self.precision == "float64" else model


class ResidualConfig(Config):
    """A residual perceptron, the discrete baseline."""

    kind: Literal["residual-mlp"]
    normalise: NormaliseConfig = NormaliseConfig()
    width: Width
    blocks: Depth

    def build(self, shape: ImageShape, classes: int) -> nn.Module:
        """The classifier, with fresh weights."""
        pixels = shape[0] * shape[1] * shape[2]
        return ResidualClassifier(
            self.normalise.build(shape[0]), pixels, self.width, self.blocks, classes
        )


class ConvResidualConfig(Config):
    """A small residual network of 3x3 convolutions, the discrete baseline for images."""

    kind: Literal["residual-conv"]
    normalise: NormaliseConfig = NormaliseConfig()
    widths: Widths
    blocks: Depth = 1
    stem_stride: Width = 1

    def build(self, shape: ImageShape, classes: int) -> nn.Module:
        """The classifier, with fresh weights."""
        return ConvResidualClassifier(
            self.normalise.build(shape[0]),
            shape[0],
            list(self.widths),
            self.blocks,
            self.stem_stride,
            classes,
        )


class ContinuousNetConfig(Config):
    """Stages of convolutional ODE blocks; without `norms` for interval bounds.

    The head reads the last `filled` channels alone, which start at zero; 0 for a head on them all.
    With `gathered` the state of the last block is one pixel, set by a convolution of the whole
    image in front of it, whatever its stride.
    """

    kind: Literal["continuous-net"]
    normalise: NormaliseConfig = NormaliseConfig()
    widths: Widths
    strides: Widths
    stem: list[Width] = Field(default=[], max_length=MOST_LAYERS)
    solver: SolverConfig
    # Left out where they are there, so that it changes no digest.
    norms: Annotated[bool, Field(exclude_if=bool)] = True
    filled: Annotated[int, Field(ge=0, exclude_if=lambda filled: filled == 0)] = 0
    gathered: Annotated[bool, Field(exclude_if=operator.not_)] = False

    @model_validator(mode="after")
    def _as_many_strides_as_widths(self) -> "ContinuousNetConfig":
        _require_equal_lengths(self.widths, self.strides)
        return self

    def build(self, shape: ImageShape, classes: int) -> nn.Module:
        """The classifier, with fresh weights."""
        return ContinuousNet(
            self.normalise.build(shape[0]),
            shape[0],
            list(self.widths),
            list(self.strides),
            list(self.stem),
            self.solver.build(),
            classes,
            self.norms,
            self.filled,
            self.gathered,
            shape[1:],
        )


class ConvODEConfig(Config):
    """Two convolutions, one ODE block whose field sees the time, the mean and a linear layer."""

    kind: Literal["conv-ode"]
    normalise: NormaliseConfig = NormaliseConfig()
    width: Width
    kernel: Kernel = 5
    stride: Width = 2
    solver: SolverConfig

    def build(self, shape: ImageShape, classes: int) -> nn.Module:
        """The classifier, with fresh weights."""
        side = min(shape[1:])
        for _ in range(2):
            side = (side - self.kernel) // self.stride + 1
            if side < 1:
                raise ValueError(
                    f"expected images that two convolutions of kernel {self.kernel} and stride "
                    f"{self.stride} fit into, got {shape[1]} x {shape[2]} pixels"
                )
        return ConvODENet(
            self.normalise.build(shape[0]),
            shape[0],
            self.width,
            self.kernel,
            self.stride,
            self.solver.build(),
            classes,
        )


def _require_equal_lengths(widths: list[int], strides: list[int]) -> None:
    if len(widths) != len(strides):
        raise ValueError(
            f"expected as many strides as widths, got {len(strides)} for {len(widths)}"
        )


ModelConfig = Annotated[
    NeuralODEConfig | ResidualConfig | ConvResidualConfig | ContinuousNetConfig | ConvODEConfig,
    Field(discriminator="kind"),
]
