"""Every kind of network and loss that a recipe can name, trained for an epoch on the digits."""

from pathlib import Path

import pytest
import torch

from robustness.data import load_images
from robustness.errors import UsageError
from robustness.recipe import TrainingConfig, read_recipe
from robustness.training.loop import train
from robustness.zoo import load_model, zoo_folder, zoo_names

DATA = '[data]\nname = "digits"\nshape = [1, 8, 8]\nclasses = 10\n[model]\n'
TRAINING = "[training]\nepochs = {epochs}\nbatch_size = 64\nlearning_rate = 5e-3\n"
# Three are enough to learn more than chance, but for one that ramps its radius up.
EPOCHS = {"interval": 6}
EULER = '{ kind = "fixed", method = "euler", steps = 4 }'
LYANET = 'field = { kind = "lyanet", variant = "normalised", width = 16, gain = 2.0 }\n'
ENCODER = 'encoder = { kind = "conv", widths = [8], strides = [2] }\n'
NEURAL_ODE = f'kind = "neural-ode"\nsolver = {EULER}\n'
CONTINUOUS = f'kind = "continuous-net"\nwidths = [8, 8]\nstrides = [1, 2]\nsolver = {EULER}\n'
RECIPES = {
    "residual": (
        'kind = "residual-conv"\nwidths = [8, 8]\n',
        'loss = { kind = "cross-entropy" }\nschedule = "step"\n'
        "augmentation = { crop = 1, flip = true }\n",
    ),
    "adversarial": (
        NEURAL_ODE + ENCODER + LYANET,
        'loss = { kind = "adversarial", norm = "L2", eps = 0.2, steps = 2 }\n',
    ),
    "path integral": (
        NEURAL_ODE + ENCODER + LYANET,
        'loss = { kind = "lyapunov-path-integral" }\n',
    ),
    "path integral without gradient": (
        NEURAL_ODE + ENCODER + LYANET,
        'loss = { kind = "lyapunov-path-integral", through_solver = false }\n',
    ),
    "steady state": (
        NEURAL_ODE + ENCODER + LYANET,
        'loss = { kind = "steady-state", weight = 0.01 }\n',
    ),
    "stable equilibrium": (
        NEURAL_ODE + ENCODER + LYANET,
        'loss = { kind = "stable-equilibrium", equilibrium = 0.001, '
        "diagonal = 0.1, dominance = 0.01 }\n",
    ),
    "continuous": (CONTINUOUS, 'loss = { kind = "cross-entropy" }\n'),
    "continuous lyapunov": (CONTINUOUS, 'loss = { kind = "lyapunov-path-integral", rate = 2.0 }\n'),
    "certified": (
        NEURAL_ODE
        + 'field = { kind = "target-seeking", gain = 10.0, coupling = 1.0 }\n'
        + 'encoder = { kind = "conv-contractive-flow", '
        + "stages = [{ channels = 8, steps = 2, hidden = 8 }] }\n",
        'loss = { kind = "certified-lyapunov", eps = 0.1, temperature = 0.1 }\naveraging = 0.9\n',
    ),
    "interval": (
        NEURAL_ODE
        + 'field = { kind = "target-seeking", gain = 1.0, coupling = 1.0 }\n'
        + 'encoder = { kind = "conv-relu", widths = [8], strides = [2], outputs = 32, '
        + "kernel = 4 }\n",
        'loss = { kind = "certified-interval", eps = 0.05, test_eps = 0.02 }\n',
    ),
    "proved": (
        NEURAL_ODE
        + 'field = { kind = "lyanet", variant = "simplex", width = 8, gain = 5.0, '
        + "feedback = 0.02 }\n"
        + 'encoder = { kind = "conv-relu", widths = [8], strides = [2], outputs = 64, '
        + "kernel = 4 }\n",
        'loss = { kind = "proved", eps = 0.01, test_eps = 0.01, warm_up = 0.5, ramp = 1.0, '
        "steering = 1.0, lyapunov = 0.1, states = 4, regularisation = 0.0 }\n",
    ),
    "simplex": (
        NEURAL_ODE
        + "initial = 0.1\n"
        + 'field = { kind = "simplex", width = 16 }\n'
        + 'encoder = { kind = "orthogonal", widths = [8] }\n',
        'loss = { kind = "invariance-monte-carlo", states = 8, rate = 2.0, leak = 0.05 }\n',
    ),
}


def write(folder: Path, model: str, training: str, epochs: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    training = TRAINING.format(epochs=epochs) + training
    text = f'description = "test"\n{DATA}{model}{training}'
    (folder / "recipe.toml").write_text(text)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_trained_recipe_loads_and_has_learnt_more_than_chance(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path, *RECIPES[name], epochs=EPOCHS.get(name, 3))
    measured = train(folder, quiet=True)
    assert measured.validation_accuracy > 0.25
    digits = load_images("digits", "test")
    with torch.no_grad():
        logits = load_model(str(folder)).module(digits.images)
    assert float((logits.argmax(dim=1) == digits.labels).float().mean()) > 0.25


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["certified", "interval", "simplex", "continuous lyapunov", "proved"]
)
def test_training_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    weights = []
    for copy in ("a", "b"):
        torch.rand(17)  # Training must not depend on what was drawn before it.
        folder = write(tmp_path / copy, *RECIPES[name], epochs=1)
        train(folder, quiet=True)
        weights.append((folder / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("model", "training", "message"),
    [
        ("residual", "simplex", "neural-ode model for the invariance-monte-carlo loss"),
        ("continuous", "certified", "neural-ode model for the certified-lyapunov loss"),
        ("path integral", "interval", "expected a target-seeking field for the certified-interval"),
        ("simplex", "certified", "expected a target-seeking field for the certified-lyapunov"),
        ("residual", "path integral", "neural-ode model for the lyapunov-path-integral loss"),
        ("adversarial", "simplex", "expected a simplex field"),
        ("residual", "proved", "expected a lyanet or target-seeking field, or a continuous-net"),
        ("residual", "steady state", "neural-ode model for the steady-state loss"),
    ],
)
def test_a_loss_that_does_not_fit_the_model_is_refused(
    model: str, training: str, message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, RECIPES[model][0], RECIPES[training][1])
    with pytest.raises(UsageError, match=message):
        train(folder, quiet=True)


def test_the_step_schedule_divides_the_learning_rate_by_ten_halfway() -> None:
    from robustness.recipe import CrossEntropyConfig, DataConfig, Recipe
    from robustness.training import loop

    recipe = Recipe.model_validate(
        {
            "description": "test",
            "data": DataConfig(name="digits", shape=(1, 8, 8), classes=10),
            "model": {"kind": "residual-mlp", "width": 4, "blocks": 1},
            "training": TrainingConfig(
                loss=CrossEntropyConfig(kind="cross-entropy"),
                epochs=2,
                learning_rate=0.4,
                schedule="step",
                optimiser="sgd",
            ),
        }
    )
    state = loop._fresh_state(recipe, steps_per_epoch=3)
    rates = []
    for _ in range(6):
        rates.append(state.optimiser.param_groups[0]["lr"])
        state.optimiser.step()
        state.schedule.step()
    assert rates == pytest.approx([0.4] * 3 + [0.04] * 3)


@pytest.mark.parametrize("name", [n for n in zoo_names() if not n.startswith("digits/")])
def test_a_recipe_of_the_zoo_builds_a_small_network_for_its_images(name: str) -> None:
    recipe = read_recipe(zoo_folder() / name)
    assert recipe.data.name == name.split("/")[0]
    assert recipe.training is None or recipe.training.threads == 1
    model = recipe.model.build(recipe.data.shape, recipe.data.classes).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, *recipe.data.shape))
    assert logits.shape == (2, recipe.data.classes)
    entry = 2 if recipe.training and recipe.training.storage == "float16" else 4
    assert entry * sum(value.numel() for value in model.state_dict().values()) < 2**22


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "adversarial", "certified", "interval", "simplex"])
def test_training_in_bfloat16_gives_other_weights_of_float32(name: str, tmp_path: Path) -> None:
    weights = []
    for precision in ("float32", "bfloat16"):
        model, training = RECIPES[name]
        training += f'precision = "{precision}"\n'
        folder = write(tmp_path / precision, model, training, EPOCHS.get(name, 3))
        assert train(folder, quiet=True).validation_accuracy > 0.25
        weights.append(load_model(str(folder)).module.state_dict())
    exact, lower = weights
    assert all(lower[key].dtype is value.dtype for key, value in exact.items())
    assert any(not torch.equal(lower[key], value) for key, value in exact.items())


@pytest.mark.slow
def test_a_flow_trained_in_bfloat16_is_certified(tmp_path: Path) -> None:
    from robustness.certificates import CERTIFICATES
    from robustness.threat import Norm

    model, training = RECIPES["certified"]
    folder = write(tmp_path, model, f'{training}precision = "bfloat16"\n')
    train(folder, quiet=True)
    digits = load_images("digits", "test").take(torch.arange(16))
    module = load_model(str(folder)).module
    radii = CERTIFICATES["target-seeking"].certify(module, digits.images, digits.labels, Norm.L2)
    assert max(radius.radius for radius in radii) > 0.05
