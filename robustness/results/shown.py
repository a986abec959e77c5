"""How results show themselves in Python: a short line, a table in a notebook, a data frame."""

from abc import abstractmethod
from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import Any

from robustness.errors import UsageError

_BACKENDS = ("pandas", "polars", "pyarrow")
# A notebook shows as many; all are in the data frame.
_ROWS = 30


class Shown:
    """What has rows, all of the same columns, and can be looked at."""

    @abstractmethod
    def rows_shown(self) -> list[dict[str, object]]:
        """The rows, by column; numbers as they are."""

    @abstractmethod
    def in_short(self) -> str:
        """The most important of it in a line."""

    def __repr__(self) -> str:
        return f"<{self.in_short()}>"

    def _repr_html_(self) -> str:
        """A table, for notebooks."""
        rows = self.rows_shown()
        head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_cell(value))}</td>' for value in row.values())}</tr>"
            for row in rows[:_ROWS]
        )
        more = f"<p>and {len(rows) - _ROWS} more rows</p>" if len(rows) > _ROWS else ""
        caption = f"<caption>{escape(self.in_short())}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"

    def to_dataframe(self, backend: str | None = None) -> Any:
        """The rows as a data frame.

        Args:
            backend: `pandas`, `polars` or `pyarrow`; by default the first of them that is there.

        Raises:
            UsageError: it is none of these, or is not installed.
        """
        rows = self.rows_shown()
        names = list(rows[0]) if rows else []
        columns = {name: [row[name] for row in rows] for name in names}
        try:
            narwhals = import_module("narwhals")
            chosen = backend or next(name for name in _BACKENDS if _is_there(name))
            if chosen not in _BACKENDS:
                raise UsageError(
                    f"expected a data frame of {', '.join(_BACKENDS)}, got {backend!r}; correct it"
                )
            import_module(chosen)
        except (ImportError, StopIteration):
            raise UsageError(
                f"expected narwhals and {backend or 'polars'} for a data frame, got none; install "
                "them: pip install 'lyanet-robustness[frames]'"
            ) from None
        return narwhals.from_dict(columns, backend=chosen).to_native()


def _is_there(package: str) -> bool:
    try:
        import_module(package)
    except ImportError:
        return False
    return True


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)


def axes_to_draw_on(axes: Any) -> Any:
    """The axes that were given, else those of a new figure, which no window keeps."""
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(6, 4), layout="constrained").subplots()


def steps(radii: Sequence[float], count: int) -> tuple[list[float], list[float]]:
    """Corners of the share of `count` whose radius exceeds eps, as a curve over eps."""
    ordered = sorted(radius for radius in radii if radius > 0)
    x, y = [0.0], [len(ordered) / max(count, 1)]
    for place, radius in enumerate(ordered):
        x += [radius, radius]
        y += [y[-1], (len(ordered) - place - 1) / max(count, 1)]
    return x, y
