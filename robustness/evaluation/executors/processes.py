"""Worker processes that may die, hang or run out of memory, since a user's code runs in them.

One thing is offered: have a function called in such a process, and be told by a `DiedError` how
the process ended if it did not live to answer.

On Linux they are forked from one process that has imported this package and does nothing else, so
that none of them imports it again; elsewhere each starts anew.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, TypeVar

import torch

from robustness import inputs
from robustness.errors import (
    DiedError,
    EndedError,
    OperationalError,
    UsageError,
    in_words,
    is_exhausted,
)
from robustness.evaluation.executors.base import EXECUTORS, ExecutorKind
from robustness.registry import load_plugin, plugins

T = TypeVar("T")

NAME = "processes"

# Longer ones overflow what a lock can wait for.
_LONGEST_SECONDS = 10**6
_LOADING_SECONDS = 600.0
_UNIT_SECONDS, _SLOWEST_UNITS = 3600.0, 50.0
_OWN = ("builtins", "robustness")
# Elsewhere a fork of a process that has loaded the system's libraries may hang.
_FORKS = sys.platform.startswith("linux")
# What workers need; it imports no code of a user's.
_PRELOADED = "robustness.evaluation.runner"


@dataclass(frozen=True)
class Limits:
    """How a user's code is held.

    Attributes:
        seconds: that one unit of work may take, and that one model may take to be loaded, or to
            be asked while a run is planned. None for an hour, or fifty times the slowest unit so
            far if that is longer, and ten minutes.
        memory: bytes that a worker process may take besides what it starts with; None for all.
        in_process: whether it runs in the command's own process, with no limits, for debugging.
    """

    seconds: float | None = None
    memory: int | None = None
    in_process: bool = False

    @classmethod
    def of(cls, seconds: float | None, memory: str | None, in_process: bool) -> "Limits":
        """From what a caller gives; `memory` is such as `8GiB`.

        Raises:
            UsageError: a limit is none, or cannot be kept.
        """
        if seconds is not None and not 0 < seconds <= _LONGEST_SECONDS:
            raise UsageError(
                f"expected seconds above 0, at most {_LONGEST_SECONDS:,}, got a unit timeout of "
                f"{seconds}; correct it"
            )
        size = None if memory is None else inputs.size(memory)
        if size is not None and not sys.platform.startswith("linux"):
            raise UsageError(
                f"expected Linux for a memory limit, got {sys.platform}; leave --memory-limit out"
            )
        if in_process and (seconds is not None or size is not None):
            raise UsageError(
                "expected no limits with --in-process, got --unit-timeout or --memory-limit, which "
                "need a worker process; leave one of them out"
            )
        return cls(seconds, size, in_process)

    @property
    def asked_for(self) -> bool:
        """Whether there is a limit that only a worker process can keep."""
        return self.seconds is not None or self.memory is not None

    @property
    def loading(self) -> float:
        """Seconds that one model may take to be loaded or planned."""
        return self.seconds or _LOADING_SECONDS

    def unit(self, slowest: float) -> float:
        """Seconds that one unit may take where the slowest so far took `slowest`."""
        return self.seconds or max(_UNIT_SECONDS, _SLOWEST_UNITS * slowest)


class Processes:
    """A few worker processes, started when they are first needed.

    Args:
        count: how many.
        memory: bytes that each may take besides what it starts with; None for all.
    """

    def __init__(self, count: int, memory: int | None) -> None:
        self.count = count
        prepare()
        context = _context()
        # How often a turn began, and whose it is.
        self._turn = context.RawArray("q", [0, 0])
        self._known: list[Any] = []
        given = (context.Barrier(count), self._turn, memory, list(plugins()), dict(os.environ))
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_start_worker, initargs=given
        )

    @property
    def turn(self) -> int:
        """The last number that a worker called `begin_turn` with."""
        return int(self._turn[1])

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Have a function called by whichever process is free.

        Raises:
            DiedError: a process has died before.
        """
        try:
            future = self._pool.submit(_call, function, *args)
        except BrokenProcessPool:
            raise EndedError(self._how()) from None
        self._known = list((self._pool._processes or {}).values())
        return future

    def on_all(self, seconds: float, function: Callable[..., T], *args: Any) -> list[T]:
        """Have a function called once by every process, which waits for all at its end.

        All processes are ended if that takes too long, besides the time to start them.

        Raises:
            DiedError: it does, or a process died.
        """
        futures = [self.submit(_together, function, *args) for _ in range(self.count)]
        # As each waits for all, one that is too slow leaves none done.
        if not wait(futures, seconds + _LOADING_SECONDS, FIRST_EXCEPTION).done:
            self.stop()
            raise DiedError(f"not done within {seconds:g} s")
        return [self.result(future) for future in futures]

    def call(self, seconds: float, function: Callable[..., T], *args: Any) -> T:
        """Have a function called, and end all processes if one turn of it takes too long.

        Raises:
            DiedError: it did, or the process died.
        """
        turns, since, limit = self._turn[0], time.monotonic(), _LOADING_SECONDS
        future = self.submit(function, *args)
        while not wait([future], timeout=min(seconds, 1.0)).done:
            if self._turn[0] != turns:  # the first time as soon as the process has started
                turns, since, limit = self._turn[0], time.monotonic(), seconds
            elif time.monotonic() - since > limit:
                self.stop()
                raise DiedError(f"not done within {limit:g} s")
        return self.result(future)

    def first(self, futures: Collection[Future[T]], seconds: float, each: float) -> set[Future[T]]:
        """The futures that are done first; all processes are ended if none is in time.

        Args:
            futures: of calls.
            seconds: to wait for the first of them.
            each: limit to name if there is none.

        Raises:
            DiedError: none is.
        """
        finished, _ = wait(futures, timeout=seconds, return_when=FIRST_COMPLETED)
        if not finished:
            self.stop()
            raise DiedError(f"not done within {each:g} s")
        return finished

    def result(self, future: Future[T]) -> T:
        """What a call gave.

        Raises:
            DiedError: its process died, or had no memory left.
        """
        try:
            return future.result()
        except BrokenProcessPool:
            raise EndedError(self._how()) from None
        except Exception as error:
            if is_exhausted(error):
                raise DiedError(f"out of memory: {str(error) or 'none left'}") from error
            raise

    def stop(self) -> None:
        """End all processes at once, whatever they do."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in self._known:
            process.kill()

    def _how(self) -> str:
        """How the process ended where there was one; one of many cannot be told."""
        if len(self._known) == 1:
            code = self._known[0].exitcode
            # The executor's thread asks for it as well, and one of the two comes too early.
            for _ in range(50):
                if code is not None:
                    break
                time.sleep(0.1)
                code = self._known[0].exitcode
            if code is not None and code >= 0:
                return f"its process ended with exit code {code}"
            with suppress(TypeError, ValueError):
                name = signal.Signals(-code).name
                return f"its process was ended by {name}{' (out of memory?)' * (code == -9)}"
        return "its process died"


def prepare() -> None:
    """Start what workers come from, without waiting for it: it imports while its caller plans.

    It is deaf to SIGHUP, as it is to Ctrl-C: a closed terminal ends all processes at once, and one
    whose tracker of resources is gone warns of it.
    """
    blocking = hasattr(signal, "pthread_sigmask")
    if blocking:  # what is blocked is inherited
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()
        if _FORKS:
            _start_server()
    finally:
        if blocking:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


EXECUTORS.register(ExecutorKind(NAME, Processes, open=prepare))


def call_alone(model: str, limits: Limits, function: Callable[..., T], *args: Any) -> T:
    """Call a function that runs a user's model in a process of its own.

    Raises:
        UsageError: the function does, or the model's code raises what nobody handles.
        OperationalError: the process ends, takes too long or too much memory.
    """
    processes = Processes(1, limits.memory)
    try:
        return processes.call(limits.loading, function, *args)
    except DiedError as died:
        raise unusable(model, died) from None
    except (UsageError, OperationalError):
        raise
    except Exception as error:
        raise faulty(model, error) from error
    finally:
        processes.stop()


def unusable(model: str, died: DiedError) -> OperationalError:
    """What is said of a model without which a command can do nothing."""
    return OperationalError(
        f"expected {model} to be loaded and to answer, got: {died}; mend it, allow it more, or "
        "debug it with --in-process"
    )


def faulty(model: str, error: Exception) -> UsageError:
    """What is said of a user's model whose code raises outside of any unit of work."""
    return UsageError(
        f"{model}: expected a model that can be looked at, got {type(error).__name__}: {error}; "
        "mend it, or debug it with --in-process"
    )


_all: Barrier | None = None
_turns: Any = None


# Why a plugin could not be imported, to be said by the first call: here nobody would hear it.
_refused: UsageError | None = None


def _require_plugins() -> None:
    if _refused is not None:
        raise UsageError(f"in a worker process: {_refused}")


def begin_turn(number: int) -> None:
    """Say whose code is run next, for which the clock of `Processes.call` starts anew.

    In another process than a worker nobody listens.
    """
    if _turns is not None:
        _turns[1] = number
        _turns[0] += 1


def _call(function: Callable[..., T], *args: Any) -> T:
    """Let through only what another process can take and rightly understand."""
    begin_turn(0)
    try:
        if function is not _together:
            _require_plugins()
        return function(*args)
    except BaseException as error:
        kind = type(error)
        if isinstance(error, Exception) and kind.__module__.split(".")[0] in _OWN:
            raise
        raise RuntimeError(in_words(error)) from error


def _together(function: Callable[..., T], *args: Any) -> T:
    assert _all is not None
    try:
        _require_plugins()
        return function(*args)
    finally:
        # No worker gets a second call before each has had its own.
        _all.wait()


def _start_worker(
    all_workers: Barrier,
    turns: Any,
    memory: int | None,
    modules: list[str],
    environment: dict[str, str],
) -> None:
    global _all, _turns, _refused
    # Ctrl-C and a closed terminal are the parent's to handle; a parent that was killed must not
    # leave workers behind.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    # That of the process which workers are forked from is as old as that one.
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    _all, _turns = all_workers, turns
    try:
        for module in modules:  # what units and plans may name
            load_plugin(module, here=False)  # a worker has the path of its parent
    except UsageError as error:
        _refused = error
    if memory is not None:
        import resource  # not on Windows

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + memory
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _context() -> BaseContext:
    """How processes are started."""
    if not _FORKS:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_PRELOADED])
    return context


def ready_to_fork() -> bool:
    """Whether new processes of `multiprocessing` can be forked from one that has this package.

    That process is started, if it does not live. Theirs is the environment that it was started in.
    """
    if _FORKS:
        _start_server()
    return _FORKS


def _start_server() -> None:
    """Start the process that workers are forked from, if it does not live.

    It has to find this package where it was found here, and not in the working folder.
    """
    from multiprocessing import forkserver  # not on Windows

    _context()
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.pop(name, None) for name in where}
    os.environ.update(where)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
