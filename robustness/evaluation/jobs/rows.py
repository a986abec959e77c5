"""Rows of results: a dataclass is its table in a store, its reading back, and its CSV columns."""

import dataclasses
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

# What a store holds of a field of each type.
_SQL: dict[type, str] = {int: "INTEGER", bool: "INTEGER", float: "REAL", str: "TEXT", bytes: "BLOB"}


@dataclass(frozen=True)
class Row:
    """Base of the rows of a kind of job.

    Fields are integers, booleans, floats, strings, bytes or members of a `StrEnum`; optional ones
    are `| None`. A float that is not a number is None in a store, and so in whatever reads it.

    Attributes:
        IDENTITY: fields that tell a row from the others of its unit.
    """

    IDENTITY: ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class SampleRow(Row):
    """A row about one image.

    Attributes:
        sample: index of the image in the data set.
    """

    IDENTITY: ClassVar[tuple[str, ...]] = ("sample",)

    sample: int


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Column:
    """A field as a store and a CSV file see it.

    Attributes:
        name: of the field.
        kind: of its values.
        optional: whether it may be None.
    """

    name: str
    kind: type[Any]
    optional: bool

    @property
    def declaration(self) -> str:
        """Of the column of an SQLite table."""
        sql = "TEXT" if issubclass(self.kind, StrEnum) else _SQL[self.kind]
        return f"{self.name} {sql}" if self.optional else f"{self.name} {sql} NOT NULL"

    def stored(self, value: Any) -> Any:
        """What a store is given of a value."""
        if value is None or value != value:  # SQLite knows no NaN
            return None
        if issubclass(self.kind, StrEnum):
            return self.kind(value).value
        return int(value) if self.kind is bool else self.kind(value)

    def read(self, value: Any) -> Any:
        """The value that was stored so.

        Raises:
            ValueError: none can have been.
        """
        if value is None and self.optional:
            return None
        if self.kind is bool or issubclass(self.kind, StrEnum):
            return self.kind(value)
        if type(value) is not self.kind:
            raise ValueError(f"expected {self.kind.__name__} in {self.name}, got {value!r}")
        return value


# Asked for with every row that is read or stored, and dear to find.
_known: dict[type[Row], tuple[Column, ...]] = {}


def columns(row: type[Row]) -> tuple[Column, ...]:
    """The fields of a row, in their order.

    Raises:
        TypeError: a field is of a type that no store holds.
    """
    if row not in _known:
        hints = get_type_hints(row)
        fields = dataclasses.fields(row)
        _known[row] = tuple(_column(field.name, hints[field.name]) for field in fields)
    return _known[row]


def _column(name: str, hint: Any) -> Column:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [part for part in parts if part is not type(None)]
    if len(kinds) == 1 and isinstance(kinds[0], type):
        (kind,) = kinds
        if kind in _SQL or issubclass(kind, StrEnum):
            return Column(name, kind, len(parts) > 1)
    raise TypeError(
        f"expected int, bool, float, str, bytes or a StrEnum, or one of them | None, for the field "
        f"{name} of a row, got {hint}"
    )


def create_statement(table: str, declarations: Sequence[str], identity: Sequence[str]) -> str:
    """The statement that makes a table of rows, which belong to units by their keys."""
    primary = ", ".join(["key", *identity])
    return (
        f"CREATE TABLE {table} (key TEXT NOT NULL, {', '.join(declarations)}, "
        f"PRIMARY KEY ({primary})) WITHOUT ROWID"
    )


def statement_of(table: str, row: type[Row]) -> str:
    """The statement that makes the table of a dataclass."""
    return create_statement(table, [c.declaration for c in columns(row)], row.IDENTITY)


def values_of(row: Row) -> tuple[Any, ...]:
    """A row as it is stored, without the key of its unit."""
    return tuple(column.stored(getattr(row, column.name)) for column in columns(type(row)))


def row_of(kind: type[R], values: Sequence[Any]) -> R:
    """A row from what is stored of it.

    Raises:
        ValueError: no such row can have been stored.
    """
    pairs = zip(columns(kind), values, strict=True)
    # Most values are stored as what they are.
    return kind(*[value if type(value) is c.kind else c.read(value) for c, value in pairs])


def as_stored(rows: Iterable[R]) -> list[R]:
    """Rows in the order and with the values that a store gives back."""
    same = [row_of(type(row), values_of(row)) for row in rows]
    return sorted(same, key=lambda row: [getattr(row, name) for name in row.IDENTITY])
