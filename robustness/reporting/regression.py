"""The regression gate: is a run at least as good as its baseline?

A run is comparable with its baseline if both saw the same images (digest, split, number,
subsets) with the same seed and settings, and if it holds every model of the baseline; weights
may differ, being what is tested. On the same images no sampling noise enters a difference: only
the last bits of float arithmetic, which vary between machines, can flip an image near a decision
boundary. The tolerance is for those. It is a proportion of the samples, so with few samples
(fewer than 100 at the default of 0.01) it is less than one image and one image's fall is a
regression.

Thresholds may say otherwise for each model and metric, and may ask that a fall be significant as
well as large: by McNemar's exact test where both runs tell the same samples apart, by Fisher's
where they do not, either one-sided and adjusted for the number of comparisons.

Outcomes rank: a regression that was found stays one, whatever else could not be told; "cannot
tell" needs the absence of any.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from robustness.errors import UsageError
from robustness.reporting import selection, words
from robustness.reporting.compare import find, obstacles
from robustness.reporting.quantities import (
    Metric,
    Quantity,
    holm,
    p_fall,
    pairs,
    proportion,
    quantities,
)
from robustness.reporting.thresholds import Limits, Thresholds
from robustness.results.leaderboard import Leaderboard, ModelEntry, Proportion

# Slack for the product of a tolerance and a total: 0.01 x 600 is 6 images, never 5.999...
_ROUNDING = 1e-9


class Outcome(IntEnum):
    """The answer; its value is the exit code."""

    PASS = 0
    REGRESSION = 1
    CANNOT_TELL = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Case:
    """One thing that was looked at.

    Attributes:
        model: whose; empty for the run as a whole.
        what: the number, or `soundness`, `comparability` or `presence`.
        outcome: what it argues for.
        text: what there is to say, in one line; empty where there is nothing.
        quantity: the number; None for what is no number.
        old: of the baseline; None where it has none.
        new: of the run in question; None where it has none.
        p_value: that a fall is chance, adjusted for all cases; None where nobody asked.
    """

    model: str
    what: str
    outcome: Outcome
    text: str = ""
    quantity: Quantity | None = None
    old: Proportion | None = None
    new: Proportion | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The gate's answer and why.

    Attributes:
        outcome: pass, regression or cannot tell.
        findings: a line each: regressions first, then what cannot be told, then the rest.
        cases: everything that was looked at: of the run, then of each model.
    """

    outcome: Outcome
    findings: list[str]
    cases: list[Case]

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regression, 2 cannot tell."""
        return int(self.outcome)


def check(
    results: Leaderboard,
    baseline: Leaderboard | None,
    tolerance: float = 0.01,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Compare a run with its baseline.

    Clean accuracy, the number of samples that did not fail and, at each threat of the baseline,
    certified and attacked accuracy regress when they fall by more than the limits allow, or are
    below their floor. A certified image that was broken is a regression whatever the baseline is.

    Args:
        results: the run in question.
        baseline: what it must not fall behind; None where only floors hold it.
        tolerance: the largest fall that passes, as a proportion of the samples, where the
            thresholds say nothing of falls.
        thresholds: limits by model and metric, and whether a fall must be significant.

    Raises:
        UsageError: the tolerance is not a proportion, a limit matches nothing, or there is
            neither a baseline nor a floor.
    """
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise UsageError(
            f"expected a tolerance from 0 up to 1, a proportion of the samples, got {tolerance}; "
            "write 0.01 for one percentage point"
        )
    limits = thresholds or Thresholds()
    boards = [board for board in (results, baseline) if board is not None]
    limits.require_matches(
        (entry.name, quantity)
        for board in boards
        for entry in board.models
        for quantity in quantities(entry)
    )
    if baseline is None and all(limit.floor is None for limit in limits.limits):
        raise UsageError(
            "expected a baseline, or thresholds with a floor, got neither; give --baseline, "
            "--baseline-rev or --thresholds"
        )
    return _Gate(results, baseline, tolerance, limits).verdict()


@dataclass(frozen=True)
class _Number:
    """A number that is not judged yet.

    Attributes:
        case: as far as it is known.
        limits: what holds it.
        called: how a finding begins.
        remark: what may explain a fall; empty where nothing does.
    """

    case: Case
    limits: Limits
    called: str
    remark: str


@dataclass(frozen=True)
class _Gate:
    results: Leaderboard
    baseline: Leaderboard | None
    tolerance: float
    thresholds: Thresholds

    def verdict(self) -> Verdict:
        """All cases, judged; those of numbers once the significance of all is known."""
        before = list(_soundness(self.results))
        reasons = self._obstacles()
        before += [_cannot_tell("", "comparability", reason) for reason in reasons]
        if self.baseline is not None and not reasons:
            before.append(Case("", "comparability", Outcome.PASS))
        compared = self.baseline if not reasons else None
        cases, notes = list(before), []
        numbers: list[_Number] = []
        for expected in compared.models if compared else []:
            found = find(self.results, expected.name)
            if found is None:
                missing = f"{expected.name} is missing from the results"
                cases.append(_cannot_tell(expected.name, "presence", missing))
                continue
            if found.digest != expected.digest:
                notes.append(f"note: {found.name} has another digest of weights and architecture")
            numbers += list(self._numbers(found, expected))
        for entry in self.results.models:
            if compared is None or find(compared, entry.name) is None:
                numbers += list(self._numbers(entry, None))
                if compared is not None:
                    notes.append(f"note: {entry.name} is not in the baseline and was not compared")
        cases += self._judged(numbers)
        said = [case for case in cases if case.text]
        said.sort(key=lambda case: _RANKS.index(case.outcome))
        outcome = next((o for o in _RANKS if any(c.outcome is o for c in cases)), Outcome.PASS)
        # A threat that is missing is missing twice.
        findings = dict.fromkeys([*(case.text for case in said), *notes])
        return Verdict(outcome, list(findings), cases)

    def _obstacles(self) -> list[str]:
        if self.baseline is None:
            return []
        before, after = self.baseline.suite, self.results.suite
        reasons = obstacles(before, after, other_seeds=self.thresholds.other_seeds)
        return reasons if self.baseline.models else [*reasons, "the baseline holds no model"]

    def _numbers(self, found: ModelEntry, expected: ModelEntry | None) -> Iterator[_Number]:
        every = quantities(found) if expected is None else quantities(expected)
        for quantity in every:
            old = None if expected is None else proportion(expected, quantity)
            new = proportion(found, quantity)
            case = Case(
                found.name, str(quantity), Outcome.PASS, quantity=quantity, old=old, new=new
            )
            if expected is not None and self.thresholds.significance is not None:
                case = replace(case, p_value=_p_value(found, expected, case))
            limits = self.thresholds.of(found.name, quantity, self.tolerance)
            remark = _remark(found, expected, quantity)
            yield _Number(case, limits, _called(found, quantity), remark)

    def _judged(self, numbers: list[_Number]) -> Iterator[Case]:
        tested = [n.case.p_value for n in numbers if n.case.p_value is not None]
        adjusted = iter(holm(tested))
        for number in numbers:
            if number.case.p_value is None:
                yield self._judge(number)
            else:
                case = replace(number.case, p_value=next(adjusted))
                yield self._judge(replace(number, case=case))

    def _judge(self, number: _Number) -> Case:
        case, limits, called = number.case, number.limits, number.called
        old, new = case.old, case.new
        if new is None:
            threat = case.quantity.threat if case.quantity else case.what
            return _cannot(case, f"{case.model}, {threat} is missing from the results")
        if limits.floor is not None and new.value < limits.floor:
            floor = f"{words.percent(new.value)} is below its floor of {100 * limits.floor:g}"
            return _regression(case, f"{called}: {floor}")
        if old is None:
            return case
        if new.total != old.total and not self.thresholds.other_seeds:
            fault = f"{called}: {new.total} samples against {old.total} in the baseline"
            return _cannot(case, fault)
        change = _change(old, new, called, case)
        beyond = _beyond(old, new, limits)
        if beyond:
            significance = self.thresholds.significance
            if significance is None or case.p_value is None or case.p_value < significance:
                return _regression(case, change + number.remark)
            return replace(case, text=f"within chance {change}")
        if limits.fall is not None and _exceeds(_rise(old, new), limits.fall, old, new):
            return replace(case, text=f"improvement {change}")
        return case


_RANKS = (Outcome.REGRESSION, Outcome.CANNOT_TELL, Outcome.PASS)


def _soundness(results: Leaderboard) -> Iterator[Case]:
    for violation in results.soundness.violations:
        text = f"REGRESSION soundness: {violation}"
        yield Case(violation.model, "soundness", Outcome.REGRESSION, text)
    if not results.soundness.violations:
        yield Case("", "soundness", Outcome.PASS)


def _called(entry: ModelEntry, quantity: Quantity) -> str:
    if quantity.metric is Metric.FINISHED:
        return f"{entry.name}, failed samples"
    if quantity.norm is None or quantity.eps is None:
        return f"{entry.name}, {quantity.metric}"
    called = f"{entry.name}, {quantity.threat} {quantity.metric}"
    if quantity.metric is Metric.CERTIFIED:
        return called
    return f"{called} ({selection.strength(entry, quantity.norm, quantity.eps)})"


def _remark(found: ModelEntry, expected: ModelEntry | None, quantity: Quantity) -> str:
    if expected is None or quantity.metric is not Metric.ATTACKED:
        return ""
    other = _versions(expected, quantity) != _versions(found, quantity)
    return "; the attacks are of other versions" if other else ""


def _versions(entry: ModelEntry, at: Quantity) -> set[tuple[str, str]]:
    rows = [row for row in entry.attacks if (row.norm, row.eps) == (at.norm, at.eps)]
    return {(row.attack, row.version) for row in rows}


def _p_value(found: ModelEntry, expected: ModelEntry, case: Case) -> float | None:
    if case.quantity is None or case.old is None or case.new is None:
        return None
    paired = pairs(expected, found, case.quantity)
    return p_fall(case.old, case.new) if paired is None else paired.p_fall


def _change(old: Proportion, new: Proportion, called: str, case: Case) -> str:
    p_value = "" if case.p_value is None else f"p {case.p_value:.2g}"
    if case.quantity is not None and case.quantity.metric is Metric.FINISHED:
        failed = f"{called}: {old.total - old.count} -> {new.total - new.count}"
        return f"{failed} ({p_value})" if p_value else failed
    moved = [f"{words.points(new.value - old.value)} points"]
    if old.total == new.total:
        moved.append(words.plural(abs(new.count - old.count), "image"))
    if p_value:
        moved.append(p_value)
    numbers = f"{words.percent(old.value)} -> {words.percent(new.value)}"
    return f"{called}: {numbers} ({', '.join(moved)})"


def _beyond(old: Proportion, new: Proportion, limits: Limits) -> bool:
    fall = -_rise(old, new)
    if limits.fall is not None and _exceeds(fall, limits.fall, old, new):
        return True
    relative = limits.relative_fall
    return relative is not None and _exceeds(fall, relative * old.value, old, new)


def _rise(old: Proportion, new: Proportion) -> int:
    """The rise in units of 1 / (old.total x new.total): whole numbers do not round.

    A fall by exactly the tolerance passes on every machine.
    """
    return new.count * old.total - old.count * new.total


def _exceeds(units: int, tolerance: float, old: Proportion, new: Proportion) -> bool:
    return units > (tolerance + _ROUNDING) * old.total * new.total


def _regression(case: Case, text: str) -> Case:
    return replace(case, outcome=Outcome.REGRESSION, text=f"REGRESSION {text}")


def _cannot(case: Case, reason: str) -> Case:
    return replace(case, outcome=Outcome.CANNOT_TELL, text=f"cannot tell: {reason}")


def _cannot_tell(model: str, what: str, reason: str) -> Case:
    return Case(model, what, Outcome.CANNOT_TELL, f"cannot tell: {reason}")
