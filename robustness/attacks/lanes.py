"""Models evaluated in lanes: batches of one fixed size, so that company changes nothing.

Floating-point kernels depend on the shape of a batch. An attack whose batch shrinks as samples
break would compute something else for those that are left, and its result for one sample would
depend on which others were attacked, skipped or broken earlier. In a lane of fixed size a row's
logits depend on that row alone. So does its gradient, but for the last digits, which in some
fields depend on the row's place in the lane.
"""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Rows per lane, for large and for small images, and in audits of a few images. In larger lanes the
# steps of a solver, which cost a small model more than its sums do, are shared by more rows, and
# where few rows are left more are filled in.
LANE, LANE_OF_SMALL, LANE_OF_FEW = 32, 128, 8
_SMALL = 32 * 32


class Meter:
    """What an attack has cost, in rows (images) passed through a model.

    Attributes:
        queries: rows passed forward only.
        gradients: rows passed forward and backward.
    """

    def __init__(self) -> None:
        self.queries = 0
        self.gradients = 0


class Metered(nn.Module):
    """A model that counts what passes through it.

    Args:
        inner: the model.
        meter: where to count.
    """

    def __init__(self, inner: nn.Module, meter: Meter) -> None:
        super().__init__()
        self.inner, self.meter = inner, meter
        # A library that asks the wrapper for its mode is told the model's.
        self.training = inner.training

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """The model's logits, shape (n, classes)."""
        if images.requires_grad and torch.is_grad_enabled():
            self.meter.gradients += len(images)
        else:
            self.meter.queries += len(images)
        return self.inner(images)


def metered_with(known: nn.Module, other: nn.Module) -> nn.Module:
    """Another model, counted where a known one is, if it is."""
    return Metered(other, known.meter) if isinstance(known, Metered) else other


def lane_of(images: Float[Tensor, "n c h w"]) -> int:
    """How many rows a lane of such images has: a function of their shape alone."""
    return LANE_OF_SMALL if images[0].numel() <= _SMALL else LANE


def lanes(
    images: Float[Tensor, "n c h w"], lane: int | None = None
) -> list[Float[Tensor, "lane c h w"]]:
    """Split into lanes, of `lane_of` rows unless said, the last filled up with its first image."""
    lane = lane or lane_of(images)
    parts = list(images.split(lane))
    short = lane - len(parts[-1])
    if short:
        filler = parts[-1][:1].expand(short, -1, -1, -1)
        parts[-1] = torch.cat([parts[-1], filler])
    return parts


@torch.no_grad()
def scores(
    model: nn.Module, images: Float[Tensor, "n c h w"], lane: int | None = None
) -> Float[Tensor, "n k"]:
    """Logits lane by lane, shape (n, classes)."""
    return torch.cat([model(part) for part in lanes(images, lane)])[: len(images)]


def scores_and_gradients(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    loss: Callable[[Tensor, slice], Tensor],
    lane: int | None = None,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"], Float[Tensor, "n c h w"]]:
    """Logits, losses and the gradients of the losses, lane by lane.

    Args:
        model: pixels to logits.
        images: shape (n, c, h, w), at least one.
        loss: from the logits of some rows, and which rows, to one value per row.
        lane: rows of a lane; by default a function of the images' shape.

    Returns:
        Logits, shape (n, classes); losses, shape (n,); gradients, shape (n, c, h, w). A row
        without a gradient (a constant model) has a gradient of zero.
    """
    logits, losses, gradients = [], [], []
    for number, part in enumerate(lanes(images, lane)):
        rows = slice(number * len(part), min((number + 1) * len(part), len(images)))
        count = rows.stop - rows.start
        leaf = part.clone().requires_grad_()
        with torch.enable_grad():
            out = model(leaf)
            values = loss(out[:count], rows)
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
            else:
                gradient = None
        logits.append(out[:count].detach())
        losses.append(values.detach())
        found = torch.zeros_like(part) if gradient is None else gradient
        gradients.append(found[:count].to(images.dtype))
    return torch.cat(logits), torch.cat(losses), torch.cat(gradients)


def sample_generator(seed: int, image: Tensor) -> torch.Generator:
    """Random draws that depend on a seed and on one image, not on its place or company."""
    content = image.detach().cpu().contiguous().numpy().tobytes()
    digest = hashlib.sha256(seed.to_bytes(8, "little") + content).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
