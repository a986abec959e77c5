"""What is known to be broken before a unit of work is begun."""

from dataclasses import dataclass

from robustness.threat import Norm


@dataclass(frozen=True)
class Broken:
    """An adversarial image by the judge's verdict, known before a unit of work is begun.

    Attributes:
        sample: index of the original in the data set.
        prediction: class of the adversarial image.
        linf: its l-infinity distance in pixel units, in float64.
        l2: its l2 distance.
        found_by: what found it.
        queries: images that were passed forward on its behalf by what a unit counts.
        gradients: images passed forward and backward.
    """

    sample: int
    prediction: int
    linf: float
    l2: float
    found_by: str
    queries: int = 0
    gradients: int = 0

    def distance(self, norm: Norm) -> float:
        """In a norm."""
        return self.linf if norm is Norm.LINF else self.l2
