"""Projected ascent with momentum and a step that halves itself, through any view.

The step rule is Auto-PGD's (Croce and Hein, arXiv 2003.01690, Algorithm 1). Departures: any loss
through any view; a sample leaves the batch as soon as the deployed model, alone in its batch,
misclassifies it; every sample has random draws of its own and batches have a fixed size, so that
what is found for one sample does not depend on the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.attacks.judge import predict_alone
from robustness.attacks.lanes import sample_generator, scores, scores_and_gradients
from robustness.attacks.losses import LOSSES, Loss, likely_targets
from robustness.attacks.views import View
from robustness.threat import Norm, ThreatModel, unit

LossName = Literal["ce", "margin", "dlr", "targeted"]

# Auto-PGD's constants: momentum; share of rising steps below which the step is halved; spacing
# of the checkpoints in shares of all steps: first, decrement and least.
_MOMENTUM, _ENOUGH = 0.75, 0.75
_FIRST, _DECREMENT, _LEAST = 0.22, 0.03, 0.06
# Steps between two looks at the deployed model, where a view does not order classes as it does.
_LOOK_EVERY = 5


@dataclass(frozen=True)
class Ascent:
    """Auto-PGD's ascent of one loss, from random starts.

    Attributes:
        loss: `ce`, `margin`, `dlr`, or `targeted`, which starts once for each likely target.
        steps: gradient steps per start.
        starts: random starts, per target where the loss has targets.
        targets: likely targets of the targeted loss, at most the number of wrong classes.
        lane: rows of a lane (see `lanes`); by default a function of the images' shape. Short ones
            are cheaper where few samples stand.
    """

    loss: LossName = "margin"
    steps: int = 50
    starts: int = 1
    targets: int = 9
    lane: int | None = None

    @property
    def name(self) -> str:
        """Loss and number of steps."""
        return f"ascent-{self.loss}-{self.steps}"

    @property
    def version(self) -> str:
        """Settings."""
        targets = f", {self.targets} targets" if self.loss == "targeted" else ""
        starts = f", {self.starts} starts" if self.starts > 1 else ""
        lane = f", lanes of {self.lane}" if self.lane else ""
        return f"robustness Auto-PGD {self.loss}, {self.steps} steps{starts}{targets}{lane}"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """Runs in both norms, on any number of classes above one."""
        del threat
        return None if classes > 1 else f"expected two classes or more, got {classes}"

    def propose(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        threat: ThreatModel,
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """One candidate per image; see `Attack.propose`."""
        deployed = View("deployed", model, faithful=True)
        radii = threat.radii(len(images))
        return self.pursue(deployed, model, images, labels, threat.norm, radii, seed)

    def pursue(
        self,
        view: View,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """Ascend a view until the deployed model is fooled; see `Guided.pursue`.

        Returns:
            For each image the candidate that fooled the deployed model; failing that one on
            which it had no finite logits; failing that the one of largest loss.
        """
        return ascend(self, view, deployed, images, labels, norm, radii, seed).unsqueeze(0)


def ascend(
    ascent: Ascent,
    view: View,
    deployed: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    eps: Float[Tensor, " n"],
    seed: int,
) -> Float[Tensor, "n c h w"]:
    """`Ascent.pursue` as one candidate of each image, shape (n, c, h, w)."""
    hunt = _Hunt(view, deployed, images, labels, norm, eps, ascent.lane)
    rows = hunt.starts(ascent, seed)
    loss = LOSSES[ascent.loss]
    halvings = set(_checkpoints(ascent.steps))
    hunt.evaluate(rows, loss, look=True)
    rows.best_at_checkpoint = rows.best_loss.clone()
    since = 0
    for step in range(1, ascent.steps + 1):
        rows = rows.keep(~hunt.found[rows.sample])
        if not len(rows.sample):
            break
        hunt.advance(rows, 1.0 if step == 1 else _MOMENTUM)
        hunt.evaluate(rows, loss, look=step % _LOOK_EVERY == 0 or step == ascent.steps)
        since += 1
        if step in halvings:
            rows.halve_where_stuck(since)
            since = 0
    return hunt.candidates(rows)


def _checkpoints(steps: int) -> Iterator[int]:
    """Steps after which the step size is reconsidered (section 3 of the paper)."""
    share, spacing = 0.0, _FIRST
    while share < 1:
        share += spacing
        spacing = max(spacing - _DECREMENT, _LEAST)
        yield max(1, round(share * steps))


@dataclass
class _Rows:
    """One start of one sample per row: the state of the ascent."""

    sample: Int[Tensor, " r"]
    target: Int[Tensor, " r"]
    x: Float[Tensor, "r c h w"]
    before: Float[Tensor, "r c h w"]
    gradient: Float[Tensor, "r c h w"]
    loss: Float[Tensor, " r"]
    best: Float[Tensor, "r c h w"]
    best_gradient: Float[Tensor, "r c h w"]
    best_loss: Float[Tensor, " r"]
    best_at_checkpoint: Float[Tensor, " r"]
    step: Float[Tensor, " r"]
    rises: Int[Tensor, " r"]
    halved: Bool[Tensor, " r"]

    def keep(self, mask: Bool[Tensor, " r"]) -> "_Rows":
        """The rows of `mask`."""
        return self if bool(mask.all()) else _Rows(*(value[mask] for value in vars(self).values()))

    def take(self, loss: Float[Tensor, " r"], gradient: Float[Tensor, "r c h w"]) -> None:
        """Note the losses and gradients at the present points."""
        self.rises += loss > self.loss
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = torch.where(_wide(better), self.x, self.best)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)

    def halve_where_stuck(self, since: int) -> None:
        """Halve the step and go back to the best point where the loss has not risen enough."""
        idle = ~self.halved & (self.best_loss <= self.best_at_checkpoint)
        stuck = (self.rises < _ENOUGH * since) | idle
        self.step = torch.where(stuck, self.step / 2, self.step)
        self.x = torch.where(_wide(stuck), self.best, self.x)
        self.before = torch.where(_wide(stuck), self.best, self.before)
        self.gradient = torch.where(_wide(stuck), self.best_gradient, self.gradient)
        self.loss = torch.where(stuck, self.best_loss, self.loss)
        self.halved, self.best_at_checkpoint = stuck, self.best_loss.clone()
        self.rises = torch.zeros_like(self.rises)


class _Hunt:
    """What an ascent knows of its samples: which are found, and their best candidates."""

    def __init__(
        self,
        view: View,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        eps: Float[Tensor, " n"],
        lane: int | None,
    ) -> None:
        self.lane = lane
        self.view, self.deployed, self.norm = view, deployed, norm
        self.images, self.labels, self.eps = images, labels, eps
        self.found = torch.zeros(len(images), dtype=torch.bool)
        self.failed = torch.zeros(len(images), dtype=torch.bool)
        self.proposals = images.clone()

    def starts(self, ascent: Ascent, seed: int) -> _Rows:
        """Random points of each sample's ball."""
        count = len(self.images)
        if ascent.loss == "targeted":
            clean = scores(self.deployed, self.images, self.lane)
            targets = likely_targets(clean, self.labels, ascent.targets)
        else:
            targets = self.labels.unsqueeze(1)
        each = targets.shape[1] * ascent.starts
        sample = torch.arange(count).repeat_interleave(each)
        noise = torch.cat([self._noise(image, each, seed) for image in self.images])
        x = self._into_ball(self.images[sample] + noise * _wide(self.eps[sample].float()), sample)
        none = torch.full((len(sample),), -torch.inf)
        return _Rows(
            sample=sample,
            target=targets.repeat(1, ascent.starts).flatten(),
            x=x,
            before=x,
            gradient=torch.zeros_like(x),
            loss=-none,
            best=x,
            best_gradient=torch.zeros_like(x),
            best_loss=none,
            best_at_checkpoint=none,
            step=2 * self.eps[sample].float(),
            rises=torch.zeros(len(sample), dtype=torch.int64),
            halved=torch.zeros(len(sample), dtype=torch.bool),
        )

    def _noise(self, image: Tensor, count: int, seed: int) -> Tensor:
        """Uniform in the unit cube, or uniform on the unit sphere."""
        generator = sample_generator(seed, image)
        if self.norm is Norm.LINF:
            return 2 * torch.rand((count, *image.shape), generator=generator) - 1
        return unit(torch.randn((count, *image.shape), generator=generator))

    def _into_ball(self, x: Tensor, sample: Tensor) -> Tensor:
        """Into the ball and then the box, which does not leave the ball, in float32."""
        centre = self.images[sample]
        delta = self.norm.clip(x - centre, self.eps[sample].float())
        return (centre + delta).clamp(0, 1)

    def advance(self, rows: _Rows, momentum: float) -> None:
        """One step along the gradient, with momentum."""
        direction = self.norm.steepest(rows.gradient)
        ahead = self._into_ball(rows.x + _wide(rows.step) * direction, rows.sample)
        moved = rows.x + momentum * (ahead - rows.x) + (1 - momentum) * (rows.x - rows.before)
        rows.before, rows.x = rows.x, self._into_ball(moved, rows.sample)

    def evaluate(self, rows: _Rows, loss: Loss, look: bool) -> None:
        """Losses and gradients at the present points; notes what fools the deployed model.

        Args:
            rows: the ascent's state.
            loss: what is ascended.
            look: whether to ask the deployed model where the view cannot tell.
        """
        labels = self.labels[rows.sample]
        logits, losses, gradients = scores_and_gradients(
            self.view.module,
            rows.x,
            lambda z, part: loss(z, labels[part], rows.target[part]),
            self.lane,
        )
        rows.take(losses.float(), gradients.nan_to_num(0, 0, 0))
        if self.view.faithful:
            self._note(rows, logits)
        elif look:
            self._note(rows, scores(self.deployed, rows.x, self.lane))

    def _note(self, rows: _Rows, logits: Float[Tensor, "r k"]) -> None:
        """Confirm claims of success, the first of each sample, alone in their batch."""
        finite = logits.isfinite().all(dim=1)
        wrong = finite & (logits.argmax(dim=1) != self.labels[rows.sample])
        for row in torch.nonzero(~finite).squeeze(1).tolist():
            sample = int(rows.sample[row])
            if not self.found[sample] and not self.failed[sample]:
                self.failed[sample] = True
                self.proposals[sample] = rows.x[row]
        for row in torch.nonzero(wrong).squeeze(1).tolist():
            sample = int(rows.sample[row])
            if self.found[sample]:
                continue
            held = self.norm.project(
                rows.x[row : row + 1], self.images[sample : sample + 1], float(self.eps[sample])
            )
            prediction, sane = predict_alone(self.deployed, held)
            if bool(sane) and int(prediction) != int(self.labels[sample]):
                self.found[sample] = True
                self.proposals[sample] = held[0]

    def candidates(self, rows: _Rows) -> Float[Tensor, "n c h w"]:
        """What to propose for each image, shape (n, c, h, w)."""
        settled = self.found | self.failed
        closest = torch.full((len(self.images),), -torch.inf)
        for row, sample in enumerate(rows.sample.tolist()):
            if not settled[sample] and rows.best_loss[row] > closest[sample]:
                closest[sample] = rows.best_loss[row]
                self.proposals[sample] = rows.best[row]
        return self.proposals


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
