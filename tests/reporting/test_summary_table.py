import io

import boards
import pytest
from rich.console import Console

from robustness.reporting.tables import summary_table


def printed(table, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 110])
def test_every_model_and_bracket_survives_a_plain_pipe(board, width):
    text = printed(summary_table(board), width)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    for entry in board.models:
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [entry.name]]
        for norm, eps in boards.AUTOATTACK_AT.items():
            bracket = next(b for b in entry.brackets if (b.norm, b.eps) == (norm, eps))
            low, high = 100 * bracket.certified.value, 100 * bracket.attacked.value
            assert f"{low:.1f}-{high:.1f}" in line.split()


def test_brackets_are_shown_where_autoattack_ran_and_its_subset_is_named(board):
    text = printed(summary_table(board))
    assert "Linf 0.1" in text
    assert "L2 0.5" in text
    assert text.count("AA n=64") == 2


def test_without_autoattack_the_middle_radius_is_shown(board):
    models = [
        m.model_copy(update={"attacks": [a for a in m.attacks if a.attack != "autoattack"]})
        for m in board.models
    ]
    text = printed(summary_table(board.model_copy(update={"models": models})))
    assert "AA" not in text
    assert "Linf 0.1" in text


def test_failed_samples_and_soundness_are_said_below_the_table(board):
    text = " ".join(printed(summary_table(board)).split())
    assert "digits/node: 3 samples failed, not robust" in text
    assert "soundness: no violation; 80 certified images audited" in text


def test_a_soundness_violation_cannot_be_overlooked(board):
    unsound = boards.broken(board, boards.violation(7), boards.violation(9))
    assert "soundness: 2 VIOLATIONS; 80 certified" in printed(summary_table(unsound))


def test_a_run_without_certificates_does_not_claim_to_be_sound(board):
    soundness = board.soundness.model_copy(update={"pairs": 0, "attacked_inside": 0, "audited": 0})
    text = printed(summary_table(board.model_copy(update={"soundness": soundness})))
    assert "nothing was certified and attacked" in " ".join(text.split())
    assert "no violation" not in text


def test_markup_in_a_model_name_is_printed_and_not_obeyed(board):
    odd = boards.edit(board, "digits/node", name="[bold]my[/bold]")
    assert "[bold]my[/bold]" in printed(summary_table(odd))


def test_a_missing_bracket_is_a_dash(board):
    gap = boards.edit(board, "digits/node", brackets=[], attacks=[])
    line = next(x for x in printed(summary_table(gap)).splitlines() if "digits/node " in x)
    assert line.split() == ["digits/node", "96.8", "-", "-", "-", "-"]
