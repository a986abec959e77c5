"""Sums of products with constant factors: matrices, convolutions, sums, means, scalings."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from robustness.numerics.arithmetic import rounding_of_entries
from robustness.programs.boxes import Box
from robustness.programs.graph import Node, Refusal
from robustness.programs.operations.base import (
    NORMAL,
    Operation,
    Rows,
    broadcast,
    constant,
    dot,
    register,
    require,
    summed_to,
)

_aten = torch.ops.aten
# Operations behind one entry of a batch norm in evaluation mode, in either of its forms,
# x alpha + (beta - mean alpha) or (x - mean) / std gamma + beta; the reciprocal root included.
_BATCH_NORM_ROUNDINGS = 12


def _largest(box: Box) -> Tensor:
    """The largest absolute value of each image, to be broadcast against its entries."""
    size = box.size
    return size.flatten(1).amax(dim=1).view(-1, *(1,) * (size.dim() - 1))


class Linear(Operation):
    """A constant matrix, in whatever form, and a constant."""

    affine = True
    weight: Tensor
    offset: Tensor | float
    terms: int

    @cached_property
    def sizes(self) -> Tensor:
        """The matrix of absolute values."""
        return self.weight.abs()

    @cached_property
    def largest(self) -> Tensor:
        """The largest absolute value of the matrix."""
        return self.sizes.max()

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The matrix times values of shape (n, *shape of the operand)."""
        raise NotImplementedError

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """The transposed matrix times rows."""
        raise NotImplementedError

    def linear(self, *values: Tensor | None) -> Tensor:
        """The matrix alone."""
        (value,) = values
        assert value is not None
        return self.apply(value, self.weight)

    def interval(self, *boxes: Box) -> Box:
        """The exact image's hull."""
        (box,) = boxes
        centre = self.apply(box.centre, self.weight) + self.offset
        half = self.apply(box.half, self.sizes)
        return Box(centre - half, centre + half)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Higham's gamma_n times the sum of absolute terms, and what flushing takes."""
        del out
        (box,) = boxes
        offset = self.offset.abs() if isinstance(self.offset, Tensor) else abs(self.offset)
        size = self.apply(box.size, self.sizes) + offset
        operands = self.largest + _largest(box).flatten()
        return rounding_of_entries(
            self.terms + 1, size, operands.view(-1, *(1,) * (size.dim() - 1))
        )

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The transposed matrix, exactly."""
        del out, boxes
        count = rows.shape[0]
        back = self.transposed(rows, self.weight)
        if not isinstance(self.offset, Tensor):
            return [back], rows.new_zeros(rows.shape[:2])
        return [back], dot(rows, self.offset.expand(self.shape).expand(count, *self.shape))


class Product(Linear):
    """x W + b with a constant matrix W on the right."""

    def __init__(self, node: Node, weight: Tensor, offset: Tensor | float) -> None:
        super().__init__(node)
        self.weight, self.offset, self.terms = weight, offset, weight.shape[-2]

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """Values times the matrix."""
        return values @ weight

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """Rows times the matrix's transpose."""
        return rows @ weight.mT


class LeftProduct(Linear):
    """W x with a constant matrix W on the left."""

    def __init__(self, node: Node, weight: Tensor, offset: Tensor | float) -> None:
        super().__init__(node)
        self.weight, self.offset, self.terms = weight, offset, weight.shape[-1]

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The matrix times values."""
        return weight @ values

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """The matrix's transpose times rows."""
        return weight.mT @ rows


@register("convolution")
class Convolution(Linear):
    """Convolutions of any stride, padding, dilation and groups, transposed ones included."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        values, weight, bias, *settings = node.args
        require(node, isinstance(values, Node), "an image in its weights")
        require(node, not isinstance(weight, Node), "weights that depend on the image")
        self.settings = settings
        self.weight = constant(weight)
        groups, transposed = settings[-1], settings[3]
        per_output = self.weight.shape[0] // groups if transposed else self.weight.shape[1]
        self.terms = per_output * math.prod(self.weight.shape[2:])
        spatial = (1,) * (self.weight.dim() - 2)
        self.offset = 0.0 if bias is None else constant(bias).view(1, -1, *spatial)
        self.inputs = values.shape

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The convolution without its bias."""
        out: Tensor = _aten.convolution(values.flatten(0, 1), weight, None, *self.settings)
        return out.view(len(values), *self.shape)

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """The gradient of the convolution's input."""
        count, number = rows.shape[:2]
        flat = rows.reshape(-1, *self.shape[1:])
        dummy = flat.new_zeros(1).expand(len(flat), *self.inputs[1:])
        back: Tensor = _aten.convolution_backward(
            flat, dummy, weight, None, *self.settings, [True, False, False]
        )[0]
        return back.view(count, number, *self.inputs)


@register("mm", "bmm", "matmul")
def _matrix_product(node: Node) -> Operation:
    """mm, bmm and matmul: with a constant factor here, of two values in `products`."""
    from robustness.programs.operations.products import MatrixProduct

    left, right = node.args[:2]
    if isinstance(left, Node) and isinstance(right, Node):
        return MatrixProduct(node)
    if isinstance(left, Node):
        require(node, right.dim() >= 2, "a vector for a matrix")
        return Product(node, constant(right), 0.0)
    require(node, left.dim() >= 2 and len(right.shape) >= 2, "a vector for a matrix")
    return LeftProduct(node, constant(left), 0.0)


@register("addmm")
def _addmm(node: Node) -> Operation:
    bias, left, right = node.args
    plain = all(node.kwargs.get(name, 1) == 1 for name in ("alpha", "beta"))
    require(node, plain, "factors alpha or beta")
    require(node, not isinstance(bias, Node), "a bias that depends on the image")
    require(node, isinstance(left, Node) != isinstance(right, Node), "two values of the image")
    if isinstance(left, Node):
        return Product(node, constant(right), constant(bias))
    return LeftProduct(node, constant(left), constant(bias))


class Scaling(Linear):
    """x s + t, entry by entry, with constants that broadcast."""

    def __init__(self, node: Node, scale: Tensor, offset: Tensor | float, roundings: int) -> None:
        super().__init__(node)
        (parent,) = node.parents
        self.inputs = parent.shape
        self.weight, self.offset, self.terms = scale, offset, roundings
        require(node, bool(scale.isfinite().all()), "factors that are not finite")

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """Each entry times its factor."""
        return broadcast(values, self.shape) * weight + values.new_zeros(self.shape)

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """Each row's entry times its factor."""
        return summed_to(rows * weight, self.inputs)


@register(
    *("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"),
    "_batch_norm_with_update",
)
class BatchNorm(Scaling):
    """Batch norm in evaluation mode: a scale and a shift of each channel."""

    def __init__(self, node: Node) -> None:
        values, gamma, beta, mean, variance, *rest = node.args
        training = node.name != "_native_batch_norm_legit_no_training" and rest[0]
        require(node, isinstance(values, Node) and len(node.parents) == 1, "values in its weights")
        require(node, not training and mean is not None, "the statistics of its own batch")
        require(node, node.output in (None, 0), "its statistics in use")
        eps = float(rest[-1])
        spread = constant(variance) + eps
        require(node, eps >= 0 and bool((constant(variance) >= 0).all()), "negative variances")
        require(node, bool((spread > 1e-30).all()), "variances of 0")
        shape = (1, -1, *(1,) * (len(values.shape) - 2))
        ones = torch.ones_like(spread)
        gamma = ones if gamma is None else constant(gamma)
        beta = 0 * ones if beta is None else constant(beta)
        scale = gamma / spread.sqrt()
        self.shift, self.inverse = constant(mean).view(shape), spread.rsqrt().max()
        offset = (beta - constant(mean) * scale).view(shape)
        self._beta = beta.view(shape)
        super().__init__(node, scale.view(shape), offset, _BATCH_NORM_ROUNDINGS)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of either form of a batch norm: the mean is taken off before or after scaling."""
        del out
        (box,) = boxes
        size = (box.size + self.shift.abs()) * self.weight.abs() + self._beta.abs()
        operands = 1 + self.weight.abs().max() + self.inverse + self._beta.abs().max()
        operands = operands + self.shift.abs().max() + _largest(box)
        return rounding_of_entries(self.terms, size, operands + operands**2)


def axes_of(node: Node, position: int = 1) -> list[int]:
    """The axes that a reduction goes over, counted from the front."""
    given = node.args[position] if len(node.args) > position else node.kwargs.get("dim")
    rank = len(node.parents[0].shape)
    if given is None or given == []:
        return list(range(rank))
    return [d % rank for d in ([given] if isinstance(given, int) else given)]


@register("sum", "mean")
class Sum(Linear):
    """Sums and means over axes."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.inputs = node.parents[0].shape
        self.dims = axes_of(node)
        kept = [1 if i in self.dims else size for i, size in enumerate(self.inputs)]
        self.kept, self.offset = tuple(kept), 0.0
        count = math.prod(self.inputs[d] for d in self.dims)
        self.weight = torch.tensor(1 / count if node.name == "mean" else 1.0, dtype=torch.float64)
        self.terms = count

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The sum times the weight."""
        if not self.dims:
            return values * weight
        total = values.sum(dim=[d + 1 for d in self.dims]) * weight
        return total.view(len(values), *self.shape)

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """The weight at every entry that was summed."""
        kept = rows.reshape(*rows.shape[:2], *self.kept) * weight
        return kept.expand(*rows.shape[:2], *self.inputs)


@register("cumsum")
class CumulativeSum(Linear):
    """Running sums along an axis."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.axis = node.args[1] % len(self.shape)
        self.terms, self.offset = self.shape[self.axis], 0.0
        self.weight = torch.tensor(1.0, dtype=torch.float64)

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The running sums."""
        return values.cumsum(dim=self.axis + 1) * weight

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """Running sums from the other end."""
        return rows.flip(self.axis + 2).cumsum(self.axis + 2).flip(self.axis + 2) * weight


@register("avg_pool2d", "_adaptive_avg_pool2d")
class AveragePool(Linear):
    """Means over windows."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.inputs = node.parents[0].shape
        divisor = (*node.args[6:], node.kwargs.get("divisor_override"))[0]
        require(node, divisor is None, "a divisor of its own")
        self.settings, self.offset = node.args[1:], 0.0
        self.weight = torch.tensor(1.0, dtype=torch.float64)
        # No window has more entries than the image.
        self.terms = math.prod(self.inputs[-2:])

    def apply(self, values: Tensor, weight: Tensor) -> Tensor:
        """The means."""
        out: Tensor = self.node.func(values.flatten(0, 1), *self.settings, **self.node.kwargs)
        return out.view(len(values), *self.shape) * weight

    def transposed(self, rows: Rows, weight: Tensor) -> Tensor:
        """By the pull-back of the pooling, which is linear."""
        zero = rows.new_zeros(rows.shape[0] * rows.shape[1], *self.inputs)
        with torch.enable_grad():
            leaf = zero.requires_grad_()
            out = self.node.func(leaf.flatten(0, 1), *self.settings, **self.node.kwargs)
            above = rows.reshape(out.shape)
            (back,) = torch.autograd.grad(out, leaf, above, create_graph=rows.requires_grad)
        return back.view(*rows.shape[:2], *self.inputs) * weight


class Addition(Operation):
    """a x + b y, or a x + constant, entry by entry with broadcasting."""

    affine = True

    def __init__(
        self, node: Node, factors: Sequence[float], offset: Tensor | None, scaled: bool = False
    ) -> None:
        super().__init__(node)
        self.factors, self.offset, self.scaled = tuple(factors), offset, scaled
        self.inputs = [parent.shape for parent in node.parents]

    def _terms(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [
            factor * broadcast(value, self.shape)
            for factor, value in zip(self.factors, values, strict=True)
        ]

    def linear(self, *values: Tensor | None) -> Tensor:
        """The sum without the constant."""
        terms = [
            factor * broadcast(value, self.shape)
            for factor, value in zip(self.factors, values, strict=True)
            if value is not None
        ]
        return sum(terms[1:], terms[0]) + torch.zeros(self.shape, dtype=torch.float64)

    def interval(self, *boxes: Box) -> Box:
        """Ends added to ends, the other way round where a factor is negative."""
        zero = boxes[0].low.new_zeros(self.shape)
        base = zero if self.offset is None else zero + self.offset
        low, high = base, base
        for factor, box in zip(self.factors, boxes, strict=True):
            ends = (box.low, box.high) if factor >= 0 else (box.high, box.low)
            low = low + factor * broadcast(ends[0], self.shape)
            high = high + factor * broadcast(ends[1], self.shape)
        return Box(low, high)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """One sum, and a product with each factor that is not 1 or -1."""
        del out
        if not self.dtype.is_floating_point:
            return 0.0
        size = sum(term.abs() for term in self._terms([box.size for box in boxes]))
        if self.offset is not None:
            size = size + self.offset.abs()
        plain = all(abs(factor) == 1 for factor in self.factors) and not self.scaled
        operands = 1 + max(map(abs, self.factors))
        return rounding_of_entries(1 if plain else 4, size + torch.zeros(self.shape), operands)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The same rows for each operand, times its factor."""
        del out, boxes
        found = [
            summed_to(rows if factor == 1 else factor * rows, shape)
            for factor, shape in zip(self.factors, self.inputs, strict=True)
        ]
        count = rows.shape[0]
        offset = rows.new_zeros(rows.shape[:2])
        if self.offset is not None:
            offset = dot(rows, self.offset.expand(self.shape).expand(count, *self.shape))
        return list(found), offset


@register("add", "sub", "rsub")
def _add(node: Node) -> Operation:
    first, second = node.args[:2]
    alpha = float(constant(node.kwargs.get("alpha", 1), node.dtype))
    if node.name == "rsub":
        first, second = second, first
    sign = alpha if node.name == "add" else -alpha
    if isinstance(first, Node) and isinstance(second, Node):
        return Addition(node, (1.0, sign), None)
    if isinstance(first, Node):
        return Addition(node, (1.0,), sign * constant(second, node.dtype), abs(sign) != 1)
    return Addition(node, (sign,), constant(first, node.dtype))


@register("neg")
def _negate(node: Node) -> Operation:
    return Addition(node, (-1.0,), None)


@register("_to_copy")
class Conversion(Addition):
    """A change of precision: exact where it widens, rounded once where it narrows."""

    def __init__(self, node: Node) -> None:
        if not node.dtype.is_floating_point and node.parents[0].dtype.is_floating_point:
            raise Refusal("no rule is known for a conversion of numbers to integers")
        super().__init__(node, (1.0,), None)
        before = node.parents[0].dtype
        self._exact = before is node.dtype or (
            torch.finfo(before).eps > torch.finfo(node.dtype).eps
            if before.is_floating_point and node.dtype.is_floating_point
            else True
        )

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """Of a conversion to fewer digits; one to more may flush what it is given."""
        return NORMAL if self._exact else super().rounding(out, *boxes)


def scaled(node: Node, factor: Any, roundings: int = 1, divided: bool = False) -> Operation:
    """The product of a value and a constant, or its quotient by one."""
    value = constant(factor, node.dtype)
    if divided:
        require(node, bool((value.abs() >= NORMAL).all()), "a divisor of 0")
        value = value.reciprocal()
    return Scaling(node, value, 0.0, roundings + divided)
