"""What there is to do, as data: jobs, the units of work that answer them, and a suite's plan.

A job is one thing done to one model (predict it, attack it at one threat, certify it in one
norm); it is done shard by shard. A shard is a fixed run of `SHARD_SIZE` images in the suite's
order and is always computed whole, in one batch and under one seed, so that a sample's result
does not depend on how many samples were asked for, on the batch size, on the number of workers
or on interruptions: only on what the key of (job, images) names.

Jobs come in two phases. Those of the second start from what the certificates of the first gave,
which is then part of their keys.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from robustness import nets
from robustness.evaluation.broken import Broken
from robustness.evaluation.suite import Samples, Suite
from robustness.identity import fingerprint
from robustness.numerics.devices import ON_CPU, Placement
from robustness.threat import Norm, ThreatModel
from robustness.zoo import LoadedModel

SHARD_SIZE = 32

# Without what it was built for: of one release, the same operations.
_TORCH = torch.__version__.partition("+")[0]


@dataclass(frozen=True)
class ModelInfo:
    """What a report says of a model without loading it, and what its results are filed under.

    Attributes:
        name: as it was asked for.
        digest: names the model in reports.
        description: what it is, in a sentence.
        parameters: number of parameters.
        fingerprint: of what it computes on fixed images; None where that changes between calls.
        identity: the part of a result's key that names the function: SHA-256 of all that it is made
            of, and of its fingerprint unless it is a zoo entry, which these parts tell with the
            versions of the code that computes it; the digest in stores of before.
        unidentified: what of the model cannot be told, in words.
    """

    name: str
    digest: str
    description: str
    parameters: int
    fingerprint: str | None = None
    identity: str = ""
    unidentified: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, loaded: LoadedModel, data: str, shape: Sequence[int]) -> "ModelInfo":
        """Of a model on a data set whose images have a shape, (c, h, w)."""
        seen = fingerprint(loaded.module, shape)
        if seen is None:  # results of a model that changes are no other run's
            computed = secrets.token_hex(16)
        elif loaded.recipe is not None and loaded.structure.complete:
            # The same on every processor, whose sums may differ in their last bits.
            computed = f"nets {nets.VERSION}, torch {_TORCH}, torchdiffeq {version('torchdiffeq')}"
        else:
            computed = seen
        identity = hashlib.sha256(f"{loaded.structure.digest}:{computed}".encode()).hexdigest()
        unidentified = [f"the attribute {path}" for path in loaded.structure.unidentified]
        if seen is None:
            unidentified.insert(0, "its logits, which change between calls of the same image")
        parameters = sum(p.numel() for p in loaded.module.parameters())
        described = loaded.described_on(data)
        return cls(loaded.name, loaded.digest, described, parameters, seen, identity, unidentified)


@dataclass(frozen=True)
class Job:
    """One thing done to one model.

    Attributes:
        kind: which of these things: the name of a kind of job.
        code: version of that kind.
        model: index into the plan's models.
        shards: how many of the plan's shards it runs on, from the first.
        samples: how many samples of these shards count.
        name: of the attack or certificate; empty otherwise.
        norm: of the threat or the radii; None otherwise.
        eps: of the threat; None otherwise.
        version: library, release and settings of an attack, or of the attacks that are checked;
            settings of a certificate.
        refusal: why it is not run at all; None where it is.
        sources: digest of the other models that the result depends on; empty without any.
        seeded: whether it draws at random.
        late: whether it starts from certified radii, and so waits for the certificates.
        climbs: whether it searches on the run's device; others ask the judged program alone.
    """

    kind: str
    code: int
    model: int
    shards: int
    samples: int
    name: str = ""
    norm: Norm | None = None
    eps: float | None = None
    version: str = ""
    refusal: str | None = None
    sources: str = ""
    seeded: bool = False
    late: bool = False
    climbs: bool = False

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Job":
        """Of fields as JSON holds them."""
        return cls(**(fields | {"norm": Norm(fields["norm"]) if fields["norm"] else None}))

    def __str__(self) -> str:
        words = dict.fromkeys([self.kind, self.name, self.norm, self.eps])
        return " ".join(str(word) for word in words if word)

    @property
    def threat(self) -> ThreatModel:
        """Of a job that has one."""
        assert self.norm is not None
        assert self.eps is not None
        return ThreatModel(self.norm, self.eps)


@dataclass(frozen=True)
class Unit:
    """Some images of one job.

    Attributes:
        key: the result's identity in the store.
        indices: of the images in the data set.
        seed: of every random draw.
        radii: certified radii that the job starts from, one per image; empty for jobs of the
            first phase.
        broken: those of the images that need not be attacked any more.
    """

    key: str
    indices: list[int]
    seed: int
    radii: tuple[float, ...] = ()
    broken: tuple[Broken, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All jobs of a suite and the shards they run on.

    Attributes:
        suite: what was asked for.
        data_digest: SHA-256 of the images and labels.
        order: data-set indices in the suite's order.
        models: what is evaluated.
        jobs: all jobs, those that are refused included.
        share: which of how many shares of it a run computed, from 1; None for all of it.
        placement: where it is computed.
        hardware: which devices these are.
    """

    suite: Suite
    data_digest: str
    order: list[int]
    models: list[ModelInfo]
    jobs: list[Job]
    share: tuple[int, int] | None = None
    placement: Placement = ON_CPU
    hardware: Placement = ON_CPU

    @property
    def samples(self) -> int:
        """Number of samples the suite reports."""
        return resolve_samples(self.suite.samples, len(self.order))

    def unit(
        self,
        job: Job,
        images: list[int],
        given: object = None,
        radii: tuple[float, ...] = (),
        broken: tuple[Broken, ...] = (),
    ) -> Unit:
        """Some images of a job, under their key and seed; see `key`."""
        return Unit(self.key(job, images, given), images, self.seed(images), radii, broken)

    def shards(self, job: Job) -> list[list[int]]:
        """The images of each shard that a job runs on."""
        starts = range(0, len(self.order), SHARD_SIZE)[: job.shards]
        return [self.order[start : start + SHARD_SIZE] for start in starts]

    def key(self, job: Job, images: Sequence[int], given: object = None) -> str:
        """The identity of a result: everything it depends on, hashed.

        Args:
            job: what is done.
            images: data-set indices of what it is done to, in their order.
            given: what a job of the second phase starts from, as JSON can write it.
        """
        model = self.models[job.model]
        identity: dict[str, object] = {
            "kind": job.kind,
            "code": job.code,
            "model": model.identity or model.digest,
            "data": self.data_digest,
            "images": _digest(images),
            "name": job.name,
            "version": job.version,
            "norm": job.norm,
            "eps": job.eps,
            "seed": self.suite.seed if job.seeded else None,
        }
        if given is not None:
            identity["given"] = given
        if job.sources:
            identity["sources"] = job.sources
        judge = self.hardware.judge
        used = self.hardware if job.climbs else Placement(judge, judge)
        if not used.on_cpu:
            identity |= vars(used)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def seed(self, images: Sequence[int]) -> int:
        """Seed of the random draws on some images, below 2^63."""
        text = f"{self.suite.seed}:{_digest(images)}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def to_json(self) -> str:
        """For the store, so that a report can be rendered again without models or data."""
        content = {
            "suite": self.suite.model_dump(mode="json"),
            "data_digest": self.data_digest,
            "order": self.order,
            "models": [vars(model) for model in self.models],
            "jobs": [vars(job) for job in self.jobs],
            "placement": vars(self.placement),
            "hardware": vars(self.hardware),
        }
        return json.dumps(content | ({"share": self.share} if self.share else {}))

    @classmethod
    def from_json(cls, text: str, suite: Suite | None = None) -> "Plan":
        """Read what `to_json` wrote; of a suite that is at hand, where one is."""
        content: dict[str, Any] = json.loads(text)
        jobs = [Job.of(fields) for fields in content["jobs"]]
        return cls(
            suite or Suite.model_validate(content["suite"]),
            content["data_digest"],
            content["order"],
            [ModelInfo(**model) for model in content["models"]],
            jobs,
            tuple(content["share"]) if "share" in content else None,
            Placement(**content.get("placement", {})),
            Placement(**content.get("hardware", {})),
        )


def _digest(images: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()


def resolve_samples(samples: Samples, available: int) -> int:
    """A number of samples, at most as many as there are."""
    return available if samples == "all" else min(samples, available)
