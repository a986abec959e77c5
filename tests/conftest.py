"""What all tests share: one thread, repeatable properties, recipes and code of users."""

import os
import sys
from collections.abc import Callable, Generator, Iterator
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
torch.set_num_threads(1)

TINY_RECIPE = """
description = "A recipe small enough to train within a test"

[data]
name = "digits"
shape = [1, 8, 8]
classes = 10

[model]
kind = "neural-ode"
encoder = { kind = "contractive-flow", steps = 1, hidden = 8 }
field = { kind = "target-seeking", gain = 10.0, coupling = 1.0 }
solver = { kind = "fixed", method = "euler", steps = 4, horizon = 1.0 }

[training]
loss = { kind = "certified-lyapunov", eps = 0.1, temperature = 0.1 }
epochs = 3
batch_size = 256
learning_rate = 3e-3
averaging = 0.9
augmentation = { rotate = 5.0, shift = 0.3 }
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lines are counted in all tests but the slow ones, which would take half as long again."""
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker("no_cover")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Shapes are checked in all tests but the slow ones, which would take twice their time.

    Nor are lines counted in the processes that a slow test starts.
    """
    if item.get_closest_marker("slow") is None:
        return (yield)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
            patch.setattr(spawn, "get_preparation_data", _uncounted(spawn.get_preparation_data))
            return (yield)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _uncounted(prepare: Callable[[str], dict[str, Any]]) -> Callable[[str], dict[str, Any]]:
    """Leave out what has coverage started in a process of multiprocessing."""

    def uncounted(name: str) -> dict[str, Any]:
        return {key: value for key, value in prepare(name).items() if key != "stowaway"}

    return uncounted


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU are run where torch sees one."""
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")


@pytest.fixture(autouse=True)
def denormals_as_found() -> Iterator[None]:
    """What a test leaves flushed is flushed in those after it, in whatever order they come."""
    # Not above: what is imported before pytest is configured has no shapes checked.
    from robustness.numerics.reproducible import flushes_denormals

    yield
    left = flushes_denormals()
    torch.set_flush_denormal(False)
    assert not left, "use reproducible_arithmetic, which leaves them as they were"


@pytest.fixture
def recipe_folder(tmp_path: Path) -> Path:
    """A folder with a recipe that trains in a moment, and without weights."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "recipe.toml").write_text(TINY_RECIPE, encoding="utf-8")
    return folder


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a user's module into the working folder; gives the name it can be imported by."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: list[str] = []

    def write(source: str) -> str:
        name = f"users_code_{len(names)}_{os.getpid()}"
        names.append(name)
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        return name

    yield write
    for name in names:
        sys.modules.pop(name, None)
