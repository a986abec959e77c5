import boards
import pytest

from robustness.evaluation.leaderboard import Leaderboard


@pytest.fixture(scope="session")
def board() -> Leaderboard:
    return boards.leaderboard()
