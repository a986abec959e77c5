"""Verdicts follow from the numbers by the stated rule, and the report from the results."""

import math
from pathlib import Path

import pytest
from results import results

from robustness.claims.models import MODELS, STUDIES, Budget, Study
from robustness.claims.report import write_claims
from robustness.claims.results import SeedResults, read_seed
from robustness.claims.verdicts import Claim, Comparison, Interval, Outcome, claims
from robustness.results.leaderboard import Proportion
from robustness.zoo import zoo_folder

REPORTS = zoo_folder().parent / "reports"


def comparison(ours: list[float], rival: list[float], lower: bool = True) -> Comparison:
    return Comparison(
        quantity="q",
        ours="a",
        rival="b",
        unit="percent",
        lower_is_better=lower,
        our_values=ours,
        rival_values=rival,
    )


def test_the_interval_is_students() -> None:
    interval = Interval.of([1.0, 2.0, 3.0])
    # Standard deviation 1, and t is 4.3027 for two degrees of freedom.
    assert interval.mean == pytest.approx(2.0)
    assert interval.high - interval.mean == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)


@pytest.mark.parametrize(
    ("ours", "rival", "lower", "outcome"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], True, Outcome.BETTER),
        ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], False, Outcome.WORSE),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], True, Outcome.WORSE),
        ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], False, Outcome.BETTER),
        ([1.0, 3.0, 2.0], [2.0, 2.0, 2.1], True, Outcome.OPEN),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], True, Outcome.EQUAL),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.1], True, Outcome.OPEN),
        # Pairing by seed: seeds differ much, the difference does not.
        ([10.0, 20.0, 30.0], [11.0, 21.1, 30.9], True, Outcome.BETTER),
    ],
)
def test_a_comparison_is_decided_by_the_paired_interval(
    ours: list[float], rival: list[float], lower: bool, outcome: Outcome
) -> None:
    assert comparison(ours, rival, lower).outcome is outcome


BETTER = comparison([1.0, 1.1, 0.9], [2.0, 2.1, 1.9])
WORSE = comparison([2.0, 2.1, 1.9], [1.0, 1.1, 0.9])
OPEN = comparison([1.0, 3.0, 2.0], [2.0, 2.0, 2.1])
EQUAL = comparison([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("comparisons", "verdict"),
    [
        ([BETTER, BETTER], "holds"),
        ([WORSE], "does not hold: of 1 comparisons better in none, worse in 1, open in 0"),
        ([OPEN], "cannot be told: of 1 comparisons better in none, worse in 0, open in 1"),
        (
            [EQUAL, OPEN],
            "does not hold: of 2 comparisons better in none, worse in 0, equal in 1, open in 1",
        ),
        ([BETTER, OPEN], "holds only for q, a against b: of 2 comparisons worse in 0, open in 1"),
    ],
)
def test_a_claim_holds_if_all_hold_and_under_a_condition_if_some_do(
    comparisons: list[Comparison], verdict: str
) -> None:
    assert Claim(statement="s", comparisons=comparisons).verdict == verdict


def test_every_claim_of_the_paper_is_compared_with_the_right_sign() -> None:
    prediction, convergence, robustness, cost = claims(results(gain=0.5))
    for claim in (prediction, convergence, robustness, cost):
        assert claim.verdict == "holds", claim
    for claim in claims(results(gain=-0.5)):
        assert claim.verdict.startswith("does not hold"), claim
        assert all(c.outcome is Outcome.WORSE for c in claim.comparisons)
    assert len(prediction.comparisons) == 2
    assert len(convergence.comparisons) == 4
    assert len(robustness.comparisons) == 5 * 2 + 1


def test_an_open_comparison_tells_how_many_seeds_would_decide_it() -> None:
    # Differences of 0, 1 and 2: mean 1 and deviation 1, so that t / sqrt(n) must fall below 1,
    # which it does from 7 seeds on (2.447 / 2.646); with 6 it is 2.571 / 2.449.
    found = comparison([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    assert found.outcome is Outcome.OPEN
    assert found.seeds_to_decide == 7
    assert comparison([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]).seeds_to_decide is None
    assert BETTER.seeds_to_decide is None


def test_a_difference_within_a_step_of_the_grid_decides_nothing() -> None:
    same = {"our_values": [0.02, 0.02, 0.02], "rival_values": [0.04, 0.04, 0.04]}
    assert BETTER.model_copy(update=same).outcome is Outcome.BETTER
    grid = BETTER.model_copy(update=same | {"step": 0.02})
    assert (grid.outcome, grid.seeds_to_decide) == (Outcome.OPEN, None)
    assert (grid.difference.low, grid.difference.high) == pytest.approx((-0.04, 0.0))
    farther = grid.model_copy(update={"rival_values": [0.08, 0.08, 0.08]})
    assert farther.outcome is Outcome.BETTER
    # Of the convergence claim, times have a step and evaluations none.
    assert [c.step for c in claims(results(gain=0.5))[1].comparisons] == [0.02, 0.02, 0.0, 0.0]


def test_what_only_an_added_seed_decides_is_said_with_the_claim() -> None:
    """Differences of 1, 1 and 3 are open; with a fourth of 3 their mean is 2, the reach 1.84."""
    study, first = STUDIES["mnist"], results(gain=0.5)[0]
    errors = {1: 0.01, 2: 0.01, 3: 0.03, 4: 0.03}
    assert (study.seeds, study.looked) == ((1, 2, 3, 4), 3)

    def seed(number: int) -> SeedResults:
        count = 9900 - round(10_000 * errors[number])
        clean = first.clean | {
            "lyanet": Proportion.of(9900, 10_000),
            "node": Proportion.of(count, 10_000),
        }
        return first.model_copy(update={"seed": number, "clean": clean})

    four = [seed(number) for number in study.seeds]
    assert claims(four[:3])[0].deciding[0].outcome is Outcome.OPEN
    prediction, *others = claims(four)
    assert prediction.deciding[0].outcome is Outcome.BETTER
    assert "test error, lyanet against node: open after 3 seeds, decided by one added" in (
        prediction.sentence
    )
    assert all("open after" not in claim.sentence for claim in others)
    # Of seeds that somebody names there is no second look.
    named = [s.model_copy(update={"seed": s.seed + 10}) for s in four]
    assert "open after" not in claims(named)[0].sentence


def test_a_sentence_counts_outcomes_and_names_the_clearest() -> None:
    claim = Claim(statement="s", comparisons=[OPEN, BETTER, WORSE])
    assert claim.sentence == (
        "of 3 comparisons 1 came out better, 1 worse and 1 undecided, the clearest being "
        "q, a against b: 1 to 2 %, a difference of -1 [-1, -1]"
    )
    assert "undecided" in Claim(statement="s", comparisons=[OPEN]).sentence
    equal = Claim(statement="s", comparisons=[BETTER, EQUAL]).sentence
    assert "1 came out better, 0 worse, 1 equal and 0 undecided" in equal


def test_what_pgd_leaves_decides_nothing_where_the_worst_case_was_measured(tmp_path) -> None:
    seeds = []
    for seed in results(gain=0.5):
        table = {name: Proportion.of(10, 500) for name in MODELS}
        worst = {"worst linf 0.1": table}
        fooled = {"wide linf 0.1": table | {"lyanet": Proportion.of(485, 500)}}
        seeds.append(seed.model_copy(update={"edition": 2, "robust": fooled | worst}))
    claim = claims(seeds)[2]
    assert [c.outcome for c in claim.comparisons] == [Outcome.BETTER] + 3 * [Outcome.EQUAL]
    assert [c.decides for c in claim.comparisons] == [False, False, True, True]
    assert claim.verdict == (
        "does not hold: of 2 comparisons better in none, worse in 0, equal in 2, open in 0"
    )
    assert claim.sentence.endswith(
        "PGD on the deployed model at ℓ∞ 0.1 says 97.0 to 2.0 % of lyanet against node, of which "
        "the worst case leaves 2.0 to 2.0 %: it is fooled by lyanet"
    )
    write_claims(seeds, tmp_path)
    assert "| better, beside |" in (tmp_path / "report.md").read_text()


def test_an_attack_that_leaves_a_little_more_is_weaker_and_not_fooled() -> None:
    seeds = []
    for seed in results(gain=0.5):
        table = {name: Proportion.of(400, 500) for name in MODELS}
        alone = {"wide linf 0.1": table | {"node": Proportion.of(430, 500)}}
        seeds.append(seed.model_copy(update={"robust": alone | {"worst linf 0.1": table}}))
    assert claims(seeds)[2].caution == (
        "PGD on the deployed model at ℓ∞ 0.1 says 80.0 to 86.0 % of lyanet against node, of which "
        "the worst case leaves 80.0 to 80.0 %: it is the weaker attack"
    )


def test_a_model_that_is_far_behind_is_told_of_wherever_it_is_compared() -> None:
    assert all(not claim.caution for claim in claims(results(gain=-0.04)))
    told = claims(results(gain=-0.6))
    words = "lyanet classifies 74.2 % of the clean test images where node does 80.2 %: "
    assert [words in claim.sentence for claim in told] == [True, True, True, False]


def test_where_next_to_nothing_stands_of_either_there_is_nothing_to_compare() -> None:
    few = {"our_values": [0.2, 0.4, 0.2], "rival_values": [0.0, 0.0, 0.2], "lower_is_better": False}
    neither = BETTER.model_copy(update=few | {"floor": 1.0})
    assert neither.outcome is Outcome.NEITHER
    assert neither.seeds_to_decide is None
    assert neither.model_copy(update={"floor": None}).outcome is Outcome.OPEN
    assert neither.model_copy(update={"rival_values": [1.1] * 3}).outcome is Outcome.WORSE
    claim = Claim(statement="s", comparisons=[neither])
    assert claim.verdict == (
        "cannot be told: of 1 comparisons better in none, worse in 0, neither standing in 1, "
        "open in 0"
    )
    assert claim.sentence == (
        "of 1 comparisons 0 came out better, 0 worse, 1 with neither standing and 0 undecided"
    )
    assert "the clearest being q" in Claim(statement="s", comparisons=[neither, BETTER]).sentence


def test_a_report_quotes_a_sentence_for_each_claim_and_marks_what_was_still_rising(
    tmp_path,
) -> None:
    settled = Budget(epochs=10, best_epoch=8, seconds=1.0)
    rising = Budget(epochs=20, best_epoch=20, seconds=1.0)
    budgets = dict.fromkeys(MODELS, settled) | {"lyanet": rising}
    seeds = [
        s.model_copy(update={"edition": 2, "data": "fashion-mnist", "budgets": budgets})
        for s in results(gain=0.5)
    ]
    write_claims(seeds, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert report.startswith("# LyaNet's claims, measured on Fashion-MNIST\n")
    assert "| lyanet | 20 (20) \\* |" in report
    assert "| node | 10 (8) |" in report
    assert "Every model has 24." in report
    quoted = [line for line in report.splitlines() if line.startswith("On Fashion-MNIST, 3 seeds")]
    assert len(quoted) == 4
    assert all("the last were the best in 3 of 15 trainings: " in line for line in quoted)
    assert all("10 to 20 epochs" in line and "the clearest being" in line for line in quoted)


@pytest.mark.parametrize("gain", [2.4, None])
def test_a_report_says_whether_lyanets_gain_moved_and_where_to(
    tmp_path: Path, gain: float | None
) -> None:
    budget = Budget(epochs=10, best_epoch=8, seconds=1.0)
    budgets = dict.fromkeys(MODELS, budget)
    budgets["lyanet"] = budget.model_copy(update={"gain": gain})
    write_claims([s.model_copy(update={"budgets": budgets}) for s in results(gain=0.5)], tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert ("the gain stays what it is" in report) == (gain is None)
    assert ("leads down to 1 in half of the training" in report) == (gain is not None)
    assert (
        "a gain of 100 that moves (averaged as the weights are, it ends as 2.4, 2.4, 2.4)" in report
    ) == (gain is not None)


def test_a_report_names_the_commits_that_measured_it(tmp_path) -> None:
    untold = results(gain=0.5)
    told = [seed.model_copy(update={"commit": "0123456789abcdef"}) for seed in untold]
    for found, words in ((told, "Begun with the code of commit 0123456789ab."), (untold, "")):
        write_claims(found, tmp_path)
        text = (tmp_path / "report.md").read_text()
        assert words in text
        assert bool(words) == ("commit" in text)


@pytest.mark.slow
def test_a_report_says_by_which_edition_it_was_attacked(tmp_path) -> None:
    old = results(gain=0.5)
    write_claims(old, tmp_path / "old")
    assert "The worst case over views did not run" in (tmp_path / "old/report.md").read_text()
    worst = {"worst linf 0.1": old[0].robust["wide linf 0.1"]}
    new = [s.model_copy(update={"edition": 2, "robust": worst}) for s in old]
    write_claims(new, tmp_path / "new")
    report = (tmp_path / "new/report.md").read_text()
    assert "the worst case over views, ℓ∞ 0.1" in report
    assert "alone in its batch (edition 2)" in report
    assert "the worst case over views, at ℓ∞ 0.1 of the first 1000 images: " in report


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
def test_a_committed_report_is_what_its_results_give(study: Study, tmp_path: Path) -> None:
    folder = REPORTS / ("lyanet-claims" if study.data == "mnist" else f"lyanet-claims-{study.data}")
    seeds = [read_seed(seed, folder) for seed in study.seeds]
    for file in write_claims(seeds, tmp_path):
        committed = folder / file.relative_to(tmp_path)
        assert file.read_bytes() == committed.read_bytes(), committed


@pytest.mark.slow
def test_the_report_is_a_function_of_the_results_and_says_every_verdict(tmp_path) -> None:
    seeds: list[SeedResults] = results(gain=0.5)
    first, second = (write_claims(seeds, tmp_path / copy) for copy in ("a", "b"))
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in second]
    report = (tmp_path / "a" / "report.md").read_text()
    page = (tmp_path / "a" / "index.html").read_text()
    for claim in claims(seeds):
        assert f"{claim.statement} | holds |" in report
        assert claim.statement in page
    assert 'src="data:image/svg+xml' in page
