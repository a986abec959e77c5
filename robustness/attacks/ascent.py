"""Projected ascent of one loss through any view, from random starts."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.base import Pursuit
from robustness.attacks.climb import Hunt, Rows
from robustness.attacks.lanes import sample_generator, scores
from robustness.attacks.losses import LOSSES, likely_targets
from robustness.attacks.views import View
from robustness.threat import Norm

LossName = Literal["ce", "margin", "dlr", "targeted"]


@dataclass(frozen=True)
class Ascent(Pursuit):
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
    hunt = Hunt(deployed, images, labels, norm, eps, ascent.lane)
    return hunt.candidates(_climbed(ascent, view, hunt, seed))


def surviving_traces(
    ascent: Ascent,
    view: View,
    deployed: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    eps: Float[Tensor, " n"],
    seed: int,
) -> Float[Tensor, "k s"]:
    """Losses on the way to what `Ascent.pursue` proposes for each sample that stands at its end.

    Returns:
        At the start and after each step, shape (standing samples, steps + 1): of a sample's climbs
        the one that came to the largest loss. Samples on which the model failed are left out.
    """
    hunt = Hunt(deployed, images, labels, norm, eps, ascent.lane)
    rows = _climbed(ascent, view, hunt, seed)
    rows = rows.keep(~hunt.failed[rows.sample])
    highest: dict[int, int] = {}
    for row, sample in enumerate(rows.sample.tolist()):
        if sample not in highest or rows.best_loss[row] > rows.best_loss[highest[sample]]:
            highest[sample] = row
    return rows.trace[list(highest.values())]


def _climbed(ascent: Ascent, view: View, hunt: Hunt, seed: int) -> Rows:
    rows = _random_starts(ascent, hunt, seed)
    return hunt.climb(view, rows, LOSSES[ascent.loss], ascent.steps)


def _random_starts(ascent: Ascent, hunt: Hunt, seed: int) -> Rows:
    """Random points of each sample's ball, with steps of its diameter."""
    count = len(hunt.images)
    if ascent.loss == "targeted":
        clean = scores(hunt.deployed, hunt.images, hunt.lane)
        targets = likely_targets(clean, hunt.labels, ascent.targets)
    else:
        targets = hunt.labels.unsqueeze(1)
    each = targets.shape[1] * ascent.starts
    sample = torch.arange(count, device=targets.device).repeat_interleave(each)
    drawn = [hunt.noise(image, each, sample_generator(seed, image)) for image in hunt.images]
    x = hunt.images[sample] + torch.cat(drawn) * hunt.radius(sample)
    return Rows.at(
        hunt.into_ball(x, sample),
        sample,
        targets.repeat(1, ascent.starts).flatten(),
        2 * hunt.reach[sample],
    )
