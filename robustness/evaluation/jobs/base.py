"""What a kind of job is, and how one unit of it is run."""

import hashlib
import json
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates import Certificate
from robustness.data import ImageSet
from robustness.errors import DiedError, in_words, is_exhausted, one_line
from robustness.evaluation.jobs.rows import R, Row, as_stored
from robustness.evaluation.plan import SHARD_SIZE, Job, ModelInfo, Plan, Unit, resolve_samples
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.suite import Samples, Suite
from robustness.registry import Registry, release_of
from robustness.results.leaderboard import Proportion
from robustness.threat import Norm
from robustness.zoo import LoadedModel

_WORDS = 500


@dataclass(frozen=True)
class Asked:
    """What a kind of job plans for: one model of a suite.

    Attributes:
        suite: what is asked for.
        images: of its data set.
        models: of the suite, in its order.
        infos: of the same models.
        model: index of the model.
        jobs: what is planned for it so far.
    """

    suite: Suite
    images: ImageSet
    models: Sequence[LoadedModel]
    infos: Sequence[ModelInfo]
    model: int
    jobs: list[Job] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the model."""
        return self.models[self.model].name

    @property
    def module(self) -> nn.Module:
        """The model."""
        return self.models[self.model].module

    @property
    def sources(self) -> dict[str, nn.Module]:
        """The suite's other models by name, whose adversarial images may be tried on it."""
        return sources_of(self.suite, self.models, self.model)

    def digest_of_sources(self) -> str:
        """What a job's key names of the other models that it depends on."""
        sources = self.sources
        digests = [[info.name, info.identity] for info in self.infos if info.name in sources]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def sources_of(suite: Suite, models: Sequence[LoadedModel], model: int) -> dict[str, nn.Module]:
    """The models by name whose adversarial images may be tried on one of a suite's.

    Args:
        suite: of `models`; those that are added to it are not among them.
        models: all of the suite.
        model: index of the one.
    """
    return {
        other.name: other.module
        for i, other in enumerate(models)
        if i != model and other.name not in suite.added
    }


@dataclass(frozen=True)
class Work:
    """One unit, and what it is done with.

    Attributes:
        job: what is done.
        unit: to which images, under which seed.
        suite: that the job is of.
        model: the deployed model, on the device where it is judged.
        images: the unit's pixels on the CPU, shape (n, c, h, w).
        labels: their classes, shape (n,).
        certificates: of the model by name; the same objects for all units, whose work they share.
        sources: the suite's other models by name, on the device that is searched on.
        climbed: the model there, where that is another device; see `searched`.
    """

    job: Job
    unit: Unit
    suite: Suite
    model: nn.Module
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    certificates: Mapping[str, Certificate] = field(default_factory=dict)
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    climbed: nn.Module | None = None

    @property
    def searched(self) -> nn.Module:
        """The model on the device that is searched on."""
        return self.model if self.climbed is None else self.climbed

    @property
    def norm(self) -> Norm:
        """The norm of a job that has one."""
        assert self.job.norm is not None
        return self.job.norm


@dataclass(frozen=True)
class Findings(Generic[R]):
    """What all jobs of a kind found of one model, to be summarised.

    Attributes:
        plan: of the run.
        model: index of the model.
        jobs: of the kind and the model, in the plan's order, each with the rows of the samples
            that count; refused ones have none.
        records: what the whole run knows of each sample, by its index, in the suite's order.
        grids: per norm, radii to draw curves at.
    """

    plan: Plan
    model: int
    jobs: list[tuple[Job, list[R]]]
    records: Mapping[int, SampleRecord]
    grids: Mapping[Norm, list[float]]

    @property
    def rows(self) -> list[R]:
        """Of all its jobs."""
        return [row for _, rows in self.jobs for row in rows]

    @property
    def done(self) -> list[tuple[Job, list[R]]]:
        """The jobs that were not refused."""
        return [(job, rows) for job, rows in self.jobs if job.refusal is None]


class Kind(ABC, Generic[R]):
    """One kind of job; a subclass is all that there is to know of it.

    Attributes:
        name: in plans, stores and tables; lower-case words with hyphens.
        version: part of the key of every result; raised when the code changes what it gives, or
            when the row has other fields.
        row: the dataclass of its rows.
        seeded: whether it draws at random, so that the suite's seed is part of its keys.
        late: whether it starts from certified radii, which are then part of its keys.
        local: of a late one, whether each unit starts from the radii of its own images alone, and
            which images it has does not depend on any.
        attacks: whether each of its threats has a bracket in the leaderboard.
        climbs: whether it searches on the run's device, with `Work.searched`; the others are of the
            judged program alone.
        shared: whether its units share work with those of other such kinds on the same images.
        alone: whether each of its units is a task of its own, being few and dear.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    row: type[R]
    seeded: ClassVar[bool] = False
    late: ClassVar[bool] = False
    local: ClassVar[bool] = False
    attacks: ClassVar[bool] = False
    climbs: ClassVar[bool] = False
    shared: ClassVar[bool] = False
    alone: ClassVar[bool] = False

    @abstractmethod
    def plan(self, asked: Asked) -> Iterator[Job]:
        """Its jobs on one model; see `job`."""

    @abstractmethod
    def run(self, work: Work) -> list[R]:
        """Do one unit.

        What it raises on a user's model makes the samples errors; on a zoo model it ends the run.
        """

    @abstractmethod
    def failed(self, work: Work, reason: str) -> list[R]:
        """The rows of a unit that a user's model did not let be done, and why."""

    def units(self, job: Job, plan: Plan, radii: Mapping[int, float]) -> list[Unit]:
        """The units of a job that is not refused, by default one per shard.

        Args:
            job: of this kind.
            plan: that it is of.
            radii: for a late one, the certified radius of each image that has one.
        """
        del radii
        return [plan.unit(job, shard) for shard in plan.shards(job)]

    def starts_from(self, job: Job, plan: Plan) -> list[Job]:
        """Jobs of which a late one's units start from the rows, besides radii; by default none.

        They are of the first phase, or late and of a kind whose units are of the same images. What
        is found of an image decides of the same image only.
        """
        del job, plan
        return []

    def given(self, job: Job, plan: Plan, unit: Unit, rows: Mapping[Job, list[Any]]) -> Unit:
        """A unit once it is known what it starts from, which is then part of its key.

        Args:
            job: of this kind, late.
            plan: that it is of.
            unit: one of `units`. A result under its key counts as well, as it was computed without
                what is given now.
            rows: those about the unit's images, of each of the jobs that it starts from.
        """
        del job, plan, rows
        return unit

    def is_dear(self, job: Job) -> bool:
        """Whether the job's units take longest, and so are begun first; until that is measured."""
        del job
        return False

    def note(self, job: Job, rows: list[R], records: dict[int, SampleRecord]) -> None:
        """Take account, sample by sample, of what a job found; by default of nothing."""

    def summarise(self, findings: Findings[R]) -> dict[str, Any]:
        """Fields of the model's entry in the leaderboard; by default none.

        Lists and tables that several kinds give are joined. A kind of another package fills
        `further` with a table of its own name, for a report column of its own to read.
        """
        del findings
        return {}

    def job(self, asked: Asked, samples: Samples = "all", **fields: Any) -> Job:
        """A job on one model.

        Args:
            asked: what is planned for.
            samples: how many, the first of the suite's order.
            **fields: of the job, besides those that follow from kind and model.
        """
        available = len(asked.images)
        count = min(resolve_samples(n, available) for n in (samples, asked.suite.samples))
        shards = -(-count // SHARD_SIZE)
        release = release_of(type(self).__module__)
        if release:  # the version is of the kind's own code, and its author may forget it
            fields["version"] = ", ".join(filter(None, [fields.get("version"), release]))
        return Job(
            self.name,
            self.version,
            asked.model,
            shards,
            count,
            seeded=self.seeded,
            late=self.late,
            climbs=self.climbs,
            **fields,
        )


KINDS: Registry[Kind[Any]] = Registry("a kind of job", "robustness.jobs")


def release_of_kind(name: str) -> str:
    """Whose code a kind of job is, see `release_of`."""
    return release_of(type(KINDS[name]).__module__)


K = TypeVar("K", bound=type[Kind[Any]])


def register_kind(kind: K) -> K:
    """Register a kind of job under its name.

    Raises:
        ValueError: the name is no lower-case words with hyphens, or the version no positive number.
        UsageError: the name is taken.
    """
    if not re.fullmatch("[a-z]+(-[a-z]+)*", kind.name) or kind.version < 1:
        raise ValueError(
            "expected a kind of job named by lower-case words with hyphens, of a version from 1, "
            f"got {kind.name!r} of version {kind.version}"
        )
    KINDS.register(kind())
    return kind


@dataclass(frozen=True)
class Result:
    """The rows of one unit, as a store gives them back.

    Attributes:
        key: of the unit.
        kind: of its job.
        rows: in the order of their identities.
        seconds: that it took, run alone.
        ended: whether the model ended its process, or took too long or too much memory.
    """

    key: str
    kind: str
    rows: Sequence[Row]
    seconds: float = field(compare=False)
    ended: bool = False


def run_unit(work: Work) -> Result:
    """Do one unit, in this process or in a worker: pure, no store in sight."""
    started = time.perf_counter()
    rows = as_stored(KINDS[work.job.kind].run(work))
    return Result(work.unit.key, work.job.kind, rows, time.perf_counter() - started)


def failed_unit(work: Work, error: BaseException) -> Result:
    """What is known of a unit whose model did not let it be done: that it failed, and why."""
    rows = as_stored(KINDS[work.job.kind].failed(work, said(error)))
    ended = isinstance(error, DiedError) or is_exhausted(error)
    return Result(work.unit.key, work.job.kind, rows, 0.0, ended)


def require_memory(error: Exception) -> None:
    """Let nothing be stored as a fact of a model that was the machine's lack of memory."""
    if is_exhausted(error):
        raise error


def said(error: BaseException) -> str:
    """Why a sample failed, in words."""
    if isinstance(error, DiedError):
        return one_line(str(error), _WORDS)
    if is_exhausted(error):
        return one_line(f"out of memory: {str(error) or 'none left'}", _WORDS)
    return one_line(in_words(error), _WORDS)


def joined(errors: Iterable[str]) -> str:
    """What went wrong at several stages, in the words that are stored."""
    return "; ".join(errors)[:_WORDS]


C = TypeVar("C")


def most_first(counts: "Counter[C]") -> dict[C, int]:
    """Counts, the largest first, equal ones by what they count."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def proportion(outcomes: Iterable[bool]) -> Proportion:
    """How many of some outcomes are true."""
    flags = list(outcomes)
    return Proportion.of(sum(flags), len(flags))
