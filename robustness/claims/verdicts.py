"""From numbers to verdicts, by one rule for every claim.

A comparison is one quantity of LyaNet and of its rival over the same seeds. It is *better* if the
95% Student interval of the paired difference lies wholly on the better side of zero, *worse* if
wholly on the other side, *equal* if both are the same in every seed, else *open*: these seeds do
not tell. Of a robust accuracy that is below one per cent for both on average, *neither stands*.
Times are read off a grid: a difference within one of its steps decides nothing.
A claim holds if every one of its comparisons is better, and only under the condition that names
those which are if some are; it does not hold if none is and one is worse or equal; else it cannot
be told. Robustness is decided by the worst case over
views where that was measured: what an attack leaves that may be fooled decides nothing.
"""

import math
from collections.abc import Callable, Sequence
from enum import Enum

from robustness.claims.horizon import STEPS
from robustness.claims.models import PAIRS
from robustness.claims.protocol import WIDE_STEPS
from robustness.claims.results import SeedResults
from robustness.results.leaderboard import Summary


class Outcome(Enum):
    """What the seeds say about one comparison."""

    BETTER = "better"
    WORSE = "worse"
    EQUAL = "equal"
    OPEN = "open"
    NEITHER = "neither stands"


class Interval(Summary):
    """A mean over seeds with its 95% Student interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """The interval of two or more values, one per seed."""
        return cls.resolved(values, 0.0)

    @classmethod
    def resolved(cls, values: Sequence[float], step: float) -> "Interval":
        """The same of values that are read off a grid: it reaches a step at least."""
        from scipy import stats

        count = len(values)
        mean = sum(values) / count
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1))
        reach = max(step, float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count))
        return cls(mean=mean, low=mean - reach, high=mean + reach)


class Comparison(Summary):
    """One quantity of LyaNet and its rival, a value per seed.

    Attributes:
        quantity: what is compared, with its condition.
        ours: name of the model trained with the Lyapunov loss.
        rival: name of what it is compared with.
        unit: `percent`, `t/T`, `evaluations` or `ratio`.
        lower_is_better: the direction.
        our_values: per seed.
        rival_values: per seed.
        decides: whether a claim is decided by it, too; else it is shown beside.
        floor: where both means are below it, in the unit, there is nothing to compare.
        step: of the grid that the values are read off, in the unit.
    """

    quantity: str
    ours: str
    rival: str
    unit: str
    lower_is_better: bool
    our_values: list[float]
    rival_values: list[float]
    decides: bool = True
    floor: float | None = None
    step: float = 0.0

    @property
    def difference(self) -> Interval:
        """Ours less the rival's, paired by seed."""
        pairs = zip(self.our_values, self.rival_values, strict=True)
        return Interval.resolved([ours - rival for ours, rival in pairs], self.step)

    @property
    def seeds_to_decide(self) -> int | None:
        """With how many seeds it would not be open, were mean and spread what they are by now.

        None where it is not open, or would be with a thousand.
        """
        if self.outcome is not Outcome.OPEN:
            return None
        from scipy import stats

        difference, count = self.difference, len(self.our_values)
        scale = math.sqrt(count) / float(stats.t.ppf(0.975, count - 1))
        spread = (difference.high - difference.mean) * scale
        for seeds in range(count + 1, 1001):
            reach = float(stats.t.ppf(0.975, seeds - 1)) * spread / math.sqrt(seeds)
            if max(reach, self.step) < abs(difference.mean):
                return seeds
        return None

    @property
    def outcome(self) -> Outcome:
        """By the rule above."""
        means = [sum(values) / len(values) for values in (self.our_values, self.rival_values)]
        if self.floor is not None and max(means) < self.floor:
            return Outcome.NEITHER
        if self.our_values == self.rival_values:
            return Outcome.EQUAL
        difference = self.difference
        if difference.low <= 0 <= difference.high:
            return Outcome.OPEN
        return Outcome.BETTER if (difference.high < 0) == self.lower_is_better else Outcome.WORSE


class Claim(Summary):
    """A claim of the paper with the comparisons that decide it, and others beside.

    Attributes:
        statement: the claim.
        comparisons: all, those that do not decide included.
        caution: what one who quotes it has to know besides; empty for nothing.
    """

    statement: str
    comparisons: list[Comparison]
    caution: str = ""

    @property
    def deciding(self) -> list[Comparison]:
        """The comparisons that decide it."""
        return [c for c in self.comparisons if c.decides]

    @property
    def verdict(self) -> str:
        """`holds`, `does not hold`, `cannot be told`, or the condition under which it holds."""
        better = [c for c in self.deciding if c.outcome is Outcome.BETTER]
        if len(better) == len(self.deciding):
            return "holds"
        words = {Outcome.NEITHER: "neither standing"}
        counts = ", ".join(f"{words.get(o, o.value)} in {count}" for o, count in self._others())
        total = len(self.deciding)
        if not better:
            decided = any(c.outcome in (Outcome.WORSE, Outcome.EQUAL) for c in self.deciding)
            said = "does not hold" if decided else "cannot be told"
            return f"{said}: of {total} comparisons better in none, {counts}"
        condition = "; ".join(_named(c) for c in better)
        return f"holds only for {condition}: of {total} comparisons {counts}"

    def _others(self) -> list[tuple[Outcome, int]]:
        """How often it was not better; of what is rare, only where there is any."""
        outcomes = (Outcome.WORSE, Outcome.EQUAL, Outcome.NEITHER, Outcome.OPEN)
        counts = [(o, sum(c.outcome is o for c in self.deciding)) for o in outcomes]
        rare = (Outcome.EQUAL, Outcome.NEITHER)
        return [(o, count) for o, count in counts if count or o not in rare]

    @property
    def sentence(self) -> str:
        """What a reviewer may quote: how often it was better, and where that is clearest."""
        words = {Outcome.OPEN: "undecided", Outcome.NEITHER: "with neither standing"}
        better = sum(c.outcome is Outcome.BETTER for c in self.deciding)
        others = [f"{count} {words.get(o, o.value)}" for o, count in self._others()]
        said = (
            f"of {len(self.deciding)} comparisons {better} came out better, "
            f"{', '.join(others[:-1])} and {others[-1]}"
        )
        if compared := [c for c in self.deciding if c.outcome is not Outcome.NEITHER]:
            clearest = max(compared, key=_clearness)
            ours, rival = (Interval.of(v) for v in (clearest.our_values, clearest.rival_values))
            gap = clearest.difference
            said += (
                f", the clearest being {_named(clearest)}: {ours.mean:.4g} to {rival.mean:.4g}"
                f"{_UNITS[clearest.unit]}, a difference of {gap.mean:+.3g} "
                f"[{gap.low:+.3g}, {gap.high:+.3g}]"
            )
        return f"{said}; {self.caution}" if self.caution else said


# What stands behind numbers of a unit in a sentence.
_UNITS = {"percent": " %", "t/T": " of the horizon", "evaluations": " evaluations", "ratio": ""}


def _clearness(comparison: Comparison) -> float:
    """How many half-widths of its interval the mean difference is away from zero."""
    difference = comparison.difference
    reach = difference.high - difference.mean
    if reach > 0:
        return abs(difference.mean) / reach
    return math.inf if difference.mean else 0.0


def _named(comparison: Comparison) -> str:
    return f"{comparison.quantity}, {comparison.ours} against {comparison.rival}"


def claims(seeds: Sequence[SeedResults]) -> list[Claim]:
    """The paper's four claims over these seeds, all of which are complete.

    Where more seeds were added once the first had been looked at, each says what only they decide.
    """
    found, looked = _claims(seeds), seeds[0].study.looked
    if tuple(seed.seed for seed in seeds) != seeds[0].study.seeds or looked >= len(seeds):
        return found
    return [
        claim.model_copy(update={"caution": _joined(claim.caution, _at_second_look(claim, before))})
        for claim, before in zip(found, _claims(seeds[:looked]), strict=True)
    ]


def _claims(seeds: Sequence[SeedResults]) -> list[Claim]:
    behind = _behind(seeds)
    return [
        Claim(
            statement="Better prediction than the same model trained through its solver",
            comparisons=[
                _compared(
                    seeds, "test error", pair, lambda s, m: 100 * (1 - s.clean[m].value), "percent"
                )
                for pair in PAIRS.items()
            ],
            caution=behind,
        ),
        Claim(
            statement="Faster convergence of inference",
            comparisons=_convergence(seeds),
            caution=behind,
        ),
        Claim(
            statement="Better adversarial robustness",
            comparisons=_robustness(seeds),
            caution=_joined(_fooled(seeds), behind),
        ),
        Claim(
            statement="Training without back-propagation through a solver is cheaper",
            comparisons=_costs(seeds),
        ),
    ]


def _joined(*cautions: str) -> str:
    return "; ".join(filter(None, cautions))


def _at_second_look(claim: Claim, before: Claim) -> str:
    """Which comparisons were open until seeds were added to decide them, in words."""
    late = [
        _named(after)
        for after, first in zip(claim.deciding, before.deciding, strict=True)
        if first.outcome is Outcome.OPEN and after.outcome in (Outcome.BETTER, Outcome.WORSE)
    ]
    if not late:
        return ""
    first = len(before.comparisons[0].our_values)
    return (
        f"{' and '.join(late)}: open after {first} seeds, decided by one added for that, which "
        "errs more often than one time in twenty"
    )


def _compared(
    seeds: Sequence[SeedResults],
    quantity: str,
    pair: tuple[str, str],
    value: Callable[[SeedResults, str], float],
    unit: str,
    lower_is_better: bool = True,
    step: float = 0.0,
) -> Comparison:
    ours, rival = pair
    return Comparison(
        quantity=quantity,
        ours=ours,
        rival=rival,
        unit=unit,
        lower_is_better=lower_is_better,
        our_values=[value(seed, ours) for seed in seeds],
        rival_values=[value(seed, rival) for seed in seeds],
        step=step,
    )


def _convergence(seeds: Sequence[SeedResults]) -> list[Comparison]:
    pair = ("lyanet", "node")
    found = []
    for share in seeds[0].horizon["node"].reached:

        def time(seed: SeedResults, model: str, share: str = share) -> float:
            return seed.horizon[model].reached[share]

        quantity = f"time to {100 * float(share):g}% of the final accuracy"
        found.append(_compared(seeds, quantity, pair, time, "t/T", step=1 / STEPS))
    for tolerance in seeds[0].nfe:

        def evaluations(seed: SeedResults, model: str, tolerance: str = tolerance) -> float:
            return seed.nfe[tolerance][model]

        quantity = f"dopri5 evaluations at tolerance {tolerance}"
        found.append(_compared(seeds, quantity, pair, evaluations, "evaluations"))
    return found


def _robustness(seeds: Sequence[SeedResults]) -> list[Comparison]:
    found = []
    strongest = any(
        protocol.startswith("worst ") and set(pair) <= set(table)
        for protocol, table in seeds[0].robust.items()
        for pair in PAIRS.items()
    )
    for protocol, table in seeds[0].robust.items():
        for pair in PAIRS.items():
            if not set(pair) <= set(table):
                continue

            def robust(seed: SeedResults, model: str, protocol: str = protocol) -> float:
                return 100 * seed.robust[protocol][model].value

            quantity = f"robust accuracy, {PROTOCOLS[protocol.split()[0]]} {threat(protocol)}"
            compared = _compared(seeds, quantity, pair, robust, "percent", False)
            decides = protocol.startswith("worst ") or not strongest
            found.append(compared.model_copy(update={"decides": decides, "floor": FLOOR}))
    return found


def _fooled(seeds: Sequence[SeedResults]) -> str:
    """Of which pairs PGD on the deployed model says more than the worst case leaves, in words."""
    said = []
    for protocol in seeds[0].robust:
        if not protocol.startswith("wide "):
            continue
        worst = protocol.replace("wide", "worst", 1)
        for pair in PAIRS.items():
            if not set(pair) <= set(seeds[0].robust.get(worst, {})):
                continue
            alone, left = ([_mean(seeds, by, m) for m in pair] for by in (protocol, worst))
            told = list(zip(pair, alone, left, strict=True))
            fooled = " and ".join(name for name, a, b in told if a - b > FOOLED and b < a / 2)
            if any(a - b > FOOLED for _, a, b in told):
                said.append(
                    f"PGD on the deployed model at {threat(protocol)} says {alone[0]:.1f} to "
                    f"{alone[1]:.1f} % of {pair[0]} against {pair[1]}, of which the worst case "
                    f"leaves {left[0]:.1f} to {left[1]:.1f} %: "
                    + (f"it is fooled by {fooled}" if fooled else "it is the weaker attack")
                )
    return "; ".join(said)


def _behind(seeds: Sequence[SeedResults]) -> str:
    """Which models predict so much less than their rivals that all is said of a weaker one."""
    said = []
    for ours, rival in PAIRS.items():
        clean = [100 * sum(s.clean[m].value for s in seeds) / len(seeds) for m in (ours, rival)]
        if clean[1] - clean[0] > BEHIND:
            said.append(
                f"{ours} classifies {clean[0]:.1f} % of the clean test images where {rival} does "
                f"{clean[1]:.1f} %: in this budget it stays that far behind"
            )
    return "; ".join(said)


def _mean(seeds: Sequence[SeedResults], protocol: str, model: str) -> float:
    return Interval.of([100 * seed.robust[protocol][model].value for seed in seeds]).mean


# Points by which PGD is above the worst case where a claim says so; that it is fooled, where less
# than half is left.
FOOLED = 5.0
# Points of clean accuracy behind its rival from which on all else is said with that.
BEHIND = 5.0
# Per cent below which nothing stands that could be compared.
FLOOR = 1.0

PROTOCOLS = {
    "paper": "the paper's protocol",
    "pixels": "PGD with the same numbers in pixel units",
    "wide": f"PGD with {WIDE_STEPS} steps",
    "short": "PGD through a shorter horizon as well",
    "worst": "the worst case over views",
}


def threat(protocol: str) -> str:
    """Norm and radius of a protocol, as pages write them."""
    _, norm, eps = protocol.split()
    return f"{'ℓ∞' if norm == 'linf' else 'ℓ2'} {eps}"


def _costs(seeds: Sequence[SeedResults]) -> list[Comparison]:
    found = []
    for label in seeds[0].cost:
        what, rival = label.split(": ")
        found.append(
            Comparison(
                quantity=f"cost of a training {what}",
                ours="lyanet, Monte Carlo",
                rival=rival,
                unit="ratio",
                lower_is_better=True,
                our_values=[seed.cost[label] for seed in seeds],
                rival_values=[1.0] * len(seeds),
            )
        )
    return found
