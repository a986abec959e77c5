"""Figures as SVG: text is text, colours are classes of `figures.css`, so that a page can darken.

Only what the report's figures need: a canvas that escapes what it is given, and axes from data to
places. Equal figures give equal bytes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Any

from robustness.errors import printable

# What coordinates and data may be.
Number = float | int
Point = tuple[Number, Number]

# Width of a letter of 12 units, on average; places of labels are reckoned with it.
LETTER = 6.4
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Hues of `figures.css`, told apart by dashes where they repeat.
HUES = 7
DASHES = ("", "6 3", "2 2", "8 3 2 3")
# A potential below this is 0 for every purpose, and a logarithm has to end somewhere.
FLOOR = 1e-6


def place(value: Number) -> str:
    """A coordinate to a tenth."""
    said = f"{value:.1f}".removesuffix(".0")
    return "0" if said == "-0" else said


@dataclass(frozen=True)
class Axis:
    """From data to places along one axis.

    Attributes:
        low, high: of the data.
        start, end: of the places.
    """

    low: Number
    high: Number
    start: Number
    end: Number

    def __call__(self, value: Number) -> Number:
        """The place of a value; beyond the ends of the data, the end."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


@dataclass
class Canvas:
    """An SVG that is drawn on.

    Attributes:
        width, height: in units of its view box.
        alt: what is seen, for who does not see it.
    """

    width: Number
    height: Number
    alt: str
    parts: list[str] = field(default_factory=list)

    def add(self, tag: str, inside: str = "", title: str = "", **attributes: Any) -> None:
        """An element; `title` is shown where a pointer rests, `_` in names stands for `-`."""
        given = "".join(
            f' {key.rstrip("_").replace("_", "-")}="{escape(_written(value))}"'
            for key, value in attributes.items()
            if value not in (None, "")
        )
        if title:
            inside = f"<title>{escape(printable(title))}</title>{inside}"
        self.parts.append(f"<{tag}{given}>{inside}</{tag}>" if inside else f"<{tag}{given}/>")

    def open(self, **attributes: Any) -> None:
        """Begin a group."""
        self.add("g", " ", **attributes)
        self.parts[-1] = self.parts[-1].removesuffix(" </g>")

    def close(self) -> None:
        """End the group that was begun last."""
        self.parts.append("</g>")

    def text(self, x: Number, y: Number, words: str, **attributes: Any) -> None:
        """Words at a place, by default beginning there."""
        self.add("text", escape(printable(words)), x=x, y=y, **attributes)

    def line(self, x1: Number, y1: Number, x2: Number, y2: Number, **attributes: Any) -> None:
        """A straight line."""
        self.lines([((x1, y1), (x2, y2))], **attributes)

    def lines(self, ends: Iterable[tuple[Point, Point]], **attributes: Any) -> None:
        """Straight lines as one element, each from its first to its second end."""
        self.add("path", d="".join(map(trace, ends)), **attributes)

    def spots(self, points: Iterable[Point], **attributes: Any) -> None:
        """Dots as one element, as large as the mark `dot`."""
        style = f"{attributes.pop('class_', '')} spot".strip()
        self.add("path", d="".join(f"{trace([p])}h0" for p in points), class_=style, **attributes)

    def path(self, points: Sequence[tuple[Number, Number]], **attributes: Any) -> None:
        """A line through points."""
        style = f"ln {attributes.pop('class_', '')}".strip()
        self.add("path", d=trace(points), class_=style, **attributes)

    def area(
        self,
        upper: Sequence[tuple[Number, Number]],
        lower: Sequence[tuple[Number, Number]],
        **attributes: Any,
    ) -> None:
        """What lies between two lines."""
        self.add("path", d=trace([*upper, *reversed(lower)]) + "Z", **attributes)

    @property
    def markup(self) -> str:
        """The SVG for a page, whose style sheet colours it."""
        return self._whole("")

    @property
    def file(self) -> bytes:
        """The SVG as a file of its own."""
        return self._whole(f"<style>{figure_style()}</style>").encode()

    def _whole(self, style: str) -> str:
        size = f'viewBox="0 0 {place(self.width)} {place(self.height)}"'
        ratio = f' width="{place(self.width)}" height="{place(self.height)}"' if style else ""
        known = ' xmlns="http://www.w3.org/2000/svg"' if style else ""  # a page knows it
        label = escape(printable(self.alt))
        return (
            f'<svg{known} class="fig" {size}{ratio} role="img" '
            f'aria-label="{label}">{style}{"".join(self.parts)}</svg>'
        )


def _written(value: object) -> str:
    return place(value) if isinstance(value, float | int) else printable(str(value))


@cache
def figure_style() -> str:
    """The style sheet of figures."""
    return files("robustness.reporting").joinpath("templates/figures.css").read_text("utf-8")


def trace(points: Sequence[tuple[Number, Number]]) -> str:
    """The path through points to a tenth, each seen from the last, as many of them lie near by."""
    tenths = [(round(10 * x), round(10 * y)) for x, y in points]
    said = [f"M{tenths[0][0] / 10:g} {tenths[0][1] / 10:g}"] if tenths else []
    for (x0, y0), (x1, y1) in pairwise(tenths):
        across, down = f"{(x1 - x0) / 10:g}", f"{(y1 - y0) / 10:g}"
        if y0 == y1:
            said.append(f"h{across}" if x0 != x1 else "")
        elif x0 == x1:
            said.append(f"v{down}")
        else:
            said.append(f"l{across} {down}")
    return "".join(said)


def mapped(
    x: Axis, y: Axis, points: Sequence[tuple[Number, Number]]
) -> list[tuple[Number, Number]]:
    """The places of points of data."""
    across = (x.end - x.start) / ((x.high - x.low) or 1.0)
    up = (y.end - y.start) / ((y.high - y.low) or 1.0)
    return [
        (
            x.start + (min(max(a, x.low), x.high) - x.low) * across,
            y.start + (min(max(b, y.low), y.high) - y.low) * up,
        )
        for a, b in points
    ]


def steps(grid: Sequence[Number], values: Sequence[Number]) -> list[tuple[Number, Number]]:
    """A falling line of which values are known: `values[i]` holds from `grid[i]` on."""
    points: list[tuple[Number, Number]] = []
    for x, y in zip(grid, values, strict=True):
        if points:
            points.append((x, points[-1][1]))
        points.append((x, y))
    return points


def thinned(
    points: Sequence[tuple[Number, Number]], apart: Number = 1.2
) -> list[tuple[Number, Number]]:
    """A line of steps with those left out that nobody sees, none of them wider than `apart`."""
    kept: list[tuple[Number, Number]] = []
    for x, y in points:
        if len(kept) > 1 and x - kept[-2][0] < apart and x - kept[-1][0] < apart:
            kept[-1] = (kept[-1][0], y)
        else:
            kept.append((x, y))
    return [*kept, points[-1]] if points and kept[-1] != points[-1] else kept


def ticks(high: Number, most: int = 5) -> list[Number]:
    """Round numbers from 0 to `high`, at most so many beside 0."""
    if high <= 0:
        return [0.0]
    scale = 10.0 ** len(str(int(high)))
    sizes = (scale * unit / 10**power for power in range(8) for unit in (5, 2.5, 2, 1))
    fitting = [size for size in sizes if high / size <= most]
    step = min(fitting)
    return [step * i for i in range(int(high / step + 1e-9) + 1)]


def share_ticks(low: float, most: int = 6) -> list[float]:
    """Round shares from `low` to 1, at most so many steps."""
    step = next(size for size in (1, 2, 5, 10, 20) if (100 - 100 * low) / size <= most)
    first = math.ceil(100 * low / step - 1e-9) * step
    return [percent / 100 for percent in range(first, 101, step)]


def percent_grid(canvas: Canvas, left: Number, right: Number, y: Axis) -> None:
    """Lines at every quarter, and what they stand for."""
    canvas.lines([((left, y(value)), (right, y(value))) for value in QUARTERS], class_="grid")
    for value in QUARTERS:
        canvas.text(left - 6, y(value) + 4, f"{100 * value:.0f}%", class_="tick", text_anchor="end")


def radius_axis(canvas: Canvas, x: Axis, bottom: Number, name: str, most: int = 5) -> None:
    """Numbers along the bottom, and what they measure."""
    told = ticks(x.high, most)
    canvas.lines([((x(value), bottom), (x(value), bottom + 4)) for value in told], class_="axis")
    for value in told:
        canvas.text(x(value), bottom + 17, f"{value:.4g}", class_="tick", text_anchor="middle")
    middle = (x.start + x.end) / 2
    canvas.text(middle, bottom + 34, name, class_="label", text_anchor="middle")


def spread(heights: dict[str, Number], gap: Number) -> dict[str, Number]:
    """Move heights apart until neighbours are at least `gap` from each other.

    Labels keep their order; a group that collides is centred on the mean of its heights.
    """
    groups: list[tuple[list[str], Number]] = []
    for name in sorted(heights, key=lambda n: heights[n]):
        names, centre = [name], heights[name]
        while groups and _top(groups[-1], gap) + gap > centre - gap * (len(names) - 1) / 2:
            names = groups.pop()[0] + names
            centre = sum(heights[n] for n in names) / len(names)
        groups.append((names, centre))
    return {
        name: centre + gap * (place - (len(names) - 1) / 2)
        for names, centre in groups
        for place, name in enumerate(names)
    }


def _top(group: tuple[list[str], Number], gap: Number) -> Number:
    names, centre = group
    return centre + gap * (len(names) - 1) / 2


def within(
    places: dict[str, Number], low: Number, high: Number, gap: Number = 0.0
) -> dict[str, Number]:
    """Places between two ends, at least `gap` apart; what does not fit is beyond the upper end."""
    order, moved = sorted(places, key=lambda name: places[name]), dict(places)
    for name in reversed(order):
        moved[name] = min(moved[name], high)
        high = moved[name] - gap
    for name in order:
        moved[name] = max(moved[name], low)
        low = moved[name] + gap
    return moved


@dataclass(frozen=True)
class Label:
    """Words beside a mark.

    Attributes:
        x, y: where the words' line is: its start, middle or end, as `anchor` says, half its height.
        anchor: `start`, `middle` or `end`.
        link: ends of a line from the mark to words that are not next to it; None where they are.
    """

    x: Number
    y: Number
    anchor: str
    link: tuple[Point, Point] | None = None


# Left, top, right and bottom of what is drawn somewhere.
Area = tuple[Number, Number, Number, Number]

# Height of a label, half the size of a mark with what it keeps free, and how far from it words are
# tried; from the second of these on a line leads to them.
_HEIGHT, _MARK, _AWAY = 13.0, 6.0, (9.0, 22.0, 36.0, 50.0, 64.0, 78.0)
# What a label may cross at the price of so much distance: another label or mark, and a line.
_HIDES, _CROSSES = 1000.0, 30.0


def labels(
    points: dict[str, Point], words: dict[str, str], lines: Sequence[Area], frame: Area
) -> dict[str, Label]:
    """Where the words of each mark go, so that none hides another's or seems to be another's.

    Marks are served in their order, each with the place that hides least, next to it if any there
    hides nothing.

    Args:
        points: places of all marks.
        words: of those that have a label.
        lines: areas of what words better not cross.
        frame: what they stay in.
    """
    marks = {of: (x - _MARK, y - _MARK, x + _MARK, y + _MARK) for of, (x, y) in points.items()}
    taken: list[Area] = []
    found = {}
    for of, said in words.items():
        tried = [
            (away + _cost(area, [*marks.values(), *taken], lines, frame), number, label, area)
            for number, (away, label, area) in enumerate(_places(points[of], LETTER * len(said)))
        ]
        _, _, found[of], area = min(tried, key=lambda one: one[:2])
        taken.append(area)
    return found


def _places(point: Point, width: Number) -> Iterable[tuple[Number, Label, Area]]:
    """Places of a label around a mark, nearest first, with their distance and what they cover."""
    x, y = point
    for away in _AWAY:
        beside = [(away, 0.0), (-away, 0.0), (0.0, -away - 4), (0.0, away + 4)]
        beside += [(away, away), (-away, away), (away, -away), (-away, -away)]
        for dx, dy in beside[: 4 if away == _AWAY[0] else None]:
            anchor = "middle" if dx == 0 else "start" if dx > 0 else "end"
            left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            high = y + dy - _HEIGHT / 2
            near = y + dy if dx else y + dy - (_HEIGHT / 2 - 1) * (1 if dy > 0 else -1)
            link = None if away == _AWAY[0] else ((x, y), (x + dx * 0.95, near))
            area = (left, high, left + width, high + _HEIGHT)
            yield away, Label(x + dx, y + dy, anchor, link), area


def _cost(area: Area, marks: Sequence[Area], lines: Sequence[Area], frame: Area) -> Number:
    """What words there would hide and cross; the marks are all of them, the words' own too."""
    inside = frame[0] <= area[0] and frame[1] <= area[1]
    inside = inside and area[2] <= frame[2] and area[3] <= frame[3]
    hidden = sum(_meet(area, other) for other in marks)
    crossed = sum(_meet(area, other) for other in lines)
    return _HIDES * hidden + _CROSSES * crossed + (0.0 if inside else 10 * _HIDES)


def _meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def legend(canvas: Canvas, x: Number, y: Number, entries: Iterable[tuple[str, str, str]]) -> None:
    """A row of marks and what they stand for: triples of kind of mark, class and words."""
    for kind, style, said in entries:
        mark(canvas, kind, x + 6, y, style)
        canvas.text(x + 17, y + 4, said, class_="tick")
        x += 34 + LETTER * len(said)


def mark(canvas: Canvas, kind: str, x: Number, y: Number, style: str, title: str = "") -> None:
    """A mark: `square`, `dot`, `ring`, `tick`, `diamond` or `line`, `dashed` and `band`."""
    if kind == "square":
        canvas.add("rect", title=title, x=x - 4.5, y=y - 4.5, width=9, height=9, class_=style)
    elif kind == "dot":
        canvas.add("circle", title=title, cx=x, cy=y, r=4.5, class_=style)
    elif kind == "ring":
        canvas.add("circle", title=title, cx=x, cy=y, r=4.5, class_=f"{style} hollow")
    elif kind == "diamond":
        shape = trace([(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)]) + "Z"
        canvas.add("path", title=title, d=shape, class_=f"{style} hollow")
    elif kind == "tick":
        canvas.line(x, y - 6, x, y + 6, title=title, class_=f"{style} thick")
    elif kind == "band":
        canvas.add("rect", title=title, x=x - 8, y=y - 4, width=16, height=8, class_=style)
    else:
        dash = "5 3" if kind == "dashed" else ""
        canvas.line(x - 8, y, x + 8, y, class_=style, stroke_dasharray=dash)


def hue(number: int) -> str:
    """The class of the stroke of the model of that number."""
    return f"s{number % HUES}"


def dash(number: int) -> str:
    """Its dashes, which tell models apart once hues repeat."""
    return DASHES[number // HUES % len(DASHES)]
