"""A user's model may do anything: it costs that model its samples, and others nothing."""

import os
from pathlib import Path
from typing import Any

import pytest

from robustness import api
from robustness.errors import OperationalError, UsageError
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import ModelEntry

SUITE = {
    "name": "users",
    "data": "digits",
    "samples": 40,
    "threats": [{"norm": "Linf", "eps": [0.05]}],
    "attacks": [{"kind": "fgsm"}],
}
REASONS = {
    "leaves": "SystemExit: 0",
    "raises": "ValueError: no more \\x1b[31m",
    "strange": "Strange: odd",
    "memory": "out of memory: none left",
    "vast": "out of memory: ",
    "mute": "Speechless",
}
CODE = """
import os
import sys
import threading
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


def thread():
    threading.Thread(target=lambda: time.sleep(10**6)).start()
    return Model(lambda logits, calls: logits)


def seen():
    with open("process", "w") as file:
        file.write(str(os.getpid()))
    return Model(lambda logits, calls: logits)


def interrupt():
    raise KeyboardInterrupt


def end():
    os._exit(0)


def hang():
    time.sleep(10**6)


kept = []
grows = then(lambda: kept.append(torch.ones(2**26)))
ends = then(end)
hangs = then(hang)
interrupts = then(interrupt)
unloadable = lambda: os._exit(1)
unplanned = lambda: Model(lambda logits, calls: os.kill(os.getpid(), 11))
endless = lambda: time.sleep(10**6)
leaves = late(SystemExit(0))
raises = late(ValueError("no\\nmore \\x1b[31m"))
strange = late(type("Strange", (BaseException,), {})("odd"))
memory = late(MemoryError())


class Speechless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


mute = late(Speechless())
vast = lambda: Model(lambda logits, calls: logits if calls < 40 else torch.empty(10**14))
nans = lambda: Model(lambda logits, calls: logits * float("nan"))
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
    return api.evaluate(suite, out=tmp_path / "out", in_process=True).models


@pytest.mark.parametrize("fault", ["leaves", "raises", "strange", "memory", "vast", "mute"])
def test_what_a_users_model_raises_costs_it_its_samples_and_no_other_model(
    fault: str, users: str, tmp_path: Path
) -> None:
    failing, alone = entries(tmp_path, f"{users}:{fault}", "digits/resnet")
    assert (failing.clean.total, failing.attacks[0].subset) == (40, 40)
    assert failing.attacks[0].errors == 40
    assert sum(failing.attacks[0].reasons.values()) == 40
    (reason,) = failing.failures
    assert REASONS[fault] in reason
    assert alone.attacks[0].reasons == alone.failures == {}
    assert failing.attacks[0].robust.count == 0
    assert failing.brackets[0].attacked.count == failing.brackets[0].certified.count == 0
    assert alone.clean.count > 30
    assert alone.errors == 0


def test_logits_that_are_not_finite_are_data_and_no_failure_of_a_command(users: str) -> None:
    row = api.attack(
        f"{users}:nans", "Linf", 0.1, "fgsm", samples=3, data="digits", in_process=True
    )
    assert (row.errors, row.robust.count, row.reasons) == (
        3,
        0,
        {"non-finite logits inside the ball": 3},
    )


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
def test_a_model_that_ends_or_hangs_its_process_costs_its_own_samples_alone(
    users: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {
        f"{users}:ends": "its process ended with exit code 0, twice",
        f"{users}:hangs": "not done within 2 s, twice",
        f"{users}:interrupts": "KeyboardInterrupt:",
        f"{users}:unloadable": "its process ended with exit code 1",
    }
    names = [*reasons, f"{users}:thread", "digits/resnet"]
    suite = Suite.model_validate(SUITE | {"models": names, "samples": 16, "attacks": []})
    board = api.evaluate(suite, out=tmp_path / "out", workers=1, unit_timeout=2.0)
    assert "could not be loaded" in capsys.readouterr().err
    *failing, thread, alone = board.models
    for entry in failing:
        assert (entry.clean.count, entry.clean.total, entry.errors) == (0, 16, 16)
        assert entry.failures == {reasons[entry.name]: 16}
    assert thread.errors == alone.errors == 0
    assert thread.failures == {}
    assert alone.clean.count > 12
    # The same with more workers, and in a store that has it nothing is tried again.
    fewer = suite.model_copy(update={"models": [f"{users}:ends", "digits/resnet"]})
    more = api.evaluate(fewer, out=tmp_path / "more", workers=2, unit_timeout=2.0)
    again = api.evaluate(fewer, out=tmp_path / "out", workers=2, unit_timeout=2.0)
    assert more.comparable() == again.comparable()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "reason", "limits"),
    [
        ("unplanned", OperationalError, "got: its process was ended by SIGSEGV", {}),
        ("endless", OperationalError, "got: not done within 2 s", {"unit_timeout": 2.0}),
        ("grows", OperationalError, "out of memory", {"memory_limit": "1GiB"}),
        ("leaves", UsageError, "on each of 20 images, most often: SystemExit: 0", {}),
    ],
)
def test_a_command_on_one_model_says_how_it_ended_its_process(
    fault: str, error: type[Exception], reason: str, limits: dict[str, Any], users: str
) -> None:
    with pytest.raises(error, match=reason):
        api.certify(f"{users}:{fault}", samples=20, data="digits", workers=1, **limits)


@pytest.mark.slow
def test_no_code_of_a_users_runs_in_the_process_of_a_command(users: str) -> None:
    found = api.inspect(f"{users}:seen", data="digits")
    assert found.certificates
    assert Path("process").read_text() != str(os.getpid())
    api.inspect(f"{users}:seen", data="digits", in_process=True)
    assert Path("process").read_text() == str(os.getpid())


@pytest.mark.parametrize(
    "limits",
    [
        {"in_process": True, "unit_timeout": 3.0},
        {"in_process": True, "memory_limit": "8GiB"},
        {"in_process": True, "workers": 2},
        {"memory_limit": "much"},
        {"memory_limit": "8"},
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        api.certify("digits/resnet", **limits)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_limit_that_is_none_is_refused(seconds: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a unit timeout of"):
        api.evaluate(
            Suite.model_validate(SUITE | {"models": ["digits/resnet"]}),
            out=tmp_path,
            unit_timeout=seconds,
        )
