"""Work on other people's workers: handed in, sent to a scheduler, killed, late."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from robustness.api import evaluate
from robustness.cli import app
from robustness.data import load_images
from robustness.data.images import ImageSet
from robustness.errors import OperationalError, UsageError
from robustness.evaluation import runner
from robustness.evaluation.executors import executor_kind, handed
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import Leaderboard, read_leaderboard
from robustness.zoo import load_model, pack_model, unpack_model, zoo_folder

TOML = """
name = "far"
data = "digits"
samples = 130
models = ["digits/lyanet-certified"]
decay = false
flow = false
threats = [{ norm = "Linf", eps = [0.05] }]
attacks = [{ kind = "fgsm" }]
"""
SUITE = Suite.model_validate(tomllib.loads(TOML))


def run(folder: Path, executor: object) -> Leaderboard:
    return evaluate(SUITE, out=folder, executor=executor, batch_size=32)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("here"), "here").comparable()


class Counted(ThreadPoolExecutor):
    """Counts how many calls there were, and how many had the parcel."""

    calls = parcels = 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.calls += 1
        self.parcels += args[1] is not None
        return super().submit(function, *args, **kwargs)


@pytest.mark.slow
def test_an_executor_that_is_handed_in_gets_models_and_images_once(
    expected: dict[str, Any], tmp_path: Path
) -> None:
    with Counted(1) as executor:
        assert run(tmp_path, executor).comparable() == expected
        assert executor.submit(int, "7", 10).result() == 7  # it is its owner's to end
    # 5 shards of predictions and 5 of the attack; the worker asked for the parcel once.
    assert (executor.calls - 1, executor.parcels - 1) == (11, 1)


class Broken(ThreadPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise RuntimeError("cannot schedule new futures after shutdown")


def test_an_executor_that_takes_nothing_ends_the_run_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OperationalError, match="takes work, got RuntimeError: cannot schedule"):
        run(tmp_path, Broken(1))


@pytest.mark.parametrize(
    ("executor", "words"),
    [
        (7, "Executor or a distributed.Client, got 7"),
        ("here://there", "by name, or such as dask://"),
        ("dask://", "by name, or such as dask://"),
        ("dusk", "did you mean dask?"),
    ],
)
def test_what_is_no_executor_is_refused(executor: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        run(tmp_path / "out", executor)
    assert not (tmp_path / "out").exists()


def test_a_scheduler_that_is_not_there_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("robustness.evaluation.executors.dask._CONNECT", 0.2)
    words = ["evaluate", "digits-quick", "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, [*words, "--executor", "dask://127.0.0.1:9"])
    assert isinstance(said.exception, UsageError)
    assert "expected a Dask scheduler at 127.0.0.1:9" in str(said.exception)
    assert len(str(said.exception)) <= 300
    with pytest.raises(UsageError, match="no memory limit with the executor dask"):
        evaluate(SUITE, out=tmp_path / "out", executor="dask", memory_limit="8GiB")
    assert not (tmp_path / "out").exists()


def test_an_extra_that_is_not_installed_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'lyanet-robustness\[dask\]'"):
        run(tmp_path / "out", "dask")
    assert not (tmp_path / "out").exists()


def test_a_model_is_loaded_where_its_files_are_not(
    user_code: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "digits/lyanet-certified"
    packed = pack_model(entry)
    (tmp_path / "far").mkdir()
    monkeypatch.setattr("robustness.zoo.find_entry", None)
    found = unpack_model(packed, tmp_path / "far")
    monkeypatch.undo()
    assert (found.name, found.digest) == (entry, load_model(entry).digest)
    assert found.structure == load_model(entry).structure
    weights = (zoo_folder() / entry / "weights.safetensors").read_bytes()
    with pytest.raises(UsageError, match="the recipe's weights, got others"):
        unpack_model(type(packed)(entry, packed.recipe, weights[:-1]), tmp_path / "far")


def test_the_source_of_a_users_factory_is_sent(
    user_code: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "import torch\n\ndef make():\n    return torch.nn.Flatten()\n"
    name = user_code(source)
    packed = pack_model(f"{name}:make")
    assert name not in sys.modules  # none of it was run
    assert packed.modules == {f"{name}.py": source.encode()}
    (tmp_path / f"{name}.py").unlink()
    (tmp_path / "far").mkdir()
    found = unpack_model(packed, tmp_path / "far")
    assert isinstance(found.module, torch.nn.Flatten)
    # What is installed is not sent.
    assert not pack_model("torch.nn:Identity").modules


def test_images_are_sent_to_the_last_bit() -> None:
    images = load_images("digits")
    assert ImageSet.unpacked(images.packed()).digest == images.digest
    exact = ImageSet(
        "x", "test", torch.arange(256.0).reshape(1, 1, 16, 16) / 255, images.labels[:1], 10
    )
    assert ImageSet.unpacked(exact.packed()).digest == exact.digest
    other = ImageSet("x", "test", exact.images * 0.999, exact.labels, 10)
    assert ImageSet.unpacked(other.packed()).digest == other.digest
    assert len(exact.packed()) < len(other.packed()) / 2


def test_a_worker_of_other_versions_or_images_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    runner.require_versions(runner.environment())
    with pytest.raises(UsageError, match=r"expected numpy 0.1 in a worker, as here, got [0-9]"):
        runner.require_versions(runner.environment() | {"numpy": "0.1"})
    runner.require_versions({"commit": "none here"} if "commit" not in runner.environment() else {})


def test_a_parcel_that_changed_on_its_way_is_not_opened() -> None:
    with pytest.raises(OperationalError, match="did not come as they were sent"):
        handed.call("0" * 64, b"other", 0.0, int, ())
    assert isinstance(handed.call("0" * 64, None, 0.0, int, ()), handed.Lacking)


def started(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    module, *options = words
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{module}", *options, "--no-dashboard"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(Path(runner.__file__).parents[2])},
    )


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Callable[[], subprocess.Popen[bytes]]]]:
    """A scheduler's address, and how a worker of it is started."""
    file, running = tmp_path / "scheduler.json", []
    options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    running.append(started(tmp_path, "scheduler", *options))
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    address = json.loads(file.read_text())["address"]

    def worker() -> subprocess.Popen[bytes]:
        running.append(started(tmp_path, "worker", address, "--nthreads", "1", "--no-nanny"))
        return running[-1]

    yield address.removeprefix("tcp://"), worker
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_worker_that_is_killed_and_one_that_comes_late_change_nothing(
    cluster: tuple[str, Callable[[], subprocess.Popen[bytes]]],
    expected: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distributed import Client

    address, worker = cluster
    first, second = worker(), worker()
    with Client(f"tcp://{address}", set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        add, stored, early = Store.add, [], set(client.nthreads())

        def adding(self: Store, *arguments: Any) -> None:
            add(self, *arguments)
            stored.append(arguments)
            if len(stored) == 2:
                end(first)
                worker()
                deadline = time.monotonic() + 60
                while not (late := set(client.nthreads()) - early):
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                ((_, kept),) = client.run(handed.at_hand, workers=list(late)).values()
                assert len(kept) == 1  # before it was asked for anything
            if len(stored) == 4:
                end(second)

        def end(process: subprocess.Popen[bytes]) -> None:
            process.send_signal(signal.SIGKILL)
            process.wait()

        monkeypatch.setattr(Store, "add", adding)
        found = run(tmp_path / "far", f"dask://{address}")
        assert found.comparable() == expected
        assert len(stored) == 10
        # The one that came late did the rest, and let go of the parcel since.
        ((opened, kept),) = client.run(handed.at_hand).values()
        assert opened
        assert not kept
        monkeypatch.undo()
        assert run(tmp_path / "handed", client).comparable() == expected
        assert client.status == "running"  # it is its owner's to close


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:Creating scratch directories")  # a busy disk
def test_workers_of_a_local_cluster_are_forked_with_the_environment_of_now_and_unwatched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import dask

    kind = executor_kind("dask")
    kind.open()
    try:
        monkeypatch.setenv("SAID_LATER", "yes")
        cluster = kind.start(1, None)
        cluster.on_all(60.0, int)

        def told(function: Callable[..., Any], *args: Any) -> Any:
            return cluster.result(cluster.submit(function, *args))

        assert told(os.getenv, "SAID_LATER") == "yes"
        assert told(dask.config.get, "distributed.worker.profile.enabled") is False
        method = told(dask.config.get, "distributed.worker.multiprocessing-method")
        assert method == ("forkserver" if sys.platform.startswith("linux") else "spawn")
        assert dask.config.get("distributed.worker.profile.enabled") is True  # of others
    finally:
        kind.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore:Creating scratch directories")  # a busy disk
def test_a_local_cluster_is_made_and_ended(
    expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    made: list[Any] = []

    class InThreads(distributed.LocalCluster):
        """A cluster whose worker is a thread of this process, which starts at once."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings, processes=False)
            made.append(self)

    monkeypatch.setattr(distributed, "LocalCluster", InThreads)
    (file := tmp_path / "far.toml").write_text(TOML, encoding="utf-8")
    words = ["evaluate", str(file), "--out", str(tmp_path / "out"), "--quiet", "--workers", "1"]
    said = CliRunner().invoke(app, [*words, "--batch-size", "32", "--executor", "dask"])
    assert said.exception is None, said.output
    found = read_leaderboard(tmp_path / "out")
    assert found.comparable() == expected
    (cluster,) = made
    assert cluster.status.name == "closed"
