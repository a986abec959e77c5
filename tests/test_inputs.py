"""What comes from outside has bounds: it is refused in one line before it costs anything."""

import gzip
import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from robustness.data import load_images
from robustness.errors import UsageError
from robustness.evaluation.suite import load_suite
from robustness.inputs import available_memory, require_memory, text
from robustness.recipe import read_recipe
from robustness.zoo import load_model

SUITE = """
name = "tiny"
data = "digits"
models = ["digits/resnet"]
threats = [{ norm = "Linf", eps = [0.1] }]
attacks = [{ kind = "pgd", steps = 20 }]
audit = { samples = 32 }
"""


def refusal(read, *arguments: object) -> str:
    with pytest.raises(UsageError) as caught:
        read(*arguments)
    assert len(str(caught.value)) <= 290
    assert str(caught.value).isprintable()
    return str(caught.value)


def edited(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize("number", ["10" + "0" * 8, "1" + "0" * 29, "0x" + "f" * 5000, "9" * 5000])
@pytest.mark.parametrize(
    "setting",
    [
        "steps = 1,",
        "hidden = 8",
        "steps = 4",
        "epochs = 3",
        "batch_size = 256",
        "shape = [1, 8, 8]",
        "classes = 10",
    ],
)
def test_numbers_in_a_recipe_have_bounds(recipe_folder: Path, setting: str, number: str) -> None:
    file = recipe_folder / "recipe.toml"
    digits = setting.rstrip("],").split()[-1]
    changed = setting.replace(digits, number)
    recipe = edited(file.read_text(encoding="utf-8"), setting, changed)
    file.write_text(recipe, encoding="utf-8")
    assert "recipe.toml" in refusal(read_recipe, recipe_folder)


@pytest.mark.parametrize(
    "line",
    [
        "threads = 1000000",
        "seed = 18446744073709551616",
        "seed = -1",
        "cycles = 1000000000",
        "augmentation = { crop = 1000000000 }",
        "learning_rate = 1e999",
        "weight_decay = 1e308",
    ],
)
def test_settings_of_training_have_bounds(recipe_folder: Path, line: str) -> None:
    file = recipe_folder / "recipe.toml"
    recipe = file.read_text(encoding="utf-8")
    kept = [old for old in recipe.splitlines() if old.split(" ")[0] != line.split(" ")[0]]
    file.write_text("\n".join([*kept, line, ""]), encoding="utf-8")
    assert "training." in refusal(read_recipe, recipe_folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps = 20", "steps = 1000000000"),
        ("samples = 32", f"samples = {10**30}"),
        ("samples = 32", "samples = true"),
        ('name = "tiny"', 'name = "."'),
        ('name = "tiny"', 'name = ".."'),
        ('name = "tiny"', 'name = ".tiny"'),
        ('name = "tiny"', 'name = "a/b"'),
        ('name = "tiny"', 'name = ""'),
        ('name = "tiny"', f'name = "{"x" * 200}"'),
        ('data = "digits"', 'data = "digits\\u0000"'),
        ('data = "digits"', 'data = "a\\u0000.npz"'),
        ('"digits/resnet"', '"digits\\u0000resnet"'),
        ('"digits/resnet"', '""'),
        ('"digits/resnet"', f'"{"x" * 5000}"'),
        ("audit = {", f"seed = {2**63}\naudit = {{"),
        ("audit = {", "a." * 100_000 + "a = 1\naudit = {"),
        ("audit = {", f"a = {'[' * 100_000}{']' * 100_000}\naudit = {{"),
        ("audit = {", f"a = {'{a=' * 100_000}1{'}' * 100_000}\naudit = {{"),
        ("audit = {", f"a = {'9' * 5000}\naudit = {{"),
        ("audit = {", f"a = '{'x' * 2_000_000}'\naudit = {{"),
    ],
)
def test_a_suite_beyond_all_bounds_is_refused(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "suite.toml"
    file.write_text(edited(SUITE, old, new), encoding="utf-8")
    assert "suite.toml" in refusal(load_suite, str(file))


def test_means_of_another_number_of_channels_are_refused_before_training(
    recipe_folder: Path,
) -> None:
    file = recipe_folder / "recipe.toml"
    two = "[model]\nnormalise = { mean = [0.1, 0.2], std = [1.0, 1.0] }"
    text = edited(file.read_text(encoding="utf-8"), "[model]", two)
    file.write_text(text, encoding="utf-8")
    assert "1 means for as many channels" in refusal(read_recipe(recipe_folder).build)


def test_a_recipe_that_memory_cannot_hold_is_refused_before_it_is_built(
    recipe_folder: Path,
) -> None:
    file = recipe_folder / "recipe.toml"
    huge = edited(file.read_text(encoding="utf-8"), "hidden = 8", "hidden = 1000000")
    file.write_text(edited(huge, "[1, 8, 8]", "[1, 1024, 1024]"), encoding="utf-8")
    assert "GiB" in refusal(load_model, str(recipe_folder))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_what_is_no_ordinary_file_is_refused_and_not_waited_for(
    recipe_folder: Path, kind: str
) -> None:
    place = recipe_folder / "strange"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(place))
    elif kind == "device":
        place.symlink_to("/dev/zero")
    else:
        place.mkdir()
    for name, read in (
        ("suite.toml", lambda file: load_suite(str(file))),
        ("data.npz", lambda file: load_images(str(file))),
        ("recipe.toml", lambda file: read_recipe(file.parent)),
    ):
        file = recipe_folder / name
        file.unlink(missing_ok=True)
        file.symlink_to(place)
        refusal(read, file)


@pytest.mark.slow
def test_a_small_packed_file_of_endless_zeros_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "mnist").mkdir()
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (1, 28, 28))
    with gzip.open(tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz", "wb", 9) as file:
        file.write(header)
        for _ in range(512):
            file.write(bytes(2**20))
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").touch()
    tracemalloc.start()
    line = refusal(load_images, "mnist", "test", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "bytes to spare" in line
    assert peak < 2**23


@pytest.mark.parametrize("counts", [(2**31, 28, 28), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_a_declared_size_that_memory_cannot_hold_is_refused(
    tmp_path: Path, counts: tuple[int, ...]
) -> None:
    (tmp_path / "mnist").mkdir()
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in counts)
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").write_bytes(header)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").touch()
    assert "GiB" in refusal(load_images, "mnist", "test", tmp_path)


def test_an_archive_that_declares_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.npz"
    np.savez_compressed(
        file, images=np.zeros((10**5, 8, 8), np.float32), labels=np.zeros(10**5, int)
    )
    monkeypatch.setattr("robustness.inputs.available_memory", lambda: 2**20)
    assert "GiB" in refusal(load_images, str(file))


def test_the_memory_that_is_free_is_a_number_of_this_machine() -> None:
    assert 2**20 < available_memory() < 2**50
    require_memory(2**20, "a megabyte")


@pytest.mark.parametrize("name", ["", "  ", "a\0b", "a\x1b[31m", "x" * 5000, "a/" * 3000, "\udc80"])
def test_what_nothing_can_be_called_is_refused(name: str) -> None:
    refusal(text, name)


@pytest.mark.parametrize(
    "name", ["digits/resnet", "naïve/模型", "package.module:factory", "../a b"]
)
def test_other_names_are_left_as_they_are(name: str) -> None:
    assert text(name) == name
