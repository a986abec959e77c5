import boards
import pytest

from robustness.results.leaderboard import Leaderboard


@pytest.fixture(scope="session")
def board() -> Leaderboard:
    return boards.leaderboard()


@pytest.fixture(scope="session")
def searched() -> Leaderboard:
    """The board with a worst case at every threat."""
    return boards.with_worst_case(boards.leaderboard())
