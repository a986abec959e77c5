"""Views are what their names say, and leave the model as it was."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from toys import Linear, Perceptron, grey_images

from robustness.attacks import (
    Ascent,
    Stage,
    Status,
    View,
    audit_version,
    default_stages,
    register_view,
    views_of,
    worst_case,
)
from robustness.attacks.views import Rescaled, Smooth, graded, unregister_view, with_solver
from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import ContinuousNet
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


@pytest.fixture(scope="module")
def ode() -> NeuralODEClassifier:
    model = load_model("digits/lyanet").module
    assert isinstance(model, NeuralODEClassifier)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def by_name(model: nn.Module) -> dict[str, View]:
    return {view.name: view for view in views_of(model)}


def test_a_neural_ode_has_every_view_and_a_plain_module_those_that_apply(
    ode: NeuralODEClassifier,
) -> None:
    plain = list(by_name(Linear()))
    assert plain == ["deployed", "rescaled", "smooth", "smooth-backward"]
    names = list(by_name(ode))
    assert names[:4] == plain
    assert {"initial-velocity", "horizon/2", "one-step", "euler", "adjoint", "float64"} <= set(
        names
    )
    adaptive = by_name(with_solver(ode, AdaptiveSolver(rtol=0.1, atol=0.1)))
    assert {"horizon/8", "rk4", "euler", "tight-tolerance"} <= set(adaptive)


def test_a_continuous_net_has_the_views_of_its_solver() -> None:
    net = ContinuousNet(
        Normalise([0.5], [0.5]), 1, [4], [2], [], FixedStepSolver("euler", 4), classes=3
    ).eval()
    views = by_name(net)
    assert {"horizon/2", "one-step", "rk4", "adjoint", "smooth"} <= set(views)
    assert "initial-velocity" not in views
    for view in views.values():
        assert view.module(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_views_leave_the_model_and_its_predictions_as_they_were(
    ode: NeuralODEClassifier, images: Tensor
) -> None:
    before, solver = ode(images), ode.solver
    weights = [p.clone() for p in ode.parameters()]
    for view in views_of(ode):
        leaf = images.clone().requires_grad_()
        view.module(leaf).sum().backward()
    assert ode.solver is solver
    assert torch.equal(ode(images), before)
    for old, new in zip(weights, ode.parameters(), strict=True):
        assert torch.equal(old, new)
        assert new.dtype is torch.float32


def test_views_share_the_weights_but_for_the_float64_copy(ode: NeuralODEClassifier) -> None:
    own = {parameter.data_ptr() for parameter in ode.parameters()}
    for view in views_of(ode):
        theirs = {parameter.data_ptr() for parameter in view.module.parameters()}
        assert (theirs <= own) is (view.name != "float64"), view.name


def test_faithful_views_order_classes_as_the_deployed_model(
    ode: NeuralODEClassifier, images: Tensor
) -> None:
    expected = ode(images).argmax(dim=1)
    faithful = [view for view in views_of(ode) if view.faithful]
    assert len(faithful) >= 5
    for view in faithful:
        assert torch.equal(view.module(images).argmax(dim=1), expected), view.name


def test_shorter_horizons_are_states_on_the_deployed_trajectory(
    ode: NeuralODEClassifier, images: Tensor
) -> None:
    assert isinstance(ode.solver, FixedStepSolver)
    states = ode.solve(ode.features(images)).states
    half = by_name(ode)["horizon/2"].module
    assert isinstance(half, Rescaled)
    torch.testing.assert_close(half.inner(images), states[ode.solver.steps // 2])
    step = by_name(ode)["one-step"].module
    assert isinstance(step, Rescaled)
    torch.testing.assert_close(step.inner(images), states[1])


def test_the_initial_velocity_is_the_slope_of_a_tiny_step(
    ode: NeuralODEClassifier, images: Tensor
) -> None:
    tiny = with_solver(ode, FixedStepSolver("euler", 1, horizon=1e-3))
    slope = (tiny(images) - ode.initial) / 1e-3
    velocity = by_name(ode)["initial-velocity"].module(images)
    torch.testing.assert_close(slope, velocity, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15, 1e30])
def test_rescaled_scores_have_unit_spread_at_any_scale(scale: float) -> None:
    found = Rescaled(Linear(scale=scale))(grey_images(4))
    torch.testing.assert_close(found.std(dim=1), torch.ones(4))
    constant = Rescaled(Linear(scale=0.0))(grey_images(4))
    assert bool(constant.isfinite().all())


def test_rescaled_cross_entropy_has_a_gradient_where_softmax_saturates() -> None:
    model, images = Linear(scale=1e4), grey_images(4)
    labels = model(images).argmax(dim=1)

    def slope(module: nn.Module) -> float:
        leaf = images.clone().requires_grad_()
        nn.functional.cross_entropy(module(leaf), labels).backward()
        assert leaf.grad is not None
        return float(leaf.grad.abs().max())

    assert slope(model) == 0
    assert slope(Rescaled(model)) > 1e-3


def test_the_smooth_twin_passes_a_gradient_through_dead_units() -> None:
    class Dead(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            pixel = images.flatten(1)[:, :2]
            return torch.relu(pixel - 2) + nn.functional.relu(pixel - 2) + (pixel - 2).clamp_min(0)

    images = torch.rand(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    slopes = {}
    for name, module in {
        "deployed": Dead(),
        "smooth": Smooth(Dead()),
        "backward": Smooth(Dead(), backward_only=True),
    }.items():
        leaf = images.clone().requires_grad_()
        out = module(leaf)
        out.sum().backward()
        assert leaf.grad is not None
        slopes[name] = float(leaf.grad.abs().sum())
        assert bool((out > 0).any()) is (name == "smooth")
    assert slopes["deployed"] == 0
    assert slopes["smooth"] == pytest.approx(slopes["backward"])
    assert slopes["smooth"] > 0


def test_a_smooth_view_leaves_no_mode_behind_when_the_model_raises() -> None:
    class Fails(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise ArithmeticError("no")

    with pytest.raises(ArithmeticError):
        Smooth(Fails())(torch.zeros(1, 1, 2, 2))
    assert torch.relu(torch.tensor(-1.0)) == 0


def test_a_view_of_ones_own_is_registered_in_three_lines() -> None:
    @register_view(Perceptron)
    def negated(model: Perceptron) -> Iterator[View]:
        yield View("as-is", model, faithful=True)

    try:
        assert "as-is" in by_name(Perceptron())
        assert "as-is" not in by_name(Linear())
    finally:
        unregister_view(negated)
    assert "as-is" not in by_name(Perceptron())


def test_whose_a_view_is_enters_the_keys_of_what_climbs_it() -> None:
    own = audit_version()

    @register_view(Perceptron)
    def negated(model: Perceptron) -> Iterator[View]:
        yield View("as-is", model, faithful=True)

    try:
        view = by_name(Perceptron())["as-is"]
        assert view.release.startswith(f"{__name__} of SHA-256 ")
        assert Stage(Ascent(), view).version.endswith(f"through as-is of {view.release}")
        assert audit_version() == f"{own}; views of negated, {view.release}"
    finally:
        unregister_view(negated)
    assert all(view.release == "" for view in views_of(Perceptron()))


def test_two_views_of_one_name_are_refused() -> None:
    @register_view(Perceptron)
    def another(model: Perceptron) -> Iterator[View]:
        yield View("smooth", model)

    try:
        with pytest.raises(UsageError, match=r"'smooth' a second time by another of .*test_views"):
            views_of(Perceptron())
    finally:
        unregister_view(another)


class Rounded(nn.Module):
    """A model whose gradients are zero everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Linear()

    def forward(self, images: Tensor) -> Tensor:
        return (self.inner(images) * 64).round() / 64


def test_a_registered_view_is_climbed_by_the_worst_case_and_is_a_rival_of_deployed_gradients() -> (
    None
):
    @register_view(Rounded)
    def unrounded(model: Rounded) -> Iterator[View]:
        yield View("unrounded", model.inner)
        yield View("aside", model.inner, sweep=False, rival=False)

    try:
        stages = default_stages(Rounded(), ThreatModel(Norm.LINF, 0.1))
        climbed = [stage.name for stage in stages if stage.view.name == "unrounded"]
        assert climbed
        assert not any(stage.view.name == "aside" for stage in stages)
        images = grey_images(8)
        model = Rounded()
        labels = model(images).argmax(dim=1)
        threat = ThreatModel(Norm.LINF, 0.9)
        alone = [stage for stage in stages if stage.name in climbed]
        found = worst_case(model, images, labels, threat, alone, seed=0)
        assert any(outcome.status is Status.ADVERSARIAL for outcome in found)
    finally:
        unregister_view(unrounded)


def test_graded_twins_solve_more_coarsely_and_more_finely(ode: NeuralODEClassifier) -> None:
    assert isinstance(ode.solver, FixedStepSolver)
    steps = {name: twin.solver.steps for name, twin in graded(ode).items()}  # type: ignore[union-attr]
    assert steps["coarser"] < steps["deployed"] == ode.solver.steps < steps["finer"]
    adaptive = with_solver(ode, AdaptiveSolver(rtol=1e-3, atol=1e-3))
    tolerances = {name: twin.solver.rtol for name, twin in graded(adaptive).items()}  # type: ignore[union-attr]
    assert tolerances["coarser"] > tolerances["deployed"] > tolerances["finer"]


def test_views_of_a_float64_program_are_made_from_a_float32_copy_that_agrees_with_it() -> None:
    model = load_model("mnist/lyanet-certified").module
    assert isinstance(model, NeuralODEClassifier)
    assert model.dtype is torch.float64
    views = {view.name: view for view in views_of(model)}
    assert views["deployed"].module is model
    twin = views["float32"].module
    assert isinstance(twin, NeuralODEClassifier)
    assert twin.dtype is torch.float32
    assert model.dtype is torch.float64
    images = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(twin(images), model(images), atol=1e-3)
    assert views["rescaled"].module.inner is not model
    assert "float32" not in {view.name for view in views_of(load_model("mnist/lyanet").module)}
