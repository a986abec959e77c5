"""Iterated local search: short climbs through several views, restarted from the best points."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.attacks.annealing import Annealer
from robustness.attacks.base import Pursuit
from robustness.attacks.climb import Hunt, Rows
from robustness.attacks.lanes import lane_of, metered_with, sample_generator, scores
from robustness.attacks.losses import likely_targets, nearness, toward, toward_standardised
from robustness.attacks.views import View
from robustness.threat import Norm

# A sample is annealed if its first turns gain as much as this, or so much that as many rounds of
# the kind would reach another class. Whatever a short turn gains, a whole one follows where a
# sample is as near as this already.
_MUCH, _PATIENCE, _NEAR = 0.001, 12.0, -0.1
# Best points that are kept of each sample, and shares of starts beside them and at the image.
# The rest are random.
_KEPT, _BESIDE, _AT_IMAGE = 4, 0.8, 0.1
# Share of starts with no target, and likely targets after which the weight of one is halved.
_FREE, _HALVED_AFTER = 0.3, 3
# Sizes of a first step, in units of eps, and share of starts that polish a best point: from as
# near as such a step, with a first step from the least size up to there.
_LEAST, _MOST = 0.15, 0.75
_POLISHED, _FINEST = 0.2, 0.01
# Lanes of the first rounds and of later ones, where few samples are left, in units of `lane_of`.
_WIDE_LANES, _SHORT_LANES = 2.0, 0.5


@dataclass(frozen=True)
class IteratedAscent(Pursuit):
    """Iterated local search (Lourenço, Martin and Stützle 2003) over several views in turn.

    What is kept from one climb to the next is what came nearest to another class on the deployed
    model, by whatever view it was found. Where a climb is rugged that helps more than new random
    starts, each of which has the whole way to go. A first round starts half at the image itself,
    half at random; later ones mostly beside the best points so far. Most samples that break at
    all have come near to another class after a few rounds, so only such are climbed further.
    Each further round ends with a turn of simulated annealing, which needs no gradient (see
    `annealing`), for samples whose first turn gained something: on a smooth model a climb has found
    already what annealing could, and a short turn tells so. What neither finds within a few
    rounds it seldom finds later from the same points, and at times from others: so all is begun
    anew a few times for what has come close.

    Attributes:
        views: climbed one after the other, `turn` of them in every round.
        turn: how many views a round climbs; the next round goes on behind them. None for all.
        rounds: before anything is annealed.
        annealed: further rounds, each with a turn of annealing at its end, of samples whose best
            point has had a `nearness` of at least `hope`.
        lives: how often all that is begun, each time from random points; after the first time only
            for samples whose best point has had a `nearness` of at least half of `hope`.
        hope: a margin in standard deviations of the logits; below 0 while the label wins.
        starts: climbs of each sample through each view in each round. An even number keeps a
            sample's rows at places of a lane that give the same last digits in any company.
        steps: gradient steps per start.
        lane: rows of a lane (see `lanes`); by default a function of the images' shape.
    """

    views: tuple[View, ...]
    turn: int | None = None
    rounds: int = 3
    annealed: int = 4
    lives: int = 4
    hope: float = -0.4
    starts: int = 6
    steps: int = 20
    lane: int | None = None

    @property
    def name(self) -> str:
        """Rounds and number of steps."""
        rounds = self.lives * (self.rounds + self.annealed)
        return f"iterated-ascent-{rounds}x{self.steps}"

    @property
    def version(self) -> str:
        """Settings and views."""
        views = ", ".join(view.name for view in self.views)
        turn, lane = self.turn or len(self.views), f", lanes of {self.lane}" if self.lane else ""
        return (
            f"robustness iterated ascent, {self.rounds} rounds; where the margin is then at least "
            f"{self.hope} deviations {self.annealed} more, with annealing of mated chains if its "
            f"first turns gain {_MUCH} or 1 / {_PATIENCE:g} of the rest, or it is {_NEAR} by then; "
            f"{self.lives - 1} times anew from half of that hope; {self.starts} starts of "
            f"{self.steps} steps through {turn} each of {views} a round, every other on "
            "standardised margins"
            f"{lane}"
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
        """Climb this attack's own views, watching the deployed model; see `Guided.pursue`.

        Returns:
            For each image the candidate that fooled the deployed model; failing that one on which
            it had no finite logits; failing that the one that came nearest to another class.
        """
        del view
        usual = lane_of(images)
        hunt = Hunt(deployed, images, labels, norm, radii, self.lane or round(usual * _WIDE_LANES))
        search = Search(hunt, self.starts, seed)
        twins = [
            View(climbed.name, metered_with(deployed, climbed.module), climbed.faithful)
            for climbed in self.views
        ]
        for number in range(self.lives * (self.rounds + self.annealed)):
            life, age = divmod(number, self.rounds + self.annealed)
            if life and age == 0:
                search.begin_anew()
            if number == self.rounds:
                hunt.lane = self.lane or round(usual * _SHORT_LANES)
            hope = (self.hope / 2 if life else self.hope) if number >= self.rounds else -torch.inf
            # Alone it finds less; what it finds differs.
            loss = toward_standardised if number % 2 else toward
            for twin in self._climbed(twins, number):
                rows = search.starts(search.hopeful(hope), first=age == 0)
                if len(rows.sample):
                    search.keep_best(hunt.anneal(twin, rows, loss, self.steps), self.starts)
            if age >= self.rounds:
                annealed = search.hopeful(hope) & search.gaining
                search.cool(annealed, first=age == self.rounds)
        return search.candidates().unsqueeze(0)

    def _climbed(self, twins: list[View], number: int) -> list[View]:
        """The views of one round."""
        turn = self.turn or len(twins)
        return [twins[(number * turn + place) % len(twins)] for place in range(turn)]


class Search:
    """The best points so far of each sample, and starts beside them.

    Attributes:
        kept: shape (n, kept, c, h, w), nearest to another class first.
        near: their `nearness`, shape (n, kept).
        closest: the best of all lives, shape (n, c, h, w).
        record: their `nearness`, shape (n,).
        gaining: whether, in this life, first turns of annealing gained enough for others.
    """

    def __init__(self, hunt: Hunt, each: int, seed: int) -> None:
        self.hunt, self.each = hunt, each
        clean = scores(hunt.deployed, hunt.images, hunt.lane)
        self.targets = likely_targets(clean, hunt.labels, clean.shape[1])
        self.weights = 1 / (1 + torch.arange(self.targets.shape[1]) / _HALVED_AFTER)
        self.draws = [sample_generator(seed, image) for image in hunt.images]
        self.closest, self.record = hunt.images.clone(), nearness(clean, hunt.labels).float()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget all points but the images, and the best of each for the record."""
        self.kept = self.hunt.images.unsqueeze(1).repeat(1, _KEPT, 1, 1, 1)
        self.near = torch.full((len(self.kept), _KEPT), -torch.inf, device=self.kept.device)
        self.annealer = Annealer(self.hunt, self.draws)
        self.gaining = torch.ones_like(self.hunt.found)

    def hopeful(self, hope: float) -> Bool[Tensor, " n"]:
        """What stands, and has come near enough to another class."""
        return (self.record >= hope) & ~self.hunt.found

    def cool(self, cooled: Bool[Tensor, " n"], first: bool) -> None:
        """Let the chains of some samples start from their best points and cool.

        Args:
            cooled: which.
            first: whether it is their first turn of this life; a short one then tells whether a
                whole one is worth its cost, and both together whether others are.
        """
        for sample in torch.nonzero(cooled).squeeze(1).tolist():
            before = float(self.near[sample, 0])
            if first:
                self._turn(sample, short=True)
                near = float(self.near[sample, 0]) >= _NEAR
                self.gaining[sample] &= near or self._gains(sample, before)
            if self.gaining[sample] and not self.hunt.found[sample]:
                self._turn(sample, short=False)
                self.gaining[sample] &= not first or self._gains(sample, before)

    def _turn(self, sample: int, short: bool) -> None:
        rows = self.annealer.turn(sample, self.kept[sample], short)
        self.keep_best(rows, len(rows.sample))

    def _gains(self, sample: int, before: float) -> bool:
        now = float(self.near[sample, 0])
        gain = now - before
        return gain >= _MUCH or now + _PATIENCE * gain >= 0

    def starts(self, climbed: Bool[Tensor, " n"], first: bool) -> Rows:
        """Where some samples are climbed from next, and towards what."""
        standing = torch.nonzero(climbed).squeeze(1)
        sample = standing.repeat_interleave(self.each)
        drawn = [self._draw(i, first) for i in standing.tolist()]
        if not drawn:
            return Rows.at(self.hunt.images[:0], sample, sample, self.near.new_zeros(0))
        points, targets, sizes = (torch.cat(part) for part in zip(*drawn, strict=True))
        return Rows.at(self.hunt.into_ball(points, sample), sample, targets, sizes)

    def _draw(self, i: int, first: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Points, targets and first steps of one sample: as many draws whatever is chosen."""
        count, generator, image = self.each, self.draws[i], self.hunt.images[i]
        eps = float(self.hunt.eps[i])
        noise = eps * self.hunt.noise(image, count, generator)
        drawn = torch.rand(5, count, generator=generator)
        chance, reach, free, size, fine = drawn.to(image.device)
        chosen = torch.randint(_KEPT, (count,), generator=generator)
        kept = self.kept[i][chosen.to(image.device)]
        likely = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        likely = likely.to(image.device)
        every = torch.arange(count, device=image.device)
        at_image = every % 2 == 0 if first else chance < _AT_IMAGE
        beside = ~at_image & (not first) & (chance < _AT_IMAGE + _BESIDE)
        polished = beside & (fine < _POLISHED)
        reach = torch.where(polished, _LEAST * reach**2, reach**2)
        points = torch.where(_wide(beside), kept + noise * _wide(reach), image + noise)
        points = torch.where(_wide(at_image), image, points)
        targets = torch.where(free < _FREE, self.hunt.labels[i], self.targets[i][likely])
        steps = _between(_LEAST, _MOST, size)
        return points, targets, eps * torch.where(polished, _between(_FINEST, _LEAST, size), steps)

    def keep_best(self, rows: Rows, each: int) -> None:
        """Let what the climbs came nearest by replace worse points.

        Args:
            rows: those of a sample adjoin.
            each: how many rows a sample has.
        """
        if not len(rows.sample):
            return
        samples = rows.sample[::each]
        near = torch.cat([self.near[samples], rows.near.view(len(samples), -1)], dim=1)
        fresh = rows.nearest.unflatten(0, (len(samples), -1))
        points = torch.cat([self.kept[samples], fresh], dim=1)
        self.near[samples], best = near.topk(_KEPT, dim=1)
        places = torch.arange(len(samples), device=best.device).unsqueeze(1)
        self.kept[samples] = points[places, best]
        nearer = self.near[:, 0] > self.record
        self.record = torch.where(nearer, self.near[:, 0], self.record)
        self.closest = torch.where(_wide(nearer), self.kept[:, 0], self.closest)

    def candidates(self) -> Float[Tensor, "n c h w"]:
        """What to propose for each image, shape (n, c, h, w)."""
        settled = self.hunt.found | self.hunt.failed
        return torch.where(_wide(settled), self.hunt.proposals, self.closest)


def _between(least: float, most: float, share: Tensor) -> Tensor:
    """From the least to the most, evenly in the logarithm."""
    return least * (most / least) ** share


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
