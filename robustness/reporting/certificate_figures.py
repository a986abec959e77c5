"""Figures of certificates: accuracy against radius, and radius against adversarial distance."""

from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from robustness.certificates.base import Kind
from robustness.reporting import selection, words
from robustness.reporting.drawing import FAINT, INK, PALETTE, STYLE, name_rows
from robustness.results.leaderboard import Distances, Leaderboard, ModelEntry
from robustness.threat import Norm

_DASHES: dict[Kind, Literal["-", "-.", ":"]] = {
    Kind.CERTIFIED: "-",
    Kind.PROBABILISTIC: "-.",
    Kind.ESTIMATE: ":",
}
_BROKEN = "#B71C1C"


def certificates_figure(leaderboard: Leaderboard) -> Figure | None:
    """Accuracy against radius, a line per certificate; None where none says anything.

    A row per model on which some certificate gives a positive radius, a column per norm.
    """
    entries = [entry for entry in leaderboard.models if _speaks(entry)]
    norms = selection.norms(leaderboard)
    if not entries or not norms:
        return None
    names = list(dict.fromkeys(row.certificate for entry in entries for row in entry.certificates))
    colours = dict(zip(names, cycle(PALETTE), strict=False))
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(entries), norms)
        for entry, line in zip(entries, axes, strict=True):
            for norm, ax in zip(norms, line, strict=True):
                _draw_certificates(ax, entry, norm, colours)
        axes[0, 0].set_ylim(0, 1.02)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0))
        for norm, ax in zip(norms, axes[-1], strict=True):
            ax.set_xlabel(f"radius in {words.SYMBOLS[norm]}, pixel units")
            ax.set_xlim(left=0)
        name_rows(axes[:, 0], entries, leaderboard)
        figure.legend(handles=_legend(entries, colours), loc="outside upper center", ncols=4)
    return figure


def _speaks(entry: ModelEntry) -> bool:
    return any(row.kind is not None and any(row.curve) for row in entry.certificates)


def _draw_certificates(ax: Axes, entry: ModelEntry, norm: Norm, colours: dict[str, str]) -> None:
    for row in selection.certificate_rows(entry, norm):
        if row.kind is not None and row.curve:
            ax.step(
                row.curve_eps,
                row.curve,
                where="pre",  # between two radii only what is proved at the larger one is
                color=colours[row.certificate],
                linestyle=_DASHES[row.kind],
                linewidth=1.7,
            )


def _legend(entries: Sequence[ModelEntry], colours: dict[str, str]) -> list[Line2D]:
    kinds = {row.kind for entry in entries for row in entry.certificates if row.kind is not None}
    lines = [Line2D([], [], color=c, linewidth=1.8, label=name) for name, c in colours.items()]
    if kinds != {Kind.CERTIFIED}:
        lines += [
            Line2D([], [], color=INK, linestyle=dash, label=kind.value)
            for kind, dash in _DASHES.items()
            if kind in kinds
        ]
    return lines


def distances_figure(leaderboard: Leaderboard) -> Figure | None:
    """Certified radius against the smallest adversarial distance, a point per sample.

    A row per model with some certified radius, a column per norm; None without any.
    """
    norms = selection.norms(leaderboard)
    entries = [
        entry
        for entry in leaderboard.models
        if entry.samples and any(any(known.radius) for known in entry.samples.norms)
    ]
    if not entries or not norms:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = _panels(len(entries), norms, share_heights=False, height=2.3)
        for entry, line in zip(entries, axes, strict=True):
            for norm, ax in zip(norms, line, strict=True):
                _draw_distances(ax, entry, norm)
                ax.set_ylabel(f"distance, {words.SYMBOLS[norm]}")
        for norm, ax in zip(norms, axes[-1], strict=True):
            ax.set_xlabel(f"certified radius in {words.SYMBOLS[norm]}, pixel units")
        name_rows(axes[:, 0], entries, leaderboard)
        figure.legend(handles=_distances_legend(leaderboard), loc="outside upper center", ncols=3)
    return figure


def _draw_distances(ax: Axes, entry: ModelEntry, norm: Norm) -> None:
    assert entry.samples is not None
    known = next((n for n in entry.samples.norms if n.norm is norm), None)
    if known is None:
        ax.text(0.5, 0.5, "not evaluated", transform=ax.transAxes, ha="center", color=FAINT)
        return
    found, standing = _points(known)
    attacked = [b.eps for b in entry.brackets if b.norm is norm]
    top = 1.08 * max([*attacked, *(d for _, d in found), *(r for r, _ in found), 0.0]) or 1.0
    right = 1.05 * max([*known.radius, 0.0]) or 1.0
    ax.fill_between([0, right], [0, right], color=_BROKEN, alpha=0.08, linewidth=0)
    ax.plot([0, right], [0, right], color=_BROKEN, linewidth=0.9)
    size = 4.5 if len(known.radius) < 300 else 2.8
    ax.plot(*_columns(found), "o", color=PALETTE[0], markersize=size, alpha=0.6, mew=0)
    reach = max(attacked, default=top)
    heights = [max(reach, radius) for radius in standing]
    ax.plot(standing, heights, "^", color=PALETTE[4], markersize=size + 0.8, alpha=0.6, mew=0)
    ax.set_xlim(0, right)
    ax.set_ylim(0, max([top, *(1.05 * height for height in heights)]))
    ax.xaxis.set_major_locator(MaxNLocator(6))


def _points(known: Distances) -> tuple[list[tuple[float, float]], list[float]]:
    """Radius and distance of what was broken, and the radii of what was not."""
    found, standing = [], []
    for radius, distance, failed in zip(known.radius, known.distance, known.failed, strict=True):
        if distance is not None and distance > 0:
            found.append((radius, distance))
        elif distance is None and failed is None:
            standing.append(radius)
    return found, standing


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _distances_legend(leaderboard: Leaderboard) -> list[Line2D | Patch]:
    furthest = [
        (norm, selection.radii(leaderboard, norm)[-1]) for norm in selection.norms(leaderboard)
    ]
    reach = ", ".join(
        f"{words.threat_symbol(*at)} ({selection.strengths(leaderboard, *at)})" for at in furthest
    )
    nearest, none = "nearest adversarial image", f"none found up to {reach}"
    return [
        Line2D([], [], linestyle="", marker="o", mew=0, color=PALETTE[0], label=nearest),
        Line2D([], [], linestyle="", marker="^", mew=0, color=PALETTE[4], label=none),
        Patch(facecolor=_BROKEN, alpha=0.15, label="would refute the certificate"),
    ]


def _panels(
    rows: int, norms: Sequence[Norm], share_heights: bool = True, height: float = 1.75
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(9.0, 0.9 + height * rows), layout="constrained")
    axes = figure.subplots(
        rows,
        len(norms),
        sharex="col" if share_heights else "none",
        sharey="all" if share_heights else "none",
        squeeze=False,
    )
    return figure, axes
