"""Per-sample results in SQLite, keyed by what they depend on.

A unit's rows and the note that it is done are one transaction: a run that is killed loses at
most the units in flight, and what is noted as done is whole. The note holds how many rows there
are and their SHA-256, so that what was damaged since is told from what was computed. A file in
which anything is damaged is kept under another name, and a new one begun with all that is whole.
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any

from robustness.errors import UsageError
from robustness.evaluation.database import (
    DamagedError,
    Database,
    Values,
    alone_in,
    create,
    require_database,
)
from robustness.evaluation.jobs import KINDS, Result
from robustness.evaluation.jobs.rows import create_statement, row_of, statement_of, values_of
from robustness.evaluation.plan import Job, Plan
from robustness.registry import plugins
from robustness.terminal import remark

# Other columns of these two tables need another version; the tables of rows follow from the kinds
# of jobs, one for each version of a kind.
_SCHEMA_VERSION = 4
_OLDER = (2, 3)
# "LyaR" in ASCII, by which a store is told from other people's databases, but for the first ones.
_UNMARKED = 2
_APPLICATION = 0x4C796152
_SCHEMA = """
CREATE TABLE shards (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, code INTEGER NOT NULL, job TEXT NOT NULL,
    model TEXT NOT NULL, seconds REAL NOT NULL, finished REAL NOT NULL, rows INTEGER NOT NULL,
    digest TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, plan TEXT NOT NULL, environment TEXT NOT NULL, started REAL NOT NULL,
    wall_seconds REAL, digest TEXT NOT NULL);
"""

# Share of a number that last bits are less than, float32's through some hundred sums included.
_CLOSE = 1e-6

# Names of the tables of rows.
_TABLE = re.compile(r"[a-z]+(_[a-z]+)*_[1-9][0-9]*")


@dataclass(frozen=True)
class Run:
    """A run that is stored.

    Attributes:
        plan: of it.
        environment: versions of all that computed its units.
        wall_seconds: that it took.
        ended: whether it is complete.
    """

    plan: Plan
    environment: dict[str, str]
    wall_seconds: float
    ended: bool = True


@dataclass(frozen=True)
class _Start:
    """The note of a run; `wall` is None where it was interrupted."""

    number: int
    plan: str
    environment: str
    started: float
    wall: float | None


class Agreement(Enum):
    """How the rows of a unit that was computed again compare with those before.

    On another kind of processor sums are in another order: numbers then differ in their last bits,
    by less than a millionth, and nothing else does.
    """

    SAME = "same"
    CLOSE = "close"
    OTHER = "other"


class Store:
    """The results of any number of runs, of which each takes what it needs.

    A file that is damaged is renamed when it is opened, and a new one begun with every unit of it
    that is whole; this is said in one line.

    Args:
        path: the SQLite file, created where absent. A store of an earlier version is renamed, and
            a new one begun.
        must_exist: neither create nor change it.

    Raises:
        UsageError: there is no file, it is somebody else's database, or a store of a later
            version; of an earlier one where it must exist.
        DamagedError: it is damaged and may not be changed.
        OperationalError: the disk failed, or another process holds the file.
    """

    def __init__(self, path: Path, must_exist: bool = False) -> None:
        self.path = path
        self._whole: set[str] = set()
        if must_exist and not path.exists():
            raise UsageError(
                f"expected results at {path}, got no such file; run `robustness evaluate` first"
            )
        with alone_in(path.parent):
            if not path.exists():
                create(path, _new)
            try:
                self._db = _checked(path, must_exist)
            except _OlderError as older:
                if must_exist:
                    raise UsageError(str(older)) from None
                _set_aside(path, older)
                self._db = _checked(path, must_exist)
            except DamagedError as damage:
                if must_exist:
                    raise
                _begin_again(path, damage)
                self._db = _checked(path, must_exist)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, result: Result, job: Job, model: str) -> None:
        """Store one unit in one transaction."""
        table, rows = _table(job.kind, job.code), [values_of(row) for row in result.rows]
        with self._db.transaction():
            if table not in self._db.schema():
                self._db.query(statement_of(table, KINDS[job.kind].row))
            self._db.query(f"DELETE FROM {table} WHERE key = ?", (result.key,))
            self._db.insert(table, [(result.key, *row) for row in rows])
            about = (job.kind, job.code, json.dumps(vars(job)), model)
            note = (*about, result.seconds, time.time())
            stored = _rows(self._db, table, result.key)
            if _sorted(stored) != _sorted(rows):
                raise DamagedError(f"{self.path}, which gives back other rows than it was given")
            digest = _digest(result.key, *note, stored)
            self._db.insert("shards", [(result.key, *note, len(stored), digest)])

    def done(self) -> set[str]:
        """Keys of all units that are stored."""
        return {key for (key,) in self._db.query("SELECT key FROM shards")}

    def rows(self, job: Job, keys: Iterable[str]) -> list[Any]:
        """All rows of some units of a job, in the order of the keys.

        Raises:
            DamagedError: a unit is missing, or not as it was when it was added.
        """
        table, row, found = _table(job.kind, job.code), KINDS[job.kind].row, []
        for key in keys:
            if key not in self._whole and not _is_whole(self._db, key):
                raise DamagedError(f"{self.path}, of which a unit of kind {job.kind} is gone")
            self._whole.add(key)
            found += [row_of(row, values) for values in _rows(self._db, table, key)]
        return found

    def seconds(self, keys: Iterable[str]) -> float:
        """Compute time of some units that are stored."""
        query = "SELECT seconds FROM shards WHERE key = ?"
        return float(sum(self._db.query(query, (key,))[0][0] for key in keys))

    def costs(self) -> list[tuple[Job, str, int, float]]:
        """What units took that are stored: job, name of its model, how many, seconds.

        Of jobs that this version knows, of whatever runs.
        """
        query = "SELECT kind, code, job, model, count(*), sum(seconds) FROM shards GROUP BY 1,2,3,4"
        return [
            (Job.of(json.loads(job)), model, units, seconds)
            for kind, code, job, model, units, seconds in self._db.query(query)
            if kind in KINDS and KINDS[kind].version == code
        ]

    def begin_run(self, plan: Plan, environment: dict[str, str]) -> int:
        """Note that a run was started; its report can be rendered again from this note."""
        note = (plan.to_json(), json.dumps(environment), time.time(), None)
        with self._db.transaction():
            ((number,),) = self._db.query("SELECT coalesce(max(id), 0) + 1 FROM runs")
            self._db.insert("runs", [(number, *note, _digest(number, *note))])
            return int(number)

    def end_run(self, run: int, wall_seconds: float) -> None:
        """Note that a run is complete."""
        with self._db.transaction():
            query = "SELECT id, plan, environment, started FROM runs WHERE id = ?"
            for note in self._db.query(query, (run,)):
                whole = (*note, wall_seconds)
                self._db.insert("runs", [(*whole, _digest(*whole))])

    def wall_seconds(self, suite: str, keys: Collection[str] | None = None) -> list[float]:
        """Wall time of every start of a suite, in order.

        A start that was interrupted lasted until the last unit that it stored.

        Args:
            suite: its name.
            keys: of units; of starts before the last, only those that computed one of them.
        """
        starts = [(at, wall) for plan, _, at, wall in self.starts() if _suite_of(plan) == suite]
        if keys is None:
            return [wall for _, wall in starts]
        query = "SELECT key, finished FROM shards"
        finished = [when for key, when in self._db.query(query) if key in keys]
        earlier = [
            wall for at, wall in starts[:-1] if any(at <= when <= at + wall for when in finished)
        ]
        return earlier + [wall for _, wall in starts[-1:]]

    def commits(self, keys: Collection[str]) -> list[str]:
        """Commits of the code that computed units, in the order in which they came.

        By the starts during which units were finished: of stores that were united all that ran
        then. The last is `unknown` if some unit was finished in none that names a commit.
        """
        query = "SELECT key, finished FROM shards"
        finished = [when for key, when in self._db.query(query) if key in keys]
        found, told = [], set[float]()
        for _, environment, at, wall in self.starts():
            commit = json.loads(environment).get("commit")
            within = {when for when in finished if at <= when <= at + wall}
            if commit and within:
                found.append(commit)
                told |= within
        return [*dict.fromkeys(found), *(["unknown"] if set(finished) - told else [])]

    def starts(self) -> list[tuple[str, str, float, float]]:
        """Plan, environment, time and wall time of every start, in order; see `wall_seconds`."""
        starts = sorted(self._starts(), key=lambda start: start.started)
        ends = [*(start.started for start in starts[1:]), math.inf][: len(starts)]
        lasted = []
        for start, end in zip(starts, ends, strict=True):
            wall = start.wall
            if wall is None:
                query = "SELECT max(finished) FROM shards WHERE finished BETWEEN ? AND ?"
                ((last,),) = self._db.query(query, (start.started, end))
                wall = (last or start.started) - start.started
            lasted.append((start.plan, start.environment, start.started, wall))
        return lasted

    def fingerprints(self) -> list[tuple[str, str, str]]:
        """Name, identity and fingerprint of every model of every start, as far as they are told."""
        models = [
            model for plan, *_ in self.starts() for model in json.loads(plan).get("models", ())
        ]
        told = (
            (m["name"], m.get("identity", ""), m["fingerprint"])
            for m in models
            if m.get("fingerprint")
        )
        return list(dict.fromkeys(told))

    def last_run(self) -> Run:
        """The last complete run.

        Raises:
            UsageError: no run was completed, or it was planned by another version.
        """
        complete = [start for start in self._starts() if start.wall is not None]
        if not complete:
            raise UsageError(
                f"{self.path}: expected a complete run, got none; run `robustness evaluate` again"
            )
        run = self._run(complete[-1])
        if run.plan.share is not None:
            number, count = run.plan.share
            raise UsageError(
                f"{self.path}: expected the results of a whole run, got share {number} of {count}; "
                "unite all of them with `robustness merge`"
            )
        return run

    def last_start(self) -> Run:
        """The last run, of a share or not, complete or not.

        Raises:
            UsageError: there was none, or it was planned by another version.
        """
        starts = self._starts()
        if not starts:
            raise UsageError(f"{self.path}: expected the results of a run, got none; name another")
        return self._run(starts[-1])

    def digest(self, key: str) -> str:
        """SHA-256 of the rows of a unit that is stored; of nothing that differs between runs."""
        kind, code = self._db.query("SELECT kind, code FROM shards WHERE key = ?", (key,))[0]
        return _digest(_sorted(_rows(self._db, _table(kind, code), key)))

    def agreement(self, result: Result, job: Job) -> Agreement:
        """How rows of a unit compare with those that are stored of it."""
        stored = _sorted(_rows(self._db, _table(job.kind, job.code), result.key))
        given = _sorted([values_of(row) for row in result.rows])
        if stored == given:
            return Agreement.SAME
        pairs = zip(stored, given, strict=False)
        close = len(stored) == len(given) and all(_close(*rows) for rows in pairs)
        return Agreement.CLOSE if close else Agreement.OTHER

    def copy(self, key: str, database: Database) -> None:
        """Copy one unit that is stored to another store's database."""
        _copy(self._db, database, key)

    def named(self, key: str) -> str:
        """A unit that is stored, in words."""
        query = "SELECT kind, job, model FROM shards WHERE key = ?"
        return _named(*self._db.query(query, (key,))[0])

    def _run(self, start: _Start) -> Run:
        try:
            parsed, versions = Plan.from_json(start.plan), json.loads(start.environment)
            if any(KINDS[job.kind].version != job.code for job in parsed.jobs):
                raise ValueError("of another code")
        except (KeyError, TypeError, ValueError):
            lacking = _lacking_plugins(start.environment)
            if lacking:
                raise UsageError(
                    f"{self.path}: expected the plugins that the run was planned with, got no "
                    f"{', '.join(lacking)}; install them, or name each with --plugin"
                ) from None
            raise UsageError(
                f"{self.path}: expected a run that this version planned, got one of another; run "
                "`robustness evaluate` again"
            ) from None
        return Run(parsed, versions, start.wall or 0.0, start.wall is not None)

    @classmethod
    def unite(cls, path: Path, stores: Sequence["Store"], run: Run, started: float) -> None:
        """Make a store of all that others hold, in one step: all of it or nothing.

        Args:
            path: where nothing is yet.
            stores: of which none contradicts another; the first that has a unit gives it.
            run: to be noted as the last one.
            started: when it began, in seconds since 1970.

        Raises:
            OperationalError: the disk failed.
            DamagedError: one of the stores is damaged.
        """

        def fill(database: Database) -> None:
            _new(database)
            with database.transaction():
                for store in stores:
                    have = {key for (key,) in database.query("SELECT key FROM shards")}
                    for key in sorted(store.done() - have):
                        store.copy(key, database)
                # A start that was interrupted lasted until the last unit of its own store.
                notes = [note for store in stores for note in store.starts()]
                notes.sort(key=lambda note: note[2])
                last = run.plan.to_json(), json.dumps(run.environment), started, run.wall_seconds
                for number, note in enumerate([*notes, last], 1):
                    database.insert("runs", [(number, *note, _digest(number, *note))])

        create(path, fill)

    def extract(self, path: Path, keys: Iterable[str], suite: str) -> None:
        """Make a store of some units, with the notes of all starts of one suite.

        Args:
            path: where nothing is yet.
            keys: of the units, which are all here.
            suite: its name; the last complete run is of it, and stays the last.

        Raises:
            OperationalError: the disk failed.
            DamagedError: a unit is damaged.
        """
        complete = [start.started for start in self._starts() if start.wall is not None]

        def fill(database: Database) -> None:
            _new(database)
            with database.transaction():
                for key in sorted(keys):
                    self.copy(key, database)
                notes = [note for note in self.starts() if _suite_of(note[0]) == suite]
                # A start that was interrupted is noted as ended when its last unit was.
                notes.sort(key=lambda note: note[2] == complete[-1])
                for number, note in enumerate(notes, 1):
                    database.insert("runs", [(number, *note, _digest(number, *note))])

        create(path, fill)

    def _starts(self) -> list[_Start]:
        return [_Start(*row[:5]) for row in self._db.query("SELECT * FROM runs ORDER BY id")]


def _lacking_plugins(environment: str) -> list[str]:
    """The plugins of a run's environment that this process has not."""
    with suppress(ValueError):
        names = json.loads(environment)
        found = {n.removeprefix("plugin ") for n in names if n.startswith("plugin ")}
        return sorted(found - set(plugins()))
    return []


def _table(kind: str, code: int) -> str:
    """The table of the rows of one version of a kind of job."""
    return f"{kind.replace('-', '_')}_{code}"


def _sorted(rows: list[Values]) -> list[Values]:
    return sorted(rows, key=repr)


def _close(first: Values, second: Values) -> bool:
    """Whether two rows are the same but for the last bits of numbers that are no whole ones."""
    return len(first) == len(second) and all(
        a == b
        or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=_CLOSE))
        for a, b in zip(first, second, strict=True)
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=bytes.hex).encode()).hexdigest()


def _new(database: Database) -> None:
    """Make the tables of a store in an empty database."""
    database.script(_SCHEMA)
    database.query(f"PRAGMA application_id={_APPLICATION}")
    database.query(f"PRAGMA user_version={_SCHEMA_VERSION}")


def _checked(path: Path, read_only: bool) -> Database:
    """Open a file that is a store of this version and whole as a file."""
    require_database(path)
    database = Database(path, read_only)
    try:
        _require_store(database)
        _require_units(database)
    except BaseException:
        database.close()
        raise
    return database


class _OlderError(Exception):
    """A store is of an earlier version of this package."""

    def __init__(self, path: Path, version: int) -> None:
        self.version = version
        super().__init__(
            f"{path}: expected a store of version {_SCHEMA_VERSION}, got {version}; run "
            "`robustness evaluate` again, which keeps it under another name"
        )


def _require_store(database: Database) -> None:
    path = database.path
    assert path is not None
    application, version = (
        database.query(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")
    )
    found, expected = database.schema(), _tables()
    ours = application == (_APPLICATION if version > _UNMARKED else 0)
    if version in _OLDER and ours and found.keys() >= {"shards", "runs", "clean"}:
        raise _OlderError(path, version)
    if application != _APPLICATION and (strange := sorted(found.keys() - expected.keys())):
        raise UsageError(
            f"expected a store at {path}, got another database, with the tables "
            f"{', '.join(strange)}; choose another folder"
        )
    if version not in (0, _SCHEMA_VERSION):
        raise UsageError(
            f"{path}: expected a store of version {_SCHEMA_VERSION}, got {version}; choose another "
            "--out, or move the file away to compute again"
        )
    different = [name for name in ("runs", "shards") if found.get(name) != expected[name]]
    different += [
        name
        for name in sorted(found.keys() - {"runs", "shards"})
        if found[name] != (expected.get(name) or _as_made_here(database, name))
    ]
    if different:
        raise DamagedError(f"{path}, of which tables differ: {', '.join(different)}")
    wrong = [row[0] for row in database.query("PRAGMA integrity_check(1)") if row[0] != "ok"]
    if wrong:
        raise DamagedError(f"{path}: {wrong[0]}")
    if (application, version) != (_APPLICATION, _SCHEMA_VERSION):
        raise DamagedError(f"{path}, of which the header says version {version}")


def _tables() -> dict[str, str]:
    """The statements of all tables that this process may make."""
    with closing(Database(None)) as database:
        database.script(_SCHEMA)
        tables = database.schema()
    for kind in KINDS.values():
        table = _table(kind.name, kind.version)
        tables[table] = statement_of(table, kind.row)
    return tables


def _as_made_here(database: Database, name: str) -> str | None:
    """The statement by which this package would have made a table with its columns.

    So that rows of a kind that is not known here, or of an earlier version of one, are told from
    whatever else there may be in a database. None for what is no table of rows.
    """
    if not _TABLE.fullmatch(name):
        return None
    about = database.query('SELECT name, type, "notnull", pk FROM pragma_table_info(?)', (name,))
    declarations = [
        f"{column} {kind} NOT NULL" if required else f"{column} {kind}"
        for column, kind, required, _ in about
        if column != "key"
    ]
    identity = [column for column, *_, place in about if place and column != "key"]
    return create_statement(name, declarations, identity)


def _require_units(database: Database) -> None:
    """Insist that every unit and the note of every run is as it was written.

    Raises:
        DamagedError: one is not; it names which.
    """
    units = database.query("SELECT key, kind, job, model FROM shards")
    damaged = [_named(*about) for key, *about in units if not _is_whole(database, key)]
    runs = database.query("SELECT * FROM runs")
    damaged += [f"the note of run {run[0]}" for run in runs if not _run_is_whole(run)]
    if damaged:
        first, *others = dict.fromkeys(damaged)
        more = f" and {len(others)} more" if others else ""
        raise DamagedError(f"{database.path}, of which {first}{more} is damaged")


def _suite_of(plan: str) -> str:
    return str(json.loads(plan)["suite"]["name"])


def _named(kind: str, job: str, model: str) -> str:
    """A unit in words, as far as its own note can be believed."""
    try:
        return f"{Job.of(json.loads(job))} of {model}"
    except (LookupError, TypeError, ValueError):
        return f"something of kind {kind}"


def _begin_again(path: Path, damage: DamagedError) -> None:
    """Put a new store in the place of a damaged one, with all of that which is whole."""
    saved = found = 0

    def fill(database: Database) -> None:
        nonlocal saved, found
        _new(database)
        with suppress(DamagedError), closing(Database(path, read_only=True)) as old:
            require_database(path)
            saved, found = _save(old, database)

    kept = create(path, fill)
    name = kept.name if kept else "nothing"
    remark(
        f"{damage.got}; kept as {name}; of its {found} finished units {saved} are taken over, the "
        "others are computed again"
    )


def _set_aside(path: Path, older: _OlderError) -> None:
    """Put a new store in the place of one of an earlier version, which is kept."""
    kept = create(path, _new, f"version-{older.version}")
    name = kept.name if kept else "nothing"
    remark(
        f"{path} is of an earlier version, {older.version}, whose units this one computes again; "
        f"kept as {name}"
    )


def _save(old: Database, new: Database) -> tuple[int, int]:
    """Copy what is whole: how many units that is, and how many there were."""
    keys = [key for (key,) in old.query_readable("SELECT key FROM shards")]
    whole = [key for key in keys if _is_whole(old, key)]
    with new.transaction():
        for key in whole:
            _copy(old, new, key)
        runs = old.query_readable("SELECT * FROM runs")
        new.insert("runs", [run for run in runs if _run_is_whole(run)])
    return len(whole), len(keys)


def _copy(old: Database, new: Database, key: str) -> None:
    """Copy one unit, with its note as it is."""
    note = old.query("SELECT * FROM shards WHERE key = ?", (key,))
    table = _table(*note[0][1:3])
    made = _as_made_here(old, table)
    if made is not None and table not in new.schema():
        new.query(made)
    new.insert("shards", note)
    new.insert(table, [(key, *row) for row in _rows(old, table, key)])


def _is_whole(database: Database, key: str) -> bool:
    """Whether a unit is stored, and as it was when it was added."""
    try:
        ((_, *note, count, digest),) = database.query("SELECT * FROM shards WHERE key = ?", (key,))
        table = _table(*note[:2])
        rows = _rows(database, table, key) if _TABLE.fullmatch(table) else []
    except (AttributeError, DamagedError, ValueError):
        return False
    return bool((count, digest) == (len(rows), _digest(key, *note, rows)))


def _run_is_whole(run: Values) -> bool:
    return bool(run[-1] == _digest(*run[:-1]))


def _rows(database: Database, table: str, key: str) -> list[Values]:
    return [row[1:] for row in database.query(f"SELECT * FROM {table} WHERE key = ?", (key,))]
