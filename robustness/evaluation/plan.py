"""From a suite to the shards of work whose results answer it.

A job is one thing done to one model (predict it, attack it at one threat, certify it in one
norm); it is done shard by shard. A shard is a fixed run of `SHARD_SIZE` images in the suite's
order and is always computed whole, in one batch and under one seed, so that a sample's result
does not depend on how many samples were asked for, on the batch size, on the number of workers
or on interruptions: only on what the key of (job, images) names.

Jobs come in two phases. Those of the second start from what the certificates of the first gave,
which is then part of their keys; `schedule.py` says how they are cut into units of work.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from robustness import evaluation
from robustness.attacks import Attack, audit_version, nearest_version
from robustness.certificates import CERTIFICATES, proves, settings_of
from robustness.data import ImageSet
from robustness.errors import UsageError, in_words, is_exhausted, is_interruption
from robustness.evaluation.executors.processes import begin_turn
from robustness.evaluation.jobs.audit import NAME as AUDIT
from robustness.evaluation.jobs.audit import audit_stages, describe
from robustness.evaluation.jobs.worst_case import WorstCase
from robustness.evaluation.suite import Samples, Suite
from robustness.identity import fingerprint
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.flow import without_flow
from robustness.registry import release_of
from robustness.results.leaderboard import WORST_CASE
from robustness.threat import Norm, ThreatModel
from robustness.zoo import Absent, LoadedModel

SHARD_SIZE = 32

JobKind = Literal["clean", "attack", "certificate", "decay", "audit", "flags", "nearest", "flow"]

# What the rows of predictions say: the evaluations of every kind of ODE.
_PREDICTIONS = "evaluations of all blocks"

# Kinds of jobs that draw at random.
_SEEDED: tuple[JobKind, ...] = ("attack", "audit", "flags", "nearest")


@dataclass(frozen=True)
class ModelInfo:
    """What a report says of a model without loading it, and what its results are filed under.

    Attributes:
        name: as it was asked for.
        digest: names the model in reports.
        description: what it is, in a sentence.
        parameters: number of parameters.
        fingerprint: of what it computes on fixed images; None where that changes between calls.
        identity: SHA-256 of all that it is made of and of its fingerprint, the part of a result's
            key that names the function; the digest in stores of before.
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
        # Results of a model that changes are no other run's.
        computed = secrets.token_hex(16) if seen is None else seen
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
        kind: which of these things.
        model: index into the plan's models.
        name: of the attack or certificate; empty otherwise.
        norm: of the threat or the radii; None otherwise.
        eps: of the threat; None otherwise.
        version: library, release and settings of an attack, or of the attacks that are checked;
            settings of a certificate.
        shards: how many of the plan's shards it runs on, from the first.
        samples: how many samples of these shards count.
        refusal: why it is not run at all; None where it is.
        sources: digest of the other models that the result depends on; empty without any.
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
    sources: str = ""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> "Job":
        """Of fields as JSON holds them."""
        return cls(**(fields | {"norm": Norm(fields["norm"]) if fields["norm"] else None}))

    def __str__(self) -> str:
        words = dict.fromkeys([self.kind, self.name, self.norm, self.eps])
        return " ".join(str(word) for word in words if word)

    @property
    def needs_radii(self) -> bool:
        """Whether the job starts from certified radii, and so waits for the certificates."""
        return self.kind == "audit" or self.name == WORST_CASE


@dataclass(frozen=True)
class Unit:
    """Some images of one job.

    Attributes:
        key: the result's identity in the store.
        indices: of the images in the data set.
        seed: of every random draw.
        radii: certified radii that the job starts from, one per image; empty for jobs of the
            first phase.
    """

    key: str
    indices: list[int]
    seed: int
    radii: tuple[float, ...] = ()


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

    @property
    def samples(self) -> int:
        """Number of samples the suite reports."""
        return resolve_samples(self.suite.samples, len(self.order))

    def key(self, job: Job, images: Sequence[int], given: object = None) -> str:
        """The identity of a result: everything it depends on, hashed.

        Args:
            job: what is done.
            images: data-set indices of what it is done to, in their order.
            given: what a job of the second phase starts from, as JSON can write it.
        """
        model = self.models[job.model]
        identity: dict[str, object] = {
            "results": evaluation.RESULTS_VERSION,
            "kind": job.kind,
            "model": model.identity or model.digest,
            "data": self.data_digest,
            "images": _digest(images),
            "name": job.name,
            "version": job.version,
            "norm": job.norm,
            "eps": job.eps,
            "seed": self.suite.seed if job.kind in _SEEDED else None,
        }
        if given is not None:
            identity["given"] = given
        if job.sources:
            identity["sources"] = job.sources
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def seed(self, images: Sequence[int]) -> int:
        """Seed of the random draws on some images, below 2^63."""
        text = f"{self.suite.seed}:{_digest(images)}".encode()
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
        jobs = [Job.of(fields) for fields in content["jobs"]]
        return cls(
            Suite.model_validate(content["suite"]),
            content["data_digest"],
            content["order"],
            [ModelInfo(**model) for model in content["models"]],
            jobs,
        )


def _digest(images: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(images)).encode()).hexdigest()


def resolve_samples(samples: Samples, available: int) -> int:
    """A number of samples, at most as many as there are."""
    return available if samples == "all" else min(samples, available)


def build_attacks(
    suite: Suite,
) -> list[tuple[Attack | WorstCase, list[ThreatModel], Samples]]:
    """The suite's attacks, each with the threats and the samples it is run on."""
    return [
        (
            config.build(),
            [threat for group in config.threats or suite.threats for threat in group.threats],
            config.samples,
        )
        for config in suite.attacks
    ]


def attack_of(suite: Suite, job: Job) -> Attack | WorstCase:
    """The attack of an attack job: of its kind, the one that is run at its threat."""
    for attack, threats, _ in build_attacks(suite):
        if attack.name == job.name and any((t.norm, t.eps) == (job.norm, job.eps) for t in threats):
            return attack
    raise LookupError(f"no attack {job.name} at {job.norm} {job.eps} in suite {suite.name}")


def make_plan(suite: Suite, images: ImageSet, models: list[LoadedModel]) -> Plan:
    """Plan every job of `suite`.

    Raises:
        UsageError: a model does not take the data set's images or has other classes.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(suite.seed))
    infos: list[ModelInfo] = []
    for index, loaded in enumerate(models):
        begin_turn(index)
        _require_logits(loaded, images)
        infos.append(ModelInfo.of(loaded, suite.data, images.shape))
    jobs: list[Job] = []
    available = len(images)

    def add(kind: JobKind, model: int, samples: Samples, **fields: Any) -> None:
        count = min(resolve_samples(samples, available), resolve_samples(suite.samples, available))
        blank = {"name": "", "norm": None, "eps": None, "version": ""}
        shards = -(-count // SHARD_SIZE)
        jobs.append(Job(kind=kind, model=model, shards=shards, samples=count, **(blank | fields)))

    for index, loaded in enumerate(models):
        begin_turn(index)
        add("clean", index, "all", version=_PREDICTIONS)
        if suite.flow and without_flow(loaded.module) is not None:
            add("flow", index, "all")
        if suite.decay and isinstance(loaded.module, NeuralODEClassifier):
            add("decay", index, "all")
        for name, certificate in suite.build_certificates(loaded.name).items():
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
        for norm in _certified_norms(jobs, index):
            version = describe(audit_stages(loaded.module, ThreatModel(norm, 1.0)))
            add("audit", index, "all", name=AUDIT, version=version, norm=norm)
        if suite.nearest is not None:
            version = nearest_version(loaded.module)
            for group in suite.threats:
                samples = suite.nearest.samples
                add("nearest", index, samples, name="nearest", version=version, norm=group.norm)
        if suite.flags is not None:
            threat = _checked_threat(suite)
            at = {
                "version": audit_version(),
                "norm": threat.norm,
                "eps": threat.eps,
                "sources": _digest_of_others(infos, index),
            }
            add("flags", index, suite.flags.samples, name="flags", **at)
        for attack, threats, samples in build_attacks(suite):
            for threat in threats:
                add(
                    "attack",
                    index,
                    samples,
                    name=attack.name,
                    norm=threat.norm,
                    eps=threat.eps,
                    **_attack_fields(attack, threat, images.classes, models, infos, index),
                )
    return Plan(suite, images.digest, order.tolist(), infos, jobs)


def _checked_threat(suite: Suite) -> ThreatModel:
    """Where the checks are made: the first threat of the worst case, whose word they concern.

    Without a worst case, the middle radius of the first norm.
    """
    for attack, threats, _ in build_attacks(suite):
        if isinstance(attack, WorstCase):
            return threats[0]
    radii = suite.threats[0].threats
    return radii[(len(radii) - 1) // 2]


def others(models: Sequence[LoadedModel], model: LoadedModel) -> dict[str, nn.Module]:
    """The suite's other models by name, whose adversarial images may be tried on `model`."""
    return {other.name: other.module for other in models if other is not model}


def _digest_of_others(infos: Sequence[ModelInfo], model: int) -> str:
    digests = [[other.name, other.identity] for i, other in enumerate(infos) if i != model]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _attack_fields(
    attack: Attack | WorstCase,
    threat: ThreatModel,
    classes: int,
    models: Sequence[LoadedModel],
    infos: Sequence[ModelInfo],
    model: int,
) -> dict[str, Any]:
    """What an attack's job says of its version, its sources, and why it is not run."""
    if isinstance(attack, WorstCase):
        loaded = models[model]
        version = attack.version(loaded.module, threat, others(models, loaded))
        sources = _digest_of_others(infos, model) if attack.transfer else ""
        return {"version": version, "sources": sources}
    # Settings alone do not tell the code of one release of an installed package from another's.
    release = release_of(type(attack).__module__)
    version = f"{attack.version}, {release}" if release else attack.version
    return {"version": version, "refusal": attack.refusal(threat, classes)}


def _certified_norms(jobs: list[Job], model: int) -> list[Norm]:
    """Norms in which something may be proved of a model."""
    speaking = (
        job.norm
        for job in jobs
        if job.kind == "certificate"
        and job.model == model
        and proves(CERTIFICATES[job.name])
        and job.refusal is None
    )
    return list(dict.fromkeys(norm for norm in speaking if norm is not None))


def _require_logits(loaded: LoadedModel, images: ImageSet) -> None:
    if isinstance(loaded.module, Absent):  # its samples are errors
        return
    for count in (1, min(2, len(images))):
        try:
            with torch.no_grad():
                logits: object = loaded.module(images.images[:count])
        except BaseException as error:  # SystemExit too: it is a user's code that runs
            if is_interruption(error) or is_exhausted(error):
                raise
            reason = " ".join(in_words(error).split())
            raise UsageError(
                f"{loaded.name}: expected a model of images {images.shape}, got {reason}; "
                f"check that it fits the data set {images.name}"
            ) from error
        if fault := _fault_of(logits, count, images.classes):
            got, remedy = fault
            raise UsageError(
                f"{loaded.name}: expected a floating-point tensor of logits of shape "
                f"({count}, {images.classes}) for {images.name}, got {got}; {remedy}"
            )


def _fault_of(logits: object, count: int, classes: int) -> tuple[str, str] | None:
    """What is wrong with a model's output, and the line that mends it; None for logits."""
    kind = type(logits).__name__
    if isinstance(logits, tuple | list | Mapping):
        return f"a {kind}", "return its logits alone, such as `return outputs[0]`"
    if isinstance(logits, np.ndarray):
        return "a numpy array", "compute in torch: no gradient passes through numpy"
    if not isinstance(logits, Tensor):
        return f"a {kind}", "end forward with `return logits`"
    if not logits.is_floating_point():
        return f"a tensor of {logits.dtype}", "return logits, not classes; or `logits.float()`"
    if logits.shape != (count, classes):
        shape = tuple(logits.shape)
        return f"{shape}", "check its number of classes, and that it returns a row for each image"
    return None
