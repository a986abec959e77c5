"""Neural ODEs whose field relaxes towards a target: what is proved of them, and what is refused."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.flows import tubes
from robustness.certificates.flows.constants import pixel_slope, refusal_of_arithmetic
from robustness.certificates.flows.relaxations import SimplexRelaxation, TargetSeekingRelaxation
from robustness.certificates.flows.simplex.cone_tubes import ConeTube, ConeTubes
from robustness.certificates.flows.simplex.simplex_tubes import Zonotope
from robustness.certificates.layers import bounds
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.fields import TargetSeekingField
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.programs.trust import unaltered

# Room that keeps 0 < h * kappa <= 1 true in float32 arithmetic as well.
_STEP_ROOM = 1e-4


@dataclass(frozen=True)
class Features:
    """Features of n images, and how far those of perturbed images can be.

    Attributes:
        centre: exact features, float64, shape (n, f).
        slope: proven l2 Lipschitz constant from pixels to features.
        error: float32 error of unperturbed features, shape (n,).
        growth: by how much the error grows per unit of l2 radius, shape (n,).
        farthest: the largest l2 distance of two images of the pixel box.
    """

    centre: Float[Tensor, "n f"]
    slope: float
    error: Float[Tensor, " n"]
    growth: Float[Tensor, " n"]
    farthest: float

    def __getitem__(self, chosen: slice) -> "Features":
        """Those of some of the images."""
        return replace(
            self,
            centre=self.centre[chosen],
            error=self.error[chosen],
            growth=self.growth[chosen],
        )

    def distance(self, radius: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """l2 distance of the program's features of images within `radius`, shape (n,)."""
        return (self.slope + self.growth) * radius + self.error


@torch.no_grad()
def perturbed_features(model: NeuralODEClassifier, images: Float[Tensor, "n c h w"]) -> Features:
    """The features of `images`, with proven bounds on those of perturbed images.

    The rounding bounds of `bounds.propagate` are affine in the radius: two give all.
    """
    farthest = math.sqrt(images[0].numel())
    none = torch.zeros(len(images), dtype=torch.float64)
    still, moved = (
        bounds.propagate(
            model.encoder, bounds.propagate(model.normalise, bounds.Tube.around(images, radius))
        )
        for radius in (none, none + farthest)
    )
    growth = (moved.error - still.error) / farthest
    return Features(still.centre, pixel_slope(model).value, still.error, growth, farthest)


def solve(
    model: NeuralODEClassifier,
    features: Features,
    radius: Float[Tensor, " n"],
    labels: Int[Tensor, " n"],
    local: bool,
    halvings: int = 0,
) -> tubes.StateSet:
    """The states at the horizon for all images within `radius`.

    Args:
        model: a model that is not refused.
        features: its features.
        radius: l2 radius of the perturbations.
        labels: classes whose lead is followed.
        local: whether the bounds are those of the tube or hold everywhere.
        halvings: of a simplex field's cells: every one doubles the cost, and tightens the tube.
    """
    field, solver, distance = model.field, model.solver, features.distance(radius)
    assert isinstance(solver, FixedStepSolver)
    assert isinstance(field, TargetSeekingField | SimplexField)
    rate = field.rate
    start = torch.full((len(labels), model.classes), model.initial, dtype=torch.float32).double()
    if isinstance(field, TargetSeekingField):
        seeking = TargetSeekingRelaxation(field, features.centre, distance, labels, local)
        return tubes.solve(seeking, solver, rate, tubes.Ball.point(start))
    if local:
        initial = ConeTube.point(Zonotope.point(start, distance, field.features), labels)
        near = ConeTubes(field, features.centre, distance, labels, halvings)
        return tubes.solve(near, solver, rate, initial)
    everywhere = SimplexRelaxation(field, features.centre, distance)
    return tubes.solve(everywhere, solver, rate, tubes.Ball.point(start))


def refusal(model: object) -> str | None:
    """Why nothing is proved about `model` along its trajectories; None where it is."""
    if not isinstance(model, NeuralODEClassifier):
        return "the model is not a neural ODE on the class state"
    if not isinstance(model.field, TargetSeekingField | SimplexField):
        return "no bound is known for the Jacobian of this vector field"
    if model.classes < 2:
        return "of one class nothing is left to prove"
    if model.dtype is not torch.float32:
        return "its steps are bounded for float32 programs only"
    unproved = refusal_of_arithmetic(model) or _refusal_of_steps(model)
    if unproved is not None:
        return unproved
    for part, known in _parts(model):
        if not unaltered(part, known):
            return f"{type(part).__name__} alters what a {known.__name__} computes"
    try:
        pixel_slope(model)
    except ValueError as error:
        return str(error)
    return None


def _parts(model: NeuralODEClassifier) -> list[tuple[nn.Module, type[nn.Module]]]:
    field = model.field
    parts: list[tuple[nn.Module, type[nn.Module]]] = [(model, NeuralODEClassifier)]
    if isinstance(field, TargetSeekingField):
        layers = [field.head]
        parts.append((field, TargetSeekingField))
    else:
        assert isinstance(field, SimplexField)
        layers = [field.from_state, field.to_state]
        parts.append((field, SimplexField))
    return parts + [(layer, nn.Linear) for layer in layers]


def _refusal_of_steps(model: NeuralODEClassifier) -> str | None:
    solver, field = model.solver, model.field
    assert isinstance(field, TargetSeekingField | SimplexField)
    if isinstance(solver, AdaptiveSolver):
        return f"{solver.method} chooses its own steps, about which nothing is proved"
    if type(solver) is not FixedStepSolver:
        return f"nothing is known of the steps of a {type(solver).__name__}"
    steps = tubes.shares(solver, field.rate)
    if not min(steps) > 0:
        return f"a step of h*kappa = {min(steps):.4g} leads away from the target"
    if max(steps) > 1 - _STEP_ROOM:
        return (
            f"a step of h*kappa = {max(steps):.4g} overshoots the target; "
            f"h*kappa <= {1 - _STEP_ROOM} is needed, so use more steps"
        )
    return None
