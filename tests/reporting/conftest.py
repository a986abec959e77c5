from dataclasses import dataclass
from typing import Any

import boards
import matplotlib as mpl
import pytest

from robustness.reporting.figures import figures
from robustness.results.leaderboard import Leaderboard


@pytest.fixture(scope="session")
def board() -> Leaderboard:
    return boards.leaderboard()


@dataclass(frozen=True)
class Drawn:
    """All figures of the board, and matplotlib's settings before and after they were drawn."""

    figures: dict[str, bytes]
    before: dict[str, Any]
    after: dict[str, Any]


@pytest.fixture(scope="session")
def drawn() -> Drawn:
    before = dict(mpl.rcParams)
    return Drawn(figures(boards.leaderboard()), before, dict(mpl.rcParams))
