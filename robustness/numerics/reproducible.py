"""The arithmetic that every stored number is computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DENORMAL = 1e-39


@contextmanager
def reproducible_arithmetic() -> Iterator[None]:
    """One thread, and denormals flushed to zero: contractive flows decay into them.

    Flushing is of this thread and those that it starts. Where more threads are asked for within,
    those of a pool that was there before do not flush, and those of one that is made go on to.
    """
    threads, flushed = torch.get_num_threads(), flushes_denormals()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flushed)


def flushes_denormals() -> bool:
    """Whether they are flushed already; torch sets this and does not tell it."""
    return bool(torch.tensor(_DENORMAL, dtype=torch.float32, device="cpu") * 1.0 == 0)
