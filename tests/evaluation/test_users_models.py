"""A user's model may do anything: it costs that model its samples, and others nothing."""

from pathlib import Path

import pytest

from robustness import api
from robustness.errors import UsageError
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import ModelEntry

SUITE = {
    "name": "users",
    "data": "digits",
    "samples": 40,
    "threats": [{"norm": "Linf", "eps": [0.05]}],
    "attacks": [{"kind": "fgsm"}],
}
CODE = """
import os
import sys
import time
import numpy as np
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.calls = 0

    def forward(self, images):
        logits = images.flatten(1)[:, 20:30]
        # What planning asks for is answered.
        self.calls += 1
        return self.fault(logits, self.calls)


def late(error):
    def fault(logits, calls):
        if calls > 40:
            raise error
        return logits
    return lambda: Model(fault)


def then(end):
    return lambda: Model(lambda logits, calls: end() if calls > 20 else logits)


killed = then(lambda: os.kill(os.getpid(), 9))
hangs = then(lambda: time.sleep(1000))
leaves = late(SystemExit(0))
raises = late(ValueError("no\\nmore \\x1b[31m"))
strange = late(type("Strange", (BaseException,), {})("odd"))
memory = late(MemoryError())
vast = lambda: Model(lambda logits, calls: logits if calls < 40 else torch.empty(10**14))
tuples = lambda: Model(lambda logits, calls: (logits, 1))
arrays = lambda: Model(lambda logits, calls: logits.numpy())
nothing = lambda: Model(lambda logits, calls: None)
classes = lambda: Model(lambda logits, calls: logits.argmax(1))
integers = lambda: Model(lambda logits, calls: logits.long())
flat = lambda: Model(lambda logits, calls: logits[:, 0])
few = lambda: Model(lambda logits, calls: logits[:1])
narrow = lambda: Model(lambda logits, calls: logits[:, :9])
exits = lambda: Model(lambda logits, calls: sys.exit(0))
"""


@pytest.fixture(autouse=True)
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of a user's in the working folder."""
    name = f"users_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def quiet(leaderboard: object, folder: Path) -> None:
        return

    monkeypatch.setattr(api, "write_report", quiet)
    return name


def entries(tmp_path: Path, *models: str) -> list[ModelEntry]:
    suite = Suite.model_validate(SUITE | {"models": list(models)})
    return api.evaluate(suite, out=tmp_path / "out", workers=1).models


@pytest.mark.parametrize("fault", ["leaves", "raises", "strange", "memory", "vast"])
def test_what_a_users_model_raises_costs_it_its_samples_and_no_other_model(
    fault: str, users: str, tmp_path: Path
) -> None:
    failing, alone = entries(tmp_path, f"{users}:{fault}", "digits/resnet")
    assert (failing.clean.total, failing.attacks[0].subset) == (40, 40)
    assert failing.attacks[0].errors == 40
    assert failing.attacks[0].robust.count == 0
    assert failing.brackets[0].attacked.count == failing.brackets[0].certified.count == 0
    assert alone.clean.count > 30
    assert alone.errors == 0


@pytest.mark.parametrize(
    ("fault", "got", "remedy"),
    [
        ("tuples", "a tuple", "return outputs[0]"),
        ("arrays", "a numpy array", "compute in torch"),
        ("nothing", "a NoneType", "end forward with `return logits`"),
        ("classes", "a tensor of torch.int64", "return logits, not classes"),
        ("integers", "a tensor of torch.int64", "return logits, not classes"),
        ("flat", "(1,)", "a row for each image"),
        ("few", "(1, 10)", "a row for each image"),
        ("narrow", "(1, 9)", "number of classes"),
        ("exits", "SystemExit: 0", "check that it fits"),
    ],
)
def test_wrong_outputs_are_found_at_planning_with_the_line_that_mends_them(
    fault: str, got: str, remedy: str, users: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        entries(tmp_path, "digits/resnet", f"{users}:{fault}")
    message = str(caught.value)
    assert got in message
    assert remedy in message
    assert not (tmp_path / "out" / "results.sqlite").exists()


@pytest.mark.slow
def test_a_model_that_kills_its_process_or_hangs_costs_its_own_samples_alone(
    users: str, tmp_path: Path
) -> None:
    names = [f"{users}:killed", f"{users}:hangs", "digits/resnet"]
    suite = Suite.model_validate(SUITE | {"models": names, "samples": 16, "attacks": []})
    board = api.evaluate(suite, out=tmp_path / "out", workers=2, unit_timeout=3.0)
    killed, hanging, alone = board.models
    for entry in (killed, hanging):
        assert (entry.clean.count, entry.clean.total, entry.errors) == (0, 16, 16)
    assert alone.errors == 0
    assert alone.clean.count > 12
    # Found in the store by the next run: nothing is tried again.
    again = api.evaluate(suite, out=tmp_path / "out", workers=2, unit_timeout=3.0)
    assert again.comparable() == board.comparable()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a unit timeout of"):
        api.evaluate(
            Suite.model_validate(SUITE | {"models": ["digits/resnet"]}),
            out=tmp_path,
            unit_timeout=seconds,
        )
