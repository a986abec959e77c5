"""Settings as people write them: strict, and fixed once they are read."""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model


class Config(BaseModel):
    """Strict base: a key that is not listed is an error, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Table = TypeVar("_Table", bound=Config)


def table_of(
    make: Callable[..., Any], base: type[_Table], without: Collection[str] = ()
) -> type[_Table]:
    """The table in which the settings of a dataclass are written, behind the keys of `base`.

    Args:
        make: a dataclass; the type of a field, with what bounds it, is that of the key.
        base: the keys that all such tables have.
        without: fields that are not set in a table.
    """
    kinds = get_type_hints(make, include_extras=True)
    keys: dict[str, Any] = {
        field.name: (kinds[field.name], _default(field))
        for field in dataclasses.fields(make)  # type: ignore[arg-type]
        if field.init and field.name not in without
    }
    return create_model(f"{make.__name__}Table", __base__=base, __doc__=make.__doc__, **keys)


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    made = field.default_factory
    return ... if made is dataclasses.MISSING else Field(default_factory=made)
