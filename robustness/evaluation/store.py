"""Per-sample results in SQLite, keyed by what they depend on.

A unit's rows and the note that it is done are one transaction: a run that is killed loses at
most the units in flight, and what is noted as done is whole. The note holds how many rows there
are and their SHA-256, so that what was damaged since is told from what was computed. A file in
which anything is damaged is kept under another name, and a new one begun with all that is whole.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import get_args

from robustness.errors import UsageError
from robustness.evaluation.database import (
    DamagedError,
    Database,
    alone_in,
    create,
    require_database,
)
from robustness.evaluation.jobs.work import Row, ShardResult
from robustness.evaluation.plan import Job, JobKind, Plan
from robustness.registry import plugins
from robustness.terminal import remark

# Other columns need another version; a new table does not.
_SCHEMA_VERSION = 3
# "LyaR" in ASCII, by which a store is told from other people's databases.
_APPLICATION = 0x4C796152
_SCHEMA = """
CREATE TABLE shards (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, job TEXT NOT NULL, model TEXT NOT NULL,
    seconds REAL NOT NULL, finished REAL NOT NULL, rows INTEGER NOT NULL, digest TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE clean (
    key TEXT NOT NULL, sample INTEGER NOT NULL, label INTEGER NOT NULL, prediction INTEGER,
    status TEXT NOT NULL, nfe INTEGER, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE attack (
    key TEXT NOT NULL, sample INTEGER NOT NULL, status TEXT NOT NULL, prediction INTEGER,
    linf REAL, l2 REAL, rejected INTEGER NOT NULL, detail TEXT NOT NULL, found_by TEXT NOT NULL,
    queries INTEGER NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE certificate (
    key TEXT NOT NULL, sample INTEGER NOT NULL, radius REAL NOT NULL, kind TEXT NOT NULL,
    reason TEXT NOT NULL, limited_by TEXT NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE audit (
    key TEXT NOT NULL, sample INTEGER NOT NULL, radius REAL NOT NULL, status TEXT NOT NULL,
    prediction INTEGER, linf REAL, l2 REAL, detail TEXT NOT NULL, found_by TEXT NOT NULL,
    seed INTEGER NOT NULL, shape TEXT NOT NULL, original BLOB, adversarial BLOB,
    PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE flags (
    key TEXT NOT NULL, name TEXT NOT NULL, raised INTEGER NOT NULL, value REAL,
    threshold REAL, detail TEXT NOT NULL, PRIMARY KEY (key, name)) WITHOUT ROWID;
CREATE TABLE nearest (
    key TEXT NOT NULL, sample INTEGER NOT NULL, status TEXT NOT NULL, prediction INTEGER,
    linf REAL, l2 REAL, detail TEXT NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE decay (
    key TEXT NOT NULL, sample INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
    potential REAL, right INTEGER NOT NULL, PRIMARY KEY (key, sample, step)) WITHOUT ROWID;
CREATE TABLE flow (
    key TEXT NOT NULL, sample INTEGER NOT NULL, prediction INTEGER, PRIMARY KEY (key, sample))
    WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, plan TEXT NOT NULL, environment TEXT NOT NULL, started REAL NOT NULL,
    wall_seconds REAL, digest TEXT NOT NULL);
"""
_KINDS = get_args(JobKind)

_RunRow = tuple[int, str, str, float, float | None]


class Store:
    """The results of any number of runs, of which each takes what it needs.

    A file that is damaged is renamed when it is opened, and a new one begun with every unit of it
    that is whole; this is said in one line.

    Args:
        path: the SQLite file, created where absent; None keeps everything in memory.
        must_exist: neither create nor change it.

    Raises:
        UsageError: there is no file, it is somebody else's database, or a store of another
            version.
        DamagedError: it is damaged and may not be changed.
        OperationalError: the disk failed, or another process holds the file.
    """

    def __init__(self, path: Path | None, must_exist: bool = False) -> None:
        self.path = path
        self._whole: set[str] = set()
        if path is None:
            self._db = Database(None)
            self._db.script(_SCHEMA)
            return
        if must_exist and not path.exists():
            raise UsageError(
                f"expected results at {path}, got no such file; run `robustness evaluate` first"
            )
        with alone_in(path.parent):
            if not path.exists():
                create(path, _new)
            try:
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

    def add(self, result: ShardResult, job: Job, model: str) -> None:
        """Store one unit in one transaction."""
        with self._db.transaction():
            self._db.query(f"DELETE FROM {result.kind} WHERE key = ?", (result.key,))
            self._db.insert(result.kind, [(result.key, *row) for row in result.rows])
            note = (result.kind, json.dumps(vars(job)), model, result.seconds, time.time())
            # SQLite knows no NaN.
            rows = [tuple(None if v != v else v for v in row) for row in result.rows]
            stored = _rows(self._db, result.kind, result.key)
            if sorted(stored) != sorted(rows):
                raise DamagedError(f"{self.path}, which gives back other rows than it was given")
            digest = _digest(result.key, *note, stored)
            self._db.insert("shards", [(result.key, *note, len(stored), digest)])

    def done(self) -> set[str]:
        """Keys of all units that are stored."""
        return {key for (key,) in self._db.query("SELECT key FROM shards")}

    def rows(self, kind: str, keys: Iterable[str]) -> list[Row]:
        """All rows of some units, without the key column, in the order of the keys.

        Raises:
            DamagedError: a unit is missing, or not as it was when it was added.
        """
        found: list[Row] = []
        for key in keys:
            if key not in self._whole and not _is_whole(self._db, key):
                raise DamagedError(f"{self.path}, of which a unit of kind {kind} is gone")
            self._whole.add(key)
            found += _rows(self._db, kind, key)
        return found

    def seconds(self, keys: Iterable[str]) -> float:
        """Compute time of some units that are stored."""
        query = "SELECT seconds FROM shards WHERE key = ?"
        return float(sum(self._db.query(query, (key,))[0][0] for key in keys))

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

    def wall_seconds(self, suite: str) -> list[float]:
        """Wall time of every start of a suite, in order.

        A start that was interrupted lasted until the last unit that it stored.
        """
        starts = sorted(self._runs(), key=lambda run: run[3])
        ends = [*(started for _, _, _, started, _ in starts[1:]), math.inf][: len(starts)]
        lasted = []
        for (_, plan, _, started, wall), end in zip(starts, ends, strict=True):
            if json.loads(plan)["suite"]["name"] != suite:
                continue
            if wall is None:
                query = "SELECT max(finished) FROM shards WHERE finished BETWEEN ? AND ?"
                wall = (self._db.query(query, (started, end))[0][0] or started) - started
            lasted.append(wall)
        return lasted

    def last_run(self) -> tuple[Plan, dict[str, str], float, float]:
        """Plan, environment, start time and wall time of the last complete run.

        Raises:
            UsageError: no run was completed, or it was planned by another version.
        """
        complete = [run for run in self._runs() if run[4] is not None]
        if not complete:
            raise UsageError(
                f"{self.path}: expected a complete run, got none; run `robustness evaluate` again"
            )
        _, plan, environment, started, wall = complete[-1]
        assert wall is not None
        try:
            return Plan.from_json(plan), json.loads(environment), started, wall
        except (KeyError, TypeError, ValueError):
            lacking = _lacking_plugins(environment)
            if lacking:
                raise UsageError(
                    f"{self.path}: expected the plugins that the run was planned with, got no "
                    f"{', '.join(lacking)}; install them, or name each with --plugin"
                ) from None
            raise UsageError(
                f"{self.path}: expected a run that this version planned, got one of another; run "
                "`robustness evaluate` again"
            ) from None

    def _runs(self) -> list[_RunRow]:
        return [(*row[:5],) for row in self._db.query("SELECT * FROM runs ORDER BY id")]


def _lacking_plugins(environment: str) -> list[str]:
    """The plugins of a run's environment that this process has not."""
    with suppress(ValueError):
        names = json.loads(environment)
        found = {n.removeprefix("plugin ") for n in names if n.startswith("plugin ")}
        return sorted(found - set(plugins()))
    return []


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


def _require_store(database: Database) -> None:
    path, expected = database.path, _tables()
    application, version = (
        database.query(f"PRAGMA {name}")[0][0] for name in ("application_id", "user_version")
    )
    found = database.schema()
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
    different = sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )
    if different:
        raise DamagedError(f"{path}, of which tables differ: {', '.join(different)}")
    wrong = [row[0] for row in database.query("PRAGMA integrity_check(1)") if row[0] != "ok"]
    if wrong:
        raise DamagedError(f"{path}: {wrong[0]}")
    if (application, version) != (_APPLICATION, _SCHEMA_VERSION):
        raise DamagedError(f"{path}, of which the header says version {version}")


def _tables() -> dict[str, str]:
    with closing(Database(None)) as database:
        database.script(_SCHEMA)
        return database.schema()


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


def _save(old: Database, new: Database) -> tuple[int, int]:
    """Copy what is whole: how many units that is, and how many there were."""
    keys = [key for (key,) in old.query_readable("SELECT key FROM shards")]
    whole = [key for key in keys if _is_whole(old, key)]
    with new.transaction():
        for key in whole:
            note = old.query("SELECT * FROM shards WHERE key = ?", (key,))
            new.insert("shards", note)
            kind = note[0][1]
            new.insert(kind, [(key, *row) for row in _rows(old, kind, key)])
        runs = old.query_readable("SELECT * FROM runs")
        new.insert("runs", [run for run in runs if _run_is_whole(run)])
    return len(whole), len(keys)


def _is_whole(database: Database, key: str) -> bool:
    """Whether a unit is stored, and as it was when it was added."""
    try:
        ((_, *note, count, digest),) = database.query("SELECT * FROM shards WHERE key = ?", (key,))
        kind = note[0]
        rows = _rows(database, kind, key) if kind in _KINDS else []
    except (DamagedError, ValueError):
        return False
    return bool((count, digest) == (len(rows), _digest(key, *note, rows)))


def _run_is_whole(run: Row) -> bool:
    return bool(run[-1] == _digest(*run[:-1]))


def _rows(database: Database, kind: str, key: str) -> list[Row]:
    return [row[1:] for row in database.query(f"SELECT * FROM {kind} WHERE key = ?", (key,))]
