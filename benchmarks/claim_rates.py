"""What learning rate a model of the claims is best trained with, by its validation accuracy.

Run as `python benchmarks/claim_rates.py cifar-10 --rates 3e-4 1e-3 4e-3 --data-dir DIR --out DIR`.
Each rate has a short training of its own, of one seed and with the whole schedule; a training that
was interrupted goes on. Tuned rates are `tuned` of a study in `robustness/claims/models.py`.
"""

import argparse
from pathlib import Path

import tomlkit

from robustness import inputs
from robustness.claims.models import MODELS, STUDIES, Study, recipe_text, study_of
from robustness.files import replace_file
from robustness.numerics.devices import arithmetic_on
from robustness.recipe import RECIPE_FILE, MeasuredConfig, read_recipe
from robustness.training.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=sorted(STUDIES))
    parser.add_argument("--model", choices=MODELS, default="lyanet")
    parser.add_argument("--rates", type=float, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, help="folder of the official image files")
    parser.add_argument("--out", type=Path, required=True, help="for recipes and weights")
    asked = parser.parse_args()
    print(f"{asked.model} on {asked.data}, {asked.epochs} epochs of seed {asked.seed}")
    print("| rate | validation accuracy | best epoch |\n| ---: | ---: | ---: |")
    with arithmetic_on(inputs.placement(None, None)):
        for rate in asked.rates:
            folder = asked.out / f"{asked.model}-{asked.epochs}-{rate:g}"
            text = recipe_at(study_of(asked.data), asked.model, asked.seed, asked.epochs, rate)
            found = trained(folder, text, asked.data_dir)
            print(f"| {rate:g} | {100 * found.validation_accuracy:.2f} % | {found.epoch} |")


def recipe_at(study: Study, model: str, seed: int, epochs: int, rate: float) -> str:
    """The recipe of the claims, but for its learning rate."""
    document = tomlkit.parse(recipe_text(study, model, seed, epochs))
    document["training"]["learning_rate"] = rate  # type: ignore[index]
    return tomlkit.dumps(document)


def trained(folder: Path, text: str, data_dir: Path | None) -> MeasuredConfig:
    """What was measured of a recipe, trained in `folder` unless it was before."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RECIPE_FILE).exists():
        replace_file(folder / RECIPE_FILE, text.encode())
    return read_recipe(folder).measured or train(folder, resume=True, data_dir=data_dir, quiet=True)


if __name__ == "__main__":
    main()
