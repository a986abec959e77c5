import boards
import pytest

from robustness.results.leaderboard import Leaderboard


@pytest.fixture(scope="session")
def board() -> Leaderboard:
    return boards.leaderboard()
