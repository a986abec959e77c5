"""The zoo: recipes to models with verified weights; a user's own factory to a model."""

import contextlib
import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path
from textwrap import shorten

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from robustness.errors import (
    DiedError,
    UsageError,
    in_words,
    is_exhausted,
    is_interruption,
    os_failure,
)
from robustness.files import read_file
from robustness.identity import Structure, describe
from robustness.nets.foreign import is_foreign, load_foreign
from robustness.recipe import RECIPE_FILE, WEIGHTS_FILE, Recipe, WeightsConfig, read_recipe
from robustness.registry import Registry

_PACKAGE = Path(__file__).parent

WEIGHTS_DIR = "ROBUSTNESS_WEIGHTS_DIR"
"""Names the folder with weights that entries need and that are not included."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be evaluated.

    Attributes:
        name: zoo name, folder or `package.module:factory`, as it was asked for.
        module: pixels of [0, 1], shape (n, c, h, w), to logits, shape (n, classes); in
            evaluation mode, its parameters without gradients.
        digest: SHA-256 of the recipe's weights and architecture, by which reports name the
            model; that of its structure for a user's own.
        recipe: how it was made; None for a user's own.
        structure: all that the module is made of, before its first forward pass.
    """

    name: str
    module: nn.Module
    digest: str
    recipe: Recipe | None
    structure: Structure = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "structure", describe(self.module))

    @property
    def description(self) -> str:
        """What the model is, in a sentence."""
        return self.recipe.description if self.recipe else f"user's model {self.name}"

    def described_on(self, data: str) -> str:
        """What the model is, and what it was trained on where that is not `data`."""
        if self.recipe is None or self.recipe.data.name == data:
            return self.description
        return f"{self.description} (trained on {self.recipe.data.name}, measured on {data})"


def zoo_folder() -> Path:
    """Where the zoo lies: the checkout's `models/`, or the copy inside an installed wheel."""
    checkout = _PACKAGE.parent / "models"
    if (_PACKAGE.parent / "pyproject.toml").is_file() and checkout.is_dir():
        return checkout
    return _PACKAGE / "_zoo"


@dataclass(frozen=True)
class ZooFolder:
    """A zoo of an installed package.

    Attributes:
        name: what it is called in messages.
        path: of its entries, `<data set>/<name>/recipe.toml` and the weights beside.
    """

    name: str
    path: Path


ZOOS: Registry[ZooFolder] = Registry("a zoo folder", "robustness.models")


def _zoo_folders() -> list[Path]:
    return [zoo_folder(), *(zoo.path for zoo in ZOOS.values())]


def zoo_names(dataset: str | None = None) -> list[str]:
    """Names of all zoo entries, `<data set>/<name>`, sorted; those of installed packages too."""
    names = {
        path.parent.relative_to(root).as_posix()
        for root in _zoo_folders()
        for path in root.glob(f"*/*/{RECIPE_FILE}")
    }
    return sorted(name for name in names if dataset is None or name.split("/")[0] == dataset)


def zoo_entry(name: str) -> Path | None:
    """The folder of a zoo name; None where there is none.

    Raises:
        UsageError: two zoos have one of this name.
    """
    if not name or Path(name).is_absolute():
        return None
    found = [root / name for root in _zoo_folders() if os.path.isfile(root / name / RECIPE_FILE)]
    if len(found) > 1:
        raise UsageError(
            f"expected one zoo entry called {name}, got {found[0]} and {found[1]}; give its folder"
        )
    return found[0] if found else None


def find_entry(name: str) -> Path:
    """The folder of a zoo name, of a recipe file or of a recipe's folder.

    Raises:
        UsageError: there is no such entry; the three nearest names are given.
    """
    # os.path answers False, where pathlib raises, for what no file can be called.
    path = Path(name)
    if path.name == RECIPE_FILE and os.path.isfile(path):
        return path.parent
    if os.path.isfile(path / RECIPE_FILE):
        return path
    if (entry := zoo_entry(name)) is not None:
        return entry
    near = ", ".join(get_close_matches(name, zoo_names(), n=3, cutoff=0.0))
    raise UsageError(
        "expected a model, a zoo name, a recipe's folder, module:factory, FILE.onnx or timm:NAME, "
        f"got {name!r}; the nearest are {near}, and `robustness models` lists all"
    )


def entry_name(folder: Path) -> str:
    """The zoo name of an entry's folder; the path itself for a folder outside the zoo."""
    path = folder.resolve()
    roots = (root.resolve() for root in _zoo_folders())
    return next(
        (path.relative_to(r).as_posix() for r in roots if path.is_relative_to(r)), str(folder)
    )


def zoo_recipe(name: str) -> Recipe:
    """The recipe of a zoo name; no weights are read.

    Raises:
        UsageError: there is none, or it does not fit.
    """
    return read_recipe(zoo_entry(name) or zoo_folder() / name)


def has_weights(recipe: Recipe) -> bool:
    """Whether a recipe's weights are here: trained, and where they are others', given."""
    if recipe.weights is None:
        return False
    given = _given(recipe.weights)
    return recipe.weights.file is None or (given is not None and given.is_file())


def expanded(name: str, others: bool = False) -> list[str]:
    """The zoo entries with weights that `data/*` stands for; any other name is itself.

    Args:
        name: of entries.
        others: entries whose weights are not included are among them, where those are here; by
            default they are not, so that a suite asks for the same models on every machine.

    Raises:
        UsageError: there is none.
    """
    if not name.endswith("/*"):
        return [name]
    entries = zoo_names(name.removesuffix("/*"))
    recipes = {entry: zoo_recipe(entry) for entry in entries}
    found = [
        entry
        for entry, recipe in recipes.items()
        if has_weights(recipe) and (others or recipe.weights is None or recipe.weights.file is None)
    ]
    if not found:
        raise UsageError(
            f"expected zoo entries with weights for {name}, got none; see `robustness models`"
        )
    return found


def _given(weights: WeightsConfig) -> Path | None:
    """Where others' weights lie if a folder for them is named."""
    folder = os.environ.get(WEIGHTS_DIR)
    return Path(folder) / weights.file if folder and weights.file else None


def training_data(name: str) -> str | None:
    """The data set that a model was trained on, by its recipe; None for a user's factory.

    Raises:
        UsageError: the model is unknown, or its recipe does not fit.
    """
    return None if is_factory(name) else read_recipe(find_entry(name)).data.name


# Modules that a caller gave in place of names, for as long as the call takes.
_objects: dict[str, nn.Module] = {}


@contextlib.contextmanager
def named(module: nn.Module) -> Iterator[str]:
    """A name for a module, that of its class; at the end the module is as it was before."""
    name = plain = type(module).__name__
    count = 1
    while name in _objects:
        count += 1
        name = f"{plain}-{count}"
    modes = [(part, part.training) for part in module.modules()]
    wanted = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    _objects[name] = module
    try:
        yield name
    finally:
        del _objects[name]
        for part, training in modes:
            part.training = training
        for parameter, requires in wanted:
            parameter.requires_grad_(requires)


def is_factory(name: str) -> bool:
    """Whether a name is of a user's own: a factory, whose code runs, or of another format."""
    return name in _objects or is_foreign(name) or (":" in name and not os.path.exists(name))


def load_model(name: str) -> LoadedModel:
    """Load a model and verify its weights.

    Args:
        name: a zoo name (`digits/lyanet`), a folder with a recipe and its weights, or
            `package.module:factory`, a callable without arguments that returns a
            `torch.nn.Module` from pixels to logits; an ONNX file, or `timm:NAME`.

    Raises:
        UsageError: the model is unknown, its weights are missing, truncated, do not fit the
            architecture, are others' and not given, or do not have the recipe's SHA-256, or the
            factory fails.

    Example:
        >>> import torch
        >>> load_model("digits/resnet").module(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if name in _objects:
        module = _frozen(_objects[name])
        return LoadedModel(name, module, describe(module).digest, None)
    if is_foreign(name):
        folder_of_weights = os.environ.get(WEIGHTS_DIR)
        module = _frozen(load_foreign(name, Path(folder_of_weights) if folder_of_weights else None))
        return LoadedModel(name, module, describe(module).digest, None)
    if is_factory(name):
        return _load_factory(name)
    folder = find_entry(name)
    recipe = read_recipe(folder)
    built = _built(folder, recipe)
    return _filled(name, built, recipe, *_verified_bytes(folder, recipe))


@dataclass(frozen=True)
class PackedModel:
    """All that a machine without its files needs to load a model.

    Attributes:
        name: as it was asked for.
        recipe: content of the recipe's file; of an ONNX file that of the TOML file beside it, if
            there is one; of a user's factory empty.
        weights: content of the file of its weights, likewise; that of an ONNX file.
        modules: the source files of a user's factory by their paths below a folder to import from,
            if it is not installed: the module that is named, and all others of its package.
    """

    name: str
    recipe: bytes = b""
    weights: bytes = b""
    modules: Mapping[str, bytes] = field(default_factory=dict)


def pack_model(name: str) -> PackedModel:
    """Read the files of a model; no code of a user's runs.

    Raises:
        UsageError: see `load_model`.
    """
    if is_foreign(name):
        file = Path(name)
        if not file.is_file():
            return PackedModel(name)
        beside = file.with_suffix(".toml")
        return PackedModel(name, read_file(beside) if beside.is_file() else b"", read_file(file))
    if is_factory(name):
        return PackedModel(name, modules=_sources(name.partition(":")[0].partition(".")[0]))
    folder = find_entry(name)
    recipe = read_recipe(folder)
    _, content = _verified_bytes(folder, recipe)
    return PackedModel(name, read_file(folder / RECIPE_FILE), content)


def unpack_model(packed: PackedModel, folder: Path) -> LoadedModel:
    """Load a model from what was packed, and verify its weights.

    Args:
        packed: its files.
        folder: to write them to; those of a factory stay there.

    Raises:
        UsageError: see `load_model`.
    """
    if is_foreign(packed.name):
        if not packed.weights:
            return load_model(packed.name)
        file = folder / Path(packed.name).name
        file.write_bytes(packed.weights)
        if packed.recipe:
            file.with_suffix(".toml").write_bytes(packed.recipe)
        return replace(load_model(str(file)), name=packed.name)
    for path, content in packed.modules.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if is_factory(packed.name):
        if packed.modules:
            top = packed.name.partition(":")[0].partition(".")[0]
            for module in [m for m in sys.modules if m.partition(".")[0] == top]:
                del sys.modules[module]  # of an earlier run, maybe of other code
            sys.path.insert(0, str(folder))
            importlib.invalidate_caches()
        return _load_factory(packed.name)
    (folder / RECIPE_FILE).write_bytes(packed.recipe)
    recipe = read_recipe(folder)
    found = hashlib.sha256(packed.weights).hexdigest()
    if recipe.weights is None or found != recipe.weights.sha256:
        raise UsageError(
            f"{packed.name}: expected the recipe's weights, got others of SHA-256 {found[:12]}…; "
            "they were changed on their way: run it again"
        )
    built = _built(folder, recipe)
    return _filled(packed.name, built, recipe, folder / WEIGHTS_FILE, packed.weights)


def _sources(top: str) -> dict[str, bytes]:
    """The files of a module or package that is not installed, found without importing it."""
    spec = PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return {}
    file = Path(spec.origin)
    if {"site-packages", "dist-packages"} & set(file.parts):
        return {}
    if spec.submodule_search_locations is None:
        return {file.name: read_file(file)}
    root = file.parent
    return {
        path.relative_to(root.parent).as_posix(): read_file(path)
        for path in sorted(root.rglob("*.py"))
    }


def _built(folder: Path, recipe: Recipe) -> nn.Module:
    try:
        return recipe.build()
    except UsageError as error:
        raise UsageError(f"{folder / RECIPE_FILE}: {error}") from None


def _filled(
    name: str, module: nn.Module, recipe: Recipe, weights: Path, content: bytes
) -> LoadedModel:
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise _unfitting(weights, str(error)) from None
    if difference := state_difference(module, tensors):
        raise _unfitting(weights, difference)
    module.load_state_dict(tensors)
    assert recipe.digest is not None  # the content is that of its weights
    return LoadedModel(name, _frozen(module), recipe.digest, recipe)


class Absent(nn.Module):
    """Stands for a user's model of which the process that loaded it ended; gives no logits.

    Args:
        reason: how it ended, in words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def forward(self, *_: torch.Tensor) -> torch.Tensor:
        """Fail as the model did.

        Raises:
            DiedError: always.
        """
        raise DiedError(self.reason)


def absent_model(name: str, reason: str) -> LoadedModel:
    """What is evaluated in the place of a model that cannot be loaded and lived with."""
    module = _frozen(Absent(reason))
    return LoadedModel(name, module, describe(module).digest, None)


def state_difference(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """The first tensor by name that `module` lacks, misses, or has of another shape or kind.

    Floating-point numbers of any precision fit each other, as weights may be stored in another
    one; integers and complex numbers would be cast in silence.
    """
    state = module.state_dict()
    for name in sorted(state.keys() | tensors.keys()):
        if name not in tensors:
            return f"no {name}"
        given = f"{name} of shape {tuple(tensors[name].shape)} and {tensors[name].dtype}"
        if name not in state:
            return f"{given}, which it has not"
        wanted, found = state[name], tensors[name]
        floating = wanted.is_floating_point() and found.is_floating_point()
        if wanted.shape != found.shape or not (floating or wanted.dtype == found.dtype):
            return f"{given} where it has {tuple(wanted.shape)} and {wanted.dtype}"
    return None


def _unfitting(weights: Path, reason: str) -> UsageError:
    return UsageError(
        f"{weights}: expected weights of the recipe's architecture, got {reason}; train again"
    )


def _verified_bytes(folder: Path, recipe: Recipe) -> tuple[Path, bytes]:
    """The file of a recipe's weights, and what it holds."""
    if recipe.weights is None:
        raise UsageError(
            f"{folder}: expected trained weights, got a recipe without any; "
            f"run `robustness train {folder}`"
        )
    if recipe.weights.source is not None:
        return _given_bytes(entry_name(folder), recipe.weights)
    weights = folder / WEIGHTS_FILE
    try:
        content = read_file(weights)
    except OSError as error:
        raise os_failure(
            error,
            f"weights at {weights}",
            f"restore the file or run `robustness train {weights.parent}`",
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if found != recipe.weights.sha256:
        raise UsageError(
            f"{weights}: expected SHA-256 {recipe.weights.sha256[:12]}…, got {found[:12]}… "
            f"({len(content)} bytes, truncated or replaced); restore the file or train again"
        )
    return weights, content


def _given_bytes(name: str, weights: WeightsConfig) -> tuple[Path, bytes]:
    """Others' weights, from the folder that the environment names."""
    file, got = _given(weights), f"no {WEIGHTS_DIR}"
    if file is not None:
        try:
            content = read_file(file)
        except OSError as error:
            got = f"{error.strerror or 'no file'} in {shorten(str(file.parent), 40)}"
        else:
            found = hashlib.sha256(content).hexdigest()
            if found == weights.sha256:
                return file, content
            got = f"one of {found[:12]}…"
    raise UsageError(
        f"{name}: expected {weights.file} (SHA-256 {weights.sha256[:12]}…) in the folder that "
        f"{WEIGHTS_DIR} names, got {got}; it is not included, its source is {weights.source} "
        f"({weights.licence}); see CONTRIBUTING.md"
    )


def _load_factory(name: str) -> LoadedModel:
    # A console script does not search the working folder, where a user's own code lies.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    first, second = _frozen(_made(name)), _frozen(_made(name))
    structure = describe(first)
    difference = structure.difference(describe(second))
    if difference is not None:
        raise UsageError(
            f"expected {name} to give the same model at every call, got another at the second "
            f"({difference[:80]} differs); set its seed, or load its weights from a file"
        )
    return LoadedModel(name, first, structure.digest, None)


def _made(name: str) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module_name), attribute)
        module = factory()
    except BaseException as error:  # SystemExit too: it is a user's code that runs
        if is_interruption(error) or is_exhausted(error):
            raise
        reason = " ".join(in_words(error).split())
        raise UsageError(
            f"expected a factory package.module:callable, got {name!r}, which raised {reason}; "
            "check the name and that it can be called without arguments"
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"expected {name} to return a torch.nn.Module, got {type(module).__name__}; "
            "return the model itself"
        )
    return module


def _frozen(module: nn.Module) -> nn.Module:
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
