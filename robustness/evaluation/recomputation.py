"""Units of a stored run, drawn at random and computed again by the code at hand.

A report that somebody committed is believed as far as it can be had again. All of it may take
hours; a few units, of which nobody knew beforehand which they would be, tell in minutes how much of
it can be otherwise.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from robustness.errors import Interruption, UsageError
from robustness.evaluation.backlog import Backlog
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.progress import CostModel, Forecast, Watch
from robustness.evaluation.runner import Crew
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Agreement, Store
from robustness.results.leaderboard import Proportion, Summary

# Images per task, so that workers take turns at few units.
_BATCH = 16


class Recomputation(Summary):
    """What came of computing units of a report again.

    Attributes:
        same: of the units drawn, those that gave the same rows, but for the last bits of numbers;
            the interval is that of the whole report's share.
        to_the_bit: how many of them gave the same bits, too.
        units: of the whole report.
        different: the others, in words.
        seed: that they were drawn with.
        seconds: of compute time.
        commit: of the checkout whose code computed them; None outside of one.
        report: SHA-256 of what the report says, times left out; empty where there was a store
            alone.
    """

    same: Proportion
    to_the_bit: int
    units: int = Field(ge=1)
    different: list[str]
    seed: int
    seconds: float
    commit: str | None
    report: str = ""

    @property
    def agrees(self) -> bool:
        """Whether nothing was found to be otherwise."""
        return not self.different


class _Stored(Schedule):
    """Units of which all that they start from is stored: none waits for another."""

    def before(self, job: Job) -> list[Job]:
        del job
        return []


def stored_units(plan: Plan, store: Store) -> list[tuple[Job, Unit]]:
    """All units of a plan that is made by the code at hand, each of them in the store.

    Raises:
        UsageError: the store lacks some: the report is of other code, weights or images.
    """
    schedule, done = Schedule(plan, store), store.done()
    found: list[tuple[Job, Unit]] = []
    for late in (False, True):  # what the second phase is follows from a whole first one
        units = [(j, unit) for j in plan.jobs if j.late is late for unit in schedule.units(j)]
        if lacking := [job for job, unit in units if unit.key not in done]:
            raise UsageError(
                f"{store.path}: expected the results of the code, weights and images at hand, got "
                f"none of {len(lacking)} units of {len(found) + len(units)}, the first of "
                f"{lacking[0]}; run `robustness evaluate` again, or the code of the commit that "
                "the report names"
            )
        found += units
    return found


def require_same_plan(stored: Plan, plan: Plan, path: Path) -> None:
    """Insist that a stored run is what the code at hand would plan.

    What a report shows is read by its stored plan, and units are drawn from that of now: a run that
    says of its models, images or jobs what is not so would be believed.

    Args:
        stored: of the run.
        plan: of the same suite, by the code, weights and images at hand.
        path: of the store, for the message.

    Raises:
        UsageError: they differ.
    """
    for what, then, now in (
        ("images", (stored.data_digest, stored.order, stored.samples), _images(plan)),
        ("models", _models(stored), _models(plan)),
        ("jobs", stored.jobs, plan.jobs),
    ):
        if then != now:
            raise UsageError(
                f"{path}: expected a run of the code, weights and images at hand, got one of other "
                f"{what}; run `robustness evaluate` again, or the code of the commit that the "
                "report names"
            )


def _images(plan: Plan) -> tuple[str, list[int], int]:
    return plan.data_digest, plan.order, plan.samples


def _models(plan: Plan) -> list[tuple[str, str, str]]:
    return [(model.name, model.identity, model.digest) for model in plan.models]


def draw(units: list[tuple[Job, Unit]], number: int, seed: int) -> list[tuple[Job, Unit]]:
    """So many units, each as likely as any other, in the order of the plan; all if there are fewer.

    Args:
        units: of which to draw.
        number: how many.
        seed: decides which.
    """
    chosen = random.Random(seed).sample(range(len(units)), min(number, len(units)))
    return [units[index] for index in sorted(chosen)]


def computed_again(
    crew: Crew, store: Store, drawn: list[tuple[Job, Unit]], quiet: bool
) -> Iterator[tuple[Job, Unit, Agreement, float]]:
    """Compute units that are stored.

    Args:
        crew: at work: it has planned.
        store: with their results, which stay as they are.
        drawn: the units.
        quiet: tell nothing of progress.

    Yields:
        Each unit, as it is done, how it agrees with what is stored of it, and its seconds.

    Raises:
        Interruption: Ctrl-C.
    """
    plan, costs = crew.plan, CostModel()
    for job, name, units, seconds in store.costs():
        costs.add(job, name, seconds, units)
    forecast = Forecast(costs, 2, crew.workers)
    forecast.expect(0, _named(plan, drawn))
    backlog = Backlog(_Stored(plan, store), drawn, _BATCH, lambda job: _seconds(plan, costs, job))
    with Watch(plan, forecast, quiet) as watch:
        watch.begin(0, drawn)
        try:
            for task, results in crew.run(backlog):
                for (job, unit), result in zip(task.work, results, strict=True):
                    watch.unit(job, unit, result.seconds)
                    yield job, unit, store.agreement(result, job), result.seconds
        except KeyboardInterrupt as stop:
            raise Interruption(watch.interruption(None)) from stop


def _named(plan: Plan, units: Iterable[tuple[Job, Unit]]) -> list[tuple[Job, str]]:
    return [(job, plan.models[job.model].name) for job, _ in units]


def _seconds(plan: Plan, costs: CostModel, job: Job) -> float | None:
    return costs.of_its_like(job, plan.models[job.model].name)


def recomputation(
    crew: Crew, store: Store, number: int, seed: int, commit: str | None, quiet: bool
) -> Recomputation:
    """Draw units of a run and compute them again.

    Args:
        crew: at work: it has planned what the store's last run was.
        store: with that run; it stays as it is.
        number: of units.
        seed: decides which.
        commit: of the code at hand.
        quiet: tell nothing of progress.

    Raises:
        UsageError: the store is of other code, weights or images.
        Interruption: Ctrl-C.
    """
    units = stored_units(crew.plan, store)
    drawn, different, total = draw(units, number, seed), list[str](), 0.0
    found = Counter[Agreement]()
    for _, unit, agreement, seconds in computed_again(crew, store, drawn, quiet):
        total += seconds
        found[agreement] += 1
        if agreement is Agreement.OTHER:
            different.append(f"{store.named(unit.key)}, images from {unit.indices[0]} on")
    return Recomputation(
        same=Proportion.of(len(drawn) - len(different), len(drawn)),
        to_the_bit=found[Agreement.SAME],
        units=len(units),
        different=sorted(different),
        seed=seed,
        seconds=round(total, 1),
        commit=commit,
    )
