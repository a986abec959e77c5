"""Per-sample results in SQLite, keyed by what they depend on.

A shard's rows and the note that it is done are one transaction: a run that is killed loses at
most the shards in flight, and what is noted as done is whole.
"""

import json
import math
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from robustness.errors import UsageError
from robustness.evaluation.plan import Job, Plan
from robustness.evaluation.work import Row, ShardResult

STORE_FILE = "results.sqlite"
_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS shards (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, job TEXT NOT NULL, model TEXT NOT NULL,
    seconds REAL NOT NULL, finished REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clean (
    key TEXT NOT NULL, sample INTEGER NOT NULL, label INTEGER NOT NULL, prediction INTEGER,
    status TEXT NOT NULL, nfe INTEGER, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attack (
    key TEXT NOT NULL, sample INTEGER NOT NULL, status TEXT NOT NULL, prediction INTEGER,
    linf REAL, l2 REAL, rejected INTEGER NOT NULL, detail TEXT NOT NULL, found_by TEXT NOT NULL,
    queries INTEGER NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS certificate (
    key TEXT NOT NULL, sample INTEGER NOT NULL, radius REAL NOT NULL, kind TEXT NOT NULL,
    reason TEXT NOT NULL, limited_by TEXT NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audit (
    key TEXT NOT NULL, sample INTEGER NOT NULL, radius REAL NOT NULL, status TEXT NOT NULL,
    prediction INTEGER, linf REAL, l2 REAL, detail TEXT NOT NULL, found_by TEXT NOT NULL,
    seed INTEGER NOT NULL, shape TEXT NOT NULL, original BLOB, adversarial BLOB,
    PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flags (
    key TEXT NOT NULL, name TEXT NOT NULL, raised INTEGER NOT NULL, value REAL,
    threshold REAL, detail TEXT NOT NULL, PRIMARY KEY (key, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS nearest (
    key TEXT NOT NULL, sample INTEGER NOT NULL, status TEXT NOT NULL, prediction INTEGER,
    linf REAL, l2 REAL, detail TEXT NOT NULL, PRIMARY KEY (key, sample)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS decay (
    key TEXT NOT NULL, sample INTEGER NOT NULL, step INTEGER NOT NULL, time REAL NOT NULL,
    potential REAL, right INTEGER NOT NULL, PRIMARY KEY (key, sample, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS flow (
    key TEXT NOT NULL, sample INTEGER NOT NULL, prediction INTEGER, PRIMARY KEY (key, sample))
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY, plan TEXT NOT NULL, environment TEXT NOT NULL, started REAL NOT NULL,
    wall_seconds REAL);
"""
_COLUMNS = {
    "clean": 5,
    "attack": 9,
    "certificate": 5,
    "decay": 5,
    "audit": 12,
    "flags": 5,
    "nearest": 6,
    "flow": 2,
}


class Store:
    """The results of any number of runs, of which each takes what it needs.

    Args:
        path: the SQLite file, created where absent; None keeps everything in memory.
        must_exist: refuse to create.

    Raises:
        UsageError: the file cannot be opened, is not a store, or is of another version.
    """

    def __init__(self, path: Path | None, must_exist: bool = False) -> None:
        self.path = path
        if must_exist and (path is None or not path.is_file()):
            raise UsageError(
                f"expected results at {path}, got no such file; run `robustness evaluate` first"
            )
        try:
            self._db = sqlite3.connect(path or ":memory:", timeout=30, isolation_level=None)
            if path is not None:
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and version != _SCHEMA_VERSION:
                raise UsageError(
                    f"{path}: expected a store of version {_SCHEMA_VERSION}, got {version}; "
                    "choose another --out or delete the file"
                )
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
        except sqlite3.Error as error:
            raise UsageError(
                f"expected a results store at {path}, got {error}; choose another --out or "
                "delete the file"
            ) from None

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

    def done(self) -> set[str]:
        """Keys of all shards that are stored whole."""
        return {row[0] for row in self._db.execute("SELECT key FROM shards")}

    def add(self, result: ShardResult, job: Job, model: str) -> None:
        """Store one shard in one transaction."""
        places = ",".join("?" * (_COLUMNS[result.kind] + 1))
        rows = [(result.key, *row) for row in result.rows]
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(f"INSERT OR REPLACE INTO {result.kind} VALUES ({places})", rows)
            self._db.execute(
                "INSERT OR REPLACE INTO shards VALUES (?,?,?,?,?,?)",
                (
                    result.key,
                    result.kind,
                    json.dumps(vars(job)),
                    model,
                    result.seconds,
                    time.time(),
                ),
            )
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def rows(self, kind: str, keys: Iterable[str]) -> list[Row]:
        """All rows of some shards, without the key column, in the order of the keys."""
        found: list[Row] = []
        for key in keys:
            rows = self._db.execute(f"SELECT * FROM {kind} WHERE key = ?", (key,))
            found += [row[1:] for row in rows]
        return found

    def seconds(self, keys: Iterable[str]) -> float:
        """Compute time of some shards."""
        query = "SELECT seconds FROM shards WHERE key = ?"
        return float(sum(self._db.execute(query, (key,)).fetchone()[0] for key in keys))

    def begin_run(self, plan: Plan, environment: dict[str, str]) -> int:
        """Note that a run was started; its report can be rendered again from this note."""
        cursor = self._db.execute(
            "INSERT INTO runs (plan, environment, started) VALUES (?,?,?)",
            (plan.to_json(), json.dumps(environment), time.time()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end_run(self, run: int, wall_seconds: float) -> None:
        """Note that a run is complete."""
        self._db.execute("UPDATE runs SET wall_seconds = ? WHERE id = ?", (wall_seconds, run))

    def wall_seconds(self, suite: str) -> list[float]:
        """Wall time of every start of a suite, in order.

        A start that was interrupted lasted until the last shard that it stored.
        """
        query = "SELECT json_extract(plan, '$.suite.name'), started, wall_seconds FROM runs"
        starts = self._db.execute(f"{query} ORDER BY started").fetchall()
        ends = [started for _, started, _ in starts[1:]] + [math.inf]
        lasted = []
        for (name, started, wall), end in zip(starts, ends, strict=True):
            if name != suite:
                continue
            if wall is None:
                query = "SELECT max(finished) FROM shards WHERE finished BETWEEN ? AND ?"
                wall = (self._db.execute(query, (started, end)).fetchone()[0] or started) - started
            lasted.append(wall)
        return lasted

    def last_run(self) -> tuple[Plan, dict[str, str], float, float]:
        """Plan, environment, start time and wall time of the last complete run.

        Raises:
            UsageError: no run was completed.
        """
        row = self._db.execute(
            "SELECT plan, environment, started, wall_seconds FROM runs "
            "WHERE wall_seconds IS NOT NULL ORDER BY id DESC LIMIT 1"
        ).fetchone()
        if row is None:
            raise UsageError(
                f"{self.path}: expected a complete run, got none; run `robustness evaluate` again"
            )
        return Plan.from_json(row[0]), json.loads(row[1]), row[2], row[3]
