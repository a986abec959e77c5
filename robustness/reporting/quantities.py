"""The numbers a gate and a comparison are about, told for each sample, and paired by it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Literal

import numpy as np

from robustness.reporting import selection, words
from robustness.results.leaderboard import ModelEntry, Proportion
from robustness.threat import Norm


class Metric(StrEnum):
    """What is counted of a model; more is better.

    `finished` counts the samples on which neither the model nor an attack failed.
    """

    CLEAN = "clean"
    FINISHED = "finished"
    CERTIFIED = "certified"
    ATTACKED = "attacked"


@dataclass(frozen=True)
class Quantity:
    """One number of a model: a metric, and its threat where it has one."""

    metric: Metric
    norm: Norm | None = None
    eps: float | None = None

    @property
    def threat(self) -> str:
        """The threat in plain ASCII, such as `Linf 0.1`; empty where there is none."""
        return "" if self.norm is None or self.eps is None else words.threat(self.norm, self.eps)

    def __str__(self) -> str:
        return f"{self.metric}, {self.threat}" if self.threat else str(self.metric)


def quantities(entry: ModelEntry) -> list[Quantity]:
    """Every number of a model that a gate can hold: two of the model, two of each threat."""
    found = [Quantity(Metric.CLEAN), Quantity(Metric.FINISHED)]
    for bracket in entry.brackets:
        found += [
            Quantity(metric, bracket.norm, bracket.eps)
            for metric in (Metric.CERTIFIED, Metric.ATTACKED)
        ]
    return found


def proportion(entry: ModelEntry, quantity: Quantity) -> Proportion | None:
    """The number of a model; None where the model lacks it."""
    if quantity.metric is Metric.CLEAN:
        return entry.clean
    if quantity.metric is Metric.FINISHED:
        return _proportion(entry.clean.total - entry.errors, entry.clean.total)
    if quantity.norm is None or quantity.eps is None:
        return None
    bracket = selection.find_bracket(entry, quantity.norm, quantity.eps)
    if bracket is None:
        return None
    return bracket.certified if quantity.metric is Metric.CERTIFIED else bracket.attacked


@cache  # of the same few, most often all
def _proportion(count: int, total: int) -> Proportion:
    return Proportion.of(count, total)


def held(entry: ModelEntry, quantity: Quantity) -> dict[int, bool] | None:
    """Whether each sample counts, by its index in the data set.

    None where the leaderboard does not tell: it has no samples, or they give another count.
    """
    stated = proportion(entry, quantity)
    if entry.samples is None or stated is None:
        return None
    told = dict(zip(entry.samples.index, _held(entry, quantity), strict=False))
    agrees = len(told) == stated.total and sum(told.values()) == stated.count
    return told if agrees else None


def _held(entry: ModelEntry, quantity: Quantity) -> Iterator[bool]:
    samples = entry.samples
    if samples is None:
        return
    right = [a == b for a, b in zip(samples.label, samples.prediction, strict=True)]
    if quantity.metric is Metric.CLEAN:
        yield from right
        return
    if quantity.metric is Metric.FINISHED:
        for place in range(len(right)):
            yield all(known.failed[place] is None for known in samples.norms)
        return
    known = next((each for each in samples.norms if each.norm is quantity.norm), None)
    if known is None or quantity.eps is None:
        return
    nearest = known.radius if quantity.metric is Metric.CERTIFIED else known.distance
    for is_right, *limits in zip(right, nearest, known.failed, strict=True):
        yield is_right and all(limit is None or limit > quantity.eps for limit in limits)


@dataclass(frozen=True)
class Pairs:
    """The same samples in two runs, A and B.

    Attributes:
        total: samples.
        broke: indices of those that count in A and not in B.
        mended: indices of those that count in B and not in A.
    """

    total: int
    broke: tuple[int, ...]
    mended: tuple[int, ...]

    @property
    def p_change(self) -> float:
        """Two-sided p-value of McNemar's exact test (McNemar, 1947): neither run is better."""
        return _mcnemar(len(self.broke), len(self.mended), "two-sided")

    @property
    def p_fall(self) -> float:
        """One-sided p-value of the same test: B is no worse than A."""
        return _mcnemar(len(self.broke), len(self.mended), "greater")


def _mcnemar(broke: int, mended: int, side: Literal["two-sided", "greater"]) -> float:
    if broke + mended == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(broke, broke + mended, 0.5, alternative=side).pvalue)


def pairs(a: ModelEntry, b: ModelEntry, quantity: Quantity) -> Pairs | None:
    """One number of a model in two runs, sample by sample.

    None unless both tell it of the same samples. That they are images of one data set is for the
    caller to see to.
    """
    before, after = held(a, quantity), held(b, quantity)
    if before is None or after is None or before.keys() != after.keys():
        return None
    changed = sorted(index for index in before if before[index] != after[index])
    return Pairs(
        total=len(before),
        broke=tuple(index for index in changed if before[index]),
        mended=tuple(index for index in changed if after[index]),
    )


def p_fall(old: Proportion, new: Proportion) -> float:
    """One-sided p-value of Fisher's exact test on independent samples: `new` is no worse."""
    if new.value >= old.value:
        return 1.0
    from scipy.stats import fisher_exact

    table = np.array([[run.count, run.total - run.count] for run in (old, new)])
    return float(fisher_exact(table, alternative="greater").pvalue)


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for their number, so that a threshold bounds any false alarm's rate.

    The step-down procedure of Holm (1979), "A simple sequentially rejective multiple test
    procedure".
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
