"""The report as one page that needs nothing else: no network, no script, no other file."""

import base64
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustness.errors import printable
from robustness.reporting import columns, prose, selection, tables, words
from robustness.reporting.drawing import colours
from robustness.reporting.pictures import PARTS, path_of, pictures
from robustness.results.leaderboard import CertificateRow, Leaderboard
from robustness.results.severity import severity
from robustness.threat import format_eps

REASONS_SHOWN = 4


def html_text(leaderboard: Leaderboard, figures: dict[str, bytes]) -> str:
    """The whole page.

    Args:
        leaderboard: what to report.
        figures: SVG by name, embedded in the page.
    """
    return _environment().get_template("report.html.j2").render(_context(leaderboard, figures))


def _readable(value: Any) -> Any:
    """Text of others without control characters; what is HTML already, and numbers, as they are."""
    return printable(value) if type(value) is str else value


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("robustness.reporting", "templates"),
        autoescape=True,  # names and reasons come from users' files
        finalize=_readable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "precisely": words.precisely,
        "interval": words.interval,
        "radius": format_eps,
        "extent": words.extent,
        "sentence": prose.sentence,
        "unidentified": prose.unidentified,
        "failed": prose.failed,
        "duration": words.duration,
        "moment": words.moment,
        "setting": words.setting,
        "index_list": words.index_list,
        "data_uri": data_uri,
        "png_uri": png_uri,
    }
    environment.globals |= {
        "threat": words.threat_symbol,
        "plural": words.plural,
        "symbols": words.SYMBOLS,
        "radii": selection.radii,
        "more_cells": columns.cells,
        "find_bracket": selection.find_bracket,
        "autoattack_row": selection.autoattack_row,
        "autoattack_sizes": selection.autoattack_sizes,
        "attack_lines": selection.attack_lines,
        "certificate_rows": selection.certificate_rows,
        "reasons": reasons,
        "costs": selection.costs,
        "doubts": selection.doubts,
        "doubted": selection.doubted,
        "beyond": selection.beyond,
        "strength": selection.strength,
        "strengths": selection.strengths,
        "severity": severity,
        "verdict": prose.verdict,
        "flag_page": prose.flag_page,
        "counts": words.counts,
        "subset_line": prose.subset_line,
    }
    return environment


def _context(leaderboard: Leaderboard, figures: dict[str, bytes]) -> dict[str, Any]:
    pngs = pictures(leaderboard)
    return {
        "board": leaderboard,
        "suite": leaderboard.suite,
        "title": prose.title(leaderboard),
        "ran_on": prose.ran_on(leaderboard),
        "colours": colours(leaderboard),
        "flow": selection.flow_rows(leaderboard),
        "flow_rule": prose.FLOW,
        "flow_heading": prose.FLOW_HEADING,
        "more_headings": columns.headings(),
        "wholes": any(map(selection.beyond, leaderboard.models)),
        "headline": selection.headline(leaderboard),
        "norms": selection.norms(leaderboard),
        "threats": selection.threats(leaderboard),
        "figures": [
            (name, prose.TITLES[name], prose.CAPTIONS[name], svg) for name, svg in figures.items()
        ],
        "glossary": prose.GLOSSARY,
        "digest_means": prose.DIGEST,
        "mark": prose.DOUBTED,
        "mark_means": prose.DOUBTED_MEANS,
        "marked": any(map(selection.doubted, leaderboard.models)),
        "soundness_rule": prose.SOUNDNESS,
        "smoothed": selection.smoothed(leaderboard),
        "limit_meanings": prose.limit_meanings(leaderboard),
        "pictures": [
            (violation, {part: pngs[path_of(number, part)] for part in PARTS})
            for number, violation in enumerate(leaderboard.soundness.violations)
            if violation.picture is not None
        ],
        "soundness_line": tables.soundness_line(leaderboard.soundness),
        "partial": selection.partial_attacks(leaderboard),
    }


def data_uri(svg: bytes) -> str:
    """An SVG as the source of an image: inline, its element ids would clash between figures."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def png_uri(png: bytes) -> str:
    """A PNG as the source of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def reasons(row: CertificateRow) -> list[tuple[str, int]]:
    """The most frequent reasons that limit a certificate's radii, the rest in one line."""
    every = list(row.reasons.items())
    shown, rest = every[:REASONS_SHOWN], every[REASONS_SHOWN:]
    if len(rest) == 1:  # naming it takes no more room than counting it
        return every
    if rest:
        shown.append((words.plural(len(rest), "other reason"), sum(n for _, n in rest)))
    return shown
