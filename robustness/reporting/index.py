"""The page that leads to every suite: what each was run on, and what it found."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from robustness.reporting import ranking, selection, words
from robustness.reporting.html import suites_page
from robustness.reporting.sections import Cell, Heading, Note, Row, Table
from robustness.results.leaderboard import Leaderboard

FILE = "index.html"


def index_page(boards: Mapping[str, Leaderboard], claims: Sequence[str] = ()) -> str:
    """The page.

    Args:
        boards: leaderboards by the name of the folder, beside the page, that each lies in.
        claims: folders beside the page with reports of the claims of the LyaNet paper.
    """
    return suites_page(suites_table(boards), claims)


def claims_in(folder: Path) -> list[str]:
    """Names of the folders in `folder` that hold a report of the claims of the LyaNet paper."""
    return sorted(f.parent.name for f in folder.glob("*/claims.json"))


def suites_table(boards: Mapping[str, Leaderboard]) -> Table:
    """A row per suite, by the names of their folders."""
    committed = any("commit" in board.environment for board in boards.values())
    headings = [
        Heading("suite", words=True),
        Heading("data", words=True),
        Heading("models"),
        Heading("images"),
        Heading("threat", words=True),
        Heading("best proved", "certified–attacked", words=True),
        Heading("most misleading attack", words=True),
        Heading("soundness", words=True),
        Heading("date"),
        *([Heading("commit", words=True)] if committed else []),
    ]
    rows = tuple(_row(folder, board, committed) for folder, board in sorted(boards.items()))
    caption = "Every suite, at the threat that its page shows first."
    return Table("suites", caption, tuple(headings), rows)


def _row(folder: str, board: Leaderboard, committed: bool) -> Row:
    threat = ranking.default_threat(board)
    commit = board.environment.get("commit", "")
    broken = len(board.soundness.violations)
    cells = (
        Cell(folder, href=f"{folder}/{FILE}"),
        Cell(f"{board.suite.data}, {board.suite.split}"),
        Cell(f"{len(board.models):,}", len(board.models)),
        Cell(f"{board.suite.samples:,}", board.suite.samples),
        Cell(words.threat_symbol(*threat)) if threat else Cell(words.ABSENT, ""),
        _best(folder, board, threat),
        _misled(folder, board, threat),
        Cell(words.plural(broken, "violation"), badge="unsound")
        if broken
        else Cell("no violation", badge="sound"),
        Cell(
            (words.moment(board.created)[:10] or words.ABSENT).replace("-", "\u2011"), board.created
        ),
        *([Cell(commit[:12] or words.ABSENT, commit)] if committed else []),
    )
    return Row(cells, anchor=folder)


def _best(folder: str, board: Leaderboard, threat: ranking.Threat | None) -> Cell:
    """What is proved at the threat shown first, or else at the first of all where anything is."""
    for place in _places(board, threat):
        if best := ranking.best_proved(board, place):
            entry, bracket = best
            href = f"{folder}/{FILE}#{ranking.link_to(board, entry)}"
            said = f"{words.bracket(bracket, '–')} %"
            if place == threat:
                return Cell(entry.name, href=href, notes=(Note(said),))
            elsewhere = Note(f"{entry.name} {said}, at {words.threat_symbol(*place)}", href)
            return Cell("nothing there", "", notes=(elsewhere,))
    return Cell("nothing is proved", "")


def _misled(folder: str, board: Leaderboard, threat: ranking.Threat | None) -> Cell:
    """Where the plain attack misleads most at the threat shown first, or else anywhere."""
    for place in _places(board, threat):
        if misled := ranking.most_misleading(board, place):
            entry, bracket = misled.entry, misled.bracket
            masked = ", masked" if ranking.trust(entry, board) == ranking.MASKED else ""
            where = "" if place == threat else f", at {words.threat_symbol(*place)}"
            said = Note(
                f"on {entry.name}{masked}: {words.percent(misled.plain.robust.value)} %, all "
                f"attacks {words.percent(bracket.attacked.value)} %{where}",
                f"{folder}/{FILE}#{ranking.link_to(board, entry)}",
            )
            if place == threat:
                return Cell(f"{misled.plain.attack.upper()} alone", misled.gap, notes=(said,))
            return Cell("none there", "", notes=(said,))
    return Cell("none", "")


def _places(board: Leaderboard, threat: ranking.Threat | None) -> list[ranking.Threat]:
    """Every threat: the one shown first, then that of the other norm, then the rest."""
    first = [threat] if threat else []
    return list(dict.fromkeys([*first, *selection.headline(board), *selection.threats(board)]))
