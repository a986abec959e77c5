"""What the project promises of its own upkeep."""

import ast
import os
import re
from configparser import ConfigParser
from multiprocessing import spawn
from pathlib import Path

import jaxtyping
import pytest
import torch

from robustness.certificates.flows.constants import margins_of_scores

ROOT = Path(__file__).parent.parent


def test_hooks_run_environments_of_tox_and_no_other_command() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    entries = re.findall(r"entry: (.*)", hooks)
    assert entries
    for entry in entries:
        command, environment = entry.split(" -e ")
        assert command == "tox"
        assert tox.has_section(f"testenv:{environment}")


def test_coverage_below_ninety_per_cent_fails_the_tests_of_tox() -> None:
    tox = ConfigParser()
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    assert "--cov" in tox["testenv:tests"]["commands"]
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r"^fail_under = 90$", settings, re.MULTILINE)


def test_lines_are_counted_in_the_tests_that_are_not_slow(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        slow, left_out = (item.get_closest_marker(name) for name in ("slow", "no_cover"))
        assert (slow is None) == (left_out is None), item.nodeid


@pytest.mark.slow
def test_no_lines_are_counted_in_a_slow_test(request: pytest.FixtureRequest) -> None:
    cov = request.config.pluginmanager.get_plugin("_cov")
    assert cov is None or cov.cov_controller is None or not cov.cov_controller.started
    # Nor in the processes that it starts.
    assert "COVERAGE_PROCESS_CONFIG" not in os.environ
    assert "stowaway" not in spawn.get_preparation_data("any")


def test_shapes_are_checked_in_every_module_that_names_any(request: pytest.FixtureRequest) -> None:
    hooked = request.config.getoption("--jaxtyping-packages").split(",")[:-1]
    for file in (ROOT / "robustness").rglob("*.py"):
        if "jaxtyping" in file.read_text(encoding="utf-8"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            assert any(f"{module}.".startswith(f"{package}.") for package in hooked), module
    one_axis = torch.zeros(3)
    with pytest.raises(jaxtyping.TypeCheckError):
        margins_of_scores(one_axis, torch.tensor([0, 1, 0]))


def test_every_test_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 5
    for file, function in named:
        source = (ROOT / file).read_text(encoding="utf-8")
        assert not function or f"\ndef {function}(" in source, f"{file}::{function}"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["robustness", "tests", "benchmarks"])
def test_no_module_imports_the_private_names_of_another(folder: str) -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {name.name}"
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robustness")
        for name in node.names
        if name.name.startswith("_")
    ]
    assert not found
