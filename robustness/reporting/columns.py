"""Columns of reports that installed packages add, behind those of this package.

A column is a function from what was measured about one model to one cell. It is computed when a
report is rendered, so that a stored run gains the columns of what is installed now, and stands in
the tables of one row per model, and in `leaderboard.csv` as the quantity `column`. It is no part
of `leaderboard.json`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from robustness.errors import UsageError, one_line, printable
from robustness.registry import Registry, release_of
from robustness.results.leaderboard import Leaderboard, ModelEntry

Value = float | str | None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its heading, and its `method` in `leaderboard.csv`.
        value: a number, words, or None where there is nothing to say of a model.
    """

    name: str
    value: Callable[[ModelEntry], Value]

    def of(self, entry: ModelEntry) -> Value:
        """The value of one model.

        Raises:
            UsageError: the function raises, or gives something else; whose it is is said.
        """
        whose = release_of(self.value.__module__)
        try:
            value = self.value(entry)
        except (Exception, SystemExit) as error:
            got = f"what raised {one_line(f'{type(error).__name__}: {error}', 120)}"
        else:
            if value is None or isinstance(value, float | int | str):
                return value
            got = f"a {type(value).__name__}"
        raise UsageError(
            f"expected a number, words or None in the column {self.name!r} of {whose}, got {got} "
            f"of {entry.name}; correct or uninstall it"
        )


COLUMNS: Registry[Column] = Registry("a report column", "robustness.columns")


def cells(entry: ModelEntry) -> list[str]:
    """What the columns say of a model, in their order; numbers with four digits."""
    return [_written(column.of(entry)) for column in COLUMNS.values()]


def headings() -> list[str]:
    """What they are called, in the same order."""
    return [printable(name) for name in COLUMNS]


def values(leaderboard: Leaderboard) -> list[tuple[str, str, Value]]:
    """Model, column and value, of every model and column with a value."""
    found = [(e.name, c.name, c.of(e)) for e in leaderboard.models for c in COLUMNS.values()]
    return [row for row in found if row[2] is not None]


def _written(value: Value) -> str:
    if value is None:
        return "-"
    return printable(value) if isinstance(value, str) else f"{value:.4g}"
