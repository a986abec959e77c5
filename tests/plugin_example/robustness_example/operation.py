"""An operation: all that proofs and training on bounds need to know of it, in one class."""

import torch
from torch import Tensor

from robustness.numerics.arithmetic import current_arithmetic
from robustness.programs.boxes import Box
from robustness.programs.operations import register
from robustness.programs.operations.elementwise import Elementwise, Line

# Bound of the second derivative's absolute value, 3 sqrt(3) / 8 rounded up.
_BEND = 0.65
# Room for the float64 arithmetic of the rules.
_ROOM = 2.0**-40
# Units in the last place by which the library may err, doubled.
_UNITS = 8.0


@register("atan")
class Arctangent(Elementwise):
    """The arctangent, which rises everywhere and bends at most by `_BEND`."""

    def interval(self, *boxes: Box) -> Box:
        """Ends to ends."""
        (box,) = boxes
        return Box(box.low.atan() - _ROOM, box.high.atan() + _ROOM)

    def rounding(self, out: Box, *boxes: Box) -> Tensor | float:
        """What the library may err by."""
        del boxes
        arithmetic = current_arithmetic()
        return arithmetic.unit * _UNITS * out.size + 2 * arithmetic.tiny

    def below(self, box: Box) -> Line:
        """The tangent at the centre, less what the function bends away from it."""
        return self._beside(box, -1)

    def above(self, box: Box) -> Line:
        """The same, on the other side."""
        return self._beside(box, 1)

    def _beside(self, box: Box, side: int) -> Line:
        at = box.centre
        slope = 1 / (1 + at * at)
        away = _BEND * box.half**2 / 2 + _ROOM * (1 + torch.abs(slope * at))
        return Line(slope, at.atan() - slope * at + side * away)
