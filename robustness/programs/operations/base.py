"""What an operation knows of itself: its interval, its rounding, and its lines."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from robustness.programs.boxes import Box
from robustness.programs.graph import Node, Refusal
from robustness.registry import Registry, release_of

# Rows are linear functions of a value, for each of n images: shape (n, r, *shape of the value).
Rows = Float[Tensor, "n r *shape"]


class Operation(ABC):
    """One operation of a program, on values v_p of its parents: v = op(v_p).

    All bounds speak of the operation in exact arithmetic on the computed values of its parents;
    `rounding` says by how much the computed result may differ.

    Args:
        node: what was recorded.

    Raises:
        Refusal: the rules do not cover the recorded settings.
    """

    # Whether it is an affine map: its interval over a box is exact, and lines give nothing more.
    affine: ClassVar[bool] = False

    def __init__(self, node: Node) -> None:
        self.node, self.shape, self.dtype = node, node.shape, node.dtype

    def linear(self, *values: Tensor | None) -> Tensor:
        """The linear part of an affine operation.

        Args:
            values: one per operand, shape (n, *shape), None for zero.
        """
        raise NotImplementedError

    @abstractmethod
    def interval(self, *boxes: Box) -> Box:
        """Between which numbers the exact result lies, given boxes of the operands."""

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """A bound on each entry of |computed - exact|, which broadcasts to the result."""
        del out, boxes
        return 0.0

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """Linear functions of the operands that are nowhere above linear functions of the result.

        Args:
            rows: functions A v of the result, shape (n, r, *shape).
            out: the result's box.
            boxes: the operands' boxes.

        Returns:
            For each parent the coefficients A_p (None for zero), and offsets c, shape (n, r), such
            that A v >= sum_p A_p v_p + c for all v_p in the boxes. Without a better rule the
            result is replaced by an end of its box.
        """
        return [None] * len(boxes), least(rows, out)

    @property
    def free(self) -> bool:
        """Whether its lines are one choice of many; see `chosen_lines`."""
        return False

    def shares(self, *boxes: Box) -> Float[Tensor, "n *shape"]:
        """The choice that `lines` makes, entry by entry, in [0, 1]."""
        raise NotImplementedError

    def chosen_lines(
        self, shares: Float[Tensor, "n r *shape"], rows: Rows, out: Box, *boxes: Box
    ) -> tuple[list[Tensor | None], Tensor]:
        """As `lines`, by other lines: any shares in [0, 1] give bounds that hold.

        Args:
            shares: of each entry and row; what is outside [0, 1] is moved to its end.
            rows: functions A v of the result.
            out: the result's box.
            boxes: the operands' boxes.
        """
        raise NotImplementedError


def least(rows: Tensor, box: Box) -> Tensor:
    """The least value of linear functions over a box, shape (n, r)."""
    a = rows.flatten(2)
    centre, half = box.centre.flatten(1).unsqueeze(2), box.half.flatten(1).unsqueeze(2)
    return (a @ centre - a.abs() @ half).squeeze(2)


def dot(rows: Tensor, values: Tensor) -> Tensor:
    """A v for each row and image, shape (n, r)."""
    return (rows.flatten(2) @ values.flatten(1).unsqueeze(2)).squeeze(2)


def by_sign(rows: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """Rows times one factor where they are positive and another where they are negative.

    The factors are of shape (n, *shape).
    """
    return rows.clamp_min(0) * positive.unsqueeze(1) + rows.clamp_max(0) * negative.unsqueeze(1)


_live: ContextVar[bool] = ContextVar("live", default=False)


@contextmanager
def live_constants() -> Iterator[None]:
    """Within this context operations keep constants as they are, attached to their gradients."""
    token = _live.set(True)
    try:
        yield
    finally:
        _live.reset(token)


def constant(value: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """A constant operand in float64, first rounded to `dtype` as torch does.

    It does so with Python numbers, and with tensors of no axes beside values that have some.

    Args:
        value: a tensor or a number.
        dtype: of the operation's result.
    """
    if isinstance(value, Tensor):
        if _live.get():
            return value
        fixed = value.detach()
        return fixed.to(dtype).double() if dtype.is_floating_point else fixed.double()
    return torch.tensor(value, dtype=dtype if dtype.is_floating_point else None).double()


def summed_to(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo a broadcast of the last axes: sum over those that `shape` lacks or has with size 1.

    The first two axes, images and rows, stay.
    """
    lacking = tensor.dim() - 2 - len(shape)
    if lacking:
        tensor = tensor.sum(dim=tuple(range(2, 2 + lacking)))
    axes = [
        i + 2
        for i, (has, wants) in enumerate(zip(tensor.shape[2:], shape, strict=True))
        if has != wants
    ]
    return tensor.sum(dim=axes, keepdim=True) if axes else tensor


def unit_rows(box: Box) -> Rows:
    """The rows that pick one entry each, shape (n, size, *shape)."""
    size = box.low[0].numel()
    eye = torch.eye(size, dtype=torch.float64).view(1, size, *box.low.shape[1:])
    return eye.expand(len(box.low), *eye.shape[1:])


def broadcast(value: Float[Tensor, "n *shape"], shape: tuple[int, ...]) -> Tensor:
    """Values of n images, broadcast to the result's shape as torch does it."""
    lacking = len(shape) - (value.dim() - 1)
    return value.reshape(len(value), *(1,) * lacking, *value.shape[1:])


# The smallest number of float32 that is not flushed to zero where denormals are.
NORMAL = 2.0**-126
# Whole numbers beyond this are not all float32 numbers, and may leave the range of their kind.
LARGEST_WHOLE = 2**24
COMPARISONS = ("gt", "ge", "lt", "le")
# What gives truth values of truth values as if they were the numbers 0 and 1.
_LOGICAL = ("mul", "where", "maximum", "minimum", "amax", "max", "gather", "sort", "_to_copy")


@dataclass(frozen=True)
class Rule:
    """What knows the operations of a name.

    Attributes:
        name: what torch calls them, without overload, `package::name` for those of others.
        of: from a recorded node to what is known of it: a class, or a function that chooses one.
    """

    name: str
    of: Callable[[Node], Operation]


REGISTRY: Registry[Rule] = Registry("an operation", "robustness.operations")

_Rule = TypeVar("_Rule", bound=Callable[[Node], Operation])


def register(*names: str) -> Callable[[_Rule], _Rule]:
    """Make a class, or a function that chooses one, the rule for operations of torch by name."""

    def registered(rule: _Rule) -> _Rule:
        for name in names:
            REGISTRY.register(Rule(name, rule))
        return rule

    return registered


def releases() -> list[str]:
    """Whose rules there are besides this package's own, for the keys of what rests on them."""
    found = {release_of(getattr(rule.of, "__module__", "")) for rule in REGISTRY.values()}
    return sorted(found - {""})


def operation_of(node: Node) -> Operation:
    """The rules for a recorded node.

    Raises:
        Refusal: there are none, or not for these settings.
    """
    if node.name not in REGISTRY:
        raise Refusal(
            f"no rule is known for the operation {node.name}; see CONTRIBUTING.md, 'An operation'"
        )
    _require_conversions_seen(node)
    try:
        return REGISTRY[node.name].of(node)
    except Refusal:
        raise
    except Exception as error:
        # Operands of a kind that the rule was not written for.
        kind = type(error).__name__
        raise Refusal(
            f"no rule is known for the operation {node.name} with these operands ({kind})"
        ) from error


def _require_conversions_seen(node: Node) -> None:
    """Refuse operations that convert their operands on the way to something else than numbers do.

    Raises:
        Refusal: it is such an operation.
    """
    before = [parent.dtype for parent in node.parents]
    real = {dtype for dtype in before if dtype.is_floating_point}
    if node.name in COMPARISONS:
        require(node, len(real) < 2, "values of different precision")
        return
    if not node.dtype.is_floating_point:
        require(node, not real, "numbers that become integers")
    elif node.name != "_to_copy":
        narrowed = torch.float64 in real and node.dtype is not torch.float64
        require(node, not narrowed, "values of different precision")
    if node.dtype is torch.bool:
        moved = getattr(REGISTRY[node.name].of, "moves_entries", False)
        require(node, moved or node.name in _LOGICAL, "truth values")
        require(node, set(before) <= {torch.bool}, "integers that become truth values")


def require(node: Node, condition: bool, what: str) -> None:
    """Refuse settings that the rules do not cover.

    Raises:
        Refusal: the condition does not hold.
    """
    if not condition:
        raise Refusal(f"no rule is known for the operation {node.name} with {what}")
