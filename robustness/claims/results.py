"""What one seed measured, and the file that keeps it so that a killed run goes on."""

import hashlib
from pathlib import Path

from pydantic import Field

from robustness.claims.models import MODELS, recipe_text
from robustness.evaluation.leaderboard import Proportion, Summary
from robustness.files import read_json, replace_file


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
        seed: of the trainings.
        recipes: SHA-256 of the five recipes; results of other recipes are measured again.
        clean: model to accuracy on the whole test set.
        horizon: model to its course along the horizon.
        nfe: tolerance to model to the mean number of field evaluations of dopri5 per image.
        cost: comparison to the cost of a Monte Carlo step, as a multiple of the rival's.
        robust: protocol to model to robust accuracy.
    """

    seed: int
    recipes: str
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


def recipes_digest(seed: int) -> str:
    """SHA-256 of the five recipes of a seed."""
    texts = "\n".join(recipe_text(name, seed) for name in MODELS)
    return hashlib.sha256(texts.encode()).hexdigest()


def stored(seed: int, folder: Path) -> SeedResults:
    """The results of a seed as far as an earlier run came; empty where there is none.

    Raises:
        UsageError: the file is broken.
    """
    fresh = SeedResults(seed=seed, recipes=recipes_digest(seed))
    file = _file(seed, folder)
    if not file.is_file():
        return fresh
    found = read_json(file, SeedResults, "results of one seed", "move it away to measure again")
    return found if found.recipes == fresh.recipes else fresh


def keep(results: SeedResults, folder: Path) -> None:
    """Write the results of a seed in one atomic step."""
    replace_file(_file(results.seed, folder), (results.model_dump_json(indent=1) + "\n").encode())


def _file(seed: int, folder: Path) -> Path:
    return folder / f"seed-{seed}.json"
