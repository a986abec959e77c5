"""What the readers of image files share: reading bytes, scaling pixels, one-line faults."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from robustness.errors import UsageError
from robustness.files import read_file


def fault(where: Path | str, expected: str, got: str, remedy: str) -> UsageError:
    """The error that names a bad file in one line.

    Args:
        where: the file at fault.
        expected: what the file should have held.
        got: what it holds.
        remedy: what the user can do about it.
    """
    return UsageError(f"{where}: expected {expected}, got {got}; {remedy}")


def read_bytes(path: Path, expected: str, remedy: str) -> bytes:
    """The whole content of a file.

    Args:
        path: the file.
        expected: what the file should have been, for the message if it cannot be read.
        remedy: what to do if it cannot be read.

    Raises:
        UsageError: the file is missing or unreadable.
    """
    try:
        return read_file(path)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise fault(path, expected, reason, remedy) from error


def unit_pixels(raw: UInt8[np.ndarray, "*shape"]) -> Float[Tensor, "*shape"]:
    """8-bit pixels scaled from 0..255 to float32 in [0, 1], shape kept."""
    pixels = raw.astype(np.float32)
    # In place: a training split takes hundreds of megabytes as float32.
    pixels /= np.float32(255)
    return torch.from_numpy(pixels)


def class_labels(raw: UInt8[np.ndarray, " n"]) -> torch.Tensor:
    """8-bit labels as int64, shape (n,)."""
    return torch.from_numpy(raw.astype(np.int64))
