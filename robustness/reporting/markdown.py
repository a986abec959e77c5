"""The report as Markdown, for a repository or a pull request."""

from collections.abc import Iterable, Iterator, Sequence

from robustness.certificates.base import Kind
from robustness.errors import printable
from robustness.reporting import columns, prose, selection, tables, words
from robustness.reporting.pictures import PARTS, path_of
from robustness.results.leaderboard import CertificateRow, Flag, Leaderboard, ModelEntry
from robustness.results.severity import Severity, severity
from robustness.threat import Norm


def markdown_text(leaderboard: Leaderboard, figures: Sequence[str]) -> str:
    """The whole file.

    Args:
        leaderboard: what to report.
        figures: names of the figures in `figures/` to show.
    """
    blocks = [
        f"# {text(prose.title(leaderboard))}",
        f"Suite {code(leaderboard.suite.name)}: {text(prose.ran_on(leaderboard))}.",
        f"**Soundness**: {tables.soundness_line(leaderboard.soundness)}.",
        *(f"- {text(str(violation))}" for violation in leaderboard.soundness.violations),
        *_counterexamples(leaderboard),
        *_brackets(leaderboard),
        *_flow(leaderboard),
        *_envelopes(leaderboard),
        *_figures(figures),
        *(block for entry in leaderboard.models for block in _model(leaderboard, entry)),
        *_certificates(leaderboard),
        *_audits(leaderboard),
        *_attacks(leaderboard),
        *_nearest(leaderboard),
        *_checks(leaderboard),
        *_suite(leaderboard),
        "## Environment",
        _environment(leaderboard),
    ]
    return "\n\n".join(blocks) + "\n"


def text(value: str) -> str:
    """Foreign words with every character escaped that Markdown or HTML would act on."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]<>|#~$" else c for c in value)
    return " ".join(map(printable, escaped.replace("&", "&amp;").split()))


def code(value: str) -> str:
    """A name in code style; plain escaped text where code style cannot hold it."""
    plain = value.isprintable() and not set(value) & set("`|\\<>&")
    return f"`{value}`" if plain else text(value)


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose other columns are numbers."""
    alignment = ["---"] * texts + ["---:"] * (len(heading) - texts)
    lines = [heading, alignment, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _counterexamples(leaderboard: Leaderboard) -> Iterator[str]:
    for number, violation in enumerate(leaderboard.soundness.violations):
        if violation.picture is not None:
            shown = " ".join(f"![{part}]({path_of(number, part)})" for part in PARTS)
            yield f"Image {violation.index}, the adversarial one, and their difference: {shown}"


def _brackets(leaderboard: Leaderboard) -> Iterator[str]:
    yield "## Brackets"
    yield (
        "Robust accuracy lies between certified, which is proved, and attacked, which is only as "
        "low as the attacks are good, which stand in the headings. Accuracies in percent, widths "
        "in percentage points, radii in pixel units."
    )
    yield _headline(leaderboard)
    samples = words.plural(leaderboard.suite.samples, "sample")
    yield "Every radius:"
    threats = selection.threats(leaderboard)
    for norm in selection.norms(leaderboard):
        here = [(n, eps) for n, eps in threats if n is norm]
        heading = ["model", f"clean, {samples}"]
        for _, eps in here:
            by = selection.strengths(leaderboard, norm, eps)
            heading += [f"{words.threat_symbol(norm, eps)}, {by}", "width"]
        yield table(heading, [_bracket_cells(entry, here) for entry in leaderboard.models])
    if any(map(selection.doubted, leaderboard.models)):
        yield prose.DOUBTED_MEANS


def _headline(leaderboard: Leaderboard) -> str:
    at = selection.headline(leaderboard)
    heading = ["model", f"clean, {words.plural(leaderboard.suite.samples, 'sample')}"]
    beyond = [selection.beyond(entry) for entry in leaderboard.models]
    if any(beyond):
        heading.append("clean, whole test set")
    for norm, eps in at:
        by = selection.strengths(leaderboard, norm, eps)
        heading += [f"**width at {words.threat_symbol(norm, eps)}**", f"certified–attacked, {by}"]
        if selection.smoothed(leaderboard):
            heading.append("probabilistic")
        if sizes := selection.autoattack_sizes(leaderboard, norm, eps):
            heading.append(f"AutoAttack, first {words.extent(sizes)}")
    heading += map(text, columns.headings())
    rows = []
    for entry, whole in zip(leaderboard.models, beyond, strict=True):
        cells = [_named(entry), words.percent(entry.clean.value)]
        if any(beyond):
            cells.append(words.precisely(whole.clean) if whole else words.ABSENT)
        for norm, eps in at:
            bracket, width = _bracket_cells(entry, [(norm, eps)])[2:]
            cells += [f"**{width}**", bracket]
            if selection.smoothed(leaderboard):
                cells.append(_probabilistic(entry, norm, eps))
            if selection.autoattack_sizes(leaderboard, norm, eps):
                row = selection.autoattack_row(entry, norm, eps)
                cells.append(words.percent(row.robust.value) if row else words.ABSENT)
        rows.append([*cells, *map(text, columns.cells(entry))])
    return table(heading, rows)


def _named(entry: ModelEntry) -> str:
    """A model's name with a badge for each check that doubts its attacked accuracy."""
    badges = (
        f"[{_mark(f)}{severity(f.name)}: {text(f.name)}]({prose.flag_page(f.name)})"
        for f in selection.doubts(entry)
    )
    return " ".join([code(entry.name), *badges])


def _marked(entry: ModelEntry) -> str:
    """A model's name, with a mark where its attacked accuracy is in serious doubt."""
    return f"{code(entry.name)} {prose.DOUBTED}" if selection.doubted(entry) else code(entry.name)


def _probabilistic(entry: ModelEntry, norm: Norm, eps: float) -> str:
    bracket = selection.find_bracket(entry, norm, eps)
    share = bracket.probabilistic if bracket is not None else None
    return words.ABSENT if share is None else words.percent(share.value)


def _bracket_cells(entry: ModelEntry, columns: Iterable[tuple[Norm, float]]) -> list[str]:
    cells = [_marked(entry), words.percent(entry.clean.value)]
    for norm, eps in columns:
        bracket = selection.find_bracket(entry, norm, eps)
        width = words.ABSENT if bracket is None else words.percent(bracket.width)
        cells += [words.bracket(bracket, "–"), width]
    return cells


def _flow(leaderboard: Leaderboard) -> Iterator[str]:
    if rows := selection.flow_rows(leaderboard):
        yield "## What the flow decides"
        yield prose.FLOW
        yield table(prose.FLOW_HEADING, [[code(name), *cells] for name, *cells in rows])


def _envelopes(leaderboard: Leaderboard) -> Iterator[str]:
    if rows := selection.envelope_rows(leaderboard):
        yield "## Certified decay"
        yield prose.ENVELOPE
        cells = [[code(name), threat, *map(text, found)] for name, threat, *found in rows]
        yield table(prose.ENVELOPE_HEADING, cells, texts=2)


def _figures(names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield f"![{prose.TITLES[name]}](figures/{name}.svg)"
        yield f"*{prose.CAPTIONS[name]}*"


def _model(leaderboard: Leaderboard, entry: ModelEntry) -> Iterator[str]:
    yield f"## {code(entry.name)}"
    nfe = "no ODE" if entry.nfe is None else f"{entry.nfe} evaluations of the field per prediction"
    errors = words.plural(entry.errors, "sample")
    whole = selection.beyond(entry)
    clean = f"clean accuracy {words.precisely(entry.clean)}% of {entry.clean.total:,} samples"
    if whole is not None:
        clean += f", {words.precisely(whole.clean)}% of the {whole.clean.total:,} test images"
    weights = f", weights SHA-256 {code(entry.whole.weights_sha256[:12])}" if entry.whole else ""
    yield (
        f"{text(prose.sentence(entry.description))} {entry.parameters:,} parameters, {nfe}; "
        f"{clean}; {errors} failed; {prose.DIGEST} {code(entry.digest[:12])}{weights}."
    )
    for said in (prose.failed(entry), prose.unidentified(entry)):
        if said:
            yield text(said)
    if lines := finding_lines(entry):
        yield lines
    headline = dict(selection.headline(leaderboard))
    heading = ["threat", "certified", "95%", "attacked", "95%", "attacked by", "width"]
    rows = []
    for b in entry.brackets:
        name = words.threat_symbol(b.norm, b.eps)
        rows.append(
            [
                f"**{name}**" if headline.get(b.norm) == b.eps else name,
                words.percent(b.certified.value),
                words.interval(b.certified),
                words.percent(b.attacked.value),
                words.interval(b.attacked),
                selection.strength(entry, b.norm, b.eps),
                words.percent(b.width),
            ]
        )
    yield table(heading, rows)


def finding_lines(entry: ModelEntry, root: str = "../..") -> str:
    """A line for each check that found something, the gravest first; or nothing.

    Args:
        entry: the model.
        root: the checkout, as seen from where the lines stand.
    """
    return "\n".join(
        f"- {_mark(flag)}**{prose.verdict(flag)}**, "
        f"[{text(flag.name)}]({prose.flag_page(flag.name, root)}): {text(flag.detail)}"
        for flag in selection.raised(entry)
    )


def _mark(flag: Flag) -> str:
    return f"{prose.DOUBTED} " if severity(flag.name) is Severity.SERIOUS else ""


def _certificates(leaderboard: Leaderboard) -> Iterator[str]:
    yield "## Certificates"
    yield (
        "Accuracy in percent that each certificate alone gives. Only the kind `certified` is a "
        "proof and enters the brackets."
    )
    for norm in selection.norms(leaderboard):
        rows = [(m, c) for m in leaderboard.models for c in selection.certificate_rows(m, norm)]
        eps = sorted({e for _, row in rows for e in row.eps})
        if rows:
            names = [words.threat_symbol(norm, e) for e in eps]
            facts = ["median radius", "largest for", "ms per image", "limited by", "mostly since"]
            heading = ["model", "certificate", "kind", *names, *facts]
            cells = [_certificate_cells(leaderboard, m, row, eps) for m, row in rows]
            yield table(heading, cells, texts=3)
    if meanings := prose.limit_meanings(leaderboard):
        yield "\n".join(f"- limited by **{limit}**: {said}" for limit, said in meanings.items())


def _certificate_cells(
    leaderboard: Leaderboard, entry: ModelEntry, row: CertificateRow, eps: list[float]
) -> list[str]:
    names = [code(entry.name), code(row.certificate)]
    if row.kind is None:
        return [*names, "refuses", *[words.ABSENT] * (len(eps) + 4), text(row.refusal or "")]
    at = dict(zip(row.eps, row.accuracy, strict=True))
    values = [words.percent(at[e].value) if e in at else words.ABSENT for e in eps]
    cost = selection.costs(leaderboard, entry.name).get((row.norm, row.certificate))
    facts = [
        f"{row.median_radius:.3g}",
        f"{row.won:,}" if row.kind is Kind.CERTIFIED else words.ABSENT,
        f"{cost.milliseconds:.3g}" if cost else words.ABSENT,
        words.counts(row.limits),
        text(next(iter(row.reasons), words.ABSENT)),
    ]
    return [*names, row.kind.value, *values, *facts]


def _audits(leaderboard: Leaderboard) -> Iterator[str]:
    rows = [
        [
            code(entry.name),
            words.SYMBOLS[audit.norm],
            str(audit.pairs),
            str(audit.broken),
            str(audit.errors),
            f"{audit.smallest:.3g}",
            f"{audit.largest:.3g}",
        ]
        for entry in leaderboard.models
        for audit in entry.audits
        if audit.pairs
    ]
    if rows:
        yield "## Audit"
        yield prose.SOUNDNESS
        heading = ["model", "norm", "images", "broken", "errors", "smallest radius", "largest"]
        yield table(heading, rows, texts=2)


def _checks(leaderboard: Leaderboard) -> Iterator[str]:
    rows = [
        [
            code(entry.name),
            f"[{text(flag.name)}]({prose.flag_page(flag.name)})",
            f"**{prose.verdict(flag)}**" if flag in doubts else prose.verdict(flag),
            text(flag.detail),
            words.ABSENT if flag.value is None else f"{flag.value:.3g}",
            words.ABSENT if flag.threshold is None else f"{flag.threshold:.3g}",
        ]
        for entry in leaderboard.models
        for doubts in [selection.doubts(entry)]
        for flag in entry.flags
    ]
    if rows:
        yield "## Checks"
        yield prose.GLOSSARY["Flag"]
        heading = ["model", "check", "verdict", "measurement", "value", "threshold"]
        yield table(heading, rows, texts=4)


def _nearest(leaderboard: Leaderboard) -> Iterator[str]:
    rows = [
        [
            code(entry.name),
            words.SYMBOLS[row.norm],
            str(row.samples),
            str(row.found),
            str(row.errors),
            "none" if row.median is None else f"{row.median:.3g}",
            f"{row.median_certified:.3g}",
        ]
        for entry in leaderboard.models
        for row in entry.nearest
    ]
    if rows:
        yield "## Nearest adversarial images"
        yield prose.GLOSSARY["Nearest"]
        heading = ["model", "norm", "samples", "found", "errors", "median distance"]
        yield table([*heading, "median certified radius"], rows, texts=2)


def _attacks(leaderboard: Leaderboard) -> Iterator[str]:
    yield "## Attacks"
    yield "Accuracy in percent that each attack alone leaves, on the samples that it was run on."
    columns = selection.threats(leaderboard)
    names = [words.threat_symbol(norm, eps) for norm, eps in columns]
    heading = ["model", "attack", "samples", *names, "errors", "rejected"]
    rows = []
    stages: list[str] = []
    versions: dict[str, None] = {}
    for entry in leaderboard.models:
        for line in selection.attack_lines(entry, columns):
            versions |= dict.fromkeys(f"{code(line.attack)}: {text(v)}" for v in line.versions)
            rows.append([code(entry.name), *_attack_cells(line)])
            stages += _stage_lines(entry, line)
    yield table(heading, rows, texts=2)
    if stages:
        yield "\n".join(stages)
    yield "\n".join(f"- {version}" for version in versions)
    for attack, sizes in selection.partial_attacks(leaderboard).items():
        yield prose.subset_line(code(attack), leaderboard, words.extent(sizes))


def _attack_cells(line: selection.AttackLine) -> list[str]:
    sizes = words.extent(row.subset for row in line.run)
    values = [words.ABSENT if r is None else words.percent(r.robust.value) for r in line.rows]
    return [code(line.attack), sizes, *values, f"{line.errors:,}", f"{line.rejected:,}"]


def _stage_lines(entry: ModelEntry, line: selection.AttackLine) -> Iterator[str]:
    if line.found_by or line.skipped:
        yield (
            f"- {code(line.attack)} on {code(entry.name)}, over all radii: "
            f"{words.plural(line.skipped, 'sample')} certified and not attacked; broken by "
            f"{text(words.counts(line.found_by))}"
        )


def _suite(leaderboard: Leaderboard) -> Iterator[str]:
    suite = leaderboard.suite
    yield "## Suite"
    fixed = {
        "name": suite.name,
        "data": suite.data,
        "split": suite.split,
        "samples": suite.samples,
        "seed": suite.seed,
        "data digest": suite.data_digest,
    }
    settings = {key: value for key, value in suite.settings.items() if key not in fixed}
    rows = [[text(k), text(words.setting(v))] for k, v in (fixed | settings).items()]
    yield table(["setting", "value"], rows, texts=2)
    for name, indices in suite.subsets.items():
        listing = text(words.index_list(indices))
        yield f"Subset {code(name)}, {len(indices)} indices into the split: {listing}."


def _environment(leaderboard: Leaderboard) -> str:
    rows = [[text(k), text(v)] for k, v in sorted(leaderboard.environment.items())]
    return table(["component", "version"], rows, texts=2)
