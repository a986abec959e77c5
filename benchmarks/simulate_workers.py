"""How long a large run takes on 1 to 4,096 workers, simulated from the unit times of a small one.

    python benchmarks/simulate_workers.py STORE [--images 10000] [--models 50] [--board FILE]

STORE is `results.sqlite` of a complete run. Each of its units stands for those of a larger run on
as many images: its seconds an image times the images of a full unit, the recorded units taken in
turn. Its models stand for a zoo, in turn too. Tasks, phases and the order of tasks are those of the
runner; a free worker takes the next task. The parent is measured: how long it takes to find a unit
missing and to store it, in this process, from the units of the store.
"""

import argparse
import heapq
import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from robustness.evaluation.jobs import KINDS, Result
from robustness.evaluation.jobs.worst_case import SHARDS_AT_ONCE
from robustness.evaluation.plan import SHARD_SIZE, Job
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.results.leaderboard import WORST_CASE, Leaderboard, read_leaderboard

WORKERS = [2**power for power in range(13)]
BATCH_SIZE = 64
# Of each model, whatever the number of images: checks and audits.
FEW = ("flags", "audit")
# Units of the audit of a model, in a board.
AUDITS = 8


@dataclass(frozen=True)
class Task:
    """What a worker does in one go.

    Attributes:
        seconds: that it takes.
        units: that the parent stores of it.
        dear: whether it is among those begun first.
        what: kind of its job.
    """

    seconds: float
    units: int = 1
    dear: bool = False
    what: str = ""


@dataclass(frozen=True)
class Outcome:
    """A run on so many workers.

    Attributes:
        workers: how many.
        seconds: that it takes.
        efficiency: share of the workers' time that is work.
        limit: what would have to give for more workers to help.
    """

    workers: int
    seconds: float
    efficiency: float
    limit: str


def simulate(phases: Sequence[Sequence[Task]], workers: int, parent: float) -> Outcome:
    """A run whose phases follow each other, each in the order of its tasks, the dear first.

    Args:
        phases: tasks of each.
        workers: how many.
        parent: seconds that the parent takes for one unit; it has the next tasks sent ahead, so
            that it delays a run only where all its work takes longer than all of theirs.
    """
    wall, limits = 0.0, dict.fromkeys(("workers", "the longest task", "the parent"), 0.0)
    for tasks in phases:
        free, longest = [0.0] * min(workers, max(1, len(tasks))), Task(0.0)
        for task in sorted(tasks, key=lambda task: not task.dear):
            heapq.heappush(free, heapq.heappop(free) + task.seconds)
            longest = max(longest, task, key=lambda task: task.seconds)
        bounds = {
            "workers": sum(task.seconds for task in tasks) / workers,
            "the longest task": longest.seconds,
            "the parent": parent * sum(task.units for task in tasks),
        }
        for name, bound in bounds.items():
            limits[name] += bound
        wall += max(*free, bounds["the parent"])
    work = sum(task.seconds for tasks in phases for task in tasks)
    limit = max(limits, key=lambda name: limits[name])
    return Outcome(workers, wall, work / (wall * workers) if wall else 1.0, limit)


def knee(outcomes: Iterable[Outcome]) -> Outcome:
    """The most workers of which at least half the time is work."""
    return max((o for o in outcomes if o.efficiency >= 0.5), key=lambda o: o.workers)


def phases_of(store: Store, images: int, models: int, speed: float = 1.0) -> list[list[Task]]:
    """The tasks of both phases of a larger run than the stored one.

    Args:
        store: of a complete run.
        images: of the larger one.
        models: of it.
        speed: what the recorded seconds are divided by.
    """
    plan = store.last_run().plan
    schedule = Schedule(plan, store)
    phases: list[list[Task]] = [[], []]
    shards = -(-images // SHARD_SIZE)
    for model in islice(cycle(range(len(plan.models))), models):
        shared = (0.0, 0)
        for job in plan.jobs:
            units = schedule.units(job) if job.model == model else []
            if not units:
                continue
            kind = KINDS[job.kind]
            each = [store.seconds([u.key]) / len(u.indices) / speed for u in units]
            if job.kind in FEW:
                costs = [cost * len(u.indices) for cost, u in zip(each, units, strict=True)]
            else:
                size = SHARD_SIZE * (SHARDS_AT_ONCE if kind.local else 1)
                costs = [size * cost for cost in islice(cycle(each), -(-images // size))]
            if kind.shared:  # one task for all of a shard
                shared = (shared[0] + sum(costs), shared[1] + 1)
                continue
            width = 1 if kind.alone or kind.local else BATCH_SIZE // SHARD_SIZE
            for first in range(0, len(costs), width):
                part = costs[first : first + width]
                dear = kind.is_dear(job)
                phases[job.late].append(Task(sum(part), len(part), dear, job.kind))
        if shared[1]:
            width = BATCH_SIZE // SHARD_SIZE
            count = -(-shards // width)
            one = Task(shared[0] / count, width * shared[1], what="clean and certificate")
            phases[0] += [one] * count
    return phases


def phases_of_board(board: Leaderboard, images: int, models: int) -> list[list[Task]]:
    """The tasks of both phases of a larger run than one of which only the summary is left.

    All units of a kind take the same time then, and what attacks took is all taken for the worst
    case's, whose units are the largest: tasks are as coarse as they can have been.
    """
    seconds: dict[str, float] = {}
    for name, spent in board.timings.items():
        if name.startswith(prefix := "compute seconds, "):
            kind = name.removeprefix(prefix)
            kind = "worst-case" if kind == "attack" else kind
            seconds[kind] = seconds.get(kind, 0.0) + spent
    phases: list[list[Task]] = [[], []]
    of_board = len(board.models)
    for kind, spent in seconds.items():
        late = kind in ("worst-case", "audit")
        if kind in FEW:
            count, each = AUDITS if kind == "audit" else 1, spent / of_board
            each /= count
        else:
            size = SHARD_SIZE * SHARDS_AT_ONCE if kind == "worst-case" else BATCH_SIZE
            threats = sum(row.attack == WORST_CASE for row in board.models[0].attacks)
            cuts = max(1, threats) if kind == "worst-case" else 1
            each = spent / of_board / board.suite.samples * size / cuts
            count = cuts * -(-images // size)
        units = 2 * _small_units(board) // of_board if kind == "clean" else 1
        phases[late] += [Task(each, units, kind in ("worst-case", "flags"), kind)] * (
            count * models
        )
    return phases


def _small_units(board: Leaderboard) -> int:
    """Units of a shard under all models: attacks but for the worst case, certificates, three."""
    return sum(
        3
        + sum(row.attack != WORST_CASE for row in model.attacks)
        + sum(row.refusal is None for row in model.certificates)
        for model in board.models
    )


def parent_seconds(store: Store, least: float = 1.0) -> float:
    """Processor seconds of the parent for one unit: to find it missing, and to store its rows."""
    plan = store.last_run().plan
    schedule = Schedule(plan, store)
    done = [(job, unit) for job in plan.jobs for unit in schedule.units(job)]
    results: list[tuple[Job, Result]] = [
        (job, Result(unit.key, job.kind, store.rows(job, [unit.key]), 0.0)) for job, unit in done
    ]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "results.sqlite") as copy:
        started, count = time.process_time(), 0
        while (spent := time.process_time() - started) < least:
            Schedule(plan, store).missing(plan.jobs)
            for job, result in results:
                copy.add(result, job, plan.models[job.model].name)
            count += len(results)
    return spent / count


def sizes(file: Path, store: Store) -> dict[str, float]:
    """Bytes and rows of a store, for each image of each model."""
    plan = store.last_run().plan
    schedule = Schedule(plan, store)
    pairs = plan.samples * len(plan.models)
    rows = sum(len(schedule.rows(job)) for job in plan.jobs)
    return {"bytes": file.stat().st_size / pairs, "rows": rows / pairs}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--speed", type=float, default=1.0, help="divides the recorded seconds")
    parser.add_argument("--board", type=Path, help="leaderboard to take the seconds from instead")
    asked = parser.parse_args()
    with Store(asked.store, must_exist=True) as store:
        parent = parent_seconds(store)
        phases = (
            phases_of(store, asked.images, asked.models, asked.speed)
            if asked.board is None
            else phases_of_board(read_leaderboard(asked.board), asked.images, asked.models)
        )
        per = sizes(asked.store, store)
    tasks = [task for tasks in phases for task in tasks]
    print(f"{len(tasks):,} tasks of {sum(t.units for t in tasks):,} units, ", end="")
    print(f"{sum(t.seconds for t in tasks) / 3600:,.1f} hours of one worker")
    print(f"parent: {1 / parent:,.0f} units a second; a model's image: ", end="")
    print(", ".join(f"{value:,.1f} {name}" for name, value in per.items()))
    longest = max(tasks, key=lambda task: task.seconds)
    print(f"longest task: {longest.seconds:,.1f} s, {longest.what}")
    outcomes = [simulate(phases, workers, parent) for workers in WORKERS]
    print("\n| workers | hours | busy | limit |\n| ---: | ---: | ---: | --- |")
    for o in outcomes:
        print(f"| {o.workers:,} | {o.seconds / 3600:,.3f} | {o.efficiency:.0%} | {o.limit} |")
    print(f"\nknee: {json.dumps(vars(knee(outcomes)))}")


if __name__ == "__main__":
    main()
