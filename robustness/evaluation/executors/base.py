"""What an executor is: it has functions called elsewhere, in the shape of `concurrent.futures`.

A run has the models loaded in all workers first (`on_all`), then hands out tasks (`submit`), never
more than there are workers, and stores what comes (`first`, `result`). Which executor does the work
changes no result and is part of no key.
"""

from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from robustness.registry import Registry

T = TypeVar("T")


@runtime_checkable
class Executor(Protocol):
    """Some workers that call functions of modules, and live until they are stopped.

    A worker keeps what a function left in the module's globals for the next call: the models.
    """

    @property
    def count(self) -> int:
        """How many calls are done at the same time, at most."""
        ...

    def on_all(self, seconds: float, function: Callable[..., T], *args: Any) -> list[T]:
        """Have a function called once by every worker, before any other.

        Raises:
            DiedError: a worker died, or took longer than so many seconds, besides its start.
        """
        ...

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Have a function called by whichever worker is free.

        Raises:
            DiedError: a worker has died before.
        """
        ...

    def first(self, futures: Collection[Future[T]], seconds: float, each: float) -> set[Future[T]]:
        """The futures that are done first.

        Args:
            futures: of calls.
            seconds: to wait for the first of them; all workers are ended if none is in time.
            each: the limit of one unit, to name if there is none.

        Raises:
            DiedError: none is.
        """
        ...

    def result(self, future: Future[T]) -> T:
        """What a call that is done gave.

        Raises:
            DiedError: its worker died; the task is done again alone, and fails the second time.
        """
        ...

    def stop(self) -> None:
        """Give up what is at work and end all workers."""
        ...


def _nothing() -> None:
    """By default there is nothing to open or close."""


@dataclass(frozen=True)
class ExecutorKind:
    """An executor that can be asked for by name.

    Attributes:
        name: of `--executor`.
        start: from a number of workers, and the bytes of memory that each may take or None, to the
            executor. Its `count` may be smaller.
        remote: whether its workers share neither files nor modules of the working folder with this
            process, so that models and images are sent to them. Such a one keeps no memory limit.
        isolates: whether a call whose worker dies leaves the others alone.
        open: is called before anything else is done, to find what it needs.
        close: is called at the end.
        at: for one that lives somewhere: from what stands behind `NAME://`, or nothing, to a kind
            for one run.
    """

    name: str
    start: Callable[[int, int | None], Executor]
    remote: bool = False
    isolates: bool = False
    open: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing
    at: "Callable[[str], ExecutorKind] | None" = None


EXECUTORS: Registry[ExecutorKind] = Registry("an executor", "robustness.executors")
