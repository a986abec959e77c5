"""The figures of the claims report, as SVG: along the horizon, and under every protocol."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from robustness.claims.models import MODELS
from robustness.claims.protocol import WIDE_STEPS
from robustness.claims.results import SeedResults
from robustness.claims.verdicts import PROTOCOLS, Interval, threat
from robustness.reporting.drawing import DASHES, INK, PALETTE, STYLE, svg
from robustness.reporting.svg import FLOOR

COLOURS = dict(zip(MODELS, PALETTE, strict=False))


def drawings(seeds: Sequence[SeedResults]) -> dict[str, bytes]:
    """Every figure: name to SVG."""
    return {
        "horizon": svg(horizon_figure(seeds)),
        "robustness": svg(robustness_figure(seeds)),
    }


def horizon_figure(seeds: Sequence[SeedResults]) -> Figure:
    """V(t) and accuracy of each seed, and where 90% and 99% of the final accuracy are reached."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        for place, name in enumerate(seeds[0].horizon):
            style = _line_style(name, place)
            for seed in seeds:
                course = seed.horizon[name]
                left.plot(course.time, np.maximum(course.potential, FLOOR), **style)
                right.plot(course.time, course.accuracy, **style)
                _mark_reached(right, course.reached, course.accuracy[-1], COLOURS[name])
        left.set_yscale("log")
        left.axhline(math.log(2), color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)))
        left.annotate(
            "ln 2",
            (0.995, math.log(2)),
            xytext=(0, 3),
            ha="right",
            fontsize=8,
            textcoords="offset points",
        )
        left.set_ylabel("median potential V(t)")
        right.set_ylabel("accuracy of the state at time t")
        right.set_ylim(0, 1.02)
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        for ax in (left, right):
            ax.set_xlim(0, 1)
            ax.set_xlabel("time t / T")
        figure.legend(handles=_horizon_legend(seeds), loc="outside upper center", ncols=4)
    return figure


def _line_style(name: str, place: int) -> dict[str, Any]:
    return {"color": COLOURS[name], "linestyle": DASHES[place], "linewidth": 1.3}


def _mark_reached(ax: Axes, reached: dict[str, float], final: float, colour: str) -> None:
    for (share, time), marker in zip(reached.items(), ("o", "D"), strict=True):
        ax.plot(
            [time],
            [float(share) * final],
            marker,
            color=colour,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            clip_on=False,
        )


def _horizon_legend(seeds: Sequence[SeedResults]) -> list[Line2D]:
    lines = [
        Line2D([], [], label=f"{name}, each seed", **_line_style(name, place))
        for place, name in enumerate(seeds[0].horizon)
    ]
    marks = {"o": "90% of the final accuracy", "D": "99%"}
    return lines + [
        Line2D([], [], color=INK, marker=marker, linestyle="none", markersize=4.5, label=label)
        for marker, label in marks.items()
    ]


def robustness_figure(seeds: Sequence[SeedResults]) -> Figure:
    """Robust accuracy by protocol and model: a dot per seed, a bar over the 95% interval."""
    protocols = list(seeds[0].robust)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        ax = figure.subplots()
        for place, protocol in enumerate(protocols):
            names = [name for name in MODELS if name in seeds[0].robust[protocol]]
            for name in names:
                x = place + 0.15 * (MODELS.index(name) - (len(MODELS) - 1) / 2)
                values = [seed.robust[protocol][name].value for seed in seeds]
                interval = Interval.of(values)
                low, high = max(interval.low, 0.0), min(interval.high, 1.0)
                ax.plot([x, x], [low, high], color=COLOURS[name], linewidth=4, alpha=0.3)
                ax.plot([x] * len(values), values, "o", color=COLOURS[name], markersize=3.5)
        ax.set_xticks(range(len(protocols)), [_label(protocol) for protocol in protocols])
        ax.tick_params(axis="x", length=0)
        ax.grid(visible=False, axis="x")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.set_ylabel("robust accuracy")
        handles = [
            Line2D([], [], color=COLOURS[name], marker="o", linestyle="none", label=name)
            for name in MODELS
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(MODELS))
    return figure


def _label(protocol: str) -> str:
    words = {
        "paper": "paper's protocol",
        "pixels": "PGD, 10 steps",
        "wide": f"PGD, {WIDE_STEPS} steps",
        "short": "PGD, shorter horizon too",
        "worst": "worst case",
    }
    assert set(words) == set(PROTOCOLS)
    return f"{words[protocol.split()[0]]}\n{threat(protocol)}"
