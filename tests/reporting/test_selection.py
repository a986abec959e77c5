"""What a report puts first."""

from robustness.reporting.selection import headline
from robustness.results.leaderboard import Leaderboard
from robustness.threat import Norm


def test_the_headline_is_where_the_strongest_attack_of_the_run_was_made(board: Leaderboard) -> None:
    assert headline(board) == [(Norm.LINF, 0.1), (Norm.L2, 0.5)]  # AutoAttack's
    entry = board.models[0]
    strongest = [
        row.model_copy(update={"attack": "worst-case"})
        for row in entry.attacks
        if row.attack == "pgd" and (row.norm is Norm.LINF or row.eps == 0.25)
    ]
    changed = entry.model_copy(update={"attacks": [*entry.attacks, *strongest]})
    searched = board.model_copy(update={"models": [changed, *board.models[1:]]})
    assert headline(searched) == [(Norm.LINF, 0.05), (Norm.L2, 0.25)]
