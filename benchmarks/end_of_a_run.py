"""How long the second phase of a stored run takes with and without its long units cut, simulated.

    python benchmarks/end_of_a_run.py REPORT [--workers 2 4 8 16] [--parts 2] [--share 0.5]

REPORT is a folder with a store, packed or not. Its units take the seconds that they took, and are
begun in the order of the runner's own backlog, by the costs measured until then, each when what it
waits for is done. Cut means that a unit of the worst case is done in parts by several workers where
fewer tasks can be begun than workers are free; each part takes a share of the unit's seconds. The
bound is the best that any order could reach: all seconds over all workers.
"""

import argparse
import heapq
from dataclasses import dataclass, field
from pathlib import Path

from robustness.evaluation.backlog import Backlog, Task
from robustness.evaluation.jobs import KINDS
from robustness.evaluation.kept import InMemory
from robustness.evaluation.packing import store_of
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.progress import CostModel
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.results.leaderboard import WORST_CASE

BATCH_SIZE = 64


@dataclass(frozen=True)
class Recorded:
    """The second phase of a complete run.

    Attributes:
        plan: of the run.
        units: by job and first image.
        took: the seconds of each unit, by its key.
    """

    plan: Plan
    units: dict[tuple[Job, int], Unit]
    took: dict[str, float]

    @classmethod
    def of(cls, store: Store) -> "Recorded":
        """Of the last complete run of a store."""
        plan = store.last_run().plan
        schedule = Schedule(plan, store)
        late = [job for job in plan.jobs if job.late]
        units = {(job, unit.indices[0]): unit for job in late for unit in schedule.units(job)}
        return cls(plan, units, {u.key: store.seconds([u.key]) for u in units.values()})


class Revealed(Schedule):
    """The schedule of a stored run, whose units are done one after the other once more."""

    def __init__(self, run: Recorded) -> None:
        super().__init__(run.plan, Done())
        self.stored = run.units
        self.work = [(job, unit) for (job, _), unit in self.stored.items()]

    def given(self, job: Job, unit: Unit) -> Unit:
        """What a unit was once all that it starts from was done."""
        return self.stored[job, unit.indices[0]]


class Done(InMemory):
    """The keys of units that are done; no results."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[str] = set()

    def done(self) -> set[str]:
        """Keys of all units that are done."""
        return self.keys


@dataclass
class Running:
    """A task that is done in parts.

    Attributes:
        task: what is done.
        left: parts that are not done.
    """

    task: Task
    left: int


@dataclass(order=True)
class End:
    """The end of a part at a time."""

    time: float
    number: int
    running: Running = field(compare=False)


def simulate(
    run: Recorded, workers: int, parts: int = 1, share: float = 1.0
) -> tuple[float, float]:
    """Seconds of the second phase on so many workers, and the work that is done in them.

    Args:
        run: that is done once more.
        workers: how many.
        parts: that a unit of the worst case is cut into where workers would be idle.
        share: of a unit's seconds that each part takes.
    """
    plan, took, costs = run.plan, run.took, CostModel()
    schedule = Revealed(run)
    now, work, number = 0.0, 0.0, 0

    def measured(job: Job) -> float | None:
        dear = KINDS[job.kind].is_dear(job)
        return costs.of_its_like(job, plan.models[job.model].name, dear)

    backlog = Backlog(schedule, schedule.work, BATCH_SIZE, measured, lambda: now)
    free, ends = workers, list[End]()
    while len(backlog) or ends:
        while free and (task := backlog.take()) is not None:
            seconds = sum(took[unit.key] for _, unit in task.work)
            alone = len(task.work) == 1 and task.work[0][0].kind == WORST_CASE
            # Others that can be begun would be done by the workers that are free.
            others = sum(1 for _ in backlog)
            cut = parts if alone and free >= parts + others else 1
            part = seconds if cut == 1 else seconds * share
            running = Running(task, cut)
            for _ in range(cut):
                number += 1
                heapq.heappush(ends, End(now + part, number, running))
            work, free = work + cut * part, free - cut
        end = heapq.heappop(ends)
        now, free = end.time, free + 1
        end.running.left -= 1
        if not end.running.left:
            for job, unit in end.running.task.work:
                costs.add(job, plan.models[job.model].name, took[unit.key])
                schedule.kept.done().add(unit.key)
                backlog.note(job, unit)
    return now, work


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("report", type=Path)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.5)
    asked = parser.parse_args()
    with store_of(asked.report) as file, Store(file, must_exist=True) as store:
        print("| workers | seconds | cut | over the bound | cut | work added |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |")
        run = Recorded.of(store)
        for workers in asked.workers:
            plain, done = simulate(run, workers)
            cut, work = simulate(run, workers, asked.parts, asked.share)
            bound = done / workers
            print(
                f"| {workers} | {plain:,.0f} | {cut:,.0f} | {plain / bound - 1:.1%} | "
                f"{cut / bound - 1:.1%} | {work / done - 1:.1%} |"
            )


if __name__ == "__main__":
    main()
