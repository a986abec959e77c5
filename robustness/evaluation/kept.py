"""Where the results of units are kept: what a run asks of it, and one that is memory alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from robustness.evaluation.jobs import Result
from robustness.evaluation.plan import Job


@runtime_checkable
class Kept(Protocol):
    """Results of units by their keys."""

    def done(self) -> set[str]:
        """Keys of all units that are here."""
        ...

    def add(self, result: Result, job: Job, model: str) -> None:
        """Keep one unit, of a job on the model of a name."""
        ...

    def rows(self, job: Job, keys: Iterable[str]) -> list[Any]:
        """All rows of some units of a job, in the order of the keys."""
        ...

    def seconds(self, keys: Iterable[str]) -> float:
        """Compute time of some units."""
        ...


class Keeping(Kept, Protocol):
    """Where a run puts its results, and what it is told of those of before."""

    @property
    def path(self) -> Path | None:
        """The file that they are in; None where they end with the process."""
        ...

    def costs(self) -> list[tuple[Job, str, int, float]]:
        """Jobs, names of their models, how many of their units are here, and their seconds."""
        ...


class InMemory:
    """Results that nobody asks for after the command: those of `attack` and `certify`.

    Attributes:
        results: by their keys.
        ended: whether any is of a model that ended its process, or took too long or too much
            memory.
    """

    path: Path | None = None

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.ended = False

    def done(self) -> set[str]:
        """See `Kept.done`."""
        return set(self.results)

    def add(self, result: Result, job: Job, model: str) -> None:
        """See `Kept.add`."""
        del job, model
        self.results[result.key] = result
        self.ended = self.ended or result.ended

    def rows(self, job: Job, keys: Iterable[str]) -> list[Any]:
        """See `Kept.rows`."""
        del job
        return [row for key in keys for row in self.results[key].rows]

    def seconds(self, keys: Iterable[str]) -> float:
        """See `Kept.seconds`."""
        return sum(self.results[key].seconds for key in keys)

    def costs(self) -> list[tuple[Job, str, int, float]]:
        """See `Keeping.costs`: a command that keeps nothing begins with nothing."""
        return []
