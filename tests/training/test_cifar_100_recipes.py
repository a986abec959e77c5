"""The recipes of CIFAR-100 train on a file of its format."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from robustness.recipe import read_recipe
from robustness.training.loop import train
from robustness.zoo import load_model, zoo_folder, zoo_names

CLASSES, SIDE = 100, 32


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty random images as CIFAR-100's binary version: coarse label, fine label, pixels."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    labels = np.stack([rng.integers(0, 20, 20), rng.integers(0, CLASSES, 20)], axis=1)
    pixels = rng.integers(0, 256, (20, 3 * SIDE * SIDE))
    records = np.concatenate([labels, pixels], axis=1).astype(np.uint8)
    (folder / "cifar-100-binary").mkdir()
    (folder / "cifar-100-binary" / "train.bin").write_bytes(records.tobytes())
    return folder


def test_the_papers_five_models_and_a_certified_one_have_a_recipe() -> None:
    names = {name.split("/")[1] for name in zoo_names("cifar-100")}
    paper = {"resnet", "node", "continuousnet", "lyanet", "lyanet-continuousnet"}
    assert names == paper | {"lyanet-certified"}


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_names("cifar-100"))
def test_a_recipe_of_cifar_100_takes_training_steps(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    source = (zoo_folder() / name / "recipe.toml").read_text(encoding="utf-8")
    epochs = next(line for line in source.splitlines() if line.startswith("epochs"))
    short = source.replace(epochs, "epochs = 1").replace("batch_size = 128", "batch_size = 16")
    (tmp_path / "recipe.toml").write_text(short, encoding="utf-8")
    before = trained_parameters(read_recipe(tmp_path).model.build((3, SIDE, SIDE), CLASSES))
    train(tmp_path, data_dir=data_dir, quiet=True)
    after = trained_parameters(load_model(str(tmp_path)).module)
    assert before.keys() == after.keys()
    assert read_recipe(tmp_path).weights is not None


def trained_parameters(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}
