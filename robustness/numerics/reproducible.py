"""The arithmetic that every stored number is computed in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DENORMAL = 1e-39


@contextmanager
def reproducible_arithmetic() -> Iterator[None]:
    """One thread, and denormals flushed to zero: contractive flows decay into them."""
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
    return bool(torch.tensor(_DENORMAL) * 1.0 == 0)
