"""Adversarial training: projected gradient descent inside the training step."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from robustness.threat import Norm

# From a random start in a ball, steps * step_size = 2.5 eps can reach every point of it.
_REACH = 2.5


def perturb(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    eps: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> Float[Tensor, "n c h w"]:
    """Images within `eps` that raise the cross-entropy (Madry et al., arXiv 1706.06083).

    The attack starts at random and sees the model in evaluation mode, in which images do not
    share batch statistics; the model's mode is restored. No parameter receives a gradient.

    Args:
        model: from pixels to logits.
        images: pixels in [0, 1], shape (n, c, h, w).
        labels: classes, shape (n,).
        norm: norm of the ball.
        eps: radius of the ball, in pixel units.
        steps: number of gradient steps.
        generator: source of the random start.
        step_size: length of a step in `norm`; 2.5 eps / steps by default.

    Returns:
        Perturbed images in [0, 1], shape (n, c, h, w), without a graph.
    """
    length = _REACH * eps / steps if step_size is None else step_size
    training = model.training
    model.eval()
    try:
        start = (2 * torch.rand(images.shape, generator=generator) - 1).to(images.device)
        radii = images.new_full((len(images),), eps)
        delta = norm.clip(eps * start, radii)
        for _ in range(steps):
            pixels = (images + delta).clamp(0, 1).detach().requires_grad_()
            loss = functional.cross_entropy(model(pixels), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
            moved = pixels.detach() + length * norm.steepest(gradient)
            delta = norm.clip(moved - images, radii)
    finally:
        model.train(training)
    return (images + delta).clamp(0, 1).detach()


def adversarial(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    eps: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy at the images that `perturb` finds; arguments as there."""
    worst = perturb(model, images, labels, norm, eps, steps, generator, step_size)
    return functional.cross_entropy(model(worst), labels)
