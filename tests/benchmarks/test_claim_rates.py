"""Rates are tried on the recipes of the claims, and on nothing else."""

import sys
from pathlib import Path

import pytest

from robustness.claims.models import recipe_of, study_of
from robustness.recipe import MeasuredConfig, Recipe, read_recipe

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claim_rates


def test_each_rate_is_trained_with_the_claims_recipe_and_its_validation_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[Recipe] = []

    def train(folder: Path, **_: object) -> MeasuredConfig:
        recipe = read_recipe(folder)
        trained.append(recipe)
        rate = recipe.trained_by.learning_rate
        return MeasuredConfig(
            validation_score=rate,
            validation_accuracy=100 * rate,
            epoch=4,
            seconds=1.0,
            torch="0",
            device="cpu",
        )

    monkeypatch.setattr(claim_rates, "train", train)
    words = ["rates", "mnist", "--rates", "1e-3", "5e-3", "--epochs", "6", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    claim_rates.main()
    *_, first, second = capsys.readouterr().out.splitlines()
    assert (first, second) == ("| 0.001 | 10.00 % | 4 |", "| 0.005 | 50.00 % | 4 |")
    asked = recipe_of(study_of("mnist"), "lyanet", 1, 6)
    for recipe, rate in zip(trained, (1e-3, 5e-3), strict=True):
        training = asked.trained_by.model_copy(update={"learning_rate": rate})
        assert recipe == asked.model_copy(update={"training": training})
