"""Names stand for what registers itself, in this package and in installed ones."""

import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from robustness import registry
from robustness.data import DATASETS, DataSet, ImageSet, load_images
from robustness.errors import UsageError
from robustness.registry import Registry, load_plugin


@dataclass(frozen=True)
class Tool:
    name: str


def tools(*names: str) -> Registry[Tool]:
    found: Registry[Tool] = Registry("a tool", "robustness.tests.tools")
    for name in names:
        found.register(Tool(name))
    return found


def test_things_keep_the_order_in_which_they_were_registered() -> None:
    assert list(tools("saw", "axe", "file")) == ["saw", "axe", "file"]


def test_a_name_is_taken_once() -> None:
    some = tools("saw")
    with pytest.raises(UsageError, match="expected a tool of a new name, got 'saw' a second time"):
        some.register(Tool("saw"))


def test_a_misspelt_name_is_met_with_the_nearest_one_and_all_there_are() -> None:
    with pytest.raises(UsageError) as refused:
        tools("saw", "hammer").require("hamer", " or a path")
    expected = "expected a tool, one of saw, hammer or a path, got 'hamer'; did you mean hammer?"
    assert str(refused.value) == expected


def test_installed_packages_are_imported_when_the_first_name_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some, imported = tools("saw"), []
    point = EntryPoint("drill", "shed:drill", "robustness.tests.tools")

    def installed(group: str) -> list[EntryPoint]:
        return [point] if group == point.group else []

    def plugin(module: str) -> None:
        imported.append(module)
        assert "saw" in some  # it may ask for what is there
        some.register(Tool("drill"))

    monkeypatch.setattr(registry, "entry_points", installed)
    monkeypatch.setattr(registry.importlib, "import_module", plugin)
    assert list(some) == ["saw", "drill"]
    assert list(some) == ["saw", "drill"]
    assert imported == ["shed"]


@pytest.mark.parametrize("content", ["1 / 0", "import nothing_of_this_name", "raise SystemExit"])
def test_a_plugin_that_cannot_be_imported_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("broken_plugin.py").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"expected a plugin, .* got 'broken_plugin'") as refused:
        load_plugin("broken_plugin")
    assert "\n" not in str(refused.value)


def test_a_data_set_of_ones_own_is_read_by_its_name() -> None:
    def negative(split: str, data_dir: Path | None) -> ImageSet:
        digits = load_images("digits", split)
        return ImageSet("negative", split, 1 - digits.images, digits.labels, 10)

    DATASETS.register(DataSet("negative", negative, embedded=True))
    try:
        assert load_images("negative").images.mean() > 0.5
    finally:
        DATASETS.unregister("negative")
    with pytest.raises(UsageError, match="expected a data set"):
        load_images("negative")
