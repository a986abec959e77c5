"""What the processes of a command have taken; for Linux."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_OFTEN = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Use:
    """What one process has taken, as it was last asked.

    Attributes:
        kibibytes: the most memory that it had at once, shared libraries included (`VmHWM`).
        seconds: of processor time, its own alone.
    """

    kibibytes: int
    seconds: float


def watched(words: Sequence[str], often: float = _OFTEN) -> list[Use]:
    """Run a command, and say what each of its processes took.

    A process is known from the first time to the last time that it is asked: what it takes in its
    last moments is not counted, and one that lives shorter may not be.

    Args:
        words: of the command, which stays in the session that is made for it.
        often: seconds from one time to the next.

    Raises:
        CalledProcessError: the command failed.
    """
    started = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    found: dict[int, Use] = {}
    try:
        while started.poll() is None:
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and (use := use_of(folder, started.pid)) is not None:
                    found[int(folder.name)] = use
            time.sleep(often)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGTERM)
    if started.returncode:
        raise subprocess.CalledProcessError(started.returncode, list(words))
    return list(found.values())


def use_of(process: Path, session: int) -> Use | None:
    """What a process of a session has taken; None of others, and of those that have ended.

    One that is ending has given its memory back, and says nothing of it: what it said before holds.
    """
    try:
        # Behind the command's name, which may have any characters: state, parent, group, session.
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        if int(fields[3]) != session or fields[0] == "Z":
            return None
        lines = (process / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    most = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
    if most is None:
        return None
    return Use(most, (int(fields[11]) + int(fields[12])) / _TICKS)
