"""What each operation of torch knows of itself: interval, rounding and lines, by family."""

from robustness.programs.operations import (  # noqa: F401
    affine,
    elementwise,
    ordering,
    products,
    reductions,
    shapes,
)
from robustness.programs.operations.base import Operation, operation_of, register

__all__ = ["Operation", "operation_of", "register"]
