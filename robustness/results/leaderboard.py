"""The comparable summary of a run: counts, intervals, brackets, samples, flags, environment.

`leaderboard.json` is this, and nothing in it depends on when, where or in what order the run
was made except the fields under `timings`, `costs` and `created`.
"""

import hashlib
import json
import operator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from robustness.certificates.base import Kind
from robustness.certificates.limits import Limit
from robustness.files import parse_json, read_json
from robustness.recipe import Published
from robustness.results.shown import Shown, axes_to_draw_on
from robustness.threat import Norm, ThreatModel

SCHEMA_VERSION = 2
LEADERBOARD_FILE = "leaderboard.json"
_EXPECTED = f"a leaderboard of schema version {SCHEMA_VERSION}"
_REMEDY = "correct the path, or run `robustness evaluate` again"
# How many folders deep reports lie in the folder of all of them.
DEEPEST = 2
# The store that it was made from, beside it.
STORE_FILE = "results.sqlite"
# In suites, keys and rows of attacks: every view and attack in turn.
WORST_CASE = "worst-case"


class Summary(BaseModel):
    """Strict base of everything in a leaderboard."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Proportion(Summary):
    """A count out of a total with its exact 95% interval (Clopper and Pearson, 1934)."""

    count: Annotated[int, Field(ge=0)]
    total: Annotated[int, Field(ge=1)]
    low: float
    high: float

    @model_validator(mode="after")
    def _within(self) -> "Proportion":
        if self.count > self.total:
            raise ValueError(f"a count up to {self.total}, got {self.count}")
        return self

    @classmethod
    def of(cls, count: int, total: int) -> "Proportion":
        """The proportion `count / total`; `total` is at least 1."""
        low, high = _exact_interval(count, total)
        return cls(count=count, total=total, low=low, high=high)

    @property
    def value(self) -> float:
        """The proportion, from 0 to 1."""
        return self.count / self.total


# Its ends are sought by bisection, and a report has the same counts in many places.
@lru_cache(maxsize=2**16)
def _exact_interval(count: int, total: int) -> tuple[float, float]:
    """The ends of the exact 95% interval."""
    from scipy.stats import binomtest

    interval = binomtest(count, total).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


class WithoutFlow(Summary):
    """What a neural ODE predicts without its flow; `nets.flow.without_flow` says how.

    Attributes:
        other: images whose class is another than the deployed model's, among them those on which
            either has a logit that is not finite. The flow decides their class and no other's.
        clean: accuracy without the flow.
    """

    other: Proportion
    clean: Proportion


class WholeTestSet(Summary):
    """What is known of a zoo entry on its whole test set, of which a suite may see a part.

    Attributes:
        weights_sha256: of the file of its weights.
        clean: accuracy.
        without_flow: what is predicted without the flow; None for a model without an ODE.
    """

    weights_sha256: str
    clean: Proportion
    without_flow: WithoutFlow | None


class Bracket(Summary):
    """Robust accuracy at one threat: at least `certified`, at most `attacked`.

    `attacked` is the worst case per sample over every attack of the run, counting any
    adversarial image that was found within the ball, whichever attack and radius found it.
    `probabilistic` is the accuracy of the best certificate of that kind; it speaks of another
    function or of a probability and is no part of the bracket. None where none was run.
    """

    norm: Norm
    eps: float
    certified: Proportion
    attacked: Proportion
    probabilistic: Proportion | None = None

    @property
    def width(self) -> float:
        """Attacked less certified accuracy: what is not known."""
        return self.attacked.value - self.certified.value


class AttackRow(Shown, Summary):
    """One attack at one threat.

    Attributes:
        attack: name in the suite.
        version: library, release and settings, such as `torchattacks 3.5.1 PGD, 20 steps`.
        robust: samples that this attack alone leaves standing, of those it was run on.
        subset: number of samples it was run on, the first of the suite's order.
        errors: samples on which the model or the attack failed; they do not count as robust.
        reasons: for which reason how many of these failed, most frequent first.
        rejected: proposed images that lay outside the ball or the box, or were not finite.
        skipped: samples that it did not attack, being certified at eps; they stand.
        found_by: which of its stages broke how many samples, most first; empty for an attack of
            one stage.
        effort: of the worst case; None for other attacks.
        left_after: of an attack of several stages: pairs of a number n and of how many samples
            still stood after n images had been passed forward, with or without the way back, on
            behalf of each; n doubles. What a stage passed counts before what it found.
    """

    attack: str
    version: str
    norm: Norm
    eps: float
    robust: Proportion
    subset: int
    errors: int
    reasons: Annotated[dict[str, int], Field(exclude_if=operator.not_)] = {}
    rejected: int
    skipped: int = 0
    found_by: dict[str, int] = {}
    effort: Annotated[str | None, Field(exclude_if=operator.not_)] = None
    left_after: Annotated[list[tuple[int, int]], Field(exclude_if=operator.not_)] = []

    def in_short(self) -> str:
        """See `Shown`."""
        left = f"{self.robust.value:.1%} left ({self.robust.low:.1%} to {self.robust.high:.1%})"
        return (
            f"{self.attack} at {ThreatModel(self.norm, self.eps)}: {left} of {self.subset} images"
        )

    def rows_shown(self) -> list[dict[str, object]]:
        """See `Shown`: one row."""
        return [
            {
                "attack": self.attack,
                "norm": str(self.norm),
                "eps": self.eps,
                "robust": self.robust.value,
                "low": self.robust.low,
                "high": self.robust.high,
                "images": self.subset,
                "errors": self.errors,
                "rejected": self.rejected,
            }
        ]

    def plot(self, axes: Any = None) -> Any:
        """Draw the robust accuracy with its interval; `axes` are matplotlib's, new by default."""
        drawn = axes_to_draw_on(axes)
        value, low, high = self.robust.value, self.robust.low, self.robust.high
        drawn.errorbar([value], [0], xerr=[[value - low], [high - value]], fmt="o", capsize=4)
        drawn.set(xlim=(-0.02, 1.02), xlabel="robust accuracy, 95% interval", yticks=[0])
        drawn.set_yticklabels([f"{self.attack}, {ThreatModel(self.norm, self.eps)}"])
        return drawn

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_boards(cls, content: Any) -> Any:
        """Boards of before had the effort in the version alone, as its first word."""
        if not isinstance(content, dict) or content.get("attack") != WORST_CASE:
            return content
        said = str(content.get("version")).partition(" effort")[0]
        return {"effort": said} | content


class CertificateRow(Summary):
    """One certificate of one model in one norm.

    Attributes:
        kind: `certified`, `probabilistic` or `estimate`; None where the certificate refuses.
        refusal: why it says nothing about this model; None where it applies.
        accuracy: accuracy at each of the suite's radii, in the order of `eps`.
        median_radius: over all samples, in pixel units.
        won: samples of which it gave the largest certified radius, the first of equals winning.
        limits: what limited the radius of how many samples, most frequent first.
        reasons: the same in the certificate's own words.
        curve: accuracy at each radius of `curve_eps`.
    """

    certificate: str
    norm: Norm
    kind: Kind | None
    refusal: str | None
    eps: list[float]
    accuracy: list[Proportion]
    median_radius: float
    won: int = 0
    limits: dict[Limit, int]
    reasons: dict[str, int] = {}
    curve_eps: list[float] = []
    curve: list[float] = []


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


class Envelope(Summary):
    """What is proved of V_y along all trajectories that start within a threat's ball.

    Attributes:
        norm: of the threat.
        eps: of the threat.
        refusals: why nothing is proved of how many samples.
        time: t/T of the solver's states.
        potential: medians of V_y(t) of the unperturbed samples.
        low: medians of the lower ends.
        high: medians of the upper ends.
        decays: samples of which V_y at the horizon is proved to be below V_y at the start.
        leads: samples of which the label is proved to lead at the horizon.
    """

    norm: Norm
    eps: float
    refusals: dict[str, int] = {}
    time: list[float] = []
    potential: list[float] = []
    low: list[float] = []
    high: list[float] = []
    decays: Proportion | None = None
    leads: Proportion | None = None


class Distances(Summary):
    """What is known of each sample in one norm; lists in the order of `Samples.index`.

    Attributes:
        norm: the norm.
        radius: the largest certified radius, 0 where there is none.
        certificate: which certificate gave it, empty where none did.
        limit: what limits it, empty likewise.
        distance: of the nearest adversarial image found, 0 where the prediction is wrong, None
            where none was found.
        found_by: what found it, empty where nothing did.
        failed: the smallest radius at which the model or an attack failed; None where neither did.
    """

    norm: Norm
    radius: list[float]
    certificate: list[str]
    limit: list[str]
    distance: list[float | None]
    found_by: list[str]
    failed: list[float | None]


class Samples(Summary):
    """The samples of one model, in the suite's order.

    Attributes:
        index: in the data set.
        label: true class.
        prediction: of the deployed model; None where it failed.
        norms: what is known in each norm.
    """

    index: list[int]
    label: list[int]
    prediction: list[int | None]
    norms: list[Distances]


class Flag(Summary):
    """The verdict of one check on a model; docs/attacks.md says what it means and what to do.

    Attributes:
        name: of the check.
        raised: whether the check found what it looks for.
        value: what was measured; None where it could not be.
        threshold: the value from which the flag is raised.
        detail: the measurement in words.
    """

    name: str
    raised: bool
    value: float | None
    threshold: float | None
    detail: str


class AuditRow(Summary):
    """Certified images of one model that were attacked inside their radii.

    Attributes:
        norm: the norm of the radii.
        attack: what attacked, with release and settings.
        pairs: images attacked, each at its own radius.
        broken: of these, images that were broken; any is a defect.
        errors: images on which the model or the attack failed.
        smallest: smallest radius attacked; None without pairs.
        largest: largest radius attacked; None without pairs.
    """

    norm: Norm
    attack: str
    pairs: int
    broken: int
    errors: int
    smallest: float | None
    largest: float | None


class Example(Summary):
    """An adversarial image to be looked at; its pixels are rounded, its distance is not.

    Attributes:
        index: of the image in the data set.
        label: true class.
        prediction: class of the adversarial image.
        distance: of the adversarial image, in the norm of its row.
        shape: channels, height, width.
        original: levels 0 to 255 of each pixel, row by row of each channel, a byte each;
            compressed (zlib) and written in base64.
        change: adversarial less original image, levels 1 to 255 of which 128 is none and 255 is
            `largest`; likewise.
        largest: the largest absolute change of a pixel.
    """

    index: int
    label: int
    prediction: int
    distance: float
    shape: tuple[int, int, int]
    original: str
    change: str
    largest: float


class NearestRow(Summary):
    """How near an adversarial image was found, in one norm: robust radii bounded from above.

    Attributes:
        version: how it was looked for.
        samples: on how many samples, the first of the suite's order.
        found: those of them with an adversarial image, wrong predictions included.
        errors: samples on which the model failed.
        median: of the smallest distance that anything in the run found, over the samples that are
            predicted right, in pixel units; None where most have no adversarial image.
        median_certified: of the certified radii of the same samples.
        examples: the nearest of the images that this search found and that are kept, nearest first.
    """

    norm: Norm
    version: str
    samples: int
    found: int
    errors: int
    median: float | None
    median_certified: float
    examples: Annotated[list[Example], Field(exclude_if=operator.not_)] = []


class Origin(Summary):
    """Where an entry of the zoo comes from.

    Attributes:
        family: of models that are made alike, such as `LyaNet`.
        paper: address of the paper that describes the family.
        published: what that paper says of these weights.
        weights: where they come from and under which licence, if they are others' and so not
            included.
    """

    family: str
    paper: str
    published: Annotated[list[Published], Field(exclude_if=operator.not_)] = []
    weights: Annotated[str, Field(exclude_if=operator.not_)] = ""


class ModelEntry(Summary):
    """Everything measured about one model.

    Attributes:
        digest: SHA-256 of weights and architecture; of a user's model, as `zoo.py` says.
        nfe: evaluations of vector fields per prediction; None for a model without an ODE.
        without_flow: what is predicted without the flow; None for a model without an ODE, and in
            leaderboards from before it was measured.
        whole: facts of the same weights on the whole test set; None where none are at hand.
        origin: of an entry of the zoo; None for a user's model.
        errors: samples on which it or an attack failed; they count as neither robust nor certified.
        failures: for which reason how many of these failed first, most frequent first.
        unidentified: what of it cannot be told, such as an attribute of unknown kind: if it changed
            between two runs into one store, the second has taken results of the first.
        further: what kinds of jobs of other packages found, by their names.
    """

    name: str
    description: str
    digest: str
    unidentified: list[str] = []
    parameters: int
    nfe: int | None
    clean: Proportion
    without_flow: WithoutFlow | None = None
    whole: WholeTestSet | None = None
    origin: Annotated[Origin | None, Field(exclude_if=operator.not_)] = None
    errors: int
    failures: Annotated[dict[str, int], Field(exclude_if=operator.not_)] = {}
    brackets: list[Bracket]
    attacks: list[AttackRow]
    certificates: list[CertificateRow]
    curves: list[Curve]
    decay: Decay | None
    envelopes: Annotated[list[Envelope], Field(exclude_if=operator.not_)] = []
    audits: list[AuditRow] = []
    flags: list[Flag] = []
    nearest: list[NearestRow] = []
    samples: Samples | None = None
    further: Annotated[dict[str, Any], Field(exclude_if=operator.not_)] = {}


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


class Picture(Summary):
    """An image and an adversarial one, to the last bit.

    Attributes:
        shape: channels, height, width.
        original: pixels in [0, 1], row by row of each channel; float32 numbers in the shortest
            decimals that read back as the same.
        adversarial: likewise.
    """

    shape: tuple[int, int, int]
    original: list[float]
    adversarial: list[float]


class Violation(Summary):
    """A certificate that was broken: an adversarial image closer than the certified radius.

    Attributes:
        model: name of the model.
        digest: of its weights and architecture.
        certificate: what certified the radius.
        norm: the norm of radius and distance.
        index: of the image in the data set.
        label: true class.
        prediction: class of the adversarial image; None where it is not known.
        radius: what was certified.
        distance: of the adversarial image.
        attack: what found it.
        seed: of the attack's random draws.
        picture: both images; None where the attack's images are not stored.
    """

    model: str
    digest: str
    certificate: str
    norm: Norm
    index: int
    label: int
    prediction: int | None
    radius: float
    distance: float
    attack: str
    seed: int
    picture: Picture | None = None

    def __str__(self) -> str:
        return (
            f"{self.model}: image {self.index} (class {self.label}) is certified by "
            f"{self.certificate} to {self.norm.value} {self.radius:.6g} and was broken at "
            f"{self.distance:.6g} by {self.attack}, seed {self.seed}"
        )


class Soundness(Summary):
    """Certified radii confronted with the adversarial images that the run found.

    Attributes:
        pairs: certified radii of samples for which some attack was run inside or outside them.
        attacked_inside: of these, pairs with an attack at a radius below the certified one.
        audited: pairs attacked by the audit, just inside the radius.
        violations: adversarial images closer than the certified radius; any is a defect. The
            first ones have pictures; the store has all that the audit found.
    """

    pairs: int
    attacked_inside: int
    audited: int = 0
    violations: list[Violation]


class Cost(Summary):
    """What a certificate takes per image, run alone on one core."""

    model: str
    norm: Norm
    certificate: str
    images: int
    milliseconds: float


class Leaderboard(Shown, Summary):
    """The whole summary of one run.

    It shows itself: `leaderboard` alone in a notebook is a table, `to_dataframe()` has a row per
    model and threat, and `plot()` draws the brackets.

    Attributes:
        suite: what was asked for.
        models: of it, with all that was found.
        soundness: of the certified radii.
        environment: versions of all that summed it up, the commit among them.
        timings: seconds, by what they are of.
        costs: of certificates.
        created: when it was summed up, ISO 8601.
        computed_by: commits of the code that computed its units, which are of the same versions of
            attacks and certificates as this one's; empty where nobody noted them.
    """

    schema_version: Literal[2] = 2
    suite: SuiteSummary
    models: list[ModelEntry]
    soundness: Soundness
    environment: dict[str, str]
    timings: dict[str, float] = {}
    costs: list[Cost] = []
    created: str = ""
    computed_by: list[str] = []

    def to_json(self) -> str:
        """The file's content; a list of plain values stands on one line."""
        return _indented(json.loads(self.model_dump_json())) + "\n"

    def in_short(self) -> str:
        """See `Shown`."""
        samples = self.models[0].clean.total if self.models else 0
        names = ", ".join(entry.name for entry in self.models[:4])
        more = f" and {len(self.models) - 4} more" if len(self.models) > 4 else ""
        return f"Leaderboard {self.suite.name} on {samples} samples: {names}{more}"

    def rows_shown(self) -> list[dict[str, object]]:
        """See `Shown`: a row per model and threat."""
        return [
            {
                "model": entry.name,
                "clean": entry.clean.value,
                "norm": str(bracket.norm),
                "eps": bracket.eps,
                "certified": bracket.certified.value,
                "attacked": bracket.attacked.value,
                "certified_low": bracket.certified.low,
                "attacked_high": bracket.attacked.high,
                "samples": bracket.attacked.total,
            }
            for entry in self.models
            for bracket in entry.brackets
        ]

    def plot(self, norm: Norm | str | None = None, axes: Any = None) -> Any:
        """Draw the brackets over eps: from certified to attacked accuracy, a colour per model.

        Args:
            norm: `Linf` or `L2`; by default the first of the suite.
            axes: of matplotlib, to draw on; by default those of a new figure.

        Returns:
            The axes.
        """
        drawn = axes_to_draw_on(axes)
        norms = [bracket.norm for entry in self.models for bracket in entry.brackets]
        chosen = Norm.parse(str(norm)) if norm is not None else next(iter(norms), Norm.LINF)
        for entry in self.models:
            brackets = [bracket for bracket in entry.brackets if bracket.norm is chosen]
            eps = [0.0, *(bracket.eps for bracket in brackets)]
            attacked = [entry.clean.value, *(b.attacked.value for b in brackets)]
            certified = [entry.clean.value, *(b.certified.value for b in brackets)]
            (line,) = drawn.plot(eps, attacked, marker="o", label=entry.name)
            drawn.fill_between(eps, certified, attacked, color=line.get_color(), alpha=0.2)
        drawn.set(xlabel=f"eps, {chosen}", ylabel="accuracy", ylim=(-0.02, 1.02))
        drawn.legend()
        return drawn

    def comparable(self) -> dict[str, Any]:
        """All that an identical run must reproduce: everything but times and who computed it."""
        without = {"timings", "costs", "created", "computed_by"}
        return self.model_dump(mode="json", exclude=without)

    def digest(self) -> str:
        """SHA-256 of what it says, in hexadecimal digits; times are left out."""
        return hashlib.sha256(json.dumps(self.comparable(), sort_keys=True).encode()).hexdigest()


def _indented(value: Any, indent: str = "") -> str:
    deeper = indent + " "
    if isinstance(value, dict) and value:
        lines = [f"{deeper}{json.dumps(k)}: {_indented(v, deeper)}" for k, v in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        lines = [deeper + _indented(item, deeper) for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False)


def read_leaderboard(path: Path) -> Leaderboard:
    """Read a leaderboard from its file, or from the folder that holds `leaderboard.json`.

    Raises:
        UsageError: there is none, or it is not a leaderboard of this schema version.
    """
    return read_json(leaderboard_file(path), Leaderboard, _EXPECTED, _REMEDY)


def reports_in(folder: Path) -> dict[str, Path]:
    """The leaderboards in a folder of reports, by the folders inside it that they lie in.

    Returns:
        `digits`, `peers/mnist`, ... to the file; sorted.
    """
    patterns = ["/".join(["*"] * depth) for depth in range(1, DEEPEST + 1)]
    found = [file for p in patterns for file in folder.glob(f"{p}/{LEADERBOARD_FILE}")]
    return {file.parent.relative_to(folder).as_posix(): file for file in sorted(found)}


def leaderboard_file(path: Path) -> Path:
    """The file itself, where a report folder may be named in its place."""
    return path / LEADERBOARD_FILE if path.is_dir() else path


def parse_leaderboard(content: bytes, name: str) -> Leaderboard:
    """Read a leaderboard from the content of its file, which messages call `name`.

    Raises:
        UsageError: it is not a leaderboard of this schema version.
    """
    return parse_json(content, name, Leaderboard, _EXPECTED, _REMEDY)
