"""The figures of a suite's page: who stands where, by attack, over the radius, at what price."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from robustness.reporting import ranking, selection, svg, words
from robustness.reporting.ranking import Threat
from robustness.reporting.sections import listed
from robustness.results.leaderboard import (
    WORST_CASE,
    AttackRow,
    Bracket,
    Distances,
    Leaderboard,
    ModelEntry,
)
from robustness.threat import Norm

WIDTH = 640.0
# As many models are drawn over the radius unless a reader chooses others.
CHOSEN = 5
# As a share of a radius: what attacks at it find lies as far inside at most.
JUST = 0.01
# Images of as many models are shown.
PICTURED = 4
# Width of a bold letter; see `svg.LETTER`.
_BOLD = 7.6


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        name: its file's name, and with its threat its id.
        title: its heading.
        caption: what is drawn and how to read it.
        canvas: the drawing.
        threat: `threat_id` of what it is about; empty where it is about all.
        lines: numbers and names of models whose lines can be shown or hidden, those that are
            drawn first in front; empty for none.
    """

    name: str
    title: str
    caption: str
    canvas: svg.Canvas
    threat: str = ""
    lines: tuple[tuple[int, str, bool], ...] = ()


def figures(leaderboard: Leaderboard, threat: Threat) -> list[Figure]:
    """Those of the suite's page that there is data for, at one threat."""
    drawn = (
        dumbbells(leaderboard, threat),
        attacks_figure(leaderboard, threat),
        price_figure(leaderboard, threat),
    )
    return [figure for figure in drawn if figure is not None]


def short(entry: ModelEntry, leaderboard: Leaderboard) -> str:
    """A model's name without the folder that all share."""
    folders = {model.name.rpartition("/")[0] for model in leaderboard.models}
    return entry.name.rpartition("/")[2] if len(folders) == 1 else entry.name


def clipped(name: str, letters: int = 30) -> str:
    """A name that leaves room for the drawing."""
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


# --- ranked dumbbells -------------------------------------------------------------------


def dumbbells(leaderboard: Leaderboard, threat: Threat) -> Figure | None:
    """Certified, worst case, plain attack and clean accuracy of each model, best first."""
    rows = [(e, b) for e, b in ranking.ranked(leaderboard, threat) if b is not None]
    if not rows:
        return None
    plain = ranking.plain_attack(leaderboard)
    names = [clipped(short(entry, leaderboard)) for entry, _ in rows]
    left = 24 + svg.LETTER * max(map(len, names))
    top, step = 40.0, 23.0
    bottom = top + step * len(rows)
    x = svg.Axis(0, 1, left, WIDTH - 22)
    canvas = svg.Canvas(WIDTH, bottom + 24, _dumbbells_alt(leaderboard, rows, threat))
    canvas.lines([((x(v), top - 6), (x(v), bottom)) for v in svg.QUARTERS], class_="grid")
    for value in svg.QUARTERS:
        label = f"{100 * value:.0f}%"
        canvas.text(x(value), bottom + 16, label, class_="tick", text_anchor="middle")
    plain_name = (plain or "").upper()
    shown = [("square", "good", "certified"), ("dot", "known", "all attacks")]
    shown += [("ring", "weak", f"{plain_name} alone")] if plain else []
    svg.legend(
        canvas, left - 6, 14, [*shown, ("tick", "clean", "clean"), ("band", "band", "not known")]
    )
    levels = [top + step * (number + 0.5) for number in range(len(rows))]
    canvas.lines([((x(0), y), (x(1), y)) for y in levels], class_="grid")
    for y, (entry, bracket), name in zip(levels, rows, names, strict=True):
        low, high = bracket.certified.value, bracket.attacked.value
        canvas.text(left - 12, y + 4, name, text_anchor="end")
        if high > low:
            canvas.add("rect", x=x(low), y=y - 4, width=x(high) - x(low), height=8, class_="band")
        row = ranking.attack_row(entry, plain or "", threat)
        said = f"{entry.name}: certified {words.percent(low)}, attacked {words.percent(high)}"
        canvas.open(title=f"{said}, clean {words.percent(entry.clean.value)}")
        if row is not None and row.subset == entry.clean.total:
            if row.robust.value > high:
                canvas.line(x(high), y, x(row.robust.value), y, class_="weak wide")
            svg.mark(canvas, "ring", x(row.robust.value), y, "weak")
        svg.mark(canvas, "tick", x(entry.clean.value), y, "clean")
        svg.mark(canvas, "dot", x(high), y, "known")
        svg.mark(canvas, "square", x(low), y, "good")
        canvas.close()
    return Figure(
        "standing",
        f"Who stands where at {words.threat_symbol(*threat)}",
        "Robust accuracy lies in the band, from what is proved to what no attack broke."
        + (
            f" An orange line is what {plain_name} alone would have reported too much."
            if plain
            else ""
        ),
        canvas,
        ranking.threat_id(threat),
    )


def _dumbbells_alt(
    leaderboard: Leaderboard,
    rows: Sequence[tuple[ModelEntry, Bracket]],
    threat: Threat,
) -> str:
    said = f"A row for each of {words.plural(len(rows), 'model')}. "
    return said + " ".join(ranking.found(leaderboard, threat))


# --- what each attack leaves ------------------------------------------------------------


def attacks_figure(leaderboard: Leaderboard, threat: Threat) -> Figure | None:
    """From the weakest attack to all of them: what each leaves of each model."""
    stages = _stages(leaderboard, threat)
    lines = {}
    for entry in leaderboard.models:
        bracket = selection.find_bracket(entry, *threat)
        rows = [ranking.attack_row(entry, stage, threat) for stage in stages[:-1]]
        if bracket is not None and any(rows):
            lines[entry.name] = (entry, rows, bracket)
    if len(stages) < 2 or not lines:
        return None
    misled = {
        name
        for name, (entry, _, _) in lines.items()
        if (ranking.gap(entry, ranking.plain_attack(leaderboard), threat) or 0)
        >= ranking.MISLEADING
    }
    names = {name: clipped(short(lines[name][0], leaderboard), 26) for name in lines}
    widths = [len(name) * (_BOLD if of in misled else svg.LETTER) for of, name in names.items()]
    left, right = 46.0, WIDTH - 24 - max(widths)
    top, bottom = 34.0, 34.0 + max(250.0, 14.5 * len(lines))
    y = svg.Axis(0, 1, bottom, top)
    places = np.linspace(left + 24, right - 16, len(stages)).tolist()
    canvas = svg.Canvas(WIDTH, bottom + 16, _attacks_alt(lines, misled, stages))
    svg.percent_grid(canvas, left, right, y)
    for stage, x in zip(stages, places, strict=True):
        some = {r.subset for _, rows, _ in lines.values() for r in rows if r and r.attack == stage}
        sizes = [n for n in some if n < leaderboard.suite.samples]
        name = {WORST_CASE: "all attacks", "autoattack": "AutoAttack"}.get(stage, stage.upper())
        side = "end" if stage == WORST_CASE else "middle"
        canvas.text(x, 14, name, class_="strong", text_anchor=side)
        if sizes:
            canvas.text(x, 27, f"first {words.extent(sizes)}", class_="tick", text_anchor="middle")
        canvas.line(x, top, x, bottom, class_="grid")
    ends, partly = {}, False
    for name, (entry, rows, bracket) in sorted(lines.items(), key=lambda item: item[0] in misled):
        style = "weak" if name in misled else "ghost"
        points = [(places[-1], y(bracket.attacked.value))]
        few: list[tuple[float, float]] = []
        for x, row in zip(places, rows, strict=False):
            if row is not None:
                whole = row.subset == entry.clean.total
                (points if whole else few).append((x, y(row.robust.value)))
        points.sort()
        partly = partly or bool(few)
        canvas.open(title=_attack_title(entry, rows, bracket))
        canvas.path(points, class_=f"{style} wide")
        canvas.spots(points, class_="weak" if name in misled else "clean")
        for x, height in few:
            svg.mark(canvas, "diamond", x, height, "weak" if name in misled else "clean")
        canvas.close()
        ends[name] = points[-1][1]
    heights = svg.within(svg.spread(ends, 13.5), top, bottom + 6, 13.5)
    x = places[-1]
    canvas.lines(
        [((x + 6, ends[name]), (right + 2, height)) for name, height in heights.items()],
        class_="link",
    )
    for name, height in heights.items():
        canvas.text(
            right + 6, height + 4, names[name], class_="strong weak" if name in misled else "tick"
        )
    return Figure(
        "attacks",
        f"What each attack leaves at {words.threat_symbol(*threat)}",
        "Accuracy under each attack alone, weakest first, and under all of the run together. A "
        "line that falls only at the end is a model that plain attacks report as robust and that "
        f"is not{_orange(leaderboard) if misled else ''}."
        + (" Diamonds off the lines are of fewer images, and do not compare." if partly else ""),
        canvas,
        ranking.threat_id(threat),
    )


def _orange(leaderboard: Leaderboard) -> str:
    plain = (ranking.plain_attack(leaderboard) or "").upper()
    return (
        f"; it is orange where {plain} alone says {100 * ranking.MISLEADING:g} points too much or "
        "more"
    )


def _stages(leaderboard: Leaderboard, threat: Threat) -> list[str]:
    """Attacks that ran at the threat, weakest first; all together come last."""
    ran = dict.fromkeys(
        r.attack for m in leaderboard.models for r in m.attacks if (r.norm, r.eps) == threat
    )
    order = ["fgsm", "mi-fgsm", "deepfool", "pgd", "apgd", "square", "autoattack"]
    known = [name for name in order if name in ran]
    return [*known, WORST_CASE]


def _attack_title(entry: ModelEntry, rows: Sequence[AttackRow | None], bracket: Bracket) -> str:
    said = [f"{r.attack} {words.percent(r.robust.value)} of {r.subset}" for r in rows if r]
    return f"{entry.name}: {', '.join(said)}, all {words.percent(bracket.attacked.value)}"


def _attacks_alt(lines: dict[str, tuple], misled: set[str], stages: Sequence[str]) -> str:
    ways = listed([s if s != WORST_CASE else "all attacks" for s in stages])
    said = f"Lines of {words.plural(len(lines), 'model')} under {ways}. "
    if not misled:
        return said + "No line falls steeply at the end."
    falls = [
        f"{name} falls to {words.percent(lines[name][2].attacked.value)} %"
        for name in sorted(misled)
    ]
    return said + f"Only at the end {listed(falls)}."


# --- over the radius --------------------------------------------------------------------


def standing(entry: ModelEntry, known: Distances) -> tuple[list[float], list[float]]:
    """Radii, and the share of samples that nothing found breaks at each and up to the next.

    At every radius that was attacked this is the attacked accuracy of the bracket there.
    """
    assert entry.samples is not None
    last = [
        min(
            float("inf") if distance is None else distance,
            float("inf") if failed is None else failed,
        )
        if prediction == label
        else 0.0
        for distance, failed, prediction, label in zip(
            known.distance, known.failed, entry.samples.prediction, entry.samples.label, strict=True
        )
    ]
    return _survival(last)


def proved(entry: ModelEntry, known: Distances) -> tuple[list[float], list[float]]:
    """Radii, and the share of samples that are certified at each and up to the next."""
    assert entry.samples is not None
    radii = [
        min(radius, float("inf") if failed is None else failed) if prediction == label else 0.0
        for radius, failed, prediction, label in zip(
            known.radius, known.failed, entry.samples.prediction, entry.samples.label, strict=True
        )
    ]
    return _survival(radii)


def _survival(last: Sequence[float]) -> tuple[list[float], list[float]]:
    """Where the share of values above x changes, and what it is from there on."""
    values = np.sort(np.array(last))
    grid = np.unique(np.concatenate([[0.0], values[np.isfinite(values)]]))
    above = len(values) - np.searchsorted(values, grid, side="right")
    return grid.tolist(), (above / len(values)).tolist()


def lowered(grid: Sequence[float], values: Sequence[float]) -> list[tuple[float, float]]:
    """A falling line through what is known at some radii, nowhere above the true one.

    Between two radii the truth is anywhere between their values, so the line runs a point ahead.
    """
    ahead = [*values[1:], values[-1]] if values else []
    return list(zip(grid, ahead, strict=True))


def furthest(leaderboard: Leaderboard, norm: Norm) -> float:
    """Where an axis of radii ends: past the last attack and the last certified image."""
    ends = [b.eps for m in leaderboard.models for b in m.brackets if b.norm is norm]
    for entry in leaderboard.models:
        for curve in (c for c in entry.curves if c.norm is norm):
            positive = zip(curve.certified_eps, curve.certified, strict=True)
            ends += [eps for eps, value in positive if value > 0]
    return 1.03 * max(ends, default=0.0) or 1.0


def radius_figure(leaderboard: Leaderboard) -> Figure | None:
    """Certified and attacked accuracy over the radius, a panel per norm, of some models."""
    norms = [n for n in selection.norms(leaderboard) if _has_curves(leaderboard, n)]
    first = ranking.default_threat(leaderboard)
    if not norms or first is None:
        return None
    chosen = _chosen(leaderboard, first)
    left, gap, top, height = 46.0, 44.0, 34.0, 230.0
    width = (WIDTH - left - 14 - gap * (len(norms) - 1)) / len(norms)
    best = [entry for entry, _ in ranking.ranked(leaderboard, first)]
    order = [*chosen, *(entry for entry in best if not any(entry is c for c in chosen))]
    canvas = svg.Canvas(WIDTH, top + height + 42, _radius_alt(leaderboard, chosen, norms))
    y = svg.Axis(0, 1, top + height, top)
    shown = [("line", "axis wide", "proved"), ("ring", "clean", "left by attacks at that radius")]
    svg.legend(canvas, left, 12, [*shown, ("dashed", "axis wide", "at most this between radii")])
    for place, norm in enumerate(norms):
        start = left + place * (width + gap)
        x = svg.Axis(0, furthest(leaderboard, norm), start, start + width)
        svg.percent_grid(canvas, start, start + width, y)
        svg.radius_axis(
            canvas, x, top + height, f"radius ε in {words.SYMBOLS[norm]}", 6 // len(norms) + 1
        )
        for number, entry in enumerate(order):
            hidden = None if number < len(chosen) else "none"
            canvas.open(data_model=str(number), display=hidden, class_=svg.hue(number))
            _radius_lines(canvas, entry, norm, x, y)
            canvas.close()
    lines = [(number, entry.name, number < len(chosen)) for number, entry in enumerate(order)]
    return Figure(
        "radius",
        "Certified and attacked accuracy over the radius",
        "The truth lies between what is proved and what attacks left. Between the rings nothing "
        "was attacked: there only images count as broken that were found at other radii, so the "
        "dashed lines say too much, and are not led down to the next ring.",
        canvas,
        lines=tuple(lines),
    )


def _has_curves(leaderboard: Leaderboard, norm: Norm) -> bool:
    return any(curve.norm is norm for entry in leaderboard.models for curve in entry.curves)


def _chosen(leaderboard: Leaderboard, threat: Threat) -> list[ModelEntry]:
    """The best few, and the one about which attacks mislead most."""
    best = [entry for entry, _ in ranking.ranked(leaderboard, threat)]
    misled = ranking.most_misleading(leaderboard, threat)
    if misled is None or any(misled.entry is entry for entry in best[:CHOSEN]):
        return best[:CHOSEN]
    return [*best[: CHOSEN - 1], misled.entry]


def _radius_lines(
    canvas: svg.Canvas, entry: ModelEntry, norm: Norm, x: svg.Axis, y: svg.Axis
) -> None:
    found, below = curves_of(entry, norm, x.high)
    attacked = [bracket.eps for bracket in entry.brackets if bracket.norm is norm]
    pieces = [(below, "wide")] if below else []
    for points, style in [*pieces, *((piece, "wide dash") for piece in parted(found, attacked))]:
        canvas.path(svg.thinned(svg.mapped(x, y, points), 1.8), class_=style)
    for bracket in (b for b in entry.brackets if b.norm is norm):
        said = (
            f"{entry.name} at {words.threat_symbol(norm, bracket.eps)}: certified "
            f"{words.percent(bracket.certified.value)}, attacked "
            f"{words.percent(bracket.attacked.value)} by "
            f"{selection.strength(entry, norm, bracket.eps)}"
        )
        svg.mark(canvas, "ring", x(bracket.eps), y(bracket.attacked.value), "", said)


def parted(
    points: Sequence[tuple[float, float]], attacked: Sequence[float]
) -> list[list[tuple[float, float]]]:
    """A line of steps in pieces: without its falls at the radii that attacks were made at.

    What attacks broke there might have fallen anywhere before. Their images lie a little within
    the ball, so falls just before a radius are of its attacks, too.
    """
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points:
        before = pieces[-1][-1] if pieces[-1] else point
        falls = before[0] == point[0] and before[1] > point[1]
        if falls and any(eps * (1 - JUST) <= point[0] <= eps for eps in attacked):
            pieces.append([])
        pieces[-1].append(point)
    return [p for p in pieces if p and p[-1][0] > p[0][0] * (1 + JUST)]


def curves_of(
    entry: ModelEntry, norm: Norm, end: float
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """The lines of what was found and of what is proved, up to the end of an axis.

    Sample by sample where samples are known, else through the points of the stored curve.
    """
    known = (
        next((n for n in entry.samples.norms if n.norm is norm), None) if entry.samples else None
    )
    reached = max((b.eps for b in entry.brackets if b.norm is norm), default=0.0)
    if known is not None:
        found = _until(*standing(entry, known), reached)
        below = _until(*proved(entry, known), end)
        return svg.steps(*found), svg.steps(*below)
    curve = next((c for c in entry.curves if c.norm is norm), None)
    if curve is None:
        return [], []
    attacked = {0.0: entry.clean.value} | dict(zip(curve.attacked_eps, curve.attacked, strict=True))
    radii = sorted(attacked)
    found = _until(radii, [attacked[eps] for eps in radii], reached)
    return svg.steps(*found), lowered(curve.certified_eps, curve.certified)


def _until(
    grid: Sequence[float], values: Sequence[float], end: float
) -> tuple[list[float], list[float]]:
    """The part of a falling line up to an end, which it reaches."""
    kept = [(a, b) for a, b in zip(grid, values, strict=True) if a <= end]
    if not kept:
        return [], []
    xs, ys = [a for a, _ in kept], [b for _, b in kept]
    if xs[-1] < end:
        xs, ys = [*xs, end], [*ys, ys[-1]]
    return xs, ys


def _radius_alt(
    leaderboard: Leaderboard, chosen: Sequence[ModelEntry], norms: Sequence[Norm]
) -> str:
    said = f"Two lines for each of {listed([e.name for e in chosen])}. "
    parts = []
    for norm in norms:
        radii = selection.radii(leaderboard, norm)
        if not radii:
            continue
        eps = radii[-1]
        ends = [
            f"{e.name} {words.bracket(b, ' to ')}"
            for e in chosen
            if (b := selection.find_bracket(e, norm, eps)) is not None
        ]
        parts.append(
            f"at {words.threat_symbol(norm, eps)}, percent certified to attacked: {', '.join(ends)}"
        )
    return said + "; ".join(parts).capitalize() + "."


# --- clean against certified ------------------------------------------------------------


def price_figure(leaderboard: Leaderboard, threat: Threat) -> Figure | None:
    """Clean against certified accuracy, with the front that nobody beats in both."""
    rows = [(e, b) for e, b in ranking.ranked(leaderboard, threat) if b is not None]
    if not any(b.certified.count for _, b in rows):
        return None
    points = [(entry.clean.value, b.certified.value) for entry, b in rows]
    best = sorted({points[i] for i in ranking.front(points)})
    left, right, top, bottom = 46.0, WIDTH - 20, 26.0, 276.0
    low = min(a for a, _ in points)
    low = max(0.0, np.floor(20 * (low - 0.02)) / 20)
    x, y = svg.Axis(float(low), 1, left, right), svg.Axis(0, 1, bottom, top)
    canvas = svg.Canvas(WIDTH, bottom + 42, _price_alt(rows))
    svg.percent_grid(canvas, left, right, y)
    told = svg.share_ticks(float(low))
    canvas.lines([((x(v), bottom), (x(v), bottom + 4)) for v in told], class_="axis")
    for value in told:
        canvas.text(
            x(value), bottom + 17, f"{100 * value:.3g}%", class_="tick", text_anchor="middle"
        )
    canvas.text(
        (left + right) / 2,
        bottom + 34,
        f"clean accuracy, {words.plural(leaderboard.suite.samples, 'image')}",
        text_anchor="middle",
    )
    canvas.text(left, 12, "certified accuracy")
    line = [(x(low), y(best[0][1]))]
    for (a, b), after in zip(best, [*best[1:], None], strict=True):
        line.append((x(a), y(b)))
        line.append((x(a), y(after[1]) if after else y(0)))
    canvas.path(line, class_="good wide", stroke_dasharray="4 3")
    marks, names = {}, {}
    for (entry, _), (a, b) in zip(rows, points, strict=True):
        on_front = (a, b) in best
        marks[entry.name] = (x(a), y(b))
        if b > 0 or on_front:
            names[entry.name] = clipped(short(entry, leaderboard))
    front = [
        (min(p, q) - 1, min(r, s) - 1, max(p, q) + 1, max(r, s) + 1)
        for (p, r), (q, s) in pairwise(line)
    ]
    placed = svg.labels(marks, names, front, (left, top - 12, right + 14, bottom))
    canvas.lines([label.link for label in placed.values() if label.link], class_="link")
    for (entry, _), (a, b) in zip(rows, points, strict=True):
        said = f"{entry.name}: clean {words.percent(a)}, certified {words.percent(b)}"
        kind, style = ("square", "good") if (a, b) in best else ("ring", "clean")
        svg.mark(canvas, kind, x(a), y(b), style, said)
    for of, label in placed.items():
        side = {} if label.anchor == "start" else {"text_anchor": label.anchor}
        canvas.text(label.x, label.y + 4, names[of], **side)
    nothing = sum(not b.certified.count for _, b in rows)
    left_out = f" Of {words.plural(nothing, 'model')} nothing is proved." if nothing else ""
    return Figure(
        "price",
        f"What proofs cost at {words.threat_symbol(*threat)}",
        "Clean against certified accuracy on the same images. On the dashed front no model is "
        f"better in one without being worse in the other.{left_out}",
        canvas,
        ranking.threat_id(threat),
    )


def _price_alt(rows: Sequence[tuple[ModelEntry, Bracket]]) -> str:
    points = [(entry.clean.value, b.certified.value) for entry, b in rows]
    said = [
        f"{rows[i][0].name} with {words.percent(points[i][0])} % clean and "
        f"{words.percent(points[i][1])} % certified"
        for i in ranking.front(points)
        if points[i][1] > 0
    ]
    return f"A point for each of {words.plural(len(rows), 'model')}; on the front: {listed(said)}."
