"""What a phase has still to do: tasks that can be begun, dearest first, and what waits for them.

A unit that starts from what other units of the phase find (the worst case, from smaller radii)
waits for these alone, and is begun when the last of them is kept: a phase has no other order. So a
worker is never idle but for want of a unit that can be begun.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from robustness.evaluation.jobs import KINDS
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.schedule import Schedule

# Seconds for which an order serves: units may be quick, and there may be many jobs.
_FRESH = 1.0

# A unit by its job and its first image.
Place = tuple[Job, int]


@dataclass(frozen=True)
class Task:
    """Some units of some jobs of one model, done by one worker in one go."""

    work: list[tuple[Job, Unit]]


@dataclass
class _Waiting:
    """A unit that cannot be begun, and for which others it waits."""

    job: Job
    unit: Unit
    ahead: set[Place] = field(default_factory=set)


class Backlog:
    """The tasks of a phase that are not begun.

    Args:
        schedule: of the run.
        work: the units of the phase that are missing.
        batch_size: images per task, in whole units.
        seconds: what a unit of a job is expected to take, as far as it was measured; None for a
            kind of which nothing was.
        clock: seconds that pass.
    """

    def __init__(
        self,
        schedule: Schedule,
        work: Sequence[tuple[Job, Unit]],
        batch_size: int,
        seconds: Callable[[Job], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._schedule, self._seconds, self._clock = schedule, seconds, clock
        self._behind: dict[Place, list[_Waiting]] = {}
        self._followers: dict[Job, set[Job]] = {}
        self._waiting = 0
        ready = self._held_back(work)
        # Tasks of the same jobs cost the same, and stay in their order.
        self._groups: dict[tuple[Job, ...], deque[Task]] = {}
        self._order: list[tuple[Job, ...]] = []
        self._ordered: float | None = None
        for task in tasks_of(ready, batch_size):
            self._put(task)

    def __len__(self) -> int:
        """How many tasks can be begun, and units wait."""
        return sum(map(len, self._groups.values())) + self._waiting

    def __iter__(self) -> Iterator[Task]:
        """The tasks that can be begun now."""
        for group in self._ranked():
            yield from self._groups[group]

    def take(self) -> Task | None:
        """The dearest task that can be begun; None where there is none."""
        for group in self._ranked():
            if self._groups[group]:
                return self._groups[group].popleft()
        return None

    def put_back(self, task: Task) -> None:
        """Take back one that was not begun after all."""
        self._put(task, first=True)

    def note(self, job: Job, unit: Unit) -> list[Job]:
        """Take note that a unit is kept, so that those which waited for it can be begun.

        Returns:
            The jobs of units that need not be done: a result of what they have become is kept.
        """
        spared, place = [], (job, unit.indices[0])
        for waiting in self._behind.pop(place, []):
            waiting.ahead.discard(place)
            if waiting.ahead:
                continue
            self._waiting -= 1
            given = self._schedule.given(waiting.job, waiting.unit)
            if given.key in self._schedule.kept.done():
                spared += [waiting.job, *self.note(waiting.job, given)]
            else:
                self._put(Task([(waiting.job, given)]))
        return spared

    def _held_back(self, work: Sequence[tuple[Job, Unit]]) -> list[tuple[Job, Unit]]:
        """Note which units wait for which; the others."""
        places: dict[Job, dict[int, Place]] = {}
        for job, unit in work:
            named = places.setdefault(job, {})
            named |= dict.fromkeys(unit.indices, (job, unit.indices[0]))
        before = {job: [j for j in self._schedule.before(job) if j in places] for job in places}
        ready = []
        for job, unit in work:
            waiting = _Waiting(job, unit)
            for source in before[job]:
                found = places[source]
                waiting.ahead |= {found[image] for image in unit.indices if image in found}
                self._followers.setdefault(source, set()).add(job)
            for place in waiting.ahead:
                self._behind.setdefault(place, []).append(waiting)
            if waiting.ahead:
                self._waiting += 1
            else:
                ready.append((job, unit))
        return ready

    def _put(self, task: Task, first: bool = False) -> None:
        group = tuple(dict.fromkeys(job for job, _ in task.work))
        if group not in self._groups:
            self._groups[group], self._ordered = deque(), None
        tasks = self._groups[group]
        tasks.appendleft(task) if first else tasks.append(task)

    def _ranked(self) -> list[tuple[Job, ...]]:
        """The groups of tasks, the dearest first by what is known of their costs by now."""
        now = self._clock()
        if self._ordered is None or now - self._ordered >= _FRESH:
            self._groups = {group: tasks for group, tasks in self._groups.items() if tasks}
            self._order = sorted(self._groups, key=self._cost, reverse=True)
            self._ordered = now
        return self._order

    def _cost(self, group: tuple[Job, ...]) -> tuple[int, float]:
        """Of a task and what waits for it, one after the other: how many unknown, and seconds.

        Unknown are units of a dear kind that was not measured on the model.
        """
        task = self._groups[group][0]
        follow = (one for job in group for one in self._followers.get(job, ()))
        seconds = [self._expected(job) for job in (*(job for job, _ in task.work), *follow)]
        known = [each for each in seconds if math.isfinite(each)]
        return len(seconds) - len(known), math.fsum(known)

    def _expected(self, job: Job) -> float:
        """Seconds of a unit; infinite of a dear kind of which nothing was measured."""
        seconds = self._seconds(job)
        if seconds is None:
            return math.inf if KINDS[job.kind].is_dear(job) else 0.0
        return seconds


def tasks_of(units: Iterable[tuple[Job, Unit]], batch_size: int) -> list[Task]:
    """Tasks of about `batch_size` images each.

    Predictions and all certificates of one shard go into one task, since they share their
    costliest parts. Audits are few and dear: each of their units is a task.
    """
    blocks: dict[tuple[object, tuple[int, ...]], list[tuple[Job, Unit]]] = {}
    for job, unit in units:
        group = job.model if KINDS[job.kind].shared else job
        blocks.setdefault((group, tuple(unit.indices)), []).append((job, unit))
    tasks = []
    for _, members in groupby(blocks.items(), key=lambda item: item[0][0]):
        same = list(members)
        alone = KINDS[same[0][1][0][0].kind].alone
        width = 1 if alone else max(1, batch_size // len(same[0][0][1]))
        for first in range(0, len(same), width):
            chunk = [pair for _, block in same[first : first + width] for pair in block]
            tasks.append(Task(chunk))
    return tasks
