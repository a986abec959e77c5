"""The executor of one worker that is this very process."""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, TypeVar

from robustness.evaluation.executors.base import EXECUTORS, ExecutorKind
from robustness.numerics.reproducible import reproducible_arithmetic

T = TypeVar("T")

NAME = "here"


class Here:
    """Calls every function at once, in this process. No limit is kept, and nobody can die."""

    count = 1

    def on_all(self, seconds: float, function: Callable[..., T], *args: Any) -> list[T]:
        """See `Executor.on_all`."""
        del seconds
        return [self.submit(function, *args).result()]

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """See `Executor.submit`. What is no error, such as Ctrl-C, is raised at once."""
        future: Future[T] = Future()
        try:
            with reproducible_arithmetic():
                future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def first(self, futures: Collection[Future[T]], seconds: float, each: float) -> set[Future[T]]:
        """See `Executor.first`: all of them are done."""
        del seconds, each
        return set(futures)

    def result(self, future: Future[T]) -> T:
        """See `Executor.result`."""
        return future.result()

    def stop(self) -> None:
        """See `Executor.stop`: there is nothing to end."""


def _start(count: int, memory: int | None) -> Here:
    del count, memory
    return Here()


EXECUTORS.register(ExecutorKind(NAME, _start))
