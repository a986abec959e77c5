"""Two leaderboards side by side as a page: what broke, what held, what is new and what is gone."""

from robustness.reporting import words
from robustness.reporting.compare import Change, Comparison
from robustness.reporting.html import told_page
from robustness.reporting.quantities import Quantity
from robustness.reporting.sections import Cell, Heading, Row, Table, count, listed, share

_RULE = (
    "A sample broke where it counts in A and not in B, and was mended where it is the other way "
    "round. p is that of McNemar's exact test, two-sided, of each number by itself: how often "
    "chance alone parts as many samples as unevenly."
)


def comparison_page(comparison: Comparison, a: str, b: str) -> str:
    """The page.

    Args:
        comparison: what to show.
        a: what the first leaderboard is called.
        b: what the second one is called.
    """
    sections = [("Every number", _RULE, [_numbers(comparison)])]
    if comparison.moved:
        said = (
            "Indices into the data set of the samples that count in one run and not in the other."
        )
        sections.append(("What broke and what was mended", said, [_samples(comparison)]))
    return told_page(f"{b} against {a}", _found(comparison, a, b), sections)


def _found(comparison: Comparison, a: str, b: str) -> list[str]:
    known = [c.difference for _, _, c in comparison.numbers if c.difference is not None]
    fell, rose = sum(d < 0 for d in known), sum(d > 0 for d in known)
    said = (
        f"Of {words.plural(len(known), 'number')} that both have, {fell} fell, {rose} rose and "
        f"{len(known) - fell - rose} held."
    )
    if comparison.moved:
        model, quantity, _, pairs = comparison.moved[0]
        said += (
            f" Least likely by chance: {model}, {quantity}, where {len(pairs.broke)} samples broke "
            f"and {len(pairs.mended)} were mended (p {pairs.p_change:.2g})."
        )
    lines = [said, f"A: {a}. B: {b}. {comparison.verdict[0].upper()}{comparison.verdict[1:]}."]
    if comparison.new:
        lines.append(f"New in B: {listed(comparison.new)}.")
    if comparison.gone:
        lines.append(f"Gone from B: {listed(comparison.gone)}.")
    return lines


def _numbers(comparison: Comparison) -> Table:
    headings = (
        Heading("model", words=True),
        Heading("number", words=True),
        Heading("A", "percent"),
        Heading("B", "percent"),
        Heading("change", "points"),
        Heading("broke", "samples"),
        Heading("mended", "samples"),
        Heading("p"),
    )
    order = {(model, str(quantity)): i for i, (model, quantity, *_) in enumerate(comparison.moved)}
    numbers = sorted(
        comparison.numbers, key=lambda each: order.get((each[0], str(each[1])), len(order))
    )
    rows = tuple(_row(*each) for each in numbers)
    caption = "Every number of both runs, those least likely by chance first."
    return Table("numbers", caption, headings, rows)


def _row(model: str, quantity: Quantity, change: Change) -> Row:
    pairs, difference = change.pairs, change.difference
    absent = Cell(words.ABSENT, "")
    return Row(
        (
            Cell(model),
            Cell(_named(quantity)),
            share(change.a),
            share(change.b),
            absent if difference is None else Cell(words.points(difference), difference),
            absent if pairs is None else count(len(pairs.broke)),
            absent if pairs is None else count(len(pairs.mended)),
            absent if pairs is None else Cell(f"{pairs.p_change:.2g}", pairs.p_change),
        )
    )


def _samples(comparison: Comparison) -> Table:
    headings = tuple(Heading(name, words=True) for name in ("model", "number", "broke", "mended"))
    rows = tuple(
        Row(
            (
                Cell(model),
                Cell(_named(quantity)),
                Cell(words.index_list(pairs.broke)),
                Cell(words.index_list(pairs.mended)),
            )
        )
        for model, quantity, _, pairs in comparison.moved
    )
    return Table("samples", "Samples that changed sides, by number.", headings, rows)


def _named(quantity: Quantity) -> str:
    if quantity.norm is None or quantity.eps is None:
        return str(quantity.metric)
    return f"{quantity.metric}, {words.threat_symbol(quantity.norm, quantity.eps)}"
