"""What one seed measured, and the file that keeps it so that a killed run goes on."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field

from robustness.claims.models import MODELS, STUDIES, Budget, Study, recipe_text
from robustness.errors import UsageError
from robustness.evaluation.environment import environment
from robustness.files import read_json, replace_file
from robustness.numerics.devices import CPU
from robustness.results.leaderboard import Proportion, Summary

EDITION: Literal[2] = 2


class Horizon(Summary):
    """One model along its horizon, over the whole test set.

    Attributes:
        time: t/T.
        potential: median of V_y at these times.
        accuracy: of the state at these times.
        reached: share of the final accuracy to the time t/T from which on it is never below.
    """

    time: list[float]
    potential: list[float]
    accuracy: list[float]
    reached: dict[str, float]


class SeedResults(Summary):
    """Everything measured about the five models of one seed; a part not yet run is empty.

    Attributes:
        data: the data set.
        seed: of the trainings.
        recipes: SHA-256 of the recipes of all budgets; results of others are measured again.
        device: what the models were trained and measured on, as `numerics.devices.hardware` names
            it; results of another one are measured again.
        budgets: model to how long it was trained; empty for the two epochs of earlier results.
        clean: model to accuracy on the whole test set.
        horizon: model to its course along the horizon.
        nfe: tolerance to model to the mean number of field evaluations of dopri5 per image.
        cost: comparison to the cost of a Monte Carlo step, as a multiple of the rival's.
        robust: protocol to model to robust accuracy.
        commit: of the checkout that the first part was measured at; None where it is not told.
        edition: of the protocols. 1 was an attack loop of the claims' own, without the judge; 2
            is that of `protocol.py`.
    """

    edition: Literal[1, 2] = 1
    data: str = "mnist"
    seed: int
    recipes: str
    device: str = CPU
    commit: str | None = None
    budgets: dict[str, Budget] = Field(default_factory=dict)
    clean: dict[str, Proportion] = Field(default_factory=dict)
    horizon: dict[str, Horizon] = Field(default_factory=dict)
    nfe: dict[str, dict[str, float]] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    robust: dict[str, dict[str, Proportion]] = Field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every part was measured, and every model attacked."""
        parts = (self.clean, self.horizon, self.nfe, self.cost)
        attacked = {name for table in self.robust.values() for name in table}
        return all(parts) and attacked == set(MODELS)

    @property
    def study(self) -> Study:
        """What they are a part of."""
        return STUDIES[self.data]


def recipes_digest(study: Study, seed: int) -> str:
    """SHA-256 of the five recipes of a seed, with every budget."""
    texts = "\n".join(
        recipe_text(study, name, seed, epochs) for epochs in study.budgets for name in MODELS
    )
    return hashlib.sha256(texts.encode()).hexdigest()


def stored(study: Study, seed: int, folder: Path, device: str = CPU) -> SeedResults:
    """The results of a seed on a device as far as an earlier run came; empty where there is none.

    Robust accuracies by protocols of an earlier edition are left out, to be measured again.

    Raises:
        UsageError: the file is broken, or of another data set.
    """
    fresh = SeedResults(
        edition=EDITION,
        data=study.data,
        seed=seed,
        recipes=recipes_digest(study, seed),
        device=device,
        commit=environment().get("commit"),
    )
    if not _file(seed, folder).is_file():
        return fresh
    found = read_seed(seed, folder)
    if found.data != study.data:
        raise UsageError(
            f"{folder}: expected results on {study.data}, got some on {found.data}; give another "
            "--out"
        )
    if (found.recipes, found.device) != (fresh.recipes, fresh.device):
        return fresh
    if found.edition != EDITION:
        return found.model_copy(update={"edition": EDITION, "robust": {}})
    return found


def read_seed(seed: int, folder: Path) -> SeedResults:
    """The results of a seed as they were kept, of whichever edition.

    Raises:
        UsageError: there are none, or the file is broken.
    """
    advice = "move it away to measure again"
    return read_json(_file(seed, folder), SeedResults, "results of one seed", advice)


def keep(results: SeedResults, folder: Path) -> None:
    """Write the results of a seed in one atomic step."""
    replace_file(_file(results.seed, folder), (results.model_dump_json(indent=1) + "\n").encode())


def _file(seed: int, folder: Path) -> Path:
    return folder / f"seed-{seed}.json"
