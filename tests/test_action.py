"""The composite action: its YAML, and what its script makes of the inputs."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from robustness import cli

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
# Says what it was given, and ends as it is told.
STUB = """#!/bin/sh
printf '%s\\n' "$@" > "$GIVEN"
printf 'REGRESSION x\\n%s\\n' "$SAYS"
exit "$ENDS"
"""


def test_it_is_a_composite_action_of_the_form_that_github_asks_for() -> None:
    assert {"name", "description", "inputs", "outputs", "runs"} <= ACTION.keys()
    assert ACTION["runs"]["using"] == "composite"
    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert {"name", "run", "env"} <= step.keys()
    for said in ACTION["inputs"].values():
        assert said.keys() <= {"description", "required", "default"}
        assert said["description"].endswith(".")
        assert isinstance(said.get("default", ""), str)
    for said in ACTION["outputs"].values():
        assert {"description", "value"} == said.keys()


def test_inputs_are_used_and_are_no_code() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{\{ inputs\.([\w-]+)", text))
    assert used == ACTION["inputs"].keys()
    for step in STEPS.values():
        assert "${{" not in step["run"]
        for name in step["env"]:
            assert f"${name}" in step["run"]


def test_the_options_of_its_script_are_those_of_check() -> None:
    options = set(re.findall(r"add (--[\w-]+)", STEPS["Check"]["run"]))
    check = typer.main.get_command(cli.app).commands["check"]
    known = {word for parameter in check.params for word in parameter.opts}
    assert len(options) == 7
    assert options <= known


def called(tmp_path: Path, says: str = "pass", ends: int = 0, **inputs: str):
    """Run the script with a stub in the place of Python: what it was given, and its outputs."""
    stub = tmp_path / "python"
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    step = STEPS["Check"]
    filled = {
        name: re.sub(
            r"\$\{\{ inputs\.([\w-]+) \}\}",
            lambda found: inputs.get(found[1].replace("-", "_"), ""),
            value,
        )
        for name, value in step["env"].items()
    }
    told = {"GIVEN": "given", "SAYS": says, "ENDS": str(ends), "GITHUB_OUTPUT": "outputs"}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env=os.environ | filled | told | {"PYTHON": str(stub)},
        capture_output=True,
        text=True,
        check=False,
    )
    given = (tmp_path / "given").read_text(encoding="utf-8").splitlines()
    outputs = (tmp_path / "outputs").read_text(encoding="utf-8").splitlines()
    return done, given, dict(line.split("=", 1) for line in outputs)


def test_inputs_become_options_and_empty_ones_do_not(tmp_path: Path) -> None:
    inputs = {"results": "reports/my run", "baseline_rev": "main", "junit": "$(touch hacked).xml"}
    done, given, outputs = called(tmp_path, **inputs)
    options = ["--baseline-rev=main", "--junit=$(touch hacked).xml"]
    assert given == ["-m", "robustness", "check", *options, "--", "reports/my run"]
    assert not (tmp_path / "hacked").exists()
    assert outputs == {"outcome": "pass", "exit-code": "0"}
    assert done.returncode == 0
    assert done.stdout == "REGRESSION x\npass\n"


@pytest.mark.parametrize(
    ("says", "ends", "outcome"),
    [("regression", 1, "regression"), ("cannot tell", 2, "cannot tell"), ("", 3, "")],
)
def test_the_step_ends_as_the_gate_does(tmp_path: Path, says: str, ends: int, outcome: str) -> None:
    done, _, outputs = called(tmp_path, says, ends, results="run")
    assert done.returncode == ends
    assert outputs == {"outcome": outcome, "exit-code": str(ends)}


def test_the_workflows_of_the_documentation_use_inputs_that_there_are() -> None:
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    snippets = [yaml.safe_load(found) for found in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    assert len(snippets) >= 2
    uses = [
        step["with"]
        for snippet in snippets
        for job in snippet.get("jobs", {}).values()
        for step in job["steps"]
        if "robustness" in step.get("uses", "")
    ]
    assert uses
    for given in uses:
        assert given.keys() <= ACTION["inputs"].keys()
        assert "results" in given
