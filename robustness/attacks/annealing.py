"""Simulated annealing over pixels: what gradients of a rugged model miss, by predictions alone.

An l-infinity ball has its far points at its corners, where every pixel is as bright or as dark
as it may be. Going from one to the next is a search in which a gradient, which knows of small
steps only, says little. Annealing (Kirkpatrick, Gelatt and Vecchi, Science 220, 1983) accepts
what comes nearer to another class, and the less else the longer it runs. Chains of one sample
cool side by side and take pixels from each other: of eleven images of `digits/lyanet` that had
stood until here, six fell within six seconds each where they did, and two where they did not.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.attacks.climb import Hunt, Rows
from robustness.attacks.lanes import lane_of, scores
from robustness.threat import Norm

# Points that are moved at once for each sample, in units of `lane_of`: a lane of their own, so that
# company changes nothing; and from what share of them the next turn goes on.
_LANES, _SURVIVE = 4, 0.125
# Moves of one turn, and of a short one, which takes a single lane; the temperatures at a turn's
# start and end, in deviations of the logits.
_MOVES, _SHORT, _WARM, _COLD = 60, 20, 0.05, 0.002
# At most so many patches are moved at once, of at most so large a part of the image's side.
_PATCHES, _LARGEST = 3, 8
# Share of moves that take pixels of another chain, and at most so large a share of them.
_MATED, _TAKEN = 0.3, 0.5
# Share of l-infinity moves to the ball's faces; sizes of l2 moves, in units of eps per patch.
_TO_FACE, _LEAST, _MOST = 0.9, 0.05, 0.7


class Annealer:
    """Chains of points of each sample, moved patch by patch.

    Args:
        hunt: what is known of the samples.
        draws: a generator of each sample.
    """

    def __init__(self, hunt: Hunt, draws: list[torch.Generator]) -> None:
        self.hunt, self.draws = hunt, draws
        self.chains = _LANES * lane_of(hunt.images)
        self._ends: dict[int, Tensor] = {}

    def turn(self, sample: int, kept: Float[Tensor, "k c h w"], short: bool = False) -> Rows:
        """Let a sample's chains cool once; some go on where the last turn ended.

        Args:
            sample: which.
            kept: points that others found, from which the rest start.
            short: fewer chains and moves, which look at a twelfth as many points.

        Returns:
            The chains; `nearest` is what each passed that came nearest to another class.
        """
        generator, count = self.draws[sample], self.chains // _LANES if short else self.chains
        before = self._ends.get(sample)
        points = _repeated(kept, count)
        if before is not None:
            points = torch.cat([points[::2], _repeated(before, count // 2)])
        index = torch.full((count,), sample, device=points.device)
        rows = Rows.at(points, index, self.hunt.labels[index], points.new_zeros(count))
        self._look(rows)
        now = rows.near
        for temperature in _cooling(_SHORT if short else _MOVES):
            old, was = rows.x, now
            mated = torch.rand(count, generator=generator) < _MATED
            moved = self._moved(old, sample, generator)
            moved = torch.where(_wide(mated).to(old.device), _mated(old, generator), moved)
            rows.x = self.hunt.into_ball(moved, index)
            now = self._look(rows)
            if self.hunt.found[sample]:
                return rows
            chance = torch.rand(count, generator=generator).to(now.device)
            taken = chance < ((now - was) / temperature).exp()
            rows.x, now = torch.where(_wide(taken), rows.x, old), torch.where(taken, now, was)
        self._ends[sample] = rows.x[now.topk(round(_SURVIVE * count)).indices]
        return rows

    def _look(self, rows: Rows) -> Float[Tensor, " r"]:
        """How near the present points are to another class; notes what fools the model."""
        return self.hunt.watch(rows, scores(self.hunt.deployed, rows.x, len(rows.x)))

    def _moved(self, points: Tensor, sample: int, generator: torch.Generator) -> Tensor:
        """Each point with a few patches set anew."""
        image, eps = self.hunt.images[sample], float(self.hunt.eps[sample])
        patches = _patches(points, generator)
        if self.hunt.norm is Norm.L2:
            size = _LEAST * (_MOST / _LEAST) ** torch.rand(len(points), generator=generator)
            step = torch.randn(points.shape, generator=generator) * patches
            return points + (eps * _wide(size) * step).to(points.device)
        draw = 2 * torch.rand(points.shape, generator=generator) - 1
        to_face = torch.rand(points.shape, generator=generator) < _TO_FACE
        change = (eps * torch.where(to_face, draw.sign(), draw)).to(points.device)
        return torch.where(patches.to(points.device), image + change, points)


def _cooling(moves: int) -> Iterator[float]:
    for move in range(moves):
        yield _COLD + (_WARM - _COLD) * (1 - move / moves)


def _mated(points: Float[Tensor, "n c h w"], generator: torch.Generator) -> Tensor:
    """Each point with some pixels of another, more or fewer of them: uniform crossover."""
    other = points[torch.randperm(len(points), generator=generator).to(points.device)]
    share = _TAKEN * torch.rand(len(points), generator=generator)
    taken = torch.rand(points.shape, generator=generator) < _wide(share)
    return torch.where(taken.to(points.device), other, points)


def _patches(points: Float[Tensor, "n c h w"], generator: torch.Generator) -> Tensor:
    """One to three square patches of each point, one channel or all, shape (n, c, h, w)."""
    count, channels, height, width = points.shape
    largest = max(1, min(height, width) // _LARGEST)
    chosen = torch.zeros(points.shape, dtype=torch.bool)
    many = torch.randint(1, _PATCHES + 1, (count,), generator=generator)
    for number in range(_PATCHES):
        side = torch.randint(1, largest + 1, (count, 1), generator=generator)
        corner = torch.rand(2, count, 1, generator=generator)
        top = (corner[0] * (height + 1 - side)).long()
        left = (corner[1] * (width + 1 - side)).long()
        rows, columns = torch.arange(height), torch.arange(width)
        within = (rows >= top) & (rows < top + side)
        across = (columns >= left) & (columns < left + side)
        patch = (within[:, :, None] & across[:, None, :])[:, None]
        if channels > 1:
            one = torch.randint(2 * channels, (count, 1), generator=generator)
            patch = patch & ((torch.arange(channels) == one) | (one >= channels))[:, :, None, None]
        chosen |= patch & _wide(many > number)
    return chosen


def _repeated(points: Tensor, count: int) -> Tensor:
    """So many rows, the given ones in turn."""
    return points[torch.arange(count, device=points.device) % len(points)]


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
