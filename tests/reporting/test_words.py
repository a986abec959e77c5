import pytest

from robustness.reporting import words
from robustness.threat import Norm, format_eps


@pytest.mark.parametrize(
    ("eps", "text"),
    [(0.2, "0.2"), (1.0, "1"), (0.025, "0.025"), (8 / 255, "8/255"), (36 / 255, "36/255")],
)
def test_a_radius_is_written_as_its_author_would(eps, text):
    assert format_eps(eps) == text
    assert words.threat(Norm.LINF, eps) == f"Linf {text}"


def test_a_radius_that_is_neither_short_nor_a_fraction_stays_a_decimal():
    assert format_eps(1 / 7) == "0.142857"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.0"), (-0.0001, "0.0"), (0.05, "+5.0"), (-0.123, "-12.3")]
)
def test_a_difference_has_a_sign_unless_it_rounds_to_nothing(value, text):
    assert words.points(value) == text


@pytest.mark.parametrize(
    ("indices", "text"),
    [([], "none"), ([5], "5"), ([0, 1], "0, 1"), ([0, 1, 2, 3, 7, 6], "0–3, 7, 6")],
)
def test_runs_of_indices_are_shortened_in_their_order(indices, text):
    assert words.index_list(indices) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (182.4, "3 min 2 s"), (7500.0, "2 h 5 min")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        ("2026-11-23T21:05:09+00:00", "2026-11-23 21:05 UTC"),
        ("2026-11-23T23:05:09+02:00", "2026-11-23 21:05 UTC"),
        ("2026-11-23T21:05:09", "2026-11-23T21:05:09"),
        ("yesterday", "yesterday"),
    ],
)
def test_only_a_full_timestamp_is_converted(timestamp, text):
    assert words.moment(timestamp) == text


def test_an_extent_names_both_ends_only_where_they_differ():
    assert words.extent([64, 64]) == "64"
    assert words.extent([32, 64, 48]) == "32–64"
    assert words.extent([]) == "-"
