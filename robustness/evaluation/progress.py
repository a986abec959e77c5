"""How far a run is, and how long it will go on: measured, and told while the run goes on.

On a terminal by a bar, elsewhere by a line now and then, and on request by a file of events.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from robustness import inputs
from robustness.errors import os_failure
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.files import require_own
from robustness.terminal import progress_bar, remark, remarks

# Seconds between two lines, and before the first; seconds after which one comes in any case.
_PAUSE, _SILENCE = 10.0, 300.0
# Seconds for which an estimate serves: it takes a look at every job, and units may be quick.
_FRESH = 1.0


class CostModel:
    """Mean seconds of the units measured so far, by what they are units of."""

    def __init__(self) -> None:
        self._measured: dict[tuple[object, ...], tuple[int, float]] = {}

    def add(self, job: Job, model: str, seconds: float, units: int = 1) -> None:
        """Take account of units of a job on the model of a name that took `seconds` together."""
        for level in _levels(job, model):
            count, total = self._measured.get(level, (0, 0.0))
            self._measured[level] = count + units, total + seconds

    def seconds(self, job: Job, model: str) -> float | None:
        """What a unit will take; None where nothing was measured yet.

        The mean of the same job on the same model at the same threat; without any, of the same
        attack or certificate on the same model, on all models, of the kind of job, of everything.
        """
        for level in _levels(job, model):
            if level in self._measured:
                count, total = self._measured[level]
                return total / count
        return None

    def of_its_like(self, job: Job, model: str, dear: bool = False) -> float | None:
        """As `seconds`, but None where no unit of the attack or certificate was measured yet.

        Of a dear kind none on the same model: it may take one a hundred times what it takes others.
        """
        like = (job.kind, job.name, model) if dear else (job.kind, job.name)
        return self.seconds(job, model) if like in self._measured else None


def _levels(job: Job, model: str) -> Iterator[tuple[object, ...]]:
    yield job.kind, job.name, job.version, model, job.norm, job.eps
    yield job.kind, job.name, model
    yield job.kind, job.name
    yield (job.kind,)
    yield ()


class Forecast:
    """How far the phases of a run are, and how long they will take; it reads no clock.

    Units cost compute seconds, and a phase does so many of these in a second of wall time as it
    has done so far: with several workers more than one, and fewer than there are workers.

    Args:
        costs: what is known of the costs; every unit that is noted is added.
        phases: how many there are.
        workers: how many compute seconds are done in one, until that is measured.
    """

    def __init__(self, costs: CostModel, phases: int, workers: int) -> None:
        self._costs, self._workers = costs, workers
        self._ahead: list[Counter[tuple[Job, str]]] = [Counter() for _ in range(phases)]
        self._done, self._spent = [0] * phases, [0.0] * phases
        self._began, self._elapsed = [0.0] * phases, [0.0] * phases
        self._estimated: float | None = None
        self._estimate: list[tuple[float, float] | None] = []

    def expect(self, phase: int, work: Iterable[tuple[Job, str]]) -> None:
        """Set what is ahead in a phase: for each unit its job and the name of its model."""
        self._ahead[phase] = Counter(work)
        self._estimated = None

    def begin(self, phase: int, now: float) -> None:
        """Note that a phase begins, at a time in seconds."""
        self._began[phase] = now

    def note(self, phase: int, job: Job, model: str, seconds: float, now: float) -> None:
        """Note that a unit is done, which took so many compute seconds."""
        self._costs.add(job, model, seconds)
        self._ahead[phase][job, model] -= 1
        self._done[phase] += 1
        self._spent[phase] += seconds
        self._elapsed[phase] = now - self._began[phase]

    def spare(self, phase: int, job: Job, model: str) -> None:
        """Note that a unit that was expected need not be done."""
        self._ahead[phase][job, model] -= 1

    def done(self, phase: int | None = None) -> int:
        """Number of units that are done, in a phase or in all."""
        return sum(self._done) if phase is None else self._done[phase]

    def total(self, phase: int | None = None) -> int:
        """Number of units that are done or ahead, in a phase or in all."""
        phases = range(len(self._ahead)) if phase is None else [phase]
        return sum(self._done[p] + self._ahead[p].total() for p in phases)

    def rate(self, phase: int) -> float | None:
        """Units a second of wall time in a phase; None before the first is done."""
        return self._done[phase] / self._elapsed[phase] if self._elapsed[phase] > 0 else None

    def share(self, now: float) -> float | None:
        """Share of the compute seconds that are done; None where nothing was measured yet."""
        ahead = [estimate and estimate[0] for estimate in self._estimates(now)]
        known = [seconds for seconds in ahead if seconds is not None]
        if len(known) < len(ahead):
            return None
        spent = sum(self._spent)
        return spent / (spent + sum(known)) if spent + sum(known) > 0 else 1.0

    def remaining(self, now: float, phase: int | None = None) -> float | None:
        """Seconds of wall time until a phase, or all, is done; None if nothing was measured yet."""
        estimates = self._estimates(now)
        chosen = estimates if phase is None else [estimates[phase]]
        known = [estimate[1] for estimate in chosen if estimate is not None]
        return sum(known) if len(known) == len(chosen) else None

    def look_again(self) -> None:
        """Estimate anew when asked next, however fresh the last estimate is."""
        self._estimated = None

    def _estimates(self, now: float) -> list[tuple[float, float] | None]:
        """Of each phase, compute seconds and seconds ahead."""
        if self._estimated is None or now - self._estimated >= _FRESH or self._ended:
            self._estimated = now
            self._estimate = [self._estimated_of(phase) for phase in range(len(self._ahead))]
        return self._estimate

    @property
    def _ended(self) -> bool:
        return not any(ahead.total() for ahead in self._ahead)

    def _estimated_of(self, phase: int) -> tuple[float, float] | None:
        ahead = 0.0
        for (job, model), units in self._ahead[phase].items():
            if units > 0:
                seconds = self._costs.seconds(job, model)
                if seconds is None:
                    return None
                ahead += units * seconds
        return ahead, ahead / self._speed(phase)

    def _speed(self, phase: int) -> float:
        """Compute seconds that are done in a second: in this phase, in all, or by guess."""
        for phases in ([phase], range(len(self._ahead))):
            spent = sum(self._spent[p] for p in phases)
            elapsed = sum(self._elapsed[p] for p in phases)
            if spent > 0 and elapsed > 0:
                return spent / elapsed
        return float(self._workers)


class Events:
    """A file of events, one JSON object a line, written as they happen.

    A file that is there is continued, as the run is.

    Args:
        path: of the file.
        wall: the time in seconds since 1970.

    Raises:
        UsageError: it cannot be written.
        OperationalError: the disk is full or broken.
    """

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._path, self._wall = path, wall
        try:
            # Without a buffer: what could not be written is not tried again at the end.
            self._file: IO[bytes] = path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from None

    def write(self, event: str, **fields: object) -> None:
        """Write one event, with the time."""
        line = json.dumps({"event": event, "time": round(self._wall(), 3), **fields}) + "\n"
        try:
            rest = memoryview(line.encode())
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _failure(self, error: OSError) -> Exception:
        return os_failure(error, f"to write events to {self._path}", "choose another --log-json")


def event_file(path: Path | None) -> Path | None:
    """Insist that events can be written to a file, if one is named; nothing is made.

    Raises:
        UsageError: it cannot be written, or holds something else.
    """
    if path is not None:
        require_own(inputs.file_to_write(path), '{"event": ')
    return path


class Watch:
    """Tells of a run while it goes on.

    Args:
        plan: of the run.
        forecast: with what is expected.
        quiet: neither bar nor lines.
        events: file to continue with events; None for none.
        clock: seconds that pass.
        say: takes a line, where nobody watches a terminal.
    """

    def __init__(
        self,
        plan: Plan,
        forecast: Forecast,
        quiet: bool,
        events: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = remark,
    ) -> None:
        self._plan, self.forecast, self._clock, self._say = plan, forecast, clock, say
        self._lines = not quiet and not remarks.is_terminal
        self._progress = _bar(quiet)
        self._task: TaskID | None = None
        self._events = None if events is None else Events(events)
        self._phase = 0
        self._phases: Sequence[int] = ()
        self._started = self._last = clock()
        self._percent: int | None = None
        self._said = False

    def __enter__(self) -> "Watch":
        now = self._clock()
        self._phases = [p for p in (0, 1) if self.forecast.total(p)]
        self._write(
            "start",
            suite=self._plan.suite.name,
            share=self._plan.share,
            total=self.forecast.total(),
            remaining=_rounded(self.forecast.remaining(now)),
        )
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        done, total = self.forecast.done(), self.forecast.total()
        elapsed = self._clock() - self._started
        if kind is None and self._said:
            self._say(f"{self._plan.suite.name}: {done} units in {_clocked(elapsed)}")
        outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        outcome = "done" if kind is None else outcome
        try:
            self._write("end", outcome=outcome, done=done, total=total, seconds=round(elapsed, 3))
        except Exception:
            if error is None:  # else it is said what came first
                raise
        finally:
            if self._events is not None:
                self._events.close()

    def begin(self, phase: int, work: Iterable[tuple[Job, Unit]]) -> None:
        """Tell that a phase begins, and which units it has after all."""
        self._phase = phase
        self.forecast.expect(phase, [(job, self._model(job)) for job, _ in work])
        if self.forecast.total(phase) and phase not in self._phases:
            self._phases = sorted([*self._phases, phase])
        self.forecast.begin(phase, self._clock())
        if self._task is None and self.forecast.total():
            self._task = self._progress.add_task(
                self._plan.suite.name, total=1.0, end=None, said=""
            )

    def unit(self, job: Job, unit: Unit, seconds: float) -> None:
        """Tell that a unit is done and kept."""
        now, forecast = self._clock(), self.forecast
        forecast.note(self._phase, job, self._model(job), seconds, now)
        remaining = forecast.remaining(now)
        self._write(
            "unit",
            phase=self._phase + 1,
            model=self._model(job),
            kind=job.kind,
            name=job.name,
            threat=job.norm and {"norm": job.norm, "eps": job.eps},
            images=len(unit.indices),
            seconds=round(seconds, 6),
            done=forecast.done(),
            total=forecast.total(),
            remaining=_rounded(remaining),
        )
        if self._task is not None:
            self._progress.update(
                self._task,
                completed=forecast.share(now) or 0.0,
                end=None if remaining is None else time.monotonic() + remaining,
                said=f"{forecast.done()}/{forecast.total()} units; {self._phase_in_words(now)}",
            )
        if self._lines:
            self._line(now)

    def spare(self, jobs: Iterable[Job]) -> None:
        """Tell of units that need not be done after all, by their jobs."""
        for job in jobs:
            self.forecast.spare(self._phase, job, self._model(job))

    def interruption(self, kept_in: Path | None) -> str:
        """What is kept of a run that is interrupted, and how to go on, in words."""
        done = f"{self.forecast.done()} of {self.forecast.total()} units were done"
        if kept_in is None:
            return f"{done}; nothing is kept, the same command begins again"
        return f"{done}; the same command goes on from these and all of before, kept in {kept_in}"

    def _line(self, now: float) -> None:
        """Say how far it is, if it is long enough since that was said last."""
        silence = now - self._last
        if silence < _PAUSE or (self._percentage(now) == self._percent and silence < _SILENCE):
            return
        self.forecast.look_again()
        percent = self._percentage(now)
        self._last, self._percent, self._said = now, percent, True
        done, total = self.forecast.done(), self.forecast.total()
        of_work = "" if percent is None else f", {percent}% of the work"
        left = _left(self.forecast.remaining(now))
        name = self._plan.suite.name
        self._say(f"{name}: {done} of {total} units{of_work}{left}; {self._phase_in_words(now)}")

    def _percentage(self, now: float) -> int | None:
        share = self.forecast.share(now)
        return None if share is None else int(100 * share)

    def _phase_in_words(self, now: float) -> str:
        phase, forecast = self._phase, self.forecast
        number = self._phases.index(phase) + 1
        rate = forecast.rate(phase)
        at = "" if rate is None else f" at {rate:.2g} a second"
        left = _left(forecast.remaining(now, phase))
        count = f"{forecast.done(phase)} of {forecast.total(phase)}"
        return f"phase {number} of {len(self._phases)}: {count}{at}{left}"

    def _model(self, job: Job) -> str:
        return self._plan.models[job.model].name

    def _write(self, event: str, **fields: object) -> None:
        if self._events is not None:
            self._events.write(event, **fields)


class _LeftColumn(ProgressColumn):
    """The time that is left; it runs on while a unit takes long."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        end = task.fields["end"]
        return Text(
            "" if end is None else f"about {_clocked(max(0.0, end - time.monotonic()))} left"
        )


def _bar(quiet: bool) -> Progress:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        _LeftColumn(),
        TextColumn("{task.fields[said]}", markup=False),
    )
    return progress_bar(columns, quiet)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f", about {_clocked(seconds)} left"


def _clocked(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
