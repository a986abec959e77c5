"""A report as pages that need nothing else: no network, no other file, and no script to be read.

Each page allows, by the hash of its content, its own style and its own few lines of script, which
sort, filter and choose what is there already.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from robustness import inputs
from robustness.errors import printable
from robustness.files import require_own
from robustness.reporting import (
    figures,
    images,
    model_figures,
    model_sections,
    pages,
    prose,
    ranking,
    selection,
    svg,
    tables,
    words,
)
from robustness.reporting.pictures import PARTS, path_of, pictures
from robustness.reporting.sections import Heading, Table
from robustness.results.leaderboard import Leaderboard, ModelEntry

# Notes of whole sentences wrap, where those of a ranking are a few letters.
_WRAPPED = ".ranking td small{white-space:normal}"
_VERSIONS = ("lyanet-robustness", "python", "torch", "torchdiffeq", "torchattacks", "pyautoattack")


def html_pages(leaderboard: Leaderboard, depth: int = 1) -> dict[str, str]:
    """Every page of a report: its path inside the report's folder, and what is in it.

    Args:
        leaderboard: what is reported.
        depth: of the report's folder in `reports/`, by which links lead.
    """
    names = pages.model_pages(leaderboard)
    told = zip(names, leaderboard.models, strict=True)
    suite = {pages.SUITE_PAGE: suite_page(leaderboard, depth)}
    return suite | {name: model_page(leaderboard, entry, depth) for name, entry in told}


def suite_page(leaderboard: Leaderboard, depth: int = 1) -> str:
    """The page of a suite: what was found, the ranking, the figures, how to run it again."""
    first = ranking.default_threat(leaderboard)
    every = selection.threats(leaderboard)
    order = [t for t in every if t == first] + [t for t in every if t != first]
    labels = [(ranking.threat_id(t), words.threat_symbol(*t)) for t in order]
    marks = [ranking.trust(entry, leaderboard) for entry in leaderboard.models]
    pngs = pictures(leaderboard)
    rankings = [ranking.ranking_table(leaderboard, threat, depth=depth) for threat in order]
    return _page(
        "suite.html.j2",
        prose.title(leaderboard),
        styled=_labels("ranking", rankings[0]) if rankings else "",
        board=leaderboard,
        suite=leaderboard.suite,
        up="../" * depth,
        ran_on=prose.ran_on(leaderboard),
        soundness_line=tables.soundness_line(leaderboard.soundness),
        threats=[
            (*label, ranking.found(leaderboard, threat))
            for label, threat in zip(labels, order, strict=True)
        ],
        first=labels[0][0] if labels else "",
        rankings=[(*label, table) for label, table in zip(labels, rankings, strict=True)],
        families=sorted({e.origin.family for e in leaderboard.models if e.origin}),
        smoothed=selection.smoothed(leaderboard),
        marks=ranking.MARKS,
        plain=(ranking.plain_attack(leaderboard) or "").upper(),
        misleads=ranking.misleads(leaderboard),
        marks_used=[mark for mark in ranking.MARKS if mark in marks],
        figures=[f for _, f in suite_figures(leaderboard)],
        pictures=_suite_pictures(leaderboard),
        violations=[
            (violation, {part: pngs[path_of(number, part)] for part in PARTS})
            for number, violation in enumerate(leaderboard.soundness.violations)
            if violation.picture is not None
        ],
        command=prose.command(leaderboard),
        commit=leaderboard.environment.get("commit", ""),
        versions=_versions(leaderboard.environment),
        partial=selection.partial_attacks(leaderboard),
    )


def suite_figures(leaderboard: Leaderboard) -> list[tuple[bool, figures.Figure]]:
    """The drawings of a suite's page, and whether each is one of those that are shown first."""
    first = ranking.default_threat(leaderboard)
    if first is None:
        return []
    drawn: list[tuple[bool, figures.Figure]] = []
    for threat in selection.threats(leaderboard):
        drawn += [(threat == first, f) for f in figures.figures(leaderboard, threat)]
    if (radius := figures.radius_figure(leaderboard)) is not None:
        drawn.append((True, radius))
    order = ("standing", "attacks", "radius", "price")
    return sorted(drawn, key=lambda pair: (order.index(pair[1].name), not pair[0]))


def _suite_pictures(leaderboard: Leaderboard) -> list[tuple[str, str, list[images.Shown]]]:
    found = []
    for norm in selection.norms(leaderboard):
        nearest = images.nearest_of_each(leaderboard, norm, figures.PICTURED)
        shown = [
            images.shown(entry, pages.model_page(leaderboard, entry), norm, example)
            for entry, example in nearest
        ]
        if shown:
            found.append((norm.value, words.SYMBOLS[norm], shown))
    return found


def model_page(leaderboard: Leaderboard, entry: ModelEntry, depth: int = 1) -> str:
    """The page of one model: all that is known of it."""
    limits = {limit for row in entry.certificates for limit in row.limits}
    return _page(
        "model.html.j2",
        f"{entry.name}: adversarial robustness",
        entry=entry,
        suite=leaderboard.suite,
        anchor=pages.anchor(leaderboard, entry),
        mark=ranking.trust(entry, leaderboard),
        up="../" * (depth + 1),
        root=prose.root(depth),
        facts=[*_headline(leaderboard, entry), *model_sections.facts(entry)],
        figures=model_figures.figures(leaderboard, entry),
        sections=model_sections.sections(leaderboard, entry, depth),
        pictures=[
            (words.SYMBOLS[row.norm], [images.shown(entry, "", row.norm, e) for e in row.examples])
            for row in entry.nearest
            if row.examples
        ],
        limits={
            name: meaning
            for name, meaning in prose.limit_meanings(leaderboard).items()
            if name in {limit.value for limit in limits}
        },
        ran_on=prose.ran_on(leaderboard),
        commit=leaderboard.environment.get("commit", ""),
    )


def _headline(leaderboard: Leaderboard, entry: ModelEntry) -> list[tuple[str, str]]:
    """What a reader asks first: how robust it is where the suite looks first, and who says so."""
    said = []
    threat = ranking.default_threat(leaderboard)
    if threat is not None and (bracket := selection.find_bracket(entry, *threat)) is not None:
        certified, attacked = (
            words.percent(share.value) for share in (bracket.certified, bracket.attacked)
        )
        said.append(
            (
                f"robust accuracy at {words.threat_symbol(*threat)}",
                f"{certified} % certified, {attacked} % attacked "
                f"({selection.strength(entry, *threat)})",
            )
        )
    mark = ranking.trust(entry, leaderboard)
    return [*said, ("trust mark", f"{mark}: {ranking.MARKS[mark]}")]


def suites_page(table: Table, claims: Sequence[str] = ()) -> str:
    """The page of several suites, a row each, and links to reports of claims by their folders."""
    title = "Adversarial robustness, proved and attacked"
    return _page(
        "suites.html.j2",
        title,
        styled=_labels("ranking", table) + _WRAPPED,
        suites=table,
        claims=claims,
    )


def told_page(
    title: str,
    found: Sequence[str],
    sections: Sequence[tuple[str, str, Sequence[Table]]],
    drawn: Sequence[figures.Figure] = (),
) -> str:
    """A page of what was found in words, then figures, then sections of tables.

    Args:
        title: of the page.
        found: what there is to say, a paragraph each, the first one first.
        sections: heading, words and tables of each.
        drawn: its figures.
    """
    return _page("told.html.j2", title, found=found, sections=sections, figures=drawn)


def require_page(file: Path | None) -> None:
    """Refuse a file that a page would be written over and that is no page of this package.

    Raises:
        UsageError: it is another file, or none that can be written.
    """
    if file is not None:
        require_own(inputs.file_to_write(file), 'content="lyanet-robustness"')


def is_own(file: Path) -> bool:
    """Whether a page is one that this module wrote."""
    with file.open("rb") as page:
        return b'<meta name="generator" content="lyanet-robustness">' in page.read(2000)


def _versions(environment: Mapping[str, str]) -> str:
    known = [f"{name} {environment[name]}" for name in _VERSIONS if name in environment]
    return ", ".join(known)


def _labels(of: str, table: Table) -> str:
    """The style sheet that names the cells of a class of tables on a phone, said once for all."""
    rules = [
        f'.{of} td:nth-child({place}){{--h:"{_css(_labelled(heading))}"}}'
        for place, heading in enumerate(table.headings, start=1)
    ]
    return "".join(rules)


def _labelled(heading: Heading) -> str:
    """A heading in one line, with its unit but not the scale of what is drawn."""
    short = heading.note if heading.note and not heading.picture else ""
    return f"{heading.name}, {short}" if short else heading.name


def _css(text: str) -> str:
    """Words as they stand between the quotes of a style sheet, whatever they are."""
    plain = printable(text)
    return "".join(c if c.isalnum() or c in " #" else f"\\{ord(c):x} " for c in plain)


def _page(template: str, title: str, styled: str = "", **content: Any) -> str:
    # What renders is imported by those who write a report, not by every command and worker.
    from robustness.reporting.rendering import environment

    style, script = _part("page.css") + svg.figure_style() + styled, _part("page.js")
    return (
        environment()
        .get_template(template)
        .render(
            title=title,
            style=style,
            script=script,
            style_hash=_source(style),
            script_hash=_source(script),
            **content,
        )
    )


@cache
def _part(name: str) -> str:
    return files("robustness.reporting").joinpath(f"templates/{name}").read_text("utf-8")


def _source(text: str) -> str:
    """How a content security policy names what it allows."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
