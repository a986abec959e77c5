import math
from itertools import pairwise
from xml.etree import ElementTree

import boards
import numpy as np
import pytest
from matplotlib.text import Text

from robustness.certificates.base import Kind
from robustness.reporting import figures
from robustness.results.leaderboard import Curve, Decay, Envelope, Proportion
from robustness.threat import Norm

ODES = ("digits/node", "digits/lyanet", "digits/lyanet-certified")


def words_in(figure):
    return [text.get_text() for text in figure.findobj(Text)]


def colour_of(figure, name):
    return next(t.get_color() for t in figure.findobj(Text) if t.get_text() == name)


def test_the_bracket_figure_names_every_model_and_both_norms(board):
    shown = words_in(figures.bracket_figure(board))
    assert {entry.name for entry in board.models} <= set(shown)
    assert any("ℓ∞" in text for text in shown)
    assert any("ℓ2" in text for text in shown)
    assert "AutoAttack alone, first 64 samples (95%)" in shown


def test_every_ode_and_only_an_ode_is_followed_along_the_horizon(board):
    for figure in (figures.decay_figure(board), figures.horizon_figure(board)):
        shown = words_in(figure)
        assert all(shown.count(name) == 1 for name in ODES)
        assert "digits/resnet" not in shown


def test_a_model_has_the_same_colour_in_every_figure(board):
    drawn = [figures.bracket_figure(board), figures.decay_figure(board)]
    drawn.append(figures.horizon_figure(board))
    for name in ODES:
        assert len({colour_of(figure, name) for figure in drawn}) == 1


def test_the_line_at_ln_2_is_drawn_and_labelled(board):
    figure = figures.decay_figure(board)
    (ax,) = figure.axes
    heights = [line.get_ydata()[0] for line in ax.lines if len(set(line.get_ydata())) == 1]
    assert math.log(2) in heights
    assert any(text.startswith("ln 2") for text in words_in(figure))
    assert ax.get_yscale() == "log"


def test_every_certificate_and_every_model_it_speaks_of_is_named(board):
    shown = words_in(figures.certificates_figure(board))
    assert {"lyapunov", "target-seeking", "estimate", "certified"} <= set(shown)
    assert {"digits/lyanet", "digits/lyanet-certified"} <= set(shown)
    assert "digits/resnet" not in shown


def test_no_certificate_is_drawn_above_what_it_gives(board):
    """The true curve is known where radii are: here one certificate with radii 0.1 and 0.9."""
    radii = np.array([0.1, 0.9])
    grid = [0.0, 0.5, 1.0]
    entry = board.models[-1]
    row = next(r for r in entry.certificates if r.norm is Norm.L2 and r.kind is Kind.CERTIFIED)
    row = row.model_copy(
        update={"curve_eps": grid, "curve": [float((radii > e).mean()) for e in grid]}
    )
    alone = board.model_copy(update={"models": [entry.model_copy(update={"certificates": [row]})]})
    figure = figures.certificates_figure(alone)
    ((line,),) = [ax.lines for ax in figure.axes if len(ax.lines)]
    stretches = [(a, b) for a, b in pairwise(line.get_path().vertices) if b[0] > a[0]]
    assert len(stretches) == 2
    for (left, _), (right, height) in stretches:
        for eps in np.linspace(left, right, 9)[1:-1]:
            assert height <= (radii > eps).mean()


def test_each_sample_is_one_point_of_radius_and_distance(board):
    figure = figures.distances_figure(board)
    entry = board.models[-1]
    known = next(n for n in entry.samples.norms if n.norm is Norm.L2)
    marked = [line for line in figure.axes[-1].lines if line.get_marker() != "None"]
    points = sum(len(line.get_xdata()) for line in marked)
    assert points == sum(distance != 0.0 for distance in known.distance)
    (nearest,) = [line for line in marked if line.get_marker() == "o"]
    assert set(nearest.get_ydata()) == {d for d in known.distance if d}


def test_a_board_without_odes_has_only_the_bracket_figure(board):
    discrete = board.model_copy(update={"models": board.models[:1]})
    assert list(figures.figures(discrete)) == ["brackets"]


def test_a_board_without_curves_or_models_has_no_figures(board):
    assert figures.figures(board.model_copy(update={"models": []})) == {}
    bare = boards.edit(board.model_copy(update={"models": board.models[:1]}), "digits/resnet")
    (entry,) = bare.models
    empty = bare.model_copy(update={"models": [entry.model_copy(update={"curves": []})]})
    assert figures.figures(empty) == {}


@pytest.mark.slow
def test_figures_are_well_formed_and_the_same_every_time(board, drawn):
    first = drawn.figures
    assert figures.figures(board.model_copy(deep=True)) == first
    assert list(first) == ["brackets", "certificates", "distances", "decay", "horizon"]
    for content in first.values():
        ElementTree.fromstring(content)
        assert b"<dc:date>" not in content


def test_drawing_leaves_no_setting_of_matplotlib_changed(drawn):
    assert drawn.after == drawn.before


@pytest.mark.slow
def test_any_name_can_be_drawn(board):
    names = ["$\\frac{", "名前", "<script>alert(1)</script>", "a_b^c"]
    models = [board.models[-1].model_copy(update={"name": name}) for name in names]
    contents = figures.figures(board.model_copy(update={"models": models}))
    assert len(contents) == 5
    for content in contents.values():
        ElementTree.fromstring(content)
        assert b"<script" not in content


def test_values_that_a_logarithm_cannot_show_do_not_break_the_figure(board):
    broken = Decay(
        time=[0.0, 0.5, 1.0],
        median=[2.3, 0.0, math.nan],
        low=[2.3, 0.0, -1.0],
        high=[2.3, math.inf, math.inf],
        accuracy=[0.1, 0.5, 0.5],
    )
    lost = broken.model_copy(update={"median": [math.nan] * 3})
    for decay in (broken, lost):
        figure = figures.decay_figure(boards.edit(board, "digits/node", decay=decay))
        ElementTree.fromstring(figures.svg(figure))


def test_more_models_than_colours_still_differ_by_their_dashes(board):
    many = [board.models[1].model_copy(update={"name": f"m{i}"}) for i in range(10)]
    crowd = board.model_copy(update={"models": many})
    colours, dashes = figures.colours(crowd), figures.dashes(crowd)
    assert len({(colours[m.name], dashes[m.name]) for m in many}) == len(many)


def test_the_band_holds_every_robust_accuracy_that_the_measurements_allow():
    curve = Curve(
        norm=Norm.L2,
        certified_eps=[0.0, 1.0, 2.0],
        certified=[0.8, 0.5, 0.0],
        attacked_eps=[1.5],
        attacked=[0.6],
    )
    grid, lower, upper = figures.bounds(curve, clean=0.9)
    stretches = {
        (left, right): (low, up)
        for left, right, low, up in zip(grid[::2], grid[1::2], lower[::2], upper[::2], strict=True)
    }
    # Certified at 1 holds on (0, 1]; attacked at 1.5 holds from 1.5 on, clean before it.
    assert stretches == {
        (0.0, 1.0): (0.5, 0.9),
        (1.0, 1.5): (0.0, 0.9),
        (1.5, 2.0): (0.0, 0.6),
        (2.0, 2.0): (0.0, 0.6),
    }


def test_labels_that_collide_move_apart_and_keep_their_order():
    heights = {"a": 0.95, "b": 0.96, "c": 0.10, "d": 0.955}
    places = figures.spread(heights, gap=0.1)
    assert places["c"] == 0.10
    assert sorted(places, key=places.get) == ["c", "a", "d", "b"]
    ordered = sorted(places.values())
    assert np.diff(ordered).min() >= 0.1 - 1e-9
    assert np.mean([places[n] for n in "abd"]) == pytest.approx(0.955)


def enveloped(board, *found):
    """The board with (eps, share of samples that provably decay, upper end at the horizon)."""
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
    return boards.edit(board, "digits/lyanet", envelopes=envelopes)


@pytest.mark.parametrize(
    ("found", "drawn"),
    [([(0.01, 4, 0.02), (0.05, 2, 0.4), (0.1, 1, math.inf)], 0.05), ([(0.01, 0, math.inf)], 0.01)],
)
def test_the_envelope_is_drawn_at_the_largest_radius_at_which_most_decay(board, found, drawn):
    assert figures.envelope_figure(board) is None
    figure = figures.envelope_figure(enveloped(board, *found))
    assert f"digits/lyanet, ℓ∞ {drawn:g}" in words_in(figure)
    (ax,) = figure.axes
    ends = [line.get_ydata()[-1] for line in ax.lines]
    end = next(end for eps, _, end in found if eps == drawn)
    assert min(end, 1e3) in ends
    assert 0.005 in ends
