"""Recipes are strict: what does not fit is one line that names the place."""

import re
from pathlib import Path

import pytest

from robustness.errors import UsageError
from robustness.files import replace_file
from robustness.recipe import MeasuredConfig, read_recipe, record_training
from robustness.training.loop import train

MEASURED = MeasuredConfig(
    validation_score=0.5, validation_accuracy=0.75, epoch=2, seconds=1.5, torch="2.13.0"
)


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("batch_size", "bach_size", "unknown key 'training.bach_size'"),
        ("epochs = 3\n", "", "missing key 'training.epochs'"),
        ("epochs = 3", "epochs = 0", "training.epochs: input should be greater than or equal to 1"),
        ("epochs = 3", 'epochs = "many"', "training.epochs: input should be a valid integer"),
        ('method = "euler"', 'method = "eular"', "model.neural-ode.solver.fixed.method"),
        ('kind = "target-seeking"', 'kind = "target"', "model.neural-ode.field"),
        ("coupling = 1.0", "coupling = -1.0", "model.neural-ode.field.target-seeking.coupling"),
        ("classes = 10", "classes = 1", "data.classes"),
        ("[training]", "[training", "expected TOML"),
        (
            "[training]",
            '[[published]]\neps = 0.1\nclean = 0.9\ncertified = 0.8\nbasis = "a"\n[training]',
            "[[published]] of weights with a source",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_in_one_line(recipe_folder, old, new, expected):
    edit(recipe_folder, old, new)
    with pytest.raises(UsageError) as caught:
        read_recipe(recipe_folder)
    message = str(caught.value)
    assert expected in message
    # Where the line is full the path keeps its end.
    assert f"{recipe_folder.name}/recipe.toml" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("horizon = 1.0", "horizon = inf", "horizon"),
        ("gain = 10.0", "gain = nan", "gain"),
        ("horizon = 1.0", "horizon = 1e-50", "steps that float32 can tell apart"),
        (
            'kind = "target-seeking", gain = 10.0, coupling = 1.0',
            'kind = "lyanet", variant = "simplex", width = 3',
            "gives 64 features",
        ),
    ],
)
def test_training_what_cannot_run_is_one_line_and_leaves_no_weights(
    recipe_folder, old, new, expected
):
    file = recipe_folder / "recipe.toml"
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))
    with pytest.raises(UsageError, match=expected) as caught:
        train(recipe_folder, quiet=True)
    assert "\n" not in str(caught.value)
    assert not (recipe_folder / "weights.safetensors").exists()


def test_a_missing_recipe_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="expected a TOML file at"):
        read_recipe(tmp_path)


def test_the_training_digest_changes_with_what_decides_the_weights_and_nothing_else(recipe_folder):
    before = read_recipe(recipe_folder).training_digest
    edit(recipe_folder, "A recipe small", "A recipe so small")
    record_training(recipe_folder, "0" * 64, MEASURED)
    assert read_recipe(recipe_folder).training_digest == before
    edit(recipe_folder, "epochs = 3", "epochs = 4")
    assert read_recipe(recipe_folder).training_digest != before


def test_what_training_measured_is_read_back_as_it_was_written(recipe_folder):
    record_training(recipe_folder, "a" * 64, MEASURED)
    recipe = read_recipe(recipe_folder)
    assert recipe.measured == MEASURED
    assert recipe.weights.sha256 == "a" * 64


def test_a_recipe_says_how_it_is_trained_or_where_all_of_its_weights_come_from(recipe_folder):
    path = recipe_folder / "recipe.toml"
    head = path.read_text(encoding="utf-8").split("[training]")[0]
    weights = f'[weights]\nsha256 = "{"a" * 64}"\n'
    for text, reason in (
        (head, "expected [training], or [weights] with a source"),
        (head + weights, "expected [training], or [weights] with a source"),
        (f'{head}{weights}source = "there"\n', "source, licence and file together"),
        (f'{head}{weights}source = "a"\nlicence = "b"\nfile = "../c"\n', "weights.file"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match=re.escape(reason)):
            read_recipe(recipe_folder)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def broken(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old"
