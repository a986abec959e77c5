"""Where units of work are done: in this process, in worker processes, or in what is registered."""

from robustness.evaluation.executors import (
    here,  # noqa: F401  (registers itself)
    processes,  # noqa: F401  (registers itself)
)
from robustness.evaluation.executors.base import EXECUTORS, Executor, ExecutorKind

__all__ = ["EXECUTORS", "Executor", "ExecutorKind"]
