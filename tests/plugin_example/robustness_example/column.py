"""A report column: one number of each model."""

from robustness.reporting.columns import COLUMNS, Column
from robustness.results.leaderboard import ModelEntry


def widest(entry: ModelEntry) -> float | None:
    """The width of the widest bracket, from 0 to 1."""
    return max((bracket.width for bracket in entry.brackets), default=None)


COLUMNS.register(Column("widest bracket", widest))
