"""The report's figures as SVG: brackets over radii, decay of V, accuracy along the horizon."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle, pairwise
from types import MappingProxyType
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robustness.reporting import selection, words
from robustness.reporting.certificate_figures import certificates_figure, distances_figure
from robustness.reporting.drawing import (
    FAINT,
    INK,
    STYLE,
    colours,
    dashes,
    name_rows,
    svg,
    text_colour,
)
from robustness.results.leaderboard import Curve, Decay, Envelope, Leaderboard, ModelEntry
from robustness.threat import Norm

# A potential below this is 0 for every purpose, and a logarithm has to end somewhere; the
# caption says where.
FLOOR = 1e-6
# The largest potential drawn; a bound that is beyond it, or without bound, ends there.
_MOST_DRAWN = 1e3

# Distance of two labels, as a fraction of the height of the axes.
LABEL_GAP = 0.075


def figures(leaderboard: Leaderboard) -> dict[str, bytes]:
    """Every figure that the leaderboard has data for: name to SVG."""
    drawn = {name: draw(leaderboard) for name, draw in FIGURES.items()}
    return {name: svg(figure) for name, figure in drawn.items() if figure is not None}


# --- certified and attacked accuracy against the radius ---------------------------------


def bracket_figure(leaderboard: Leaderboard) -> Figure | None:
    """Small multiples: a row per model, a column per norm; None without any curve."""
    norms = list(dict.fromkeys(c.norm for m in leaderboard.models for c in m.curves))
    if not norms:
        return None
    rows = len(leaderboard.models)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 0.9 + 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, len(norms), sharex="col", sharey=True, squeeze=False)
        for entry, line in zip(leaderboard.models, axes, strict=True):
            for norm, ax in zip(norms, line, strict=True):
                _draw_panel(ax, entry, norm, colours(leaderboard)[entry.name], marks(leaderboard))
        for norm, ax in zip(norms, axes[-1], strict=True):
            ax.set_xlabel(f"radius ε in {words.SYMBOLS[norm]}, pixel units")
            ax.set_xlim(0, _furthest(leaderboard, norm))
            ax.xaxis.set_major_locator(MaxNLocator(6))
        name_rows(axes[:, 0], leaderboard.models, leaderboard)
        axes[0, 0].set_ylim(0, 1.02)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.legend(handles=_bracket_legend(leaderboard), loc="outside upper center", ncols=4)
    return figure


def marks(leaderboard: Leaderboard) -> dict[str, str]:
    """The marker of each strength of attack in the leaderboard: a dot for a whole worst case."""
    found = dict.fromkeys(
        selection.strength(m, b.norm, b.eps) for m in leaderboard.models for b in m.brackets
    )
    full = [name for name in selection.FULL.values() if name in found] or [selection.WORST]
    weaker = (name for name in found if name not in full)
    return dict.fromkeys(full, "o") | dict(zip(weaker, cycle("s^vPX"), strict=False))


def _draw_panel(
    ax: Axes, entry: ModelEntry, norm: Norm, colour: str, markers: dict[str, str]
) -> None:
    curve = next((c for c in entry.curves if c.norm is norm), None)
    if curve is None:
        ax.text(0.5, 0.5, "not evaluated", transform=ax.transAxes, ha="center", color=FAINT)
        return
    grid, lower, upper = bounds(curve, entry.clean.value)
    ax.fill_between(grid, lower, upper, color=colour, alpha=0.16, linewidth=0)
    ax.plot(grid, upper, color=colour, linewidth=1.3, linestyle="--")
    ax.plot(grid, lower, color=colour, linewidth=1.8)
    for eps, height in zip(curve.attacked_eps, curve.attacked, strict=True):
        by = selection.strength(entry, norm, eps) if eps > 0 else next(iter(markers))
        style = _mark(by, markers) | {"color": colour}
        ax.plot([eps], [height], linestyle="none", clip_on=False, **style)
    for row in selection.autoattack_rows(entry, norm):
        value = row.robust
        reach = [[max(value.value - value.low, 0.0)], [max(value.high - value.value, 0.0)]]
        ax.errorbar(
            [row.eps],
            [value.value],
            yerr=reach,
            fmt="D",
            markersize=5,
            markerfacecolor="white",
            markeredgecolor=INK,
            ecolor=INK,
            elinewidth=0.9,
            capsize=2.5,
            zorder=4,
        )


def _mark(by: str, markers: dict[str, str]) -> dict[str, Any]:
    """How attacked accuracy of a strength is drawn: hollow where it is not the worst case's."""
    face = {} if by in selection.FULL.values() else {"markerfacecolor": "white"}
    return {"marker": markers[by], "markersize": 3.5, "markeredgewidth": 0.9} | face


def bounds(curve: Curve, clean: float) -> tuple[list[float], list[float], list[float]]:
    """Radii, and what is proved below and found above robust accuracy on each stretch.

    Robust accuracy never rises with the radius. An attacked accuracy therefore bounds it at
    every larger radius, up to the next attacked one, and a certified accuracy at every smaller
    radius, down to the previous grid point. Each jump is given as two points at one radius.
    """
    certified = dict(zip(curve.certified_eps, curve.certified, strict=True))
    attacked = {0.0: clean} | dict(zip(curve.attacked_eps, curve.attacked, strict=True))
    radii = sorted({0.0, *certified, *attacked})
    grid: list[float] = []
    lower: list[float] = []
    upper: list[float] = []
    # The last stretch has no length: it only brings the lines down to their last values.
    for left, right in pairwise([*radii, radii[-1]]):
        above = min(value for eps, value in attacked.items() if eps <= left)
        below = max((value for eps, value in certified.items() if eps >= right), default=0.0)
        grid += [left, right]
        lower += [below, below]
        upper += [above, above]
    return grid, lower, upper


def _furthest(leaderboard: Leaderboard, norm: Norm) -> float:
    """Where the axis ends: past the last attack and the last certified image."""
    ends = []
    for curve in (c for m in leaderboard.models for c in m.curves if c.norm is norm):
        ends += curve.attacked_eps
        positive = zip(curve.certified_eps, curve.certified, strict=True)
        ends += [eps for eps, value in positive if value > 0]
    return 1.03 * max(ends, default=0.0) or 1.0


def _bracket_legend(leaderboard: Leaderboard) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, linestyle="--", label="attacked"),
        Patch(facecolor=INK, alpha=0.16, label="bracket: not known"),
        Line2D([], [], color=INK, linewidth=1.8, label="certified"),
    ]
    markers = marks(leaderboard)
    handles += [
        Line2D([], [], color=INK, linestyle="none", label=f"by {by}", **_mark(by, markers))
        for by in markers
    ]
    rows = [
        row
        for entry in leaderboard.models
        for norm in Norm
        for row in selection.autoattack_rows(entry, norm)
    ]
    if rows:
        some = any(row.subset < leaderboard.suite.samples for row in rows)
        where = f", first {words.extent(row.subset for row in rows)} samples" if some else ""
        label = f"AutoAttack alone{where} (95%)"
        handles.append(
            Line2D(
                [],
                [],
                color=INK,
                linewidth=0.9,
                marker="D",
                markersize=5,
                markerfacecolor="white",
                markeredgecolor=INK,
                label=label,
            )
        )
    return handles


# --- along the horizon ------------------------------------------------------------------


def decay_figure(leaderboard: Leaderboard) -> Figure | None:
    """V(t) of all neural ODEs on one logarithmic axis; None if there are none."""
    decays = _decays(leaderboard)
    if not decays:
        return None
    with mpl.rc_context(STYLE):
        figure, ax = _horizon_axes()
        ax.set_yscale("log")
        for name, decay in decays.items():
            colour, dash = colours(leaderboard)[name], dashes(leaderboard)[name]
            low, median, high = map(_positive, (decay.low, decay.median, decay.high))
            ax.fill_between(decay.time, low, high, color=colour, alpha=0.13, linewidth=0)
            ax.plot(decay.time, median, color=colour, linestyle=dash, linewidth=1.8)
        ax.axhline(math.log(2), color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)))
        ax.annotate(
            "ln 2: below it the prediction is right",
            (0.99, math.log(2)),
            xytext=(0, 4),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
        )
        ax.set_ylabel("potential V(t)")
        _label_ends(ax, {n: _positive(d.median) for n, d in decays.items()}, leaderboard)
    return figure


def envelope_figure(leaderboard: Leaderboard) -> Figure | None:
    """V(t) as measured and between which numbers it is proved to lie; None if there is no proof.

    Of each model the largest radius is drawn at which V is proved to fall for half of the samples,
    or else the smallest.
    """
    drawn = {name: of for name, of in map(_drawn_envelope, leaderboard.models) if of is not None}
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure, ax = _horizon_axes()
        ax.set_yscale("log")
        measured = [v for of in drawn.values() for v in _positive(of.potential) if v > 0]
        for name, of in drawn.items():
            colour, dash = colours(leaderboard)[name], dashes(leaderboard)[name]
            ends = np.clip(np.asarray([of.low, of.high], dtype=float), FLOOR, _MOST_DRAWN)
            ax.fill_between(of.time, *ends, color=colour, alpha=0.16, linewidth=0)
            for end in ends:
                ax.plot(of.time, end, color=colour, linewidth=0.8)
            ax.plot(of.time, _positive(of.potential), color=colour, linestyle=dash, linewidth=1.8)
        ax.set_ylim(max(FLOOR, 0.1 * min(measured, default=FLOOR)), _MOST_DRAWN)
        ax.set_ylabel("potential V(t), proved between")
        lines = {n: _positive(of.potential) for n, of in drawn.items()}
        at = {n: f"{n}, {words.threat_symbol(of.norm, of.eps)}" for n, of in drawn.items()}
        _label_ends(ax, lines, leaderboard, at)
    return figure


def _drawn_envelope(entry: ModelEntry) -> tuple[str, Envelope | None]:
    known = [of for of in entry.envelopes if of.time and of.decays is not None]
    norms = [norm for norm in Norm if any(of.norm is norm for of in known)]
    known = sorted((of for of in known if of.norm is norms[0]), key=lambda of: of.eps)
    falling = [of for of in known if of.decays is not None and of.decays.value >= 0.5]
    return entry.name, next(iter(falling[-1:] or known), None)


def horizon_figure(leaderboard: Leaderboard) -> Figure | None:
    """Accuracy of the state at each time, of all neural ODEs; None if there are none."""
    decays = _decays(leaderboard)
    if not decays:
        return None
    with mpl.rc_context(STYLE):
        figure, ax = _horizon_axes()
        for name, decay in decays.items():
            colour, dash = colours(leaderboard)[name], dashes(leaderboard)[name]
            ax.plot(decay.time, decay.accuracy, color=colour, linestyle=dash, linewidth=1.8)
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylabel("accuracy of the state at time t")
        _label_ends(ax, {n: np.array(d.accuracy) for n, d in decays.items()}, leaderboard)
    return figure


def _decays(leaderboard: Leaderboard) -> dict[str, Decay]:
    return {m.name: m.decay for m in leaderboard.models if m.decay is not None and m.decay.time}


def _horizon_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.0, 3.9), layout="constrained")
    ax = figure.subplots()
    ax.set_xlim(0, 1)
    ax.set_xlabel("time t / T")
    return figure, ax


def _positive(values: Sequence[float]) -> np.ndarray:
    """Values for a logarithmic axis: tiny ones at the floor, failed ones left out."""
    array = np.asarray(values, dtype=float)
    failed = ~np.isfinite(array) | (array < 0)
    return np.where(failed, np.nan, np.maximum(array, FLOOR))


def _label_ends(
    ax: Axes,
    lines: dict[str, np.ndarray],
    leaderboard: Leaderboard,
    labels: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Name each line beside its end, moved apart where two lines end close together."""
    ax.set_ylim(ax.get_ylim())  # labels are placed in fractions of limits that no longer move
    heights = {name: _end_height(ax, line) for name, line in lines.items()}
    for name, height in spread(heights, LABEL_GAP).items():
        colour = colours(leaderboard)[name]
        connector = {"arrowstyle": "-", "color": colour, "linewidth": 0.9}
        ax.annotate(
            labels.get(name, name),
            (1.0, heights[name]),
            xycoords="axes fraction",
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=text_colour(colour),
            fontweight="bold",
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops=connector | {"shrinkA": 2, "shrinkB": 1, "relpos": (0, 0.5)},
        )


def _end_height(ax: Axes, line: np.ndarray) -> float:
    """Where a line ends, as a fraction of the height of the axes."""
    known = line[np.isfinite(line)]
    if not len(known):
        return 0.5
    to_fraction = ax.transData + ax.transAxes.inverted()
    return float(np.clip(to_fraction.transform((1.0, known[-1]))[1], 0.0, 1.0))


def spread(heights: dict[str, float], gap: float) -> dict[str, float]:
    """Move heights apart until neighbours are at least `gap` from each other.

    Labels keep their order; a group that collides is centred on the mean of its heights.
    """
    groups: list[tuple[list[str], float]] = []
    for name in sorted(heights, key=lambda n: heights[n]):
        names, centre = [name], heights[name]
        while groups and _top(groups[-1], gap) + gap > centre - gap * (len(names) - 1) / 2:
            names = groups.pop()[0] + names
            centre = sum(heights[n] for n in names) / len(names)
        groups.append((names, centre))
    return dict(_places(groups, gap))


def _top(group: tuple[list[str], float], gap: float) -> float:
    names, centre = group
    return centre + gap * (len(names) - 1) / 2


def _places(groups: list[tuple[list[str], float]], gap: float) -> Iterator[tuple[str, float]]:
    for names, centre in groups:
        bottom = centre - gap * (len(names) - 1) / 2
        yield from ((name, bottom + gap * place) for place, name in enumerate(names))


FIGURES: dict[str, Callable[[Leaderboard], Figure | None]] = {
    "brackets": bracket_figure,
    "certificates": certificates_figure,
    "distances": distances_figure,
    "decay": decay_figure,
    "envelope": envelope_figure,
    "horizon": horizon_figure,
}
