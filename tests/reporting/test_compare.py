import io
import json
from pathlib import Path

import boards
import pytest
from rich.console import Console

from robustness.errors import UsageError
from robustness.reporting.compare import Change, compare, render, told
from robustness.results.leaderboard import Proportion, read_leaderboard


def printed(comparison, **names):
    console = Console(file=io.StringIO(), width=80)
    console.print(render(comparison, **names))
    return console.file.getvalue()


def test_a_board_compared_with_itself_differs_nowhere(board):
    comparison = compare(board, board)
    assert comparison.obstacles == []
    for model in comparison.models:
        changes = [model.clean, *(t.certified for t in model.threats)]
        changes += [t.attacked for t in model.threats]
        assert all(change.difference == 0 and change.overlap for change in changes)


def test_a_large_change_is_marked_and_a_small_one_is_not(board):
    worse = boards.shift(board, "digits/node", "attacked", -60)
    slightly = boards.shift(worse, "digits/lyanet", "attacked", -3)
    text = printed(compare(board, slightly))
    assert "-10.0*" in text
    assert "-0.5 " in text
    assert "-0.5*" not in text


def test_intervals_that_touch_overlap():
    a = Proportion(count=1, total=4, low=0.1, high=0.4)
    b = Proportion(count=2, total=4, low=0.4, high=0.7)
    c = Proportion(count=3, total=4, low=0.41, high=0.9)
    assert Change(a, b).overlap
    assert not Change(a, c).overlap
    assert Change(a, None).overlap is None


def test_a_model_of_one_side_only_is_listed_with_dashes(board):
    fewer = board.model_copy(update={"models": board.models[1:]})
    names = [model.name for model in compare(fewer, board).models]
    assert names == [m.name for m in board.models[1:]] + ["digits/resnet"]
    assert compare(fewer, board).models[-1].clean.difference is None
    assert "digits/resnet" in printed(compare(fewer, board))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data_digest": "00" * 32}, "other images (digits 9f9f9f9f against digits 00000000)"),
        ({"split": "train"}, "other split (test against train)"),
        ({"samples": 64}, "other samples (599 against 64)"),
        ({"seed": 3}, "other seed (0 against 3)"),
        ({"settings": {"attacks": []}}, "other settings (attacks, certificates)"),
        ({"subsets": {"autoattack": [1, 2]}}, "other subsets of the samples"),
    ],
)
def test_what_makes_two_runs_incomparable_is_said(board, change, named):
    comparison = compare(board, boards.leaderboard(**change))
    assert comparison.obstacles == [named]
    assert f"not comparable: {named}" in " ".join(printed(comparison).split())


def test_other_models_and_another_name_do_not_make_runs_incomparable(board):
    settings = board.suite.settings | {"models": ["mine"]}
    other = boards.leaderboard(name="nightly", settings=settings)
    assert compare(board, other).verdict == "comparable: same images, seed and settings"


def test_a_missing_setting_differs_from_one_that_is_null(board):
    other = boards.leaderboard(settings=board.suite.settings | {"views": None})
    assert compare(board, other).obstacles == ["other settings (views)"]


@pytest.mark.parametrize(("count", "total"), [(0, 0), (3, 2), (-1, 2)])
def test_a_leaderboard_with_a_proportion_that_is_none_is_refused(
    board, count: int, total: int, tmp_path: Path
) -> None:
    content = json.loads(board.to_json())
    content["models"][0]["clean"] |= {"count": count, "total": total}
    (tmp_path / "leaderboard.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="a leaderboard of schema version"):
        read_leaderboard(tmp_path)


def test_the_comparison_survives_a_plain_pipe(board):
    text = printed(compare(board, boards.leaderboard(seed=1)), a="old.json", b="new.json")
    assert text.isascii()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for entry in board.models:
        assert any(line.split() == [entry.name] for line in lines)
    assert "A: old.json" in text
    assert "B: new.json" in text


def turned(board, name, places):
    """The board with some predictions of one model turned, right to wrong or back."""
    entry = next(model for model in board.models if model.name == name)
    samples = entry.samples
    prediction = [11 - p if i in places else p for i, p in enumerate(samples.prediction)]
    right = sum(a == b for a, b in zip(samples.label, prediction, strict=True))
    return boards.edit(
        board,
        name,
        samples=samples.model_copy(update={"prediction": prediction}),
        clean=Proportion.of(right, len(prediction)),
    )


def places_of(board, name, right, count):
    samples = next(model for model in board.models if model.name == name).samples
    return [i for i, p in enumerate(samples.prediction) if (p == 3) == right][:count]


def test_what_broke_and_what_was_mended_is_told_with_its_exact_p_value(board):
    broke = places_of(board, "digits/node", True, 8)
    mended = places_of(board, "digits/node", False, 1)
    comparison = compare(board, turned(board, "digits/node", {*broke, *mended}))
    model, quantity, change, pairs = next(
        each for each in comparison.moved if str(each[1]) == "clean"
    )
    assert model == "digits/node"
    assert (list(pairs.broke), list(pairs.mended)) == (broke, mended)
    assert change.b.count == change.a.count - 7
    assert f"{model}, {quantity}: 8 broke, 1 mended of 599, p 0.039" in told(comparison)


def test_equal_runs_have_nothing_to_tell(board):
    assert compare(board, board).moved == []
    assert told(compare(board, board)) == []


def test_of_many_numbers_those_are_told_that_are_least_likely_chance(board):
    worse = board
    for count, name in enumerate(("digits/resnet", "digits/node", "digits/lyanet"), 3):
        worse = turned(worse, name, places_of(board, name, True, count))
    lines = told(compare(board, worse), most=1)
    assert lines[0].startswith("digits/lyanet, clean: 5 broke, 0 mended")
    assert lines[1] == "and 2 further numbers (all with --html)"


def test_models_that_came_and_went_are_told(board):
    comparison = compare(
        board.model_copy(update={"models": board.models[1:]}),
        board.model_copy(update={"models": board.models[:-1]}),
    )
    assert told(comparison) == ["new in B: digits/resnet", "gone from B: digits/lyanet-certified"]


def test_samples_of_other_images_are_not_paired(board):
    other = turned(boards.leaderboard(data_digest="00" * 32), "digits/node", [1, 2, 3])
    comparison = compare(board, other)
    assert comparison.moved == []
    assert all(change.pairs is None for _, _, change in comparison.numbers)
