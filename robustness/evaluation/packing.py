"""A store that travels with its report: what its last complete run is made of, in a small file."""

import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from robustness.errors import UsageError, one_line, os_failure
from robustness.evaluation.database import DamagedError
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.files import read_file, replace_file
from robustness.results.leaderboard import STORE_FILE

# The same store, compressed.
PACKED_FILE = f"{STORE_FILE}.xz"
# Beyond any store that is worth carrying about; a small file can claim to unpack to anything.
_MOST_BYTES = 2**30


def require_units(schedule: Schedule, path: Path) -> None:
    """Insist that every unit of a plan is stored.

    Args:
        schedule: of the plan.
        path: the store's file, for the message.

    Raises:
        DamagedError: one is not.
    """
    for late in (False, True):  # what the second phase is follows from a whole first one
        jobs = [job for job in schedule.plan.jobs if job.late is late]
        if missing := schedule.missing(jobs):
            what = f"{len(missing)} units of the last complete run are missing"
            raise DamagedError(f"{path}, of which {what}")


def keys_of(schedule: Schedule) -> set[str]:
    """The keys of all units of a run that is complete."""
    return {unit.key for job in schedule.plan.jobs for unit in schedule.units(job)}


def packed(store: Store) -> bytes:
    """The units of a store's last complete run, and the notes of all starts of its suite.

    Units of other runs, and of earlier versions, stay behind. The report is the same.

    Returns:
        An xz file; of equal stores equal bytes.

    Raises:
        UsageError: no run was completed.
        DamagedError: units of it are missing or damaged.
        OperationalError: the disk failed.
    """
    plan = store.last_run().plan
    schedule = Schedule(plan, store)
    require_units(schedule, store.path)
    keys = keys_of(schedule)
    with TemporaryDirectory() as folder:
        part = Path(folder) / STORE_FILE
        store.extract(part, keys, plan.suite.name)
        return lzma.compress(part.read_bytes(), preset=9)


def unpack(file: Path, place: Path) -> None:
    """Write the store of a packed one.

    Args:
        file: the packed store.
        place: where there is no store yet.

    Raises:
        UsageError: there is no such file, or it is no packed store.
        OperationalError: the disk failed.
    """
    try:
        replace_file(place, _decompressed(file))
    except OSError as error:
        raise os_failure(error, f"to unpack {file} to {place}", "give another folder") from None


def _decompressed(file: Path) -> bytes:
    remedy = "take it away, or get it again from where it came"
    try:
        reader = lzma.LZMADecompressor()
        content = reader.decompress(read_file(file), _MOST_BYTES)
        if not reader.eof:
            whole = "no more than 1 GiB and a file that is whole"
            raise UsageError(f"{file}: expected {whole}, got another; {remedy}")
    except (lzma.LZMAError, EOFError) as error:
        got = one_line(str(error), 80)
        raise UsageError(f"{file}: expected a packed store, got {got}; {remedy}") from None
    return content


@contextmanager
def store_of(results: Path) -> Iterator[Path]:
    """The store of a report: as it lies there, or of a packed one a copy for the time being.

    Args:
        results: the report's folder, or a store, packed or not.

    Yields:
        The store's file, which need not exist.

    Raises:
        UsageError: it is no packed store.
    """
    file = results / STORE_FILE if results.is_dir() else results
    if results.is_dir() and not file.exists() and (results / PACKED_FILE).exists():
        file = results / PACKED_FILE
    if file.suffix != Path(PACKED_FILE).suffix:
        yield file
        return
    with TemporaryDirectory() as folder:
        unpack(file, Path(folder) / STORE_FILE)
        yield Path(folder) / STORE_FILE
