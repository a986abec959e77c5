"""Where the pages of a report lie, and what on them can be linked to."""

import re
from collections.abc import Iterable

from robustness.results.leaderboard import Leaderboard, ModelEntry

FOLDER = "models"
SUITE_PAGE = "index.html"


def model_pages(leaderboard: Leaderboard) -> list[str]:
    """The file of each model inside the report's folder, in the leaderboard's order."""
    slugs = (
        re.sub("[^a-z0-9.]+", "-", entry.name.lower()).strip("-.")[:80] or "model"
        for entry in leaderboard.models
    )
    return [f"{FOLDER}/{slug}.html" for slug in _distinct(slugs)]


def model_page(leaderboard: Leaderboard, entry: ModelEntry) -> str:
    """The file of one of its models."""
    return model_pages(leaderboard)[_number(leaderboard, entry)]


def anchor(leaderboard: Leaderboard, entry: ModelEntry) -> str:
    """Where a model stands on the suite's page: its name, without spaces."""
    wanted = ("-".join(model.name.split()) or "model" for model in leaderboard.models)
    return _distinct(wanted)[_number(leaderboard, entry)]


def _distinct(names: Iterable[str]) -> list[str]:
    """Names of which those that were there before have a number at their ends."""
    taken: list[str] = []
    for name in names:
        number, chosen = 1, name
        while chosen in taken:
            number += 1
            chosen = f"{name}-{number}"
        taken.append(chosen)
    return taken


def _number(leaderboard: Leaderboard, entry: ModelEntry) -> int:
    return next(i for i, model in enumerate(leaderboard.models) if model is entry)
