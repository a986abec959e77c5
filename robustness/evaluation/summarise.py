"""From stored rows to the leaderboard."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from platform import python_version

import numpy as np

from robustness.certificates.base import Kind
from robustness.evaluation.leaderboard import (
    AttackRow,
    Bracket,
    CertificateRow,
    Curve,
    Decay,
    Leaderboard,
    ModelEntry,
    Proportion,
    Soundness,
    SuiteSummary,
)
from robustness.evaluation.plan import Job, JobKind, Plan, resolve_samples
from robustness.evaluation.store import Store
from robustness.evaluation.work import Row
from robustness.threat import Norm, ThreatModel

_CURVE_POINTS = 81
_PACKAGES = (
    "lyanet-robustness",
    "torch",
    "torchdiffeq",
    "torchattacks",
    "pyautoattack",
    "numpy",
    "scipy",
    "scikit-learn",
)


def environment() -> dict[str, str]:
    """Versions of everything that results may depend on."""
    return {"python": python_version()} | {name: version(name) for name in _PACKAGES}


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
        radius: per norm, the largest radius of kind `certified`.
        attacked: per norm, the radii at which an attack ran.
    """

    index: int
    label: int
    prediction: int | None
    failed: dict[Norm, float] = field(default_factory=dict)
    distance: dict[Norm, float] = field(default_factory=dict)
    radius: dict[Norm, float] = field(default_factory=dict)
    attacked: dict[Norm, list[float]] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether the deployed model predicts the label."""
        return self.prediction == self.label

    def stands(self, norm: Norm, eps: float) -> bool:
        """Whether nothing known puts it off its label within eps."""
        distance = self.distance.get(norm, math.inf)
        return self.correct and distance > eps and self.failed.get(norm, math.inf) > eps

    def certified(self, norm: Norm, eps: float) -> bool:
        """Whether it is proved to keep its label within eps, eps included."""
        return self.correct and self.radius.get(norm, 0.0) > eps


@dataclass(frozen=True)
class _Reader:
    plan: Plan
    store: Store

    def jobs(self, model: int, kind: JobKind) -> list[Job]:
        return [job for job in self.plan.jobs if job.model == model and job.kind == kind]

    def rows(self, job: Job) -> list[Row]:
        """The job's rows for the samples that count, in no particular order."""
        counted = set(self.plan.order[: job.samples])
        keys = [self.plan.key(job, shard) for shard in range(job.shards)]
        return [row for row in self.store.rows(job.kind, keys) if row[0] in counted]

    def seconds(self, kind: JobKind) -> float:
        jobs = [job for job in self.plan.jobs if job.kind == kind and job.refusal is None]
        keys = [self.plan.key(job, shard) for job in jobs for shard in range(job.shards)]
        return self.store.seconds(keys)


def sample_records(plan: Plan, store: Store, model: int) -> list[SampleRecord]:
    """What is known of each sample under one model, in the suite's order."""
    reader = _Reader(plan, store)
    records: dict[int, SampleRecord] = {}
    for job in reader.jobs(model, "clean"):
        for index, label, prediction, status, _ in reader.rows(job):
            record = SampleRecord(index, label, prediction)
            if status == "error":
                record.failed = dict.fromkeys(Norm, 0.0)
            if not record.correct:
                record.distance = dict.fromkeys(Norm, 0.0)
            records[record.index] = record
    for job in reader.jobs(model, "attack"):
        if job.refusal is None:
            _note_attack(job, reader.rows(job), records)
    for job in reader.jobs(model, "certificate"):
        if job.refusal is None:
            assert job.norm is not None
            for index, radius, kind, _ in reader.rows(job):
                if kind == Kind.CERTIFIED:
                    record = records[index]
                    known = record.radius.get(job.norm, 0.0)
                    record.radius[job.norm] = max(known, radius)
    return [records[index] for index in plan.order[: plan.samples]]


def _note_attack(job: Job, rows: list[Row], records: dict[int, SampleRecord]) -> None:
    assert job.norm is not None
    assert job.eps is not None
    for index, status, _, linf, l2, _, _ in rows:
        record = records[index]
        record.attacked.setdefault(job.norm, []).append(job.eps)
        if status == "error":
            known = record.failed.get(job.norm, math.inf)
            record.failed[job.norm] = min(known, job.eps)
        elif status == "adversarial":
            # Distances count in both norms: an image found in one ball may lie in another.
            for norm, found in ((Norm.LINF, linf), (Norm.L2, l2)):
                known = record.distance.get(norm, math.inf)
                record.distance[norm] = min(known, found)


def summarise(plan: Plan, store: Store, versions: dict[str, str]) -> Leaderboard:
    """The leaderboard of a plan whose shards are all stored.

    Args:
        plan: what was run.
        store: where its rows are.
        versions: the environment that computed them.
    """
    reader = _Reader(plan, store)
    suite = plan.suite
    entries, soundness = [], Soundness(pairs=0, attacked_inside=0, violations=[])
    for model in range(len(plan.models)):
        records = sample_records(plan, store, model)
        entries.append(_entry(reader, model, records))
        soundness = _confront(soundness, plan.models[model].name, records)
    subsets: dict[str, list[int]] = {
        config.kind: plan.order[: resolve_samples(config.samples, plan.samples)]
        for config in suite.attacks
        if resolve_samples(config.samples, plan.samples) < plan.samples
    }
    kinds: tuple[JobKind, ...] = ("clean", "attack", "certificate", "decay")
    return Leaderboard(
        suite=SuiteSummary(
            name=suite.name,
            data=suite.data,
            split=suite.split,
            data_digest=plan.data_digest,
            samples=plan.samples,
            seed=suite.seed,
            settings=suite.model_dump(
                mode="json", include={"threats", "attacks", "certificates", "models"}
            )
            | {"order": "random" if plan.samples < len(plan.order) else "all"},
            subsets=subsets,
        ),
        models=entries,
        soundness=soundness,
        environment=versions,
        timings={f"compute seconds, {kind}": round(reader.seconds(kind), 2) for kind in kinds},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _entry(reader: _Reader, model: int, records: list[SampleRecord]) -> ModelEntry:
    info, suite = reader.plan.models[model], reader.plan.suite
    clean = [row for job in reader.jobs(model, "clean") for row in reader.rows(job)]
    brackets = [
        Bracket(
            norm=threat.norm,
            eps=threat.eps,
            certified=_proportion(r.certified(threat.norm, threat.eps) for r in records),
            attacked=_proportion(r.stands(threat.norm, threat.eps) for r in records),
        )
        for threat in _threats(reader, model)
    ]
    return ModelEntry(
        name=info.name,
        description=info.description,
        digest=info.digest,
        parameters=info.parameters,
        nfe=max((row[4] for row in clean if row[4] is not None), default=None),
        clean=_proportion(record.correct for record in records),
        errors=sum(bool(record.failed) for record in records),
        brackets=brackets,
        attacks=[
            _attack_row(reader, job, {r.index: r for r in records})
            for job in reader.jobs(model, "attack")
            if job.refusal is None
        ],
        certificates=[
            _certificate_row(reader, job, {r.index: r for r in records})
            for job in reader.jobs(model, "certificate")
        ],
        curves=[_curve(group.norm, max(group.eps), brackets, records) for group in suite.threats],
        decay=_decay(reader, model),
    )


def _threats(reader: _Reader, model: int) -> list[ThreatModel]:
    """The suite's threats and every further one that an attack was run at."""
    threats = {t for group in reader.plan.suite.threats for t in group.threats}
    for job in reader.jobs(model, "attack"):
        if job.refusal is None and job.norm is not None and job.eps is not None:
            threats.add(ThreatModel(job.norm, job.eps))
    first = [group.norm for group in reader.plan.suite.threats]
    return sorted(threats, key=lambda t: ((*first, *Norm).index(t.norm), t.eps))


def _proportion(outcomes: Iterable[bool]) -> Proportion:
    flags = list(outcomes)
    return Proportion.of(sum(flags), len(flags))


def _attack_row(reader: _Reader, job: Job, records: dict[int, SampleRecord]) -> AttackRow:
    assert job.norm is not None
    assert job.eps is not None
    rows = reader.rows(job)
    stands = sum(row[1] == "robust" and records[row[0]].correct for row in rows)
    return AttackRow(
        attack=job.name,
        version=job.version,
        norm=job.norm,
        eps=job.eps,
        robust=Proportion.of(stands, len(rows)),
        subset=len(rows),
        errors=sum(row[1] == "error" for row in rows),
        rejected=sum(row[5] for row in rows),
    )


def _certificate_row(reader: _Reader, job: Job, records: dict[int, SampleRecord]) -> CertificateRow:
    assert job.norm is not None
    eps = next(g.eps for g in reader.plan.suite.threats if g.norm is job.norm)
    if job.refusal is not None:
        return CertificateRow(
            certificate=job.name,
            norm=job.norm,
            kind=None,
            refusal=job.refusal,
            eps=eps,
            accuracy=[Proportion.of(0, len(records)) for _ in eps],
            median_radius=0.0,
            limits={},
        )
    rows = reader.rows(job)
    # A wrong prediction is certain to have radius 0 whatever the certificate; the kind that
    # names the row is what the certificate claims for the images that are right.
    kinds = {Kind(str(row[2])) for row in rows if records[row[0]].correct}
    radii = np.array([row[1] for row in rows], dtype=float)
    limits = Counter(str(row[3]) for row in rows)
    return CertificateRow(
        certificate=job.name,
        norm=job.norm,
        kind=max(kinds, key=lambda kind: kind is not Kind.CERTIFIED) if kinds else Kind.CERTIFIED,
        refusal=None,
        eps=eps,
        accuracy=[Proportion.of(int((radii > e).sum()), len(radii)) for e in eps],
        median_radius=float(np.median(radii)),
        limits=dict(sorted(limits.items(), key=lambda item: (-item[1], item[0]))),
    )


def _curve(
    norm: Norm, largest: float, brackets: list[Bracket], records: list[SampleRecord]
) -> Curve:
    grid = np.linspace(0, largest, _CURVE_POINTS).tolist()
    attacked = [b for b in brackets if b.norm is norm]
    clean = sum(record.correct for record in records) / len(records)
    return Curve(
        norm=norm,
        certified_eps=grid,
        certified=[sum(r.certified(norm, eps) for r in records) / len(records) for eps in grid],
        attacked_eps=[0.0] + [b.eps for b in attacked],
        attacked=[clean] + [b.attacked.value for b in attacked],
    )


def _decay(reader: _Reader, model: int) -> Decay | None:
    jobs = reader.jobs(model, "decay")
    if not jobs:
        return None
    rows = [row for job in jobs for row in reader.rows(job)]
    by_step: dict[float, list[tuple[float, int]]] = {}
    for _, _, time, value, right in rows:
        potential = math.nan if value is None else float(value)
        by_step.setdefault(float(time), []).append((potential, int(right)))
    times = sorted(by_step)
    values = [np.array([v for v, _ in by_step[t]]) for t in times]
    low, median, high = (
        [float(np.nanpercentile(v, q)) if np.isfinite(v).any() else math.nan for v in values]
        for q in (10, 50, 90)
    )
    return Decay(
        time=times,
        median=median,
        low=low,
        high=high,
        accuracy=[float(np.mean([r for _, r in by_step[t]])) for t in times],
    )


def _confront(known: Soundness, name: str, records: list[SampleRecord]) -> Soundness:
    pairs, inside, violations = known.pairs, known.attacked_inside, list(known.violations)
    for record in records:
        for norm, radius in record.radius.items():
            if radius <= 0 or norm not in record.attacked:
                continue
            pairs += 1
            inside += any(eps < radius for eps in record.attacked[norm])
            distance = record.distance.get(norm, math.inf)
            if distance < radius:
                violations.append(
                    f"{name}: image {record.index} is certified to {norm} {radius:.6g} and was "
                    f"broken at {distance:.6g}"
                )
    return Soundness(pairs=pairs, attacked_inside=inside, violations=violations)
