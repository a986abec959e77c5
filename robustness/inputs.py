"""What input may be: the bounds of names, numbers and places, for every command and file.

The bounds on numbers are far beyond what was ever of use and within what arithmetic of 64 bits
and the memory of a machine can hold; where only the machine can tell, it is asked.
"""

import contextlib
import os
import re
import tempfile
import unicodedata
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, BeforeValidator, Field

from robustness.errors import UsageError, os_failure, quoted
from robustness.numerics.devices import CPU, Placement

PATH_BYTES = 4095
NAME_BYTES = 255
WORKERS_PER_CORE = 32
MOST_SHARES = 100_000
# Of a cluster, which may be anywhere.
MOST_WORKERS = 100_000

# Controls, halves of surrogate pairs, line and paragraph separators: in no name that people use.
_UNNAMEABLE = {"Cc", "Cs", "Zl", "Zp"}


def text(value: str) -> str:
    """A name or path as it came.

    Raises:
        UsageError: it is empty, too long for a path, or holds a control character.
    """
    if not value.strip():
        raise UsageError(f"expected a name, got {value!r}, which is empty; write one")
    size = len(value.encode(errors="surrogatepass"))
    longest = max(len(part.encode(errors="surrogatepass")) for part in value.split("/"))
    if size > PATH_BYTES or longest > NAME_BYTES:
        raise UsageError(
            f"expected at most {PATH_BYTES:,} bytes of text, {NAME_BYTES} between slashes, "
            f"got {value!r} of {size:,}; shorten it"
        )
    strange = next((c for c in value if unicodedata.category(c) in _UNNAMEABLE), None)
    if strange is not None:
        raise UsageError(
            f"expected a name without control characters, got {strange!r} in {value!r}; remove it"
        )
    return value


Name = Annotated[str, AfterValidator(text)]


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, got {str(value).lower()}; write one")
    return value


_Whole = Annotated[int, BeforeValidator(_no_truth)]
Seed = Annotated[_Whole, Field(ge=0, lt=2**63)]
# Of images, samples, queries and sampled states.
Count = Annotated[_Whole, Field(ge=1, le=10**9)]
# Of an attack, a solver or a training.
Iterations = Annotated[_Whole, Field(ge=1, le=10**5)]
# Of layers, which are objects.
MOST_LAYERS = 1000
Depth = Annotated[_Whole, Field(ge=1, le=MOST_LAYERS)]
# Of layers and images, along one axis; of batches.
Width = Annotated[_Whole, Field(ge=1, le=2**20)]
Kernel = Annotated[_Whole, Field(ge=1, le=255)]
# Within what single precision can hold and square.
Positive = Annotated[float, Field(gt=0, le=1e12)]
NonNegative = Annotated[float, Field(ge=0, le=1e12)]
Threads = Annotated[_Whole, Field(ge=1, le=1024)]


def share(value: str) -> tuple[int, int]:
    """Which of how many shares, such as `2/3`.

    Raises:
        UsageError: it is none.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
    if found is None:
        raise UsageError(f"expected a share such as 2/3, got {quoted(value)}; correct --shard")
    number, of = int(found[1]), int(found[2])
    return require_share((number, of))


def require_share(share: tuple[int, int]) -> tuple[int, int]:
    """Which of how many shares, both from 1.

    Raises:
        UsageError: it is none.
    """
    number, of = share
    if not 1 <= number <= of <= MOST_SHARES:
        raise UsageError(
            f"expected a share from 1/N to N/N, N up to {MOST_SHARES:,}, got {number}/{of}; "
            "correct it"
        )
    return number, of


def count(what: str, value: int) -> int:
    """A number of things, from 1 to 10^9.

    Raises:
        UsageError: it is not.
    """
    return _bounded(what, value, 10**9)


def workers(value: int) -> int:
    """A number of worker processes, of which a core is given a few at most.

    Raises:
        UsageError: it is below 1 or beyond what this machine's cores can serve.
    """
    return _bounded("workers", value, WORKERS_PER_CORE * cores())


def device(option: str, value: str) -> str:
    """A device that this machine has, by name.

    Args:
        option: what names it, for messages.
        value: `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        UsageError: it is none of them, or the machine or its torch has none such.
    """
    known = re.fullmatch(r"cpu|mps|cuda(?::(\d{1,3}))?", value)
    if known is None:
        raise UsageError(
            f"{option}: expected cpu, cuda, cuda:N or mps, got {quoted(value)}; correct it"
        )
    if value.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(known[1] or 0) >= count:
            raise UsageError(
                f"{option}: expected a CUDA device that torch {torch.__version__} sees, got "
                f"{value} where it sees {count}; choose another, or cpu"
            )
    if value == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            f"{option}: expected a device that torch {torch.__version__} sees, got mps, which it "
            "does not; choose another, or cpu"
        )
    return "cuda" if value == "cuda:0" else value


def placement(chosen: str | None, judge: str | None) -> Placement:
    """Where to compute: on the CPU by default, and judge where attacks climb.

    Raises:
        UsageError: a device is not there.
    """
    climbs = device("--device", chosen or CPU)
    return Placement(climbs, climbs if judge is None else device("--judge", judge))


def size(value: str) -> int:
    """A number of bytes, such as `8GiB` or `500 MB`.

    Raises:
        UsageError: it is none, below 1 MiB, or beyond what 64 bits can count.
    """
    found = re.fullmatch(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(i?)B?\s*", value, re.IGNORECASE)
    if found is not None:
        number, prefix, binary = found.groups()
        power = " KMGT".index(prefix.upper() or " ")
        size = float(number) * (1024 if binary else 1000) ** power
        if 2**20 <= size < 2**60:
            return int(size)
    raise UsageError(
        f"expected a size from 1MiB on, such as 8GiB or 500MB, got {quoted(value)}; correct it"
    )


def require_memory(size: int, what: str) -> None:
    """Refuse what this machine cannot hold, before it is allocated.

    Args:
        size: in bytes.
        what: would take it, in words.

    Raises:
        UsageError: there is less memory.
    """
    available = available_memory()
    if size > available:
        raise UsageError(
            f"expected {what} within the {available / 2**30:.1f} GiB of memory that are free, got "
            f"{size / 2**30:,.1f} GiB; make it smaller"
        )


def available_memory() -> int:
    """Bytes that can be allocated, by the system, the control group and this process's limit."""
    limits = [2**63]
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = dict(line.split(":") for line in lines)["MemAvailable"].split()[0]
        limits.append(1024 * int(kilobytes))
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text(encoding="ascii"))
        limits.append(most - int((group / "memory.current").read_text(encoding="ascii")))
    with contextlib.suppress(ImportError):
        import resource  # not on Windows

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        limits += [soft] if soft != resource.RLIM_INFINITY else []
    return max(0, min(limits))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bounded(what: str, value: int, most: int) -> int:
    if not 1 <= value <= most:
        raise UsageError(f"expected {what} from 1 to {most:,}, got {value}; correct it")
    return value


def folder_to_write(folder: Path) -> Path:
    """A folder that is there and can be written to, or that can be made.

    Nothing is left behind: what is tried has a name of its own, and is removed.

    Raises:
        UsageError: it is neither.
        OperationalError: the disk is full or broken.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        os.rmdir(tempfile.mkdtemp(prefix=".probe-", dir=there))
    except OSError as error:
        raise os_failure(
            error, f"a folder that can be written to at {folder}", "name another"
        ) from None
    return folder


def file_to_write(file: Path) -> Path:
    """A file that is there and can be written to, or that can be made; nothing is made.

    Raises:
        UsageError: it is neither.
    """
    if not file.exists():
        folder = file.absolute().parent
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return file
        got = f"the folder {folder}, which cannot be written to" if folder.is_dir() else "no folder"
    elif file.is_dir():
        got = "a folder"
    elif os.access(file, os.W_OK):
        return file
    else:
        got = "a file that cannot be written to"
    raise UsageError(
        f"expected a file that can be written at {file}, got {got}; choose another place"
    )
