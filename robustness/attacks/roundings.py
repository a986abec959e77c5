"""A search of roundings: images whose exact margin is positive and whose computed margin is not.

A bound that forgets rounding is broken by searching the roundings near its radius and not by
climbing (Zhang, Xu, Rubinstein and Xiao, arXiv 2205.10159). Where the exact margin is all but 0
the computed one is a draw of its rounding, which single units in the last place of a few pixels
draw anew. So the search first goes to where the margin is least, and then moves pixels by such
units, judged by the deployed program with each image alone in its batch: a batched prediction
rounds differently.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.ascent import Ascent
from robustness.attacks.base import Pursuit
from robustness.attacks.lanes import sample_generator, scores, scores_and_gradients
from robustness.attacks.losses import likely_targets, margin, targeted
from robustness.attacks.views import View
from robustness.numerics.devices import beside
from robustness.threat import Norm

# Roundings are searched where the margin is less than this share of the largest logit.
_NEAR = 2.0**-8
# Moves are of so many units in the last place, some of them times a power of two up to the second.
_UNITS, _POWERS = 4, 10
# Evaluations without progress after which the search goes on from another place.
_PATIENCE = 60


@dataclass(frozen=True)
class RoundingSearch(Pursuit):
    """Ends of the ball along the margin's gradient, then moves by units in the last place.

    Attributes:
        evaluations: of each image's neighbours, alone in their batch; only near a margin of 0.
        rivals: classes whose margins are followed.
        ends: times that an end of the ball is taken, each by the gradient at the last.
        lane: rows of a lane of gradients.
        alone: what it proposes is judged alone in its batch, whatever the model.
    """

    evaluations: int = 400
    rivals: int = 3
    ends: int = 4
    lane: int | None = None
    alone: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """How many neighbours are looked at."""
        return f"rounding-{self.evaluations}"

    @property
    def version(self) -> str:
        """Settings."""
        lane = f", lanes of {self.lane}" if self.lane else ""
        return (
            f"robustness search of roundings, {self.evaluations} neighbours, {self.rivals} rivals, "
            f"{self.ends} ends{lane}"
        )

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
        """The neighbour of least computed margin of each image; see `Guided.pursue`."""
        ascent = Ascent("targeted", 20, targets=self.rivals, lane=self.lane)
        climbed = ascent.pursue(view, deployed, images, labels, norm, radii, seed)
        ends = self._ends(view.module, images, labels, norm, radii)
        starts = torch.cat([climbed.cpu(), ends])
        found = []
        for i, image in enumerate(images.cpu()):
            place = _Place(deployed, image, int(labels[i]), norm, radii[i : i + 1])
            generator = sample_generator(seed, image)
            found.append(place.searched(list(starts[:, i]), self.evaluations, generator))
        return torch.stack(found).unsqueeze(0).to(images.device)

    def _ends(
        self, module: nn.Module, images: Tensor, labels: Tensor, norm: Norm, radii: Tensor
    ) -> Tensor:
        """Points of the balls' edges, on the CPU, each by the gradient at the one before."""
        count = len(images)
        rivals = likely_targets(scores(module, images, self.lane), labels, self.rivals)
        each = rivals.shape[1]
        sample = torch.arange(count).repeat_interleave(each)
        centres, target = images.cpu()[sample], rivals.flatten()
        true = labels.repeat_interleave(each)
        wide = radii[sample].view(-1, 1, 1, 1)
        at, found = centres, []
        for _ in range(self.ends):

            def loss(logits: Tensor, rows: slice) -> Tensor:
                return targeted(logits, true[rows], target[rows])

            there = at.to(images.device)
            _, _, slope = scores_and_gradients(module, there, loss, self.lane)
            step = wide * norm.steepest(slope.cpu().nan_to_num(0.0).double())
            ends = (centres.double() + step).clamp(0, 1).to(images.dtype)
            at = norm.project(ends, centres, radii[sample])
            found.append(at)
        # From (ends, n * rivals, ...) to (ends * rivals, n, ...).
        stacked = torch.stack(found).view(self.ends, count, each, *images.shape[1:])
        return stacked.transpose(1, 2).flatten(0, 1)


class _Place:
    """One image and its ball, and what the deployed program says there."""

    def __init__(
        self, deployed: nn.Module, image: Tensor, label: int, norm: Norm, radius: Tensor
    ) -> None:
        self.deployed, self.image, self.norm, self.radius = deployed, image, norm, radius
        self.label = torch.tensor([label])
        self.over, self.near = False, False

    @torch.no_grad()
    def margin(self, point: Tensor) -> float:
        """How far the best other class is above the label's; notes whether that ends the search."""
        logits = self.deployed(*beside(self.deployed, point.unsqueeze(0))).cpu().double()
        value = float(margin(logits, self.label, self.label))
        wrong = int(logits.argmax(dim=1)) != int(self.label)
        self.over |= wrong or not bool(logits.isfinite().all())
        self.near |= abs(value) <= _NEAR * float(logits.abs().max())
        return value

    def searched(
        self, starts: list[Tensor], evaluations: int, generator: torch.Generator
    ) -> Tensor:
        """The point of the largest such margin that was met."""
        held = [self._held(start) for start in starts]
        ranked: list[tuple[float, Tensor]] = []
        for point in held:
            ranked.append((self.margin(point), point))
            if self.over:
                return point
        ranked.sort(key=lambda pair: -pair[0])
        best, at = ranked[0]
        if not self.near:
            return at
        place, value, since, next_start = at, best, 0, 1
        for _ in range(evaluations):
            point = self._neighbour(place, generator)
            found = self.margin(point)
            if self.over:
                return point
            since = 0 if found > value else since + 1
            if found >= value:
                place, value = point, found
            if value > best:
                best, at = value, place
            if since > _PATIENCE:
                value, place = ranked[next_start % len(ranked)]
                since, next_start = 0, next_start + 1
        return at

    def _held(self, point: Tensor) -> Tensor:
        inside = point.clamp(0, 1).unsqueeze(0)
        return self.norm.project(inside, self.image.unsqueeze(0), self.radius).squeeze(0)

    def _neighbour(self, point: Tensor, generator: torch.Generator) -> Tensor:
        """Some pixels moved by some units in their last place, within ball and box."""

        def drawn(low: int, high: int, shape: tuple[int, ...] = (1,)) -> Tensor:
            return torch.randint(low, high + 1, shape, generator=generator)

        size = point.numel()
        many = min(size, 2 ** int(drawn(0, size.bit_length() - 1)))
        chosen = torch.randperm(size, generator=generator)[:many]
        units = drawn(-_UNITS, _UNITS, (many,))
        if int(drawn(0, 1)):
            units = units * 2 ** int(drawn(1, _POWERS))
        # Numbers that are not negative are in the order of their bits.
        whole = torch.int64 if point.dtype is torch.float64 else torch.int32
        moved = point.detach().clone().flatten()
        numbers = (moved + 0.0).view(whole)
        numbers[chosen] = (numbers[chosen] + units.to(whole)).clamp_min(0)
        return self._held(numbers.view(point.dtype).view(point.shape))
