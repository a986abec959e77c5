import boards
import pytest

from robustness.errors import UsageError
from robustness.reporting.regression import Outcome, check
from robustness.results.leaderboard import Proportion

NODE = "digits/node"


def test_an_unchanged_run_passes_without_findings(board):
    verdict = check(board, board)
    assert verdict.outcome is Outcome.PASS
    assert verdict.exit_code == 0
    assert verdict.findings == []


@pytest.mark.parametrize("side", ["clean", "certified", "attacked"])
def test_a_weakened_model_fails_the_gate(board, side):
    verdict = check(boards.shift(board, "digits/lyanet-certified", side, -30), board)
    assert verdict.outcome is Outcome.REGRESSION
    assert verdict.exit_code == 1
    assert all(finding.startswith("REGRESSION digits/lyanet-c") for finding in verdict.findings)
    assert side in verdict.findings[0]


def test_a_finding_says_what_fell_from_where_to_where_and_by_how_many_images(board):
    verdict = check(boards.shift(board, NODE, "clean", -30), board)
    assert verdict.findings == [
        "REGRESSION digits/node, clean: 96.8 -> 91.8 (-5.0 points, 30 images)"
    ]


@pytest.mark.parametrize(("fall", "outcome"), [(5, Outcome.PASS), (6, Outcome.REGRESSION)])
def test_a_fall_within_the_tolerance_passes(board, fall, outcome):
    # 0.01 of 599 images is 5.99 images.
    assert check(boards.shift(board, NODE, "clean", -fall), board).outcome is outcome


@pytest.mark.parametrize(("total", "fall"), [(600, 6), (300, 3), (100, 1), (700, 7)])
def test_a_fall_by_exactly_the_tolerance_passes_whatever_the_rounding(board, total, fall):
    only = board.model_copy(update={"models": board.models[:1]})
    before = boards.edit(only, "digits/resnet", clean=Proportion.of(total - 3, total))
    after = boards.edit(only, "digits/resnet", clean=Proportion.of(total - 3 - fall, total))
    assert check(after, before).outcome is Outcome.PASS
    further = boards.edit(only, "digits/resnet", clean=Proportion.of(total - 4 - fall, total))
    assert check(further, before).outcome is Outcome.REGRESSION


def test_with_few_samples_one_image_is_a_regression(board):
    before = boards.edit(board, NODE, clean=Proportion.of(30, 32))
    after = boards.edit(board, NODE, clean=Proportion.of(29, 32))
    assert check(after, before).outcome is Outcome.REGRESSION


def test_a_tolerance_of_zero_lets_nothing_fall(board):
    assert check(board, board, 0.0).outcome is Outcome.PASS
    fallen = boards.shift(board, NODE, "clean", -1)
    assert check(fallen, board, 0.0).outcome is Outcome.REGRESSION


def test_more_failed_samples_are_a_regression(board):
    verdict = check(boards.edit(board, NODE, errors=10), board)
    assert verdict.outcome is Outcome.REGRESSION
    assert verdict.findings == ["REGRESSION digits/node, failed samples: 3 -> 10"]
    assert check(boards.edit(board, NODE, errors=8), board).outcome is Outcome.PASS


def test_a_soundness_violation_fails_even_where_nothing_can_be_compared(board):
    unsound = boards.broken(boards.leaderboard(seed=5), boards.violation())
    verdict = check(unsound, board)
    assert verdict.outcome is Outcome.REGRESSION
    assert verdict.findings[0].startswith("REGRESSION soundness: digits/lyanet: image 7 ")
    assert verdict.findings[1].startswith("cannot tell")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"samples": 64},
        {"split": "train"},
        {"data_digest": "00" * 32},
        {"settings": {}},
        {"subsets": {}},
    ],
)
def test_a_run_on_other_terms_cannot_be_told(board, change):
    weakened = boards.shift(boards.leaderboard(**change), NODE, "clean", -300)
    verdict = check(weakened, board)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert verdict.exit_code == 2
    assert all(finding.startswith("cannot tell: other ") for finding in verdict.findings)


def test_a_missing_model_cannot_be_told_however_good_the_others_are(board):
    fewer = board.model_copy(update={"models": board.models[1:]})
    verdict = check(boards.shift(fewer, NODE, "certified", 50), board)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert verdict.findings[0] == "cannot tell: digits/resnet is missing from the results"


def test_a_regression_that_was_found_outranks_a_missing_model(board):
    fewer = board.model_copy(update={"models": board.models[1:]})
    verdict = check(boards.shift(fewer, NODE, "clean", -50), board)
    assert verdict.outcome is Outcome.REGRESSION
    assert any(finding.startswith("cannot tell") for finding in verdict.findings)


def test_a_threat_that_was_not_evaluated_again_cannot_be_told(board):
    brackets = board.models[1].brackets[:-1]
    verdict = check(boards.edit(board, NODE, brackets=brackets), board)
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert verdict.findings == ["cannot tell: digits/node, L2 1 is missing from the results"]


def test_improvements_are_mentioned_and_pass(board):
    verdict = check(boards.shift(board, NODE, "certified", 50), board)
    assert verdict.outcome is Outcome.PASS
    assert len(verdict.findings) == 8
    assert all(f.startswith("improvement digits/node, ") for f in verdict.findings)


def test_a_model_that_the_baseline_lacks_is_noted_and_harmless(board):
    smaller = board.model_copy(update={"models": board.models[:3]})
    verdict = check(board, smaller)
    assert verdict.outcome is Outcome.PASS
    assert verdict.findings == [
        "note: digits/lyanet-certified is not in the baseline and was not compared"
    ]


def test_retrained_weights_are_noted_and_compared(board):
    retrained = boards.edit(board, NODE, digest="ab" * 32)
    verdict = check(retrained, board)
    assert verdict.outcome is Outcome.PASS
    assert verdict.findings == ["note: digits/node has another digest of weights and architecture"]


def test_an_empty_baseline_promises_nothing(board):
    verdict = check(board, board.model_copy(update={"models": []}))
    assert verdict.outcome is Outcome.CANNOT_TELL
    assert verdict.findings == ["cannot tell: the baseline holds no model"]


@pytest.mark.parametrize("tolerance", [-0.01, 1.0, float("nan"), float("inf")])
def test_a_tolerance_that_is_no_proportion_is_refused(board, tolerance):
    with pytest.raises(UsageError, match="expected a tolerance"):
        check(board, board, tolerance)


def test_a_fall_under_attacks_of_other_versions_says_so(board):
    fallen = boards.shift(board, NODE, "attacked", -30)
    rows = fallen.models[1].attacks
    newer = [row.model_copy(update={"version": f"{row.version}, 40 steps"}) for row in rows]
    both = boards.shift(boards.edit(fallen, NODE, attacks=newer), NODE, "certified", -30)
    said = "; the attacks are of other versions"
    found = check(both, board).findings
    assert {("attacked" in finding, finding.endswith(said)) for finding in found} == {
        (True, True),
        (False, False),
    }
    assert not any(finding.endswith(said) for finding in check(fallen, board).findings)
