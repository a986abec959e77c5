"""Two leaderboards side by side, and what makes them incomparable."""

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from robustness.reporting import selection, words
from robustness.reporting.tables import plain_table
from robustness.results.leaderboard import Leaderboard, ModelEntry, Proportion, SuiteSummary
from robustness.threat import Norm

# The models are what a comparison is about, and audit and checks leave sound numbers as they are.
IGNORED_SETTINGS = frozenset({"models", "audit", "flags"})


@dataclass(frozen=True)
class Change:
    """One quantity of one model in two leaderboards; None where a side lacks it."""

    a: Proportion | None
    b: Proportion | None

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
    """

    models: list[ModelChange]
    obstacles: list[str]

    @property
    def verdict(self) -> str:
        """Whether the numbers may be compared, in one line."""
        if self.obstacles:
            return "not comparable: " + "; ".join(self.obstacles)
        return "comparable: same images, seed and settings"


def compare(a: Leaderboard, b: Leaderboard) -> Comparison:
    """Put two leaderboards side by side; `render` makes a table of the result."""
    names = dict.fromkeys(entry.name for entry in [*a.models, *b.models])
    return Comparison(
        models=[_model(name, find(a, name), find(b, name)) for name in names],
        obstacles=obstacles(a.suite, b.suite),
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


def _model(name: str, a: ModelEntry | None, b: ModelEntry | None) -> ModelChange:
    brackets = [bracket for entry in (a, b) if entry is not None for bracket in entry.brackets]
    threats = list(dict.fromkeys((bracket.norm, bracket.eps) for bracket in brackets))
    return ModelChange(
        name=name,
        clean=Change(a.clean if a else None, b.clean if b else None),
        threats=[_threat(norm, eps, a, b) for norm, eps in threats],
    )


def _threat(norm: Norm, eps: float, a: ModelEntry | None, b: ModelEntry | None) -> ThreatChange:
    before = selection.find_bracket(a, norm, eps) if a else None
    after = selection.find_bracket(b, norm, eps) if b else None
    return ThreatChange(
        norm,
        eps,
        (_by(a, norm, eps), _by(b, norm, eps)),
        Change(before.certified if before else None, after.certified if after else None),
        Change(before.attacked if before else None, after.attacked if after else None),
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


def _attackers(a: str | None, b: str | None) -> str:
    return f"A: {a}, B: {b}" if a and b and a != b else a or b or words.ABSENT


def _cells(change: Change) -> list[str]:
    sides = [words.percent(p.value) if p else words.ABSENT for p in (change.a, change.b)]
    if change.difference is None:
        return [*sides, words.ABSENT + " "]
    # The mark has a column of its own so that the digits stay aligned.
    return [*sides, words.points(change.difference) + (" " if change.overlap else "*")]
