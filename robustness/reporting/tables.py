"""The table a run prints and the tidy table that other programs read."""

from collections.abc import Iterator

from rich.box import Box
from rich.table import Table
from rich.text import Text

from robustness.reporting import columns, selection, words
from robustness.reporting.spreadsheet import csv_of
from robustness.results.leaderboard import (
    Leaderboard,
    ModelEntry,
    Proportion,
    Soundness,
)
from robustness.threat import Norm

# One rule below the heading and nothing else, in ASCII: it survives any pipe and encoding.
PLAIN = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)

SAMPLE_COLUMNS = (
    "model",
    "index",
    "label",
    "prediction",
    "norm",
    "certified_radius",
    "certificate",
    "limit",
    "adversarial_distance",
    "found_by",
    "failed_at",
)

COLUMNS = (
    "model",
    "norm",
    "eps",
    "quantity",
    "method",
    "kind",
    "count",
    "total",
    "value",
    "low",
    "high",
)


def plain_table(title: str, caption: str) -> Table:
    """An empty table in the style of every table on the terminal."""
    return Table(
        title=Text(title, style="bold"),
        caption=Text(caption),
        title_justify="left",
        caption_justify="left",
        box=PLAIN,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )


def summary_table(leaderboard: Leaderboard) -> Table:
    """One row per model: clean accuracy, the bracket and AutoAttack at one radius per norm.

    Plain ASCII apart from what models are called, and narrow enough for 80 columns with the
    two norms.
    """
    headline = selection.headline(leaderboard)
    table = plain_table(f"Suite {leaderboard.suite.name}", _caption(leaderboard))
    # Only names may wrap: a number that is cut in two is worse than a tall row.
    table.add_column("model", overflow="fold", min_width=12)
    table.add_column("clean", justify="right", no_wrap=True)
    for norm, eps in headline:
        table.add_column(words.threat(norm, eps), justify="right", no_wrap=True)
        if sizes := selection.autoattack_sizes(leaderboard, norm, eps):
            table.add_column(f"AA n={words.extent(sizes, '-')}", justify="right", no_wrap=True)
    for entry in leaderboard.models:
        table.add_row(*_summary_cells(leaderboard, entry, headline))
    return table


def _summary_cells(
    leaderboard: Leaderboard, entry: ModelEntry, headline: list[tuple[Norm, float]]
) -> Iterator[Text]:
    yield Text(entry.name)
    yield Text(words.percent(entry.clean.value))
    for norm, eps in headline:
        yield Text(words.bracket(selection.find_bracket(entry, norm, eps)), style="bold")
        if selection.autoattack_sizes(leaderboard, norm, eps):
            row = selection.autoattack_row(entry, norm, eps)
            yield Text(words.percent(row.robust.value) if row else words.ABSENT)


def _caption(leaderboard: Leaderboard) -> str:
    suite = leaderboard.suite
    samples = words.plural(suite.samples, f"{suite.split} sample")
    lines = [f"certified-attacked accuracy in percent, {suite.data}, {samples}"]
    lines += [
        f"attacked at {words.threat(*at)} by: {selection.strengths(leaderboard, *at)}"
        for at in selection.headline(leaderboard)
    ]
    lines += [
        f"{entry.name}: serious problem with attacks on it, {', '.join(names)}"
        for entry in leaderboard.models
        if (names := [flag.name for flag in selection.serious(entry)])
    ]
    if any(selection.autoattack_sizes(leaderboard, *at) for at in selection.headline(leaderboard)):
        lines.append("AA: AutoAttack alone, on the first n samples of the suite's order")
    lines += [
        f"{entry.name}: {words.plural(entry.errors, 'sample')} failed, not robust"
        for entry in selection.failures(leaderboard)
    ]
    return "\n".join([*lines, f"soundness: {soundness_line(leaderboard.soundness)}"])


def soundness_line(soundness: Soundness) -> str:
    """How often a certified image was broken, in one line; words that follow `Soundness:`."""
    violations = len(soundness.violations)
    if not soundness.pairs and not soundness.audited and not violations:
        return "nothing was certified and attacked, so nothing could be refuted"
    broken = words.plural(violations, "VIOLATION") if violations else "no violation"
    return (
        f"{broken}; {words.plural(soundness.audited, 'certified image')} audited just inside the "
        f"radius, and {words.plural(soundness.pairs, 'pair')} of a radius and an attacked image, "
        f"{soundness.attacked_inside:,} of them attacked inside"
    )


def csv_text(leaderboard: Leaderboard) -> str:
    """One row per model, threat and quantity.

    `quantity` is `clean`, `clean_whole_test_set` where the suite saw a part of it, and `errors`
    (no threat), for a neural ODE `clean_without_flow` and `other_without_flow` (images whose class
    the flow changes; no threat), `certified` and `attacked` (the bracket, with `method` saying
    what attacked), `probabilistic` (the best certificate of that kind), `attack` (one attack
    alone, named by `method`) or `certificate` (one certificate alone; its `kind` says whether it
    proves anything), and `column` (of an installed package, named by `method`; a value alone, which
    may be words). Other values are proportions and are written so that reading them back gives the
    same floats.
    """
    samples = leaderboard.suite.samples
    rows = [row for entry in leaderboard.models for row in _tidy_rows(entry, samples)]
    for model, name, value in columns.values(leaderboard):
        rows.append((model, "", "", "column", name, "", "", "", value, "", ""))
    return csv_of(COLUMNS, rows)


def _tidy_rows(entry: ModelEntry, samples: int) -> Iterator[tuple[object, ...]]:
    def row(
        quantity: str, value: Proportion, threat: tuple[object, object], method: str, kind: str
    ) -> tuple[object, ...]:
        numbers = (value.count, value.total, value.value, value.low, value.high)
        return (entry.name, *threat, quantity, method, kind, *numbers)

    yield row("clean", entry.clean, ("", ""), "", "")
    if (whole := selection.beyond(entry)) is not None:
        yield row("clean_whole_test_set", whole.clean, ("", ""), "", "")
    if entry.without_flow is not None:
        yield row("other_without_flow", entry.without_flow.other, ("", ""), "", "")
        yield row("clean_without_flow", entry.without_flow.clean, ("", ""), "", "")
    yield row("errors", Proportion.of(entry.errors, samples), ("", ""), "", "")
    for b in entry.brackets:
        yield row("certified", b.certified, (b.norm.value, b.eps), "", "")
        by = selection.strength(entry, b.norm, b.eps)
        yield row("attacked", b.attacked, (b.norm.value, b.eps), by, "")
        if b.probabilistic is not None:
            yield row("probabilistic", b.probabilistic, (b.norm.value, b.eps), "", "")
    for a in entry.attacks:
        yield row("attack", a.robust, (a.norm.value, a.eps), a.attack, "")
    for c in entry.certificates:
        if c.kind is None:  # a refusal has no accuracy to speak of
            continue
        for eps, accuracy in zip(c.eps, c.accuracy, strict=True):
            threat = (c.norm.value, eps)
            yield row("certificate", accuracy, threat, c.certificate, c.kind.value)


def samples_csv(leaderboard: Leaderboard) -> str:
    """One row per model, sample and norm: what is proved of it and what was found.

    `adversarial_distance` is 0 for a misclassified sample and empty where nothing was found;
    `failed_at` is the smallest radius at which the model or an attack failed, empty for none.
    """
    return csv_of(SAMPLE_COLUMNS, _sample_rows(leaderboard))


def _sample_rows(leaderboard: Leaderboard) -> Iterator[tuple[object, ...]]:
    for entry in leaderboard.models:
        if entry.samples is None:
            continue
        who = list(
            zip(
                entry.samples.index,
                entry.samples.label,
                entry.samples.prediction,
                strict=True,
            )
        )
        for known in entry.samples.norms:
            columns = (
                known.radius,
                known.certificate,
                known.limit,
                known.distance,
                known.found_by,
                known.failed,
            )
            for sample, facts in zip(who, zip(*columns, strict=True), strict=True):
                yield (entry.name, *sample, known.norm.value, *facts)
