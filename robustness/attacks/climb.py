"""The climb that ascents share: projected steps with momentum, each halving itself.

The step rule is Auto-PGD's (Croce and Hein, arXiv 2003.01690, Algorithm 1). Departures: any loss
through any view, from any point; a sample leaves the batch as soon as the deployed model, alone
in its batch, misclassifies it; every sample has random draws of its own and batches have a fixed
size, so that what is found for one sample does not depend on the others.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.attacks.judge import predict_alone
from robustness.attacks.lanes import scores, scores_and_gradients
from robustness.attacks.losses import Loss, nearness
from robustness.attacks.views import View
from robustness.threat import Norm, unit

# Auto-PGD's constants: momentum; share of rising steps below which the step is halved; spacing
# of the checkpoints in shares of all steps: first, decrement and least.
_MOMENTUM, _ENOUGH = 0.75, 0.75
_FIRST, _DECREMENT, _LEAST = 0.22, 0.03, 0.06
# What is kept of the heading in each step of `anneal`.
_DECAY = 0.8
# Steps between two looks at the deployed model, where a view does not order classes as it does.
_LOOK_EVERY = 5


def _checkpoints(steps: int) -> Iterator[int]:
    """Steps after which the step size is reconsidered (section 3 of the paper)."""
    share, spacing = 0.0, _FIRST
    while share < 1:
        share += spacing
        spacing = max(spacing - _DECREMENT, _LEAST)
        yield max(1, round(share * steps))


@dataclass
class Rows:
    """One start of one sample per row: the state of a climb.

    Attributes:
        sample: which image, shape (r,).
        target: the class to be reached, or the label where any other will do, shape (r,).
        x: the present points, shape (r, c, h, w).
        before: the points one step ago.
        gradient: of the loss at the present points.
        loss: at the present points, shape (r,).
        best: the points of largest loss, shape (r, c, h, w).
        best_gradient: of the loss at the best points.
        best_loss: at the best points, shape (r,).
        best_at_checkpoint: the best loss when the step was last reconsidered.
        step: its size in units of the norm, shape (r,).
        rises: steps since then at which the loss rose.
        halved: whether the step was halved then.
        nearest: the points nearest to a change of the deployed prediction, of those at which it
            was looked at, shape (r, c, h, w).
        near: their `nearness`, shape (r,).
        trace: the losses of all points so far, in their order, shape (r, points).
    """

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
    nearest: Float[Tensor, "r c h w"]
    near: Float[Tensor, " r"]
    trace: Float[Tensor, "r s"]

    @classmethod
    def at(
        cls,
        x: Float[Tensor, "r c h w"],
        sample: Int[Tensor, " r"],
        target: Int[Tensor, " r"],
        step: Float[Tensor, " r"],
    ) -> "Rows":
        """Before the first step."""
        none = torch.full((len(sample),), -torch.inf, device=x.device)
        return cls(
            sample=sample,
            target=target,
            x=x,
            before=x,
            gradient=torch.zeros_like(x),
            loss=-none,
            best=x,
            best_gradient=torch.zeros_like(x),
            best_loss=none,
            best_at_checkpoint=none,
            step=step,
            rises=torch.zeros_like(none, dtype=torch.int64),
            halved=torch.zeros_like(none, dtype=torch.bool),
            nearest=x,
            near=none,
            trace=none[:, None][:, :0],
        )

    def keep(self, mask: Bool[Tensor, " r"]) -> "Rows":
        """The rows of `mask`."""
        return self if bool(mask.all()) else Rows(*(value[mask] for value in vars(self).values()))

    def take(self, loss: Float[Tensor, " r"], gradient: Float[Tensor, "r c h w"]) -> None:
        """Note the losses and gradients at the present points."""
        self.rises += loss > self.loss
        self.trace = torch.cat([self.trace, loss.unsqueeze(1)], dim=1)
        self.loss, self.gradient = loss, gradient
        better = loss > self.best_loss
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = torch.where(_wide(better), self.x, self.best)
        self.best_gradient = torch.where(_wide(better), gradient, self.best_gradient)

    def look(self, near: Float[Tensor, " r"]) -> None:
        """Note how near the present points are to a change of the deployed prediction."""
        nearer = near > self.near
        self.near = torch.where(nearer, near, self.near)
        self.nearest = torch.where(_wide(nearer), self.x, self.nearest)

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


class Hunt:
    """What climbs know of their samples: which are found, and their best candidates.

    Args:
        deployed: the model that is to be fooled.
        images: originals in [0, 1], shape (n, c, h, w), on the device of the model.
        labels: true classes, shape (n,), likewise.
        norm: of the balls.
        eps: their radii, in float64 on the CPU, shape (n,).
        lane: rows of a lane; None for `lane_of`.
    """

    def __init__(
        self,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        eps: Float[Tensor, " n"],
        lane: int | None,
    ) -> None:
        self.deployed, self.norm, self.lane = deployed, norm, lane
        self.images, self.labels, self.eps = images, labels, eps
        self.reach = eps.float().to(images.device)
        self.found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.failed = torch.zeros_like(self.found)
        self.proposals = images.clone()

    def noise(self, image: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Uniform in the unit cube, or uniform on the unit sphere, shape (count, c, h, w)."""
        if self.norm is Norm.LINF:
            drawn = 2 * torch.rand((count, *image.shape), generator=generator) - 1
        else:
            drawn = unit(torch.randn((count, *image.shape), generator=generator))
        return drawn.to(image.device)

    def radius(self, sample: Int[Tensor, " r"]) -> Float[Tensor, "r 1 1 1"]:
        """Of each row's ball, in float32."""
        return _wide(self.reach[sample])

    def into_ball(
        self, x: Float[Tensor, "r c h w"], sample: Int[Tensor, " r"]
    ) -> Float[Tensor, "r c h w"]:
        """Into the ball and then the box, which does not leave the ball, in float32."""
        centre = self.images[sample]
        delta = self.norm.clip(x - centre, self.reach[sample])
        return (centre + delta).clamp(0, 1)

    def climb(self, view: View, rows: Rows, loss: Loss, steps: int) -> Rows:
        """Ascend a loss through a view; the rows of samples that are not found, at its end."""
        halvings = set(_checkpoints(steps))
        self._evaluate(view, rows, loss, look=True)
        rows.best_at_checkpoint = rows.best_loss.clone()
        since = 0
        for step in range(1, steps + 1):
            rows = rows.keep(~self.found[rows.sample])
            if not len(rows.sample):
                break
            self._advance(rows, 1.0 if step == 1 else _MOMENTUM)
            self._evaluate(view, rows, loss, look=step % _LOOK_EVERY == 0 or step == steps)
            since += 1
            if step in halvings:
                rows.halve_where_stuck(since)
                since = 0
        return rows.keep(~self.found[rows.sample])

    def anneal(self, view: View, rows: Rows, loss: Loss, steps: int) -> Rows:
        """Ascend by steps along a decaying sum of unit gradients, from each row's size to none.

        The sum is that of MI-FGSM (Dong et al., arXiv 1710.06081, eq. 6) in the l2 norm; sizes fall
        as half a cosine. The deployed model is looked at after every step: where a small step
        can change its answer, what is passed on the way counts as much as what is reached.
        """
        heading = torch.zeros_like(rows.x)
        for step in range(steps + 1):
            self._evaluate(view, rows, loss, look=True)
            standing = ~self.found[rows.sample]
            rows, heading = rows.keep(standing), heading[standing]
            if not len(rows.sample):
                break
            heading = _DECAY * heading + unit(rows.gradient)
            size = rows.step * (1 + math.cos(math.pi * step / steps)) / 2
            ahead = rows.x + _wide(size) * self.norm.steepest(heading)
            rows.x = self.into_ball(ahead, rows.sample)
        return rows

    def _advance(self, rows: Rows, momentum: float) -> None:
        """One step along the gradient, with momentum."""
        direction = self.norm.steepest(rows.gradient)
        ahead = self.into_ball(rows.x + _wide(rows.step) * direction, rows.sample)
        moved = rows.x + momentum * (ahead - rows.x) + (1 - momentum) * (rows.x - rows.before)
        rows.before, rows.x = rows.x, self.into_ball(moved, rows.sample)

    def _evaluate(self, view: View, rows: Rows, loss: Loss, look: bool) -> None:
        """Losses and gradients at the present points; notes what fools the deployed model.

        Args:
            view: what is climbed.
            rows: the climb's state.
            loss: what is ascended.
            look: whether to ask the deployed model where the view cannot tell.
        """
        labels = self.labels[rows.sample]
        logits, losses, gradients = scores_and_gradients(
            view.module,
            rows.x,
            lambda z, part: loss(z, labels[part], rows.target[part]),
            self.lane,
        )
        rows.take(losses.float(), gradients.nan_to_num(0, 0, 0))
        if view.faithful:
            self.watch(rows, logits)
        elif look:
            self.watch(rows, scores(self.deployed, rows.x, self.lane))

    def watch(self, rows: Rows, logits: Float[Tensor, "r k"]) -> Float[Tensor, " r"]:
        """Note what fools the deployed model: claims of success are confirmed alone in their batch.

        Args:
            rows: the climb's state.
            logits: at the present points, of the deployed model or one that orders them alike.

        Returns:
            The `nearness` of the present points.
        """
        labels = self.labels[rows.sample]
        near = nearness(logits, labels).float()
        rows.look(near)
        finite = logits.isfinite().all(dim=1)
        wrong = finite & (logits.argmax(dim=1) != labels)
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
        return near

    def candidates(self, rows: Rows) -> Float[Tensor, "n c h w"]:
        """What to propose for each image, shape (n, c, h, w)."""
        settled = self.found | self.failed
        closest = torch.full((len(self.images),), -torch.inf, device=self.images.device)
        for row, sample in enumerate(rows.sample.tolist()):
            if not settled[sample] and rows.best_loss[row] > closest[sample]:
                closest[sample] = rows.best_loss[row]
                self.proposals[sample] = rows.best[row]
        return self.proposals


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
