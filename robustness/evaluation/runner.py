"""Runs a plan's missing units, here or in worker processes, and stores them as they come.

First all jobs that depend on nothing but their images, then those that start from certified radii.

Every process computes with one thread: the number of threads changes the order of sums and so
the last bits of a result. Workers never touch the store.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustness.certificates import Certificate
from robustness.certificates.sharing import shared_work
from robustness.data import ImageSet, load_images
from robustness.errors import OperationalError, UsageError
from robustness.evaluation.jobs.work import Bench, ShardResult, failed_unit, run_unit
from robustness.evaluation.plan import Job, Plan, Unit, attack_of, others
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.identity import Structure, answers, fingerprint
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.results.leaderboard import WORST_CASE
from robustness.terminal import progress_bar
from robustness.zoo import LoadedModel, load_model

# Jobs whose units take longest.
_DEAR = ("autoattack", WORST_CASE, "flags", "nearest", "deepfool", "cw", "fab", "square")

_PATIENCE_SECONDS, _PATIENCE = 3600.0, 50.0


@dataclass(frozen=True)
class Task:
    """Some units of some jobs of one model, done by one worker in one go."""

    work: list[tuple[Job, Unit]]


@dataclass(frozen=True)
class Workbench:
    """What units are computed with; one per process."""

    plan: Plan
    images: ImageSet
    models: list[LoadedModel]

    def run(self, task: Task) -> list[ShardResult]:
        """Compute some units; what certificates of the same images share is computed once."""
        results: list[ShardResult] = []
        for indices, work in groupby(task.work, key=lambda pair: pair[1].indices):
            chosen = torch.tensor(indices)
            images, labels = self.images.images[chosen], self.images.labels[chosen]
            with shared_work() as ledger:
                for job, unit in work:
                    bench, saved = self._bench(job), ledger.saved
                    try:
                        result = run_unit(unit, job, bench, images, labels)
                    except KeyboardInterrupt:
                        raise
                    except BaseException as error:  # SystemExit too: it is a user's code that runs
                        if self.models[job.model].recipe is not None:
                            raise
                        result = failed_unit(unit, job, error, images, labels)
                    # What a job takes when it is run alone, whichever of them came first.
                    alone = result.seconds + ledger.saved - saved
                    results.append(replace(result, seconds=alone))
        for index in {job.model for job, _ in task.work}:
            self._require_unchanged(index)
        return results

    def identities(self) -> list[tuple[Structure, str | None]]:
        """What the models here are made of, and what they compute."""
        return [(m.structure, fingerprint(m.module, self.images.shape)) for m in self.models]

    def _require_unchanged(self, index: int) -> None:
        """Insist that a model still computes what it did when the run was planned.

        Raises:
            UsageError: it does not, so that nobody knows what the results at hand are of.
        """
        planned, module = self.plan.models[index], self.models[index].module
        known, shape = planned.fingerprint, self.images.shape
        # One that fails by now gives no other logits; its samples are errors.
        if known not in (None, fingerprint(module, shape)) and answers(module, shape):
            raise UsageError(
                f"expected {planned.name} to stay the same function, got other logits of the same "
                "images later in the run; the results at hand were not stored: let its logits "
                "depend on the image alone"
            )

    @cached_property
    def _certificates(self) -> list[dict[str, Certificate]]:
        """By name for each model: the same objects for all jobs, whose work they may share."""
        return [self.plan.suite.build_certificates(model.name) for model in self.models]

    def _bench(self, job: Job) -> Bench:
        model = self.models[job.model]
        attack = attack_of(self.plan.suite, job) if job.kind == "attack" else None
        certificate = None
        if job.kind == "certificate":
            certificate = self._certificates[job.model][job.name]
        return Bench(model.module, attack, certificate, others(self.models, model))


def run_plan(
    plan: Plan,
    store: Store,
    bench: Workbench,
    workers: int,
    batch_size: int,
    data_dir: Path | None,
    quiet: bool,
    unit_timeout: float | None = None,
) -> int:
    """Compute every unit of `plan` that `store` lacks, in the plan's two phases.

    Args:
        plan: what to do.
        store: where results are read and kept.
        bench: models and images of this process, used when `workers` is 1.
        workers: number of processes.
        batch_size: images per task handed to a worker, in whole units; changes no result.
        data_dir: folder with the official image files, for the workers to read again.
        quiet: no progress bar.
        unit_timeout: seconds that a worker may take for one unit; by default an hour, or fifty
            times the slowest unit so far if that is longer.

    Returns:
        The number of units computed.

    Raises:
        OperationalError: a worker died twice, or was too slow twice, at work on a zoo model.
    """
    schedule, computed = Schedule(plan, store), 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with (
        progress_bar(columns, quiet) as progress,
        _Crew(bench, workers, data_dir, unit_timeout) as crew,
    ):
        for late, what in ((False, "shards"), (True, "shards and audited images")):
            jobs = [job for job in plan.jobs if job.needs_radii is late]
            tasks = _tasks(schedule.missing(jobs), batch_size)
            if not tasks:
                continue
            total = sum(len(task.work) for task in tasks)
            bar = progress.add_task(f"{plan.suite.name}: {what}", total=total)
            for task, results in crew.run(tasks):
                for (job, _), result in zip(task.work, results, strict=True):
                    store.add(result, job, plan.models[job.model].name)
                progress.advance(bar, len(results))
            computed += total
    return computed


def _tasks(units: list[tuple[Job, Unit]], batch_size: int) -> list[Task]:
    """Tasks of about `batch_size` images each, the dearest first.

    Predictions and all certificates of one shard go into one task, since they share their
    costliest parts. Audits are few and dear: each of their units is a task.
    """
    blocks: dict[tuple[object, tuple[int, ...]], list[tuple[Job, Unit]]] = {}
    for job, unit in units:
        shared = job.kind in ("clean", "certificate")
        group = ("certificates", job.model) if shared else job
        blocks.setdefault((group, tuple(unit.indices)), []).append((job, unit))
    tasks = []
    for _, members in groupby(blocks.items(), key=lambda item: item[0][0]):
        same = list(members)
        audits = same[0][1][0][0].kind == "audit"
        width = 1 if audits else max(1, batch_size // len(same[0][0][1]))
        for first in range(0, len(same), width):
            chunk = [pair for _, block in same[first : first + width] for pair in block]
            tasks.append(Task(chunk))
    # No worker shall be left alone with the dearest work at the end.
    return sorted(tasks, key=lambda task: task.work[0][0].name not in _DEAR)


class _Crew:
    """Does tasks in this process or in worker processes, which are started once, when needed."""

    def __init__(
        self, bench: Workbench, workers: int, data_dir: Path | None, unit_timeout: float | None
    ) -> None:
        self.bench, self.workers, self.data_dir = bench, workers, data_dir
        self.unit_timeout = unit_timeout
        self._pool: ProcessPoolExecutor | None = None
        self._slowest = 0.0

    def __enter__(self) -> "_Crew":
        return self

    def __exit__(self, *details: object) -> None:
        # On an interruption, units in flight are given up rather than waited for.
        self._stop()

    def run(self, tasks: list[Task]) -> Iterator[tuple[Task, list[ShardResult]]]:
        """Do the tasks and give each back with its results, in the order they are done."""
        if self._pool is None and (self.workers == 1 or len(tasks) <= 1):
            with reproducible_arithmetic():
                for task in tasks:
                    yield task, self.bench.run(task)
            return
        waiting = deque(tasks)
        pending: dict[Future[list[ShardResult]], Task] = {}
        while waiting or pending:
            try:
                pool = self._started()
                # No more than are at work: if a process dies, one of these was its task.
                while waiting and len(pending) < self.workers:
                    pending[pool.submit(_run_in_worker, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in self._finished(pending):
                    results = future.result()
                    self._slowest = max(self._slowest, *(r.seconds for r in results))
                    yield pending.pop(future), results
            except BrokenProcessPool:
                suspects = list(pending.values())
                pending.clear()
                if not suspects:
                    raise OperationalError(
                        "expected the worker processes to live, got one that died without work "
                        "(out of memory?); run the same command again with fewer --workers"
                    ) from None
                for task in suspects:
                    yield task, [self._alone(job, unit) for job, unit in task.work]

    def _finished(
        self, pending: dict[Future[list[ShardResult]], Task]
    ) -> set[Future[list[ShardResult]]]:
        """Wait for a task; end all processes where none is done within the time limit.

        Raises:
            BrokenProcessPool: none is.
        """
        limit = self.unit_timeout or max(_PATIENCE_SECONDS, _PATIENCE * self._slowest)
        units = max(len(task.work) for task in pending.values())
        finished, _ = wait(pending, timeout=limit * units, return_when=FIRST_COMPLETED)
        if not finished:
            self._stop()
            raise BrokenProcessPool(f"not done within {limit:.0f} s")
        return finished

    def _alone(self, job: Job, unit: Unit) -> ShardResult:
        """Do again, with no other at work, a unit that was at hand when a process died.

        Raises:
            OperationalError: it dies once more, and no user's code can be the reason.
        """
        self._stop()
        future = self._started(1).submit(_run_in_worker, Task([(job, unit)]))
        try:
            self._finished({future: Task([(job, unit)])})
            return future.result()[0]
        except BrokenProcessPool as error:
            self._stop()
            model, images = self.bench.models[job.model], self.bench.images
            reason = str(error) if str(error).startswith("not done") else "its process died"
            if model.recipe is not None:
                raise OperationalError(
                    f"expected {job} of {model.name} to be computed, got twice: {reason} (out of "
                    "memory?); run the same command again with fewer --workers"
                ) from None
            chosen = torch.tensor(unit.indices)
            failure = RuntimeError(f"{reason}, twice")
            return failed_unit(unit, job, failure, images.images[chosen], images.labels[chosen])
        finally:
            self._stop()

    def _started(self, workers: int | None = None) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = self._start(workers or self.workers)
            self._require_same_models(self._pool, workers or self.workers)
        return self._pool

    def _stop(self) -> None:
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
            self._pool = None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        _start_resource_tracker()
        return ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(context.Barrier(workers),),
        )

    def _require_same_models(self, pool: ProcessPoolExecutor, workers: int) -> None:
        """Let every worker load the models, and insist that they are those of this process.

        Raises:
            UsageError: a model is another function there, or cannot be loaded any more.
        """
        plan, here = self.bench.plan, [model.structure for model in self.bench.models]
        names = [model.name for model in self.bench.models]
        arguments = (plan.to_json(), names, self.data_dir)
        loading = [pool.submit(_load_in_worker, *arguments) for _ in range(workers)]
        for found in (future.result() for future in loading):
            for info, expected, (structure, seen) in zip(plan.models, here, found, strict=True):
                difference = expected.difference(structure)
                if difference is None and seen != info.fingerprint:
                    difference = "what it computes"
                if difference is not None:
                    raise UsageError(
                        f"{info.name}: the model changed between its loading here and in a worker "
                        f"process ({difference[:80]} differs); nothing was stored: see to it that "
                        "it stays the same during a run"
                    )


def _start_resource_tracker() -> None:
    """Start multiprocessing's tracker deaf to SIGHUP, as it is to Ctrl-C.

    A closed terminal ends all processes at once, and one whose tracker is gone warns of it.
    """
    if hasattr(signal, "pthread_sigmask"):
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        resource_tracker.ensure_running()  # which inherits what is blocked
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_bench: Workbench | None = None
_all_loaded: Barrier | None = None


def _start_worker(all_loaded: Barrier) -> None:
    global _all_loaded
    # Ctrl-C and a closed terminal are the parent's to handle; a parent that was killed must not
    # leave workers behind.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _all_loaded = all_loaded


def _load_in_worker(
    plan: str, names: list[str], data_dir: Path | None
) -> list[tuple[Structure, str | None]]:
    """Load what units are computed with, and tell what it is."""
    global _bench
    assert _all_loaded is not None
    try:
        parsed = Plan.from_json(plan)
        images = load_images(parsed.suite.data, parsed.suite.split, data_dir)
        _bench = Workbench(parsed, images, [load_model(name) for name in names])
        return _bench.identities()
    finally:
        # No worker gets a second call of this before each has had its own.
        _all_loaded.wait()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(task: Task) -> list[ShardResult]:
    assert _bench is not None
    return _bench.run(task)
