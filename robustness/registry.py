"""What a name stands for: one registry per noun, open to installed packages.

A thing registers itself where it is written. A package of another's does the same: it names the
module that does so under an entry point of the noun's group, such as `robustness.datasets`, and
is imported the first time that the registry is asked for anything.
"""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Protocol, TypeVar, runtime_checkable

from robustness.errors import UsageError, one_line


@runtime_checkable
class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str:
        """What it is called in suites, on the command line and in tables."""
        ...


Thing = TypeVar("Thing", bound=Named)


class Registry(Mapping[str, Thing]):
    """Things of one kind by name, in the order in which they were registered.

    Args:
        noun: what they are, with its article, for messages: `a data set`.
        group: the entry points of installed packages that register more of them.
    """

    def __init__(self, noun: str, group: str) -> None:
        self.noun, self.group = noun, group
        self._things: dict[str, Thing] = {}
        self._open = True

    def register(self, thing: Thing) -> Thing:
        """Add one; a decorator where the thing is a class or a function.

        Raises:
            UsageError: the name is taken.
        """
        known = self._things.setdefault(thing.name, thing)
        if known is not thing:
            raise UsageError(
                f"expected {self.noun} of a new name, got {thing.name!r} a second time; rename it"
            )
        return thing

    def unregister(self, name: str) -> None:
        """Undo `register`."""
        del self._things[name]

    def require(self, name: str, or_else: str = "") -> Thing:
        """The thing of a name.

        Args:
            name: as somebody wrote it.
            or_else: what else they could have written, in words, for the message.

        Raises:
            UsageError: there is none; near names are suggested.
        """
        if name in self:
            return self[name]
        near = get_close_matches(name.lower(), self, n=1)
        remedy = f"did you mean {near[0]}?" if near else "correct it"
        raise UsageError(
            f"expected {self.noun}, one of {', '.join(self)}{or_else}, got {name!r}; {remedy}"
        )

    def __getitem__(self, name: str) -> Thing:
        return self._known()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())

    def _known(self) -> dict[str, Thing]:
        if self._open:
            self._open = False  # before the imports, which may ask for what is there already
            for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                load_plugin(point.module)
        return self._things


def load_plugin(module: str) -> None:
    """Import a module that registers things; the working folder is searched too.

    Raises:
        UsageError: it cannot be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 150)
        raise UsageError(
            f"expected a plugin, a module that can be imported, got {module!r}, which raised "
            f"{reason}; correct or uninstall it"
        ) from error
