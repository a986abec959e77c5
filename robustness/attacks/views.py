"""Views: differentiable surrogates of a model to take gradients through.

Where the gradients of a model as deployed are of no use (logits that saturate softmax, an
adaptive solver whose steps hide the slope, an encoder whose units are dead), those of a near
relative often are: the same weights read at a shorter horizon, with logits rescaled, by another
solver. An attack ascends a view; what it finds counts only if it fools the deployed model.

No view changes the model that it is made from. All share its weights but copies in another
precision.

A further view, for models of one type, is registered in three lines:

    @register_view(MyModel)
    def without_temperature(model: MyModel) -> Iterator[View]:
        yield View("without-temperature", model.logits)

The worst case climbs it and the check for masked gradients compares it, unless `sweep` or `rival`
says otherwise.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE
from robustness.nets.flow import InitialVelocity
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver
from robustness.registry import Registry, release_of

_Model = TypeVar("_Model", bound=nn.Module)
_Ode = TypeVar("_Ode", bound=NeuralODEClassifier | StagedODE)

# Sharpness of the softplus that replaces a ReLU, in units of the inverse pre-activation.
_SHARPNESS = 10.0
# Steps of the fixed-step stand-in for an adaptive solver, and the tolerance of its tight twin.
_STAND_IN_STEPS, _TIGHT = 8, 1e-6
# Views whose failures are those of others; views that tell of a solver's steps.
_NEAR_RELATIVES, _FINER = ("horizon/8",), ("double-steps", "tight-tolerance")


@dataclass(frozen=True)
class View:
    """A differentiable surrogate of a model.

    Attributes:
        name: what distinguishes it from the model's other views, in tables and the store.
        module: pixels in [0, 1], shape (n, c, h, w), to scores of the classes, shape (n, classes).
        faithful: whether the scores order the classes as the deployed model's logits do, up to
            rounding, so that an attack needs no further query to see whether it has succeeded.
        sweep: whether the worst case climbs it too.
        rival: whether the check for masked gradients holds it against the deployed gradients.
        release: whose code it is; empty for this package's own. `views_of` fills it in.
    """

    name: str
    module: nn.Module
    faithful: bool = False
    sweep: bool = True
    rival: bool = True
    release: str = ""


def _aside(name: str, module: nn.Module, faithful: bool = True, rival: bool = False) -> View:
    """A view that a sweep leaves out: others resemble it, or checks of their own ask about it."""
    return View(name, module, faithful, sweep=False, rival=rival)


@dataclass(frozen=True)
class ViewMaker:
    """A function to further views of all models of one type.

    Attributes:
        name: that of the function, under which it is registered.
        kind: the type of model that the views apply to.
        build: from a model to its views.
    """

    name: str
    kind: type[nn.Module]
    build: Callable[[Any], Iterable[View]]

    @property
    def release(self) -> str:
        """Whose it is; empty for this package's own."""
        return release_of(self.build.__module__)


VIEWS: Registry[ViewMaker] = Registry("a function to views", "robustness.views")


def register_view(
    kind: type[_Model],
) -> Callable[[Callable[[_Model], Iterable[View]]], Callable[[_Model], Iterable[View]]]:
    """Register a function from a model of type `kind` to further views of it.

    Args:
        kind: the type of model that the views apply to; `torch.nn.Module` for any.
    """

    def register(build: Callable[[_Model], Iterable[View]]) -> Callable[[_Model], Iterable[View]]:
        VIEWS.register(ViewMaker(build.__name__.replace("_", "-"), kind, build))
        return build

    return register


def unregister_view(build: Callable[[Any], Iterable[View]]) -> None:
    """Undo `register_view`."""
    VIEWS.unregister(build.__name__.replace("_", "-"))


def views_of(model: nn.Module) -> list[View]:
    """All views that apply to a model's structure, the deployed model first.

    Args:
        model: pixels to logits.

    Raises:
        UsageError: two views have one name.
    """
    views: dict[str, View] = {}
    for maker in VIEWS.values():
        if not isinstance(model, maker.kind):
            continue
        for view in maker.build(model):
            if view.name in views:
                raise UsageError(
                    f"expected views of distinct names, got {view.name!r} a second time by "
                    f"{maker.name} of {maker.release or 'this package'}; rename it"
                )
            views[view.name] = replace(view, release=maker.release) if maker.release else view
    return list(views.values())


@register_view(nn.Module)
def of_any_model(model: nn.Module) -> Iterator[View]:
    """The model itself, its float32 twin, and those that need to know nothing of its structure."""
    yield _aside("deployed", model)
    twin = stand_in(model)
    if twin is not model:
        yield _aside("float32", twin)
    yield View("rescaled", Rescaled(twin), faithful=True)
    yield View("smooth", Smooth(twin))
    yield View("smooth-backward", Smooth(twin, backward_only=True), faithful=True)


@register_view(NeuralODEClassifier)
def of_a_neural_ode(model: NeuralODEClassifier) -> Iterator[View]:
    """Its velocity at the start, and what it is if it is solved otherwise."""
    twin = stand_in(model)
    yield View("initial-velocity", InitialVelocity(twin))
    yield from _of_a_solved_model(twin)


@register_view(StagedODE)
def of_staged_odes(model: StagedODE) -> Iterator[View]:
    """What it is if it is solved otherwise."""
    yield from _of_a_solved_model(model)


def _of_a_solved_model(model: _Ode) -> Iterator[View]:
    for name, solver in _shorter(model.solver):
        shorter = Rescaled(with_solver(model, solver))
        yield View(name, shorter, sweep=name not in _NEAR_RELATIVES)
    for name, solver in _other_solvers(model.solver):
        twin = with_solver(model, solver)
        yield _aside(name, twin, faithful=False) if name in _FINER else View(name, twin)
    if model.solver.gradient != "adjoint":
        adjoint = replace(model.solver, gradient="adjoint")
        yield _aside("adjoint", with_solver(model, adjoint))
    else:
        direct = replace(model.solver, gradient="backprop")
        yield _aside("backprop", with_solver(model, direct))
    yield _aside("float64", Float64(model))


def stand_in(model: _Model) -> _Model:
    """What other views of a model are made from: a float32 copy of one that computes in float64.

    It costs half as much, and its scores agree to the last digits of float32.
    """
    if isinstance(model, NeuralODEClassifier) and model.dtype is torch.float64:
        return copy.deepcopy(model).float()
    return model


def with_solver(model: _Ode, solver: Solver) -> _Ode:
    """The same network, weights shared, solved otherwise."""
    twin = copy.copy(model)
    twin.solver = solver
    return twin


def graded(model: _Ode) -> dict[str, _Ode]:
    """The same network solved more coarsely, as deployed, and more finely.

    An adaptive solver at ten times and a hundredth of its tolerances, a fixed-step one in half
    and in twice its steps.
    """
    solver = model.solver
    twins: dict[str, Solver] = {}
    if isinstance(solver, AdaptiveSolver):
        for name, factor in (("coarser", 10.0), ("deployed", 1.0), ("finer", 0.01)):
            twins[name] = replace(solver, rtol=factor * solver.rtol, atol=factor * solver.atol)
    else:
        if solver.steps > 1:
            twins["coarser"] = replace(solver, steps=solver.steps // 2)
        twins |= {"deployed": solver, "finer": replace(solver, steps=2 * solver.steps)}
    return {name: with_solver(model, twin) for name, twin in twins.items()}


def _shorter(solver: Solver) -> Iterator[tuple[str, Solver]]:
    """The same steps over a part of the horizon, down to a single step."""
    if isinstance(solver, AdaptiveSolver):
        for part in (2, 4, 8):
            yield f"horizon/{part}", replace(solver, horizon=solver.horizon / part)
        return
    seen = {solver.steps}
    for part, steps in ((2, solver.steps // 2), (4, solver.steps // 4), (8, solver.steps // 8)):
        if steps > 1 and steps not in seen:
            seen.add(steps)
            yield f"horizon/{part}", replace(solver, steps=steps, horizon=steps * solver.step_size)
    if 1 not in seen:
        yield "one-step", replace(solver, steps=1, horizon=solver.step_size)


def _other_solvers(solver: Solver) -> Iterator[tuple[str, Solver]]:
    if isinstance(solver, AdaptiveSolver):
        fixed = FixedStepSolver("rk4", _STAND_IN_STEPS, solver.horizon)
        yield "rk4", fixed
        yield "euler", replace(fixed, method="euler")
        if max(solver.rtol, solver.atol) > _TIGHT:
            yield "tight-tolerance", replace(solver, rtol=_TIGHT, atol=_TIGHT, coupled=False)
        return
    for method in ("euler", "rk4"):
        if solver.method != method:
            yield method, replace(solver, method=method)
    yield "double-steps", replace(solver, steps=2 * solver.steps)


class Rescaled(nn.Module):
    """A model with the logits of each sample shifted and scaled to unit spread.

    The scale carries no gradient, so that scores change with the image exactly as the logits do,
    only in a range in which softmax does not saturate.

    Args:
        inner: pixels to logits.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Scores of standard deviation 1 per sample, shape (n, classes)."""
        logits = self.inner(images)
        with torch.no_grad():
            centre = logits.mean(dim=1, keepdim=True)
            # Divided by the largest deviation first: squares of large logits overflow.
            largest = (logits - centre).abs().amax(dim=1, keepdim=True)
            largest = largest.clamp_min(torch.finfo(logits.dtype).tiny)
            scale = largest * ((logits - centre) / largest).std(dim=1, keepdim=True)
            scale = scale.clamp_min(torch.finfo(logits.dtype).tiny)
        return (logits - centre) / scale


class Float64(nn.Module):
    """A copy of a model that computes in float64 throughout.

    Args:
        model: the model; its weights are copied and stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).double()

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits in float64, shape (n, classes)."""
        return self.model(images.double())


class Smooth(nn.Module):
    """A model with a softplus for each ReLU, so that dead units pass a gradient.

    A clamp from below at 0 counts as a ReLU.
    The replacement is made at the call of the function, wherever the model makes it, and ends
    with it: no module is touched. Solved by the adjoint method, ReLUs inside a vector field are
    replaced in the forward solve alone.

    Args:
        inner: pixels to logits.
        backward_only: compute with ReLU, and back-propagate as if through softplus.
        sharpness: of the softplus, in units of the inverse pre-activation.
    """

    def __init__(
        self, inner: nn.Module, backward_only: bool = False, sharpness: float = _SHARPNESS
    ) -> None:
        super().__init__()
        self.inner, self.backward_only, self.sharpness = inner, backward_only, sharpness

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of the smooth twin, shape (n, classes)."""
        with _ReplacedReLU(self.backward_only, self.sharpness):
            return self.inner(images)


class _ReplacedReLU(TorchFunctionMode):
    _RELUS = frozenset(
        {functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}
    )

    _CLAMPS = frozenset({torch.clamp_min, Tensor.clamp_min})

    def __init__(self, backward_only: bool, sharpness: float) -> None:
        super().__init__()
        self.backward_only, self.sharpness = backward_only, sharpness

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        at_zero = func in self._CLAMPS and len(args) > 1 and _is_zero(args[1])
        if func not in self._RELUS and not at_zero:
            return func(*args, **(kwargs or {}))
        smooth = functional.softplus(args[0], beta=self.sharpness)
        if not self.backward_only:
            return smooth
        return smooth + (torch.clamp_min(args[0], 0) - smooth).detach()


def _is_zero(bound: object) -> bool:
    return isinstance(bound, int | float) and bound == 0
