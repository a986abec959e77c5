"""Names stand for what registers itself, in this package and in installed ones."""

import hashlib
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from robustness import registry
from robustness.data import DATASETS, DataSet, ImageSet, load_images
from robustness.errors import UsageError
from robustness.registry import Registry, load_plugin, plugins, release_of


@dataclass(frozen=True)
class Tool:
    name: str


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes of later tests would import the plugins of these."""
    monkeypatch.setattr(registry, "_loaded", {})
    monkeypatch.setattr(registry, "_registries", [])


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
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
    path = list(sys.path)
    assert list(some) == ["saw", "drill"]
    assert list(some) == ["saw", "drill"]
    assert sys.path == path  # what lies in the working folder is not taken for what is installed
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


def test_an_entry_point_that_fails_is_named_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    some = tools("saw")
    point = EntryPoint("drill", "shed_that_is_not_there:drill", "robustness.tests.tools")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group else [])
    for _ in range(2):
        with pytest.raises(UsageError, match=r"entry point 'drill' of robustness\.tests\.tools"):
            some.require("saw")


def test_the_release_of_a_module_is_that_of_its_distribution_or_a_digest_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert release_of("robustness.attacks.views") == ""
    assert release_of("numpy.linalg") == f"numpy {version('numpy')}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("own_tools.py").write_text("a = 1\n", encoding="utf-8")
    load_plugin("own_tools")
    digest = hashlib.sha256(b"a = 1\n").hexdigest()[:12]
    assert plugins()["own_tools"] == f"own_tools of SHA-256 {digest}"


def test_a_thing_takes_anothers_place_for_a_while() -> None:
    some, other = tools("saw", "axe"), Tool("saw")
    before = some["saw"]
    with some.having(other), some.having(Tool("file")):
        assert some["saw"] is other
        assert list(some) == ["saw", "axe", "file"]
    assert some["saw"] is before
    assert list(some) == ["saw", "axe"]


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
