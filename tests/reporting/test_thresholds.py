from pathlib import Path

import boards
import pytest

from robustness.errors import UsageError
from robustness.files import read_toml
from robustness.reporting.regression import Outcome, check
from robustness.reporting.thresholds import Limit, Thresholds
from robustness.results.leaderboard import Proportion

NODE = "digits/node"


def thresholds(tmp_path: Path, text: str) -> Thresholds:
    file = tmp_path / "gate.toml"
    file.write_text(text, encoding="utf-8")
    return read_toml(file, Thresholds)


def test_an_empty_file_is_the_default_gate(tmp_path, board):
    fallen = boards.shift(board, NODE, "clean", -6)
    assert check(fallen, board, thresholds=thresholds(tmp_path, "")).findings == (
        check(fallen, board).findings
    )


def test_a_limit_holds_what_it_matches_and_nothing_else(tmp_path, board):
    limits = thresholds(
        tmp_path,
        """
        [[limits]]
        model = "digits/no*"
        metric = "attacked"
        norm = "linf"
        eps = "0.1"
        fall = 0.2
        """,
    )
    fallen = boards.shift(board, NODE, "attacked", -60)
    verdict = check(fallen, board, thresholds=limits)
    spared = [case for case in verdict.cases if case.what == "attacked, Linf 0.1"]
    assert [case.outcome for case in spared if case.model == NODE] == [Outcome.PASS]
    assert verdict.outcome is Outcome.REGRESSION
    assert (
        "Linf 0.05 attacked" in verdict.findings[0] or "Linf 0.02 attacked" in verdict.findings[0]
    )
    assert not any("Linf 0.1 " in finding for finding in verdict.findings if "REGR" in finding)


def test_of_two_limits_the_later_one_decides_key_by_key(board):
    limits = Thresholds(
        limits=[Limit(fall=0.5, floor=0.99), Limit(model=NODE, fall=0.02), Limit(floor=0.1)]
    )
    found = limits.of(NODE, next(iter(check(board, board).cases[2:])).quantity, 0.01)
    assert (found.floor, found.fall, found.relative_fall) == (0.1, 0.02, None)


def test_a_floor_holds_whatever_the_baseline_was(board):
    floor = Thresholds(limits=[Limit(model=NODE, metric="clean", floor=0.98)])
    verdict = check(board, board, thresholds=floor)
    assert verdict.findings == ["REGRESSION digits/node, clean: 96.8 is below its floor of 98"]
    assert check(board, None, thresholds=floor).exit_code == 1
    lower = Thresholds(limits=[Limit(model=NODE, metric="clean", floor=0.96)])
    assert check(board, None, thresholds=lower).exit_code == 0


def test_a_floor_holds_where_nothing_else_can_be_told_and_for_new_models(board):
    floor = Thresholds(limits=[Limit(model=NODE, metric="clean", floor=0.98)])
    verdict = check(boards.leaderboard(seed=5), board, thresholds=floor)
    assert verdict.outcome is Outcome.REGRESSION
    assert any(finding.startswith("cannot tell: other seed") for finding in verdict.findings)
    without = board.model_copy(update={"models": [m for m in board.models if m.name != NODE]})
    assert check(board, without, thresholds=floor).outcome is Outcome.REGRESSION


def test_a_relative_fall_counts_from_the_baselines_number(board):
    # 20 of 599 fall to 17: half a point of the samples, and 15 % of the number.
    before = boards.edit(board, NODE, clean=Proportion.of(20, 599))
    after = boards.edit(board, NODE, clean=Proportion.of(17, 599))
    assert check(after, before).outcome is Outcome.PASS
    for share, outcome in ((0.14, Outcome.REGRESSION), (0.15, Outcome.PASS)):
        limits = Thresholds(limits=[Limit(metric="clean", relative_fall=share)])
        assert check(after, before, thresholds=limits).outcome is outcome


def test_a_relative_fall_in_place_of_an_absolute_one(board):
    before = boards.edit(board, NODE, clean=Proportion.of(590, 599))
    after = boards.edit(board, NODE, clean=Proportion.of(580, 599))
    limits = Thresholds(limits=[Limit(relative_fall=0.05)])
    assert check(after, before, thresholds=limits).outcome is Outcome.PASS
    both = Thresholds(limits=[Limit(relative_fall=0.05, fall=0.01)])
    assert check(after, before, thresholds=both).outcome is Outcome.REGRESSION


def test_a_large_fall_that_is_not_significant_passes_and_is_said(board):
    # Both are one fall of seven images; on samples that nobody can pair it may be chance.
    fallen = boards.shift(board, NODE, "clean", -7)
    assert check(fallen, board).outcome is Outcome.REGRESSION
    verdict = check(fallen, board, thresholds=Thresholds(significance=0.05))
    assert verdict.outcome is Outcome.PASS
    assert verdict.findings == [
        "within chance digits/node, clean: 96.8 -> 95.7 (-1.2 points, 7 images, p 1)"
    ]


def test_a_large_and_significant_fall_is_a_regression_with_its_p_value(board):
    fallen = boards.shift(board, NODE, "clean", -60)
    verdict = check(fallen, board, thresholds=Thresholds(significance=0.05))
    assert verdict.outcome is Outcome.REGRESSION
    case = next(case for case in verdict.cases if case.outcome is Outcome.REGRESSION)
    assert case.p_value < 1e-6
    assert f"p {case.p_value:.2g}" in verdict.findings[0]


def test_a_significant_fall_within_the_tolerance_passes(board):
    fallen = boards.shift(board, NODE, "clean", -60)
    generous = Thresholds(significance=0.05, limits=[Limit(fall=0.2)])
    assert check(fallen, board, thresholds=generous).outcome is Outcome.PASS


def test_paired_samples_find_what_unpaired_ones_cannot(board):
    # The same 12 images fell, and none rose: 1 in 4,096, for McNemar and not for Fisher.
    entry = board.models[1]
    right = [place for place, p in enumerate(entry.samples.prediction) if p == 3][:12]
    prediction = [8 if i in right else p for i, p in enumerate(entry.samples.prediction)]
    clean = Proportion.of(entry.clean.count - 12, entry.clean.total)
    samples = entry.samples.model_copy(update={"prediction": prediction})
    paired = boards.edit(board, NODE, clean=clean, samples=samples)
    unpaired = boards.edit(board, NODE, clean=clean)
    limits = Thresholds(significance=0.05)
    assert check(paired, board, thresholds=limits).outcome is Outcome.REGRESSION
    assert check(unpaired, board, thresholds=limits).outcome is Outcome.PASS


def test_another_seed_is_compared_where_the_thresholds_say_so(board):
    other = boards.leaderboard(seed=7, samples=300, subsets={})
    assert check(other, board).outcome is Outcome.CANNOT_TELL
    limits = Thresholds(other_seeds=True, significance=0.05)
    assert check(other, board, thresholds=limits).outcome is Outcome.PASS
    fallen = boards.shift(other, NODE, "clean", -60)
    assert check(fallen, board, thresholds=limits).outcome is Outcome.REGRESSION
    settings = boards.leaderboard(seed=7, settings={})
    assert check(settings, board, thresholds=limits).outcome is Outcome.CANNOT_TELL


def test_other_totals_are_compared_as_proportions(board):
    before = boards.edit(board, NODE, clean=Proportion.of(300, 400))
    limits = Thresholds(other_seeds=True, significance=0.05, limits=[Limit(fall=0.25)])
    for count, outcome in ((150, Outcome.PASS), (149, Outcome.REGRESSION)):
        after = boards.edit(board, NODE, clean=Proportion.of(count, 300))
        assert check(after, before, thresholds=limits).outcome is outcome


def test_without_a_baseline_or_a_floor_there_is_nothing_to_hold(board):
    with pytest.raises(UsageError, match="expected a baseline, or thresholds with a floor"):
        check(board, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[limits]]\nflor = 0.5", "unknown key 'limits.0.flor'"),
        ("[[limits]]\nmodel = 'x'", "expected floor, fall or relative_fall"),
        ("[[limits]]\nfall = 1.5", "limits.0.fall"),
        ("[[limits]]\nfall = nan", "limits.0.fall"),
        ("[[limits]]\nmetric = 'atacked'\nfall = 0.1", "got 'atacked'"),
        ("[[limits]]\nnorm = 'L3'\nfall = 0.1", "'L3'"),
        ("[[limits]]\neps = -1\nfall = 0.1", "above 0"),
        ("significance = 0", "significance"),
        ("other_seeds = true", "expected significance beside other_seeds"),
    ],
)
def test_faults_of_the_file_are_named_in_one_line(tmp_path, text, said):
    with pytest.raises(UsageError) as refused:
        thresholds(tmp_path, text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "limit",
    [
        {"model": "digits/nod"},
        {"norm": "Linf", "eps": 0.3},
        {"norm": "L2", "metric": "clean"},
    ],
)
def test_a_limit_that_matches_nothing_is_refused(board, limit):
    with pytest.raises(UsageError, match=r"got \[\[limits\]\] 2 .* which matches none"):
        check(
            board, board, thresholds=Thresholds(limits=[Limit(fall=0.5), Limit(fall=0.1, **limit)])
        )
