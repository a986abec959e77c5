"""The boundary between what can fail and what is said: one line, an exit code, a log.

Everything that a command raises ends here. No traceback is printed unless it is asked for;
that of a failure which is not the caller's to mend goes to a log file, beside the report where
the command writes one.
"""

import contextlib
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from importlib.metadata import version
from pathlib import Path

from rich.markup import escape
from typer import TyperException

from robustness.errors import (
    ExitCode,
    OperationalError,
    SoundnessError,
    UsageError,
    is_exhausted,
    one_line,
    os_failure,
)
from robustness.terminal import discard, remarks

_AGAIN = "`evaluate` and `claims` continue with the same command, `train` with --resume"

_log_folder: list[Path] = []
_interruption: list[str] = []


def log_beside(folder: Path) -> None:
    """Name the folder that the running command writes its report to."""
    _log_folder[:] = [folder]


def say_of_interruption(words: str) -> None:
    """Give the words for the interruption of the running command: what is kept, how to go on."""
    _interruption[:] = [words]


def run(command: Callable[[], object], debug: bool = False) -> int:
    """Run a command and turn every outcome into an exit code and at most one line.

    Args:
        command: returns an exit code, or something else for 0.
        debug: print the traceback of whatever was raised, too.
    """
    _log_folder.clear()
    _interruption.clear()
    try:
        with _interrupted_by_signals():
            result = command()
        _flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        try:
            if debug:
                traceback.print_exception(error)
            return _said(error)
        except (OSError, MemoryError):  # there is no place or memory left to say it
            return _said_plainly()
    finally:
        _settle()
    if result == ExitCode.INTERRUPTED:
        return _said(KeyboardInterrupt())
    return result if isinstance(result, int) else ExitCode.DONE


@contextlib.contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Treat a closed terminal and a polite kill as Ctrl-C, so that worker processes are ended.

    A signal that is ignored, as under nohup, stays so.
    """
    names = ("SIGHUP", "SIGTERM")
    signals = [getattr(signal, name) for name in names if hasattr(signal, name)]
    here = threading.current_thread() is threading.main_thread()
    taken = [s for s in signals if here and signal.getsignal(s) is signal.SIG_DFL]
    for each in taken:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in taken:
            signal.signal(each, signal.SIG_DFL)


def _said(error: BaseException) -> ExitCode:
    """Say in one line what was raised."""
    match _translated(error):
        case TyperException() as usage:
            message = usage.format_message()
            if not message:  # the help text is printed, where no command was named
                message = "expected a command, got none"
            context = getattr(usage, "ctx", None)
            hint = f"; see `{context.command_path} --help`" if context else ""
            return _say(ExitCode.USAGE, f"error: {one_line(message)}{hint}")
        case UsageError() as usage:
            return _say(ExitCode.USAGE, f"error: {usage}")
        case SoundnessError() as broken:
            return _say(ExitCode.NO, f"soundness failure: {broken}")
        case OperationalError() as failure:
            return _say(ExitCode.OPERATIONAL, f"failed: {failure}", _log(error))
        case KeyboardInterrupt():
            how = _interruption[0] if _interruption else _AGAIN
            return _say(ExitCode.INTERRUPTED, f"interrupted; {how}")
        case SystemExit() if isinstance(error.__context__, BrokenPipeError):
            return ExitCode.DONE  # the reader of the help left
        case other:
            what = one_line(f"{type(other).__name__}: {other}", 150)
            line = f"defect of this package, please report it: {what}"
            return _say(ExitCode.DEFECT, line, _log(error))


def _said_plainly() -> ExitCode:
    with contextlib.suppress(OSError):
        os.write(2, b"failed: expected memory and an open standard error, got none left\n")
    return ExitCode.OPERATIONAL


def _translated(error: BaseException) -> BaseException:
    """What the machine did, where an exception that is not of this package tells of it."""
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        where = f"to use {error.filename}" if error.filename else "to read and write"
        return os_failure(error, where, "correct the path or its permissions")
    if is_exhausted(error) and not isinstance(error, OperationalError):
        return OperationalError(
            f"expected enough memory, got: {str(error) or 'none left'}; free some, or ask for "
            "fewer --workers, and run it again"
        )
    # Python renames a compiled file into place although a full disk took but half of it.
    if isinstance(error, (EOFError, ValueError)) and "marshal data" in str(error):
        return OperationalError(
            "expected Python's compiled files to be whole, got a damaged one, as a full disk "
            "leaves it; delete the __pycache__ folders of this package and of its libraries"
        )
    # Other errors of a database are about what it was asked.
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        return OperationalError(
            f"expected a store that can be used, got: {error}; see whether its disk is full or "
            "another process holds it, and run it again"
        )
    if isinstance(error, (BrokenExecutor, BrokenPipeError)):
        return OperationalError(
            "expected the worker processes to live, got one that died (out of memory?); "
            "run it again with fewer --workers"
        )
    return error


def _say(code: ExitCode, line: str, log: str = "") -> ExitCode:
    try:
        remarks.print(escape(one_line(line, 299 - len(log)) + log))
    except OSError:  # then the exit code has to do
        discard(sys.stderr)
    return code


def _log(error: BaseException) -> str:
    """Write the traceback where it will be found; say where, or why not."""
    refused = ""
    for folder in [*_log_folder, None]:
        try:
            content = "\n".join(
                [
                    f"command: {sys.argv}",
                    f"version: {version('lyanet-robustness')}, python {sys.version}",
                    f"time: {time.strftime('%Y-%m-%d %H:%M:%S %z')}",
                    "".join(traceback.format_exception(error)),
                ]
            )
            handle, name = tempfile.mkstemp(".log", time.strftime("fault-%Y%m%d-%H%M%S-"), folder)
            with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(content)
        except Exception as failure:  # short of memory, even a version is not found
            refused = getattr(failure, "strerror", None) or type(failure).__name__
        else:
            return f"; log: {name}"
    return f"; no log ({refused})"


def _settle() -> None:
    """Leave nothing in standard output that the interpreter would fail to write at its end."""
    try:
        _flush()
    except OSError:
        discard(sys.stdout)


def _flush() -> None:
    if sys.stdout is not None:  # as it is where the caller closed it
        sys.stdout.flush()
