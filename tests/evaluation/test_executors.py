"""Where units of work are done is nobody's business but the clock's."""

import os
import sys
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from robustness.api import evaluate
from robustness.errors import DiedError, UsageError
from robustness.evaluation.executors import EXECUTORS, Executor, ExecutorKind
from robustness.evaluation.executors.here import Here
from robustness.evaluation.executors.processes import Processes
from robustness.evaluation.suite import Suite

SUITE = Suite.model_validate(
    {
        "name": "executed",
        "data": "digits",
        "samples": 40,
        "models": ["digits/resnet"],
        "threats": [{"norm": "Linf", "eps": [0.05]}],
        "attacks": [{"kind": "fgsm"}],
        "decay": False,
    }
)


class Unreliable(Here):
    """Has two workers, loses the last of two tasks once, and is then another one."""

    count = 2
    lost = 0

    def first(self, futures: Collection[Future[Any]], seconds: float, each: float) -> set[Any]:
        assert len(futures) <= self.count
        if len(futures) == 2 and not Unreliable.lost:
            Unreliable.lost = 2
            raise DiedError("its process ended with exit code 3")
        return {next(iter(futures))}

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        assert getattr(function, "__module__", "").startswith("robustness.")
        return super().submit(function, *args)


def unreliable(count: int, memory: int | None) -> Executor:
    assert (count, memory) == (2, None) if not Unreliable.lost else (1, None)
    return Unreliable()


def rows(folder: Path, executor: str | None, workers: int = 1) -> dict[str, Any]:
    board = evaluate(SUITE, out=folder, workers=workers, executor=executor, batch_size=32)
    return board.comparable()


def test_no_executor_changes_a_result(tmp_path: Path) -> None:
    expected = rows(tmp_path / "default", None)
    assert rows(tmp_path / "here", "here") == expected
    with EXECUTORS.having(ExecutorKind("unreliable", unreliable)):
        assert rows(tmp_path / "unreliable", "unreliable", workers=2) == expected
    assert Unreliable.lost == 2


@pytest.mark.slow
def test_processes_can_be_asked_for_where_one_worker_would_be_here(tmp_path: Path) -> None:
    assert rows(tmp_path / "processes", "processes") == rows(tmp_path / "default", None)


def test_here_is_an_executor_whose_errors_are_those_of_the_call() -> None:
    here = Here()
    assert isinstance(here, Executor)
    failed = here.submit(int, "no number")
    assert here.first({failed}, 1.0, 1.0) == {failed}
    with pytest.raises(ValueError, match="no number"):
        here.result(failed)
    with pytest.raises(KeyboardInterrupt):
        here.submit(_interrupt)


@pytest.mark.slow
def test_a_plugin_that_workers_cannot_import_is_said_by_every_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("robustness.registry._loaded", {"gone": "gone 1.0"})
    processes = Processes(2, None)
    try:
        for call in (lambda: processes.on_all(9.0, int), lambda: processes.call(9.0, int)):
            with pytest.raises(UsageError, match=r"in a worker process: expected a plugin.*'gone'"):
                call()
    finally:
        processes.stop()


# Of the process, its modules, and its environment: builtins need no module in a worker.
ASKED = """(lambda os, sys: (os.getppid(), set(sys.modules), os.environ.get("TOLD_TO_WORKERS")))(
    __import__("os"), __import__("sys"))"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes start anew there")
def test_workers_are_forked_where_what_they_need_is_imported_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parents = set()
    for told in ("now", "later"):
        monkeypatch.setenv("TOLD_TO_WORKERS", told)
        processes = Processes(1, None)
        try:
            parent, modules, heard = processes.call(60.0, eval, ASKED)
        finally:
            processes.stop()
        parents.add(parent)
        assert heard == told
        assert "robustness.evaluation.runner" in modules
        assert not {"scipy.stats", "sklearn", "matplotlib", "jinja2", "torchattacks"} & modules
    assert len(parents) == 1
    assert parents != {os.getpid()}
    assert "PYTHONSAFEPATH" not in os.environ


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_here_takes_one_worker_and_no_limits(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one worker"):
        evaluate(SUITE, out=tmp_path, workers=2, executor="here")
    with pytest.raises(UsageError, match="no limits"):
        evaluate(SUITE, out=tmp_path, executor="here", unit_timeout=5.0)
