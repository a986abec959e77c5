"""Who stands where at one threat, how far plain attacks mislead, and what a report says first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

from robustness.reporting import columns, pages, prose, selection, words
from robustness.reporting.sections import (
    Bar,
    Cell,
    Heading,
    Note,
    Row,
    Table,
    listed,
    share,
    table_csv,
)
from robustness.results.leaderboard import (
    WORST_CASE,
    AttackRow,
    Bracket,
    Leaderboard,
    ModelEntry,
)
from robustness.threat import Norm

Threat = tuple[Norm, float]

# The plain attack that the worst case is held against, where a suite runs it.
PLAIN = "pgd"
# From this difference on, in accuracy, a plain attack is said to mislead.
MISLEADING = 0.05

SOUND, CAUTION, MASKED, UNSOUND, UNCHECKED = "sound", "caution", "masked", "unsound", "unchecked"
MARKS = {
    SOUND: (
        "no check found a problem with the model's gradients; an attack of few steps may still be "
        "too weak"
    ),
    CAUTION: "attacks of one kind are weak on the model; the others of the run need not be",
    MASKED: (
        "a check found a serious problem: plain attacks report far more than is there, and so may "
        "the attacked accuracy wherever it is above the certified one"
    ),
    UNSOUND: "a certificate of the model was broken, which is a defect",
    UNCHECKED: "the suite made no checks",
}


def trust(entry: ModelEntry, leaderboard: Leaderboard) -> str:
    """The one mark of a model."""
    if any(v.model == entry.name for v in leaderboard.soundness.violations):
        return UNSOUND
    if selection.doubted(entry):
        return MASKED
    if selection.doubts(entry):
        return CAUTION
    return SOUND if entry.flags else UNCHECKED


def link_to(leaderboard: Leaderboard, entry: ModelEntry) -> str:
    """The anchor of a model on its suite's page, as a link holds it."""
    return quote(pages.anchor(leaderboard, entry), safe="/")


def threat_id(threat: Threat) -> str:
    """A threat as a word that ids and attributes may hold, such as `linf-0.1`."""
    norm, eps = threat
    return f"{norm.value.lower()}-{eps:.6g}"


def default_threat(leaderboard: Leaderboard) -> Threat | None:
    """The threat that a page shows first; None without any."""
    return next(iter(selection.headline(leaderboard)), None)


def ranked(leaderboard: Leaderboard, threat: Threat) -> list[tuple[ModelEntry, Bracket | None]]:
    """The models by certified, then attacked, then clean accuracy; those without a bracket last."""
    pairs = [(entry, selection.find_bracket(entry, *threat)) for entry in leaderboard.models]
    return sorted(pairs, key=lambda pair: _standing(*pair))


def _standing(entry: ModelEntry, bracket: Bracket | None) -> tuple[float, float, float, str]:
    if bracket is None:
        return (1.0, 1.0, -entry.clean.value, entry.name)
    return (
        -bracket.certified.value,
        -bracket.attacked.value,
        -entry.clean.value,
        entry.name,
    )


def attack_row(entry: ModelEntry, attack: str, threat: Threat) -> AttackRow | None:
    """The row of one attack on one model at a threat, if it ran."""
    return next((r for r in entry.attacks if (r.attack, (r.norm, r.eps)) == (attack, threat)), None)


def plain_attack(leaderboard: Leaderboard) -> str | None:
    """The plain attack that is held against the worst case: PGD, else the last that ran."""
    names = [r.attack for m in leaderboard.models for r in m.attacks if r.attack != WORST_CASE]
    return PLAIN if PLAIN in names else next(reversed(names), None)


def gap(entry: ModelEntry, attack: str | None, threat: Threat) -> float | None:
    """By how much an attack alone leaves more than all; None where it saw not every sample.

    Nor is there any where nothing stronger than a plain attack ran: it would be 0 by default.
    """
    row = attack_row(entry, attack or "", threat)
    bracket = selection.find_bracket(entry, *threat)
    if row is None or bracket is None or row.subset != entry.clean.total:
        return None
    if attack_row(entry, WORST_CASE, threat) is None:
        return None
    return row.robust.value - bracket.attacked.value


def misleads(leaderboard: Leaderboard) -> bool:
    """Whether the plain attack misleads about any model at any threat."""
    plain = plain_attack(leaderboard)
    gaps = [
        gap(entry, plain, threat)
        for entry in leaderboard.models
        for threat in selection.threats(leaderboard)
    ]
    return any(value is not None and value >= MISLEADING for value in gaps)


@dataclass(frozen=True)
class Misled:
    """How far a plain attack misleads about a model.

    Attributes:
        entry: the model.
        plain: the attack's row.
        bracket: what all attacks leave.
        worst: the row of the worst case.
    """

    entry: ModelEntry
    plain: AttackRow
    bracket: Bracket
    worst: AttackRow

    @property
    def gap(self) -> float:
        """Accuracy that the plain attack leaves beyond that which all leave."""
        return self.plain.robust.value - self.bracket.attacked.value


def best_proved(leaderboard: Leaderboard, threat: Threat) -> tuple[ModelEntry, Bracket] | None:
    """The model with the largest certified accuracy; None where none has any."""
    for entry, bracket in ranked(leaderboard, threat)[:1]:
        if bracket is not None and bracket.certified.count:
            return entry, bracket
    return None


def most_misleading(leaderboard: Leaderboard, threat: Threat) -> Misled | None:
    """Where the plain attack misleads most; None where it does nowhere."""
    name, found = plain_attack(leaderboard), []
    for entry in leaderboard.models:
        distance = gap(entry, name, threat)
        if distance is not None and distance >= MISLEADING:
            bracket = selection.find_bracket(entry, *threat)
            plain = attack_row(entry, name or "", threat)
            worst = attack_row(entry, WORST_CASE, threat)
            assert bracket is not None
            assert plain is not None
            assert worst is not None
            found.append(Misled(entry, plain, bracket, worst))
    return max(found, key=lambda misled: misled.gap, default=None)


def found(leaderboard: Leaderboard, threat: Threat) -> list[str]:
    """What was found at a threat, in two sentences."""
    return [_best_sentence(leaderboard, threat), _misled_sentence(leaderboard, threat)]


def _best_sentence(leaderboard: Leaderboard, threat: Threat) -> str:
    where = f"At {words.threat_symbol(*threat)}"
    best = best_proved(leaderboard, threat)
    if best is None:
        return f"{where} nothing is proved of any model."
    entry, bracket = best
    return (
        f"{where} {entry.name} is best proved: {_percent(bracket.certified.value)} of the images "
        f"are certified, and {_percent(bracket.attacked.value)} stand every attack."
    )


def _misled_sentence(leaderboard: Leaderboard, threat: Threat) -> str:
    misled = most_misleading(leaderboard, threat)
    plain = plain_attack(leaderboard)
    if misled is None:
        measured = [gap(entry, plain, threat) for entry in leaderboard.models]
        known = [value for value in measured if value is not None]
        if not known:
            return _uncompared_sentence(leaderboard, threat)
        return (
            f"{(plain or '').upper()} misleads about none: alone it leaves at most "
            f"{words.points(max(known)).removeprefix('+')} points more than the worst case."
        )
    entry = misled.entry
    masked = " (trust mark: masked)" if trust(entry, leaderboard) == MASKED else ""
    said = (
        f"{misled.plain.attack.upper()} misleads most about {entry.name}{masked}: alone it leaves "
        f"{_percent(misled.plain.robust.value)}, the worst case "
        f"{_percent(misled.bracket.attacked.value)}"
    )
    # What the plain attack itself broke, or one weaker, says nothing of why it misleads.
    weak = {"clean", "fgsm", misled.plain.attack}
    stronger = ((s, n) for s, n in misled.worst.found_by.items() if s.split("@")[0] not in weak)
    if (strongest := next(stronger, None)) is not None:
        stage, count = strongest
        said += f" ({stage} broke {words.plural(count, 'image')})"
    flags = [flag.name for flag in selection.doubts(entry)]
    if flags:
        verb = "finds" if len(flags) == 1 else "find"
        noun = "check" if len(flags) == 1 else "checks"
        said += f"; the {noun} {listed(flags)} {verb} it too"
    return f"{said}."


def _uncompared_sentence(leaderboard: Leaderboard, threat: Threat) -> str:
    """Why no plain attack can be held against the worst case."""
    attacked = [entry for entry, bracket in ranked(leaderboard, threat) if bracket is not None]
    hunted = sum(attack_row(entry, WORST_CASE, threat) is not None for entry in attacked)
    if attacked and hunted == len(attacked):
        return "No plain attack was run on all images there to hold against the worst case."
    of = f" on {len(attacked) - hunted} of {len(attacked)} models" if hunted else ""
    return f"No worst case was run there{of}, so attacked accuracies may be far too high."


def _percent(value: float) -> str:
    return f"{words.percent(value)} %"


def ranking_table(
    leaderboard: Leaderboard,
    threat: Threat,
    smoothed: bool | None = None,
    quoted: bool | None = None,
    depth: int = 1,
) -> Table:
    """The table of a suite at one threat, best first.

    Args:
        leaderboard: of the suite.
        threat: norm and radius.
        smoothed: whether to give probabilistic accuracy, by default where any is above 0.
        quoted: whether to give what authors published of their weights, by default where any did.
        depth: of the report's folder in `reports/`, by which links lead.
    """
    smoothed = _smoothed(leaderboard, threat) if smoothed is None else smoothed
    quoted = bool(_bases(leaderboard, threat)) if quoted is None else quoted
    norm, eps = threat
    plain = plain_attack(leaderboard)
    strengths = list(
        dict.fromkeys(
            selection.strength(entry, norm, eps)
            for entry, bracket in ranked(leaderboard, threat)
            if bracket is not None
        )
    )
    wholes = [selection.beyond(entry) for entry in leaderboard.models]
    sizes = sorted({whole.clean.total for whole in wholes if whole is not None})
    images = f"{leaderboard.suite.samples:,} images"
    headings = [
        Heading("#"),
        Heading("model", words=True),
        Heading("family", words=True),
        Heading("clean", f"% of all {sizes[-1]:,}" if sizes else f"% of {images}"),
        Heading("certified", "%, 95%"),
        Heading("attacked", f"%, {strengths[0]}" if len(strengths) == 1 else "%"),
        Heading("bracket", "0 to 100 %", picture=True),
        Heading(f"{plain.upper() if plain else 'plain'} − worst", "points"),
        Heading("flow decides", "% of images"),
        Heading("trust", words=True),
    ]
    if smoothed:
        headings.insert(5, Heading("probabilistic", "%, 95%"))
    if quoted:
        headings.append(Heading("their paper", "% certified"))
    headings += [Heading(name) for name in columns.headings()]
    rows, rank, before = [], 0, None
    for number, (entry, bracket) in enumerate(ranked(leaderboard, threat), start=1):
        here = bracket and (bracket.certified.count, bracket.attacked.count)
        rank = rank if here is not None and here == before else number
        before = here
        rows.append(
            _ranking_row(
                leaderboard,
                entry,
                bracket,
                threat,
                rank,
                len(strengths) > 1,
                smoothed,
                quoted,
                depth,
            )
        )
    caption = (
        f"{words.threat_symbol(norm, eps)}: robust accuracy lies between certified, which is "
        "proved, and attacked, which no attack of the run broke. Best proved first, "
        "of equals the best attacked."
    )
    if any(entry.nfe is not None for entry in leaderboard.models):
        caption += (
            " Flow decides: on how many images the class is another without the ODE's flow; at 0 "
            "the network in front of it decides alone."
        )
    if bases := _bases(leaderboard, threat):
        caption += (
            f" Their paper: what the authors of the weights published: {listed(bases, ' or ')}; it "
            "was not measured here."
        )
    return Table(f"ranking-{threat_id(threat)}", caption, tuple(headings), tuple(rows), 1)


def ranking_csv(leaderboard: Leaderboard) -> str:
    """The tables at every threat, one below the other, as comma-separated values."""
    smoothed = selection.smoothed(leaderboard)
    quoted = any(_bases(leaderboard, threat) for threat in selection.threats(leaderboard))
    headings: tuple[Heading, ...] = (Heading("threat"),)
    rows = []
    for threat in selection.threats(leaderboard):
        table = ranking_table(leaderboard, threat, smoothed, quoted)
        headings = (Heading("threat"), *table.headings, Heading("attacked by"))
        for (entry, _), row in zip(ranked(leaderboard, threat), table.rows, strict=True):
            by = Cell(selection.strength(entry, *threat))
            rows.append(replace(row, cells=(Cell(words.threat(*threat)), *row.cells, by)))
    return table_csv(Table("ranking", "", headings, tuple(rows)))


def _ranking_row(
    leaderboard: Leaderboard,
    entry: ModelEntry,
    bracket: Bracket | None,
    threat: Threat,
    rank: int,
    name_strength: bool,
    smoothed: bool,
    quoted: bool,
    depth: int,
) -> Row:
    whole, page = selection.beyond(entry), pages.model_page(leaderboard, entry)
    clean = whole.clean if whole is not None else entry.clean
    partly = whole is None and any(map(selection.beyond, leaderboard.models))
    mark = trust(entry, leaderboard)
    cells = [
        Cell(str(rank), rank) if bracket else Cell(words.ABSENT, ""),
        Cell(entry.name, href=page),
        _family(entry, depth),
        Cell(
            words.precisely(clean),
            clean.value,
            notes=(Note(f"of {clean.total:,}"),) if partly else (),
        ),
    ]
    if bracket is None:
        absent = Cell(words.ABSENT, "")
        cells += [Cell("not evaluated", ""), absent, absent, *([absent] if smoothed else [])]
    else:
        by = selection.strength(entry, *threat)
        cells.append(share(bracket.certified, interval=True))
        if smoothed:
            cells.append(share(bracket.probabilistic, interval=True))
        notes = [Note(by)] if name_strength else []
        cells.append(share(bracket.attacked, *notes, interval=not name_strength))
        bar = Bar(bracket.certified.value, bracket.attacked.value, entry.clean.value)
        cells.append(Cell(words.bracket(bracket, "–"), bracket.width, bar=bar))
    distance = gap(entry, plain_attack(leaderboard), threat)
    cells += [
        Cell(words.ABSENT, "")
        if distance is None
        else Cell(
            words.points(distance).removeprefix("+"),
            distance,
            badge="wide" if distance >= MISLEADING else "",
        ),
        _flow(entry),
        _trust_cell(entry, mark, page),
        *([_quoted(entry, threat)] if quoted else []),
        *(Cell(said, said) for said in columns.cells(entry)),
    ]
    best = bracket is not None and bracket.certified.count > 0
    kind = "certified" if best else "probabilistic" if _probabilistic(bracket) else "nothing proved"
    facts = {
        "family": entry.origin.family if entry.origin else "",
        "kind": kind,
        "mark": mark,
    }
    return Row(tuple(cells), pages.anchor(leaderboard, entry), facts)


def _bases(leaderboard: Leaderboard, threat: Threat) -> list[str]:
    """What figures that authors published at a threat are based on, in words."""
    said = [selection.published_at(entry, *threat) for entry in leaderboard.models]
    return list(dict.fromkeys(published.basis for published in said if published is not None))


def _quoted(entry: ModelEntry, threat: Threat) -> Cell:
    said = selection.published_at(entry, *threat)
    if said is None:
        return Cell(words.ABSENT, "")
    clean = Note(f"clean {words.percent(said.clean)}")
    return Cell(words.percent(said.certified), said.certified, notes=(clean,))


def _smoothed(leaderboard: Leaderboard, threat: Threat) -> bool:
    """Whether any probabilistic certificate says something there."""
    return any(_probabilistic(bracket) for _, bracket in ranked(leaderboard, threat))


def _probabilistic(bracket: Bracket | None) -> bool:
    return (
        bracket is not None
        and bracket.probabilistic is not None
        and bool(bracket.probabilistic.count)
    )


def _family(entry: ModelEntry, depth: int) -> Cell:
    if entry.origin is None:
        return Cell(words.ABSENT, "")
    recipe = Note("recipe", f"{prose.root(depth)}/models/{entry.name}/recipe.toml")
    return Cell(entry.origin.family, href=entry.origin.paper, notes=(recipe,))


def _flow(entry: ModelEntry) -> Cell:
    if entry.nfe is None:
        return Cell("no ODE", "")
    whole = selection.beyond(entry)
    flow = whole.without_flow if whole is not None else entry.without_flow
    if flow is None:
        return Cell("not measured", "")
    return Cell(words.percent(flow.other.value), flow.other.value)


def _trust_cell(entry: ModelEntry, mark: str, page: str) -> Cell:
    names = [flag.name for flag in selection.doubts(entry)]
    shown = names if len(names) <= 2 else [names[0], f"and {len(names) - 1} more"]
    checks = f"{page}#checks" if entry.flags else ""
    return Cell(mark, mark, checks, tuple(Note(name) for name in shown), badge=mark)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats in one coordinate without losing in the other."""
    return [
        i
        for i, (x, y) in enumerate(points)
        if not any((a >= x and b >= y and (a, b) != (x, y)) for a, b in points)
    ]
