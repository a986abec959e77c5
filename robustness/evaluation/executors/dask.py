"""Dask distributed: any number of workers on any machines, which may die and may come late.

The parcel of models and images goes to the scheduler once, which gives it to each worker once,
those that join later too. A worker that dies has its tasks done by others: Dask sees to that.
"""

import importlib
import os
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

from robustness.errors import EndedError, OperationalError, UsageError, in_words, one_line
from robustness.evaluation.executors.base import EXECUTORS, ExecutorKind
from robustness.evaluation.executors.handed import Handed, call
from robustness.evaluation.executors.processes import ready_to_fork

T = TypeVar("T")

NAME = "dask"
# Seconds to find the scheduler, and for a worker to get the parcel once it is asked for something.
_CONNECT, _PATIENCE = 10.0, 600.0
# So that no worker waits for its parent: each has its next task at hand.
_TASKS_PER_WORKER = 2
_COUNTED_EVERY = 1.0
_METHOD = "distributed.worker.multiprocessing-method"
# A local cluster has no dashboard, and so nobody who would look at what its processes measure of
# themselves all the time: stacks every 10 ms, delays every 20 ms, memory and disks.
_UNWATCHED = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
}


class OnDask(Handed):
    """Hands calls to a Dask client.

    Args:
        client: a `distributed.Client`, which is not closed.
        count: workers to use at most.
    """

    def __init__(self, client: Any, count: int) -> None:
        self._futures: Any = client.get_executor(pure=False)
        super().__init__(self._futures, count)
        self._client = client
        self._plugin: str | None = None
        self._workers, self._counted = 0, 0.0
        self._keys: dict[Future[Any], str] = {}

    @property
    def count(self) -> int:
        """See `Executor.count`: with what each worker has at hand to do next."""
        now = time.monotonic()
        if now - self._counted > _COUNTED_EVERY:
            self._workers, self._counted = len(self._client.nthreads()), now
        # Without any, one task waits for the first to join.
        return max(1, _TASKS_PER_WORKER * min(self._count, self._workers))

    def on_all(self, seconds: float, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Executor.on_all`; here each worker calls it before its first task."""
        super().on_all(seconds, function, *args)
        plugins = importlib.import_module("robustness.evaluation.executors.dask_plugin")
        self._plugin = f"robustness-{self._digest}-{uuid4().hex[:8]}"
        self._client.register_plugin(plugins.Parcel(self._digest, self._parcel), self._plugin)
        return []

    def result(self, future: Future[T]) -> T:
        """See `Executor.result`."""
        self._keys.pop(future, None)
        try:
            return super().result(future)
        except (OperationalError, UsageError):
            raise
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise EndedError("the workers that it was given to died") from None
            raise

    def give_up(self, futures: Collection[Future[Any]]) -> None:
        """See `Handed.give_up`; workers that are still at one of these calls are restarted."""
        keys = {key for future in futures if (key := self._keys.pop(future, None)) is not None}
        if keys:
            with suppress(Exception):  # without a nanny nobody can
                at_work = self._client.processing()
                hung = [worker for worker, theirs in at_work.items() if keys & set(theirs)]
                if hung:
                    self._client.restart_workers(hung, timeout=_CONNECT, raise_for_error=False)
        super().give_up(futures)

    def stop(self) -> None:
        """See `Executor.stop`; the cluster is its owner's to end."""
        self._keys.clear()
        super().stop()
        if self._plugin is not None:
            with suppress(Exception):  # a scheduler that is gone
                self._client.unregister_worker_plugin(self._plugin)
            self._plugin = None

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """See `Executor.submit`."""
        self._key = f"robustness-{uuid4().hex}"
        answer = super().submit(function, *args)
        self._keys[answer] = self._key
        return answer

    def _call(self, parcel: bytes | None, function: Callable[..., T], args: Any) -> Future[Any]:
        del parcel
        given: Future[Any] = self._futures.submit(
            call, self._digest, None, _PATIENCE, function, args, key=self._key
        )
        return given


class _Cluster:
    """A scheduler that is found, or a local cluster that is made and ended.

    Args:
        address: such as `127.0.0.1:8786`; empty for a local cluster.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._client: Any = None
        self._local: Any = None
        self._forks = False

    def open(self) -> None:
        """Find the scheduler.

        Raises:
            UsageError: the extra is not installed, or there is no scheduler at the address.
        """
        distributed = _distributed()
        if not self.address:
            self._forks = ready_to_fork()  # it imports while the run is planned
            return
        where = self.address if "://" in self.address else f"tcp://{self.address}"
        try:
            self._client = distributed.Client(where, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            got = one_line(in_words(error), 90)
            raise UsageError(
                f"expected a Dask scheduler at {self.address}, got {got}; "
                "start `dask scheduler` there, or correct --executor"
            ) from None

    def start(self, count: int, memory: int | None) -> OnDask:
        """Hand tasks to it."""
        del memory
        if self._client is None:
            distributed = _distributed()
            # What workers are forked from may be older than what the environment says now.
            forked = {"distributed.nanny.environ": dict(os.environ), _METHOD: "forkserver"}
            settings = _UNWATCHED | (forked if self._forks else {})
            with importlib.import_module("dask").config.set(settings):
                self._local = distributed.LocalCluster(
                    n_workers=min(count, os.cpu_count() or 1),
                    threads_per_worker=1,
                    dashboard_address=None,
                    memory_limit=0,
                )
                self._client = distributed.Client(self._local, set_as_default=False)
        return OnDask(self._client, count)

    def close(self) -> None:
        """Leave it; end a local one."""
        for thing in (self._client, self._local):
            if thing is not None:
                with suppress(Exception):
                    thing.close(timeout=_CONNECT)
        self._client = self._local = None


def _distributed() -> Any:
    try:
        return importlib.import_module("distributed")
    except ImportError:
        raise UsageError(
            "expected the package distributed for the executor dask, got none; run "
            "`pip install 'lyanet-robustness[dask]'`"
        ) from None


def at(address: str) -> ExecutorKind:
    """The kind of what lives at an address; of a local cluster if it is empty."""
    cluster = _Cluster(address)
    return ExecutorKind(
        NAME,
        cluster.start,
        remote=True,
        isolates=True,
        open=cluster.open,
        close=cluster.close,
    )


def on_client(client: Any) -> ExecutorKind:
    """The kind of a client that a caller hands in."""

    def start(count: int, memory: int | None) -> OnDask:
        del memory
        return OnDask(client, count)

    return ExecutorKind(NAME, start, remote=True, isolates=True)


EXECUTORS.register(ExecutorKind(NAME, lambda count, memory: at("").start(count, memory), at=at))
