"""The attacks that can be asked for by name, and what of them can be set.

The settings of an attack are declared once, as the fields of its frozen dataclass. From them follow
the table of a suite, `robustness attack --set` and what its help lists, the bounds that are
checked, and, through `Attack.version`, the keys of its results.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from robustness.registry import Registry, release_of

_Attack = TypeVar("_Attack", bound=type)


@dataclass(frozen=True)
class AttackKind:
    """An attack that a suite, and `robustness attack`, can name.

    Attributes:
        name: the `kind` of its table.
        make: a frozen dataclass: an `Attack`, or what the worst case is in `evaluation`. Its fields
            are the settings; a type such as `Annotated[int, Field(ge=1)]` bounds one.
    """

    name: str
    make: Callable[..., Any]

    @property
    def release(self) -> str:
        """Whose it is; empty for this package's own."""
        return release_of(self.make.__module__)

    @property
    def settings(self) -> dict[str, Any]:
        """What can be set, with the defaults; `dataclasses.MISSING` where there is none."""
        return {field.name: field.default for field in dataclasses.fields(self.make) if field.init}  # type: ignore[arg-type]


ATTACKS: Registry[AttackKind] = Registry("an attack", "robustness.attacks")


def register_attack(kind: str) -> Callable[[_Attack], _Attack]:
    """Register the frozen dataclass of an attack's settings under the name that suites give it.

    Raises:
        UsageError: the name is taken.
    """

    def register(make: _Attack) -> _Attack:
        if not dataclasses.is_dataclass(make):
            raise TypeError(f"expected a frozen dataclass, got {make}; its fields are the settings")
        ATTACKS.register(AttackKind(kind, make))
        return make

    return register
