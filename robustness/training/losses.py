"""Training losses: the Lyapunov condition by Monte Carlo, along paths and certified; others."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.continuous import ContinuousNet
from robustness.nets.fields import CORNER, LyaNetField, TargetSeekingField, velocities_on_grid
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.nets.solvers import FixedStepSolver


def sample_states(
    count: int, classes: int, generator: torch.Generator, extent: float = 1.0
) -> Float[Tensor, "count classes"]:
    """States as LyaNet draws them: uniform direction, radius uniform in [0, 15 sqrt(n)].

    Source: arXiv 2202.02526, published code. The same states serve every image of a batch.

    Args:
        count: number of states.
        classes: n, their dimension.
        generator: source of the draws.
        extent: share of the authors' largest radius. V, and with it the violation, grows with
            the state, so a wide ball is dominated by states far from where trajectories start.

    Returns:
        States of shape (count, classes).
    """
    directions = functional.normalize(torch.randn(count, classes, generator=generator), dim=1)
    radii = CORNER * math.sqrt(classes) * torch.rand(count, 1, generator=generator)
    return directions * (extent * radii)


def lyapunov_violation(
    states: Float[Tensor, "n k"],
    velocities: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    rate: float,
    attached: bool = False,
) -> Float[Tensor, " n"]:
    """How far each state is from exponential stability: relu(grad V_y . f + kappa V_y).

    With V_y the cross-entropy of the state, grad V_y = softmax(eta) - e_y. As in the authors'
    code, kappa multiplies a V that carries no gradient (arXiv 2202.02526, equation for the
    Lyapunov loss).

    Args:
        states: where the condition is checked, shape (n, classes).
        velocities: f(eta, z) at those states, shape (n, classes).
        labels: the class y of each state, shape (n,).
        rate: kappa.
        attached: let kappa V carry a gradient after all, which matters for states that depend
            on the network.

    Returns:
        The violation per state, shape (n,), zero where the condition holds.
    """
    gradient = states.softmax(dim=1) - functional.one_hot(labels, states.shape[1])
    values = potential(states, labels)
    return _violation(gradient, velocities, rate * (values if attached else values.detach()))


def _violation(gradient: Tensor, velocities: Tensor, demand: Tensor) -> Tensor:
    """relu(grad V . f + demand), the classes being the last axis of both factors."""
    return functional.relu((gradient * velocities).sum(dim=-1) + demand)


def monte_carlo_lyapunov(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    states: Float[Tensor, "s k"],
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """LyaNet's Monte Carlo loss, a scalar: the mean of `monte_carlo_violations`."""
    return monte_carlo_violations(model, images, labels, states, drop).mean()


def monte_carlo_violations(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    states: Float[Tensor, "s k"],
    drop: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "n s"]:
    """By how much every image violates the Lyapunov condition at every state.

    No solver runs: the field is evaluated once, on the grid of n images and s states. The
    violation is that of `lyapunov_violation`, with what depends on the state alone computed
    once per state.

    The larger the gain, the less of a margin the condition asks for: a velocity that points
    weakly to the right side meets it. Dropout of the field's hidden units asks for one again.

    Args:
        model: the classifier; its field carries kappa as `rate`.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        states: sampled states, shape (s, classes).
        drop: dropout of the hidden units of LyaNet's field (`dropout`); None keeps all.
    """
    field = cast("LyaNetField | TargetSeekingField", model.field)
    features = model.features(images)
    if drop is None:
        velocities = velocities_on_grid(field, states, features)
    else:
        velocities = cast(LyaNetField, field).on_grid(states, features, drop)
    corners = functional.one_hot(labels, states.shape[1]).unsqueeze(1)
    gradient = states.softmax(dim=1) - corners
    values = (states.logsumexp(dim=1, keepdim=True) - states).T[labels]
    return _violation(gradient, velocities, field.rate * values)


def moved_gain(
    gain: Float[Tensor, ""], largest: float, violated: float, progress: float, steps: int
) -> Float[Tensor, ""]:
    """The gain of LyaNet's field after a step of training, as its authors move it.

    In the first half it falls, down to 1, while less than 0.7 of all images and states violate the
    condition; in the second it rises again, up to what it was at first, while more than 0.1 do: a
    direction is asked for at first, then a margin as well.

    Source: code of arXiv 2202.02526, where a step's factor is 0.9999 or 1.0001 in 120 epochs. They
    have about as many steps in a half as lead from 100 to 1; here a half has exactly so many.
    Where weights are averaged the gain is averaged with them, as all that a model keeps: that of
    the averaged model lags behind the one that its violations were counted at.

    Args:
        gain: before the step.
        largest: that it begins at.
        violated: share of images and states that violate the condition.
        progress: share of all training steps that are done.
        steps: of the whole training.
    """
    factor = largest ** (2 / steps)
    if progress < 0.5:
        return (gain / factor).clamp_min(1.0) if violated < 0.7 else gain
    return (gain * factor).clamp_max(largest) if violated > 0.1 else gain


def dropout(share: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Dropout that draws from a given source, so that a resumed training draws the same.

    Args:
        share: probability in [0, 1) that a unit is set to zero; the rest is scaled up.
        generator: source of the draws.
    """

    def drop(units: Tensor) -> Tensor:
        kept = torch.empty_like(units, device="cpu").bernoulli_(1 - share, generator=generator)
        kept = kept.to(units.device)
        return units * kept / (1 - share)

    return drop


def path_integral_lyapunov(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    through_solver: bool,
    rate: float | None = None,
) -> Float[Tensor, ""]:
    """LyaNet's path integral loss: the mean violation over the states of solved trajectories.

    Source: arXiv 2202.02526, the second of its two training algorithms. Where the Monte Carlo
    loss covers the state space, this one covers the states that the classifier really visits.

    Args:
        model: the classifier; its field carries kappa as `rate`.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        through_solver: whether the gradient also flows through the solved states. Without it
            the states are data, as the Monte Carlo loss's are, and the encoder and the field
            learn from the velocities at these states alone. With it kappa V carries a gradient
            too: |grad V| is largest at wrong states, and a loss that felt the states through
            grad V . f alone would lead trajectories there to have more to decrease.
        rate: kappa; None takes the field's.

    Returns:
        The loss, a scalar.
    """
    field = cast("LyaNetField | TargetSeekingField", model.field)
    features = model.features(images)
    with torch.set_grad_enabled(through_solver and torch.is_grad_enabled()):
        solution = model.solve(features)
    velocities = torch.stack(
        [
            field(time, state, features)
            for time, state in zip(solution.times, solution.states, strict=True)
        ]
    )
    violation = lyapunov_violation(
        solution.states.flatten(0, 1),
        velocities.flatten(0, 1),
        labels.repeat(len(solution.times)),
        field.rate if rate is None else rate,
        attached=through_solver,
    )
    return violation.mean()


def continuous_lyapunov(
    model: ContinuousNet,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    through_solver: bool,
    rate: float,
) -> Float[Tensor, ""]:
    """The path integral Lyapunov loss of a ContinuousNet, in discrete time.

    A state of a block has no class coordinates, so its potential V_y is the cross-entropy of
    what the remaining network makes of it: the logits if the block ended there. Between two
    states of the solved block that are h apart, V' <= -kappa V asks for

        V(z_{k+1}) <= exp(-kappa h) V(z_k),

    and the loss is the mean of relu((V(z_{k+1}) - exp(-kappa h) V(z_k)) / h) over the steps and
    blocks. As in the loss on class states, V(z_k) carries no gradient: the condition is met by
    lowering the later potential, not by raising the earlier. The last state's potential is the
    network's own cross-entropy in every block. Source: arXiv 2202.02526 for the condition; the
    discrete form and this choice of potential are this package's.

    Args:
        model: the classifier.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        through_solver: whether gradients flow through the states before z_k. Without it each
            step is trained from its own initial state, the first from the network before it.
        rate: kappa, per unit of a block's time.

    Returns:
        The loss, a scalar.
    """
    state = model.transitions[0](model.normalise(images))
    violations = []
    for stage in range(model.stages):
        if stage > 0:
            state = model.transitions[stage](state)
        nothing = state.new_zeros((len(state), 0))
        solution = model.solver.solve(model.fields[stage], state, nothing)
        states = solution.states if through_solver else _one_step_each(model, stage, state)
        count = len(states)
        logits = model.remaining(stage, states.flatten(0, 1))
        values = potential(logits, labels.repeat(count)).view(count, -1)
        spans = solution.times.diff().unsqueeze(1)
        allowed = torch.exp(-rate * spans) * values[:-1].detach()
        violations.append((functional.relu(values[1:] - allowed) / spans).mean())
        state = states[-1]
    return torch.stack(violations).mean()


def _one_step_each(model: ContinuousNet, stage: int, state: Tensor) -> Tensor:
    """The trajectory with every step taken from a detached state, but for the first."""
    solver = model.solver
    if not isinstance(solver, FixedStepSolver):
        raise UsageError(
            "expected a fixed-step solver for through_solver = false, got an adaptive one; "
            'set [model] solver kind to "fixed"'
        )
    step = replace(solver, steps=1, horizon=solver.step_size)
    nothing = state.new_zeros((len(state), 0))
    states = [state]
    for index in range(solver.steps):
        start = states[-1] if index == 0 else states[-1].detach()
        states.append(step.solve(model.fields[stage], start, nothing).final)
    return torch.stack(states)


def sample_simplex(
    count: int, classes: int, generator: torch.Generator
) -> Float[Tensor, "count classes"]:
    """States drawn uniformly from the probability simplex: exponential draws over their sum.

    Returns:
        States of shape (count, classes).
    """
    draws = -torch.log1p(-torch.rand(count, classes, generator=generator))
    return draws / draws.sum(dim=1, keepdim=True)


def margin_potential(state: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """FI-ODE's W_y(eta) = max over j != y of eta_j, less eta_y; negative where y leads."""
    label = functional.one_hot(labels, state.shape[1]).bool()
    rival = state.masked_fill(label, -torch.inf).amax(dim=1)
    return rival - state.gather(1, labels.unsqueeze(1)).squeeze(1)


def invariance_monte_carlo(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    states: Float[Tensor, "s k"],
    rate: float,
    leak: float,
) -> Float[Tensor, ""]:
    """The mean violation of W' <= -rate (W + 1) for a field on the simplex, at sampled states.

    W is FI-ODE's margin potential; W + 1 is non-negative on the simplex and zero at the label's
    corner alone, so the condition is exponential stability of that corner. On the boundary
    {W = 0} it asks for W' <= -rate, which makes the set of right answers forward invariant
    (arXiv 2210.16940), with room against a perturbation. A field f = kappa (g - eta) meets it
    for rate <= kappa where the target g is the corner, since W is convex.

    Where the projection ends in a wrong corner, its derivative is zero and the violation has no
    gradient. `leak` adds that share of the cross-entropy of the unprojected proposal, which has.

    Args:
        model: a classifier with a `SimplexField`.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        states: sampled states of the simplex, shape (s, classes).
        rate: of the decrease, at most the field's kappa.
        leak: weight of the cross-entropy of the unprojected target.

    Returns:
        The loss, a scalar.
    """
    field = cast(SimplexField, model.field)
    features = model.features(images)
    count, per_image = len(states), len(images)
    state = states.repeat(per_image, 1)
    label = labels.repeat_interleave(count)
    unprojected = state + field.proposal(state, features.repeat_interleave(count, dim=0))
    velocity = field.rate * (project_to_simplex(unprojected) - state)
    label_mask = functional.one_hot(label, state.shape[1]).bool()
    rival = state.masked_fill(label_mask, -torch.inf).argmax(dim=1, keepdim=True)
    decrease = (velocity.gather(1, rival) - velocity.gather(1, label.unsqueeze(1))).squeeze(1)
    violation = functional.relu(decrease + rate * (margin_potential(state, label) + 1)).mean()
    return violation + leak * functional.cross_entropy(unprojected, label)


def cross_entropy(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the logits; for a neural ODE, through its solver."""
    return functional.cross_entropy(model(images), labels)


def certified_lyapunov(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    eps: float,
    temperature: float,
) -> Float[Tensor, ""]:
    """The Lyapunov loss of a target-seeking field, at its worst over an l2 ball of radius eps.

    V is convex, so V' <= -kappa V + kappa V(g): the Lyapunov condition holds up to the loss of
    the target g, and within the ball each margin of g shrinks by at most eps times the
    Lipschitz constant of that margin. The bound on V(g) is the cross-entropy of the shrunk
    margins. Source: the comparison argument in docs/theory.md, section "Target-seeking fields".

    Args:
        model: a classifier with a `TargetSeekingField` behind a 1-Lipschitz encoder.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        eps: radius that the margins are shrunk for, in pixel units.
        temperature: in units of feature margin; smaller values attend to the hardest images.

    Returns:
        The loss, a scalar.
    """
    field = cast(TargetSeekingField, model.field)
    scores = field.head(model.features(images))
    slopes = pairwise_slopes(field.head.weight)[labels]
    lipschitz = 1 / float(model.normalise.std.min())
    return functional.cross_entropy((scores + eps * lipschitz * slopes) / temperature, labels)


def pairwise_slopes(weight: Float[Tensor, "k f"]) -> Float[Tensor, "k k"]:
    """Euclidean norm of w_i - w_j for all pairs of rows, shape (k, k).

    By inner products, (k, k) numbers instead of the (k, k, f) of all differences: with a hundred
    classes these took longer than the network. Rows that differ in their last bits only are
    kept apart by 1e-6, without a gradient.
    """
    products = weight @ weight.T
    squares = products.diagonal()
    apart = (squares.unsqueeze(1) + squares - 2 * products).clamp_min(1e-12)
    same = torch.eye(len(weight), dtype=torch.bool, device=weight.device)
    return apart.masked_fill(same, 1.0).sqrt().masked_fill(same, 0.0)


def certified_margin_radius(
    model: NeuralODEClassifier, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """A float32 preview of the certified l2 radius, for choosing a checkpoint; proves nothing."""
    field = cast(TargetSeekingField, model.field)
    scores = field.head(model.features(images))
    slopes = pairwise_slopes(field.head.weight)[labels]
    lipschitz = 1 / float(model.normalise.std.min())
    margins = scores.gather(1, labels.unsqueeze(1)) - scores
    margins = margins / (slopes * lipschitz).clamp_min(1e-12)
    return margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1).clamp_min(0)
