"""Training losses: the Lyapunov condition by Monte Carlo, cross-entropy, certified Lyapunov."""

import math
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.fields import CORNER, LyaNetField, TargetSeekingField


def sample_states(
    count: int, classes: int, generator: torch.Generator
) -> Float[Tensor, "count classes"]:
    """States as LyaNet draws them: uniform direction, radius uniform in [0, 15 sqrt(n)].

    Source: arXiv 2202.02526, published code. The same states serve every image of a batch.

    Returns:
        States of shape (count, classes).
    """
    directions = functional.normalize(torch.randn(count, classes, generator=generator), dim=1)
    radii = CORNER * math.sqrt(classes) * torch.rand(count, 1, generator=generator)
    return directions * radii


def lyapunov_violation(
    states: Float[Tensor, "n k"],
    velocities: Float[Tensor, "n k"],
    labels: Int[Tensor, " n"],
    rate: float,
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

    Returns:
        The violation per state, shape (n,), zero where the condition holds.
    """
    gradient = states.softmax(dim=1) - functional.one_hot(labels, states.shape[1])
    decrease = (gradient * velocities).sum(dim=1)
    return functional.relu(decrease + rate * potential(states, labels).detach())


def monte_carlo_lyapunov(
    model: NeuralODEClassifier,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    states: Float[Tensor, "s k"],
) -> Float[Tensor, ""]:
    """LyaNet's Monte Carlo loss: the mean violation over every image and every state.

    No solver runs: the field is evaluated once, at n * s pairs.

    Args:
        model: the classifier; its field carries kappa as `rate`.
        images: pixels, shape (n, c, h, w).
        labels: classes, shape (n,).
        states: sampled states, shape (s, classes).

    Returns:
        The loss, a scalar.
    """
    features = model.features(images)
    count, per_image = len(states), len(images)
    every_state = states.repeat(per_image, 1)
    every_feature = features.repeat_interleave(count, dim=0)
    field = cast("LyaNetField | TargetSeekingField", model.field)
    velocities = field(states.new_zeros(()), every_state, every_feature)
    every_label = labels.repeat_interleave(count)
    return lyapunov_violation(every_state, velocities, every_label, field.rate).mean()


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
    normals = field.head.weight
    slopes = torch.linalg.vector_norm(normals[labels].unsqueeze(1) - normals, dim=2)
    lipschitz = 1 / float(model.normalise.std.min())
    return functional.cross_entropy((scores + eps * lipschitz * slopes) / temperature, labels)


def certified_margin_radius(
    model: NeuralODEClassifier, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """A float32 preview of the certified l2 radius, for choosing a checkpoint; proves nothing."""
    field = cast(TargetSeekingField, model.field)
    scores = field.head(model.features(images))
    normals = field.head.weight
    slopes = torch.linalg.vector_norm(normals[labels].unsqueeze(1) - normals, dim=2)
    lipschitz = 1 / float(model.normalise.std.min())
    margins = scores.gather(1, labels.unsqueeze(1)) - scores
    margins = margins / (slopes * lipschitz).clamp_min(1e-12)
    return margins.scatter(1, labels.unsqueeze(1), torch.inf).amin(dim=1).clamp_min(0)
