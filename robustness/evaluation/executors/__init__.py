"""Where units of work are done: here, in processes, on Dask, or in what is handed in."""

from concurrent import futures

from robustness.errors import UsageError, quoted
from robustness.evaluation.executors import (
    dask,
    here,  # noqa: F401  (registers itself)
    processes,  # noqa: F401  (registers itself)
)
from robustness.evaluation.executors.base import EXECUTORS, Executor, ExecutorKind
from robustness.evaluation.executors.handed import handed_in

__all__ = ["EXECUTORS", "Executor", "ExecutorKind", "executor_kind"]


def executor_kind(asked: object) -> ExecutorKind:
    """The kind of executor that is asked for.

    Args:
        asked: a name, `NAME://ADDRESS`, a `concurrent.futures.Executor` or a
            `distributed.Client`.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(asked, str):
        name, is_given, address = asked.partition("://")
        kind = EXECUTORS.require(name)
        if kind.at is not None and (address or not is_given):
            return kind.at(address)
        if is_given:
            raise UsageError(
                f"expected an executor by name, or such as dask://127.0.0.1:8786, got "
                f"{quoted(asked)}; correct it"
            )
        return kind
    if isinstance(asked, futures.Executor):
        return handed_in(asked)
    if type(asked).__module__.split(".")[0] == "distributed" and hasattr(asked, "get_executor"):
        return dask.on_client(asked)
    raise UsageError(
        "expected an executor's name, a concurrent.futures.Executor or a distributed.Client, got "
        f"{quoted(asked)}; hand in one of these"
    )
