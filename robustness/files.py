"""Files: written whole or not at all."""

import contextlib
import os
from pathlib import Path

from robustness.errors import os_failure


def write_file(path: Path, content: bytes) -> None:
    """Write a file of any kind: a device or pipe as it is, an ordinary file in one atomic step.

    Raises:
        UsageError: it cannot be written.
        OperationalError: the disk is full or broken.
    """
    try:
        if path.exists() and not path.is_file():
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
