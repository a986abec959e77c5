"""How often the gate fails a run that is as good as its baseline, and how often it finds a fall.

    python benchmarks/false_alarms.py reports/digits --repetitions 200

Both runs of a repetition are of the same models: their samples are drawn, each run with a seed of
its own, with replacement from those of a report, so that whatever falls has fallen by chance. The
gate is asked with size alone (as if the seed were the same, `check`'s default) and with size and
significance (`other_seeds`). A report held to itself is the third question. To see that the gate
is awake, the same is asked with a share of the samples of every model broken in the later run.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from robustness.reporting.quantities import Metric, Quantity, held, quantities
from robustness.reporting.regression import Outcome, check
from robustness.reporting.thresholds import Thresholds
from robustness.results.leaderboard import (
    Bracket,
    Leaderboard,
    ModelEntry,
    Proportion,
    read_leaderboard,
)


def drawn(board: Leaderboard, seed: int, samples: int, broken: float = 0.0) -> Leaderboard:
    """A run of other samples: drawn with replacement, a share of them broken.

    Args:
        board: whose samples are drawn from.
        seed: of the draw, and of the run's suite.
        samples: how many.
        broken: share of the drawn samples that count nowhere.
    """
    rng = np.random.default_rng(seed)
    places = rng.integers(board.suite.samples, size=samples)
    spared = rng.random(samples) >= broken
    suite = board.suite.model_copy(update={"seed": seed, "samples": samples, "subsets": {}})
    models = [_drawn(entry, places, spared) for entry in board.models]
    return board.model_copy(update={"suite": suite, "models": models})


def _drawn(entry: ModelEntry, places: np.ndarray, spared: np.ndarray) -> ModelEntry:
    def count(quantity: Quantity) -> Proportion:
        told = held(entry, quantity)
        if told is None:
            raise SystemExit(f"{entry.name}: the report does not tell its samples apart")
        number = int((np.array([*told.values()])[places] & spared).sum())
        return Proportion(count=number, total=len(places), low=0, high=1)  # intervals are not read

    return entry.model_copy(
        update={
            "clean": count(Quantity(Metric.CLEAN)),
            "errors": 0,
            "samples": None,
            "brackets": [
                Bracket(
                    norm=bracket.norm,
                    eps=bracket.eps,
                    certified=count(Quantity(Metric.CERTIFIED, bracket.norm, bracket.eps)),
                    attacked=count(Quantity(Metric.ATTACKED, bracket.norm, bracket.eps)),
                )
                for bracket in entry.brackets
            ],
        }
    )


def alarms(
    board: Leaderboard, repetitions: int, samples: int, significance: float, broken: float = 0.0
) -> tuple[int, int]:
    """In how many repetitions the gate fails: by size alone, and by size and significance."""
    by_size = by_both = 0
    both = Thresholds(other_seeds=True, significance=significance)
    for repetition in range(repetitions):
        before = drawn(board, 2 * repetition, samples)
        after = drawn(board, 2 * repetition + 1, samples, broken)
        by_both += check(after, before, thresholds=both).outcome is Outcome.REGRESSION
        suite = after.suite.model_copy(update={"seed": before.suite.seed})
        same = after.model_copy(update={"suite": suite})
        by_size += check(same, before).outcome is Outcome.REGRESSION
    return by_size, by_both


def _rate(count: int, of: int) -> str:
    interval = binomtest(count, of).proportion_ci(0.95, method="exact")
    return f"{count} of {of} ({count / of:.1%}, 95% {interval.low:.1%} to {interval.high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("report", type=Path, help="report folder or leaderboard")
    parser.add_argument("--repetitions", type=int, default=200)
    parser.add_argument("--samples", type=int, help="of each run; those of the report by default")
    parser.add_argument("--significance", type=float, default=0.05)
    parser.add_argument("--broken", type=float, default=0.1, help="share broken for a real fall")
    asked = parser.parse_args()
    board = read_leaderboard(asked.report)
    samples = asked.samples or board.suite.samples
    numbers = sum(len(quantities(entry)) for entry in board.models)
    print(f"{asked.report}: {len(board.models)} models, {numbers} numbers, {samples} samples a run")
    equal = sum(
        check(board, board, thresholds=limits).outcome is not Outcome.PASS
        for limits in (None, Thresholds(significance=asked.significance))
    )
    print(f"equal runs that fail: {equal} of 2")
    for broken in (0.0, asked.broken):
        what = f"falls found, {broken:.0%} of the samples broken" if broken else "false alarms"
        size, both = alarms(board, asked.repetitions, samples, asked.significance, broken)
        print(f"{what}, by size alone: {_rate(size, asked.repetitions)}")
        print(f"{what}, by size and significance: {_rate(both, asked.repetitions)}")


if __name__ == "__main__":
    main()
