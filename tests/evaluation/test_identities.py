"""A stored result belongs to the function that was measured, in every process and throughout."""

import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from robustness.api import certify, evaluate, merge
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.evaluation.executors import processes as leash
from robustness.evaluation.planning import make_plan
from robustness.evaluation.suite import Suite
from robustness.reporting.html import model_page
from robustness.reporting.markdown import markdown_text
from robustness.results.leaderboard import STORE_FILE, Leaderboard
from robustness.zoo import load_model, zoo_folder

# A model whose scale comes from where `scale()` finds it: nothing of it is in the state.
USERS_MODEL = """
import os
import torch
from torch import nn

SCALE = 1.0
CALLS = 0

def constant():
    return 1.0

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images):
        global CALLS
        CALLS += 1
        return self.body(images) * {scale}
"""


# Whether this is the process in which the run is planned.
FIRST_PROCESS = """
import pathlib
FIRST = not pathlib.Path("planned").exists()
pathlib.Path("planned").touch()
"""


def suite(model: str, **changes: object) -> Suite:
    content = {
        "name": "users",
        "data": "digits",
        "samples": 32,
        "models": [model],
        "certificates": [],
        "decay": False,
        "threats": [{"norm": "Linf", "eps": [0.1]}],
        "attacks": [{"kind": "fgsm"}],
    }
    return Suite.model_validate(content | changes)


def run(asked: Suite, out: Path, workers: int = 1) -> Leaderboard:
    return evaluate(asked, out=out, workers=workers, in_process=workers == 1)


def stored(out: Path) -> int:
    database = sqlite3.connect(out / STORE_FILE)
    (count,) = database.execute("SELECT count(*) FROM shards").fetchone()
    database.close()
    return int(count)


@pytest.mark.parametrize("where", ["environment", "global", "constant"])
def test_a_store_gives_nothing_of_one_function_to_another_of_the_same_weights(
    where: str,
    user_code: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale = {"environment": "float(os.environ['SCALE'])", "global": "SCALE"}
    monkeypatch.setenv("SCALE", "1.0")
    name = user_code(USERS_MODEL.replace("{scale}", scale.get(where, "constant()")))
    asked = suite(f"{name}:Net")
    first = run(asked, tmp_path)
    assert stored(tmp_path) == 2
    run(asked, tmp_path)
    assert stored(tmp_path) == 2
    module = __import__(name)
    if where == "environment":
        monkeypatch.setenv("SCALE", "-1.0")
    elif where == "global":
        monkeypatch.setattr(module, "SCALE", -1.0)
    else:
        monkeypatch.setattr(module.constant, "__code__", (lambda: -1.0).__code__)
    second = run(asked, tmp_path)
    assert stored(tmp_path) == 4
    assert second.models[0].clean != first.models[0].clean


def fingerprint_and_keys(asked: str) -> list[str]:
    parsed = Suite.model_validate_json(asked)
    images = load_images("digits", "test", None)
    plan = make_plan(parsed, images, [load_model(parsed.models[0])])
    assert plan.models[0].fingerprint is not None
    keys = [plan.key(job, shard) for job in plan.jobs for shard in plan.shards(job)]
    return [plan.models[0].fingerprint, *keys]


@pytest.mark.slow
def test_keys_of_a_zoo_entry_are_those_of_every_processor() -> None:
    asked = suite("digits/node", samples=64).model_dump_json()
    here, *here_keys = fingerprint_and_keys(asked)
    # The kernels for processors without vector instructions sum in another order.
    plain = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    program = "import sys; from tests.evaluation.test_identities import fingerprint_and_keys as f"
    there = subprocess.run(
        [sys.executable, "-c", f"{program}; print(*f(sys.argv[1]))", asked],
        env=os.environ | plain | {"ONEDNN_MAX_CPU_ISA": "SSE41"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    if there[0] == here:
        pytest.skip("this processor has no vector instructions")
    assert there[1:] == here_keys
    assert len(set(here_keys)) == 6  # predictions, those without the flow and FGSM, of two shards


def test_keys_of_a_users_model_change_with_its_logits_and_those_of_an_entry_do_not(
    user_code: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = "\n\ndef entry():\n    from robustness.zoo import load_model\n"
    factory += "    return load_model('digits/resnet').module\n"
    name = user_code(USERS_MODEL.replace("{scale}", "constant()") + factory)
    images = load_images("digits", "test", None)

    def keys() -> list[str]:
        models = [load_model(n) for n in ("digits/resnet", f"{name}:Net", f"{name}:entry")]
        plan = make_plan(suite("digits/resnet"), images, models)
        return [plan.key(job, [0, 1]) for job in plan.jobs]

    before = keys()
    monkeypatch.setattr("robustness.evaluation.plan.fingerprint", lambda *_: "other bits")
    after = keys()
    # Two jobs for each of the three; what a factory gives is a user's, whatever its classes.
    assert [b == a for b, a in zip(before, after, strict=True)] == [True] * 2 + [False] * 4
    monkeypatch.setattr("robustness.nets.VERSION", 0)
    assert [b == a for b, a in zip(after, keys(), strict=True)] == [False] * 2 + [True] * 4


def test_what_was_computed_with_other_bits_is_taken_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for bits in ("those of one", "those of another"):
        for there in ("plan", "runner"):
            place = f"robustness.evaluation.{there}.fingerprint"
            monkeypatch.setattr(place, lambda *_, bits=bits: bits)
        evaluate(suite("digits/resnet"), out=tmp_path, workers=1)
        said = "digits/resnet: what is stored was computed where"
        assert (said in capfd.readouterr().err) is (bits == "those of another")
        assert stored(tmp_path) == 2
    with pytest.raises(UsageError, match="starts with other logits of digits/resnet"):
        merge([tmp_path], tmp_path / "merged")


@pytest.mark.parametrize("random", ["(CALLS % 3)", "torch.rand(())"])
def test_a_model_whose_logits_change_between_calls_is_named_and_no_result_of_it_used_again(
    random: str, user_code: Callable[[str], str], tmp_path: Path
) -> None:
    name = user_code(USERS_MODEL.replace("{scale}", random))
    board = run(suite(f"{name}:Net"), tmp_path)
    said = "its logits, which change between calls of the same image"
    assert board.models[0].unidentified == [said]
    for page in (markdown_text(board), model_page(board, board.models[0])):
        assert f"Not identifiable: {said}." in page
    run(suite(f"{name}:Net"), tmp_path)
    assert stored(tmp_path) == 4


def test_what_cannot_be_told_of_a_model_is_in_the_report(
    user_code: Callable[[str], str], tmp_path: Path
) -> None:
    kept = "super().__init__()\n        self.log = iter([])"
    source = USERS_MODEL.replace("{scale}", "SCALE").replace("super().__init__()", kept)
    board = run(suite(f"{user_code(source)}:Net"), tmp_path)
    assert board.models[0].unidentified == ["the attribute log (builtins.list_iterator)"]
    assert "list\\_iterator" in markdown_text(board)
    again = run(suite("digits/resnet"), tmp_path)
    assert again.models[0].unidentified == []
    pages = markdown_text(again) + model_page(again, again.models[0])
    assert "Not identifiable" not in pages


def test_a_model_that_becomes_another_in_the_middle_ends_the_run_and_stores_nothing(
    user_code: Callable[[str], str], tmp_path: Path
) -> None:
    # The plan asks 11 times; the change falls into the first shard.
    name = user_code(USERS_MODEL.replace("{scale}", "(1.0 if CALLS < 20 else 0.5)"))
    with pytest.raises(UsageError, match="to stay the same function"):
        run(suite(f"{name}:Net"), tmp_path)
    assert stored(tmp_path) == 0


@pytest.mark.slow
def test_a_model_that_workers_find_to_be_another_ends_the_run_and_stores_nothing(
    user_code: Callable[[str], str], tmp_path: Path
) -> None:
    source = FIRST_PROCESS + USERS_MODEL.replace("{scale}", "(1.0 if FIRST else 0.5)")
    name = f"{user_code(source)}:Net"
    with pytest.raises(UsageError, match=r"changed between.*what it computes differs"):
        run(suite(name), tmp_path, workers=2)
    assert stored(tmp_path) == 0


@pytest.mark.slow
def test_a_checkpoint_rewritten_before_the_workers_load_it_ends_the_run(
    user_code: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
        import safetensors.torch
        from robustness.zoo import load_model

        def entry():
            module = load_model("digits/lyanet-certified").module
            module.load_state_dict(safetensors.torch.load_file("weights.safetensors"))
            return module
    """
    weights = tmp_path / "weights.safetensors"
    shutil.copy(zoo_folder() / "digits/lyanet-certified/weights.safetensors", weights)
    name = f"{user_code(textwrap.dedent(source))}:entry"

    pools: list[ProcessPoolExecutor] = []

    def rewrite(*arguments: object, **settings: object) -> ProcessPoolExecutor:
        if pools:  # the first is for the plan
            tensors = load_model("digits/lyanet-certified").module.state_dict()
            tensors["field.head.bias"] = torch.arange(10.0)
            weights.write_bytes(safetensors.torch.save(tensors))
        pools.append(ProcessPoolExecutor(*arguments, **settings))  # type: ignore[call-overload]
        return pools[-1]

    monkeypatch.setattr(leash, "ProcessPoolExecutor", rewrite)
    with pytest.raises(UsageError, match=r"changed between.*\(field.head.bias differs\)"):
        certify(name, "L2", samples=64, data="digits", workers=2)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_again_is_a_line_and_not_a_dead_worker(
    user_code: Callable[[str], str], tmp_path: Path
) -> None:
    source = FIRST_PROCESS + "assert FIRST, 'gone'\n" + USERS_MODEL.replace("{scale}", "1.0")
    with pytest.raises(UsageError, match="raised AssertionError: gone"):
        run(suite(f"{user_code(source)}:Net"), tmp_path, workers=2)
    assert stored(tmp_path) == 0
