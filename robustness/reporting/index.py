"""The page that leads to every suite: what each was run on, and what it found."""

from collections.abc import Mapping

from robustness.reporting import ranking, words
from robustness.reporting.html import suites_page
from robustness.reporting.sections import Cell, Heading, Note, Row, Table
from robustness.results.leaderboard import Leaderboard

FILE = "index.html"


def index_page(boards: Mapping[str, Leaderboard]) -> str:
    """The page.

    Args:
        boards: leaderboards by the name of the folder, beside the page, that each lies in.
    """
    return suites_page(suites_table(boards))


def suites_table(boards: Mapping[str, Leaderboard]) -> Table:
    """A row per suite, by the names of their folders."""
    committed = any("commit" in board.environment for board in boards.values())
    headings = [
        Heading("suite", words=True),
        Heading("data", words=True),
        Heading("models"),
        Heading("images"),
        Heading("threat", words=True),
        Heading("best proved", words=True),
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
    best = ranking.best_proved(board, threat) if threat else None
    if best is None:
        return Cell("nothing is proved", "")
    entry, bracket = best
    said = Note(f"{words.bracket(bracket, '–')} %")
    return Cell(entry.name, href=f"{folder}/{FILE}#{ranking.link_to(board, entry)}", notes=(said,))


def _misled(folder: str, board: Leaderboard, threat: ranking.Threat | None) -> Cell:
    misled = ranking.most_misleading(board, threat) if threat else None
    if misled is None:
        return Cell("none", "")
    entry, bracket = misled.entry, misled.bracket
    masked = ", masked" if ranking.trust(entry, board) == ranking.MASKED else ""
    said = Note(
        f"on {entry.name}{masked}: {words.percent(misled.plain.robust.value)} %, all attacks "
        f"{words.percent(bracket.attacked.value)} %",
        f"{folder}/{FILE}#{ranking.link_to(board, entry)}",
    )
    return Cell(f"{misled.plain.attack.upper()} alone", misled.gap, notes=(said,))
