"""Executors of others, of the kind of `concurrent.futures`, whose workers know nothing yet.

What workers need, the models and the images, is one parcel. A worker that is asked for something
and has not opened the run's parcel says so, and is given it once; tasks are sent without it.
Nothing is read from a file system that workers share with their parent.
"""

import hashlib
import pickle
import threading
from collections.abc import Callable, Collection
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from functools import partial
from typing import Any, TypeVar

from robustness import inputs
from robustness.errors import DiedError, OperationalError, in_words, is_exhausted
from robustness.evaluation.executors.base import ExecutorKind
from robustness.numerics.reproducible import reproducible_arithmetic

T = TypeVar("T")

_OWN = ("builtins", "robustness")


class Handed:
    """Hands calls to an executor, and each of its workers the parcel once.

    Args:
        executor: that takes calls; it is not ended.
        count: how many calls it does at the same time.
    """

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor, self._count = executor, count
        self._parcel, self._digest = b"", ""
        self._given: dict[Future[Any], Future[Any]] = {}

    @property
    def count(self) -> int:
        """See `Executor.count`."""
        return self._count

    def on_all(self, seconds: float, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Executor.on_all`; here each worker calls it before its first task."""
        del seconds
        self._parcel = pickle.dumps((function, args))
        self._digest = hashlib.sha256(self._parcel).hexdigest()
        return []

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """See `Executor.submit`.

        Raises:
            OperationalError: the executor takes nothing any more.
        """
        answer: Future[T] = Future()
        self._hand(answer, None, function, args)
        return answer

    def first(self, futures: Collection[Future[T]], seconds: float, each: float) -> set[Future[T]]:
        """See `Executor.first`."""
        done, _ = wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        if not done:
            self.give_up(futures)
            raise DiedError(f"not done within {each:g} s")
        return done

    def result(self, future: Future[T]) -> T:
        """See `Executor.result`.

        Raises:
            OperationalError: the executor broke.
        """
        try:
            return future.result()
        except (BrokenExecutor, CancelledError) as error:
            raise OperationalError(
                f"expected the executor to end its work, got {in_words(error)}; what is stored is "
                "kept: run it again with one that lives"
            ) from None
        except Exception as error:
            if is_exhausted(error):
                raise DiedError(f"out of memory: {str(error) or 'none left'}") from error
            raise

    def give_up(self, futures: Collection[Future[Any]]) -> None:
        """Have some calls not done any more, where that can be prevented."""
        for future in futures:
            if (given := self._given.pop(future, None)) is not None:
                given.cancel()

    def stop(self) -> None:
        """See `Executor.stop`; the executor itself is its owner's to end."""
        self.give_up(list(self._given))

    def _call(self, parcel: bytes | None, function: Callable[..., T], args: Any) -> Future[Any]:
        return self._executor.submit(call, self._digest, parcel, 0.0, function, args)

    def _hand(
        self, answer: Future[T], parcel: bytes | None, function: Callable[..., T], args: Any
    ) -> None:
        try:
            given = self._call(parcel, function, args)
        except (BrokenExecutor, RuntimeError) as error:
            raise OperationalError(
                f"expected an executor that takes work, got {in_words(error)}; what is stored is "
                "kept: run it again with one that lives"
            ) from None
        self._given[answer] = given
        given.add_done_callback(partial(self._answered, answer, parcel, function, args))

    def _answered(
        self,
        answer: Future[T],
        parcel: bytes | None,
        function: Callable[..., T],
        args: Any,
        given: Future[Any],
    ) -> None:
        if self._given.pop(answer, None) is None:  # given up
            answer.cancel()
            return
        try:
            error = given.exception()
        except CancelledError as cancelled:
            error = cancelled
        if error is None and isinstance(given.result(), Lacking):
            try:
                if parcel is not None:
                    raise DiedError("a worker did not get the models")
                self._hand(answer, self._parcel, function, args)
                return
            except OperationalError as broken:
                error = broken
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(given.result())


def handed_in(executor: Executor) -> ExecutorKind:
    """The kind of an executor that a caller hands in."""

    def start(count: int, memory: int | None) -> Handed:
        del memory
        there = getattr(executor, "_max_workers", None)
        return Handed(executor, min(count, there if isinstance(there, int) else inputs.cores()))

    return ExecutorKind(type(executor).__name__, start, remote=True)


class Lacking:
    """What a worker answers that has not the parcel."""


_lock = threading.RLock()
_arrived = threading.Condition(_lock)
_parcels: dict[str, bytes] = {}
_opened: str | None = None


def keep(digest: str, parcel: bytes) -> None:
    """In a worker: keep a parcel until it is asked for."""
    with _arrived:
        _parcels[digest] = parcel
        _arrived.notify_all()


def at_hand() -> tuple[str | None, list[str]]:
    """In a worker: the digests of the parcel that was opened last, and of those that are kept."""
    with _lock:
        return _opened, list(_parcels)


def forget(digest: str) -> None:
    """In a worker: let go of a parcel."""
    with _lock:
        _parcels.pop(digest, None)


def call(
    digest: str, parcel: bytes | None, patience: float, function: Callable[..., T], args: Any
) -> T | Lacking:
    """In a worker: open the run's parcel if it is not the last one opened, and call a function.

    One call at a time, whatever number of threads a worker has: a function finds what was opened
    last in its module. Let through is only what another process can take and rightly understand.

    Args:
        digest: SHA-256 of the parcel.
        parcel: a function and its arguments, to be called first; None where it came before.
        patience: seconds to wait for the parcel to come another way.
        function: to call.
        args: of it.
    """
    global _opened
    with _arrived, reproducible_arithmetic():
        try:
            if _opened != digest:
                if parcel is None:
                    _arrived.wait_for(lambda: digest in _parcels, patience)
                    parcel = _parcels.get(digest)
                if parcel is None:
                    return Lacking()
                if hashlib.sha256(parcel).hexdigest() != digest:
                    raise DiedError("the models did not come as they were sent")
                _opened = None
                first, given = pickle.loads(parcel)
                first(*given)
                _opened = digest
            return function(*args)
        except BaseException as error:
            kind = type(error)
            if isinstance(error, Exception) and kind.__module__.split(".")[0] in _OWN:
                raise
            raise RuntimeError(in_words(error)) from error
