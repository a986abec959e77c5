"""What a run knows of each sample, gathered from the rows of all jobs."""

import math
from collections import Counter
from dataclasses import dataclass, field

from robustness.certificates import CertifiedRadius, Kind
from robustness.results.leaderboard import Distances, Samples
from robustness.threat import Norm

# Where no other is known.
NOT_FINITE = "non-finite logits"


@dataclass
class SampleRecord:
    """All that a run knows of one sample under one model.

    Attributes:
        index: in the data set.
        label: true class.
        prediction: of the deployed model; None where it failed.
        failed: smallest radius per norm at which the model or an attack failed; 0 in both norms
            where the model failed on the image itself.
        distance: per norm, distance of the nearest adversarial image found; 0 where the
            prediction is wrong.
        found_by: per norm, what found that image.
        claims: per norm, what each certificate says, in the order of the suite.
        attacked: per norm, the radii at which an attack ran.
        reason: why the model or an attack failed, the first time; empty where nothing did.
    """

    index: int
    label: int
    prediction: int | None
    failed: dict[Norm, float] = field(default_factory=dict)
    distance: dict[Norm, float] = field(default_factory=dict)
    found_by: dict[Norm, str] = field(default_factory=dict)
    claims: dict[Norm, list[CertifiedRadius]] = field(default_factory=dict)
    attacked: dict[Norm, list[float]] = field(default_factory=dict)
    reason: str = ""

    @property
    def correct(self) -> bool:
        """Whether the deployed model predicts the label."""
        return self.prediction == self.label

    def stands(self, norm: Norm, eps: float) -> bool:
        """Whether nothing known puts it off its label within eps."""
        distance = self.distance.get(norm, math.inf)
        return self.correct and distance > eps and self.failed.get(norm, math.inf) > eps

    def best(self, norm: Norm, kind: Kind = Kind.CERTIFIED) -> CertifiedRadius | None:
        """The largest positive radius of a kind, the first of equals; None without one."""
        radii = [c for c in self.claims.get(norm, []) if c.kind is kind and c.radius > 0]
        return max(radii, key=lambda claim: claim.radius, default=None)

    def radius(self, norm: Norm, kind: Kind = Kind.CERTIFIED) -> float:
        """The largest radius of a kind; 0 without one."""
        claim = self.best(norm, kind)
        return 0.0 if claim is None else claim.radius

    def certified(self, norm: Norm, eps: float) -> bool:
        """Whether it is proved to keep its label within eps, eps included, and nothing failed."""
        return self.certified_below(norm) > eps

    def certified_below(self, norm: Norm) -> float:
        """Within every eps below it, and no other, it is proved to keep its label; 0 for none."""
        if not self.correct:
            return 0.0
        return min(self.failed.get(norm, math.inf), self.radius(norm))

    def note_adversarial(self, distances: dict[Norm, float], found_by: str) -> None:
        """Take account of an adversarial image, in whichever norm it is the nearest."""
        for norm, found in distances.items():
            if found < self.distance.get(norm, math.inf):
                self.distance[norm], self.found_by[norm] = found, found_by

    def note_failure(self, norm: Norm, eps: float, reason: str = "") -> None:
        """Take account of a failure within a radius."""
        self.failed[norm] = min(self.failed.get(norm, math.inf), eps)
        self.reason = self.reason or reason or NOT_FINITE


def failures(records: list[SampleRecord]) -> dict[str, int]:
    """How many samples failed for which reason, the most frequent first."""
    counts = Counter(record.reason for record in records if record.failed)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def sample_table(records: list[SampleRecord], norms: list[Norm]) -> Samples:
    """The records as columns."""
    return Samples(
        index=[r.index for r in records],
        label=[r.label for r in records],
        prediction=[r.prediction for r in records],
        norms=[_distances(records, norm) for norm in norms],
    )


def _distances(records: list[SampleRecord], norm: Norm) -> Distances:
    best = [r.best(norm) for r in records]
    return Distances(
        norm=norm,
        radius=[0.0 if claim is None else claim.radius for claim in best],
        certificate=["" if claim is None else claim.certificate for claim in best],
        limit=["" if claim is None else claim.limit.value for claim in best],
        distance=[r.distance.get(norm) for r in records],
        found_by=[r.found_by.get(norm, "") for r in records],
        failed=[r.failed.get(norm) for r in records],
    )
