"""The regression gate: is a run at least as good as its baseline?

A run is comparable with its baseline if both saw the same images (digest, split, number,
subsets) with the same seed and settings, and if it holds every model of the baseline; weights
may differ, being what is tested. On the same images no sampling noise enters a difference: only
the last bits of float arithmetic, which vary between machines, can flip an image near a decision
boundary. The tolerance is for those. It is a proportion of the samples, so with few samples
(fewer than 100 at the default of 0.01) it is less than one image and one image's fall is a
regression.

Outcomes rank: a regression that was found stays one, whatever else could not be told; "cannot
tell" needs the absence of any.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from robustness.errors import UsageError
from robustness.reporting import selection, words
from robustness.reporting.compare import find, obstacles
from robustness.results.leaderboard import Leaderboard, ModelEntry, Proportion

# Slack for the product of a tolerance and a total: 0.01 x 600 is 6 images, never 5.999...
_ROUNDING = 1e-9


class Outcome(IntEnum):
    """The answer; its value is the exit code."""

    PASS = 0
    REGRESSION = 1
    CANNOT_TELL = 2


@dataclass(frozen=True)
class Finding:
    """One line of the verdict; `outcome` is what it argues for, None where it is only said."""

    text: str
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's answer and why.

    Attributes:
        outcome: pass, regression or cannot tell.
        findings: a line each: regressions first, then what cannot be told, then the rest.
    """

    outcome: Outcome
    findings: list[str]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 2 cannot tell."""
        return int(self.outcome)


def check(results: Leaderboard, baseline: Leaderboard, tolerance: float = 0.01) -> Verdict:
    """Compare a run with its baseline.

    Clean accuracy and, at each threat of the baseline, certified and attacked accuracy regress
    when they fall by more than `tolerance`; the number of failed samples when it rises by more.
    A certified image that was broken is a regression whatever the baseline is.

    Args:
        results: the run in question.
        baseline: what it must not fall behind.
        tolerance: the largest fall that passes, as a proportion of the samples.

    Raises:
        UsageError: the tolerance is not a proportion.
    """
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise UsageError(
            f"expected a tolerance from 0 up to 1, a proportion of the samples, got {tolerance}; "
            "write 0.01 for one percentage point"
        )
    findings = [*_violations(results), *_comparisons(results, baseline, tolerance)]
    argued = {finding.outcome for finding in findings}
    ranked = (Outcome.REGRESSION, Outcome.CANNOT_TELL, Outcome.PASS)
    outcome = next((o for o in ranked if o in argued), Outcome.PASS)
    order = [*ranked, None]
    findings.sort(key=lambda finding: order.index(finding.outcome))
    return Verdict(outcome, [finding.text for finding in findings])


def _violations(results: Leaderboard) -> Iterator[Finding]:
    for violation in results.soundness.violations:
        yield Finding(f"REGRESSION soundness: {violation}", Outcome.REGRESSION)


def _comparisons(
    results: Leaderboard, baseline: Leaderboard, tolerance: float
) -> Iterator[Finding]:
    reasons = obstacles(baseline.suite, results.suite)
    if not baseline.models:
        reasons.append("the baseline holds no model")
    for reason in reasons:
        yield _cannot_tell(reason)
    if reasons:
        return
    for expected in baseline.models:
        found = find(results, expected.name)
        if found is None:
            yield _cannot_tell(f"{expected.name} is missing from the results")
        else:
            yield from _model(found, expected, tolerance)
    known = {entry.name for entry in baseline.models}
    for entry in results.models:
        if entry.name not in known:
            yield Finding(f"note: {entry.name} is not in the baseline and was not compared")


def _model(found: ModelEntry, expected: ModelEntry, tolerance: float) -> Iterator[Finding]:
    if found.digest != expected.digest:
        yield Finding(f"note: {found.name} has another digest of weights and architecture")
    yield from _accuracy(f"{found.name}, clean", found.clean, expected.clean, tolerance)
    yield from _errors(found, expected, tolerance)
    for old in expected.brackets:
        threat = f"{found.name}, {words.threat(old.norm, old.eps)}"
        new = selection.find_bracket(found, old.norm, old.eps)
        if new is None:
            yield _cannot_tell(f"{threat} is missing from the results")
            continue
        yield from _accuracy(f"{threat} certified", new.certified, old.certified, tolerance)
        by = selection.strength(found, old.norm, old.eps)
        yield from _accuracy(f"{threat} attacked ({by})", new.attacked, old.attacked, tolerance)


def _accuracy(what: str, new: Proportion, old: Proportion, tolerance: float) -> Iterator[Finding]:
    if new.total != old.total:
        yield _cannot_tell(f"{what}: {new.total} samples against {old.total} in the baseline")
        return
    # In whole images, so that a fall by exactly the tolerance passes on every machine.
    rise = new.count - old.count
    change = f"{what}: {words.percent(old.value)} -> {words.percent(new.value)}"
    points = f"({words.points(rise / old.total)} points, {_images(abs(rise))})"
    if _exceeds(-rise, tolerance, old.total):
        yield Finding(f"REGRESSION {change} {points}", Outcome.REGRESSION)
    elif _exceeds(rise, tolerance, old.total):
        yield Finding(f"improvement {change} {points}")


def _errors(found: ModelEntry, expected: ModelEntry, tolerance: float) -> Iterator[Finding]:
    rise = found.errors - expected.errors
    change = f"{found.name}, failed samples: {expected.errors} -> {found.errors}"
    if _exceeds(rise, tolerance, expected.clean.total):
        yield Finding(f"REGRESSION {change}", Outcome.REGRESSION)
    elif _exceeds(-rise, tolerance, expected.clean.total):
        yield Finding(f"improvement {change}")


def _exceeds(images: int, tolerance: float, total: int) -> bool:
    return images > tolerance * total + _ROUNDING


def _images(count: int) -> str:
    return words.plural(count, "image")


def _cannot_tell(reason: str) -> Finding:
    return Finding(f"cannot tell: {reason}", Outcome.CANNOT_TELL)
