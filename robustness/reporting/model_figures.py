"""The figures of a model's page: its radii and distances, its certificates, work, and its flow."""

import math
from collections.abc import Sequence

from robustness.certificates.base import Kind
from robustness.reporting import selection, svg, words
from robustness.reporting.figures import Figure, curves_of, furthest, lowered
from robustness.reporting.sections import listed
from robustness.reporting.svg import FLOOR
from robustness.results.leaderboard import WORST_CASE, Distances, Leaderboard, ModelEntry
from robustness.threat import Norm

WIDTH = 640.0
_LEFT, _RIGHT, _TOP, _HEIGHT, _GAP = 46.0, 14.0, 30.0, 210.0, 48.0
# The largest potential drawn; a bound that is beyond it, or without bound, ends there.
MOST = 1e3
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_DASHES = {Kind.CERTIFIED: "", Kind.PROBABILISTIC: "8 3 2 3", Kind.ESTIMATE: "2 3"}


def figures(leaderboard: Leaderboard, entry: ModelEntry) -> list[Figure]:
    """Those that there is data for."""
    drawn = (
        distribution_figure(entry),
        certificates_figure(leaderboard, entry),
        samples_figure(entry),
        work_figure(entry),
        decay_figure(entry),
        envelope_figure(entry),
        horizon_figure(entry),
    )
    return [figure for figure in drawn if figure is not None]


def _panels(norms: Sequence[Norm]) -> list[tuple[Norm, float, float]]:
    """Each norm with the left and the right end of its panel."""
    width = (WIDTH - _LEFT - _RIGHT - _GAP * (len(norms) - 1)) / len(norms)
    starts = [_LEFT + place * (width + _GAP) for place in range(len(norms))]
    return [(norm, start, start + width) for norm, start in zip(norms, starts, strict=True)]


def _canvas(alt: str, below: float = 42.0) -> tuple[svg.Canvas, float]:
    bottom = _TOP + _HEIGHT
    return svg.Canvas(WIDTH, bottom + below, alt), bottom


# --- radii and distances of samples -----------------------------------------------------


def distribution_figure(entry: ModelEntry) -> Figure | None:
    """How many samples are certified, and how many have no adversarial image found, up to ε."""
    norms = [known.norm for known in entry.samples.norms] if entry.samples else []
    if not norms:
        return None
    canvas, bottom = _canvas(_distribution_alt(entry, norms))
    y = svg.Axis(0, 1, bottom, _TOP)
    svg.legend(
        canvas,
        _LEFT,
        10,
        [
            ("line", "good wide", "certified beyond the radius"),
            ("dashed", "known wide", "nothing found within the radius"),
            ("band", "band", "not known"),
        ],
    )
    for norm, start, end in _panels(norms):
        reach = _reach(entry, norm)
        x = svg.Axis(0, reach, start, end)
        svg.percent_grid(canvas, start, end, y)
        svg.radius_axis(canvas, x, bottom, f"radius in {words.SYMBOLS[norm]}", 7 // len(norms) + 1)
        found, below = curves_of(entry, norm, reach)
        upper = svg.thinned(svg.mapped(x, y, found))
        lower = svg.thinned(svg.mapped(x, y, below))
        inside = [(a, b) for a, b in lower if upper and a <= upper[-1][0]]
        if upper and inside:
            edge = [(upper[-1][0], inside[-1][1])]
            canvas.area(upper, [*inside, *edge], class_="band")
        canvas.path(lower, class_="good wide")
        canvas.path(upper, class_="known wide dash")
        for bracket in (b for b in entry.brackets if b.norm is norm):
            said = (
                f"{words.threat_symbol(norm, bracket.eps)}: certified "
                f"{words.percent(bracket.certified.value)}, attacked "
                f"{words.percent(bracket.attacked.value)} by "
                f"{selection.strength(entry, norm, bracket.eps)}"
            )
            svg.mark(canvas, "ring", x(bracket.eps), y(bracket.attacked.value), "known", said)
    return Figure(
        "distribution",
        "Certified radius and nearest adversarial distance",
        "The share of samples with a certified radius above ε, and of those without an adversarial "
        "image within ε among all that the run found. Rings are the radii that were attacked; "
        "beyond the last one nothing was looked for.",
        canvas,
    )


def _reach(entry: ModelEntry, norm: Norm) -> float:
    """Where the axis of one model ends."""
    assert entry.samples is not None
    known = next(n for n in entry.samples.norms if n.norm is norm)
    ends = [b.eps for b in entry.brackets if b.norm is norm]
    return 1.03 * max([*ends, *known.radius], default=0.0) or 1.0


def _distribution_alt(entry: ModelEntry, norms: Sequence[Norm]) -> str:
    said = [
        f"at {words.threat_symbol(b.norm, b.eps)} from {words.percent(b.certified.value)} to "
        f"{words.percent(b.attacked.value)} %"
        for norm in norms
        for b in [b for b in entry.brackets if b.norm is norm][-1:]
    ]
    return f"Two falling lines per norm, certified below and not broken above: {listed(said)}."


def samples_figure(entry: ModelEntry) -> Figure | None:
    """A point per sample: its certified radius, and the distance of what was found nearest."""
    drawn = [n for n in (entry.samples.norms if entry.samples else []) if any(n.radius)]
    if not drawn:
        return None
    canvas, bottom = _canvas(_samples_alt(drawn))
    shown = [
        ("dot", "known", "nearest found"),
        ("tick", "clean", "none found"),
        ("line", "axis", "settled"),
    ]
    svg.legend(canvas, _LEFT, 10, shown)
    for known, (norm, start, end) in zip(drawn, _panels([n.norm for n in drawn]), strict=True):
        right = [(r, d) for r, d in zip(known.radius, known.distance, strict=True) if d != 0]
        top = 1.05 * max([*(r for r, _ in right), *(d for _, d in right if d is not None)] or [1.0])
        x = svg.Axis(0, 1.05 * max([r for r, _ in right] or [1.0]), start, end)
        y = svg.Axis(0, top, bottom, _TOP)
        for value in svg.ticks(top):
            canvas.line(start, y(value), end, y(value), class_="grid")
            canvas.text(start - 6, y(value) + 4, f"{value:.3g}", class_="tick", text_anchor="end")
        svg.radius_axis(canvas, x, bottom, f"certified radius in {words.SYMBOLS[norm]}", 4)
        canvas.line(x(0), y(0), x(x.high), y(x.high), class_="axis")
        # Strokes of no length have round ends: a path of them is a dot for each sample.
        dots = svg.mapped(x, y, [(r, d) for r, d in right if d is not None])
        canvas.add("path", d="".join(f"M{a:.1f} {b:.1f}h0" for a, b in dots), class_="dots known")
        none = svg.mapped(x, y, [(r, top) for r, d in right if d is None])
        canvas.add("path", d="".join(f"M{a:.1f} {b:.1f}v6" for a, b in none), class_="clean")
    return Figure(
        "samples",
        "Every sample: proved radius and what was found",
        "Across: how far a sample is proved to keep its class. Up: the distance of the nearest "
        "adversarial image found. The truth lies between; on the diagonal it is settled, and a "
        "point below would refute the certificate. Misclassified samples are left out.",
        canvas,
    )


def _samples_alt(drawn: Sequence[Distances]) -> str:
    said = []
    for known in drawn:
        pairs = zip(known.radius, known.distance, strict=True)
        right = [(r, d) for r, d in pairs if d != 0]
        below = sum(d is not None and d < r for r, d in right)
        said.append(
            f"{words.SYMBOLS[known.norm]}: {words.plural(len(right), 'sample')}, "
            f"{sum(d is None for _, d in right)} with nothing found, {below} below the diagonal"
        )
    return f"Points of certified radius against adversarial distance. {'; '.join(said)}."


# --- each certificate -------------------------------------------------------------------


def certificates_figure(leaderboard: Leaderboard, entry: ModelEntry) -> Figure | None:
    """Accuracy that each certificate alone gives, over the radius."""
    speaking = [r for r in entry.certificates if r.kind is not None and any(r.curve)]
    names = list(dict.fromkeys(r.certificate for r in speaking if any(v > 0 for v in r.curve)))
    norms = list(dict.fromkeys(r.norm for r in speaking if r.certificate in names))
    if not names:
        return None
    columns = 3
    lines = -(-len(names) // columns)
    below = 50.0 + 16.0 * lines
    canvas, bottom = _canvas(_certificates_alt(entry, names), below)
    y = svg.Axis(0, 1, bottom, _TOP)
    kinds = list(dict.fromkeys(r.kind for r in speaking))
    x_legend = _LEFT
    for kind in kinds:
        assert kind is not None
        canvas.line(x_legend, 10, x_legend + 22, 10, class_="clean", stroke_dasharray=_DASHES[kind])
        canvas.text(x_legend + 28, 14, kind.value, class_="tick")
        x_legend += 50 + svg.LETTER * len(kind.value)
    for norm, start, end in _panels(norms):
        x = svg.Axis(0, furthest(leaderboard, norm), start, end)
        svg.percent_grid(canvas, start, end, y)
        svg.radius_axis(canvas, x, bottom, f"radius in {words.SYMBOLS[norm]}", 7 // len(norms) + 1)
        for row in (r for r in speaking if r.norm is norm and r.certificate in names):
            number = names.index(row.certificate)
            assert row.kind is not None
            inside = [(a, b) for a, b in lowered(row.curve_eps, row.curve) if a <= x.high]
            points = svg.mapped(x, y, inside)
            canvas.path(
                points, class_=f"{svg.hue(number)} wide", stroke_dasharray=_DASHES[row.kind]
            )
    for number, name in enumerate(names):
        place, line = number % columns, number // columns
        left = _LEFT + place * (WIDTH - _LEFT) / columns
        height = bottom + 52 + 16 * line
        canvas.line(left, height, left + 18, height, class_=f"{svg.hue(number)} thick")
        canvas.text(left + 24, height + 4, name, class_="tick")
    return Figure(
        "certificates",
        "What each certificate gives",
        "Accuracy over the radius. Only solid lines are proofs about the model; estimates prove "
        "nothing wherever they lie. Lines run up to a step of their grid too low, never too high.",
        canvas,
    )


def _certificates_alt(entry: ModelEntry, names: Sequence[str]) -> str:
    said, lines = [], f"Falling lines of {words.plural(len(names), 'certificate')}"
    for bracket in entry.brackets[:1]:
        for name in names:
            for row in entry.certificates:
                if (row.certificate, row.norm) == (name, bracket.norm) and bracket.eps in row.eps:
                    value = row.accuracy[row.eps.index(bracket.eps)].value
                    said.append(f"{name} {words.percent(value)} %")
        where = words.threat_symbol(bracket.norm, bracket.eps)
        return f"{lines}; at {where}: {', '.join(said) or 'none'}."
    return f"{lines}."


# --- accuracy against work --------------------------------------------------------------


def work_figure(entry: ModelEntry) -> Figure | None:
    """How many samples stand after how many passes of the worst case."""
    rows = [r for r in entry.attacks if r.attack == WORST_CASE and r.left_after]
    if not rows:
        return None
    last = max(n for row in rows for n, _ in row.left_after)
    said = [
        f"at {words.threat_symbol(r.norm, r.eps)} {words.percent(r.robust.value)} % after "
        f"{r.left_after[-1][0]:,}"
        for r in rows
    ]
    canvas, bottom = _canvas(
        f"Falling lines, a share of samples that stand: {listed(said)} passes."
    )
    y = svg.Axis(0, 1, bottom, _TOP)
    right = WIDTH - 96
    x = svg.Axis(0, max(math.log2(last), 1.0), _LEFT, right)
    svg.percent_grid(canvas, _LEFT, right, y)
    for power in range(0, int(math.log2(last)) + 1, 2):
        canvas.line(x(power), bottom, x(power), bottom + 4, class_="axis")
        canvas.text(x(power), bottom + 17, f"{2**power:,}", class_="tick", text_anchor="middle")
    canvas.text(
        (_LEFT + right) / 2,
        bottom + 34,
        "images passed on behalf of each sample",
        text_anchor="middle",
    )
    ends = {}
    for number, row in enumerate(rows):
        points = [(x(math.log2(n)), y(left / row.subset)) for n, left in row.left_after]
        points.append((x(x.high), points[-1][1]))
        canvas.path(points, class_=f"{svg.hue(number)} wide", stroke_dasharray=svg.dash(number))
        ends[f"{words.threat_symbol(row.norm, row.eps)}"] = points[-1][1]
    for name, height in svg.within(svg.spread(ends, 14), _TOP, bottom, 14).items():
        canvas.line(right + 2, ends[name], right + 10, height, class_="link")
        canvas.text(right + 14, height + 4, name, class_="tick")
    return Figure(
        "work",
        "Accuracy against queries",
        "Share of samples that still stand when so many images, doubling, have been passed through "
        "a model on behalf of each, forward or forward and back. A line that falls late is a model "
        "on which quick attacks report too much.",
        canvas,
    )


# --- along the horizon ------------------------------------------------------------------


def decay_figure(entry: ModelEntry) -> Figure | None:
    """The potential V(t) on a logarithmic axis; None without an ODE."""
    decay = entry.decay
    if decay is None or not decay.time:
        return None
    values = [*decay.low, *decay.median, *decay.high]
    canvas, bottom = _canvas(_decay_alt(decay.time, decay.median))
    x = svg.Axis(0, 1, _LEFT, WIDTH - _RIGHT)
    y = _potential_axis(canvas, bottom, values)
    svg.legend(
        canvas,
        _LEFT,
        10,
        [("line", "known wide", "median"), ("band", "band", "middle 80 % of samples")],
    )
    svg.radius_axis(canvas, x, bottom, "time t / T")
    low, median, high = (
        _trace(x, y, decay.time, series) for series in (decay.low, decay.median, decay.high)
    )
    if high and low:
        canvas.area(high, low, class_="band")
    canvas.path(median, class_="known wide")
    half = y(math.log10(math.log(2)))
    canvas.line(_LEFT, half, WIDTH - _RIGHT, half, class_="axis", stroke_dasharray="2 3")
    said = "ln 2: below it the prediction is right"
    canvas.text(WIDTH - _RIGHT - 4, half - 5, said, class_="tick", text_anchor="end")
    return Figure(
        "decay",
        "Decay of the potential along the flow",
        "V(t) = −log p(t), with p(t) the probability that the state at time t gives the true "
        "class, on unperturbed samples. A straight fall is exponential decay, as a Lyapunov "
        "condition asks for. Values under 10⁻⁶ are drawn there; those that overflowed are left "
        "out.",
        canvas,
    )


def _potential_axis(canvas: svg.Canvas, bottom: float, values: Sequence[float]) -> svg.Axis:
    """The logarithmic axis of some potentials, with its grid."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    low = math.floor(math.log10(max(min(known, default=0.1), FLOOR)))
    high = math.ceil(math.log10(min(max(max(known, default=1.0), 1.0), MOST)))
    y = svg.Axis(low, max(high, low + 1), bottom, _TOP)
    every = max(1, (high - low) // 6)
    for power in range(low, high + 1, every):
        canvas.line(_LEFT, y(power), WIDTH - _RIGHT, y(power), class_="grid")
        said = f"10{str(power).translate(_SUPERSCRIPTS)}" if power else "1"
        canvas.text(_LEFT - 6, y(power) + 4, said, class_="tick", text_anchor="end")
    return y


def _trace(
    x: svg.Axis, y: svg.Axis, time: Sequence[float], values: Sequence[float]
) -> list[tuple[svg.Number, svg.Number]]:
    """A line of potentials: tiny ones at the floor, endless ones at the top, others left out."""
    seen = [
        (t, math.log10(min(max(v, FLOOR), MOST)))
        for t, v in zip(time, values, strict=True)
        if v >= 0
    ]
    return svg.mapped(x, y, seen)


def envelope_figure(entry: ModelEntry) -> Figure | None:
    """V(t) as measured, and between which numbers it is proved to lie; None without a proof."""
    of = selection.drawn_envelope(entry)
    if of is None:
        return None
    where = words.threat_symbol(of.norm, of.eps)
    end = f"{of.high[-1]:.3g}" if math.isfinite(of.high[-1]) else "no bound"
    canvas, bottom = _canvas(
        f"At {where} the potential at the horizon is proved to lie between {of.low[-1]:.3g} and "
        f"{end}; measured {of.potential[-1]:.3g}."
    )
    x = svg.Axis(0, 1, _LEFT, WIDTH - _RIGHT)
    y = _potential_axis(canvas, bottom, [*of.low, *of.potential, *of.high])
    shown = [("line", "known wide", "measured"), ("band", "sure", f"proved at {where}")]
    svg.legend(canvas, _LEFT, 10, shown)
    svg.radius_axis(canvas, x, bottom, "time t / T")
    low, high = _trace(x, y, of.time, of.low), _trace(x, y, of.time, of.high)
    if low and high:
        canvas.area(high, low, class_="sure")
        canvas.path(high, class_="good")
        canvas.path(low, class_="good")
    canvas.path(_trace(x, y, of.time, of.potential), class_="known wide")
    return Figure(
        "envelope",
        f"Proved envelope of the potential at {where}",
        "Between which numbers V(t) is proved to lie at every step of the solver, for every image "
        "within the radius, rounding included: medians over the samples. It is drawn at the "
        "largest radius at which V is proved to fall for half of the samples, else at the "
        "smallest. Where the band widens, the bound has lost hold of the trajectories; it does not "
        "say that they part.",
        canvas,
    )


def _decay_alt(time: Sequence[float], median: Sequence[float]) -> str:
    return (
        f"The median potential goes from {median[0]:.3g} at the start to {median[-1]:.3g} at the "
        f"horizon, over {words.plural(len(time), 'time')}."
    )


def horizon_figure(entry: ModelEntry) -> Figure | None:
    """Accuracy of the state at each time; None without an ODE."""
    decay = entry.decay
    if decay is None or not decay.time:
        return None
    first, last = (words.percent(decay.accuracy[i]) for i in (0, -1))
    said = f"Accuracy of the state goes from {first} % at the start to {last} % at the horizon."
    canvas, bottom = _canvas(said)
    x, y = svg.Axis(0, 1, _LEFT, WIDTH - _RIGHT), svg.Axis(0, 1, bottom, _TOP)
    svg.percent_grid(canvas, _LEFT, WIDTH - _RIGHT, y)
    svg.radius_axis(canvas, x, bottom, "time t / T")
    points = svg.mapped(x, y, list(zip(decay.time, decay.accuracy, strict=True)))
    canvas.path(points, class_="known wide")
    return Figure(
        "horizon",
        "Accuracy along the horizon",
        "If the state were read at time t instead of at the horizon, on unperturbed samples. Flat "
        "well before the end: it has converged. Still moving: it owes its accuracy to where "
        "integration happens to stop.",
        canvas,
    )
