"""What learning rate a model of the claims is best trained with, by its validation accuracy.

Run as `python benchmarks/claim_rates.py cifar-10 --rates 3e-4 1e-3 4e-3 --data-dir DIR --out DIR`.
Each rate has a short training of its own, of one seed and with the whole schedule; a training that
was interrupted goes on. Tuned rates are `tuned` of a study in `robustness/claims/models.py`.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from robustness import inputs
from robustness.claims.models import MODELS, STUDIES, Study, folder_of, study_of, trained
from robustness.errors import UsageError
from robustness.numerics.devices import arithmetic_on
from robustness.recipe import MeasuredConfig, read_recipe

Number = TypeVar("Number", int, float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=sorted(STUDIES))
    parser.add_argument("--model", choices=MODELS, default="lyanet")
    parser.add_argument("--rates", type=_positive(float), nargs="+", required=True)
    parser.add_argument("--epochs", type=_positive(int), default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data-dir", type=Path, help="folder of the official image files")
    parser.add_argument("--out", type=Path, required=True, help="for recipes and weights")
    asked = parser.parse_args()
    print(f"{asked.model} on {asked.data}, {asked.epochs} epochs of seed {asked.seed}")
    print("| rate | validation accuracy | best epoch |\n| ---: | ---: | ---: |")
    try:
        with arithmetic_on(inputs.placement(None, None)):
            for rate in asked.rates:
                found = measured(study_of(asked.data), rate, asked)
                print(f"| {rate!r} | {100 * found.validation_accuracy:.2f} % | {found.epoch} |")
    except UsageError as error:
        parser.error(str(error))


def _positive(kind: Callable[[str], Number]) -> Callable[[str], Number]:
    def positive(word: str) -> Number:
        number = kind(word)
        if not 0 < number < math.inf:
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {word}")
        return number

    return positive


def measured(study: Study, rate: float, asked: argparse.Namespace) -> MeasuredConfig:
    """What came of the claims' own training at another rate."""
    tried = replace(study, tuned={asked.model: rate})
    work = asked.out / f"{study.data}-{rate!r}"
    trained(tried, asked.model, asked.seed, asked.epochs, work, asked.data_dir, quiet=True)
    found = read_recipe(folder_of(work, asked.model, asked.seed, asked.epochs)).measured
    assert found is not None
    return found


if __name__ == "__main__":
    main()
