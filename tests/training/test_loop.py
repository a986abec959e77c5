"""The training loop is deterministic, resumable, honest about its weights and its held-out set."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from robustness.data import load_images
from robustness.errors import UsageError
from robustness.numerics.reproducible import flushes_denormals, reproducible_arithmetic
from robustness.recipe import read_recipe
from robustness.training import loop, losses
from robustness.zoo import load_model


def weights(folder: Path) -> bytes:
    return (folder / "weights.safetensors").read_bytes()


def copy_of(folder: Path, name: str) -> Path:
    """Another folder with the same recipe."""
    other = folder.with_name(name)
    other.mkdir()
    (other / "recipe.toml").write_bytes((folder / "recipe.toml").read_bytes())
    return other


def edit(folder: Path, old: str, new: str) -> None:
    path = folder / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


class InterruptedHereError(Exception):
    pass


def train_until(
    epoch: int, folder: Path, monkeypatch: pytest.MonkeyPatch, resume: bool = False
) -> None:
    """A training that is stopped right after the checkpoint of `epoch` was written."""
    save = loop._save

    def save_and_stop(state, checkpoint):
        save(state, checkpoint)
        if state.epoch == epoch:
            raise InterruptedHereError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_and_stop)
        with pytest.raises(InterruptedHereError):
            loop.train(folder, resume=resume, quiet=True)


def checkpoint_of(folder: Path) -> Path:
    (path,) = (folder / "checkpoints").iterdir()
    return path


@pytest.fixture
def interrupted_folder(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose training was interrupted after its second of three epochs."""
    train_until(2, recipe_folder, monkeypatch)
    return recipe_folder


def test_the_same_recipe_trains_to_the_same_bits_whatever_was_drawn_before(recipe_folder: Path):
    again = copy_of(recipe_folder, "again")
    loop.train(recipe_folder, quiet=True)
    torch.manual_seed(12345)
    torch.rand(100)
    loop.train(again, quiet=True)
    assert weights(recipe_folder) == weights(again)


def test_another_seed_trains_to_other_weights(recipe_folder: Path):
    other = copy_of(recipe_folder, "other")
    edit(other, "epochs = 3", "epochs = 3\nseed = 1")
    loop.train(recipe_folder, quiet=True)
    loop.train(other, quiet=True)
    assert weights(recipe_folder) != weights(other)


def test_training_leaves_the_global_generator_and_thread_count_alone(recipe_folder: Path):
    torch.manual_seed(3)
    expected, threads = torch.get_rng_state(), torch.get_num_threads()
    loop.train(recipe_folder, quiet=True)
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_leaves_denormal_numbers_flushed_where_they_were(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
):
    def failed(*_: object) -> None:
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(loop, "_train", failed)
    with reproducible_arithmetic():
        torch.set_default_dtype(dtype)
        try:
            with pytest.raises(UsageError, match="finite loss"):
                loop.train(recipe_folder, quiet=True)
            assert flushes_denormals()
        finally:
            torch.set_default_dtype(torch.float32)
    assert not flushes_denormals()


def test_training_leaves_denormal_numbers_alone(recipe_folder: Path):
    torch.set_flush_denormal(False)
    try:
        loop.train(recipe_folder, quiet=True)
        assert (torch.tensor([1e-40]) * 0.5).item() > 0
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize(
    ("optimiser", "schedule"), [("adam", "one-cycle"), ("sgd", "cosine"), ("adamw", "constant")]
)
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str, schedule: str
):
    edit(recipe_folder, "epochs = 3", f'epochs = 3\noptimiser = "{optimiser}"')
    edit(recipe_folder, "batch_size", f'schedule = "{schedule}"\nweight_decay = 1e-3\nbatch_size')
    whole = copy_of(recipe_folder, "whole")
    loop.train(whole, quiet=True)
    for epoch in (1, 2, 3):
        train_until(epoch, recipe_folder, monkeypatch, resume=True)
    loop.train(recipe_folder, resume=True, quiet=True)
    assert weights(recipe_folder) == weights(whole)
    assert read_recipe(recipe_folder).weights == read_recipe(whole).weights
    assert not (recipe_folder / "checkpoints").exists()


LOSS_WITH_DROPOUT = '"lyapunov-monte-carlo", dropout'
LYANET = 'field = { kind = "lyanet", variant = "normalised", width = 4, gain = 100.0 }'


def with_dropout(folder: Path) -> None:
    """The tiny recipe with LyaNet's field and Monte Carlo loss, and dropout in it."""
    edit(folder, 'field = { kind = "target-seeking", gain = 10.0, coupling = 1.0 }', LYANET)
    edit(folder, 'encoder = { kind = "contractive-flow", steps = 1', 'encoder = { kind = "mlp"')
    edit(folder, "hidden = 8 }", "widths = [8] }")
    edit(folder, '"certified-lyapunov", eps = 0.1, temperature', LOSS_WITH_DROPOUT)


@pytest.mark.slow
def test_dropout_is_drawn_anew_every_epoch_and_the_same_when_it_resumes(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with_dropout(recipe_folder)
    whole, without = copy_of(recipe_folder, "whole"), copy_of(recipe_folder, "without")
    edit(without, ", dropout = 0.1", "")
    loop.train(whole, quiet=True)
    loop.train(without, quiet=True)
    train_until(1, recipe_folder, monkeypatch)
    loop.train(recipe_folder, resume=True, quiet=True)
    assert weights(recipe_folder) == weights(whole) != weights(without)


@pytest.mark.slow
def test_a_moving_gain_is_kept_with_the_weights_and_the_same_when_it_resumes(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    with_dropout(recipe_folder)
    edit(recipe_folder, "gain = 100.0", "gain = 100.0, moving = true")
    edit(recipe_folder, "averaging = 0.9\n", "")
    # Of so few steps all would violate the condition, and the gain end where it began.
    monkeypatch.setattr(losses, "moved_gain", lambda gain, *_: 0.99 * gain)
    whole = copy_of(recipe_folder, "whole")
    loop.train(whole, quiet=True)
    train_until(2, recipe_folder, monkeypatch)
    loop.train(recipe_folder, resume=True, quiet=True)
    assert weights(recipe_folder) == weights(whole)
    gain = float(safetensors.torch.load(weights(whole))["field.gain"])
    steps = round(math.log(gain / 100) / math.log(0.99))
    assert steps >= 3
    assert gain == pytest.approx(100 * 0.99**steps, rel=1e-4)
    # What is deployed has it, whatever the recipe begins with.
    field = load_model(str(whole)).module.field
    state, features = torch.ones(1, 10), torch.ones(1, 16)
    speed = torch.linalg.vector_norm(field(torch.tensor(0.0), state, features))
    field.gain = torch.tensor(100.0)
    faster = torch.linalg.vector_norm(field(torch.tensor(0.0), state, features))
    assert float(faster / speed) == pytest.approx(100 / gain, rel=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('kind = "lyapunov-monte-carlo", dropout = 0.1', 'kind = "cross-entropy"'),
        ("gain = 100.0", "gain = 1.0"),
    ],
)
def test_a_gain_that_could_not_move_is_refused(recipe_folder: Path, old: str, new: str):
    with_dropout(recipe_folder)
    edit(recipe_folder, "gain = 100.0", "gain = 100.0, moving = true")
    edit(recipe_folder, old, new)
    with pytest.raises(UsageError, match="expected a moving gain above 1"):
        loop.train(recipe_folder, quiet=True)


def test_dropout_of_a_field_without_hidden_units_is_refused(recipe_folder: Path):
    edit(recipe_folder, '"certified-lyapunov", eps = 0.1, temperature', LOSS_WITH_DROPOUT)
    with pytest.raises(UsageError, match="expected a lyanet field for dropout"):
        loop.train(recipe_folder, quiet=True)


def test_a_new_cycle_starts_from_the_weights_that_the_last_one_would_have_published(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    edit(recipe_folder, "epochs = 3", "epochs = 2")
    cycles = copy_of(recipe_folder, "cycles")
    edit(cycles, "epochs = 2", "epochs = 4\ncycles = 2")
    loop.train(recipe_folder, quiet=True)
    train_until(2, cycles, monkeypatch)
    published = safetensors.torch.load(weights(recipe_folder))
    with safe_open(checkpoint_of(cycles), framework="pt") as file:
        scalars = json.loads(file.metadata()["state"])
        assert not [key for key in file.keys() if key.startswith("optimiser/")]  # noqa: SIM118
        free = sorted(k for k in file.keys() if k.startswith("model/"))  # noqa: SIM118
        start = [file.get_tensor(k) for k in free if not k.endswith("vector")]
    assert len(start) == len(published)
    for value in published.values():
        assert any(torch.equal(value, other) for other in start)
    assert scalars["schedule"]["last_epoch"] == 0
    assert scalars["schedule"]["total_steps"] * 2 == _steps_of_four_epochs(cycles)


def _steps_of_four_epochs(folder: Path) -> int:
    recipe = read_recipe(folder)
    fit, _ = loop._split(load_images(recipe.data.name, "train"), recipe.training)
    return 4 * -(-len(fit) // recipe.training.batch_size)


def test_cycles_resume_too_and_end_elsewhere_than_one_long_schedule(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    edit(recipe_folder, "epochs = 3", "epochs = 4")
    whole = copy_of(recipe_folder, "whole")
    edit(whole, "epochs = 4", "epochs = 4\ncycles = 2")
    parts = copy_of(whole, "parts")
    loop.train(recipe_folder, quiet=True)
    loop.train(whole, quiet=True)
    train_until(2, parts, monkeypatch)
    loop.train(parts, resume=True, quiet=True)
    assert weights(parts) == weights(whole) != weights(recipe_folder)


def test_cycles_that_do_not_divide_the_epochs_are_refused(recipe_folder: Path):
    edit(recipe_folder, "epochs = 3", "epochs = 3\ncycles = 2")
    with pytest.raises(UsageError, match="multiple of cycles, got 3 and 2"):
        loop.train(recipe_folder, quiet=True)


@pytest.mark.slow
def test_a_process_that_is_killed_resumes_to_the_weights_of_an_uninterrupted_one(
    recipe_folder: Path,
):
    whole = copy_of(recipe_folder, "whole")
    script = f"""
import os, signal
from pathlib import Path
from robustness.training import loop
save = loop._save
def save_and_die(state, checkpoint):
    save(state, checkpoint)
    if state.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
loop._save = save_and_die
loop.train(Path({str(recipe_folder)!r}), quiet=True)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (recipe_folder / "weights.safetensors").exists()
    loop.train(recipe_folder, resume=True, quiet=True)
    loop.train(whole, quiet=True)
    assert weights(recipe_folder) == weights(whole)


def test_a_write_that_breaks_off_leaves_the_checkpoint_before_it_intact(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = copy_of(recipe_folder, "whole")
    loop.train(whole, quiet=True)
    save, half_written = loop._save, []

    def save_half_of_the_second(state, checkpoint):
        if state.epoch == 2:
            half_written.append(checkpoint.read_bytes())
            checkpoint.with_name(".half.tmp").write_bytes(half_written[0][:100])
            raise InterruptedHereError
        save(state, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", save_half_of_the_second)
        with pytest.raises(InterruptedHereError):
            loop.train(recipe_folder, quiet=True)
    loop.train(recipe_folder, resume=True, quiet=True)
    assert weights(recipe_folder) == weights(whole)


def test_without_resume_training_starts_afresh(interrupted_folder: Path):
    whole = copy_of(interrupted_folder, "whole")
    with safe_open(checkpoint_of(interrupted_folder), "pt") as file:
        state = json.loads(file.metadata()["state"])
    assert state["epoch"] == 2
    loop.train(interrupted_folder, quiet=True)
    loop.train(whole, quiet=True)
    assert weights(interrupted_folder) == weights(whole)


def test_a_changed_recipe_does_not_resume_from_the_old_recipes_checkpoint(interrupted_folder: Path):
    edit(interrupted_folder, "eps = 0.1", "eps = 0.2")
    whole = copy_of(interrupted_folder, "whole")
    loop.train(interrupted_folder, resume=True, quiet=True)
    loop.train(whole, quiet=True)
    assert weights(interrupted_folder) == weights(whole)


def damaged(content: bytes, damage: str) -> bytes:
    tensors = safetensors.torch.load(content)
    if damage == "truncated":
        return content[: len(content) // 2]
    if damage == "empty":
        return b""
    if damage == "pickle":
        return b"\x80\x04cposix\nsystem\n."
    if damage == "no metadata":
        return safetensors.torch.save(tensors)
    if damage == "metadata that is not JSON":
        return safetensors.torch.save(tensors, {"state": "{"})
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    if damage == "no epoch":
        state = json.loads(metadata["state"])
        del state["epoch"]
        return safetensors.torch.save(tensors, {"state": json.dumps(state)})
    kept = {key: value for key, value in tensors.items() if key != "model/field.head.weight"}
    assert len(kept) == len(tensors) - 1
    return safetensors.torch.save(kept, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        "truncated",
        "empty",
        "pickle",
        pytest.param("no metadata"),
        pytest.param("metadata that is not JSON"),
        pytest.param("no epoch"),
        pytest.param("a weight is missing"),
    ],
)
def test_a_broken_checkpoint_is_one_clear_usage_error(interrupted_folder: Path, damage: str):
    checkpoint = checkpoint_of(interrupted_folder)
    checkpoint.write_bytes(damaged(checkpoint.read_bytes(), damage))
    with pytest.raises(UsageError, match="expected a checkpoint") as caught:
        loop.train(interrupted_folder, resume=True, quiet=True)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_recipe_holds_the_sha256_of_the_file_that_was_written(recipe_folder: Path):
    measured = loop.train(recipe_folder, quiet=True)
    recipe = read_recipe(recipe_folder)
    assert recipe.weights.sha256 == hashlib.sha256(weights(recipe_folder)).hexdigest()
    assert recipe.measured == measured
    assert measured.torch == torch.__version__
    assert 1 <= measured.epoch <= 3


def test_training_again_changes_nothing_else_in_the_recipe(recipe_folder: Path):
    before = (recipe_folder / "recipe.toml").read_text(encoding="utf-8")
    edit(recipe_folder, "[training]", "# a comment of the author's\n[training]")
    loop.train(recipe_folder, quiet=True)
    after = (recipe_folder / "recipe.toml").read_text(encoding="utf-8")
    kept = after.split("\n[weights]")[0].replace("# a comment of the author's\n", "")
    assert kept.strip() == before.strip()


def test_the_released_model_is_the_trained_one(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    images = load_images("digits", "test").images[:20]
    release, outputs = loop.release, []

    def observed(model):
        with torch.no_grad():
            outputs.append(model(images))
            release(model)
            outputs.append(model(images))

    monkeypatch.setattr(loop, "release", observed)
    loop.train(recipe_folder, quiet=True)
    trained, released = outputs
    assert torch.equal(trained, released)
    assert torch.equal(load_model(str(recipe_folder)).module(images), released)


def test_the_kept_checkpoint_is_the_best_on_the_held_out_images(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    edit(recipe_folder, "averaging = 0.9\n", "")
    scores, snapshots = iter([(0.5, -1.0), (0.5, -0.5), (0.4, -0.1)]), []

    def validate(state, config, held_out):
        snapshots.append({k: v.clone() for k, v in state.model.state_dict().items()})
        return next(scores)

    monkeypatch.setattr(loop, "_validate", validate)
    measured = loop.train(recipe_folder, quiet=True)
    # The tie in accuracy is broken by the lower loss of the second epoch.
    assert (measured.epoch, measured.validation_score) == (2, 0.5)
    found = safetensors.torch.load(weights(recipe_folder))
    assert torch.equal(found["field.head.weight"], snapshots[1]["field.head.weight"])
    assert not torch.equal(found["field.head.weight"], snapshots[2]["field.head.weight"])


def test_averaged_weights_are_validated_and_deployed(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    steps, save = [], loop._save

    def saved(state, checkpoint):
        steps.append({k: v.clone() for k, v in state.average.items()})
        current = state.model.state_dict()
        assert not torch.equal(current["field.head.weight"], state.average["field.head.weight"])
        save(state, checkpoint)

    monkeypatch.setattr(loop, "_save", saved)
    measured = loop.train(recipe_folder, quiet=True)
    found = safetensors.torch.load(weights(recipe_folder))
    kept = steps[measured.epoch - 1]
    assert torch.equal(found["field.head.weight"], kept["field.head.weight"])


def test_held_out_images_never_train(recipe_folder: Path, monkeypatch: pytest.MonkeyPatch):
    edit(recipe_folder, "augmentation = { rotate = 5.0, shift = 0.3 }", "validation = 0.25")
    seen: list[torch.Tensor] = []
    find = loop._loss

    def recording(config, classes, model, steps):
        loss = find(config, classes, model, steps)

        def recorded(pixels, labels, generator, progress):
            seen.append(pixels.clone())
            return loss(pixels, labels, generator, progress)

        return recorded

    monkeypatch.setattr(loop, "_loss", recording)
    loop.train(recipe_folder, quiet=True)
    images = load_images("digits", "train")
    fit, held_out = loop._split(images, read_recipe(recipe_folder).training)
    assert len(held_out) == round(0.25 * len(images))
    assert len(fit) + len(held_out) == len(images)
    trained = {image.numpy().tobytes() for image in torch.cat(seen)}
    assert trained == {image.numpy().tobytes() for image in fit.images}
    assert trained.isdisjoint(image.numpy().tobytes() for image in held_out.images)
    assert len(torch.cat(seen)) == 3 * len(fit)


def test_a_recipe_that_does_not_fit_its_data_is_a_usage_error(recipe_folder: Path):
    edit(recipe_folder, "shape = [1, 8, 8]", "shape = [1, 4, 16]")
    with pytest.raises(UsageError, match=r"expected images \(1, 4, 16\)"):
        loop.train(recipe_folder, quiet=True)


def use_lyanet(folder: Path) -> None:
    edit(
        folder,
        'encoder = { kind = "contractive-flow", steps = 1, hidden = 8 }\n'
        'field = { kind = "target-seeking", gain = 10.0, coupling = 1.0 }',
        'encoder = { kind = "mlp", widths = [4] }\n'
        'field = { kind = "lyanet", variant = "simplex", width = 2 }',
    )


def test_a_loss_that_does_not_fit_its_field_is_a_usage_error(recipe_folder: Path):
    use_lyanet(recipe_folder)
    with pytest.raises(UsageError, match="expected a target-seeking field"):
        loop.train(recipe_folder, quiet=True)


@pytest.mark.parametrize("constrained", [False, True])
def test_a_diverging_loss_is_a_usage_error_and_leaves_no_weights(
    recipe_folder: Path, constrained: bool, monkeypatch: pytest.MonkeyPatch
):
    if constrained:
        find = loop._loss

        def diverging(config, classes, model, steps):
            loss = find(config, classes, model, steps)
            return lambda *batch: loss(*batch) * torch.inf

        monkeypatch.setattr(loop, "_loss", diverging)
    else:
        use_lyanet(recipe_folder)
        certified = 'kind = "certified-lyapunov", eps = 0.1, temperature = 0.1'
        edit(recipe_folder, certified, 'kind = "lyapunov-monte-carlo", states = 8')
        edit(recipe_folder, "learning_rate = 3e-3", "learning_rate = 1e12")
    with pytest.raises(UsageError, match="expected a finite loss"):
        loop.train(recipe_folder, quiet=True)
    assert not (recipe_folder / "weights.safetensors").exists()


def test_the_loss_is_told_the_share_of_steps_that_are_done_also_after_a_resume(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, find = [], loop._loss

    def recording(config, classes, model, steps):
        loss = find(config, classes, model, steps)

        def recorded(pixels, labels, generator, progress):
            seen.append(progress)
            return loss(pixels, labels, generator, progress)

        return recorded

    monkeypatch.setattr(loop, "_loss", recording)
    train_until(1, recipe_folder, monkeypatch)
    loop.train(recipe_folder, resume=True, quiet=True)
    steps = len(seen)
    assert steps > 3
    assert seen == pytest.approx([step / steps for step in range(steps)])


INTERVAL = 'kind = "certified-interval", eps = 0.1, test_eps = 0.02, warm_up = 0.1, ramp = 0.7'


def use_intervals(folder: Path) -> None:
    edit(
        folder,
        'encoder = { kind = "contractive-flow", steps = 1, hidden = 8 }',
        'encoder = { kind = "conv-relu", widths = [4], strides = [2], outputs = 16 }',
    )
    edit(folder, 'kind = "certified-lyapunov", eps = 0.1, temperature = 0.1', INTERVAL)


def test_interval_training_resumes_within_its_ramp_to_the_same_weights(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    use_intervals(recipe_folder)
    whole = copy_of(recipe_folder, "whole")
    loop.train(whole, quiet=True)
    train_until(1, recipe_folder, monkeypatch)
    loop.train(recipe_folder, resume=True, quiet=True)
    assert weights(recipe_folder) == weights(whole)


def test_interval_training_is_validated_at_the_radius_to_be_certified_in_every_epoch(
    recipe_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    use_intervals(recipe_folder)
    trained, validated = [], []
    bound, judge = loop.intervals.certified_interval, loop.intervals.certified_by_intervals

    def recorded(model, images, labels, eps, *more):
        if torch.is_grad_enabled():
            trained.append(eps)
        return bound(model, images, labels, eps, *more)

    def judged(model, images, labels, eps):
        validated.append(eps)
        return judge(model, images, labels, eps)

    monkeypatch.setattr(loop.intervals, "certified_interval", recorded)
    monkeypatch.setattr(loop.intervals, "certified_by_intervals", judged)
    loop.train(recipe_folder, quiet=True)
    assert set(validated) == {0.02}
    assert trained[0] == 0
    assert trained[-1] == 0.1
    assert trained == sorted(trained)


def test_half_precision_storage_deploys_exactly_the_weights_that_the_file_holds(
    recipe_folder: Path,
):
    edit(recipe_folder, "[training]", '[training]\nstorage = "float16"')
    measured = loop.train(recipe_folder, quiet=True)
    stored = safetensors.torch.load(weights(recipe_folder))
    assert {v.dtype for v in stored.values()} == {torch.float16}
    model = load_model(str(recipe_folder)).module
    for key, value in model.state_dict().items():
        assert value.dtype is torch.float32
        assert torch.equal(value, stored[key].float())
    images = load_images("digits", "train")
    _, held_out = loop._split(images, read_recipe(recipe_folder).training)
    right = (model(held_out.images).argmax(dim=1) == held_out.labels).float().mean()
    assert measured.validation_accuracy == pytest.approx(float(right), abs=1e-6)
