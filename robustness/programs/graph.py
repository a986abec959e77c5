"""A recorded program as a graph: nodes in the order in which they are computed."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class Refusal(Exception):  # noqa: N818
    """Why a model cannot be recorded, or its program not be bounded, in words."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value of a program and what computes it.

    Attributes:
        index: its place in the program.
        func: an operation of torch, or `source`, `take` or `place` of this module.
        args: positional operands: a `Node` where they depend on the image, else constants.
        kwargs: operands by name.
        shape: of the value, for one image alone in its batch; (1,) for one without axes.
        dtype: of the value.
        output: which of several results it is; None where there is one.
    """

    index: int
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: tuple[int, ...]
    dtype: torch.dtype
    output: int | None = None

    @cached_property
    def parents(self) -> tuple["Node", ...]:
        """The operands that depend on the image, each as often as it enters."""
        leaves = pytree.tree_leaves((self.args, self.kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, Node))

    @property
    def name(self) -> str:
        """The operation's name, as torch calls it, without its overload."""
        schema = getattr(self.func, "_schema", None)
        return self.func.__name__ if schema is None else schema.name.removeprefix("aten::")

    @property
    def size(self) -> int:
        """Number of entries of the value."""
        return int(torch.Size(self.shape).numel())

    def run(self, *values: Tensor) -> Tensor:
        """Compute the value from those of `parents`, by the operation that was recorded."""
        given = iter(values)
        args, kwargs = pytree.tree_map_only(Node, lambda _: next(given), (self.args, self.kwargs))
        out: Any = self.func(*args, **kwargs)
        value: Tensor = out if self.output is None else pytree.tree_leaves(out)[self.output]
        return value


def source(image: Tensor) -> Tensor:
    """The image itself: the first node."""
    return image


def take(places: Tensor, base: Tensor) -> Tensor:
    """The entries of a piece of memory at flat indices, in the shape of the indices."""
    return base.flatten()[places]


def place(places: Tensor, base: Tensor, value: Tensor) -> Tensor:
    """A piece of memory after `value` was written to flat indices."""
    return base.flatten().index_put((places.flatten(),), value.flatten()).view(base.shape)


@dataclass(frozen=True)
class Program:
    """What computes one image's logits.

    Attributes:
        nodes: every value that the logits depend on, operands first; the image is the first.
    """

    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], output: Node) -> "Program":
        """The part of a recording that `output` depends on."""
        needed = {nodes[0].index, output.index}
        for node in reversed(nodes):
            if node.index in needed:
                needed |= {parent.index for parent in node.parents}
        return cls(tuple(node for node in nodes if node.index in needed))

    @property
    def image(self) -> Node:
        """The first node."""
        return self.nodes[0]

    @property
    def output(self) -> Node:
        """The last node: the logits, shape (1, classes)."""
        return self.nodes[-1]

    @property
    def kinds(self) -> Counter[str]:
        """How many operations there are of each name."""
        return Counter(node.name for node in self.nodes[1:])

    def run(self, image: Tensor) -> Tensor:
        """Compute the logits of one image, shape (1, c, h, w), as recorded."""
        values = {self.image.index: image}
        for node in self.nodes[1:]:
            values[node.index] = node.run(*(values[parent.index] for parent in node.parents))
        return values[self.output.index]

    def difference(self, other: "Program") -> str | None:
        """Where another recording of the same model differs; None where nowhere."""
        if len(self.nodes) != len(other.nodes):
            return f"their number of operations, {len(self.nodes)} and {len(other.nodes)}"
        for mine, theirs in zip(self.nodes, other.nodes, strict=True):
            if mine.func is not theirs.func or mine.shape != theirs.shape:
                return f"operation {mine.index}, {mine.name} and {theirs.name}"
            ours, their = (
                pytree.tree_leaves((node.args, node.kwargs, node.output)) for node in (mine, theirs)
            )
            if len(ours) != len(their) or not all(map(_same, ours, their)):
                return f"a constant of operation {mine.index}, {mine.name}"
        return None


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Node) and isinstance(second, Node):
        return first.index == second.index
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        same_kind = first.shape == second.shape and first.dtype is second.dtype
        return same_kind and torch.equal(bits(first), bits(second))
    return type(first) is type(second) and bool(first == second)


def bits(values: Tensor) -> Tensor:
    """The bytes of a tensor, in order: what tells two results apart that compare equal."""
    flat = values.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)
