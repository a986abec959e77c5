"""A made-up leaderboard of four models, shaped like the digits suite's."""

import base64
import hashlib
import zlib
from functools import cache

import numpy as np

from robustness.certificates.base import Kind
from robustness.certificates.limits import Limit
from robustness.results.leaderboard import (
    AttackRow,
    AuditRow,
    Bracket,
    CertificateRow,
    Cost,
    Curve,
    Decay,
    Distances,
    Example,
    Flag,
    Leaderboard,
    ModelEntry,
    NearestRow,
    Picture,
    Proportion,
    Samples,
    Soundness,
    SuiteSummary,
    Violation,
)
from robustness.threat import Norm

SAMPLES = 599
SUBSET = 64
RADII = {Norm.LINF: [0.02, 0.05, 0.1, 0.2], Norm.L2: [0.1, 0.25, 0.5, 1.0]}
AUTOATTACK_AT = {Norm.LINF: 0.1, Norm.L2: 0.5}

# Per model: clean accuracy; median attacked and certified radius in l2; decay rate of V.
PROFILES = {
    "digits/resnet": (0.970, 0.75, 0.0, None),
    "digits/node": (0.963, 0.70, 0.04, 3.5),
    "digits/lyanet": (0.958, 0.85, 0.09, 6.0),
    "digits/lyanet-certified": (0.937, 1.05, 0.48, 4.5),
}
DESCRIPTIONS = {
    "digits/resnet": "Residual perceptron, the discrete baseline, trained with cross-entropy",
    "digits/node": "Neural ODE trained with cross-entropy through its solver",
    "digits/lyanet": "LyaNet: the field trained with the Monte Carlo Lyapunov loss",
    "digits/lyanet-certified": "LyaNet with a target-seeking field behind a contractive encoder",
}
CURVE = {norm: np.linspace(0.0, 1.25 * radii[-1], 41).tolist() for norm, radii in RADII.items()}
LINF_OF_L2 = 0.16  # how an l2 radius on 8x8 images translates here, roughly


def leaderboard(seed: int = 0, **suite: object) -> Leaderboard:
    """The board; keywords replace fields of its suite summary."""
    order = np.random.default_rng(0).permutation(SAMPLES).tolist()
    summary = {
        "name": "digits",
        "data": "digits",
        "split": "test",
        "data_digest": "9f" * 32,
        "samples": SAMPLES,
        "seed": seed,
        "settings": {
            "certificates": ["lyapunov", "target-seeking"],
            "models": list(PROFILES),
            "attacks": [{"kind": "pgd", "steps": 20}, {"kind": "autoattack", "samples": SUBSET}],
        },
        "subsets": {"autoattack": order[:SUBSET]},
    }
    return Leaderboard(
        suite=SuiteSummary(**(summary | suite)),
        models=list(_entries()),
        soundness=Soundness(pairs=9584, attacked_inside=1312, audited=80, violations=[]),
        environment={"python": "3.12.3", "torch": "2.13.0", "platform": "Linux x86_64"},
        timings={"digits/resnet": 41.2, "digits/node": 180.9, "total": 702.4},
        costs=[
            Cost(
                model="digits/lyanet",
                norm=Norm.L2,
                certificate="target-seeking",
                images=SAMPLES,
                milliseconds=4.25,
            )
        ],
        created="2026-11-23T21:00:00+00:00",
    )


def violation(index: int = 7, pictured: bool = False) -> Violation:
    """A broken certificate, with or without the images that broke it."""
    original = [0.0, 0.25, 0.5, 1.0]
    picture = Picture(shape=(1, 2, 2), original=original, adversarial=[0.0, 0.3, 0.5, 1.0])
    return Violation(
        model="digits/lyanet",
        digest="ab" * 32,
        certificate="target-seeking",
        norm=Norm.L2,
        index=index,
        label=3,
        prediction=8,
        radius=0.5,
        distance=0.05,
        attack="the audit, pgd@deployed",
        seed=4,
        picture=picture if pictured else None,
    )


def broken(board: Leaderboard, *violations: Violation) -> Leaderboard:
    """The board with violations."""
    soundness = board.soundness.model_copy(update={"violations": list(violations)})
    return board.model_copy(update={"soundness": soundness})


@cache
def _entries() -> tuple[ModelEntry, ...]:
    rng = np.random.default_rng(1)
    return tuple(_entry(name, rng) for name in PROFILES)


def edit(board: Leaderboard, name: str, /, **changes: object) -> Leaderboard:
    """The board with fields of one model replaced."""
    models = [m.model_copy(update=changes) if m.name == name else m for m in board.models]
    return board.model_copy(update={"models": models})


def shift(board: Leaderboard, name: str, side: str, by: int) -> Leaderboard:
    """The board with `by` more samples of one model `certified`, `attacked` or `clean`."""
    model = next(m for m in board.models if m.name == name)
    if side == "clean":
        return edit(board, name, clean=_moved(model.clean, by))
    brackets = [b.model_copy(update={side: _moved(getattr(b, side), by)}) for b in model.brackets]
    return edit(board, name, brackets=brackets)


def with_worst_case(board: Leaderboard) -> Leaderboard:
    """The board with a worst case that leaves what its brackets say, and a few images of it.

    On one model it leaves far less than PGD alone, which its flag knows too.
    """
    return board.model_copy(update={"models": [_searched(entry) for entry in board.models]})


def _searched(entry: ModelEntry) -> ModelEntry:
    fooled = entry.name == "digits/lyanet"
    brackets = [
        b.model_copy(
            update={"attacked": _moved(b.attacked, -b.attacked.count // 2), "certified": NOTHING}
        )
        if fooled
        else b
        for b in entry.brackets
    ]
    rows = [
        AttackRow(
            attack="worst-case",
            version="standard effort, 3 stages",
            norm=b.norm,
            eps=b.eps,
            robust=b.attacked,
            subset=SAMPLES,
            errors=0,
            rejected=0,
            effort="standard",
            found_by={"ascent-targeted-20@deployed": 170, "pgd@deployed": 30},
            left_after=[(1, b.attacked.count + 200), (2, b.attacked.count)],
        )
        for b in brackets
    ]
    nearest = [_nearest(norm) for norm in RADII]
    changes = {"brackets": brackets, "attacks": [*entry.attacks, *rows], "nearest": nearest}
    return entry.model_copy(update=changes)


NOTHING = Proportion.of(0, SAMPLES)


def _nearest(norm: Norm) -> NearestRow:
    def levels(*values: int) -> str:
        return base64.b64encode(zlib.compress(bytes(values))).decode()

    example = Example(
        index=17,
        label=3,
        prediction=8,
        distance=0.0123,
        shape=(1, 2, 2),
        original=levels(0, 64, 128, 255),
        change=levels(128, 255, 1, 128),
        largest=0.0123,
    )
    return NearestRow(
        norm=norm,
        version="bisection",
        samples=64,
        found=64,
        errors=0,
        median=0.05,
        median_certified=0.01,
        examples=[example],
    )


def _moved(old: Proportion, by: int) -> Proportion:
    return Proportion.of(min(max(old.count + by, 0), old.total), old.total)


def _entry(name: str, rng: np.random.Generator) -> ModelEntry:
    clean_rate, attacked_median, certified_median, rate = PROFILES[name]
    right = rng.random(SAMPLES) < clean_rate
    shared = rng.normal(0.0, 0.6, SAMPLES)
    broken_at = np.where(right, attacked_median * np.exp(shared), 0.0)
    proved_to = np.where(right, certified_median * np.exp(shared), 0.0)
    brackets, attacks, curves, distances = [], [], [], []
    for norm, radii in RADII.items():
        scale = LINF_OF_L2 if norm is Norm.LINF else 1.0
        broken, proved = broken_at * scale, proved_to * scale * 0.8
        brackets += [
            Bracket(norm=norm, eps=e, certified=_above(proved, e), attacked=_above(broken, e))
            for e in radii
        ]
        attacks += _attacks(norm, radii, broken)
        distances.append(_distances(norm, proved, broken, radii[-1]))
        grid = np.linspace(0.0, 1.25 * radii[-1], 101)
        curves.append(
            Curve(
                norm=norm,
                certified_eps=grid.tolist(),
                certified=[float((proved > e).mean()) for e in grid],
                attacked_eps=radii,
                attacked=[float((broken > e).mean()) for e in radii],
            )
        )
    return ModelEntry(
        name=name,
        description=DESCRIPTIONS[name],
        digest=hashlib.sha256(name.encode()).hexdigest(),
        parameters=12_000 + 137 * len(name),
        nfe=None if rate is None else 32,
        clean=Proportion.of(int(right.sum()), SAMPLES),
        errors=3 if name == "digits/node" else 0,
        brackets=brackets,
        attacks=attacks,
        certificates=[row for norm in RADII for row in _certificates(norm, rate, proved_to)],
        curves=curves,
        decay=None if rate is None else _decay(rate, clean_rate),
        audits=[] if rate is None else [_audit(norm) for norm in RADII],
        flags=[
            _flag("masked-gradients", name == "digits/lyanet"),
            _flag("batch-invariance", False),
        ],
        samples=Samples(
            index=list(range(SAMPLES)),
            label=[3] * SAMPLES,
            prediction=[3 if ok else 8 for ok in right],
            norms=distances,
        ),
    )


def _distances(norm: Norm, proved: np.ndarray, broken: np.ndarray, largest: float) -> Distances:
    found = [None if d > largest else float(d) for d in broken]
    return Distances(
        norm=norm,
        radius=proved.tolist(),
        certificate=["target-seeking" if r > 0 else "" for r in proved],
        limit=["encoder" if r > 0 else "" for r in proved],
        distance=found,
        found_by=["" if d is None else "pgd" for d in found],
        failed=[None] * SAMPLES,
    )


def _audit(norm: Norm) -> AuditRow:
    return AuditRow(
        norm=norm,
        attack="3 stages",
        pairs=40,
        broken=0,
        errors=0,
        smallest=0.01,
        largest=0.9,
    )


def _flag(name: str, raised: bool) -> Flag:
    return Flag(
        name=name,
        raised=raised,
        value=0.25 if raised else 0.0,
        threshold=0.05,
        detail=f"{name} was measured on 64 samples",
    )


def _above(radii: np.ndarray, eps: float) -> Proportion:
    return Proportion.of(int((radii > eps).sum()), len(radii))


def _attacks(norm: Norm, radii: list[float], broken: np.ndarray) -> list[AttackRow]:
    rows = []
    kinds = [("pgd", "torchattacks 3.5.1 PGD, 20 steps", 1.05)]
    if norm is Norm.LINF:
        kinds.insert(0, ("fgsm", "torchattacks 3.5.1 FGSM", 1.3))
    for eps in radii:
        rows += [_attack(kind, version, norm, eps, broken * k) for kind, version, k in kinds]
        if eps == AUTOATTACK_AT[norm]:
            version = "pyautoattack 0.2 standard (100 steps, 5000 queries)"
            rows.append(_attack("autoattack", version, norm, eps, broken[:SUBSET]))
    return rows


def _attack(kind: str, version: str, norm: Norm, eps: float, broken: np.ndarray) -> AttackRow:
    return AttackRow(
        attack=kind,
        version=version,
        norm=norm,
        eps=eps,
        robust=_above(broken, eps),
        subset=len(broken),
        errors=0,
        rejected=2 if kind == "pgd" else 0,
    )


def _certificates(norm: Norm, rate: float | None, proved: np.ndarray) -> list[CertificateRow]:
    if rate is None:
        reason = "the model exposes no vector field; only neural ODEs have a Lyapunov certificate"
        return [_certificate("lyapunov", norm, None, reason, np.zeros(SAMPLES), {})]
    scale = LINF_OF_L2 if norm is Norm.LINF else 1.0
    reasons = {
        "Lipschitz bound of the margin over class 8": 211,
        "Lipschitz bound of the margin over class 3": 187,
        "Lipschitz bound of the margin over class 9": 120,
        "Lipschitz bound of the margin over class 1": 45,
        "the prediction is wrong": 36,
    }
    return [
        _certificate("lyapunov", norm, Kind.ESTIMATE, None, proved * scale * 1.4, {}),
        _certificate("target-seeking", norm, Kind.CERTIFIED, None, proved * scale * 0.8, reasons),
    ]


def _certificate(
    name: str,
    norm: Norm,
    kind: Kind | None,
    refusal: str | None,
    radii: np.ndarray,
    reasons: dict[str, int],
) -> CertificateRow:
    return CertificateRow(
        certificate=name,
        norm=norm,
        kind=kind,
        refusal=refusal,
        eps=RADII[norm],
        accuracy=[_above(radii, eps) for eps in RADII[norm]],
        median_radius=float(np.median(radii)),
        won=int((radii > 0).sum()) if kind is Kind.CERTIFIED else 0,
        limits={Limit.ENCODER: 563, Limit.PREDICTION: 36} if reasons else {},
        reasons=reasons,
        curve_eps=CURVE[norm],
        curve=[float((radii > eps).mean()) for eps in CURVE[norm]],
    )


def _decay(rate: float, accuracy: float) -> Decay:
    time = np.linspace(0.0, 1.0, 33)
    median = np.log(10) * np.exp(-rate * time)
    return Decay(
        time=time.tolist(),
        median=median.tolist(),
        low=(median * np.exp(-1.5 * time)).tolist(),
        high=(median ** (1 - 0.4 * time)).tolist(),
        accuracy=(0.1 + (accuracy - 0.1) * (1 - np.exp(-2.5 * rate * time))).tolist(),
    )
