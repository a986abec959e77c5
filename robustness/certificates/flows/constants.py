"""The constants of a Lyapunov certificate: proved where possible, else sampled and called so.

A certificate by comparison needs, at every state that a perturbed trajectory can reach,

    V'_y <= -kappa V_y + s   and   |f(eta, E(x')) - f(eta, E(x))| <= L |x' - x|.

For a target-seeking field both follow from convexity and from proven norms, with no region to
cover. For any other field they are measured at sampled states: an estimate, whatever its value.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import Kind
from robustness.certificates.layers import bounds
from robustness.certificates.sharing import shared
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.encoders import ConvContractiveFlowEncoder, ConvContractiveStep
from robustness.nets.fields import TargetSeekingField, lyapunov_rate
from robustness.nets.runge_kutta import CONVEX, METHODS
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.numerics import arithmetic, norms
from robustness.numerics.arithmetic import ALLOWANCE_ROOM
from robustness.numerics.upper_bound import UpperBound
from robustness.programs.trust import unaltered
from robustness.threat import Norm

# Room that keeps 0 < h * kappa <= 1 true in the program's arithmetic as well.
_STEP_ROOM = 1e-4
# Room for the float32 rounding of logits, where they only tell how far to look.
_GUESS_ROOM = 1e-4
# Roundings of one Runge-Kutta step of at most four stages, per unit of state size:
# each stage subtracts, scales twice and adds (under 10 u), and the stages are combined.
_STEP_ROUNDINGS = 200
# Images up to which what a flow goes through is noted, at up to half a megabyte each.
_NOTED = 256
# Error of a difference of two softmax entries whose exact difference is >= 0.
_SOFTMAX_ROUNDINGS = 32


@dataclass(frozen=True)
class LyapunovConstants:
    """What equations (2) and (3) are evaluated with, one row per image.

    Attributes:
        rate: kappa, per unit of the field's time, shape (n,).
        slack: s, shape (n,).
        lipschitz: L from l2 pixels to velocity, shape (n,).
        initial: V_y(eta(0)).
        horizon: T.
        reach: l2 radius of the perturbations for which the constants hold, shape (n,).
        kind: `certified` where all of the above are proved for the solver that runs.
        how: where they come from.
    """

    rate: Float[Tensor, " n"]
    slack: Float[Tensor, " n"]
    lipschitz: Float[Tensor, " n"]
    initial: float
    horizon: float
    reach: Float[Tensor, " n"]
    kind: Kind
    how: str


@shared
def refusal_of_proof(model: object) -> str | None:
    """Why nothing is proved about `model` by Lipschitz constants; None where it is."""
    refusal = refusal_of_flow(model)
    if refusal is not None:
        return refusal
    assert isinstance(model, NeuralODEClassifier)
    try:
        pixel_slope(model)
    except ValueError as error:
        return str(error)
    return None


def refusal_of_flow(model: object) -> str | None:
    """Why nothing is proved about `model` as a target-seeking flow, whatever its encoder."""
    if not isinstance(model, NeuralODEClassifier):
        return "the model is not a neural ODE on the class state"
    if not isinstance(model.field, TargetSeekingField):
        return "the vector field is not target-seeking, so no slack is proved for it"
    return refusal_of_arithmetic(model) or _refusal_of_program(model)


def refusal_of_arithmetic(model: NeuralODEClassifier) -> str | None:
    """Why the rounding bounds do not cover the arithmetic of `model`; None where they do."""
    assert isinstance(model.field, TargetSeekingField | SimplexField)
    if not 1 / arithmetic.LARGEST <= model.field.gain <= arithmetic.LARGEST:
        return f"a gain of {model.field.gain:g} leaves the range of float32"
    coupling = getattr(model.field, "coupling", 0.0)
    if not (model.field.rate > 0 and coupling >= 0):
        return (
            f"nothing is proved of a rate of {model.field.rate:g} and a coupling of {coupling:g}; "
            "a rate above 0 and a coupling of 0 or more are needed"
        )
    return bounds.refusal_of_arithmetic(model, model.dtype)


def _refusal_of_program(model: NeuralODEClassifier) -> str | None:
    assert isinstance(model.field, TargetSeekingField)
    parts = (
        (model, NeuralODEClassifier),
        (model.field, TargetSeekingField),
        (model.field.head, nn.Linear),
    )
    try:
        retained_per_step(model)
    except ValueError as error:
        return str(error)
    for part, known in parts:
        if not unaltered(part, known):
            return f"{type(part).__name__} alters what a {known.__name__} computes"
    return None


def retained_per_step(model: NeuralODEClassifier) -> float:
    """How much of a state survives one step: y -> rho y + (1 - rho) targets, 0 <= rho < 1.

    Euler with h kappa <= 1 is that convex combination, and heun2, a convex combination of Euler
    steps, is too (strong stability preservation). midpoint and rk4 are not, except for a target
    that does not depend on the state: there every Runge-Kutta method gives its stability
    polynomial R(-h kappa).

    Returns:
        rho, rounded up for the arithmetic of the program.

    Raises:
        ValueError: the solver that runs has no such form; the message says why.
    """
    solver, field = model.solver, model.field
    assert isinstance(field, TargetSeekingField)
    if isinstance(solver, AdaptiveSolver):
        raise ValueError(
            f"{solver.method} chooses its own steps, which are not convex combinations"
        )
    if type(solver) is not FixedStepSolver:
        raise ValueError(f"nothing is known of the steps of a {type(solver).__name__}")
    # In floating-point arithmetic the steps of the grid that is solved on are not all alike.
    grid = torch.linspace(0.0, solver.horizon, solver.steps + 1, dtype=model.dtype)
    steps = grid.diff().double() * field.rate
    a, most = float(steps.min()), float(steps.max())
    if not most <= 1 - _STEP_ROOM:
        raise ValueError(
            f"a step of h*kappa = {most:.4g} overshoots the target; h*kappa <= {1 - _STEP_ROOM} "
            "is needed, so use more steps"
        )
    if a < _STEP_ROOM:
        raise ValueError(
            f"a step of h*kappa = {a:.4g} is lost in rounding; h*kappa >= {_STEP_ROOM} is "
            "needed, so use fewer steps or a longer horizon"
        )
    if solver.method not in CONVEX and field.coupling > 0:
        raise ValueError(
            f"{solver.method} steps are not convex combinations of states and targets when the "
            f"target depends on the state; use {' or '.join(CONVEX)}"
        )
    # All four decrease on [0, 1], with slopes of at most 1 in size: the shortest step retains the
    # most, and the rounding of h * kappa moves what it retains by less than a millionth.
    return METHODS[solver.method].retained(a) + 1e-6


@dataclass(frozen=True)
class Margins:
    """Margins of the label at unperturbed images, with everything that can shrink them.

    Attributes:
        margins: float64 margin of the label over each class, reduced by the allowance for
            rounding; infinite at the label itself; shape (n, classes).
        slopes: l2 Lipschitz constant of each margin in pixels, shape (n, classes).
        allowance: what the margins gave up to rounding, shape (n, classes).
        reach: l2 radius of the images that the allowance holds for; no certificate of these
            margins exceeds it; shape (n,).
    """

    margins: Float[Tensor, "n k"]
    slopes: Float[Tensor, "n k"]
    allowance: Float[Tensor, "n k"]
    reach: Float[Tensor, " n"]


@shared
def _exactly(model: NeuralODEClassifier) -> nn.Module:
    """Pixels to features in float64: a copy of the layers that no instance has altered."""
    return copy.deepcopy(nn.Sequential(model.normalise, model.encoder)).double()


@shared
@torch.no_grad()
def target_margins(
    model: NeuralODEClassifier, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Margins:
    """Margins of the target network without the coupling, their slopes, and the allowance.

    The allowance bounds how far the program can fall behind exact arithmetic: the
    encoder's and the head's rounding, the softmax of the coupling, and the solver's own
    rounding, which a step offsets with its share 1 - rho of the margin. It is evaluated for all
    images within `reach`, the radius that the margins would give if nothing were rounded.
    """
    with arithmetic.computed_in(model.dtype):
        return _target_margins(model, images, labels)


def _target_margins(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Margins:
    field = model.field
    assert isinstance(field, TargetSeekingField)
    slope = pixel_slope(model)
    weight = field.head.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if field.head.bias is None else field.head.bias.double()
    rival_slopes = norms.pairwise_slopes(field.head.weight)[labels]
    slopes = field.gain * rival_slopes * slope.value

    def margins_at(features: Tensor) -> Tensor:
        return margins_of_scores(field.gain * (features @ weight.T + bias), labels)

    steps: Mapping[nn.Module, bounds.Activations] = {}
    if model.dtype is torch.float64:
        # Any reach will do, and rounding hardly depends on it: the logits that are known anyway
        # tell enough, and the features are computed once, with their rounding.
        found = deployed(model, images)
        steps = found.steps  # as good a centre as others, and known already
        reach = _reach_from_logits(model, found.logits, images, labels, slopes)
    else:
        reach = reach_of(margins_at(_exactly(model)(images.double())), slopes, images)
    ball = bounds.Tube.around(images, reach)
    with bounds.deployed_as(steps):
        tube = bounds.propagate(model.encoder, bounds.propagate(model.normalise, ball))
    exact = margins_at(tube.centre)
    row, offset = float(weight.norm(dim=1).max()), float(bias.abs().max())
    length = torch.linalg.vector_norm(tube.centre, dim=1) + tube.spread
    score = row * length + offset
    per_image = flow_allowance(model, score, row + length).unsqueeze(1)
    allowance = field.gain * rival_slopes * tube.error.unsqueeze(1) + per_image
    allowance = allowance * (1 + ALLOWANCE_ROOM)
    return Margins(exact - allowance, slopes, allowance, reach)


def _reach_from_logits(
    model: NeuralODEClassifier, logits: Tensor, images: Tensor, labels: Tensor, slopes: Tensor
) -> Tensor:
    """About `reach_of` the target's margins where the label leads.

    At the horizon a lead is (1 - rho^N) times the target's margin, or more by the coupling, and the
    rounding of logits to float32. A guess that is too small costs radius, and never a proof: no
    radius exceeds the reach that the allowance was made for.
    """
    leads = margins_of_scores(logits.double(), labels)
    assert isinstance(model.solver, FixedStepSolver)
    arrived = 1 - retained_per_step(model) ** model.solver.steps
    guess = leads / arrived * (1 + _GUESS_ROOM)
    return reach_of(guess.nan_to_num(0.0, torch.inf, 0.0), slopes, images)


def margins_of_scores(scores: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Tensor:
    """The label's lead over each class, infinite at the label itself, shape (n, classes)."""
    label = torch.nn.functional.one_hot(labels, scores.shape[1]).bool()
    return (scores.gather(1, labels.unsqueeze(1)) - scores).masked_fill(label, torch.inf)


def reach_of(
    margins: Float[Tensor, "n k"], slopes: Float[Tensor, "n k"], images: Float[Tensor, "n c h w"]
) -> Float[Tensor, " n"]:
    """The l2 radius that margins would give if nothing were rounded, within the pixel box.

    No image of the pixel box is farther than sqrt(d).
    """
    radii = (margins / slopes.clamp_min(1e-300)).amin(dim=1)
    return radii.clamp(0, math.sqrt(images[0].numel()))


def flow_allowance(
    model: NeuralODEClassifier, score: Float[Tensor, " n"], operands: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """What a margin of the target can lose to the rounding of head, softmax and solver.

    Args:
        model: a target-seeking flow.
        score: a bound on every score W z + b with all of its terms taken positive, shape (n,).
        operands: a bound on every weight and feature that enters it, shape (n,).

    Returns:
        A bound of shape (n,), in logits of the target; infinite where float32 might overflow.
        Rounding is that of `arithmetic.computed_in`, the model's own.
    """
    field = model.field
    assert isinstance(field, TargetSeekingField)
    head_error = 2 * arithmetic.rounding(score, (1, field.head.weight.shape[1] + 4), operands)
    floor = max(abs(model.initial), 1 / arithmetic.LARGEST)
    state_size = (field.gain * score + field.coupling).clamp_min(floor) * 1.001
    unit = arithmetic.current_arithmetic().unit
    step_error = _STEP_ROUNDINGS * unit * state_size / (1 - retained_per_step(model))
    # The logits are handed out in float32, in which two of them may fall together.
    step_error = step_error + 2 * arithmetic.FLOAT32.unit * state_size / (
        1 - retained_per_step(model)
    )
    step_error = torch.where(state_size <= arithmetic.LARGEST, step_error, torch.inf)
    softmax_error = _SOFTMAX_ROUNDINGS * unit * field.coupling
    return field.gain * head_error + step_error + softmax_error


@shared
def pixel_slope(model: NeuralODEClassifier) -> UpperBound:
    """Proven l2 Lipschitz constant from pixels to features.

    Raises:
        ValueError: none is known for the encoder.
    """
    normalise, encoder = bounds.lipschitz(model.normalise), bounds.lipschitz(model.encoder)
    if normalise is None or encoder is None:
        raise ValueError("no Lipschitz constant is proved for the encoder")
    return normalise * encoder


@torch.no_grad()
def proved_constants(
    model: NeuralODEClassifier, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> LyapunovConstants:
    """Constants of a target-seeking field, proved for the discrete steps that run.

    V is convex, so each step gives V <= rho V + (1 - rho) V(g). With kappa = -ln(rho) / h that
    is the sampled flow of V' = -kappa V + kappa V(g), and V(g), over all states, is at most the
    cross-entropy of the target's margins less the coupling.
    """
    assert isinstance(model.solver, FixedStepSolver)
    assert isinstance(model.field, TargetSeekingField)
    rate = -math.log(retained_per_step(model)) / model.solver.step_size
    target = target_margins(model, images, labels)
    # Outside the cone where the label leads, the coupling can work against it in full.
    worst = target.margins - model.field.coupling
    loss = torch.log1p(torch.exp(-worst).sum(dim=1))
    head = norms.spectral_norm(model.field.head.weight)
    slope = model.field.gain * (head * pixel_slope(model)).value
    ones = torch.ones(len(images), dtype=torch.float64)
    return LyapunovConstants(
        rate=rate * ones,
        slack=rate * loss,
        lipschitz=rate * slope * ones,
        initial=math.log(model.classes),
        horizon=model.solver.horizon,
        reach=target.reach,
        kind=Kind.CERTIFIED,
        how="slack proved by convexity of V, field behind an encoder of proven Lipschitz constant "
        f"{pixel_slope(model).value:.3g}",
    )


def sampled_constants(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    states_per_image: int = 6,
) -> LyapunovConstants:
    """Constants measured at states along each image's solved trajectory: an estimate.

    Of a few rates around the trained one, each image keeps the one whose steady value
    s / kappa is least.
    """
    trained = float(getattr(model.field, "rate", lyapunov_rate(model.classes)))
    with torch.no_grad():
        solution = model.solve(model.features(images), points=states_per_image)
    chosen = torch.linspace(0, len(solution.times) - 1, states_per_image).round().long()
    rates = trained * torch.tensor([0.25, 0.5, 1.0, 2.0], dtype=torch.float64)
    decreases, values, slopes = [], [], []
    for index in chosen.tolist():
        state, time = solution.states[index].detach(), solution.times[index]
        with torch.enable_grad():
            pixels = images.clone().requires_grad_()
            velocity = model.field(time, state, model.features(pixels))
            rows = [
                torch.autograd.grad(entry, pixels, retain_graph=True)[0].flatten(1)
                for entry in velocity.sum(dim=0)
            ]
        velocity = velocity.detach()
        gradient = state.softmax(dim=1) - torch.nn.functional.one_hot(labels, state.shape[1])
        decreases.append((gradient * velocity).sum(dim=1).double())
        values.append(potential(state, labels).double())
        jacobian = torch.stack(rows, dim=1)
        sane = jacobian.flatten(1).isfinite().all(dim=1)
        norms = torch.linalg.matrix_norm(jacobian.nan_to_num(0.0, 0.0, 0.0), 2).double()
        slopes.append(torch.where(sane, norms, torch.inf))
    decrease, value = torch.stack(decreases), torch.stack(values)
    slacks = (decrease.unsqueeze(2) + rates * value.unsqueeze(2)).clamp_min(0).amax(dim=0)
    pick = (slacks / rates).nan_to_num(torch.inf).argmin(dim=1)
    return LyapunovConstants(
        rate=rates[pick],
        slack=slacks.gather(1, pick.unsqueeze(1)).squeeze(1),
        lipschitz=torch.stack(slopes).amax(dim=0),
        initial=math.log(model.classes),
        horizon=model.solver.horizon,
        reach=torch.full((len(images),), torch.inf, dtype=torch.float64),
        kind=Kind.ESTIMATE,
        how=f"kappa, slack and Lipschitz constant sampled at {states_per_image} states per image",
    )


@dataclass(frozen=True)
class Deployed:
    """What the deployed program computed of a batch of images.

    Attributes:
        logits: its answer, shape (n, classes).
        steps: what it computed around each step of a convolutional contractive flow in float64,
            which costs a certificate as much as the prediction to compute again; else empty.
    """

    logits: Float[Tensor, "n k"]
    steps: dict[nn.Module, bounds.Activations]


@shared
@torch.no_grad()
def deployed(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Deployed:
    """The model's own answer to a batch of images, and what its flow went through."""
    if not (
        isinstance(model, NeuralODEClassifier)
        and unaltered(model, NeuralODEClassifier)
        and unaltered(model.encoder, ConvContractiveFlowEncoder)
        and model.dtype is torch.float64
        and images.device.type == "cpu"  # where proofs are computed
        and len(images) <= _NOTED
    ):
        answer: Tensor = model(images)
        return Deployed(answer, {})
    # What these classes' own `forward` does, layer by layer: hooks would be seen by others.
    steps: dict[nn.Module, bounds.Activations] = {}
    state = model.normalise(images.to(model.dtype))
    assert isinstance(model.encoder, ConvContractiveFlowEncoder)
    for layer in model.encoder:
        before, state = state, layer(state)
        if type(layer) is ConvContractiveStep:
            steps[layer] = bounds.Activations(before, state)
    return Deployed(model.solve(state).final.to(images.dtype), steps)


def deployed_logits(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
    """The model's own answer to a batch of images, shape (n, classes)."""
    return deployed(model, images).logits


@shared
@torch.no_grad()
def failure(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> list[str]:
    """Why each image has no radius at all, by the deployed model's word; empty where it may."""
    logits = deployed_logits(model, images)
    sane, right = logits.isfinite().all(dim=1), logits.argmax(dim=1) == labels
    return [
        ("" if correct else "the prediction is wrong") if finite else "the logits are not finite"
        for finite, correct in zip(sane.tolist(), right.tolist(), strict=True)
    ]


def to_norm(radii: Float[Tensor, " n"], pixels: int, norm: Norm) -> Float[Tensor, " n"]:
    """An l2 radius in `norm`: an l-infinity ball of radius r lies in the l2 ball of r sqrt(d)."""
    return radii if norm is Norm.L2 else radii / math.sqrt(pixels)
