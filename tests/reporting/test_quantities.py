from pathlib import Path

import boards
import pytest

from robustness.reporting.quantities import (
    Metric,
    Pairs,
    Quantity,
    held,
    holm,
    p_fall,
    pairs,
    proportion,
    quantities,
)
from robustness.results.leaderboard import Proportion, read_leaderboard, reports_in
from robustness.threat import Norm

REPORTS = Path(__file__).parents[2] / "reports"


@pytest.mark.parametrize("report", reports_in(REPORTS).values(), ids=str)
def test_the_samples_of_every_committed_report_tell_all_its_numbers(report):
    for entry in read_leaderboard(report).models:
        for quantity in quantities(entry):
            told = held(entry, quantity)
            assert told is not None, f"{entry.name}: {quantity}"
            assert sum(told.values()) == proportion(entry, quantity).count


def test_samples_that_give_another_count_tell_nothing(board):
    moved = boards.shift(board, "digits/node", "clean", -1).models[1]
    assert held(board.models[1], Quantity(Metric.CLEAN)) is not None
    assert held(moved, Quantity(Metric.CLEAN)) is None
    assert held(moved.model_copy(update={"samples": None}), Quantity(Metric.CLEAN)) is None


def test_a_sample_that_failed_within_the_radius_does_not_count(board):
    entry = board.models[0]
    linf, l2 = entry.samples.norms
    place = next(i for i, radius in enumerate(linf.distance) if radius is None)
    failed = [0.05 if i == place else None for i in range(len(linf.failed))]
    samples = entry.samples.model_copy(
        update={"norms": [linf.model_copy(update={"failed": failed}), l2]}
    )
    at = {eps: Quantity(Metric.ATTACKED, Norm.LINF, eps) for eps in (0.02, 0.05)}
    old = {eps: proportion(entry, quantity) for eps, quantity in at.items()}
    brackets = [
        b.model_copy(update={"attacked": Proportion.of(old[b.eps].count - 1, old[b.eps].total)})
        if b.norm is Norm.LINF and b.eps == 0.05
        else b
        for b in entry.brackets
    ]
    entry = entry.model_copy(update={"samples": samples, "brackets": brackets, "errors": 1})
    assert held(entry, at[0.02])[place]
    assert not held(entry, at[0.05])[place]
    assert not held(entry, Quantity(Metric.FINISHED))[place]


def test_pairs_tell_which_images_broke_and_which_were_mended(board):
    entry = board.models[0]
    samples = entry.samples
    right = [i for i, p in zip(samples.index, samples.prediction, strict=True) if p == 3]
    wrong = [i for i, p in zip(samples.index, samples.prediction, strict=True) if p != 3]
    turned = {right[0], right[5], wrong[0]}
    prediction = [
        11 - p if i in turned else p for i, p in zip(samples.index, samples.prediction, strict=True)
    ]
    other = entry.model_copy(
        update={
            "samples": samples.model_copy(update={"prediction": prediction}),
            "clean": Proportion.of(entry.clean.count - 1, entry.clean.total),
        }
    )
    found = pairs(entry, other, Quantity(Metric.CLEAN))
    assert found == Pairs(boards.SAMPLES, (right[0], right[5]), (wrong[0],))


def test_runs_of_other_samples_are_not_paired(board):
    entry = board.models[0]
    moved = [i + 1 for i in entry.samples.index]
    other = entry.model_copy(update={"samples": entry.samples.model_copy(update={"index": moved})})
    assert pairs(entry, other, Quantity(Metric.CLEAN)) is None


def test_mcnemars_test_is_exact():
    # Of nine images that changed, at most one was mended with probability 10 in 512.
    found = Pairs(100, tuple(range(8)), (8,))
    assert found.p_fall == pytest.approx(10 / 512)
    assert found.p_change == pytest.approx(20 / 512)
    assert Pairs(100, (), ()).p_change == 1.0
    assert Pairs(100, (), ()).p_fall == 1.0


def test_fishers_test_is_exact_and_a_rise_is_no_fall():
    # Two of two against none of two: one table of six.
    assert p_fall(Proportion.of(2, 2), Proportion.of(0, 2)) == pytest.approx(1 / 6)
    assert p_fall(Proportion.of(0, 2), Proportion.of(2, 2)) == 1.0


def test_holms_adjustment_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
