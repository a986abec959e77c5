"""Nothing is left on the CPU: all that computes runs on a CUDA device that is none.

The fake computes on the CPU what it is asked, so that what comes out is, bit for bit, what the CPU
gives: draws, sums, verdicts, weights.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import NAME, MixedError, OnCuda, fake_cuda
from safetensors.torch import load_file
from torch import Tensor, nn
from typer.testing import CliRunner

from robustness import api, inputs
from robustness.attacks import (
    ATTACKS,
    Ascent,
    RoundingSearch,
    Stage,
    View,
    default_stages,
    nearest_adversarial,
    worst_case,
)
from robustness.attacks import audit as check
from robustness.attacks.climb import Hunt
from robustness.attacks.iterated import IteratedAscent
from robustness.certificates import CERTIFICATES
from robustness.cli import app
from robustness.data import load_images
from robustness.errors import UsageError
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.numerics import devices
from robustness.numerics.devices import Placement, arithmetic_on, refusal_of_device
from robustness.recipe import read_recipe
from robustness.threat import Norm, ThreatModel
from robustness.training.loop import epoch_runner, train
from robustness.zoo import load_model

CUDA = Placement("cuda", "cuda")
TEST = load_images("digits", "test", None)
BALL = ThreatModel(Norm.LINF, 0.1)
# Whose cost the doctor tells.
SMALL = {
    "name": "small",
    "data": "digits",
    "models": ["digits/lyanet"],
    "threats": [{"norm": "Linf", "eps": [0.1]}],
    "attacks": [{"kind": "fgsm"}],
}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_cuda(monkeypatch):
        yield


def of_digits(name: str) -> nn.Module:
    return load_model(f"digits/{name}").module


def there(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("cuda")


def same(first: Tensor, second: Tensor) -> None:
    assert isinstance(second, OnCuda)
    torch.testing.assert_close(first, second.detach().cpu(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3, 2),
        lambda x: torch.where(torch.ones(3, 2) > 0, x, x),
        lambda x: torch.cat([x, torch.zeros(1, 2)]),
        lambda x: x.new_zeros(3, 2) @ torch.ones(2, 2),
        lambda x: torch.zeros(2).add_(x[0]),
        lambda x: x + torch.arange(2, device="cpu"),
        lambda x: torch.rand_like(x),
        lambda x: torch.randn(2, generator=torch.Generator(), device=x.device),
        lambda x: nn.Linear(2, 2)(x),
    ],
)
def test_the_fake_finds_what_is_left_on_the_cpu(cuda: None, mixed: Any) -> None:
    x = torch.ones(3, 2).to("cuda")
    assert x.device.type == (x * 2.0).device.type == "cuda"
    assert x.cpu().device.type == "cpu"
    with pytest.raises((MixedError, RuntimeError)):
        mixed(x)
    with pytest.raises(TypeError):
        x.numpy()


def test_a_tensor_that_is_planted_on_the_cpu_is_found(
    cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = there(of_digits("resnet"))
    images, labels = TEST.images[:1], TEST.labels[:1]
    stages = [Stage(Ascent("ce", 1), View("deployed", model, faithful=True))]
    (whole,) = worst_case(model, images, labels, BALL, stages)
    assert not whole.errors
    noise = Hunt.noise
    monkeypatch.setattr(Hunt, "noise", lambda *given: noise(*given).cpu())
    (planted,) = worst_case(model, images, labels, BALL, stages)
    assert "same device" in planted.errors[0]


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "worst-case"])
def test_attacks_propose_there_what_they_propose_here(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"steps": 2, "queries": 10}
    kind = ATTACKS[name]
    attack = kind.make(**{key: few[key] for key in few if key in kind.settings})
    threat = ThreatModel(Norm.L2, 2.0) if attack.refusal(BALL, 10) else BALL
    model, images, labels = of_digits("resnet"), TEST.images[:2], TEST.labels[:2]
    if name == "autoattack":  # which goes no further than its checks where all are wrong
        labels = (labels + 1) % 10
    here = attack.propose(model, images, labels, threat, 0)
    with fake_cuda(monkeypatch):
        found = attack.propose(there(model), images.to("cuda"), labels.to("cuda"), threat, 0)
        same(here, found)


@pytest.mark.slow
@pytest.mark.parametrize("norm", Norm)
def test_the_cascade_finds_there_what_it_finds_here(
    norm: Norm, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = TEST.images[:2], TEST.labels[:2]
    threat = ThreatModel(norm, 0.15 if norm is Norm.LINF else 0.7)

    def found(deployed: nn.Module, climbed: nn.Module) -> list[Any]:
        stages = default_stages(climbed, threat)
        views = {stage.view.name: stage.view for stage in stages}
        short = [
            Stage(Ascent("targeted", 2, targets=2, lane=4), views["smooth-backward"]),
            Stage(
                IteratedAscent(
                    (views["one-step"],),
                    rounds=1,
                    annealed=1,
                    lives=1,
                    hope=-9.0,
                    starts=2,
                    steps=2,
                    lane=4,
                ),
                views["deployed"],
            ),
            Stage(RoundingSearch(3, 2, 1, 4), views["deployed"]),
        ]
        assert {type(s.attack) for s in short} >= {Ascent, IteratedAscent, RoundingSearch}
        outcomes = worst_case(deployed, images, labels, threat, short, climbed=climbed)
        assert not any(outcome.errors for outcome in outcomes)
        return outcomes

    model = of_digits("lyanet")
    here = found(model, model)
    with fake_cuda(monkeypatch):
        assert found(there(model), there(model)) == here
        assert found(model, there(model)) == here  # proposed there, judged here


@pytest.mark.slow
def test_nearest_images_and_checks_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, labels = of_digits("resnet"), TEST.images[:4], TEST.labels[:4]
    here = nearest_adversarial(model, images[:1], labels[:1], Norm.L2)
    flags = check(model, images, labels, BALL, 0)
    with fake_cuda(monkeypatch):
        twin = there(model)
        assert nearest_adversarial(model, images[:1], labels[:1], Norm.L2, climbed=twin) == here
        assert check(twin, images, labels, BALL, 0) == flags
    assert not any("could not be run" in flag.detail for flag in flags)


def test_training_there_ends_in_the_weights_of_training_here(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = recipe_folder.parent / "other"
    other.mkdir()
    (other / "recipe.toml").write_bytes((recipe_folder / "recipe.toml").read_bytes())
    train(recipe_folder, quiet=True)
    with fake_cuda(monkeypatch):
        measured = train(other, quiet=True, device="cuda")
    assert measured.device == f"cuda {NAME}"
    here, elsewhere = (
        load_file(folder / "weights.safetensors") for folder in (recipe_folder, other)
    )
    assert here.keys() == elsewhere.keys()
    for name, weight in here.items():
        # Some processors multiply a copy at another address by another kernel.
        torch.testing.assert_close(elsewhere[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "loss"),
    [
        ("simplex", '{ kind = "invariance-monte-carlo", states = 4, rate = 1.0 }'),
        ("lyanet", '{ kind = "lyapunov-monte-carlo", states = 4, dropout = 0.1 }'),
        ("moving", '{ kind = "lyapunov-monte-carlo", states = 4 }'),
        ("lyanet", '{ kind = "adversarial", norm = "L2", eps = 0.5, steps = 2 }'),
        ("target-seeking", '{ kind = "lyapunov-path-integral" }'),
    ],
)
def test_losses_find_all_they_need_there(
    field: str, loss: str, recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe_folder / "recipe.toml"
    fields = {
        "simplex": '{ kind = "simplex", width = 64, gain = 1.0 }',
        "lyanet": '{ kind = "lyanet", width = 8, variant = "normalised", gain = 1.0 }',
        "moving": '{ kind = "lyanet", width = 8, variant = "normalised", gain = 9, moving = true }',
        "target-seeking": '{ kind = "target-seeking", gain = 10.0, coupling = 1.0 }',
    }
    text = file.read_text(encoding="utf-8")
    text = text.replace(fields["target-seeking"], fields[field])
    text = text.replace('{ kind = "certified-lyapunov", eps = 0.1, temperature = 0.1 }', loss)
    file.write_text(text, encoding="utf-8")
    recipe, few = read_recipe(recipe_folder), TEST.take(torch.arange(8))
    here = epoch_runner(recipe, few)()
    with fake_cuda(monkeypatch):
        assert epoch_runner(recipe, few, "cuda")() == here


def test_certificates_speak_of_programs_on_cuda_whose_sums_are_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, images, labels = of_digits("lyanet-certified"), TEST.images[:1], TEST.labels[:1]
    names = ["target-seeking", "lipschitz-margin", "program", "smoothing"]
    here = {name: CERTIFICATES[name].refusal(model, Norm.L2) for name in names}
    applying = ["target-seeking"]  # whose bounds are soon computed
    radii = {n: CERTIFICATES[n].certify(model, images, labels, Norm.L2) for n in applying}
    with fake_cuda(monkeypatch):
        twin = there(model)
        for name in applying:  # cuDNN is on
            assert "Winograd" in str(CERTIFICATES[name].refusal(twin, Norm.L2))
            with pytest.raises(ValueError, match="Winograd"):
                CERTIFICATES[name].certify(twin, images, labels, Norm.L2)
        with arithmetic_on(CUDA):
            assert {n: CERTIFICATES[n].refusal(twin, Norm.L2) for n in names} == here
            for name in applying:
                found = CERTIFICATES[name].certify(twin, images, labels, Norm.L2)
                assert found == radii[name]
            twin.add_module("norm", nn.GroupNorm(1, 1).to("cuda"))
            refusal = CERTIFICATES["program"].refusal(twin, Norm.L2)
            assert refusal == "no rounding bound is known for group norms on cuda"


def test_what_makes_sums_on_cuda_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = torch.device("cuda")
    assert refusal_of_device(torch.device("cpu")) is None
    assert "certify with --judge cpu" in str(refusal_of_device(torch.device("mps")))
    before = torch.backends.cudnn.enabled
    with arithmetic_on(CUDA):
        assert torch.are_deterministic_algorithms_enabled()
        assert refusal_of_device(device) is None
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert "TF32" in str(refusal_of_device(device))
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        with monkeypatch.context() as changed:
            changed.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
            assert "unset TORCH_ALLOW_TF32" in str(refusal_of_device(device))
    assert torch.backends.cudnn.enabled is before
    assert not torch.are_deterministic_algorithms_enabled()
    with arithmetic_on(Placement("cuda", "cpu")):  # proposals prove nothing
        assert torch.backends.cudnn.enabled is before


SUITE = {
    "name": "tiny",
    "data": "digits",
    "samples": 1,
    "models": ["digits/lyanet-certified"],
    "threats": [{"norm": "Linf", "eps": [0.05]}],
    "attacks": [{"kind": "fgsm"}],
    "certificates": [],
}


def _rows(folder: Path) -> dict[str, str]:
    """What the store holds, by kind of job: the keys."""
    with Store(folder / "results.sqlite") as store:
        plan = store.last_run().plan
        shards = {job.kind: plan.shards(job)[0] for job in plan.jobs}
        return {job.kind: plan.key(job, shards[job.kind]) for job in plan.jobs}


@pytest.mark.slow
def test_a_suite_gives_there_what_it_gives_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = Suite.model_validate(SUITE)
    here = api.evaluate(suite, out=tmp_path / "here", workers=1)
    with fake_cuda(monkeypatch):
        board = api.evaluate(suite, out=tmp_path / "there", device="cuda")
        mixed = api.evaluate(suite, out=tmp_path / "mixed", device="cuda", judge="cpu")
    for found in (board, mixed):
        assert found.models[0].brackets == here.models[0].brackets
        assert found.models[0].attacks == here.models[0].attacks
        assert found.models[0].samples == here.models[0].samples
        assert not found.models[0].failures
    assert "device" not in here.environment
    assert board.environment["judge"] == board.environment["device"] == f"cuda {NAME}"
    assert "no cuDNN" in board.environment["arithmetic of accelerators"]
    assert mixed.environment["judge"] == "cpu"
    keys, on_gpu, proposed = (_rows(tmp_path / name) for name in ("here", "there", "mixed"))
    assert not set(keys.values()) & set(on_gpu.values())
    # What the CPU judges and certifies is filed with results of runs on the CPU; attacks are not.
    assert {kind for kind in keys if keys[kind] == proposed[kind]} == set(keys) - {"attack"}
    assert {"attack", "clean", "decay", "flow"} <= set(keys)


@pytest.mark.slow
def test_a_card_is_measured_on_the_device(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_folder, quiet=True)
    with fake_cuda(monkeypatch):
        _, facts = api.card(str(recipe_folder), device="cuda")
        seen = api.inspect(str(recipe_folder), device="cuda").certificates
    assert facts.torch.endswith(f"on cuda {NAME}")
    _, again = api.card(str(recipe_folder), remeasure=True)
    assert again.clean == facts.clean
    assert again.torch == torch.__version__
    assert seen == api.inspect(str(recipe_folder)).certificates


@pytest.mark.slow
def test_a_model_is_looked_at_and_exported_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patients, real = [], api.examine

    def examine(loaded: Any, *rest: Any) -> Any:
        patients.append(next(loaded.module.parameters()).device.type)
        return real(loaded, *rest)

    monkeypatch.setattr(api, "examine", examine)
    # Exporters of torch look for a CUDA of their own.
    monkeypatch.setattr(api, "onnx_bytes", lambda program: repr(program.kinds).encode())
    asked = {"suite": Suite.model_validate(SMALL), "samples": 8}
    here = api.doctor("digits/lyanet", **asked)
    asked_too = {"certificate": "target-seeking"}
    written = api.export("digits/lyanet-certified", 3, 0.001, tmp_path / "here", **asked_too)
    with fake_cuda(monkeypatch):
        there = api.doctor("digits/lyanet", device="cuda", **asked)
        again = api.export(
            "digits/lyanet-certified", 3, 0.001, tmp_path / "there", device="cuda", **asked_too
        )
    assert patients == ["cpu", "cuda"]
    assert (there.findings, there.passed, there.accuracy) == (
        here.findings,
        here.passed,
        here.accuracy,
    )
    assert (again.prediction, again.certificate) == (written.prediction, written.certificate)
    assert again.radius == written.radius > 0
    for a, b in zip(written.files, again.files, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "digits-quick"],
        ["attack", "digits/lyanet", "--eps", "0.1"],
        ["certify", "digits/lyanet"],
        ["inspect", "digits/lyanet"],
        ["train", "digits/lyanet"],
        ["card", "digits/lyanet"],
        ["doctor", "digits/lyanet"],
        ["export", "digits/lyanet", "--sample", "0", "--eps", "0.1"],
        ["claims"],
    ],
)
def test_a_device_that_is_not_there_is_a_usage_error(words: list[str], tmp_path: Path) -> None:
    writes = words[0] in ("evaluate", "export", "claims")
    out = ["--out", str(tmp_path / "out")] if writes else []
    found = CliRunner().invoke(app, [*words, *out, "--device", "cuda:7"])
    assert isinstance(found.exception, UsageError)
    assert "cuda:7" in str(found.exception)
    assert len(str(found.exception)) < 300
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tpu", "cuda:", "CPU", "cuda:-1", "mps:1"])
def test_a_device_has_one_of_four_names(name: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda, cuda:N or mps"):
        inputs.placement(None, name)


def test_a_gpu_has_one_process(cuda: None) -> None:
    with pytest.raises(UsageError, match="one run for each GPU"):
        api.certify("digits/lyanet", workers=2, device="cuda")
    with pytest.raises(UsageError, match="no memory limit"):
        api.certify("digits/lyanet", memory_limit="8GiB", judge="cuda")
    with pytest.raises(UsageError, match="where it sees 1"):
        api.certify("digits/lyanet", device="cuda:1")
    assert inputs.placement("cuda:0", None) == CUDA
    assert json.dumps(devices.described(devices.ON_CPU)) == "{}"


@pytest.mark.cuda
def test_a_gpu_agrees_with_the_cpu() -> None:
    model, images, labels = of_digits("lyanet-certified"), TEST.images[:8], TEST.labels[:8]
    with arithmetic_on(CUDA):
        twin = there(model)
        stages = default_stages(twin, BALL, "quick")
        outcomes = worst_case(twin, images, labels, BALL, stages)
        assert worst_case(twin, images, labels, BALL, stages) == outcomes
        assert not any(outcome.errors for outcome in outcomes)
        certificate = CERTIFICATES["target-seeking"]
        radii = certificate.certify(twin, images, labels, Norm.LINF)
    assert radii == certificate.certify(model, images, labels, Norm.LINF)
    for radius, outcome in zip(radii, outcomes, strict=True):
        assert radius.radius <= (outcome.linf or 1.0)
    torch.testing.assert_close(twin(images.cuda()).cpu(), model(images), rtol=1e-4, atol=1e-4)
