"""Training on bounds of the recorded program: V at the horizon at its worst over a box.

The bounds are float32 and carry gradients; they train and choose checkpoints, and prove nothing.
What is proved about the trained model is proved by `certificates`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import ContinuousNet
from robustness.nets.fields import LyaNetField, TargetSeekingField, lyapunov_rate
from robustness.programs.graph import Refusal
from robustness.programs.live import LiveProgram, Reach
from robustness.recipe import ProvedConfig
from robustness.training import losses
from robustness.training.intervals import Band, balance, tightness


class ProvedTraining:
    """The loss `proved` of a model, and what tells which images its bounds hold for.

    Args:
        choice: settings of the loss.
        model: the classifier, whose parameters the bounds follow.
        classes: their number.

    Raises:
        UsageError: the model cannot be recorded, or has no Lyapunov loss where one is asked for.
    """

    def __init__(self, choice: ProvedConfig, model: nn.Module, classes: int) -> None:
        self.choice, self.model, self.classes = choice, model, classes
        if choice.lyapunov > 0 and not self._has_lyapunov_loss():
            raise UsageError(
                "expected a lyanet or target-seeking field, or a continuous-net model, for the "
                "weight lyapunov of the proved loss, got another; set it to 0"
            )

    def _has_lyapunov_loss(self) -> bool:
        field = self.model.field if isinstance(self.model, NeuralODEClassifier) else None
        return isinstance(self.model, ContinuousNet) or isinstance(
            field, LyaNetField | TargetSeekingField
        )

    def _reach(self, images: Tensor, labels: Tensor, eps: float) -> Reach:
        if self._recorded_for != images.shape[1:]:
            channels, height, width = images.shape[1:]
            try:
                self._live = LiveProgram(self.model, (channels, height, width))
            except Refusal as refused:
                raise UsageError(
                    f"expected a model whose program bounds pass through: {refused}"
                ) from None
            self._recorded_for = images.shape[1:]
        return self._live.reach(images, labels, eps)

    _live: LiveProgram
    _recorded_for: torch.Size | None = None

    def loss(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        generator: torch.Generator,
        progress: float,
    ) -> Float[Tensor, ""]:
        """The loss of a training step, at a share `progress` of them all.

        Args:
            images: pixels.
            labels: classes.
            generator: source of the states of the Monte Carlo loss.
            progress: says how far the box has grown.
        """
        choice = self.choice
        grown = choice.grown(progress)
        reach = self._reach(images, labels, grown * choice.eps)
        total = worst_potential(reach.margins).mean()
        if choice.steering > 0 and reach.steered:
            steered = torch.stack([worst_potential(margins).mean() for margins in reach.steered])
            total = total + choice.steering * steered.mean()
        if choice.clean > 0:
            plain = functional.cross_entropy(self.model(images), labels)
            total = (1 - choice.clean) * total + choice.clean * plain
        if choice.lyapunov > 0:
            total = total + choice.lyapunov * self._lyapunov(images, labels, generator)
        fading = choice.regularisation * (1 - grown)
        if fading > 0 and reach.entered:
            start = Band.between(reach.start.low, reach.start.high)
            bands = [Band.between(box.low, box.high) for box in reach.entered]
            terms = [tightness(start, band) + balance(band) for band in bands]
            total = total + fading * torch.stack(terms).mean()
        return total

    def _lyapunov(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        choice, model = self.choice, self.model
        if isinstance(model, ContinuousNet):
            return losses.continuous_lyapunov(
                model, images, labels, True, lyapunov_rate(self.classes)
            )
        assert isinstance(model, NeuralODEClassifier)
        states = losses.sample_states(choice.states, self.classes, generator, choice.extent)
        return losses.monte_carlo_lyapunov(model, images, labels, states)

    def judge(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> tuple[Bool[Tensor, " n"], Float[Tensor, ""]]:
        """Of which images the bounds keep the label at `test_eps`, and the loss there."""
        reach = self._reach(images, labels, self.choice.test_eps)
        return (reach.margins > 0).all(dim=1), worst_potential(reach.margins).mean()


def worst_potential(margins: Float[Tensor, "n r"]) -> Float[Tensor, " n"]:
    """The upper end of V_y by lower bounds of the label's leads, log(1 + sum_j exp(-margin_j))."""
    zero = torch.zeros_like(margins[:, :1])
    return torch.logsumexp(torch.cat([zero, -margins], dim=1), dim=1)
