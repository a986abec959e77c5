"""What an audit answers with, and the test that several of them use."""

from collections.abc import Sequence
from dataclasses import dataclass

# Chance is ruled out below this probability.
SIGNIFICANCE = 0.01


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
        from scipy.stats import binomtest

        return float(binomtest(self.gained, discordant, alternative="greater").pvalue)
