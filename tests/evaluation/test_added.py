"""Models that are added to a suite: images that fool the others are tried on them, not theirs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from robustness import api
from robustness.attacks import Stage, Status, default_stages, worst_case
from robustness.attacks.transfer import Transfer
from robustness.attacks.views import View
from robustness.cli import app
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.evaluation.suite import Suite, load_suite
from robustness.evaluation.worst_case import WorstCase
from robustness.reporting.compare import obstacles
from robustness.results.leaderboard import Leaderboard, read_leaderboard
from robustness.threat import Norm, ThreatModel

SUITE = {
    "name": "added",
    "data": "digits",
    "samples": 12,
    "models": ["digits/resnet", "digits/node"],
    "decay": False,
    "flow": False,
    "threats": [{"norm": "Linf", "eps": [0.05]}],
    "attacks": [{"kind": "worst-case"}],
}


class Stair(nn.Module):
    """The linear model that is fooled as `Plain` is, with gradients that are all zero."""

    def __init__(self, plain: nn.Module) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.plain(images) * 50).round()


def plain() -> nn.Module:
    data = load_images("digits", "train", None)
    means = torch.stack([data.images[data.labels == k].mean(dim=0).flatten() for k in range(10)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval().requires_grad_(False)
    model[1].weight.copy_(means)
    model[1].bias.copy_(-means.pow(2).sum(dim=1) / 2)
    return model


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worst case of one short stage and what transfers."""

    def stages(self: WorstCase, model: Any, threat: Any, sources: Any) -> list[Stage]:
        deployed = View("deployed", model, faithful=True)
        transfers = [Stage(Transfer(name, source), deployed) for name, source in sources.items()]
        return [*default_stages(model, threat, "quick")[:1], *transfers]

    monkeypatch.setattr(WorstCase, "stages", stages)


def run(out: Path, **changes: Any) -> tuple[Leaderboard, Counter[str]]:
    """The board, and how many units of each model were computed for it."""
    log = out.parent / "log.jsonl"
    log.unlink(missing_ok=True)
    add = changes.pop("add", None)
    suite = Suite.model_validate(SUITE | changes)
    board = api.evaluate(suite, add=add, out=out, workers=1, log_json=log)
    events = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return board, Counter(event["model"] for event in events if event["event"] == "unit")


def of(board: Leaderboard, name: str) -> dict[str, Any]:
    (entry,) = [entry for entry in board.models if entry.name == name]
    return entry.model_dump()


@pytest.mark.slow
def test_what_is_stored_of_the_others_stays_and_theirs_is_tried_on_it(tmp_path: Path) -> None:
    out, third, fourth = tmp_path / "report", "digits/lyanet-certified", "digits/lyanet"
    before, computed = run(out)
    assert set(computed) == {"digits/resnet", "digits/node"}
    after, computed = run(out, add=[third])
    assert set(computed) == {third}
    for name in ("digits/resnet", "digits/node"):
        assert of(after, name) == of(before, name)
        assert "transfer(digits/lyanet-certified)" not in str(of(after, name))
    tried = of(after, third)["attacks"][0]["version"]
    assert "transfer(digits/resnet)@deployed, transfer(digits/node)@deployed" in tried
    assert after.suite.settings["added"] == [third]
    assert "added" not in before.suite.settings
    assert not obstacles(before.suite, after.suite)  # a gate compares those that both have
    # One more leaves those that were added before, too; in a suite's file it is the same.
    last, computed = run(out, added=[third], add=[fourth])
    assert set(computed) == {fourth}
    assert of(last, third) == of(after, third)
    assert last.suite.settings["models"] == [*SUITE["models"], third, fourth]
    # Among the models themselves its images are tried on all, which are attacked anew.
    _, computed = run(out, models=[*SUITE["models"], third])
    assert set(computed) == {"digits/resnet", "digits/node"}
    # And what is not asked for any more is no longer in the report.
    again, computed = run(out)
    assert not computed
    assert of(again, "digits/node") == of(before, "digits/node")


def test_a_model_without_gradients_that_is_added_is_broken_by_what_breaks_the_others(
    tmp_path: Path,
) -> None:
    linear = plain()
    models = {"models": ["digits/resnet"], "threats": [{"norm": "Linf", "eps": [0.3]}]}
    suite = Suite.model_validate(SUITE | models)
    board = api.evaluate(suite, models=[linear], add=[Stair(linear)], out=tmp_path / "out")
    first, added = board.models
    assert added.name == "Stair"
    assert added.attacks[0].robust.count == first.attacks[0].robust.count == 0
    assert added.attacks[0].found_by.get("transfer(Sequential)@deployed", 0) > 0
    # By itself it stands: nothing climbs a stair.
    data, threat = load_images("digits", "test", None), ThreatModel(Norm.LINF, 0.3)
    images, labels = data.images[:12], data.labels[:12]
    stair = Stair(linear)
    alone = worst_case(
        stair, images, labels, threat, default_stages(stair, threat, "quick")[:1], torch.zeros(12)
    )
    assert sum(outcome.status is Status.ROBUST for outcome in alone) > 6


def test_stars_leave_out_what_is_added() -> None:
    star = Suite.model_validate(SUITE | {"models": ["digits/*"], "added": ["digits/node"]}).named()
    assert star.models[-1] == "digits/node"
    assert star.models.count("digits/node") == 1
    assert star.named() == star
    assert load_suite("digits").named().added == []


def test_models_in_place_of_the_suites_are_in_place_of_what_is_added_too(tmp_path: Path) -> None:
    few = {"attacks": [{"kind": "fgsm"}], "samples": 2, "added": ["digits/node"]}
    suite = Suite.model_validate(SUITE | few | {"models": ["digits/resnet"]})
    for add, names in (None, []), (["digits/lyanet"], ["digits/lyanet"]):
        out = tmp_path / str(len(names))
        board = api.evaluate(suite, models=["digits/resnet"], add=add, out=out, workers=1)
        assert [entry.name for entry in board.models] == ["digits/resnet", *names]


def test_the_same_model_is_not_added_twice() -> None:
    """Nor one that is there, whose images would then be tried on no other any more."""
    for suite in ("digits-quick", Suite.model_validate(SUITE | {"models": ["digits/*"]})):
        with pytest.raises(UsageError, match="besides the suite's to add, got digits/node, which"):
            api.evaluate(suite, add=["digits/node"])
    with pytest.raises(UsageError, match="added: expected distinct models, got digits/node twice"):
        api.evaluate("digits-quick", add=["digits/node", "digits/node"])


@pytest.mark.slow
def test_the_command_adds_to_a_report_and_a_name_that_nothing_has_leaves_it(tmp_path: Path) -> None:
    suite, out = tmp_path / "suite.toml", tmp_path / "report"
    suite.write_text(
        'name = "few"\ndata = "digits"\nsamples = 4\nmodels = ["digits/resnet"]\n'
        '[[threats]]\nnorm = "Linf"\neps = [0.1]\n[[attacks]]\nkind = "fgsm"\n',
        encoding="utf-8",
    )
    line = ["evaluate", str(suite), "--out", str(out), "--workers", "1", "--quiet"]
    assert CliRunner().invoke(app, line).exit_code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    failed = CliRunner().invoke(app, [*line, "--add", "digits/nodes"])
    assert isinstance(failed.exception, UsageError)
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    added = CliRunner().invoke(app, [*line, "--add", "digits/node, digits/lyanet"])
    assert added.exit_code == 0, added.output
    names = [entry.name for entry in read_leaderboard(out).models]
    assert sorted(names) == ["digits/lyanet", "digits/node", "digits/resnet"]
