"""From a suite to the shards of work whose results answer it.

A job is one thing done to one model (predict it, attack it at one threat, certify it in one
norm); it is done shard by shard. A shard is a fixed run of `SHARD_SIZE` images in the suite's
order and is always computed whole, in one batch and under one seed, so that a sample's result
does not depend on how many samples were asked for, on the batch size, on the number of workers
or on interruptions: only on what the key of (job, shard) names.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

from robustness import evaluation
from robustness.attacks import Attack
from robustness.certificates import settings_of
from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.evaluation.suite import Samples, Suite
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.threat import Norm, ThreatModel
from robustness.zoo import LoadedModel

SHARD_SIZE = 32

JobKind = Literal["clean", "attack", "certificate", "decay"]


@dataclass(frozen=True)
class ModelInfo:
    """What a report says of a model without loading it."""

    name: str
    digest: str
    description: str
    parameters: int


@dataclass(frozen=True)
class Job:
    """One thing done to one model.

    Attributes:
        kind: which of the four things.
        model: index into the plan's models.
        name: of the attack or certificate; empty otherwise.
        norm: of the threat or the radii; None otherwise.
        eps: of the threat; None otherwise.
        version: library, release and settings of an attack; settings of a certificate.
        shards: how many of the plan's shards it runs on, from the first.
        samples: how many samples of these shards count.
        refusal: why it is not run at all; None where it is.
    """

    kind: JobKind
    model: int
    name: str
    norm: Norm | None
    eps: float | None
    version: str
    shards: int
    samples: int
    refusal: str | None = None


@dataclass(frozen=True)
class Plan:
    """All jobs of a suite and the shards they run on.

    Attributes:
        suite: what was asked for.
        data_digest: SHA-256 of the images and labels.
        order: data-set indices in the suite's order.
        models: what is evaluated.
        jobs: all jobs, those that are refused included.
    """

    suite: Suite
    data_digest: str
    order: list[int]
    models: list[ModelInfo]
    jobs: list[Job]

    @cached_property
    def shards(self) -> list[list[int]]:
        """Data-set indices of each shard that any job needs."""
        needed = max(job.shards for job in self.jobs)
        return [self.order[i * SHARD_SIZE : (i + 1) * SHARD_SIZE] for i in range(needed)]

    @cached_property
    def _shard_digests(self) -> list[str]:
        return [hashlib.sha256(json.dumps(shard).encode()).hexdigest() for shard in self.shards]

    @property
    def samples(self) -> int:
        """Number of samples the suite reports."""
        return resolve_samples(self.suite.samples, len(self.order))

    def key(self, job: Job, shard: int) -> str:
        """The identity of a result: everything it depends on, hashed."""
        identity = {
            "results": evaluation.RESULTS_VERSION,
            "kind": job.kind,
            "model": self.models[job.model].digest,
            "data": self.data_digest,
            "images": self._shard_digests[shard],
            "name": job.name,
            "version": job.version,
            "norm": job.norm,
            "eps": job.eps,
            "seed": self.suite.seed if job.kind == "attack" else None,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def seed(self, shard: int) -> int:
        """Seed of the random draws on a shard, below 2^63."""
        text = f"{self.suite.seed}:{self._shard_digests[shard]}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def to_json(self) -> str:
        """For the store, so that a report can be rendered again without models or data."""
        return json.dumps(
            {
                "suite": self.suite.model_dump(mode="json"),
                "data_digest": self.data_digest,
                "order": self.order,
                "models": [vars(model) for model in self.models],
                "jobs": [vars(job) for job in self.jobs],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read what `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        jobs = [
            Job(**(job | {"norm": Norm(job["norm"]) if job["norm"] else None}))
            for job in content["jobs"]
        ]
        return cls(
            Suite.model_validate(content["suite"]),
            content["data_digest"],
            content["order"],
            [ModelInfo(**model) for model in content["models"]],
            jobs,
        )


def resolve_samples(samples: Samples, available: int) -> int:
    """A number of samples, at most as many as there are."""
    return available if samples == "all" else min(samples, available)


def build_attacks(suite: Suite) -> list[tuple[Attack, list[ThreatModel], Samples]]:
    """The suite's attacks, each with the threats and the samples it is run on."""
    return [
        (
            config.build(),
            [threat for group in config.threats or suite.threats for threat in group.threats],
            config.samples,
        )
        for config in suite.attacks
    ]


def make_plan(suite: Suite, images: ImageSet, models: list[LoadedModel]) -> Plan:
    """Plan every job of `suite`.

    Raises:
        UsageError: a model does not take the data set's images or has other classes.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(suite.seed))
    infos, jobs = [], []
    available = len(images)

    def add(kind: JobKind, model: int, samples: Samples, **fields: Any) -> None:
        count = min(resolve_samples(samples, available), resolve_samples(suite.samples, available))
        blank = {"name": "", "norm": None, "eps": None, "version": ""}
        shards = -(-count // SHARD_SIZE)
        jobs.append(Job(kind=kind, model=model, shards=shards, samples=count, **(blank | fields)))

    for index, loaded in enumerate(models):
        classes = _classes(loaded, images)
        parameters = sum(p.numel() for p in loaded.module.parameters())
        infos.append(ModelInfo(loaded.name, loaded.digest, loaded.description, parameters))
        add("clean", index, "all")
        if suite.decay and isinstance(loaded.module, NeuralODEClassifier):
            add("decay", index, "all")
        for name, certificate in suite.build_certificates().items():
            for group in suite.threats:
                add(
                    "certificate",
                    index,
                    "all",
                    name=name,
                    version=settings_of(certificate),
                    norm=group.norm,
                    refusal=certificate.refusal(loaded.module, group.norm),
                )
        for attack, threats, samples in build_attacks(suite):
            for threat in threats:
                refusal = attack.refusal(threat, classes)
                add(
                    "attack",
                    index,
                    samples,
                    name=attack.name,
                    version=attack.version,
                    norm=threat.norm,
                    eps=threat.eps,
                    refusal=refusal,
                )
    return Plan(suite, images.digest, order.tolist(), infos, jobs)


def _classes(loaded: LoadedModel, images: ImageSet) -> int:
    try:
        with torch.no_grad():
            logits = loaded.module(images.images[:1])
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UsageError(
            f"{loaded.name}: expected a model of images {images.shape}, got {reason}; "
            f"check that it fits the data set {images.name}"
        ) from error
    if logits.dim() != 2 or logits.shape[1] != images.classes:
        raise UsageError(
            f"{loaded.name}: expected logits of shape (n, {images.classes}) for {images.name}, "
            f"got {tuple(logits.shape)}; check the model's number of classes"
        )
    return int(logits.shape[1])
