"""Runs a plan's missing shards, here or in worker processes, and stores them as they come.

Every process computes with one thread: the number of threads changes the order of sums and so
the last bits of a result. Workers never touch the store.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from robustness.attacks import Attack
from robustness.data import ImageSet, load_images
from robustness.errors import UsageError
from robustness.evaluation.plan import SHARD_SIZE, Job, Plan, build_attacks
from robustness.evaluation.store import Store
from robustness.evaluation.work import ShardResult, run_shard
from robustness.zoo import LoadedModel, load_model


@dataclass(frozen=True)
class _Batch:
    """Some shards of one job, done by one worker in one go."""

    job: int
    shards: list[int]


@dataclass(frozen=True)
class Workbench:
    """What shards are computed with; one per process."""

    plan: Plan
    images: ImageSet
    models: list[LoadedModel]

    def run(self, batch: _Batch) -> list[ShardResult]:
        """Compute some shards of one job."""
        job = self.plan.jobs[batch.job]
        return [self._run_shard(job, shard) for shard in batch.shards]

    def _run_shard(self, job: Job, shard: int) -> ShardResult:
        indices = self.plan.shards[shard]
        chosen = torch.tensor(indices)
        return run_shard(
            self.plan.key(job, shard),
            job,
            self.models[job.model].module,
            self._attack(job),
            self.plan.suite.build_certificates().get(job.name),
            self.images.images[chosen],
            self.images.labels[chosen],
            indices,
            self.plan.seed(shard),
        )

    def _attack(self, job: Job) -> Attack | None:
        for attack, _, _ in build_attacks(self.plan.suite):
            if job.kind == "attack" and attack.name == job.name:
                return attack
        return None


@contextmanager
def reproducible_arithmetic() -> Iterator[None]:
    """One thread, and denormals flushed to zero: contractive flows decay into them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def run_plan(
    plan: Plan,
    store: Store,
    bench: Workbench,
    workers: int,
    batch_size: int,
    data_dir: Path | None,
    quiet: bool,
) -> int:
    """Compute every shard of `plan` that `store` lacks.

    Args:
        plan: what to do.
        store: where results are read and kept.
        bench: models and images of this process, used when `workers` is 1.
        workers: number of processes.
        batch_size: images per task handed to a worker, in whole shards; changes no result.
        data_dir: folder with the official image files, for the workers to read again.
        quiet: no progress bar.

    Returns:
        The number of shards computed.

    Raises:
        UsageError: a worker died.
    """
    done = store.done()
    per_batch = max(1, batch_size // SHARD_SIZE)
    batches = []
    for number, job in enumerate(plan.jobs):
        if job.refusal is not None:
            continue
        missing = [s for s in range(job.shards) if plan.key(job, s) not in done]
        batches += [
            _Batch(number, missing[i : i + per_batch]) for i in range(0, len(missing), per_batch)
        ]
    # The dearest work first, so that no worker is left with it alone at the end.
    batches.sort(key=lambda batch: plan.jobs[batch.job].name != "autoattack")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} shards"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = sum(len(batch.shards) for batch in batches)
    with Progress(*columns, disable=quiet) as progress:
        bar = progress.add_task(f"evaluating {plan.suite.name}", total=total)
        for batch, results in _execute(batches, bench, workers, data_dir):
            job = plan.jobs[batch.job]
            for result in results:
                store.add(result, job, plan.models[job.model].name)
            progress.advance(bar, len(results))
    return total


def _execute(
    batches: list[_Batch], bench: Workbench, workers: int, data_dir: Path | None
) -> Iterator[tuple[_Batch, list[ShardResult]]]:
    if workers == 1 or len(batches) <= 1:
        with reproducible_arithmetic():
            for batch in batches:
                yield batch, bench.run(batch)
        return
    names = [model.name for model in bench.models]
    pool = ProcessPoolExecutor(
        min(workers, len(batches)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(bench.plan.to_json(), names, data_dir),
    )
    try:
        pending: dict[Future[list[ShardResult]], _Batch] = {
            pool.submit(_run_in_worker, batch): batch for batch in batches
        }
        while pending:
            finished, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield pending.pop(future), future.result()
    except BrokenProcessPool:
        raise UsageError(
            "expected the worker processes to live, got one that died (out of memory?); "
            "run the same command again with fewer --workers"
        ) from None
    finally:
        # On an interruption, shards in flight are given up rather than waited for.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


_bench: Workbench | None = None


def _start_worker(plan: str, names: list[str], data_dir: Path | None) -> None:
    global _bench
    import signal

    # Ctrl-C is the parent's to handle; a parent that was killed must not leave workers behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    parsed = Plan.from_json(plan)
    images = load_images(parsed.suite.data, parsed.suite.split, data_dir)
    _bench = Workbench(parsed, images, [load_model(name) for name in names])


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_worker(batch: _Batch) -> list[ShardResult]:
    assert _bench is not None
    return _bench.run(batch)
