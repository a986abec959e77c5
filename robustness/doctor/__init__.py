"""What goes wrong in practice between a user's model and its images, and the line that mends it."""

from robustness.doctor.base import Diagnosis, Finding
from robustness.doctor.cost import Cost
from robustness.doctor.examine import CHECKS, examine

__all__ = ["CHECKS", "Cost", "Diagnosis", "Finding", "examine"]
