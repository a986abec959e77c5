"""What is shared by the radii of a norm, by plain attacks and by lanes, in processor time.

    python benchmarks/shared_work.py digits/resnet Linf 0.05 0.1 0.2 [--samples 32] [--effort quick]

The worst case on some images at several radii, on one thread: with all that is shared, and with
every radius by itself in lanes alone. Printed are the ratio of processor times, and how many images
the one leaves standing that the other does not. FGSM, PGD of 20 steps, certificates and the search
for the nearest image come before, and are in neither time.
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from robustness.attacks import Status, lanes
from robustness.evaluation.executors.processes import Limits
from robustness.evaluation.jobs import KINDS, Result
from robustness.evaluation.kept import InMemory
from robustness.evaluation.plan import Job, Plan
from robustness.evaluation.runner import Crew, run_plan
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import WORST_CASE


def run(model: str, norm: str, eps: list[str], samples: int, effort: str, data_dir: Path) -> None:
    """Print the ratio of processor times with and without what is shared."""
    suite = Suite.model_validate(
        {
            "name": "shared-work",
            "data": model.split("/")[0],
            "samples": samples,
            "models": [model],
            "decay": False,
            "flow": False,
            "certificates": "all",
            "threats": [{"norm": norm, "eps": eps}],
            "nearest": {},
            "attacks": [
                {"kind": "fgsm"},
                {"kind": "pgd", "steps": 20},
                {"kind": WORST_CASE, "effort": effort},
            ],
        }
    )
    with Crew(suite, 1, data_dir, Limits()) as crew:
        plan, early = crew.plan, Timed()
        crew.plan = replace(plan, jobs=[job for job in plan.jobs if not job.late])
        run_plan(crew, early, 64, quiet=True)
        jobs = [job for job in plan.jobs if not job.late or job.kind == WORST_CASE]
        crew.plan = replace(plan, jobs=jobs)
        shared, alone = Timed(early), Timed(early)
        run_plan(crew, shared, 64, quiet=True)
        found = standing(crew.plan, shared)
        with by_itself():
            run_plan(crew, alone, 64, quiet=True)
            expected = standing(crew.plan, alone)
    for threat, images in expected.items():
        more, less = len(found[threat] - images), len(images - found[threat])
        print(f"{model} {threat}: {len(images)} stand alone; shared {more} more and {less} less")
    print(f"processor time shared / alone: {shared.spent / alone.spent:.3f}")


class Timed(InMemory):
    """Results, and the processor time of those of the worst case."""

    def __init__(self, before: "Timed | None" = None) -> None:
        super().__init__()
        self.results |= {} if before is None else before.results
        self.spent, self._since = 0.0, time.process_time()

    def done(self) -> set[str]:
        """Units that are done; the clock starts when it is asked for, before the first."""
        if not self.spent:
            self._since = time.process_time()
        return super().done()

    def add(self, result: Result, job: Job, model: str) -> None:
        """Keep one unit."""
        if job.kind == WORST_CASE:
            self.spent += time.process_time() - self._since
        super().add(result, job, model)
        self._since = time.process_time()


def standing(plan: Plan, kept: InMemory) -> dict[str, set[int]]:
    """The images that no search broke, at each threat."""
    schedule = Schedule(plan, kept)
    return {
        str(job.threat): {r.sample for r in schedule.rows(job) if r.status is Status.ROBUST}
        for job in plan.jobs
        if job.kind == WORST_CASE
    }


@contextmanager
def by_itself() -> Iterator[None]:
    """Every radius by itself, in lanes alone."""

    def nothing(*_: Any) -> list[Job]:
        return []

    def untried(_: torch.nn.Module) -> None:
        return None

    with (
        patch.object(type(KINDS[WORST_CASE]), "starts_from", nothing),
        patch.object(lanes, "_tried", untried),
    ):
        yield


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("norm")
    parser.add_argument("eps", nargs="+")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    run(given.model, given.norm, given.eps, given.samples, given.effort, given.data_dir)


if __name__ == "__main__":
    main()
