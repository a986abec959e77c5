"""The regression gate, end to end: a weakened model fails it, an unchanged one passes."""

import hashlib
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from robustness import cli
from robustness.api import evaluate
from robustness.evaluation.suite import Suite
from robustness.zoo import find_entry

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("short_audit")]


def gate(results: Path, baseline: Path) -> int:
    arguments = ["check", str(results), "--baseline", str(baseline)]
    return cli.run(lambda: cli.app(arguments, standalone_mode=False))


def weaken(entry: Path) -> None:
    """Shrink the margins: noise on every weight, with the hash that goes with it."""
    file = entry / "weights.safetensors"
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: tensor + 0.03 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in safetensors.torch.load_file(file).items()
    }
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    safetensors.torch.save_file(weights, file)
    after = hashlib.sha256(file.read_bytes()).hexdigest()
    recipe = entry / "recipe.toml"
    recipe.write_text(recipe.read_text().replace(before, after))


def test_a_weakened_model_fails_the_gate_and_an_unchanged_one_passes(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = tmp_path / "model"
    shutil.copytree(find_entry("digits/lyanet-certified"), entry)

    def leaderboard(name: str, seed: int = 0) -> Path:
        evaluate(suite, models=[str(entry)], samples=80, out=tmp_path / name, workers=1, seed=seed)
        return tmp_path / name / "leaderboard.json"

    baseline, unchanged = leaderboard("baseline"), leaderboard("unchanged")
    assert gate(unchanged, baseline) == 0
    assert gate(leaderboard("other-images", seed=5), baseline) == 2
    weaken(entry)
    capsys.readouterr()
    assert gate(leaderboard("weakened"), baseline) == 1
    assert "certified" in capsys.readouterr().out
    assert gate(unchanged, tmp_path / "weakened") == 0  # getting better is no regression
