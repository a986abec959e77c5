"""A claims run that stops is continued where it stopped, and gives a whole report."""

from pathlib import Path

import pytest
import torch
from fake_cuda import NAME, fake_cuda
from torch import nn

from robustness.attacks import default_stages
from robustness.claims import run
from robustness.claims.models import MODELS, Budget, Study
from robustness.claims.report import write_claims
from robustness.data import ImageSet
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import FixedStepSolver


class Discrete(nn.Module):
    """Logits without an ODE."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise, self.head = Normalise([0.5], [0.5]), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.normalise(images).flatten(1))


def group_of_stand_ins(
    study: Study, group: tuple[str, ...], seed: int, *rest: object, device: str, **more: object
) -> dict[str, tuple[nn.Module, Budget]]:
    del study, rest, more
    budget = Budget(epochs=10, best_epoch=8, seconds=1.0)
    return {name: (stand_in(name, seed, device), budget) for name in group}


def stand_in(name: str, seed: int, device: str) -> nn.Module:
    torch.manual_seed(seed)
    if name not in ("node", "lyanet"):
        return Discrete().eval().to(device)
    field, solver = TargetSeekingField(3, 4, 2.0, 0.0), FixedStepSolver("euler", 4)
    normalise = Normalise([0.5], [0.5])
    return NeuralODEClassifier(normalise, nn.Flatten(), field, solver, 3).eval().to(device)


def images(name: str, split: str, data_dir: Path | None) -> ImageSet:
    del data_dir
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(60, 1, 2, 2, generator=generator)
    return ImageSet(name, split, pixels, torch.arange(60) % 3, 3)


class StoppedHereError(Exception):
    pass


@pytest.mark.slow
def test_a_run_that_stops_goes_on_without_measuring_a_part_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "trained_group", group_of_stand_ins)
    monkeypatch.setattr(run.protocol, "IMAGES", 6)
    monkeypatch.setattr(run.protocol, "default_stages", lambda m, t: default_stages(m, t, "quick"))
    monkeypatch.setattr(run, "_NFE_IMAGES", 2)
    monkeypatch.setattr(run, "load_images", images)
    calls: list[str] = []

    def ratios(study: Study, seed: int, *_: object) -> dict[str, float]:
        calls.append(f"cost {seed}")
        return {"step: back-propagation": 0.4, "epoch: back-propagation": 0.5}

    attack, stop_at = run.protocol.protocols, [8]

    def attacked(model: nn.Module, chosen: ImageSet, study: Study) -> object:
        calls.append("attack")
        if calls.count("attack") == stop_at[0]:
            raise StoppedHereError
        return attack(model, chosen, study)

    monkeypatch.setattr(run, "step_and_epoch_ratios", ratios)
    monkeypatch.setattr(run.protocol, "protocols", attacked)
    seeds = (1, 2)
    with pytest.raises(StoppedHereError):
        run.measure_claims(tmp_path, None, seeds, quiet=True)
    found = run.measure_claims(tmp_path, None, seeds, quiet=True)
    assert [call for call in calls if call != "attack"] == ["cost 1", "cost 2"]
    assert calls.count("attack") == 2 * len(MODELS) + 1  # the one that stopped, again
    monkeypatch.setattr(run, "trained_group", None)  # complete results need no models
    before = [seed.model_dump() for seed in found]
    assert [s.model_dump() for s in run.measure_claims(tmp_path, None, seeds, quiet=True)] == before
    assert all(file.is_file() for file in write_claims(found, tmp_path))


@pytest.mark.slow
def test_what_was_measured_on_a_device_says_so_and_is_not_taken_for_the_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "trained_group", group_of_stand_ins)
    monkeypatch.setattr(run, "MODELS", ("node", "discrete"))
    monkeypatch.setattr(run, "GROUPS", (("node", "discrete"),))
    monkeypatch.setattr(run.protocol, "IMAGES", 2)
    monkeypatch.setattr(run.protocol, "default_stages", lambda m, t: default_stages(m, t, "quick"))
    monkeypatch.setattr(run, "_NFE_IMAGES", 1)
    monkeypatch.setattr(run, "load_images", images)
    asked: list[str] = []

    def ratios(study: Study, seed: int, _: ImageSet, device: str) -> dict[str, float]:
        asked.append(device)
        return {"step": 0.5}

    monkeypatch.setattr(run, "step_and_epoch_ratios", ratios)

    def evaluations(model: nn.Module, few: ImageSet, tolerance: float) -> float:
        asked.append(str(next(model.parameters()).device.type))
        return 20.0

    monkeypatch.setattr(run, "dopri5_evaluations", evaluations)  # torchdiffeq's own cost of it
    with fake_cuda(monkeypatch):
        there = run.measure_claims(tmp_path, None, (1, 2), quiet=True, device="cuda")
    here = run.measure_claims(tmp_path, None, (1, 2), quiet=True)
    assert asked == ["cuda"] * 6 + ["cpu"] * 6
    assert [seed.device for seed in there] == [f"cuda {NAME}"] * 2
    assert [seed.model_copy(update={"device": "cpu"}) for seed in there] == here
