"""Boxes: between which numbers every entry of a computed value lies."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Box:
    """All that a computed value can be, for each of n images.

    Attributes:
        low: lower ends, float64, shape (n, ...).
        high: upper ends, of the same shape.
    """

    low: Float[Tensor, "n *shape"]
    high: Float[Tensor, "n *shape"]

    @classmethod
    def around(cls, images: Float[Tensor, "n *shape"], eps: Float[Tensor, " n"]) -> "Box":
        """All images of the pixel box [0, 1] within `eps`, in l-infinity, of `images`."""
        wide, pixels = eps.double().view(-1, *(1,) * (images.dim() - 1)), images.double()
        return cls((pixels - wide).clamp_min(0), (pixels + wide).clamp_max(1))

    @property
    def centre(self) -> Tensor:
        """Middle of the box."""
        return (self.low + self.high) / 2

    @property
    def half(self) -> Tensor:
        """Half the length of each side."""
        return (self.high - self.low) / 2

    @property
    def size(self) -> Tensor:
        """Largest absolute value of each entry."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def widened(self, by: Tensor) -> "Box":
        """The box with every side moved outwards."""
        return Box(self.low - by, self.high + by)

    def within(self, other: "Box") -> "Box":
        """What two boxes that both hold have in common."""
        return Box(torch.maximum(self.low, other.low), torch.minimum(self.high, other.high))

    def lanes(self, part: Tensor | slice) -> "Box":
        """The boxes of some images."""
        return Box(self.low[part], self.high[part])
