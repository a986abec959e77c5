"""Lines chosen for each image: the slopes of undecided entries, by ascent on a margin's bound.

A rectifier that may bend lies above every line of a slope in [0, 1] through its bend, a convex
function above every tangent, a concave one below. Which of them is best depends on image and rival.
The choices are numbers in [0, 1], and the bound, its rounding included, is differentiable in them:
they are climbed by Adam (alpha-CROWN, Xu et al., arXiv 2011.13824). Every choice gives a bound
that holds, so the best bound that was met is taken and nothing rests on the ascent.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.programs.network import Bounds
from robustness.programs.operations.base import Rows

# Adam's step size at first, the factor between two steps, and the decay of its means.
_RATE, _DECAY, _MEANS = 0.3, 0.97, (0.9, 0.999)
# Shares that are climbed together, which bounds memory.
_TOGETHER = 2**21


@torch.no_grad()
def climbed(
    bounds: Bounds, step: int, rows: Rows, found: Float[Tensor, "n r"], steps: int
) -> Float[Tensor, "n r"]:
    """Lower bounds, those not above 0 raised by other choices of lines.

    Args:
        bounds: boxes of every step.
        step: whose linear functions are bounded.
        rows: the functions.
        found: what `Bounds.lower` says of them.
        steps: of the ascent; 0 leaves everything as it is.

    Returns:
        Bounds that hold and are nowhere below `found`.
    """
    raised = found.clone()
    pairs = (found.isfinite() & (found <= 0)).nonzero()
    if steps == 0 or len(pairs) == 0:
        return raised
    size = sum(share[0].numel() for share in bounds.shares(step).values())
    for part in pairs.split(max(1, _TOGETHER // max(1, size))):
        image, row = part.unbind(dim=1)
        ascended = _ascended(bounds.lanes(image), step, rows[image, row].unsqueeze(1), steps)
        raised[image, row] = torch.maximum(found[image, row], ascended)
    return raised


def _ascended(bounds: Bounds, step: int, rows: Rows, steps: int) -> Float[Tensor, " n"]:
    shares = bounds.shares(step)
    best = rows.new_full((len(rows),), -torch.inf)
    first = {i: torch.zeros_like(share) for i, share in shares.items()}
    second = {i: torch.zeros_like(share) for i, share in shares.items()}
    for number in range(1, steps + 2):
        last = number == steps + 1
        with torch.set_grad_enabled(not last):
            leaves = {i: share.requires_grad_(not last) for i, share in shares.items()}
            bound = bounds.lower(step, rows, leaves).squeeze(1)
            total = bound.sum()
        best = torch.maximum(best, bound.detach())
        if last or not bound.requires_grad or bool((best > 0).all()):
            break
        slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        rate = _RATE * _DECAY ** (number - 1)
        for (i, share), slope in zip(list(shares.items()), slopes, strict=True):
            if slope is None:
                shares[i] = share.detach()
                continue
            # What is without bound has no slope.
            slope = slope.nan_to_num(0.0, 0.0, 0.0)
            first[i] = _MEANS[0] * first[i] + (1 - _MEANS[0]) * slope
            second[i] = _MEANS[1] * second[i] + (1 - _MEANS[1]) * slope**2
            mean = first[i] / (1 - _MEANS[0] ** number)
            spread = (second[i] / (1 - _MEANS[1] ** number)).sqrt()
            moved = share.detach() + rate * mean / spread.clamp_min(1e-30)
            shares[i] = moved.clamp(0, 1)
    return best
