"""The zoo gives the model that was trained, or says in one line why not."""

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from robustness import cli, zoo
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.recipe import MeasuredConfig, read_recipe, record_training
from robustness.training.loop import train
from robustness.zoo import (
    ZOOS,
    ZooFolder,
    entry_name,
    find_entry,
    load_model,
    training_data,
    zoo_names,
    zoo_recipe,
)

MEASURED = MeasuredConfig(
    validation_score=0.0, validation_accuracy=0.0, epoch=1, seconds=0.0, torch=torch.__version__
)


def refusal(name: str) -> str:
    """The message that loading `name` is refused with."""
    with pytest.raises(UsageError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_weights(folder: Path, content: bytes) -> None:
    """Put `content` in place of the weights, with a recipe that vouches for it."""
    (folder / "weights.safetensors").write_bytes(content)
    record_training(folder, hashlib.sha256(content).hexdigest(), MEASURED)


@pytest.fixture
def entry(recipe_folder: Path) -> Path:
    """A zoo entry with weights that nobody trained."""
    recipe = read_recipe(recipe_folder)
    torch.manual_seed(0)
    module = recipe.model.build(recipe.data.shape, recipe.data.classes)
    write_weights(recipe_folder, safetensors.torch.save(module.state_dict()))
    return recipe_folder


def test_weights_are_loaded_bit_by_bit_into_a_frozen_model(entry: Path):
    loaded = load_model(str(entry))
    stored = safetensors.torch.load_file(entry / "weights.safetensors")
    found = loaded.module.state_dict()
    assert set(found) == set(stored)
    assert all(torch.equal(found[key], stored[key]) for key in stored)
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert loaded.recipe == read_recipe(entry)


def test_a_model_is_found_by_its_recipe_file_as_well_as_by_its_folder(entry: Path):
    assert load_model(str(entry / "recipe.toml")).digest == load_model(str(entry)).digest


def test_the_digest_names_weights_and_architecture_and_nothing_else(entry: Path):
    recipe = entry / "recipe.toml"
    original = load_model(str(entry)).digest
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("epochs = 3", "epochs = 9"), encoding="utf-8")
    assert load_model(str(entry)).digest == original
    recipe.write_text(text.replace("steps = 4", "steps = 5"), encoding="utf-8")
    assert load_model(str(entry)).digest != original
    recipe.write_text(text, encoding="utf-8")
    weights = safetensors.torch.load_file(entry / "weights.safetensors")
    weights["field.head.bias"] = weights["field.head.bias"] + 1e-3
    write_weights(entry, safetensors.torch.save(weights))
    assert load_model(str(entry)).digest != original


def test_every_entry_of_the_zoo_is_listed_and_loads():
    names = zoo_names()
    assert names == sorted(names)
    assert "digits/lyanet-certified" in names
    assert zoo_names("digits") == [name for name in names if name.startswith("digits/")]
    assert zoo_names("nothing") == []
    assert load_model("digits/lyanet-certified").module(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("name", zoo_names())
def test_the_weights_that_a_recipe_records_fill_the_network_that_it_builds(name: str):
    recipe = read_recipe(zoo.zoo_folder() / name)
    if recipe.weights is not None and recipe.weights.source is not None:
        assert not list((zoo.zoo_folder() / name).glob("*.safetensors"))
        if not zoo.has_weights(recipe):
            assert recipe.weights.source in refusal(name)
            pytest.skip(f"its weights are not included: {recipe.weights.source}")
        load_model(name)
        return
    if recipe.weights is None:
        assert not (zoo.zoo_folder() / name / "weights.safetensors").exists()
        assert "robustness train" in refusal(name)
        return
    loaded = load_model(name)
    assert all(p.isfinite().all() for p in loaded.module.parameters())
    assert (zoo.zoo_folder() / name / "weights.safetensors").stat().st_size < 2**22


@pytest.fixture
def others(entry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of an entry `digits/others` whose weights are not included; no folder is named."""
    file = tmp_path / "given/theirs.safetensors"
    file.parent.mkdir()
    content = (entry / "weights.safetensors").read_bytes()
    file.write_bytes(content)
    head = (entry / "recipe.toml").read_text(encoding="utf-8").split("[training]")[0]
    folder = tmp_path / "zoo/digits/others"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(
        f'{head}[weights]\nsha256 = "{hashlib.sha256(content).hexdigest()}"\n'
        'source = "https://example.org/theirs"\nlicence = "MIT"\nfile = "theirs.safetensors"\n',
        encoding="utf-8",
    )
    monkeypatch.delenv(zoo.WEIGHTS_DIR, raising=False)
    return file


def test_others_weights_are_asked_for_and_read_from_the_folder_that_is_named(
    others: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ZOOS.having(ZooFolder("others", others.parent.parent / "zoo")):
        message = refusal("digits/others")
        assert len(message) <= 300
        for word in ("digits/others", "theirs.safetensors", "https://example.org/theirs", "MIT"):
            assert word in message
        assert f"got no {zoo.WEIGHTS_DIR}" in message
        monkeypatch.setenv(zoo.WEIGHTS_DIR, str(others.parent))
        loaded = load_model("digits/others")
        assert loaded.digest == load_model(str(entry)).digest == zoo_recipe("digits/others").digest
        others.write_bytes(others.read_bytes()[:-1])
        got = hashlib.sha256(others.read_bytes()).hexdigest()[:12]
        assert f"got one of {got}" in refusal("digits/others")
        others.unlink()
        message = refusal("digits/others")
        assert "No such file" in message
        assert len(message) <= 300


def test_a_star_and_the_list_of_models_tell_whether_others_weights_are_here(
    others: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def listed() -> str:
        cli.run(lambda: cli.app(["models", "--dataset", "digits"], standalone_mode=False))
        return "".join(capsys.readouterr().out.split())

    with ZOOS.having(ZooFolder("others", others.parent.parent / "zoo")):
        assert "digits/others" not in zoo.expanded("digits/*")
        assert "nothere:" in listed()
        monkeypatch.setenv(zoo.WEIGHTS_DIR, str(others.parent))
        # A suite asks for the same models on every machine.
        assert "digits/others" not in zoo.expanded("digits/*")
        assert "digits/others" in zoo.expanded("digits/*", others=True)
        assert "nothere:" not in listed()
        assert "given:" in listed()


def test_others_weights_are_not_trained_here(others: Path) -> None:
    folder = others.parent.parent / "zoo/digits/others"
    with pytest.raises(UsageError, match=r"weights come from https://example\.org/theirs"):
        train(folder, quiet=True)
    assert [file.name for file in folder.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("name", "right"), [("mnist/gains-0.11-seed-12345", 198), ("mnist/gains-0.22-seed-12345", 188)]
)
def test_given_the_weights_of_gains_predict_what_was_measured(name: str, right: int) -> None:
    if not zoo.has_weights(zoo_recipe(name)) or not os.environ.get("ROBUSTNESS_DATA_DIR"):
        pytest.skip(f"needs {zoo.WEIGHTS_DIR} with the weights and ROBUSTNESS_DATA_DIR with MNIST")
    images = load_images("mnist", "test", Path(os.environ["ROBUSTNESS_DATA_DIR"]))
    module = load_model(name).module
    found = module(images.images[:200]).argmax(dim=1) == images.labels[:200]
    assert int(found.sum()) == right


def test_a_near_name_is_suggested():
    assert "the nearest are digits/lyanet-certified, " in refusal("digits/lyanet-certfied")


@pytest.mark.parametrize("name", ["", "nothing-like-it", "x" * 5000, "../digits", "/"])
def test_a_name_that_is_nothing_is_answered_with_something_that_is(name: str):
    message = refusal(name)
    assert "expected a model" in message
    assert sum(f" {entry}," in message for entry in zoo_names()) == 3
    assert "`robustness models` lists all" in message


def test_a_recipe_that_was_not_trained_says_how_to_train_it(recipe_folder: Path):
    assert f"robustness train {recipe_folder}" in refusal(str(recipe_folder))


def test_missing_weights_are_a_usage_error(entry: Path):
    (entry / "weights.safetensors").unlink()
    assert "expected weights at" in refusal(str(entry))


def test_weights_with_one_changed_bit_are_refused(entry: Path):
    path = entry / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "expected SHA-256" in refusal(str(entry))


def test_truncated_weights_are_refused(entry: Path):
    path = entry / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert f"{len(content) // 2} bytes, truncated or replaced" in refusal(str(entry))


@pytest.mark.parametrize("cut", [0, 4, 20, 1000])
def test_truncated_weights_are_refused_even_if_the_recipe_vouches_for_them(entry: Path, cut: int):
    write_weights(entry, (entry / "weights.safetensors").read_bytes()[:cut])
    assert "expected weights of the recipe's architecture" in refusal(str(entry))


@pytest.mark.parametrize("kind", [torch.int32, torch.complex64, torch.bool])
def test_weights_of_numbers_that_would_be_cast_in_silence_are_refused(
    entry: Path, kind: torch.dtype
):
    weights = safetensors.torch.load_file(entry / "weights.safetensors")
    weights["field.head.bias"] = weights["field.head.bias"].to(kind)
    write_weights(entry, safetensors.torch.save(weights))
    assert f"field.head.bias of shape (10,) and {kind} where it has" in refusal(str(entry))


def test_weights_of_another_architecture_are_refused(entry: Path):
    recipe = entry / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    recipe.write_text(text.replace("hidden = 8", "hidden = 9"), encoding="utf-8")
    assert "of shape (8,) and torch.float32 where it has (9,)" in refusal(str(entry))


@pytest.mark.parametrize("change", ["one is missing", "one is unknown"])
def test_weights_that_do_not_fill_the_model_exactly_are_refused(entry: Path, change: str):
    weights = safetensors.torch.load_file(entry / "weights.safetensors")
    bias = weights.pop("field.head.bias")
    if change == "one is unknown":
        weights |= {"field.head.bias": bias, "field.head.bios": bias.clone()}
    write_weights(entry, safetensors.torch.save(weights))
    assert "expected weights of the recipe's architecture" in refusal(str(entry))


class Bomb:
    """Unpickling this runs code."""

    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_nothing_is_ever_unpickled(
    entry: Path, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if form == "pickle":
        content = pickle.dumps(Bomb())
    else:
        torch.save({"field.head.bias": Bomb()}, tmp_path / "bomb.pt")
        content = (tmp_path / "bomb.pt").read_bytes()
    write_weights(entry, content)
    assert "expected weights of the recipe's architecture" in refusal(str(entry))
    assert not (tmp_path / "exploded").exists()


def test_parts_that_do_not_fit_together_are_a_usage_error(entry: Path):
    recipe = entry / "recipe.toml"
    text = recipe.read_text(encoding="utf-8")
    field = 'field = { kind = "target-seeking", gain = 10.0, coupling = 1.0 }'
    assert field in text
    other = 'field = { kind = "lyanet", variant = "simplex", width = 2 }'
    recipe.write_text(text.replace(field, other), encoding="utf-8")
    message = refusal(str(entry))
    assert "64 features" in message
    assert str(recipe) in message


FACTORY = """
import torch
from torch import nn

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10))

def broken():
    raise RuntimeError("no such\\nfile")

def leaving():
    raise SystemExit(3)

def number():
    return 3

def needy(argument):
    return nn.Flatten()
"""


def test_a_users_own_factory_gives_a_frozen_model_with_a_stable_digest(user_code):
    name = f"{user_code(FACTORY)}:network"
    first, second = load_model(name), load_model(name)
    assert first.digest == second.digest
    assert first.recipe is None
    assert name in first.description
    assert not first.module.training
    assert not any(p.requires_grad for p in first.module.parameters())
    assert first.module(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_digest_of_a_users_model_changes_with_its_weights(user_code):
    name = f"{user_code(FACTORY)}:network"
    other = f"{user_code(FACTORY.replace('manual_seed(0)', 'manual_seed(1)'))}:network"
    assert load_model(name).digest != load_model(other).digest


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("broken", "RuntimeError: no such file"),
        ("leaving", "SystemExit: 3"),
        ("number", "torch.nn.Module, got int"),
        ("needy", "missing 1 required positional argument"),
        ("absent", "AttributeError"),
        ("", "AttributeError"),
    ],
)
def test_a_factory_that_fails_is_named_with_its_reason(user_code, attribute, reason):
    message = refusal(f"{user_code(FACTORY)}:{attribute}")
    assert reason in message
    assert "expected" in message


@pytest.mark.parametrize("name", ["no_such_package_at_all:network", ":", "a:b:c", "os.path:join"])
def test_a_factory_that_cannot_be_found_or_called_is_a_usage_error(name: str):
    assert "expected a factory package.module:callable" in refusal(name)


def test_the_checkouts_models_are_the_zoo():
    assert zoo.zoo_folder().joinpath("digits").is_dir()


def test_the_zoo_folder_of_another_package_is_looked_into(entry: Path, tmp_path: Path) -> None:
    shutil.copytree(entry, tmp_path / "zoo/digits/borrowed")
    with ZOOS.having(ZooFolder("borrowed", tmp_path / "zoo")):
        assert "digits/borrowed" in zoo_names("digits")
        assert load_model("digits/borrowed").digest == load_model(str(entry)).digest
        assert entry_name(find_entry("digits/borrowed")) == "digits/borrowed"
        assert zoo_recipe("digits/borrowed").data.name == "digits"
        shutil.copytree(entry, tmp_path / "zoo/digits/resnet")
        with pytest.raises(UsageError, match="expected one zoo entry called digits/resnet"):
            find_entry("digits/resnet")
    assert "digits/borrowed" not in zoo_names("digits")


def test_reading_a_recipe_reads_no_weights(
    tmp_path: Path, entry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(entry, tmp_path / "zoo/digits/bare")
    (tmp_path / "zoo/digits/bare/weights.safetensors").unlink()
    monkeypatch.setattr("safetensors.torch.load", None)
    with ZOOS.having(ZooFolder("bare", tmp_path / "zoo")):
        assert zoo_recipe("digits/bare").weights is not None
        assert training_data("digits/bare") == "digits"
