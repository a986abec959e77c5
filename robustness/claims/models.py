"""The five models whose claims are measured: the zoo's MNIST recipes made small, per seed."""

import tomllib
from pathlib import Path
from typing import Any

from torch import nn

from robustness.errors import UsageError, os_failure
from robustness.files import replace_file
from robustness.numerics.devices import CPU
from robustness.recipe import RECIPE_FILE, Recipe, read_recipe
from robustness.training.loop import train
from robustness.zoo import find_entry, load_model

DATA = "mnist"
EPOCHS = 2
MODELS = ("resnet", "node", "lyanet", "continuousnet", "lyanet-continuousnet")

# The entries whose recipes the models are made from, where another than their own: at the gain of
# `lyanet` a state grows a hundredfold in one solver step, and has no course over the horizon.
_SOURCES = {"lyanet": "lyanet-gain-1"}

# What is smaller than in the zoo's recipe: the least wide layers with which two epochs still
# reach a test error of a few percent.
_SMALLER: dict[str, dict[str, Any]] = {
    "resnet": {"widths": [8, 16, 32]},
    "continuousnet": {"stem": [8], "widths": [16, 24]},
    "lyanet-continuousnet": {"stem": [8], "widths": [16, 24]},
}


def recipe_text(name: str, seed: int) -> str:
    """The recipe of one model and seed as TOML, without weights.

    Args:
        name: one of `MODELS`.
        seed: of the initial weights, the order of images, their augmentation, the sampled
            states and the split into training and validation.
    """
    source = find_entry(f"{DATA}/{_SOURCES.get(name, name)}") / RECIPE_FILE
    import tomlkit  # dear to import, and needed here alone

    document = tomlkit.parse(source.read_text(encoding="utf-8"))
    document.pop("weights", None)
    document.pop("measured", None)
    document["model"] |= _SMALLER.get(name, {})
    document["training"] |= {"epochs": EPOCHS, "seed": seed}
    return tomlkit.dumps(document)


def recipe_of(name: str, seed: int) -> Recipe:
    """The recipe of one model and seed."""
    return Recipe.model_validate(tomllib.loads(recipe_text(name, seed)))


def trained(
    name: str, seed: int, work: Path, data_dir: Path | None, quiet: bool, device: str = CPU
) -> nn.Module:
    """One model of one seed, trained on the first call and read from `work` on later ones.

    Args:
        name: one of `MODELS`.
        seed: as in `recipe_text`.
        work: folder for recipes, weights and checkpoints; a killed training goes on there.
        data_dir: folder with the official image files; None downloads them.
        quiet: no progress bar.
        device: where it is trained and put.

    Raises:
        UsageError: `work` cannot be written to or has another recipe in the model's folder, or the
            images cannot be read.
    """
    folder = work / f"seed-{seed}" / name
    begun = _begun(folder, recipe_of(name, seed))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not begun:
            replace_file(folder / RECIPE_FILE, recipe_text(name, seed).encode())
    except OSError as error:
        raise os_failure(
            error, f"a folder to train in at {folder}", "give another with --out"
        ) from None
    recipe = read_recipe(folder)
    if recipe.weights is None:
        train(folder, resume=True, data_dir=data_dir, quiet=quiet, device=device)
    return load_model(str(folder)).module.to(device)


def _begun(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds this very training.

    Raises:
        UsageError: it holds another, which may be somebody's.
    """
    file = folder / RECIPE_FILE
    if not file.exists():
        return False
    if read_recipe(folder).training_digest != recipe.training_digest:
        raise UsageError(
            f"expected the recipe of this training at {file}, got another one; move {folder} away, "
            "or give another --out"
        )
    return True
