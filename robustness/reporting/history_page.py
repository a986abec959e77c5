"""The history of a leaderboard as a page: brackets over its commits, and what moved in each."""

from robustness.reporting import selection, svg, words
from robustness.reporting.compare import find
from robustness.reporting.figures import WIDTH, Figure, clipped
from robustness.reporting.history import History, State, bracket, names, news
from robustness.reporting.html import told_page
from robustness.reporting.quantities import Metric, Quantity, proportion
from robustness.reporting.sections import Cell, Heading, Row, Table, count
from robustness.results.leaderboard import Leaderboard
from robustness.results.revisions import Version
from robustness.threat import Norm

_COLUMNS, _HEIGHT, _GAP = 3, 84.0, 40.0
# Moves that are shown of each commit.
_MOVES = 40


def history_page(history: History) -> str:
    """The page: a figure and a table of brackets for each headline threat, commits, moves."""
    _, newest = history.boards[-1]
    threats = selection.headline(newest)
    sections = [
        (
            "Commits",
            "A commit that was measured otherwise than the one before it says in what.",
            [_commits(history)],
        ),
        (
            "Brackets",
            "Certified and attacked accuracy in percent.",
            [_brackets(history, *threat) for threat in threats],
        ),
    ]
    if any(state.moves for state in history.states):
        said = f"The largest changes from one commit to the next, at most {_MOVES} of each."
        sections.append(("What moved", said, [_moves(history)]))
    drawn = [bracket_figure(history, *threat) for threat in threats]
    return told_page(f"History of {history.path}", _found(history, threats), sections, drawn)


def _found(history: History, threats: list[tuple[Norm, float]]) -> list[str]:
    (first, old), (last, new) = history.boards[0], history.boards[-1]
    span = f"from {_day(first)} to {_day(last)}"
    said = [f"{words.plural(len(history.states), 'commit')} {span}."]
    for threat in threats:
        change = _largest(old, new, *threat)
        if change:
            said.append(change)
    return [" ".join(said), f"The newest is {last.commit[:12]}: {last.subject}"]


def _day(version: Version) -> str:
    """The date of a commit, which does not break at its hyphens."""
    return version.date[:10].replace("-", "\u2011")


def _largest(old: Leaderboard, new: Leaderboard, norm: Norm, eps: float) -> str:
    """The model whose attacked accuracy moved most, in words; empty where none did."""
    at = Quantity(Metric.ATTACKED, norm, eps)
    best: tuple[float, str] = (0.0, "")
    for entry in new.models:
        earlier = find(old, entry.name)
        before = proportion(earlier, at) if earlier else None
        after = proportion(entry, at)
        if before is None or after is None:
            continue
        size = abs(after.value - before.value)
        if size > best[0]:
            numbers = f"{words.percent(before.value)} to {words.percent(after.value)} %"
            threat = words.threat_symbol(norm, eps)
            best = (size, f"Attacked at {threat}, {entry.name} went from {numbers}.")
    return best[1]


def _commits(history: History) -> Table:
    headings = (
        Heading("commit", words=True),
        Heading("date", words=True),
        Heading("subject", words=True),
        Heading("numbers moved"),
        Heading("what changed", words=True),
    )
    rows = tuple(
        Row(
            (
                Cell(state.version.commit[:8], code=True),
                Cell(_day(state.version), state.version.date),
                Cell(state.version.subject),
                count(len(state.moves)) if state.board else Cell(words.ABSENT, ""),
                Cell(news(state)),
            )
        )
        for state in reversed(history.states)
    )
    return Table("commits", "Commits that changed it, the newest first.", headings, rows)


def _brackets(history: History, norm: Norm, eps: float) -> Table:
    at = Quantity(Metric.ATTACKED, norm, eps)
    headings = (
        Heading("model", words=True),
        *(Heading(version.commit[:8], version.date[:10]) for version, _ in history.boards),
    )
    rows = []
    for name in names(history):
        cells = [
            Cell(bracket(board, name, at, "–"), _attacked(board, name, at))
            for _, board in history.boards
        ]
        if any(cell.text != words.ABSENT for cell in cells):
            rows.append(Row((Cell(name), *cells)))
    symbol = words.threat_symbol(norm, eps)
    caption = f"Certified–attacked at {symbol}, sorted by the attacked one."
    return Table(f"brackets-{norm.value.lower()}", caption, headings, tuple(rows))


def _attacked(board: Leaderboard, name: str, at: Quantity) -> float | str:
    entry = find(board, name)
    value = proportion(entry, at) if entry else None
    return "" if value is None else value.value


def _moves(history: History) -> Table:
    headings = (
        Heading("commit", words=True),
        Heading("model", words=True),
        Heading("number", words=True),
        Heading("before", "percent"),
        Heading("after", "percent"),
        Heading("change", "points"),
    )
    rows = tuple(
        Row(
            (
                Cell(state.version.commit[:8], state.version.date, code=True),
                Cell(move.model),
                Cell(str(move.quantity)),
                Cell(words.percent(move.old.value), move.old.value),
                Cell(words.percent(move.new.value), move.new.value),
                Cell(words.points(move.size), move.size),
            )
        )
        for state in reversed(history.states)
        for move in state.moves[:_MOVES]
    )
    return Table("moves", "Numbers that changed, the newest commit first.", headings, rows)


# --- brackets over commits, a panel for each model ---------------------------------------


def bracket_figure(history: History, norm: Norm, eps: float) -> Figure:
    """Certified and attacked accuracy of each model over the commits, and clean accuracy."""
    at = Quantity(Metric.ATTACKED, norm, eps)
    read = [state for state in history.states if state.board is not None]
    shown = [
        name
        for name in names(history)
        if any(_point(state, name, at) is not None for state in read)
    ]
    lines = -(-len(shown) // _COLUMNS)
    top, left = 34.0, 40.0
    step = _HEIGHT + _GAP
    symbol = words.threat_symbol(norm, eps)
    canvas = svg.Canvas(WIDTH, top + step * lines - 14, _alt(history, norm, eps, len(shown)))
    svg.legend(
        canvas,
        left,
        12,
        [
            ("line", "clean thick", "clean"),
            ("line", "known thick", "attacked"),
            ("line", "good thick", "certified"),
            ("band", "band", "not known"),
            ("dashed", "axis", "measured otherwise"),
        ],
    )
    width = (WIDTH - left - 8 - 14 * (_COLUMNS - 1)) / _COLUMNS
    for number, name in enumerate(shown):
        line, column = divmod(number, _COLUMNS)
        start = left + column * (width + 14)
        y = svg.Axis(0, 1, top + 18 + line * step + _HEIGHT, top + 18 + line * step)
        x = svg.Axis(0, max(len(read) - 1, 1), start + 4, start + width - 4)
        _panel(canvas, read, name, at, x, y, start, width, column == 0)
    dates = f"{_day(read[0].version)} to {_day(read[-1].version)}"
    steps = words.plural(len(read), "commit")
    return Figure(
        f"brackets-over-commits-{norm.value.lower()}",
        f"Brackets over the commits, {symbol}",
        f"A panel for each model, a step for each of {steps}, {dates}. "
        "What lies between certified and attacked accuracy is not known. At a dashed line "
        "settings, seed or images are others than before: what moves may be the measurement.",
        canvas,
    )


def _panel(
    canvas: svg.Canvas,
    read: list[State],
    name: str,
    at: Quantity,
    x: svg.Axis,
    y: svg.Axis,
    start: float,
    width: float,
    numbered: bool,
) -> None:
    canvas.text(start, y.end - 6, clipped(name, 28), class_="label")
    for value in (0.0, 0.5, 1.0):
        canvas.line(start, y(value), start + width, y(value), class_="grid")
        if numbered:
            label = f"{100 * value:.0f}%"
            canvas.text(start - 5, y(value) + 4, label, class_="tick", text_anchor="end")
    for place, state in enumerate(read):
        if state.obstacles:
            middle = x(place - 0.5)
            canvas.line(middle, y.start, middle, y.end, class_="axis", stroke_dasharray="3 3")
    run: list[tuple[int, State, tuple[float, float, float]]] = []
    for place, state in enumerate(read):
        point = _point(state, name, at)
        if point is not None:
            run.append((place, state, point))
        if run and (point is None or place == len(read) - 1):
            _run(canvas, run, x, y)
            run = []


def _run(
    canvas: svg.Canvas,
    run: list[tuple[int, State, tuple[float, float, float]]],
    x: svg.Axis,
    y: svg.Axis,
) -> None:
    certified, attacked, clean = (
        [(x(place), y(point[i])) for place, _, point in run] for i in range(3)
    )
    canvas.area(attacked, certified, class_="band")
    for points, style in (
        (clean, "clean wide"),
        (certified, "good wide"),
        (attacked, "known wide"),
    ):
        canvas.path(points, class_=style)
    for place, state, point in run:
        said = ", ".join(
            f"{what} {words.percent(value)} %"
            for what, value in zip(("certified", "attacked", "clean"), point, strict=True)
        )
        title = f"{state.version.commit[:8]} {state.version.date[:10]}: {said}"
        canvas.add("circle", title=title, cx=x(place), cy=y(point[1]), r=2.2, class_="known")


def _point(state: State, name: str, at: Quantity) -> tuple[float, float, float] | None:
    """Certified, attacked and clean accuracy of a model; None where it has none."""
    entry = find(state.board, name) if state.board else None
    if entry is None or at.norm is None or at.eps is None:
        return None
    found = selection.find_bracket(entry, at.norm, at.eps)
    if found is None:
        return None
    return found.certified.value, found.attacked.value, entry.clean.value


def _alt(history: History, norm: Norm, eps: float, models: int) -> str:
    (_, old), (_, new) = history.boards[0], history.boards[-1]
    said = _largest(old, new, norm, eps) or "No attacked accuracy moved."
    return (
        f"Brackets of {words.plural(models, 'model')} at {words.threat_symbol(norm, eps)} over "
        f"{words.plural(len(history.boards), 'commit')}. {said}"
    )
