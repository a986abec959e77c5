"""The largest radius that a margin bears: a bracket closed from both sides, image by image.

The bracket of the largest verified and the smallest failed radius is closed by regula falsi on the
margin (the Illinois algorithm). A radius is one that was itself verified, so nothing rests on how
the margin behaves between two of them.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class RadiusSearch:
    """Brackets of the largest radius with a positive margin, closed from both sides.

    Args:
        margins: the margins at radius zero, shape (n,); without one that is positive a search
            is over before it begins.
        first: where every search starts.
        tolerance: relative width of a bracket at which it is closed.
        largest: a radius whose ball is every image.
        breaks_down: whether margins may fall far below zero at once, where they say nothing more of
            the radius: they count as no further below than that of radius zero is above.

    Attributes:
        verified: the largest radius whose margin was positive, shape (n,).
        failed: the smallest one whose margin was not, shape (n,).
    """

    def __init__(
        self,
        margins: Float[Tensor, " n"],
        first: float,
        tolerance: float,
        largest: float = 1.0,
        breaks_down: bool = False,
    ) -> None:
        self.first, self.tolerance, self.largest = first, tolerance, largest
        holds = margins > 0
        self.verified = torch.zeros_like(margins)
        self.failed = torch.where(holds, torch.inf, torch.zeros_like(margins))
        self._least = -margins.clamp_min(0) if breaks_down else torch.full_like(margins, -torch.inf)
        self._above, self._below = margins.clone(), torch.full_like(margins, torch.nan)
        self._last = torch.zeros_like(margins)

    @property
    def open(self) -> Bool[Tensor, " n"]:
        """Which brackets are still to be closed; none is once the box is every image."""
        narrow = self.failed - self.verified <= self.tolerance * self.failed
        return (self.verified < self.largest) & (self.failed.isinf() | ~narrow)

    @property
    def guess(self) -> Float[Tensor, " n"]:
        """The next radius to try: twice the last while nothing has failed, then a chord's root."""
        growing = torch.where(self.verified > 0, 2 * self.verified, self.first)
        growing = growing.clamp_max(self.largest)
        share = self._above / (self._above - self._below)
        # The chord of a bracket that is nearly closed on one side ends well within the tolerance.
        edge = (self.tolerance * self.failed / (self.failed - self.verified) / 2).clamp_max(0.5)
        share = torch.where(share.isfinite(), share, 0.5)
        share = torch.minimum(torch.maximum(share, edge), 1 - edge)
        inside = self.verified + share * (self.failed - self.verified)
        return torch.where(self.failed.isinf(), growing, inside)

    def record(self, part: Int[Tensor, " m"], margins: Float[Tensor, " m"]) -> None:
        """Take in the margins of the guesses of `part`; what is not positive has failed."""
        guess, holds = self.guess[part], margins > 0
        margins = torch.maximum(margins, self._least[part])
        side = 2 * holds.to(margins.dtype) - 1
        again = side == self._last[part]
        # An end that stays in place counts half, or the chord would creep up from one side.
        above = torch.where(again & ~holds, self._above[part] / 2, self._above[part])
        below = torch.where(again & holds, self._below[part] / 2, self._below[part])
        self._above[part] = torch.where(holds, margins, above)
        self._below[part] = torch.where(holds, below, margins)
        self.verified[part] = torch.where(holds, guess, self.verified[part])
        self.failed[part] = torch.where(holds, self.failed[part], guess)
        self._last[part] = side
