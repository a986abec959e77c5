"""The SQLite file of a store: made whole or not at all, checked when opened, waited for when held.

A file that cannot be read whole is renamed, never deleted: a new one takes its place, with all
that could be saved.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from robustness.errors import OperationalError, UsageError, os_failure
from robustness.terminal import remark

# How long another process may hold the file, and after how long that is said.
PATIENCE_SECONDS = 60.0
_SILENCE_SECONDS = 2.0
_PAUSE_SECONDS = 0.05

_HELD = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_MACHINE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
}
_MAGIC = b"SQLite format 3\x00"
# What SQLite keeps beside a file that is in use.
_COMPANIONS = ("", "-wal", "-shm", "-journal")

Result = TypeVar("Result")
Values = tuple[Any, ...]


class DamagedError(OperationalError):
    """A store is not as this package wrote it.

    Args:
        got: which store, and what is wrong with it.
    """

    def __init__(self, got: str) -> None:
        self.got = got
        super().__init__(
            f"expected a whole store, got {got}; `robustness evaluate` keeps what is damaged and "
            "computes it again"
        )


class Database:
    """A connection that waits for other processes, and says in one line what fails.

    Args:
        path: an existing file; None keeps everything in memory.
        read_only: change nothing.

    Every method raises:
        DamagedError: the file is damaged.
        OperationalError: the disk or memory failed, or another process held the file for longer
            than `PATIENCE_SECONDS`.
    """

    def __init__(self, path: Path | None, read_only: bool = False) -> None:
        self.path = path
        where = ":memory:" if path is None else path.absolute().as_uri()
        mode = "" if path is None else f"?mode={'ro' if read_only else 'rw'}"
        # SQLite's own waiting cannot be interrupted.
        self._connection = self._safely(
            lambda: sqlite3.connect(where + mode, timeout=0.0, isolation_level=None, uri=True)
        )
        try:
            for setting in ("synchronous=NORMAL", "trusted_schema=OFF", "cell_size_check=ON"):
                self.query(f"PRAGMA {setting}")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def query(self, sql: str, values: Values = ()) -> list[Values]:
        """Run one statement, and give all that it answers."""
        return self._safely(lambda: self._connection.execute(sql, values).fetchall())

    def insert(self, table: str, rows: list[Values]) -> None:
        """Add rows, each with a value for every column."""
        for row in rows:
            places = ",".join("?" * len(row))
            self.query(f"INSERT OR REPLACE INTO {table} VALUES ({places})", row)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done within, or nothing of it."""
        self.query("BEGIN IMMEDIATE")
        try:
            yield
            self.query("COMMIT")
        except BaseException:
            # SQLite itself has rolled back where, say, the disk was full.
            if self._connection.in_transaction:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
            raise

    def query_readable(self, sql: str) -> list[Values]:
        """Of what a statement would answer, all up to the first damage."""
        rows: list[Values] = []
        with suppress(sqlite3.DatabaseError):
            for row in self._connection.execute(sql):
                rows.append(row)  # noqa: PERF402  (list() would lose what comes before the damage)
        return rows

    def script(self, statements: str) -> None:
        """Run statements that are divided by semicolons."""
        for statement in filter(str.strip, statements.split(";")):
            self.query(statement)

    def schema(self) -> dict[str, str]:
        """The statement that made each table, index, view and trigger, by its name."""
        query = "SELECT name, coalesce(sql, '') FROM sqlite_master WHERE name NOT LIKE 'sqlite|_%'"
        return dict(self.query(f"{query} ESCAPE '|'"))

    def _safely(self, action: Callable[[], Result]) -> Result:
        try:
            return _patiently(action, self.path)
        except sqlite3.DatabaseError as error:
            raise self._in_words(error) from error

    def _in_words(self, error: sqlite3.DatabaseError) -> OperationalError:
        if _code(error) in _MACHINE:
            return OperationalError(
                f"expected to use the store {self.path}, got: {error}; see whether its disk is "
                "full or its permissions changed, and run the same command again"
            )
        return DamagedError(f"{self.path}: {error}")


def _code(error: sqlite3.Error) -> int:
    """The primary result code; text that is no UTF-8 is found by Python, without one."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _patiently(action: Callable[[], Result], path: Path | None) -> Result:
    """Do `action`, again and again while another process holds the file."""
    started, told = time.monotonic(), False
    while True:
        try:
            return action()
        except BlockingIOError:
            pass
        except sqlite3.OperationalError as error:
            if _code(error) not in _HELD:
                raise
        waited = time.monotonic() - started
        if waited > PATIENCE_SECONDS:
            raise OperationalError(
                f"expected {path} to become free within {PATIENCE_SECONDS:.0f} s, got another "
                "process that holds it; end that one and run the same command again"
            )
        if waited > _SILENCE_SECONDS and not told:
            told = True
            remark(
                f"waiting for another process that holds {path}, for at most "
                f"{PATIENCE_SECONDS:.0f} s; Ctrl-C gives up"
            )
        time.sleep(_PAUSE_SECONDS)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that do the same, without writing anything."""
    try:
        number = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise os_failure(error, f"a folder at {folder}", "name another") from None
    try:
        # Some network file systems lock no folders; two runs that start at once are then on
        # their own.
        with suppress(OSError):
            _patiently(lambda: fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB), folder)
        yield
    finally:
        os.close(number)


def require_database(path: Path) -> None:
    """Insist that a file may be a database by its looks.

    Raises:
        UsageError: it is a folder, a pipe or a device.
        DamagedError: it is empty, or begins as no SQLite file does.
    """
    if not path.is_file():
        raise UsageError(f"expected a store at {path}, got something that is no file; name another")
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except OSError as error:
        raise os_failure(error, f"a store that can be read at {path}", "name another") from None
    if start != _MAGIC:
        raise DamagedError(f"{path}, which is {'no database' if start else 'empty'}")


def create(path: Path, fill: Callable[[Database], None], was: str = "damaged") -> Path | None:
    """Make a database in one step: under a name of its own first, and whole on the disk.

    Args:
        path: where it will be.
        fill: makes its tables, and puts in what it begins with.
        was: in the new name of a database that was there, what it was.

    Returns:
        What a database that was there is called now; None where there was none.
    """
    making, kept = path.with_name(f".{path.name}.{os.getpid()}.tmp"), None
    try:
        making.unlink(missing_ok=True)
        making.touch()
        with closing(Database(making)) as database:
            database.query("PRAGMA journal_mode=WAL")
            fill(database)
        _settle(making)
        if path.exists():
            kept = _move_aside(path, was)
        making.rename(path)
        _settle(path.parent)
    except OSError as error:
        raise os_failure(
            error, f"a store that can be made at {path}", "choose another folder"
        ) from None
    finally:
        for suffix in _COMPANIONS:
            with suppress(OSError):
                making.with_name(making.name + suffix).unlink()
    return kept


def _settle(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _move_aside(path: Path, was: str) -> Path:
    """Rename a database, with what SQLite keeps beside it, to a name that is free."""
    names = (path.with_stem(f"{path.stem}-{was}-{number}") for number in count(1))
    kept = next(name for name in names if not name.exists())
    for suffix in _COMPANIONS:
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(kept.with_name(kept.name + suffix))
    return kept
