"""Operations that move entries about: every entry of the result is one of an operand or constant.

One rule serves all of them: what stands where is found by running the operation on numbered
entries.
"""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations.base import Operation, Rows, dot, register, require


@register(
    *("view", "_unsafe_view", "reshape", "flatten", "unflatten", "alias", "detach", "clone"),
    *("contiguous", "unsqueeze", "squeeze", "expand", "permute", "transpose", "t", "select"),
    *("slice", "split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "repeat"),
    *("constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "flip", "roll", "take", "place"),
    *("narrow", "movedim", "lift_fresh", "diagonal", "index"),
    *("index_select", "reflection_pad1d", "reflection_pad2d", "replication_pad2d"),
    *("channel_shuffle", "select_scatter", "slice_scatter", "upsample_nearest2d"),
)
class Selection(Operation):
    """Views, permutations, slices, concatenations, paddings and writes of parts."""

    affine = True
    moves_entries = True

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        require(node, node.func is not torch.ops.aten.view.dtype, "bits read as another number")
        sizes = [parent.size for parent in node.parents]
        numbered, start = [], 1
        for parent, size in zip(node.parents, sizes, strict=True):
            entries = torch.arange(start, start + size, dtype=torch.float64)
            numbered.append(entries.view(parent.shape))
            start += size
        moving = _in_float64(node)
        zeros = [torch.zeros(parent.shape, dtype=torch.float64) for parent in node.parents]
        constants = moving.run(*zeros).flatten().double()
        # What a constant fills is the same in both.
        shown = moving.run(*numbered).flatten().double() - constants
        self._where = shown.nan_to_num(0.0, 0.0, 0.0).long()
        require(node, len(self._where) == node.size, "a result of another size")
        # A number that is filled in is rounded to the precision of the values.
        self._constants = constants.to(node.dtype).double()
        self._finite = bool(self._constants.isfinite().all())
        self._sizes = sizes
        total = start - 1
        moved = torch.arange(1, total + 1)
        self._in_order = len(sizes) == 1 and torch.equal(self._where, moved)
        used = self._where[self._where > 0]
        self._once = len(used.unique()) == len(used)

    def origin(self, entry: int) -> tuple[int, int] | float:
        """Where an entry of the result stands: in which parent and at which flat index.

        Of a constant that is filled in, its value.
        """
        place = int(self._where[entry]) - 1
        if place < 0:
            return float(self._constants[entry])
        for parent, size in enumerate(self._sizes):
            if place < size:
                return parent, place
            place -= size
        raise AssertionError("an entry of no operand")

    def interval(self, *boxes: Box) -> Box:
        """The same entries of the operands' boxes."""
        constants = self._constants.view(self.shape)
        return Box(
            self.linear(*(box.low for box in boxes)) + constants,
            self.linear(*(box.high for box in boxes)) + constants,
        )

    def linear(self, *values: Tensor | None) -> Tensor:
        """The entries alone, and 0 where a constant stands."""
        count = next(len(value) for value in values if value is not None)
        if self._in_order:
            assert values[0] is not None
            return values[0].reshape(count, *self.shape)
        dtype = next(value.dtype for value in values if value is not None)
        parts = [torch.zeros(count, 1, dtype=dtype)]
        for value, size in zip(values, self._sizes, strict=True):
            zero = torch.zeros(count, size, dtype=dtype)
            parts.append(zero if value is None else value.flatten(1))
        return torch.cat(parts, dim=1).index_select(1, self._where).view(count, *self.shape)

    def lines(self, rows: Rows, out: Box, *boxes: Box) -> tuple[list[Tensor | None], Tensor]:
        """The coefficients of each entry, put back to where it came from."""
        del out
        count, number = rows.shape[:2]
        if self._in_order:
            shape = boxes[0].low.shape[1:]
            return [rows.reshape(count, number, *shape)], rows.new_zeros(count, number)
        flat = rows.flatten(2)
        back = rows.new_zeros(count, number, 1 + sum(self._sizes))
        if self._once:
            back[:, :, self._where] = flat
        else:
            back.index_add_(2, self._where, flat)
        parts = back[:, :, 1:].split(self._sizes, dim=2)
        found = [
            part.reshape(count, number, *box.low.shape[1:])
            for part, box in zip(parts, boxes, strict=True)
        ]
        offset = dot(rows, self._constants.expand(count, -1))
        if not self._finite:
            # Memory that is not written yet: what shows none of it does not depend on it.
            shown = torch.where(flat == 0, 0.0, flat * self._constants)
            offset = shown.sum(dim=2)
        return list(found), offset


def _in_float64(node: Node) -> Node:
    """The node with its constant values in float64; whole numbers, as indices are, stay."""

    def changed(value: Tensor) -> Tensor:
        return value.double() if value.is_floating_point() else value

    args, kwargs = pytree.tree_map_only(Tensor, changed, (node.args, node.kwargs))
    return Node(node.index, node.func, args, kwargs, node.shape, node.dtype, node.output)
