"""Stores that were filled apart, united: what does not belong together is refused before."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustness.errors import UsageError, quoted
from robustness.evaluation.jobs import Result
from robustness.evaluation.plan import Job, Plan
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Run, Store


def merge_stores(stores: Sequence[Store], place: Callable[[], Path]) -> None:
    """Unite what several stores hold of one plan.

    Every unit and the note of every run is taken over; that of the whole is added as the last.

    Args:
        stores: whole as files.
        place: gives the file of the store to make, where nothing is yet; asked once all is known to
            be in order.

    Raises:
        UsageError: the stores are not of one plan and one environment, contradict each other, or
            are not all of it; nothing is made.
        OperationalError: the disk failed.
    """
    began, started = time.perf_counter(), time.time()
    runs = [store.last_start() for store in stores]
    for store, run in zip(stores[1:], runs[1:], strict=True):
        if difference := _difference(runs[0], run):
            raise UsageError(
                f"expected results of one run, got {difference} in {stores[0].path} and "
                f"{store.path}; merge what belongs together"
            )
    _require_same_logits(stores)
    _require_agreement(stores)
    plan = replace(runs[0].plan, share=None)
    _require_all(plan, stores, runs)
    wall = time.perf_counter() - began
    Store.unite(place(), stores, Run(plan, runs[0].environment, wall), started)


def _difference(first: Run, other: Run) -> str | None:
    """What keeps two runs from being of one, in words; None for nothing."""
    a, b = first.plan, other.plan
    ours, theirs = a.suite.model_dump(mode="json"), b.suite.model_dump(mode="json")
    for name, value in ours.items():
        if value != theirs[name]:
            return f"another {name} of the suite, {quoted(value)} and {quoted(theirs[name])},"
    if (a.data_digest, a.order) != (b.data_digest, b.order):
        return f"other images, of SHA-256 {a.data_digest[:12]} and {b.data_digest[:12]},"
    for model, seen in zip(a.models, b.models, strict=True):
        if (model.identity, model.fingerprint) != (seen.identity, seen.fingerprint):
            same = model.digest == seen.digest and model.fingerprint != seen.fingerprint
            what = "other logits" if same else "other weights or code"
            return f"another {model.name}, of {what},"
    for name in sorted(first.environment.keys() | other.environment.keys()):
        versions = [run.environment.get(name, "none") for run in (first, other)]
        if versions[0] != versions[1]:
            return f"another {name}, {' and '.join(v[:24] for v in versions)},"
    job = next((job for job in a.jobs if job not in b.jobs), None)
    return None if job is None and len(a.jobs) == len(b.jobs) else f"another plan, of {job},"


def _require_same_logits(stores: Sequence[Store]) -> None:
    """Insist that every start of every store computed with the same arithmetic.

    A share that was continued on a processor of another kind holds what both of them computed.
    """
    seen: dict[tuple[str, str], tuple[str, Path]] = {}
    for store in stores:
        for name, identity, logits in store.fingerprints():
            known, path = seen.setdefault((name, identity), (logits, store.path))
            if known != logits:
                raise UsageError(
                    f"expected results of one arithmetic, got starts with other logits of {name} "
                    f"in {path} and {store.path}; compute the shares of the other processor again"
                )


def _require_agreement(stores: Sequence[Store]) -> None:
    """Insist that a unit that is in several stores is the same in all."""
    homes: dict[str, Store] = {}
    for store in stores:
        for key in sorted(store.done()):
            home = homes.setdefault(key, store)
            if home is not store and home.digest(key) != store.digest(key):
                raise UsageError(
                    f"expected the same rows of one unit, got others in {home.path} and "
                    f"{store.path} ({store.named(key)}); find out which of them is right"
                )


def _require_all(plan: Plan, stores: Sequence[Store], runs: Sequence[Run]) -> None:
    """Insist that every unit of a plan is in one of the stores."""
    schedule, lacking = Schedule(plan, _Together(stores)), 0
    for late in (False, True):  # what the second phase is follows from a whole first one
        lacking = lacking or len(schedule.missing(j for j in plan.jobs if j.late is late))
    if not lacking:
        return
    shares = {run.plan.share for run in runs if run.plan.share is not None}
    counts = {count for _, count in shares}
    absent = [n for n in range(1, max(counts, default=0) + 1) if (n, max(counts)) not in shares]
    if len(counts) == 1 and absent:
        got = f"no share {absent[0]} of {max(counts)}" + (
            f", and {len(absent) - 1} more are not there" if len(absent) > 1 else ""
        )
        raise UsageError(f"expected all shares of {plan.suite.name}, got {got}; add it")
    unfinished = next((s.path for s, run in zip(stores, runs, strict=True) if not run.ended), None)
    where = f"; the run of {unfinished} did not end: run it again" if unfinished else ""
    raise UsageError(
        f"expected all results of {plan.suite.name}, got {lacking} units less"
        f"{where or '; add the stores that have them'}"
    )


class _Together:
    """Several stores, read as if they were one; see `Kept`."""

    def __init__(self, stores: Sequence[Store]) -> None:
        self._home = {key: store for store in reversed(stores) for key in store.done()}

    def done(self) -> set[str]:
        return set(self._home)

    def add(self, result: Result, job: Job, model: str) -> None:
        raise NotImplementedError("what several stores hold is only read")

    def rows(self, job: Job, keys: Iterable[str]) -> list[Any]:
        return [row for key in keys for row in self._home[key].rows(job, [key])]

    def seconds(self, keys: Iterable[str]) -> float:
        return sum(self._home[key].seconds([key]) for key in keys)
