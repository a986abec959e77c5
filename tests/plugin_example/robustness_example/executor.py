"""An executor: where units of work are done. It changes no result."""

from robustness.evaluation.executors import EXECUTORS, ExecutorKind
from robustness.evaluation.executors.processes import Processes


def start(count: int, memory: int | None) -> Processes:
    """One worker process whatever is asked for: jobs take turns, and all memory is theirs."""
    del count
    return Processes(1, memory)


EXECUTORS.register(ExecutorKind("taking-turns", start))
