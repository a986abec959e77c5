"""How a leaderboard's numbers went, commit by commit of its git repository."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from rich.table import Table
from rich.text import Text

from robustness.errors import UsageError
from robustness.reporting import selection, words
from robustness.reporting.compare import find, obstacles
from robustness.reporting.quantities import Metric, Quantity, proportion, quantities
from robustness.reporting.tables import plain_table
from robustness.results.leaderboard import Leaderboard, Proportion
from robustness.results.revisions import Version, read_version, versions

# That fit a terminal of 80 columns beside the names of models.
_COLUMNS = 4
_SAID = 3
_SUBJECT = 72


@dataclass(frozen=True)
class Move:
    """A number of a model that changed from one state to the next."""

    model: str
    quantity: Quantity
    old: Proportion
    new: Proportion

    @property
    def size(self) -> float:
        """The change as a proportion, signed."""
        return self.new.value - self.old.value

    def __str__(self) -> str:
        numbers = f"{words.percent(self.old.value)} -> {words.percent(self.new.value)}"
        return f"{self.model}, {self.quantity}: {numbers}"


@dataclass(frozen=True)
class State:
    """A leaderboard as it was in one commit.

    Attributes:
        version: the commit.
        board: the leaderboard; None where it could not be read.
        fault: why it could not; empty where it could.
        obstacles: what makes it incomparable with the state before, a phrase each.
        moves: the numbers that changed since, largest change first; none where the images are
            others.
        new: models that came.
        gone: models that went.
    """

    version: Version
    board: Leaderboard | None
    fault: str = ""
    obstacles: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    new: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


@dataclass(frozen=True)
class History:
    """The states of one file, the oldest first.

    Attributes:
        path: as it was asked for.
        states: one for each commit that changed it.
    """

    path: str
    states: tuple[State, ...]

    @property
    def boards(self) -> list[tuple[Version, Leaderboard]]:
        """The states that could be read."""
        return [(s.version, s.board) for s in self.states if s.board is not None]


def read_history(path: Path, last: int = 20) -> History:
    """Read the newest states of a leaderboard.

    A state of an earlier schema, or one that was deleted, is told as such.

    Args:
        path: the leaderboard, or the folder that holds it, in a git repository.
        last: how many, from the newest on.

    Raises:
        UsageError: there is no git, no repository, no commit with it, or no state can be read.
    """
    if last < 1:
        raise UsageError(f"expected a number of commits from 1 on, got {last}; correct --last")
    states: list[State] = []
    before: Leaderboard | None = None
    for version in versions(path)[-last:]:
        try:
            board = read_version(version, path)
        except UsageError as error:
            states.append(State(version, None, str(error)))
            continue
        states.append(_state(version, board, before))
        before = board
    if before is None:
        raise UsageError(f"{path}: expected a state that can be read, got: {states[-1].fault}")
    return History(str(path), tuple(states))


def _state(version: Version, board: Leaderboard, before: Leaderboard | None) -> State:
    if before is None:
        return State(version, board)
    known, now = ([entry.name for entry in b.models] for b in (before, board))
    return State(
        version,
        board,
        obstacles=tuple(obstacles(before.suite, board.suite)),
        moves=tuple(_moves(before, board)),
        new=tuple(name for name in now if name not in known),
        gone=tuple(name for name in known if name not in now),
    )


def _moves(before: Leaderboard, after: Leaderboard) -> list[Move]:
    if before.suite.data_digest != after.suite.data_digest:
        return []
    found = []
    for entry in after.models:
        earlier = find(before, entry.name)
        for quantity in quantities(entry) if earlier is not None else []:
            old = proportion(earlier, quantity) if earlier is not None else None
            new = proportion(entry, quantity)
            if old is not None and new is not None and old.value != new.value:
                found.append(Move(entry.name, quantity, old, new))
    return sorted(found, key=lambda move: -abs(move.size))


def render(history: History) -> list[Table]:
    """A table for each threat of the newest state's headline: brackets by model and commit.

    Plain ASCII apart from what models are called, of the newest commits that fit 80 columns.
    """
    _, newest = history.boards[-1]
    return [
        _table(history, Quantity(Metric.ATTACKED, *threat)) for threat in selection.headline(newest)
    ]


def _table(history: History, at: Quantity) -> Table:
    shown = history.boards[-_COLUMNS:]
    caption = "certified-attacked accuracy in percent, the newest commit last"
    if len(history.boards) > len(shown):
        more = len(history.boards) - len(shown)
        caption += f"; {words.plural(more, 'earlier commit')} (all with --html)"
    table = plain_table(f"{history.path} at {at.threat}", caption)
    table.add_column("model", overflow="fold", min_width=12)
    for version, _ in shown:
        table.add_column(
            f"{version.commit[:8]}\n{version.date[:10]}", justify="right", no_wrap=True
        )
    for name in names(history):
        cells = [bracket(board, name, at) for _, board in shown]
        if any(cell != words.ABSENT for cell in cells):
            table.add_row(Text(name), *cells)
    return table


def names(history: History) -> list[str]:
    """Every model of any state, those of the newest state first."""
    boards = [board for _, board in reversed(history.boards)]
    return list(dict.fromkeys(entry.name for board in boards for entry in board.models))


def bracket(board: Leaderboard, model: str, at: Quantity, dash: str = "-") -> str:
    """`certified-attacked` of a model at the threat of a quantity; a dash where it has none."""
    entry = find(board, model)
    if entry is None or at.norm is None or at.eps is None:
        return words.ABSENT
    return words.bracket(selection.find_bracket(entry, at.norm, at.eps), dash)


def told(history: History) -> list[str]:
    """What changed in each commit, a line each, the newest first."""
    lines = []
    for state in reversed(history.states):
        version = state.version
        subject = shorten(version.subject, _SUBJECT, placeholder=" …")
        lines.append(f"{version.commit[:8]} {version.date[:10]} {subject}: {news(state)}")
    return lines


def news(state: State) -> str:
    """What changed in a commit, in one line."""
    if state.board is None:
        return f"not read, {state.fault}"
    said = []
    if state.new:
        said.append(f"new {', '.join(state.new)}")
    if state.gone:
        said.append(f"gone {', '.join(state.gone)}")
    if state.obstacles:
        said.append("; ".join(state.obstacles))
    if state.moves:
        most = "; ".join(str(move) for move in state.moves[:_SAID])
        what = words.plural(len(state.moves), "number")
        said.append(f"{what} moved, most of all {most}" if len(state.moves) > _SAID else most)
    return "; ".join(said) or "no number moved"
