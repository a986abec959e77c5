"""Work that several certificates of the same images have in common, done once.

Within `shared_work()`, a function marked `@shared` that is called again with the very same objects
gives back its first answer. Outside of it, nothing is remembered: a model whose weights change
between two calls is never mistaken for itself.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Ledger:
    """What is remembered, and the time that was saved by it.

    Attributes:
        answers: answer, cost in seconds and arguments by function and identities of the
            arguments, which of numbers, words and tuples of these are their values. Arguments are
            held, so that no other object can take over an identity.
        saved: seconds that the answers given again had cost.
    """

    answers: dict[tuple[object, ...], tuple[Any, float, tuple[Any, ...]]] = field(
        default_factory=dict
    )
    saved: float = 0.0


_ledger: Ledger | None = None


@contextmanager
def shared_work() -> Iterator[Ledger]:
    """Remember the answers of shared functions until the end of the block."""
    global _ledger
    outer, _ledger = _ledger, Ledger()
    try:
        yield _ledger
    finally:
        _ledger = outer


def _identity(argument: object) -> object:
    if isinstance(argument, int | float | str):
        return type(argument), argument
    if type(argument) is tuple:
        return tuple(map(_identity, argument))
    return id(argument)


def shared(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a pure function of its positional arguments whose answers may be shared."""

    @functools.wraps(function)
    def remembering(*arguments: P.args, **keywords: P.kwargs) -> R:
        ledger = _ledger
        if ledger is None or keywords:
            return function(*arguments, **keywords)
        key = (function, *map(_identity, arguments))
        if key in ledger.answers:
            answer, cost, _ = ledger.answers[key]
            ledger.saved += cost
            return answer
        started, saved = time.perf_counter(), ledger.saved
        answer = function(*arguments, **keywords)
        cost = time.perf_counter() - started + ledger.saved - saved
        ledger.answers[key] = answer, cost, arguments
        return answer

    return remembering
