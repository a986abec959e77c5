"""What an audit answers with, and the test that several of them use."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scipy.stats import binomtest

# Chance is ruled out below this probability.
SIGNIFICANCE = 0.01


class Severity(StrEnum):
    """What a raised flag says of the attacked accuracy of its model, worst first.

    - `SERIOUS`: it may be far too high. Something else than the decision held attacks off, or
      they were made on another function than the one that is deployed.
    - `CAUTION`: attacks of one kind are weak on this model; the others of a run need not be.
    - `NOTE`: nothing. It is about a mode of the model that is not deployed.
    """

    SERIOUS = "serious"
    CAUTION = "caution"
    NOTE = "note"


# Of every other check a raised flag is serious, so that a new one is not taken too lightly.
_LIGHTER = {
    "gradient-agreement": Severity.CAUTION,
    "logits": Severity.CAUTION,
    "adjoint-agreement": Severity.NOTE,
    "backprop-agreement": Severity.NOTE,
}


def severity(name: str) -> Severity:
    """How much a raised flag of this name weighs."""
    return _LIGHTER.get(name, Severity.SERIOUS)


@dataclass(frozen=True)
class Flag:
    """The answer of one audit.

    Attributes:
        name: which audit, in lower case with hyphens; a heading of docs/attacks.md.
        raised: whether the value is on the wrong side of the threshold.
        value: what was measured; None where the audit could not be run, which raises the flag.
        threshold: what it was compared with.
        detail: the measurement in words, with its units and numbers of samples.
    """

    name: str
    raised: bool
    value: float | None
    threshold: float
    detail: str


@dataclass(frozen=True)
class Pairs:
    """Two attacks on the same samples.

    Attributes:
        gained: samples that the second attack breaks and the first does not.
        lost: samples that the first breaks and the second does not.
    """

    gained: int
    lost: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "Pairs":
        """Count the pairs in which only one attack succeeded."""
        pairs = list(zip(first, second, strict=True))
        return cls(sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs))

    @property
    def probability(self) -> float:
        """Of gaining so many of the discordant pairs by chance: McNemar's exact test, one-sided."""
        discordant = self.gained + self.lost
        if discordant == 0:
            return 1.0
        return float(binomtest(self.gained, discordant, alternative="greater").pvalue)
