"""Making what is stale, part by part; what was made is noted, and not made again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeGuard

from pydantic import Field

from robustness import api, inputs
from robustness.claims.models import study_of
from robustness.claims.report import write_claims
from robustness.claims.results import read_seed, stored
from robustness.claims.run import measure_claims
from robustness.errors import OperationalError, UsageError, one_line
from robustness.evaluation.environment import environment
from robustness.evaluation.recomputation import Recomputation
from robustness.files import read_json, require_own, write_file
from robustness.reproduction.plan import (
    CardsPart,
    ClaimsPart,
    IndexPart,
    Part,
    SuitePart,
    read_plan,
)
from robustness.reproduction.state import State, run_python, state_of
from robustness.results.leaderboard import LEADERBOARD_FILE, Summary, read_leaderboard

# Beside the plan: which part was last made at which commit, and how long it took.
RECORD_FILE = "reproduced.json"


class Made(Summary):
    """When a part was last made.

    Attributes:
        commit: of the checkout; None outside of one.
        seconds: of wall time that it took: of a report, all starts on its results; of the claims,
            their trainings.
        finished: when, ISO 8601.
    """

    commit: str | None
    seconds: float
    finished: str


class Record(Summary):
    """What was made, and computed again since, by the names of the parts."""

    made: dict[str, Made] = Field(default_factory=dict)
    recomputed: dict[str, Recomputation] = Field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: of the part.
        state: how it stands, after it was made where it was.
        made: whether it was made.
        seconds: that making it takes, by what is on record; None if nothing is.
        commit: that it names, or that it was made at; None where that is not known.
        recomputed: what came of units that were computed again since it was made.
    """

    name: str
    state: State
    made: bool
    seconds: float | None
    commit: str | None
    recomputed: Recomputation | None = None


def reproduce(
    plan: Path,
    *,
    only: Sequence[str] = (),
    dry_run: bool = False,
    anew: bool = False,
    recompute: int | None = None,
    data_dir: Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
    note: Callable[[str], None] | None = None,
) -> list[Outcome]:
    """Make all parts of a plan that are stale, in their order.

    A part is stale where it differs from what the code at hand would make: other weights, recipes,
    suites, versions of libraries and of attacks, units of work that its store has not, or pages
    that its results do not give. An interrupted part goes on where it was: finished units, seeds
    and cards are kept.

    Args:
        plan: TOML file; its paths are seen from the working folder.
        only: names of parts; all by default.
        dry_run: make nothing, tell what is stale.
        anew: make all parts, so that all name this commit; units that are stored are kept.
        recompute: so many random units of every report that is not stale, or was made, are computed
            again, and what came of it is noted; a report of which any differs is stale until its
            store is taken away, and all of it computed anew.
        data_dir: folder with the official image files.
        workers: processes of suites.
        quiet: tell nothing of progress inside a part.
        note: told in a line what is looked at and made.

    Returns:
        What became of each part.

    Raises:
        UsageError: the plan or what it names is not usable.
        OperationalError: a script failed.
    """
    if recompute is not None:
        inputs.count("a number of units", recompute)
        if dry_run:
            raise UsageError(
                "expected --dry-run or --recompute, which computes, got both; leave one out"
            )
    parts = read_plan(plan).part
    if unknown := sorted(set(only) - {part.name for part in parts}):
        names = ", ".join(part.name for part in parts)
        raise UsageError(f"--only: expected one of {one_line(names, 160)}, got {unknown[0]!r}")
    file = plan.with_name(RECORD_FILE)
    require_own(file, '"made"')
    environment()  # the commit is that of the beginning, whatever is written meanwhile
    say = note or (lambda _: None)
    outcomes = []
    for part in parts:
        if only and part.name not in only:
            continue
        say(f"{part.name}: looking at what is there")
        state, made = state_of(part, data_dir), False
        # Without what it needs only the pages of a part can be made.
        if not dry_run and (state.stale or (anew and not state.needs)):
            say(f"{part.name}: {'; '.join(state.reasons) or 'made anew'}")
            began = time.perf_counter()
            _make(part, state, anew, data_dir, workers, quiet)
            _note_made(file, part, round(time.perf_counter() - began, 1))
            state, made = state_of(part, data_dir), True
        if recompute is not None and _has_store(part, state):
            say(f"{part.name}: computing {recompute} of its units again")
            _note_recomputed(
                file,
                part.name,
                api.recompute(
                    Path(part.out), units=recompute, data_dir=data_dir, workers=workers, quiet=quiet
                ),
            )
        record = _record(file)
        last, checked = record.made.get(part.name), _of_this_report(part, record)
        if checked is not None and not checked.agrees:
            state = replace(state, reasons=(*state.reasons, *map(_otherwise, checked.different)))
        seconds = state.seconds if state.seconds or last is None else last.seconds
        commit = state.commit or (last.commit if last else None)
        outcomes.append(Outcome(part.name, state, made, seconds, commit, checked))
    return outcomes


def _of_this_report(part: Part, record: Record) -> Recomputation | None:
    """What came of computing units of a report again, if it still says what it said then."""
    found = record.recomputed.get(part.name)
    if found is None or not isinstance(part, SuitePart):
        return None
    file = Path(part.out) / LEADERBOARD_FILE
    there = file.is_file() and read_leaderboard(file).digest() == found.report
    return found if there else None


def _otherwise(what: str) -> str:
    return f"computed otherwise: {what}; take its store away to compute all of it anew"


def _has_store(part: Part, state: State) -> TypeGuard[SuitePart]:
    """Whether a part is a report that stands, and can be computed again."""
    return isinstance(part, SuitePart) and part.store and not (state.stale or state.needs)


def _make(
    part: Part,
    state: State,
    anew: bool,
    data_dir: Path | None,
    workers: int | None,
    quiet: bool,
) -> None:
    if isinstance(part, SuitePart):
        _make_report(part, state, anew, data_dir, workers, quiet)
    elif isinstance(part, CardsPart):
        for folder, entry in state.entries.items():
            again, proving = entry.measured is not None, entry.proved is not None
            api.card(
                str(folder),
                data_dir=data_dir,
                remeasure=again,
                proving=proving,
                workers=workers,
                quiet=quiet,
            )
    elif isinstance(part, ClaimsPart):
        folder = Path(part.out)
        study = study_of(part.data)
        seeds = [stored(study, seed, folder) for seed in study.seeds]
        if not state.pages_alone and not all(results.complete for results in seeds):
            seeds = measure_claims(folder, data_dir, data=part.data, quiet=quiet)
        write_claims(seeds, folder)
    elif isinstance(part, IndexPart):
        api.render_index(Path(part.folder), Path(part.folder))
    else:
        done = run_python(part.make)
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"exit {done.returncode}"]
            raise OperationalError(
                f"{part.name}: expected {part.make[0]} to end with 0, got: "
                f"{one_line(said[-1], 120)}; run it alone"
            )


def _make_report(
    part: SuitePart,
    state: State,
    anew: bool,
    data_dir: Path | None,
    workers: int | None,
    quiet: bool,
) -> None:
    folder = Path(part.out)
    if state.pages_alone and (state.needs or not anew):
        api.render(folder, folder)
        return
    samples = part.samples if isinstance(part.samples, int) else None
    api.evaluate(
        part.suite, samples=samples, out=folder, data_dir=data_dir, workers=workers, quiet=quiet
    )
    if part.store:
        api.render(folder, folder, pack=True)


def _record(file: Path) -> Record:
    if not file.is_file():
        return Record()
    return read_json(file, Record, "a record of what was made", "move it away")


def _note_made(file: Path, part: Part, seconds: float) -> None:
    """Note that a part was made just now."""
    if isinstance(part, SuitePart):
        seconds = _all_starts(Path(part.out)) or seconds
    elif isinstance(part, ClaimsPart):
        seeds = [read_seed(seed, Path(part.out)) for seed in study_of(part.data).seeds]
        trained = sum(b.seconds for results in seeds for b in results.budgets.values())
        seconds = max(seconds, round(trained, 1))
    now = datetime.now(UTC).isoformat(timespec="seconds")
    made = Made(commit=environment().get("commit"), seconds=seconds, finished=now)
    record = _record(file)
    _write(file, Record(made=record.made | {part.name: made}, recomputed=record.recomputed))


def _all_starts(folder: Path) -> float | None:
    """Wall time of all starts on the results of a report; None where it does not tell."""
    timings = read_leaderboard(folder).timings
    whole = [seconds for name, seconds in timings.items() if name.startswith("wall seconds of ")]
    return max(whole, default=None)


def _note_recomputed(file: Path, name: str, found: Recomputation) -> None:
    record = _record(file)
    _write(file, Record(made=record.made, recomputed=record.recomputed | {name: found}))


def _write(file: Path, record: Record) -> None:
    write_file(file, (record.model_dump_json(indent=1) + "\n").encode())
