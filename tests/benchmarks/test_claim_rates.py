"""Rates are tried on the recipes of the claims, and on nothing else."""

import sys
from pathlib import Path

import pytest

from robustness.claims import models
from robustness.recipe import Recipe, read_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claim_rates


@pytest.mark.parametrize("data", ["mnist", "cifar-10"])
def test_each_rate_is_trained_with_the_claims_recipe_and_its_validation_is_printed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes: list[Recipe] = []

    def train(folder: Path, **_: object) -> None:
        recipe = read_recipe(folder)
        recipes.append(recipe)
        rate = recipe.trained_by.learning_rate
        with (folder / "recipe.toml").open("a", encoding="utf-8") as file:
            file.write(
                f'\n[weights]\nsha256 = "{"0" * 64}"\n\n[measured]\nvalidation_score = 0.0\n'
                f"validation_accuracy = {100 * rate}\nepoch = 4\nseconds = 1.0\n"
                'torch = "0"\ndevice = "cpu"\n'
            )

    monkeypatch.setattr(models, "train", train)
    loaded = type("Loaded", (), {"module": models.nn.Identity()})()
    monkeypatch.setattr(models, "load_model", lambda _: loaded)
    words = ["rates", data, "--rates", "1e-3", "5e-3", "--epochs", "6", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    for _ in range(2):  # a second time nothing is trained
        claim_rates.main()
        *_, first, second = capsys.readouterr().out.splitlines()
        assert (first, second) == ("| 0.001 | 10.00 % | 4 |", "| 0.005 | 50.00 % | 4 |")
    asked = models.recipe_of(models.study_of(data), "lyanet", 1, 6)
    for recipe, rate in zip(recipes, (1e-3, 5e-3), strict=True):
        training = asked.trained_by.model_copy(update={"learning_rate": rate})
        assert recipe == asked.model_copy(update={"training": training})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--rates", "0"], "expected a number above 0, got 0"),
        (["--rates", "nan"], "expected a number above 0, got nan"),
        (["--rates", "1e-3", "--epochs", "0"], "expected a number above 0, got 0"),
        (["--rates", "1e-3", "--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_tried_is_said_in_a_line(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rates", "mnist", *words, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        claim_rates.main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
