"""Two leaderboards side by side, sample by sample, and what makes them incomparable."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from robustness.reporting import selection, words
from robustness.reporting.quantities import Metric, Pairs, Quantity, pairs, proportion
from robustness.reporting.tables import plain_table
from robustness.results.leaderboard import Leaderboard, ModelEntry, Proportion, SuiteSummary
from robustness.threat import Norm

# The models are what a comparison is about, and audit and checks leave sound numbers as they are.
IGNORED_SETTINGS = frozenset({"models", "added", "audit", "flags"})


@dataclass(frozen=True)
class Change:
    """One quantity of one model in two leaderboards; None where a side lacks it.

    `pairs` says which samples changed sides; None unless both tell the same ones apart.
    """

    a: Proportion | None
    b: Proportion | None
    pairs: Pairs | None = None

    @property
    def difference(self) -> float | None:
        """`b - a` as a proportion; None unless both are known."""
        return None if self.a is None or self.b is None else self.b.value - self.a.value

    @property
    def overlap(self) -> bool | None:
        """Whether the 95% intervals share a value; None unless both are known."""
        if self.a is None or self.b is None:
            return None
        return self.a.low <= self.b.high and self.b.low <= self.a.high


@dataclass(frozen=True)
class ThreatChange:
    """The bracket of one model at one threat in two leaderboards.

    `by` is what attacked the model in each; None where a leaderboard lacks it.
    """

    norm: Norm
    eps: float
    by: tuple[str | None, str | None]
    certified: Change
    attacked: Change


@dataclass(frozen=True)
class ModelChange:
    """One model in two leaderboards."""

    name: str
    clean: Change
    threats: list[ThreatChange]


@dataclass(frozen=True)
class Comparison:
    """Two leaderboards side by side.

    Attributes:
        models: every model of either, those of the first one first.
        obstacles: what makes the two incomparable, a phrase each; empty where nothing does.
        new: names of models that only the second one has.
        gone: names of models that only the first one has.
    """

    models: list[ModelChange]
    obstacles: list[str]
    new: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Whether the numbers may be compared, in one line."""
        if self.obstacles:
            return "not comparable: " + "; ".join(self.obstacles)
        return "comparable: same images, seed and settings"

    @property
    def numbers(self) -> list[tuple[str, Quantity, Change]]:
        """Every number of every model, in the order of the table."""
        return [
            (model.name, quantity, change)
            for model in self.models
            for quantity, change in _numbers(model)
        ]

    @property
    def moved(self) -> list[tuple[str, Quantity, Change, Pairs]]:
        """The numbers of which samples changed sides, least likely by chance first."""
        found = [
            (model, quantity, change, change.pairs)
            for model, quantity, change in self.numbers
            if change.pairs is not None and (change.pairs.broke or change.pairs.mended)
        ]
        return sorted(found, key=lambda each: each[3].p_change)


def _numbers(model: ModelChange) -> Iterator[tuple[Quantity, Change]]:
    yield Quantity(Metric.CLEAN), model.clean
    for threat in model.threats:
        yield Quantity(Metric.CERTIFIED, threat.norm, threat.eps), threat.certified
        yield Quantity(Metric.ATTACKED, threat.norm, threat.eps), threat.attacked


def compare(a: Leaderboard, b: Leaderboard) -> Comparison:
    """Put two leaderboards side by side; `render` makes a table of the result."""
    names = list(dict.fromkeys(entry.name for entry in [*a.models, *b.models]))
    # An index means the same image in both only if the images are the same.
    same = (a.suite.data_digest, a.suite.split) == (b.suite.data_digest, b.suite.split)
    return Comparison(
        models=[_model(name, find(a, name), find(b, name), same) for name in names],
        obstacles=obstacles(a.suite, b.suite),
        new=[name for name in names if find(a, name) is None],
        gone=[name for name in names if find(b, name) is None],
    )


def obstacles(a: SuiteSummary, b: SuiteSummary, *, other_seeds: bool = False) -> list[str]:
    """What makes two runs incomparable: other images, another seed or other settings.

    Args:
        a: one run.
        b: the other.
        other_seeds: whether seed, number and order of samples may differ.
    """
    found = []
    if a.data_digest != b.data_digest:
        found.append(f"other images ({_data(a)} against {_data(b)})")
    for what in ("split",) if other_seeds else ("split", "samples", "seed"):
        before, after = getattr(a, what), getattr(b, what)
        if before != after:
            found.append(f"other {what} ({before} against {after})")
    keys = sorted((a.settings.keys() | b.settings.keys()) - IGNORED_SETTINGS)
    differing = [key for key in keys if _setting(a, key) != _setting(b, key)]
    if differing:
        found.append(f"other settings ({', '.join(differing)})")
    # With the same seed the subsets differ only if the order of samples was drawn otherwise.
    if not found and not other_seeds and a.subsets != b.subsets:
        found.append("other subsets of the samples")
    return found


def _setting(suite: SuiteSummary, key: str) -> tuple[bool, object]:
    """A setting, and whether it is there at all: a missing one is not one that is null."""
    return key in suite.settings, suite.settings.get(key)


def _data(suite: SuiteSummary) -> str:
    return f"{suite.data} {suite.data_digest[:8]}"


def find(leaderboard: Leaderboard, name: str) -> ModelEntry | None:
    """The model of that name, if the leaderboard has it."""
    return next((entry for entry in leaderboard.models if entry.name == name), None)


def _model(name: str, a: ModelEntry | None, b: ModelEntry | None, same: bool) -> ModelChange:
    brackets = [bracket for entry in (a, b) if entry is not None for bracket in entry.brackets]
    threats = list(dict.fromkeys((bracket.norm, bracket.eps) for bracket in brackets))
    clean = _change(a, b, Quantity(Metric.CLEAN), same)
    return ModelChange(name, clean, [_threat(norm, eps, a, b, same) for norm, eps in threats])


def _threat(
    norm: Norm, eps: float, a: ModelEntry | None, b: ModelEntry | None, same: bool
) -> ThreatChange:
    return ThreatChange(
        norm,
        eps,
        (_by(a, norm, eps), _by(b, norm, eps)),
        _change(a, b, Quantity(Metric.CERTIFIED, norm, eps), same),
        _change(a, b, Quantity(Metric.ATTACKED, norm, eps), same),
    )


def _change(a: ModelEntry | None, b: ModelEntry | None, quantity: Quantity, same: bool) -> Change:
    return Change(
        proportion(a, quantity) if a else None,
        proportion(b, quantity) if b else None,
        pairs(a, b, quantity) if a and b and same else None,
    )


def _by(entry: ModelEntry | None, norm: Norm, eps: float) -> str | None:
    return None if entry is None else selection.strength(entry, norm, eps)


def render(comparison: Comparison, a: str = "A", b: str = "B") -> Table:
    """The comparison as a table of plain ASCII that fits 80 columns.

    Args:
        comparison: what to show.
        a: what the first leaderboard is called in the caption.
        b: what the second one is called.
    """
    legend = "percent; change from A to B in points, * where 95% intervals do not overlap"
    clean = "clean stands under attacked, being the attacked accuracy at radius 0"
    caption = [legend, clean, f"A: {a}", f"B: {b}", comparison.verdict]
    table = plain_table("Comparison", "\n".join(caption))
    table.add_column("model, threat", overflow="fold", min_width=12)
    for side in ("certified", "attacked"):
        for heading in (f"{side}\nA", "B", "change "):
            table.add_column(heading, justify="right", min_width=5)
    for model in comparison.models:
        table.add_row(Text(model.name, style="bold"))
        table.add_row("  clean", *[""] * 3, *_cells(model.clean))
        for threat in model.threats:
            label = f"  {words.threat(threat.norm, threat.eps)}, {_attackers(*threat.by)}"
            table.add_row(label, *_cells(threat.certified), *_cells(threat.attacked))
    return table


def told(comparison: Comparison, most: int = 20) -> list[str]:
    """What broke and what was mended, what is new and what is gone, a line each.

    Args:
        comparison: what to tell.
        most: numbers of which samples changed sides, the least likely by chance first.
    """
    lines = [f"new in B: {name}" for name in comparison.new]
    lines += [f"gone from B: {name}" for name in comparison.gone]
    moved = comparison.moved
    for model, quantity, _, found in moved[:most]:
        changed = f"{len(found.broke)} broke, {len(found.mended)} mended of {found.total}"
        lines.append(f"{model}, {quantity}: {changed}, p {found.p_change:.2g}")
    if len(moved) > most:
        lines.append(f"and {words.plural(len(moved) - most, 'further number')} (all with --html)")
    if moved:
        lines.append("p: McNemar's exact test, two-sided, of each number by itself")
    return lines


def _attackers(a: str | None, b: str | None) -> str:
    return f"A: {a}, B: {b}" if a and b and a != b else a or b or words.ABSENT


def _cells(change: Change) -> list[str]:
    sides = [words.percent(p.value) if p else words.ABSENT for p in (change.a, change.b)]
    if change.difference is None:
        return [*sides, words.ABSENT + " "]
    # The mark has a column of its own so that the digits stay aligned.
    return [*sides, words.points(change.difference) + (" " if change.overlap else "*")]
