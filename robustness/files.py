"""Files: read within bounds, written whole or not at all."""

import contextlib
import errno
import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from robustness.errors import UsageError, one_line, os_failure, quoted
from robustness.inputs import require_memory

Validated = TypeVar("Validated", bound=BaseModel)

# A suite or recipe has a few kilobytes; a leaderboard of 10,000 samples has a few megabytes.
_TOML_BYTES = 2**20
_JSON_BYTES = 2**28
# Beyond any use, and what a parser can follow.
_DOTS = 1000


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of an ordinary file.

    Args:
        path: the file; a pipe or device, which may never end, is refused.
        most: bytes that it may have; by default what fits into memory twice.

    Raises:
        OSError: it is not there, cannot be read or is no ordinary file.
        UsageError: it is too large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        said = errno.EISDIR if stat.S_ISDIR(found.st_mode) else None
        reason = os.strerror(said) if said else "A pipe or device"
        raise OSError(said or errno.EINVAL, reason, str(path))
    if most is None:
        require_memory(2 * found.st_size, f"to read {path}")
    elif found.st_size > most:
        raise UsageError(
            f"{path}: expected at most {most:,} bytes, got {found.st_size:,}; see whether it is "
            "the right file"
        )
    return path.read_bytes()


def read_toml(path: Path, model: type[Validated]) -> Validated:
    """Read a TOML file into a strict configuration.

    Raises:
        UsageError: the file is missing, is not TOML, or does not fit; the first fault is named.
    """
    try:
        text = read_file(path, _TOML_BYTES).decode("utf-8")
        if max(line.count(".") for line in text.split("\n")) > _DOTS:
            raise ValueError("a key nested too deep")
        content = tomllib.loads(text)
    except OSError as error:
        raise os_failure(error, f"a TOML file at {path}", "check the path") from None
    except UsageError:
        raise
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or endless digits
        got = one_line(str(error), 100)
        raise UsageError(f"{path}: expected TOML, got {got}; correct the file") from None
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UsageError(f"{path}: {describe_validation(error)}") from None


def read_json(path: Path, model: type[Validated], expected: str, remedy: str) -> Validated:
    """Read a JSON file that this package wrote.

    Args:
        path: the file.
        model: what it holds.
        expected: the same in words, such as `a leaderboard`.
        remedy: what to do where there is none, or another.

    Raises:
        UsageError: the file is missing, or does not fit; the first fault is named.
    """
    try:
        content = read_file(path, _JSON_BYTES)
    except OSError as error:
        raise os_failure(error, f"{expected} at {path}", remedy) from None
    return parse_json(content, str(path), model, expected, remedy)


def parse_json(
    content: bytes, name: str, model: type[Validated], expected: str, remedy: str
) -> Validated:
    """Read what `read_json` reads, from wherever it was.

    Args:
        content: of the file.
        name: what it is called in messages.
        model: as there.
        expected: as there.
        remedy: as there.

    Raises:
        UsageError: it does not fit; the first fault is named.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        fault = describe_validation(error)
        raise UsageError(f"{name}: expected {expected}, got one where {fault}; {remedy}") from None


def describe_validation(error: ValidationError) -> str:
    """The first fault of a failed validation, in one line."""
    # A misspelt key is both unknown and missing; its own spelling says more.
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"]) or "file"
    more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {quoted(place)}; remove it or correct its spelling{more}"
    if first["type"] == "missing":
        return f"missing key {place!r}; add it{more}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if "got " not in message:
        message += f", got {quoted(first['input'])}"
    return f"{one_line(place, 60)}: {one_line(message, 150)}{more}"


def is_marked(file: Path, mark: str) -> bool:
    """Whether a file begins, within a kilobyte, with what this package writes into such files."""
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with file.open("rb") as stream:
            return mark.encode() in stream.read(1024)
    except OSError:
        return False


def require_own(file: Path, mark: str) -> None:
    """Refuse to write over a file that this package did not write.

    Raises:
        UsageError: it is there and has no such mark.
    """
    if file.is_file() and file.stat().st_size and not is_marked(file, mark):
        raise UsageError(
            f"{file}: expected no file, or one that this package wrote, got another; move it away"
        )


def require_own_folder(folder: Path, names: Iterable[str], marks: Mapping[str, str]) -> None:
    """Refuse a folder where something would be written over that this package did not write.

    Args:
        folder: a report's, which need not exist.
        names: of the files and folders that will be written in it.
        marks: files that tell this package's folders, and what they begin with.

    Raises:
        UsageError: one of the names is taken, and the folder has no mark.
    """
    taken = next((name for name in names if os.path.lexists(folder / name)), None)
    if taken and not any(is_marked(folder / name, mark) for name, mark in marks.items()):
        raise UsageError(
            f"{folder}: expected a folder of its own for the report, got one with {taken} and "
            "no results of this package; give another with --out"
        )


def write_file(path: Path, content: bytes) -> None:
    """Write a file of any kind: a device or pipe as it is, an ordinary file in one atomic step.

    Raises:
        UsageError: it cannot be written.
        OperationalError: the disk is full or broken.
    """
    try:
        # A link such as /dev/stdout is to stay one.
        if path.is_symlink() or (path.exists() and not path.is_file()):
            path.write_bytes(content)
        else:
            replace_file(path, content)
    except OSError as error:
        raise os_failure(error, f"to write {path}", "choose another place") from None


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one atomic step: readers see the old content or the new, never a part.

    Raises:
        OSError: it cannot be written; then what was there is there still, and nothing else.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
