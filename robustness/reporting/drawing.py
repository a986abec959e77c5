"""What all figures share: colours, style, names of rows, and how they become SVG.

Figures are drawn without pyplot, so nothing is left behind in the process, and their bytes
depend on the leaderboard alone.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from robustness.results.leaderboard import Leaderboard, ModelEntry

# Okabe and Ito's palette without its yellow, which is too light for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
INK, FAINT = "#333333", "#8a8a8a"

# matplotlib types the keys as a union of literals, which no dictionary of ours can have.
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "robustness",
    "svg.fonttype": "path",  # looks the same whatever fonts the reader has
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}


def colours(leaderboard: Leaderboard) -> dict[str, str]:
    """Each model's colour, the same in every figure and table."""
    return {e.name: c for e, c in zip(leaderboard.models, cycle(PALETTE), strict=False)}


def dashes(leaderboard: Leaderboard) -> dict[str, str]:
    """Each model's line style, which tells models apart once colours repeat or are not seen."""
    return {
        entry.name: DASHES[sum(divmod(place, len(PALETTE))) % len(DASHES)]
        for place, entry in enumerate(leaderboard.models)
    }


def text_colour(colour: str) -> str:
    """A darker shade of a palette colour: as thin as letters are, the light ones fade."""
    red, green, blue = to_rgb(colour)
    return to_hex((0.72 * red, 0.72 * green, 0.72 * blue))


def name_rows(
    first_column: Iterable[Axes], entries: Sequence[ModelEntry], leaderboard: Leaderboard
) -> None:
    """Name each row of small multiples after its model."""
    for entry, ax in zip(entries, first_column, strict=True):
        ax.set_title(
            entry.name,
            loc="left",
            fontsize=9.5,
            fontweight="bold",
            color=text_colour(colours(leaderboard)[entry.name]),
            parse_math=False,
            pad=4,
        )


def svg(figure: Figure) -> bytes:
    """The figure as SVG without date or creator."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A model's name may hold letters the font lacks; boxes in their place are enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
