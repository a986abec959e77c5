"""What is proved of a zoo entry on its whole test set, audited, and kept beside its recipe."""

import time
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from robustness.attacks import Status
from robustness.certificates import CERTIFICATES, ProgramCertificate
from robustness.certificates.base import Certificate, CertifiedRadius, Kind
from robustness.certificates.sharing import shared_work
from robustness.data import ImageSet
from robustness.errors import SoundnessError
from robustness.evaluation.jobs.audit import audit, choose
from robustness.evaluation.suite import ThreatsConfig
from robustness.files import read_json
from robustness.numerics.devices import release_on
from robustness.recipe import ProvedConfig, Recipe
from robustness.results.leaderboard import Proportion, Summary
from robustness.threat import Norm
from robustness.zoo import LoadedModel

PROVED_FILE = "proved.json"

# Certificates that are cheap enough for ten thousand images. Forward invariance by branch and bound
# is not; the Lyapunov radii of the papers are never larger than the exact discrete one.
THOROUGH = ("target-seeking", "contraction", "lipschitz-margin")

_BATCH = 100
# Images that are audited together.
_AUDITED_AT_ONCE = 32


class ProvedAt(Summary):
    """Certified accuracy at one radius."""

    eps: float
    certified: Proportion


class ProvedNorm(Summary):
    """What is proved in one norm.

    Attributes:
        norm: the norm of the radii.
        won: how many images each certificate gave the largest radius, those with none left out.
        at: certified accuracy at the usual radii of the data set.
        median: median radius over all images, those without one counting as 0.
        largest: largest radius.
        milliseconds: processor time per image of all certificates of this norm, after what
            they share with the norms before.
        audited: certified images that were attacked just inside their radii, without success.
        asked: the only radii that were tried; empty where each image's largest was searched for.
    """

    norm: Norm
    won: dict[str, int]
    at: list[ProvedAt]
    median: float
    largest: float
    milliseconds: float
    audited: int
    asked: tuple[float, ...] = ()


class Proofs(Summary):
    """What is proved of one entry on a whole test set, rounding included.

    Attributes:
        weights_sha256: of the weights that this holds for.
        data_digest: SHA-256 of the test images and labels.
        norms: what is proved in each norm.
        torch: version of the library that ran, and the device if it was not the CPU.
    """

    schema_version: Literal[1] = 1
    weights_sha256: str
    data_digest: str
    norms: list[ProvedNorm]
    torch: str


def prove(
    loaded: LoadedModel, images: ImageSet, threats: list[ThreatsConfig], audited: int, seed: int = 0
) -> Proofs | None:
    """Certify every image of a test set, and attack some of them inside their radii.

    Args:
        loaded: a zoo entry.
        images: its test set.
        threats: norms, and the radii at which certified accuracy is reported.
        audited: images to attack in each norm: four fifths drawn at random, and those with the
            largest radii.
        seed: decides which, and the attacks' draws.

    Returns:
        What is proved; None where no certificate applies.

    Raises:
        SoundnessError: an attack broke a certificate.
    """
    assert loaded.recipe is not None
    assert loaded.recipe.weights is not None
    certificates_of = applying(loaded.module, threats, loaded.recipe)
    if not any(certificates_of.values()):
        return None
    best: dict[Norm, list[CertifiedRadius | None]] = {norm: [] for norm in certificates_of}
    seconds = dict.fromkeys(certificates_of, 0.0)
    for pixels, labels in zip(
        images.images.split(_BATCH), images.labels.split(_BATCH), strict=True
    ):
        with shared_work():
            for norm, certificates in certificates_of.items():
                started = time.process_time()
                claims = [c.certify(loaded.module, pixels, labels, norm) for c in certificates]
                seconds[norm] += time.process_time() - started
                best[norm] += [_largest(image) for image in zip(*claims, strict=True)]
    norms = []
    for group in threats:
        if not certificates_of[group.norm]:
            continue
        claimed = best[group.norm]
        _audit(loaded, images, group.norm, claimed, audited, seed)
        attacked = min(audited, sum(claim is not None for claim in claimed))
        cost = 1000 * seconds[group.norm] / len(images)
        asked = _asked(certificates_of[group.norm])
        norms.append(_summary(group, claimed, cost, attacked, asked))
    return Proofs(
        weights_sha256=loaded.recipe.weights.sha256,
        data_digest=images.digest,
        norms=norms,
        torch=release_on(loaded.module),
    )


def applying(
    module: nn.Module, threats: list[ThreatsConfig], recipe: Recipe
) -> dict[Norm, list[Certificate]]:
    """The certificates of whole test sets that apply to a model, in each norm.

    The bounds of a program take too long in general. They are cheap for one that was trained by
    them, at the radii that it was trained for.
    """
    found: dict[Norm, list[Certificate]] = {
        group.norm: [
            CERTIFICATES[name]
            for name in THOROUGH
            if CERTIFICATES[name].refusal(module, group.norm) is None
        ]
        for group in threats
    }
    loss = recipe.training and recipe.training.loss
    if not isinstance(loss, ProvedConfig):
        return found
    for group in threats:
        within = tuple(eps for eps in group.eps if eps <= loss.eps)
        program = ProgramCertificate(at=within)
        if group.norm is Norm.LINF and within and program.refusal(module, group.norm) is None:
            found[group.norm].append(program)
    return found


def _asked(certificates: list[Certificate]) -> tuple[float, ...]:
    """The only radii that any of them tries."""
    asked = [c.at for c in certificates if isinstance(c, ProgramCertificate)]
    return asked[0] if len(asked) == len(certificates) == 1 else ()


def _largest(claims: tuple[CertifiedRadius, ...]) -> CertifiedRadius | None:
    """The largest certified radius of one image, the first of equals; None without any."""
    proved = [c for c in claims if c.kind is Kind.CERTIFIED and c.radius > 0]
    return max(proved, key=lambda claim: claim.radius, default=None)


def _summary(
    group: ThreatsConfig,
    claimed: list[CertifiedRadius | None],
    milliseconds: float,
    audited: int,
    asked: tuple[float, ...],
) -> ProvedNorm:
    radii = torch.tensor([c.radius if c else 0.0 for c in claimed], dtype=torch.float64)
    won: dict[str, int] = {}
    for claim in claimed:
        if claim is not None:
            won[claim.certificate] = won.get(claim.certificate, 0) + 1
    return ProvedNorm(
        norm=group.norm,
        won=dict(sorted(won.items())),
        at=[
            ProvedAt(eps=eps, certified=Proportion.of(int((radii > eps).sum()), len(radii)))
            for eps in asked or group.eps
        ],
        median=float(f"{float(radii.median()):.4g}"),
        largest=float(f"{float(radii.max()):.4g}"),
        milliseconds=round(milliseconds, 3),
        audited=audited,
        asked=asked,
    )


def _audit(
    loaded: LoadedModel,
    images: ImageSet,
    norm: Norm,
    claimed: list[CertifiedRadius | None],
    audited: int,
    seed: int,
) -> None:
    radii = {i: claim.radius for i, claim in enumerate(claimed) if claim is not None}
    largest = audited // 5
    chosen = choose(radii, audited - largest, largest, seed, f"{loaded.digest}:{norm}")
    for start in range(0, len(chosen), _AUDITED_AT_ONCE):
        part = chosen[start : start + _AUDITED_AT_ONCE]
        within = torch.tensor([radii[i] for i in part], dtype=torch.float64)
        outcomes = audit(
            loaded.module, images.images[part], images.labels[part], norm, within, seed
        )
        for i, outcome in zip(part, outcomes, strict=True):
            if outcome.status is Status.ROBUST:
                continue
            claim = claimed[i]
            assert claim is not None
            distance = outcome.linf if norm is Norm.LINF else outcome.l2
            raise SoundnessError(
                f"{loaded.name}: image {i} of {images.name} is certified to {norm} "
                f"{claim.radius:.6g} by {claim.certificate}, and {outcome.attack}@{outcome.view} "
                f"ends as {outcome.status} at {distance}"
            )


def read_proofs(file: Path) -> Proofs | None:
    """Read proofs back; None where there is no file.

    Raises:
        UsageError: the file is not one of this schema version.
    """
    if not file.exists():
        return None
    remedy = f"run `robustness card {file.parent} --prove`"
    return read_json(file, Proofs, "what was proved", remedy)
