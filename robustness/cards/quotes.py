"""What README and docs quote of reports and cards, written between marks by the numbers themselves.

A table stands between two lines, a figure within a line:

    <!-- table: digits clean Linf/0.1 flow -->
    ...
    <!-- /table -->

    keeps <!-- = attacked digits digits/lyanet Linf/0.1 -->19.4<!-- /= --> %

`python -m robustness.cards.quotes` writes all of them anew, `--check` only says which are stale.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from robustness.cards.measure import MEASURED_FILE, Measurement, read_measurement
from robustness.cards.proofs import PROVED_FILE, Proofs, read_proofs
from robustness.errors import UsageError
from robustness.files import read_json, replace_file
from robustness.reporting import prose, ranking, selection, words
from robustness.reporting.index import suites_table
from robustness.reporting.marks import markdown_table
from robustness.reporting.sections import table_markdown
from robustness.results.leaderboard import (
    Bracket,
    Leaderboard,
    ModelEntry,
    Proportion,
    read_leaderboard,
    reports_in,
)
from robustness.threat import Norm, parse_eps
from robustness.zoo import find_entry, zoo_folder

Found = TypeVar("Found")

_TABLE = re.compile(
    r"^(?P<mark><!-- table: (?P<asked>[^\n]*?) -->)\n.*?^(?P<end><!-- /table -->)$", re.M | re.S
)
_FIGURE = re.compile(r"(?P<mark><!-- = (?P<asked>[^\n]*?) -->)[^\n]*?(?P<end><!-- /= -->)")
_AHEAD = re.compile(r"^<!-- =", re.M)
_MARKS = re.compile(r"<!-- (?:table:|=|/table|/=)")


@dataclass(frozen=True)
class Sources:
    """What is quoted.

    Attributes:
        boards: leaderboards by the folder inside `reports/` that each lies in.
        measured: what was measured of an entry on its whole test set, by its name.
        proofs: what was proved of an entry there, by its name.
        reports: folder of reports, of which the claims' and what was computed again are quoted.
    """

    boards: Mapping[str, Leaderboard]
    measured: Callable[[str], Measurement]
    proofs: Callable[[str], Proofs]
    reports: Path = zoo_folder().parent / "reports"

    def board(self, suite: str) -> Leaderboard:
        """The leaderboard of a suite.

        Raises:
            UsageError: there is none.
        """
        return _of(self.boards, suite, "folder of reports")

    def entry(self, suite: str, model: str) -> ModelEntry:
        """A model of a suite.

        Raises:
            UsageError: there is none.
        """
        found = {entry.name: entry for entry in self.board(suite).models}
        return _of(found, model, f"model of reports/{suite}")


def committed() -> Sources:
    """What lies in this checkout."""
    reports = zoo_folder().parent / "reports"
    boards = {name: read_leaderboard(file) for name, file in reports_in(reports).items()}
    return Sources(boards, cache(_measured), cache(_proved), reports)


def _measured(model: str) -> Measurement:
    return read_measurement(find_entry(model) / MEASURED_FILE)


def _proved(model: str) -> Proofs:
    proofs = read_proofs(find_entry(model) / PROVED_FILE)
    if proofs is None:
        raise UsageError(
            f"expected {PROVED_FILE} of {model}; run `robustness card {model} --prove`"
        )
    return proofs


def pages(root: Path) -> list[Path]:
    """The pages of a checkout that quote, or could."""
    return [root / "README.md", *sorted(root.glob("docs/*.md"))]


def quoted(text: str, sources: Sources) -> str:
    """A page with all that it quotes written anew.

    Args:
        text: the page, Markdown.
        sources: of what it quotes.

    Raises:
        UsageError: a mark asks for something that is not there, is not closed, or stands at the
            start of a line, where Markdown takes the whole line for HTML.
    """
    if _AHEAD.search(text):
        raise UsageError("expected words before `<!-- =`, got it at the start of a line; move it")
    pairs = 2 * (len(_TABLE.findall(text)) + len(_FIGURE.findall(text)))
    if pairs != len(_MARKS.findall(text)):
        raise UsageError("expected each mark of a quote with its end, got one alone; add the other")
    text = _TABLE.sub(lambda m: f"{m['mark']}\n\n{_table(m['asked'], sources)}\n\n{m['end']}", text)
    return _FIGURE.sub(lambda m: f"{m['mark']}{_figure(m['asked'], sources)}{m['end']}", text)


# --- figures ----------------------------------------------------------------------------


def _figure(asked: str, sources: Sources) -> str:
    name, *given = asked.split()
    making = _of(_FIGURES, name, "figure to quote")
    wanted = list(inspect.signature(making).parameters)[1:]
    if len(given) != len(wanted):
        raise UsageError(f"expected {', '.join(wanted)} after {name!r}, got {asked!r}")
    return making(sources, *given)


def _attacked(sources: Sources, suite: str, model: str, threat: str) -> str:
    return words.percent(_bracket(sources.entry(suite, model), threat).attacked.value)


def _standing(sources: Sources, suite: str, model: str, threat: str) -> str:
    return f"{_bracket(sources.entry(suite, model), threat).attacked.count:,}"


def _certified(sources: Sources, suite: str, model: str, threat: str) -> str:
    return words.percent(_bracket(sources.entry(suite, model), threat).certified.value)


def _both(sources: Sources, suite: str, model: str, threat: str) -> str:
    return words.bracket(_bracket(sources.entry(suite, model), threat), "–")


def _alone(sources: Sources, suite: str, model: str, attack: str, threat: str) -> str:
    return words.percent(_under(sources.entry(suite, model), attack, threat).value)


def _clean(sources: Sources, suite: str, model: str) -> str:
    return words.percent(sources.entry(suite, model).clean.value)


def _images(sources: Sources, suite: str) -> str:
    return f"{sources.board(suite).suite.samples:,}"


def _models(sources: Sources, suite: str) -> str:
    return f"{len(sources.board(suite).models):,}"


def _subset(sources: Sources, suite: str, attack: str) -> str:
    board = sources.board(suite)
    return words.extent(selection.partial_attacks(board).get(attack, [board.suite.samples]))


def _checked(sources: Sources, suite: str) -> str:
    return str(sources.board(suite).suite.settings["flags"]["samples"])


def _check(sources: Sources, suite: str, model: str, name: str) -> str:
    flags = {flag.name: flag for flag in sources.entry(suite, model).flags}
    return _of(flags, name, f"check of {model}").detail


def _masked(sources: Sources, suite: str) -> str:
    """The models on which a check found a serious problem."""
    found = [f"`{m.name}`" for m in sources.board(suite).models if selection.doubted(m)]
    return ", ".join(found) or "no model"


def _found(sources: Sources, suite: str) -> str:
    board = sources.board(suite)
    threat = ranking.default_threat(board)
    return " ".join(ranking.found(board, threat)) if threat else "Nothing was evaluated."


def _wall(sources: Sources, suite: str) -> str:
    timings = sources.board(suite).timings
    return words.duration(max(s for name, s in timings.items() if name.startswith("wall")))


def _whole(sources: Sources, model: str) -> str:
    return words.precisely(sources.measured(model).clean)


def _without(sources: Sources, model: str) -> str:
    flow = sources.measured(model).without_flow
    if flow is None:
        raise UsageError(f"expected a model with a flow, got {model}")
    return words.precisely(flow.clean)


def _flow_of(sources: Sources, model: str) -> str:
    flow = sources.measured(model).without_flow
    if flow is None:
        raise UsageError(f"expected a model with a flow, got {model}")
    return words.percent(flow.other.value)


def _proved_at(sources: Sources, model: str, threat: str) -> str:
    return words.precisely(_proof(sources, model, threat))


class _Claims(BaseModel):
    """What is quoted of `claims.json`."""

    sentences: dict[str, str]


class _Again(BaseModel):
    """What is quoted of units that were computed again."""

    same: Proportion
    to_the_bit: int
    units: int
    different: list[str]
    report: str


class _Record(BaseModel):
    """What is quoted of `reproduced.json`."""

    recomputed: dict[str, _Again]


_REMEDY = "run `robustness reproduce` again"


def _sentence(sources: Sources, folder: str, number: str) -> str:
    file = sources.reports / folder / "claims.json"
    sentences = read_json(file, _Claims, "the claims of the paper", _REMEDY).sentences
    by_number = {str(place): claim for place, claim in enumerate(sentences.items(), 1)}
    claim, sentence = _of(by_number, number, f"claim of reports/{folder}")
    return f"{claim}: {sentence}"


def _again(sources: Sources, part: str, folder: str) -> str:
    file = sources.reports / "reproduced.json"
    record = read_json(file, _Record, "a record of what was made", _REMEDY)
    found = record.recomputed.get(part)
    if found is None or found.report != sources.board(folder).digest():  # of another report
        return "none were drawn"
    differ = f", and {words.plural(len(found.different), 'thing')} differed" * bool(found.different)
    bits = "" if found.to_the_bit == found.same.count else f" ({found.to_the_bit} to the bit)"
    return f"{found.same.count} of {found.same.total} drawn from {found.units:,}{bits}{differ}"


_FIGURES: dict[str, Callable[..., str]] = {
    "attacked": _attacked,
    "standing": _standing,
    "certified": _certified,
    "bracket": _both,
    "alone": _alone,
    "clean": _clean,
    "images": _images,
    "models": _models,
    "subset": _subset,
    "checked": _checked,
    "check": _check,
    "masked": _masked,
    "found": _found,
    "wall": _wall,
    "whole": _whole,
    "without-flow": _without,
    "flow": _flow_of,
    "proved": _proved_at,
    "sentence": _sentence,
    "again": _again,
}


# --- tables -----------------------------------------------------------------------------


def _table(asked: str, sources: Sources) -> str:
    name, *given = asked.split()
    if name == "suites":
        return _suites(sources, *given)
    if name == "proved":
        return _proofs(given, sources)
    columns, _, chosen = " ".join(given).partition("|")
    board, models = sources.board(name), chosen.split()
    entries = [sources.entry(name, model) for model in models] if models else board.models
    heads, cells = ["model"], [[_named(entry) for entry in entries]]
    for column in columns.split():
        head, column_cells = _column(column, board, entries)
        heads.append(head)
        cells.append(column_cells)
    rows = list(zip(*cells, strict=True))
    return markdown_table(heads, rows, [True, *[False] * (len(heads) - 1)])


def _named(entry: ModelEntry) -> str:
    return f"`{entry.name}`{f' {prose.DOUBTED}' if selection.doubted(entry) else ''}"


def _column(
    column: str, board: Leaderboard, entries: Sequence[ModelEntry]
) -> tuple[str, list[str]]:
    if column == "clean":
        wholes = [selection.beyond(entry) for entry in entries]
        sizes = {whole.clean.total for whole in wholes if whole is not None}
        if not sizes:
            return "clean", [words.percent(entry.clean.value) for entry in entries]
        both = [
            " / ".join([words.percent(e.clean.value), *([words.precisely(w.clean)] if w else [])])
            for e, w in zip(entries, wholes, strict=True)
        ]
        return f"clean, {board.suite.samples:,} / all {max(sizes):,}", both
    if column == "flow":
        return "flow changes class", [_flow(entry) for entry in entries]
    attack, _, threat = column.rpartition(":")
    norm, eps = _threat(threat)
    where = words.threat_symbol(norm, eps)
    if attack == "paper":
        quoted = [selection.published_at(entry, norm, eps) for entry in entries]
        certified = [words.percent(said.certified) if said else "" for said in quoted]
        return f"{where}, certified in their paper", certified
    if attack:
        said = [words.percent(_under(entry, attack, threat).value) for entry in entries]
        return f"{attack.upper()} alone, {where}", said
    strengths = {selection.strength(entry, norm, eps) for entry in entries}
    by = f", {strengths.pop()}" if len(strengths) == 1 else ""
    return f"{where}{by}", [words.bracket(_bracket(entry, threat), "–") for entry in entries]


def _flow(entry: ModelEntry) -> str:
    if entry.nfe is None:
        return "no ODE"
    whole = selection.beyond(entry)
    flow = whole.without_flow if whole is not None else entry.without_flow
    return "not measured" if flow is None else words.percent(flow.other.value)


def _suites(sources: Sources, folder: str, *chosen: str) -> str:
    """The table of the page of all suites, or of chosen ones, in few columns.

    `folder` is reports/ as seen from the page that quotes it.
    """
    boards = {name: sources.board(name) for name in chosen} if chosen else sources.boards
    table = suites_table(boards)
    names = ("suite", "models", "images", "threat", "best proved", "most misleading attack")
    kept = [i for i, heading in enumerate(table.headings) if heading.name in names]
    rows = []
    for row in table.rows:
        cells = []
        for cell in (row.cells[i] for i in kept):
            notes = tuple(replace(note, href="") for note in cell.notes)
            cells.append(replace(cell, href="", notes=notes))
        # A code host shows this file as a page, and not those of HTML.
        cells[0] = replace(cells[0], href=f"{folder}/{row.anchor}/leaderboard.md")
        rows.append(replace(row, cells=tuple(cells)))
    shown = replace(table, headings=tuple(table.headings[i] for i in kept), rows=tuple(rows))
    return table_markdown(shown)


def _proofs(given: Sequence[str], sources: Sources) -> str:
    """Certified accuracy on whole test sets: entries, each followed by its threats."""
    rows: list[list[str]] = []
    for word in given:
        if "/" in word and word.split("/")[0] not in set(Norm):
            measured = sources.measured(word)
            flow = measured.without_flow
            changed = "no ODE" if flow is None else words.percent(flow.other.value)
            rows.append([f"`{word}`", words.precisely(measured.clean), "", "", changed])
            continue
        if not rows:
            raise UsageError(f"expected an entry before its threats, got {word!r}")
        model = rows[-1][0].strip("`")
        said = words.threat_symbol(*_threat(word))
        proved = words.precisely(_proof(sources, model, word))
        rows[-1][2] += f"{', ' if rows[-1][2] else ''}{said}"
        rows[-1][3] += f"{', ' if rows[-1][3] else ''}{proved}"
    heads = ["entry", "clean", "threat", "certified", "flow changes class"]
    return markdown_table(heads, rows, [True, False, True, False, False])


# --- what both look up ------------------------------------------------------------------


def _threat(said: str) -> tuple[Norm, float]:
    norm, _, eps = said.partition("/")
    return Norm.parse(norm), parse_eps(eps)


def _bracket(entry: ModelEntry, threat: str) -> Bracket:
    bracket = selection.find_bracket(entry, *_threat(threat))
    if bracket is None:
        raise UsageError(f"expected a bracket of {entry.name} at {threat}, got none")
    return bracket


def _under(entry: ModelEntry, attack: str, threat: str) -> Proportion:
    row = ranking.attack_row(entry, attack, _threat(threat))
    if row is None:
        raise UsageError(f"expected {attack} on {entry.name} at {threat}, which was not run")
    return row.robust


def _proof(sources: Sources, model: str, threat: str) -> Proportion:
    norm, eps = _threat(threat)
    for of in sources.proofs(model).norms:
        for at in of.at:
            if of.norm is norm and at.eps == eps:
                return at.certified
    raise UsageError(f"expected a proof of {model} at {threat} in {PROVED_FILE}, got none")


def _of(known: Mapping[str, Found], name: str, kind: str) -> Found:
    if name not in known:
        raise UsageError(f"expected a {kind}, got {name!r}; there are {', '.join(known)}"[:300])
    return known[name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write what is quoted anew, or say what is stale.

    Returns:
        1 where `--check` finds a stale page, else 0.
    """
    parser = argparse.ArgumentParser(prog="python -m robustness.cards.quotes", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if stale")
    check = parser.parse_args(arguments).check
    sources, stale = committed(), []
    for page in pages(zoo_folder().parent):
        before = page.read_text(encoding="utf-8")
        try:
            after = quoted(before, sources)
        except UsageError as error:
            raise UsageError(f"{page.name}: {error}") from None
        if after != before:
            stale.append(page)
            if not check:
                replace_file(page, after.encode())
            print(page)
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
