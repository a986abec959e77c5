"""Models evaluated in lanes: batches of one fixed size, so that company changes nothing.

Floating-point kernels depend on the shape of a batch. An attack whose batch shrinks as samples
break would compute something else for those that are left, and its result for one sample would
depend on which others were attacked, skipped or broken earlier. In a lane of fixed size a row's
logits depend on that row alone. So does its gradient, but for the last digits, which in some
fields depend on the row's place in the lane.

A batch of another size is cheaper where it has several lanes' rows, or fewer than one lane's: the
steps of a solver are taken once for all. It is used where it gives the same numbers to the last
bit, which is tried out (see `_Tried`): so it is no part of what a result depends on.
"""

import hashlib
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.attacks.views import Float64, Rescaled, Smooth
from robustness.programs.trust import predicts_each_by_itself

# Rows per lane, for large and for small images, and in audits of a few images. In larger lanes the
# steps of a solver, which cost a small model more than its sums do, are shared by more rows, and
# where few rows are left more are filled in.
LANE, LANE_OF_SMALL, LANE_OF_FEW = 32, 128, 8
_SMALL = 32 * 32
# Sizes of other batches, in quarters of a lane. Of shorter lanes the parts are too small to give
# the same numbers.
_QUARTERS, _SHORTEST = (1, 2, 3, 4, 6, 8, 12, 16), 32
# A size is tried out when it was wanted so often: what that costs is then about what it has cost
# not to have it.
_WANTED = 4


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
    module, batches = batches_of(model, images, lane, backward=False)
    return torch.cat([module(part) for part in batches])[: len(images)]


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
    logits, losses, gradients, first = [], [], [], 0
    lane = lane or lane_of(images)
    module, batches = batches_of(model, images, lane, backward=True)
    for part in batches:
        count = min(len(part), len(images) - first)
        leaf = part.clone().requires_grad_()
        with torch.enable_grad():
            out = module(leaf)
            # Lane by lane whatever the batch: losses, too, round as their rows are many.
            found, start = [], first
            for one in out[:count].split(lane):
                found.append(loss(one, slice(start, start + len(one))))
                start += len(one)
            values = torch.cat(found)
            if values.requires_grad:
                (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
            else:
                gradient = None
        logits.append(out[:count].detach())
        losses.append(values.detach())
        slope = torch.zeros_like(part) if gradient is None else gradient
        gradients.append(slope[:count].to(images.dtype))
        first += count
    return torch.cat(logits), torch.cat(losses), torch.cat(gradients)


def batches_of(
    model: nn.Module, images: Float[Tensor, "n c h w"], lane: int | None, backward: bool
) -> tuple[nn.Module, Sequence[Float[Tensor, "rows c h w"]]]:
    """What to call on which batches: lanes, or others that give the same.

    Where they are others, what the lanes would have cost is counted here, so that what an attack is
    said to cost depends on its lanes alone, too.

    Args:
        model: pixels to logits, metered or not.
        images: shape (n, c, h, w), at least one.
        lane: rows of a lane; by default a function of the images' shape.
        backward: whether gradients are taken, or logits alone.
    """
    lane = lane or lane_of(images)
    inner = model.inner if isinstance(model, Metered) else model
    tried = _tried(inner)
    sizes = tried.sizes(inner, images, lane, backward) if tried else []
    if not sizes:
        return model, lanes(images, lane)
    if isinstance(model, Metered):
        rows = lane * -(-len(images) // lane)
        model.meter.gradients += rows if backward else 0
        model.meter.queries += 0 if backward else rows
    batches, first = [], 0
    for size in sizes:
        batches += lanes(images[first : first + size], size)
        first += size
    return inner, batches


class _Tried:
    """Which sizes of batches give a module's numbers of lanes, to the last bit.

    The order in which the sums of a row are taken follows from the shape of its batch, and not from
    what is in it. So a size is tried once, on noise, whose sums round otherwise in another order.
    """

    def __init__(self) -> None:
        self._wanted: dict[tuple[object, ...], int] = {}
        self._same: dict[tuple[object, ...], bool] = {}

    def sizes(self, module: nn.Module, images: Tensor, lane: int, backward: bool) -> list[int]:
        """Of batches for some images, the last filled up; none where lanes will do."""
        most = lane * _QUARTERS[-1] // 4
        full, rest = divmod(len(images), most)
        sizes = [most] * full
        if rest:
            sizes.append(next(lane * q // 4 for q in _QUARTERS if lane * q // 4 >= rest))
        if lane < _SHORTEST or lane % 4 or set(sizes) <= {lane}:
            return []
        about = (lane, images.shape[1:], images.dtype, module.training, backward)
        if all(self._gives_the_same(module, images, size, about) for size in set(sizes) - {lane}):
            return sizes
        return []

    def _gives_the_same(
        self, module: nn.Module, images: Tensor, size: int, about: tuple[object, ...]
    ) -> bool:
        key = (size, *about)
        if key not in self._same:
            self._wanted[key] = self._wanted.get(key, 0) + 1
            if self._wanted[key] <= _WANTED:
                return False
            lane, *_, backward = about
            assert isinstance(lane, int)
            self._same[key] = _same(module, images, size, lane, bool(backward))
        return self._same[key]


def _same(module: nn.Module, images: Tensor, size: int, lane: int, backward: bool) -> bool:
    """Whether a batch of a size gives, of noise, what lanes give; see `_Tried`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((size, *images.shape[1:]), generator=generator).to(images.dtype)

    def numbers(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logits: list[Tensor] = []
        slopes: list[Tensor | None] = []
        first = 0
        for part in batches:
            leaf = part.clone().requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                out = module(leaf)
            logits.append(out.detach())
            if backward and out.requires_grad:
                # Of filled up rows none, as in a climb.
                drawn = torch.randn((size, out.shape[1]), generator=generator.manual_seed(1))
                weights = torch.zeros_like(out)
                weights[: size - first] = drawn[first : first + len(part)]
                slopes += torch.autograd.grad(out, leaf, weights, allow_unused=True)
            first += len(part)
        found = torch.cat([slope for slope in slopes if slope is not None] or [noise[:0]])
        return torch.cat(logits)[:size], found[:size]

    (logits, slopes), (others, of_others) = numbers(lanes(noise, lane)), numbers([noise])
    if not (torch.equal(logits, others) and torch.equal(slopes, of_others)):
        return False
    # Where nearly all is zero, equality says nothing of an order.
    return not backward or 2 * int((slopes.flatten(1) != 0).any(dim=1).sum()) > size


_modules: "WeakKeyDictionary[nn.Module, _Tried | None]" = WeakKeyDictionary()
# What this package puts around a model to climb it, which treats each image for itself.
_AROUND = (Rescaled, Float64, Smooth)


def _tried(module: nn.Module) -> _Tried | None:
    """Of a module on the CPU that is known to treat each image for itself; None of any other."""
    if module not in _modules:
        core = module
        while type(core) in _AROUND:
            (core,) = core.children()
        tensors = [*core.parameters(), *core.buffers()]
        known = all(t.device.type == "cpu" for t in tensors) and predicts_each_by_itself(core)
        _modules[module] = _Tried() if known else None
    return _modules[module]


def sample_generator(seed: int, image: Tensor) -> torch.Generator:
    """Random draws that depend on a seed and on one image, not on its place or company."""
    content = image.detach().cpu().contiguous().numpy().tobytes()
    digest = hashlib.sha256(seed.to_bytes(8, "little") + content).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
