"""The comparable summary of a run: counts, intervals, brackets, environment.

`leaderboard.json` is this, and nothing in it depends on when, where or in what order the run
was made except the fields under `timings` and `created`.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import binomtest

from robustness.certificates.base import Kind
from robustness.errors import UsageError
from robustness.recipe import describe_validation
from robustness.threat import Norm

SCHEMA_VERSION = 1


class Summary(BaseModel):
    """Strict base of everything in a leaderboard."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Proportion(Summary):
    """A count out of a total with its exact 95% interval (Clopper and Pearson, 1934)."""

    count: int
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, count: int, total: int) -> "Proportion":
        """The proportion `count / total`; `total` is at least 1."""
        interval = binomtest(count, total).proportion_ci(0.95, method="exact")
        return cls(count=count, total=total, low=float(interval.low), high=float(interval.high))

    @property
    def value(self) -> float:
        """The proportion, from 0 to 1."""
        return self.count / self.total


class Bracket(Summary):
    """Robust accuracy at one threat: at least `certified`, at most `attacked`.

    `attacked` is the worst case per sample over every attack of the run, counting any
    adversarial image that was found within the ball, whichever attack and radius found it.
    """

    norm: Norm
    eps: float
    certified: Proportion
    attacked: Proportion

    @property
    def width(self) -> float:
        """Attacked less certified accuracy: what is not known."""
        return self.attacked.value - self.certified.value


class AttackRow(Summary):
    """One attack at one threat.

    Attributes:
        attack: name in the suite.
        version: library, release and settings, such as `torchattacks 3.5.1 PGD, 20 steps`.
        robust: samples that this attack alone leaves standing, of those it was run on.
        subset: number of samples it was run on, the first of the suite's order.
        errors: samples on which the model or the attack failed; they do not count as robust.
        rejected: proposed images that lay outside the ball or the box, or were not finite.
    """

    attack: str
    version: str
    norm: Norm
    eps: float
    robust: Proportion
    subset: int
    errors: int
    rejected: int


class CertificateRow(Summary):
    """One certificate of one model in one norm.

    Attributes:
        kind: `certified`, `probabilistic` or `estimate`; None where the certificate refuses.
        refusal: why it says nothing about this model; None where it applies.
        accuracy: accuracy at each of the suite's radii, in the order of `eps`.
        median_radius: over all samples, in pixel units.
        limits: how often each reason limited the radius, most frequent first.
    """

    certificate: str
    norm: Norm
    kind: Kind | None
    refusal: str | None
    eps: list[float]
    accuracy: list[Proportion]
    median_radius: float
    limits: dict[str, int]


class Curve(Summary):
    """Certified and attacked accuracy on a grid of radii, for plotting.

    `certified` is the best certificate of kind certified; `attacked` steps down where an
    adversarial image was found, and is known only at radii that were attacked (`attacked_eps`).
    """

    norm: Norm
    certified_eps: list[float]
    certified: list[float]
    attacked_eps: list[float]
    attacked: list[float]


class Decay(Summary):
    """The potential V_y along trajectories from 0 to the horizon, over all samples.

    `time` is t/T; `median`, `low` and `high` are the 50th, 10th and 90th percentiles of V_y(t);
    `accuracy` is the accuracy of the state at that time.
    """

    time: list[float]
    median: list[float]
    low: list[float]
    high: list[float]
    accuracy: list[float]


class ModelEntry(Summary):
    """Everything measured about one model."""

    name: str
    description: str
    digest: str
    parameters: int
    nfe: int | None
    clean: Proportion
    errors: int
    brackets: list[Bracket]
    attacks: list[AttackRow]
    certificates: list[CertificateRow]
    curves: list[Curve]
    decay: Decay | None


class SuiteSummary(Summary):
    """What was run: enough to tell whether two leaderboards are comparable."""

    name: str
    data: str
    split: str
    data_digest: str
    samples: int
    seed: int
    settings: dict[str, Any]
    subsets: dict[str, list[int]]


class Soundness(Summary):
    """Certified radii confronted with the adversarial images that the run found.

    Attributes:
        pairs: certified radii of samples for which some attack was run inside or outside them.
        attacked_inside: of these, pairs with an attack at a radius below the certified one.
        violations: adversarial images closer than the certified radius; any is a defect.
    """

    pairs: int
    attacked_inside: int
    violations: list[str]


class Leaderboard(Summary):
    """The whole summary of one run."""

    schema_version: Literal[1] = 1
    suite: SuiteSummary
    models: list[ModelEntry]
    soundness: Soundness
    environment: dict[str, str]
    timings: dict[str, float] = {}
    created: str = ""

    def to_json(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=1) + "\n"

    def comparable(self) -> dict[str, Any]:
        """All that an identical run must reproduce: everything but timings and timestamps."""
        return self.model_dump(mode="json", exclude={"timings", "created"})


def read_leaderboard(path: Path) -> Leaderboard:
    """Read a leaderboard from its file, or from the folder that holds `leaderboard.json`.

    Raises:
        UsageError: there is none, or it is not a leaderboard of this schema version.
    """
    file = path / "leaderboard.json" if path.is_dir() else path
    try:
        return Leaderboard.model_validate_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"expected a leaderboard at {file}, got {error.strerror or error}; "
            "run `robustness evaluate` first or correct the path"
        ) from None
    except ValidationError as error:
        raise UsageError(
            f"{file}: expected a leaderboard of schema version {SCHEMA_VERSION}, got one where "
            f"{describe_validation(error)}; run `robustness evaluate` again"
        ) from None
