"""All that is known of one model, as tables: what its page and the Markdown file say."""

from robustness.certificates.base import Kind
from robustness.reporting import prose, selection, words
from robustness.reporting.sections import (
    Bar,
    Cell,
    Heading,
    Note,
    Row,
    Table,
    count,
    number,
    share,
)
from robustness.results.leaderboard import CertificateRow, Flag, Leaderboard, ModelEntry
from robustness.results.severity import Severity, severity

REASONS_SHOWN = 4


def facts(entry: ModelEntry) -> list[tuple[str, str]]:
    """What the model is, as terms and their values."""
    clean = entry.clean
    said = [
        (
            "clean accuracy",
            f"{words.precisely(clean)} % ({clean.count:,} of {clean.total:,}; 95% interval "
            f"{words.interval(clean)} %)",
        )
    ]
    if (whole := selection.beyond(entry)) is not None:
        said.append(
            (
                "clean, whole test set",
                f"{words.precisely(whole.clean)} % ({whole.clean.count:,} of "
                f"{whole.clean.total:,})",
            )
        )
    said += [
        ("parameters", f"{entry.parameters:,}"),
        ("NFE per prediction", "none, no ODE" if entry.nfe is None else f"{entry.nfe}"),
        ("failed samples", f"{entry.errors:,}"),
        (prose.DIGEST, entry.digest),
    ]
    if entry.whole is not None:
        said.append(("weights, SHA-256", entry.whole.weights_sha256))
    if entry.origin and entry.origin.weights:
        said.append(("weights, not included", entry.origin.weights))
    for quoted in entry.origin.published if entry.origin else []:
        threat = words.threat_symbol(quoted.norm, quoted.eps)
        said.append((f"their paper, {threat}", prose.published(quoted)))
    return said


def sections(
    leaderboard: Leaderboard, entry: ModelEntry, depth: int = 1
) -> list[tuple[str, str, list[Table]]]:
    """Headings, a sentence on each and its tables, those without rows left out.

    Args:
        leaderboard: of the suite.
        entry: the model.
        depth: of the report's folder in `reports/`, by which links lead.
    """
    every = [
        ("Checks: can the attacks be believed?", prose.GLOSSARY["Flag"], [checks(entry, depth)]),
        ("Brackets", prose.GLOSSARY["Bracket"], [brackets(leaderboard, entry)]),
        ("What the flow decides", prose.FLOW, [flow(entry)]),
        ("Certified decay", prose.ENVELOPE, [envelope(entry)]),
        (
            "Attacks",
            "Accuracy in percent that each attack alone leaves, on the samples that it was run on.",
            [attacks(leaderboard, entry)],
        ),
        ("Nearest adversarial images", prose.GLOSSARY["Nearest"], [nearest(entry)]),
        (
            "Certificates",
            "Accuracy in percent that each alone gives. Only the kind certified is a proof and "
            "enters the brackets.",
            certificates(leaderboard, entry),
        ),
        ("Refusals", "Certificates that say nothing about this model, and why.", [refusals(entry)]),
        ("Audit", prose.SOUNDNESS, [audits(entry)]),
    ]
    found = [(title, said, [t for t in tables if t.rows]) for title, said, tables in every]
    return [section for section in found if section[2]]


def brackets(leaderboard: Leaderboard, entry: ModelEntry) -> Table:
    """The bracket at every threat."""
    smoothed = any(b.probabilistic is not None for b in entry.brackets)
    headings = [
        Heading("threat", words=True),
        Heading("certified", "%, 95%"),
        Heading("attacked", "%, 95%"),
        Heading("attacked by", words=True),
        Heading("bracket", "0 to 100 %", picture=True),
        Heading("width", "points"),
    ]
    if smoothed:
        headings.append(Heading("probabilistic", "%, 95%"))
    rows = []
    for b in entry.brackets:
        bar = Bar(b.certified.value, b.attacked.value, entry.clean.value)
        cells = [
            Cell(words.threat_symbol(b.norm, b.eps), words.threat(b.norm, b.eps)),
            share(b.certified, interval=True),
            share(b.attacked, interval=True),
            Cell(selection.strength(entry, b.norm, b.eps)),
            Cell(words.bracket(b, "–"), b.width, bar=bar),
            Cell(words.percent(b.width), b.width),
        ]
        if smoothed:
            cells.append(share(b.probabilistic, interval=True))
        rows.append(Row(tuple(cells)))
    del leaderboard
    caption = "Robust accuracy lies between certified and attacked; the width is what is not known."
    return Table("brackets", caption, tuple(headings), tuple(rows))


def checks(entry: ModelEntry, depth: int = 1) -> Table:
    """What each check found, the gravest first; for `depth` see `sections`."""
    order = list(Severity)
    flags = sorted(
        entry.flags,
        key=lambda f: (not f.raised, order.index(severity(f.name)) if f.raised else 0),
    )
    rows = [
        Row(
            (
                Cell(flag.name, href=prose.flag_page(flag.name, prose.root(depth))),
                Cell(prose.verdict(flag), badge=_badge(flag)),
                number(flag.value),
                number(flag.threshold),
                Cell(flag.detail),
            )
        )
        for flag in flags
    ]
    headings = (
        Heading("check", words=True),
        Heading("verdict", words=True),
        Heading("value"),
        Heading("threshold"),
        Heading("measurement", words=True),
    )
    return Table(
        "checks", "Checks of the attacks on this model, failures first.", headings, tuple(rows)
    )


def _badge(flag: Flag) -> str:
    if not flag.raised:
        return "sound"
    return {Severity.SERIOUS: "masked", Severity.CAUTION: "caution"}.get(
        severity(flag.name), "unchecked"
    )


def flow(entry: ModelEntry) -> Table:
    """What is predicted without the flow."""
    found = selection.flow_rows_of(entry)
    headings = (
        Heading("images", words=True),
        Heading("class is another without the flow"),
        Heading("95%"),
        Heading("clean", "%"),
        Heading("clean without the flow", "%"),
    )
    rows = tuple(Row(tuple(map(Cell, cells))) for cells in found)
    return Table("flow", "Predictions with and without the flow.", headings, rows)


def envelope(entry: ModelEntry) -> Table:
    """Between which numbers the potential is proved to lie."""
    headings = (
        Heading("threat", words=True),
        Heading("images"),
        Heading("V proved to fall"),
        Heading("label proved to lead"),
        Heading("V(0), at least"),
        Heading("V(T), at least"),
        Heading("V(T), measured"),
        Heading("V(T), at most"),
    )
    rows = tuple(Row(tuple(map(Cell, cells))) for cells in selection.envelope_rows(entry))
    return Table("envelope", "The proved envelope of V(t) at each threat.", headings, rows)


def attacks(leaderboard: Leaderboard, entry: ModelEntry) -> Table:
    """Each attack alone at every threat, and all together."""
    threats = [(b.norm, b.eps) for b in entry.brackets]
    headings = [Heading("attack", words=True), Heading("samples")]
    headings += [Heading(words.threat_symbol(*threat)) for threat in threats]
    headings += [Heading("errors"), Heading("rejected")]
    rows = []
    for line in selection.attack_lines(entry, threats):
        notes = [Note(version) for version in line.versions]
        if line.skipped:
            notes.append(
                Note(
                    f"{words.plural(line.skipped, 'time')} a sample was certified at the radius "
                    "and not attacked"
                )
            )
        if line.found_by:
            notes.append(Note(f"broken by: {words.counts(line.found_by)}"))
        sizes = words.extent(row.subset for row in line.run)
        values = [share(row.robust if row else None) for row in line.rows]
        counts = (count(line.errors), count(line.rejected))
        rows.append(Row((Cell(line.attack, notes=tuple(notes)), Cell(sizes), *values, *counts)))
    if rows:
        together = [share(b.attacked) for b in entry.brackets]
        size = Cell(f"{entry.clean.total:,}", entry.clean.total)
        blank = Cell("", "")
        rows.append(
            Row((Cell("all, worst per sample"), size, *together, blank, blank), strong=True)
        )
    del leaderboard
    return Table(
        "attacks", "Accuracy under each attack alone, in percent.", tuple(headings), tuple(rows)
    )


def nearest(entry: ModelEntry) -> Table:
    """How near adversarial images were found."""
    headings = (
        Heading("norm", words=True),
        Heading("samples"),
        Heading("found"),
        Heading("errors"),
        Heading("median distance"),
        Heading("median certified radius"),
        Heading("looked for by", words=True),
    )
    rows = [
        Row(
            (
                Cell(words.SYMBOLS[row.norm], row.norm.value),
                count(row.samples),
                count(row.found),
                count(row.errors),
                number(row.median, "none"),
                number(row.median_certified),
                Cell(row.version),
            )
        )
        for row in entry.nearest
    ]
    return Table("nearest", "Searches for the nearest adversarial image.", headings, tuple(rows))


def certificates(leaderboard: Leaderboard, entry: ModelEntry) -> list[Table]:
    """Each certificate that speaks of the model, a table per norm."""
    tables = []
    for norm in dict.fromkeys(row.norm for row in entry.certificates):
        speaking = [r for r in selection.certificate_rows(entry, norm) if r.kind is not None]
        radii = sorted({eps for row in speaking for eps in row.eps})
        headings = [Heading(f"in {words.SYMBOLS[norm]}", words=True), Heading("kind", words=True)]
        headings += [Heading(words.radius(eps)) for eps in radii]
        headings += [
            Heading("median radius"),
            Heading("largest of all for"),
            Heading("ms per image"),
        ]
        headings.append(Heading("samples whose radius is limited by", words=True))
        costs = selection.costs(leaderboard, entry.name)
        rows = []
        for row in speaking:
            assert row.kind is not None
            at = dict(zip(row.eps, row.accuracy, strict=True))
            cost = costs.get((norm, row.certificate))
            limited = tuple(Note(f"{n:,}: {reason}") for reason, n in reasons(row))
            rows.append(
                Row(
                    (
                        Cell(row.certificate),
                        Cell(row.kind.value, badge=row.kind.value),
                        *(share(at.get(eps)) for eps in radii),
                        number(row.median_radius),
                        count(row.won) if row.kind is Kind.CERTIFIED else Cell(words.ABSENT, ""),
                        number(cost.milliseconds if cost else None),
                        Cell(words.counts(row.limits), notes=limited),
                    )
                )
            )
        caption = f"Certificates in {words.SYMBOLS[norm]}: accuracy in percent at each radius."
        name = f"certificates-{norm.value.lower()}"
        tables.append(Table(name, caption, tuple(headings), tuple(rows)))
    return tables


def refusals(entry: ModelEntry) -> Table:
    """Certificates that refuse the model, a line each."""
    said: dict[tuple[str, str], list[str]] = {}
    for row in entry.certificates:
        if row.kind is None:
            place = said.setdefault((row.certificate, row.refusal or ""), [])
            place.append(words.SYMBOLS[row.norm])
    rows = [
        Row((Cell(name), Cell(", ".join(norms)), Cell(reason)))
        for (name, reason), norms in said.items()
    ]
    headings = (
        Heading("certificate", words=True),
        Heading("norm", words=True),
        Heading("why it refuses", words=True),
    )
    return Table("refusals", "Certificates that refuse this model.", headings, tuple(rows))


def audits(entry: ModelEntry) -> Table:
    """Certified images that were attacked inside their radii."""
    headings = (
        Heading("norm", words=True),
        Heading("images"),
        Heading("broken"),
        Heading("errors"),
        Heading("smallest radius"),
        Heading("largest radius"),
    )
    rows = [
        Row(
            (
                Cell(words.SYMBOLS[audit.norm], audit.norm.value),
                count(audit.pairs),
                count(audit.broken),
                count(audit.errors),
                number(audit.smallest),
                number(audit.largest),
            )
        )
        for audit in entry.audits
        if audit.pairs
    ]
    return Table(
        "audit", "Certified images attacked just inside their radii.", headings, tuple(rows)
    )


def reasons(row: CertificateRow) -> list[tuple[str, int]]:
    """The most frequent reasons that limit a certificate's radii, the rest in one line."""
    every = list(row.reasons.items())
    shown, rest = every[:REASONS_SHOWN], every[REASONS_SHOWN:]
    if len(rest) == 1:  # naming it takes no more room than counting it
        return every
    if rest:
        shown.append((words.plural(len(rest), "other reason"), sum(n for _, n in rest)))
    return shown
