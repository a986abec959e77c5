"""Cells of the cone where a label leads on the simplex, and exact bounds of linear maps on them.

The states of the simplex at which class y leads are, with x_j = eta_j / eta_y for j != y, the unit
cube: eta_y = 1 / (1 + sum x) and eta_j = x_j / (1 + sum x). Its faces x_j = 1 are the decision
boundary. On a box of x a linear map c . eta = (c_y + sum c_j x_j) / (1 + sum x_j) is largest at a
corner: c . eta >= t is linear in x for every t, and asks for the large x_j where c_j > t and for
the small ones elsewhere. So the largest is among the corners that are large in a leading part of
the rivals, sorted by c_j: as many candidates as there are classes, and no linear program.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """Boxes of the ratios x, the label's own entry left out.

    Attributes:
        low: lower ends, in [0, 1], shape (cells, classes - 1).
        high: upper ends, of the same shape.
    """

    low: Float[Tensor, "c r"]
    high: Float[Tensor, "c r"]

    @classmethod
    def whole(cls, classes: int) -> "Cells":
        """One cell: every state at which the label leads."""
        low = torch.zeros(1, classes - 1, dtype=torch.float64)
        return cls(low, low + 1)

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, chosen: Tensor) -> "Cells":
        return Cells(self.low[chosen], self.high[chosen])

    def halves(self, axis: Tensor) -> "Cells":
        """Each cell cut in two across its `axis`, shape (cells,)."""
        index = axis.unsqueeze(1)
        middle = (self.low.gather(1, index) + self.high.gather(1, index)) / 2
        return Cells(
            torch.cat([self.low, self.low.scatter(1, index, middle)]),
            torch.cat([self.high.scatter(1, index, middle), self.high]),
        )

    def centres(self) -> Float[Tensor, "c k"]:
        """A state of each cell; the label's entry comes first."""
        x = (self.low + self.high) / 2
        ratios = torch.cat([torch.ones_like(x[:, :1]), x], dim=1)
        return ratios / ratios.sum(dim=1, keepdim=True)

    def largest(self, rows: Float[Tensor, "*c m k"]) -> Float[Tensor, "c m"]:
        """The largest value of each row times a state of the cell, exact up to rounding.

        Args:
            rows: coefficients, the label's first; the same for all cells, or one set for each.
        """
        rivals, order = rows[..., 1:].sort(dim=-1, descending=True)
        shape = (len(self), *rivals.shape[-2:])
        order, rivals = order.expand(shape), rivals.expand(shape)
        low = self.low.unsqueeze(1).expand(shape).gather(2, order)
        wide = self.high.unsqueeze(1).expand(shape).gather(2, order) - low
        top = rows[..., :1] + (rivals * low).sum(dim=2, keepdim=True)
        bottom = 1 + low.sum(dim=2, keepdim=True)
        tops = top + (rivals * wide).cumsum(dim=2)
        bottoms = bottom + wide.cumsum(dim=2)
        first = (top / bottom).squeeze(2)
        return torch.maximum(first, (tops / bottoms).amax(dim=2))

    def least(self, rows: Float[Tensor, "*c m k"]) -> Float[Tensor, "c m"]:
        """The smallest value of each row times a state of the cell."""
        return -self.largest(-rows)
