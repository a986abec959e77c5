"""The report as Markdown, for a repository or a pull request: the tables of its pages."""

from collections.abc import Iterable, Iterator, Sequence

from robustness.reporting import model_sections, prose, ranking, selection, tables, words
from robustness.reporting.html import suite_figures
from robustness.reporting.marks import code, escaped, markdown_table
from robustness.reporting.pages import model_page
from robustness.reporting.pictures import PARTS, path_of
from robustness.reporting.sections import table_markdown
from robustness.results.leaderboard import Flag, Leaderboard, ModelEntry
from robustness.results.severity import Severity, severity

# Names by which cards and the reports of claims know them.
text = escaped
__all__ = ["code", "finding_lines", "markdown_text", "table", "text"]


def markdown_text(leaderboard: Leaderboard, depth: int = 1) -> str:
    """The whole file.

    Args:
        leaderboard: what it tells.
        depth: of its folder in `reports/`, by which links lead.
    """
    blocks = [
        f"# {text(prose.title(leaderboard))}",
        *(text(said) for said in _found(leaderboard)),
        f"Suite {code(leaderboard.suite.name)}: {text(prose.ran_on(leaderboard))}.",
        f"**Soundness**: {tables.soundness_line(leaderboard.soundness)}.",
        *(f"- {text(str(violation))}" for violation in leaderboard.soundness.violations),
        *_counterexamples(leaderboard),
        *_rankings(leaderboard, depth),
        *_figures(leaderboard),
        *(block for entry in leaderboard.models for block in _model(leaderboard, entry, depth)),
        *_subsets(leaderboard),
        *_suite(leaderboard),
        "## Environment",
        _environment(leaderboard),
    ]
    return "\n\n".join(blocks) + "\n"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A table whose first `texts` columns are text and whose other columns are numbers."""
    return markdown_table(heading, rows, [place < texts for place in range(len(heading))])


def _found(leaderboard: Leaderboard) -> list[str]:
    first = ranking.default_threat(leaderboard)
    return [" ".join(ranking.found(leaderboard, first))] if first else []


def _counterexamples(leaderboard: Leaderboard) -> Iterator[str]:
    for number, violation in enumerate(leaderboard.soundness.violations):
        if violation.picture is not None:
            shown = " ".join(f"![{part}]({path_of(number, part)})" for part in PARTS)
            yield f"Image {violation.index}, the adversarial one, and their difference: {shown}"


def _rankings(leaderboard: Leaderboard, depth: int) -> Iterator[str]:
    first = ranking.default_threat(leaderboard)
    every = selection.threats(leaderboard)
    for threat in sorted(every, key=lambda t: t != first):
        yield f"## At {words.threat_symbol(*threat)}"
        yield table_markdown(ranking.ranking_table(leaderboard, threat, depth=depth))
    if any(map(selection.doubted, leaderboard.models)):
        yield f"{ranking.MASKED}: {ranking.MARKS[ranking.MASKED]}."


def _figures(leaderboard: Leaderboard) -> Iterator[str]:
    for first, figure in suite_figures(leaderboard):
        if first:
            yield f"![{text(figure.title)}](figures/{figure.name}.svg)"
            yield f"*{figure.caption}*"


def _model(leaderboard: Leaderboard, entry: ModelEntry, depth: int) -> Iterator[str]:
    yield f"## {code(entry.name)}"
    yield (
        f"{text(prose.sentence(entry.description))} "
        f"[Page with figures]({model_page(leaderboard, entry)})."
    )
    facts = [f"{term} {text(value)}" for term, value in model_sections.facts(entry)]
    yield f"{'; '.join(facts)}."
    for said in (prose.failed(entry), prose.unidentified(entry)):
        if said:
            yield text(said)
    if lines := finding_lines(entry, prose.root(depth)):
        yield lines
    for title, _, section in model_sections.sections(leaderboard, entry, depth):
        yield f"### {title}"
        yield from map(table_markdown, section)


def finding_lines(entry: ModelEntry, checkout: str) -> str:
    """A line for each check that found something, the gravest first; or nothing.

    Args:
        entry: the model.
        checkout: its folder, as seen from where the lines stand.
    """
    return "\n".join(
        f"- {_mark(flag)}**{prose.verdict(flag)}**, "
        f"[{text(flag.name)}]({prose.flag_page(flag.name, checkout)}): {text(flag.detail)}"
        for flag in selection.raised(entry)
    )


def _mark(flag: Flag) -> str:
    return f"{prose.DOUBTED} " if severity(flag.name) is Severity.SERIOUS else ""


def _subsets(leaderboard: Leaderboard) -> Iterator[str]:
    for attack, sizes in selection.partial_attacks(leaderboard).items():
        yield prose.subset_line(code(attack), leaderboard, words.extent(sizes))


def _suite(leaderboard: Leaderboard) -> Iterator[str]:
    suite = leaderboard.suite
    yield "## Suite"
    yield f"`{prose.command(leaderboard)}`"
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
