"""What figures draw is what the leaderboard says, read back from the places of their marks."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import boards
import numpy as np
import pytest

from robustness.reporting import figures, images, model_figures, ranking, svg
from robustness.reporting.html import suite_figures
from robustness.results.leaderboard import Decay, Envelope, Proportion, read_leaderboard
from robustness.threat import Norm
from robustness.zoo import zoo_folder

AT = (Norm.LINF, 0.05)
SVG = "{http://www.w3.org/2000/svg}"


def parsed(figure):
    return ElementTree.fromstring(figure.canvas.file)


def words_in(figure):
    return [text.text for text in parsed(figure).iter(f"{SVG}text")]


def titled(figure):
    """Groups by the first word of their titles, without its colon."""
    groups = parsed(figure).iter(f"{SVG}g")
    found = {}
    for group in groups:
        title = group.find(f"{SVG}title")
        if title is not None:
            found[title.text.split(":")[0]] = group
    return found


def shares(figure, axis):
    """From a place along an axis, `x` or `y`, to the share that it stands for."""
    ticks = {}
    for text in parsed(figure).iter(f"{SVG}text"):
        if re.fullmatch(r"(0|100)%", text.text):
            ticks[text.text] = float(text.get(axis))
    low, high = ticks["0%"], ticks["100%"]
    return lambda place: (float(place) - low) / (high - low)


def test_a_dumbbell_has_its_marks_where_the_numbers_are(searched):
    figure = figures.dumbbells(searched, AT)
    share = shares(figure, "x")
    groups = titled(figure)
    order = [entry.name for entry, _ in ranking.ranked(searched, AT)]
    assert list(groups) == order
    for entry in searched.models:
        group = groups[entry.name]
        bracket = next(b for b in entry.brackets if (b.norm, b.eps) == AT)
        square = group.find(f"{SVG}rect")
        ring, dot = group.findall(f"{SVG}circle")
        assert share(float(square.get("x")) + 4.5) == pytest.approx(
            bracket.certified.value, abs=0.001
        )
        assert "known" in dot.get("class")
        assert share(dot.get("cx")) == pytest.approx(bracket.attacked.value, abs=0.001)
        plain = ranking.attack_row(entry, "pgd", AT).robust.value
        assert share(ring.get("cx")) == pytest.approx(plain, abs=0.001)


def test_the_story_of_the_attacks_ends_with_all_of_them_and_leaves_few_images_apart(searched):
    figure = figures.attacks_figure(searched, (Norm.LINF, 0.1))
    shown = words_in(figure)
    stages = [w for w in shown if w in ("FGSM", "PGD", "AutoAttack", "all attacks")]
    assert stages == ["FGSM", "PGD", "AutoAttack", "all attacks"]
    assert "first 64" in shown
    groups, heights = titled(figure), {}
    for entry in searched.models:
        group = groups[entry.name]
        (spots,) = [p for p in group.findall(f"{SVG}path") if "spot" in p.get("class").split()]
        dots = re.findall(r"M[\d.]+ ([\d.]+)h0", spots.get("d"))
        assert len(dots) == 3  # AutoAttack's is a diamond of its own
        heights[entry.name] = [float(dot) for dot in dots]
    tick = {t.text: float(t.get("y")) for t in parsed(figure).iter(f"{SVG}text")}
    low, high = tick["0%"] - 4, tick["100%"] - 4
    for entry in searched.models:
        bracket = next(b for b in entry.brackets if (b.norm, b.eps) == (Norm.LINF, 0.1))
        end = (heights[entry.name][-1] - low) / (high - low)
        assert end == pytest.approx(bracket.attacked.value, abs=0.002)
    (misled,) = [g for g in groups.values() if "weak" in g.find(f"{SVG}path").get("class")]
    assert misled is groups["digits/lyanet"]


def test_lines_over_the_radius_meet_every_bracket(board):
    """Sample by sample, what is proved and what was found are those of each evaluated radius."""
    for entry in board.models:
        for known in entry.samples.norms:
            found, below = figures.standing(entry, known), figures.proved(entry, known)
            for bracket in (b for b in entry.brackets if b.norm is known.norm):
                for (grid, values), side in ((found, "attacked"), (below, "certified")):
                    last = max(i for i, radius in enumerate(grid) if radius <= bracket.eps)
                    assert values[last] == pytest.approx(getattr(bracket, side).value)


def test_failed_samples_neither_stand_nor_are_proved_from_where_they_failed(board):
    entry = board.models[-1]
    known = entry.samples.norms[0]
    failing = known.model_copy(update={"failed": [0.0] * len(known.failed)})
    for curve in (figures.standing(entry, failing), figures.proved(entry, failing)):
        assert curve == ([0.0], [0.0])


def test_what_stands_is_not_led_down_to_a_radius_that_was_attacked():
    line = [(0.0, 1.0), (0.03, 1.0), (0.03, 0.9), (0.0999, 0.9), (0.0999, 0.6), (0.1, 0.6)]
    line += [(0.1, 0.5), (0.15, 0.5), (0.15, 0.4), (0.2, 0.4), (0.2, 0.0)]
    assert figures.parted(line, [0.1, 0.2]) == [line[:4], line[6:10]]
    assert figures.parted(line, [0.5]) == [line]
    assert figures.parted([], [0.1]) == []


def test_lines_over_the_radius_fall_nowhere_to_a_ring(searched):
    """No dashed stretch leads down to a ring, and what each mark stands for is said."""
    figure = figures.radius_figure(searched)
    assert {"proved", "left by attacks at that radius", "at most this between radii"} <= set(
        words_in(figure)
    )
    for group in (g for g in parsed(figure).iter(f"{SVG}g") if g.get("data-model")):
        rings = [(float(r.get("cx")), float(r.get("cy"))) for r in group.findall(f"{SVG}circle")]
        dashed = [
            p.get("d") for p in group.findall(f"{SVG}path") if "dash" in p.get("class", "").split()
        ]
        assert rings
        assert dashed
        ends = [path.split("H")[-1] for path in dashed]
        falls = [tuple(map(float, end.split("V"))) for end in ends if "V" in end]
        assert not any(
            abs(x - ring[0]) < 0.5 and abs(y - ring[1]) < 0.5 for x, y in falls for ring in rings
        )


def test_five_models_are_chosen_and_among_them_the_one_that_misleads(board, searched):
    many = [searched.models[-1].model_copy(update={"name": f"m{i}"}) for i in range(8)]
    crowd = searched.model_copy(update={"models": [*many, searched.models[2]]})
    figure = figures.radius_figure(crowd)
    drawn = [name for _, name, shown in figure.lines if shown]
    assert len(drawn) == 5
    assert "digits/lyanet" in drawn
    assert len(figure.lines) == 9
    hidden = [g for g in parsed(figure).iter(f"{SVG}g") if g.get("display") == "none"]
    assert len(hidden) == 2 * 4
    assert all(shown for _, _, shown in figures.radius_figure(board).lines)


def test_the_front_is_of_models_that_none_beats_in_both():
    points = [(0.9, 0.5), (0.95, 0.3), (0.9, 0.4), (0.99, 0.0), (0.95, 0.3), (0.8, 0.5)]
    assert ranking.front(points) == [0, 1, 3, 4]


def test_a_figure_without_data_is_left_out(board):
    nothing = Proportion.of(0, boards.SAMPLES)
    models = []
    for entry in board.models:
        brackets = [b.model_copy(update={"certified": nothing}) for b in entry.brackets]
        models.append(entry.model_copy(update={"brackets": brackets, "attacks": []}))
    bare = board.model_copy(update={"models": models})
    assert figures.price_figure(bare, AT) is None
    assert figures.attacks_figure(bare, AT) is None
    assert suite_figures(board.model_copy(update={"models": []})) == []
    (resnet,) = [e for e in board.models if e.nfe is None]
    drawn = [figure.name for figure in model_figures.figures(board, resnet)]
    assert drawn == ["distribution"]


def test_no_certificate_is_drawn_above_what_it_gives_nor_in_steps_that_are_not_there():
    """The true curve is known where radii are: here of a thousand, on a grid of 21."""
    radii = np.sort(np.random.default_rng(0).gamma(3.0, 0.1, 1000))
    grid = np.linspace(0, 1, 21).tolist()
    curve = [float((radii > eps).mean()) for eps in grid]
    line = figures.lowered(grid, curve)
    xs, ys = [x for x, _ in line], [y for _, y in line]
    for eps in np.linspace(0, 1, 401)[1:-1]:
        assert np.interp(eps, xs, ys) <= (radii > eps).mean() + 1e-12
    flat = sum(a == b for a, b in pairwise(ys[:-1]) if a > 0)
    assert flat == 0  # it falls all the way, as the radii are spread


def test_each_sample_is_one_point_of_radius_and_distance(board):
    entry = board.models[-1]
    drawn = parsed(model_figures.samples_figure(entry))
    dots = [p.get("d") for p in drawn.iter(f"{SVG}path") if "dots" in (p.get("class") or "")]
    known = entry.samples.norms
    assert [d.count("M") for d in dots] == [sum(bool(d) for d in n.distance) for n in known]
    none = [p.get("d") for p in drawn.iter(f"{SVG}path") if p.get("class") == "clean"]
    assert [d.count("M") for d in none if d] == [n.distance.count(None) for n in known]


def test_work_falls_from_all_that_stood_to_what_is_left(searched):
    entry = searched.models[-1]
    figure = model_figures.work_figure(entry)
    rows = [row for row in entry.attacks if row.attack == "worst-case"]
    lines = [p for p in parsed(figure).iter(f"{SVG}path") if "ln" in p.get("class")]
    assert len(lines) == len(rows)
    assert model_figures.work_figure(searched.models[0].model_copy(update={"attacks": []})) is None


def test_the_line_at_ln_2_is_where_it_belongs(board):
    entry = board.models[1]
    figure = model_figures.decay_figure(entry)
    assert any(text.startswith("ln 2") for text in words_in(figure))
    powers = {}
    for text in parsed(figure).iter(f"{SVG}text"):
        if text.text in ("1", "10¹") and text.get("text-anchor") == "end":
            powers[text.text] = float(text.get("y")) - 4
    (line,) = [x for x in parsed(figure).iter(f"{SVG}path") if x.get("stroke-dasharray") == "2 3"]
    at = float(line.get("d").split("h")[0].split()[1])
    height = (powers["1"] - at) / (powers["1"] - powers["10¹"])
    assert 10**height == pytest.approx(math.log(2), rel=0.01)


def test_values_that_a_logarithm_cannot_show_do_not_break_a_figure(board):
    broken = Decay(
        time=[0.0, 0.5, 1.0],
        median=[2.3, 0.0, math.nan],
        low=[2.3, 0.0, -1.0],
        high=[2.3, math.inf, math.inf],
        accuracy=[0.1, 0.5, 0.5],
    )
    for decay in (broken, broken.model_copy(update={"median": [math.nan] * 3})):
        entry = board.models[1].model_copy(update={"decay": decay})
        drawn = model_figures.decay_figure(entry).canvas.file
        assert b"nan" not in drawn.replace(b"nan at", b"")
        ElementTree.fromstring(drawn)


@pytest.mark.parametrize(
    ("found", "drawn"),
    [([(0.01, 4, 0.02), (0.05, 2, 0.4), (0.1, 1, math.inf)], 0.05), ([(0.01, 0, math.inf)], 0.01)],
)
def test_the_envelope_is_drawn_at_the_largest_radius_at_which_most_decay(board, found, drawn):
    envelopes = [
        Envelope(
            norm=Norm.LINF,
            eps=eps,
            time=[0.0, 1.0],
            potential=[2.3, 0.01],
            low=[2.3, 0.005],
            high=[2.3, end],
            decays=Proportion.of(count, 4),
            leads=Proportion.of(count, 4),
        )
        for eps, count, end in found
    ]
    entry = board.models[2]
    assert model_figures.envelope_figure(entry) is None
    figure = model_figures.envelope_figure(entry.model_copy(update={"envelopes": envelopes}))
    assert f"proved at ℓ∞ {drawn:g}" in words_in(figure)
    end = next(end for eps, _, end in found if eps == drawn)
    said = f"{end:.3g}" if math.isfinite(end) else "no bound"
    assert f"between 0.005 and {said}; measured 0.01" in figure.canvas.alt


def test_any_name_can_be_drawn(searched):
    names = ["$\\frac{", "名前", "<script>alert(1)</script>", 'a"b\x1b[31m']
    models = [searched.models[-1].model_copy(update={"name": name}) for name in names]
    odd = searched.model_copy(update={"models": models})
    drawn = [figure for _, figure in suite_figures(odd)]
    drawn += [f for entry in models for f in model_figures.figures(odd, entry)]
    for figure in drawn:
        ElementTree.fromstring(figure.canvas.file)
        assert "<script" not in figure.canvas.markup
        assert "\x1b" not in figure.canvas.markup


def test_every_figure_says_what_is_seen(searched):
    drawn = [figure for _, figure in suite_figures(searched)]
    drawn += [f for e in searched.models for f in model_figures.figures(searched, e)]
    assert len({figure.canvas.alt for figure in drawn}) == len(drawn)
    for figure in drawn:
        assert parsed(figure).get("role") == "img"
        assert re.search(r"\d", figure.canvas.alt), figure.name


def test_pixels_of_an_example_are_the_image_and_the_change(searched):
    example = searched.models[0].nearest[0].examples[0]
    original, change = images.pixels(example)
    assert original.flatten().tolist() == pytest.approx([0, 64 / 255, 128 / 255, 1])
    assert change.flatten().tolist() == pytest.approx([0, 0.0123, -0.0123, 0])


def test_labels_that_collide_move_apart_and_keep_their_order():
    heights = {"a": 0.95, "b": 0.96, "c": 0.10, "d": 0.955}
    places = svg.spread(heights, gap=0.1)
    assert places["c"] == 0.10
    assert sorted(places, key=places.get) == ["c", "a", "d", "b"]
    ordered = sorted(places.values())
    assert np.diff(ordered).min() >= 0.1 - 1e-9
    assert np.mean([places[n] for n in "abd"]) == pytest.approx(0.955)


def test_words_beside_crowded_marks_hide_nothing_and_lines_lead_to_what_had_to_move():
    points = {"best": (500.0, 40.0), "next": (492.0, 42.0), "third": (480.0, 44.0)}
    points |= {"far": (300.0, 200.0), "bare": (470.0, 40.0)}
    words = {of: f"lyanet-{of}-long" for of in points if of != "bare"}
    front = [(46.0, 39.0, 500.0, 41.0), (499.0, 40.0, 501.0, 276.0)]
    placed = svg.labels(points, words, front, (46.0, 14.0, 634.0, 276.0))
    assert list(placed) == list(words)
    areas = {}
    for of, label in placed.items():
        width = svg.LETTER * len(words[of])
        left = label.x - {"start": 0, "middle": width / 2, "end": width}[label.anchor]
        areas[of] = (left, label.y - 6.5, left + width, label.y + 6.5)
        assert left >= 46
        assert left + width <= 634
        near = math.hypot(label.x - points[of][0], label.y - points[of][1]) < 15
        assert (label.link is None) == near
        if label.link is not None:
            assert label.link[0] == points[of]
    dots = {of: (x - 4.5, y - 4.5, x + 4.5, y + 4.5) for of, (x, y) in points.items()}
    for of, one in areas.items():
        others = [area for name, area in areas.items() if name != of]
        for other in [*others, *dots.values()]:
            apart = one[0] >= other[2] or other[0] >= one[2]
            assert apart or one[1] >= other[3] or other[1] >= one[3], of
    assert placed["far"].link is None


def test_the_words_next_to_the_best_mark_of_a_committed_report_are_its_own():
    """Moved apart by their heights alone, another's name stood beside it."""
    committed = read_leaderboard(zoo_folder().parent / "reports/mnist/leaderboard.json")
    for threat in ((Norm.LINF, 0.1), (Norm.L2, 0.1), (Norm.L2, 1.58)):
        figure = figures.price_figure(committed, threat)
        assert figure is not None
        root = parsed(figure)
        best, _ = ranking.ranked(committed, threat)[0]
        (mark,) = [
            rect
            for rect in root.iter(f"{SVG}rect")
            if rect.find(f"{SVG}title").text.startswith(f"{best.name}:")
        ]
        x, y = (float(mark.get(k)) + 4.5 for k in "xy")
        texts = [
            t for t in root.iter(f"{SVG}text") if t.text.startswith(("lyanet", "continuous", "fi-"))
        ]
        nearest = min(texts, key=lambda t: _gap(t, x, y))
        assert nearest.text == best.name.partition("/")[2]


def _gap(text, x, y):
    """How far a place is from words."""
    width, start = svg.LETTER * len(text.text), float(text.get("x"))
    start -= {"middle": width / 2, "end": width}.get(text.get("text-anchor"), 0)
    across = max(start - x, x - start - width, 0)
    return math.hypot(across, float(text.get("y")) - 4 - y)


def test_an_axis_of_shares_has_round_numbers():
    assert svg.share_ticks(0.7) == [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    assert svg.share_ticks(0.9) == [0.9, 0.92, 0.94, 0.96, 0.98, 1.0]
    assert svg.share_ticks(0.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_labels_stay_between_the_ends_though_they_crowd_at_both():
    crowded = {str(n): 0.0 for n in range(8)} | {str(n): 250.0 for n in range(8, 17)}
    places = svg.within(svg.spread(crowded, 13.5), 0.0, 256.0, 13.5)
    assert 0.0 <= min(places.values()) <= max(places.values()) <= 256.0
    ordered = [places[str(n)] for n in range(17)]
    assert np.diff(ordered).min() >= 13.5 - 1e-9


def test_a_thinned_line_ends_where_the_whole_one_does_and_stays_beside_it():
    steps = svg.steps([i * 0.3 for i in range(200)], [200 - i for i in range(200)])
    kept = svg.thinned(steps)
    assert kept[0] == steps[0]
    assert kept[-1] == steps[-1]
    assert len(kept) < len(steps) / 2
    for x, y in kept:
        assert min(abs(x - a) for a, b in steps if b == y) <= 1.2
