"""What a name stands for: one registry per noun, open to installed packages.

A thing registers itself where it is written. A package of another's does the same: it names the
module that does so under an entry point of the noun's group, such as `robustness.datasets`, and
is imported the first time that the registry is asked for anything. A module that is not installed
is imported by `load_plugin`, for which every command has `--plugin`.
"""

import contextlib
import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from robustness.errors import UsageError, one_line

_PACKAGE = __name__.partition(".")[0]


@runtime_checkable
class Named(Protocol):
    """Whatever has a name."""

    @property
    def name(self) -> str:
        """What it is called in suites, on the command line and in tables."""
        ...


Thing = TypeVar("Thing", bound=Named)

# What was imported as a plugin in this process, in that order, and the release of each.
_loaded: dict[str, str] = {}
# All registries of this process.
_registries: "list[Registry[Any]]" = []


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
        _registries.append(self)

    def register(self, thing: Thing) -> Thing:
        """Add one.

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

    @contextlib.contextmanager
    def having(self, thing: Thing) -> Iterator[Thing]:
        """Add one for a while, in place of any other of its name."""
        before = dict(self._known())
        self._things[thing.name] = thing
        try:
            yield thing
        finally:
            self._things.clear()
            self._things.update(before)

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
        remedy = f"did you mean {near[0]}?" if near else "correct it, or load its --plugin"
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
            try:
                for point in sorted(entry_points(group=self.group), key=lambda point: point.name):
                    _load(point.module, _called(point))
            except BaseException:
                self._open = True
                raise
        return self._things


def load_plugin(module: str, here: bool = True) -> None:
    """Import a module that registers things.

    Args:
        module: its name.
        here: whether the working folder is searched too, and first.

    Raises:
        UsageError: it cannot be imported.

    Example:
        >>> Path("my_plugin.py").write_text("# registers attacks, views, data sets, ...")
        42
        >>> load_plugin("my_plugin")
    """
    if here and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    _load(module, repr(module))


def plugins() -> dict[str, str]:
    """The modules that add to the registries of this process, and the `release_of` each.

    In the order in which they were imported; those of installed packages are imported by this.

    Raises:
        UsageError: one cannot be imported.
    """
    for registry in _registries:
        len(registry)
    return dict(_loaded)


def release_of(module: str) -> str:
    """Whose code a module is, for keys and reports; empty for this package's own.

    Returns:
        Name and version of the distribution that it was installed from; the module's name and a
        digest of its file for one that was not installed.
    """
    return "" if module.partition(".")[0] == _PACKAGE else _release_of(module)


@functools.cache
def _release_of(module: str) -> str:
    package = module.partition(".")[0]
    found = _distributions().get(package)
    if found:
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(found)))
    file = getattr(sys.modules.get(module), "__file__", None)
    content = Path(file).read_bytes() if file and os.path.isfile(file) else b""
    return f"{module} of SHA-256 {hashlib.sha256(content).hexdigest()[:12]}"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _called(point: EntryPoint) -> str:
    """What messages call an entry point: the one who installed it shall know which it is."""
    of = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"{point.module!r}{of}, entry point {point.name!r} of {point.group}"


def _load(module: str, called: str) -> None:
    try:
        importlib.import_module(module)
    except UsageError as error:
        raise UsageError(f"plugin {called}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = one_line(f"{type(error).__name__}: {error}", 120)
        raise UsageError(
            f"expected a plugin, a module that can be imported, got {called}, which raised "
            f"{reason}; correct or uninstall it"
        ) from error
    _loaded.setdefault(module, release_of(module))
