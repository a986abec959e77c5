"""What can go wrong, by whose answer it is, and the exit code that says so.

A `UsageError` is the caller's to mend; a `SoundnessError` is an answer, that a certificate was
broken; an `OperationalError` is the machine's. Whatever else is raised is a defect of this
package. Numerical failure of a solver is none of these: it is data (a non-finite prediction),
reported per sample.
"""

import errno
import multiprocessing
import unicodedata
from enum import IntEnum

# With the words that go before it, a message stays within 300 characters.
MESSAGE_LENGTH = 270
# Shorter words are left whole.
_WORD = 24

# What an operating system answers where nothing is wrong with what it was asked for.
MACHINE_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOLCK,
        errno.ESTALE,
    }
)


# In the words of torch, of the dynamic linker and of the threading module.
_EXHAUSTED = (
    "can't allocate memory",
    "not enough memory",
    "failed to map segment",
    "Cannot allocate memory",
    "can't start new thread",
    "std::bad_alloc",
)


class ExitCode(IntEnum):
    """How a command ends; documented in docs/faults.md. 70 is EX_SOFTWARE of sysexits.h."""

    DONE = 0
    NO = 1
    USAGE = 2
    OPERATIONAL = 3
    DEFECT = 70
    INTERRUPTED = 130


class UsageError(ValueError):
    """Bad input. The message is one line: what was expected, what came, what to do.

    Example:
        >>> raise UsageError("expected a name, got none; write one")
        Traceback (most recent call last):
        robustness.errors.UsageError: expected a name, got none; write one
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SoundnessError(RuntimeError):
    """A certified image was broken inside its certified radius.

    Example:
        >>> raise SoundnessError("image 3 was broken at 0.1, certified at 0.2")
        Traceback (most recent call last):
        robustness.errors.SoundnessError: image 3 was broken at 0.1, certified at 0.2
    """


class OperationalError(RuntimeError):
    """The machine failed: a disk, memory, a lock, a worker process, a time limit. One line.

    Example:
        >>> str(OperationalError("expected   memory, got none left"))
        'expected memory, got none left'
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class Interruption(KeyboardInterrupt):
    """A run was interrupted; says after what, what is kept, and how to go on."""


class DiedError(OperationalError):
    """A process that ran a user's code ended, took too long or had no memory left; in words."""


class EndedError(DiedError):
    """A process that ran a user's code ended by itself or by a signal; in words."""


def is_interruption(error: BaseException) -> bool:
    """Whether what was raised is Ctrl-C. Worker processes do not hear it: there it is a model's."""
    return isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None


def is_exhausted(error: BaseException) -> bool:
    """Whether what was raised says that there was no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, (RuntimeError, ImportError)):
        return False
    said = in_words(error)
    return any(words in said for words in _EXHAUSTED)


def in_words(error: BaseException) -> str:
    """An error's kind and message; its kind alone where a user's own kind cannot say more."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


def printable(text: str) -> str:
    """`text` with all characters that are not for reading, but for spaces, escaped."""
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def one_line(text: str, length: int = MESSAGE_LENGTH) -> str:
    """`text` in one line without control characters, its longest words cut short if need be."""
    if len(text) > 20 * length:  # of megabytes only the ends are looked at
        text = f"{text[: 10 * length]}…{text[-10 * length :]}"
    words = [printable(word) for word in text.split()]
    while (excess := len(" ".join(words)) - length) > 0:
        longest = max(range(len(words)), key=lambda index: len(words[index]))
        word = words[longest]
        kept = max(_WORD, len(word) - excess)
        if kept >= len(word):
            return f"{' '.join(words)[: length - 1]}…"
        # More of the end: there stand the names of files.
        words[longest] = f"{word[: kept // 3]}…{word[kept // 3 + 1 - kept :]}"
    return " ".join(words)


def quoted(value: object, length: int = 40) -> str:
    """What came, as a message quotes it."""
    try:
        return one_line(repr(value), length)
    except ValueError:  # Python writes no decimal numbers of more digits
        return "a number of thousands of digits"
    except RecursionError:
        return "tables within tables"


def os_failure(error: OSError, expected: str, remedy: str) -> UsageError | OperationalError:
    """Whose answer an error of the operating system is, in words.

    Args:
        error: what it said.
        expected: what should have been there or been possible.
        remedy: what the caller can do if it was asked for the wrong thing.
    """
    got = error.strerror or type(error).__name__
    if error.errno in MACHINE_ERRORS:
        return OperationalError(f"expected {expected}, got: {got}; mend that and run it again")
    return UsageError(f"expected {expected}, got: {got}; {remedy}")
