"""Models in their authors' style are evaluated through factories of at most ten lines."""

import argparse
import importlib
import inspect
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import robustness
from robustness import api
from robustness.data import load_images
from robustness.evaluation.suite import load_suite

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Imports an example, in a working folder where checkpoints can be put."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def trained(net: nn.Module, logits, steps: int, lr: float) -> None:
    images = load_images("digits", "train")
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(net.parameters(), lr)
    for batch in torch.randint(len(images), (steps, 64)):
        loss = functional.cross_entropy(logits(images.images[batch]), images.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def require_short(module: ModuleType) -> None:
    lines = inspect.getsource(module.model).splitlines()
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 100


def test_the_inner_module_of_a_lightning_checkpoint(example) -> None:
    module = example("lightning_model")
    require_short(module)
    net = module.LyapunovNet()
    trained(net, lambda x: net((x - 0.3) / 0.38)[0], 150, 1e-2)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    checkpoint = {"state_dict": state | {"loss.scale": torch.ones(1)}, "epoch": 3, "callbacks": {}}
    torch.save(checkpoint, module.CHECKPOINT)
    found = api.doctor("lightning_model:model", data="digits", in_process=True)
    assert found.findings == []
    assert found.accuracy is not None
    assert found.accuracy > 0.8
    row = api.attack(
        "lightning_model:model", "Linf", 0.3, "fgsm", data="digits", samples=32, in_process=True
    )
    assert row.errors == 0
    assert row.robust.value < found.accuracy


@pytest.mark.slow
def test_the_style_of_torchdiffeqs_example(example) -> None:
    module = example("odenet_mnist")
    require_short(module)
    torch.manual_seed(0)
    net = module.odenet(4, 1e-3)
    trained(net, net, 25, 3e-2)
    Path("experiment1").mkdir()
    args = argparse.Namespace(channels=4, tol=1e-3, network="odenet")
    torch.save({"state_dict": net.state_dict(), "args": args}, module.CHECKPOINT)
    found = api.doctor("odenet_mnist:model", data="digits", in_process=True, samples=12)
    # How serious depends on how far it was trained.
    assert [f.check for f in found.findings] == ["adaptive tolerance"]
    row = api.attack(
        "odenet_mnist:model", "Linf", 0.3, "fgsm", data="digits", samples=8, in_process=True
    )
    assert (row.errors, row.subset) == (0, 8)


class _Cluster:
    """Notes what it is made of."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.done = settings, []
        made.append(self)

    def adapt(self, minimum: int, maximum: int) -> None:
        self.done.append((minimum, maximum))

    def close(self) -> None:
        self.done.append("closed")


class _Client:
    def __init__(self, cluster: _Cluster) -> None:
        self.cluster = cluster

    def __enter__(self) -> "_Client":
        return self

    def __exit__(self, *details: object) -> None:
        pass


made: list[_Cluster] = []


@pytest.mark.parametrize(
    ("name", "library", "kind", "arguments"),
    [
        ("slurm_dask", "dask_jobqueue", "SLURMCluster", ()),
        ("kubernetes_dask", "dask_kubernetes.operator", "KubeCluster", ("registry/image",)),
    ],
)
def test_the_scripts_for_clusters_call_what_there_is(
    name: str,
    library: str,
    kind: str,
    arguments: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Their libraries need a cluster; what is asked of Dask's workers and of `evaluate` exists."""
    worker = pytest.importorskip("distributed.cli.dask_worker").main
    for module in {library, library.partition(".")[0]}:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    monkeypatch.setattr(sys.modules[library], kind, _Cluster, raising=False)
    monkeypatch.setattr("distributed.Client", _Client)
    called: list[Any] = []

    def evaluate(*given: Any, **more: Any) -> Any:
        called.append(inspect.signature(api.evaluate).bind(*given, **more).arguments)
        bracket = SimpleNamespace(eps=0.1, attacked=SimpleNamespace(value=0.5))
        return SimpleNamespace(models=[SimpleNamespace(name="digits/x", brackets=[bracket])])

    monkeypatch.setattr(robustness, "evaluate", evaluate, raising=False)
    file = EXAMPLES / f"{name}.py"
    runpy.run_path(str(file))["main"](*arguments)
    cluster = made.pop()
    ((minimum, maximum), closed) = cluster.done
    assert 0 <= minimum < maximum
    assert closed == "closed"
    (asked,) = called
    assert isinstance(asked["executor"], _Client)
    assert load_suite(asked["suite"]).models
    options = {option for parameter in worker.params for option in parameter.opts}
    words = [
        *cluster.settings.get("worker_extra_args", ()),
        *cluster.settings.get("worker_command", ()),
    ]
    named = {word for word in words if word.startswith("--")}
    assert named
    assert named <= options
    assert "0.1: 50.0%" in capsys.readouterr().out
