"""What is proved of a zoo entry on its whole test set, audited, and kept beside its recipe.

It is a run of its own: units of work in worker processes, in a store that is taken away at the end,
so that a run that was interrupted goes on.
"""

import shutil
import time
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from robustness.attacks import Status
from robustness.certificates import CERTIFICATES, ProgramCertificate
from robustness.certificates.base import Certificate, CertifiedRadius
from robustness.certificates.sharing import shared_work
from robustness.data import ImageSet
from robustness.errors import SoundnessError, UsageError, os_failure
from robustness.evaluation.environment import environment
from robustness.evaluation.executors.processes import Limits
from robustness.evaluation.jobs.audit import NAME as AUDIT
from robustness.evaluation.reader import Reader
from robustness.evaluation.records import SampleRecord
from robustness.evaluation.runner import Crew, run_plan
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.soundness import confront
from robustness.evaluation.store import Store
from robustness.evaluation.suite import AuditConfig, Suite, ThreatsConfig
from robustness.files import read_json
from robustness.numerics.devices import ON_CPU, Placement, release_on
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.recipe import ProvedConfig, Recipe
from robustness.results.leaderboard import STORE_FILE, Proportion, Summary
from robustness.threat import Norm
from robustness.zoo import LoadedModel

PROVED_FILE = "proved.json"

# Certificates that are cheap enough for ten thousand images. Forward invariance by branch and bound
# is not; the Lyapunov radii of the papers are never larger than the exact discrete one.
THOROUGH = ("target-seeking", "contraction", "lipschitz-margin")

# Beside the recipe, while an entry is being certified.
PROVING_FOLDER = ".proving"

# Images per task of a worker.
_BATCH = 64
# Images that the cost is measured on.
_TIMED = 64


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
            they share with the norms before; of the first images, by themselves.
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
    loaded: LoadedModel,
    threats: list[ThreatsConfig],
    audited: int,
    *,
    model: str,
    data: str,
    data_dir: Path | None = None,
    workers: int = 1,
    placement: Placement = ON_CPU,
    quiet: bool = True,
    seed: int = 0,
) -> Proofs | None:
    """Certify every image of a test set, and attack some of them inside their radii.

    Args:
        loaded: a zoo entry.
        threats: norms, and the radii at which certified accuracy is reported.
        audited: images to attack in each norm: four fifths drawn at random, and those with the
            largest radii; one of each at least.
        model: folder of the entry; units are kept in `.proving` in it until `forget_units`, and
            computed again where other code computed them.
        data: name of its data set, or an `.npz` file.
        data_dir: folder with the official image files.
        workers: processes; changes no result.
        placement: where it predicts and is attacked.
        quiet: tell nothing of progress.
        seed: decides which images are attacked, and the attacks' draws.

    Returns:
        What is proved; None where no certificate applies.

    Raises:
        UsageError: `model` cannot be written to.
        SoundnessError: an attack broke a certificate, or failed.
        Interruption: Ctrl-C; what is done is kept.
    """
    assert loaded.recipe is not None
    assert loaded.recipe.weights is not None
    certificates_of = applying(loaded.module, threats, loaded.recipe)
    if not any(certificates_of.values()):
        return None
    place = Path(model) / PROVING_FOLDER
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise os_failure(error, f"a folder to work in at {place}", "free it") from None
    proved: dict[Norm, ProvedNorm] = {}
    versions = environment(placement)
    _forget_others(place, versions)
    with Store(place / STORE_FILE) as store:
        for certificates, norms in _together(certificates_of):
            groups = [group for group in threats if group.norm in norms]
            suite = _suite(groups, certificates, model, data, audited, seed)
            limits = Limits.of(None, None, False)
            with Crew(suite, workers, data_dir, limits, None, placement) as crew:
                run = store.begin_run(crew.plan, versions)
                run_plan(crew, store, _BATCH, quiet)
                store.end_run(run, 0.0)
                digest, count = crew.plan.data_digest, min(_TIMED, len(crew.images))
                few = crew.images.take(torch.arange(count))
                costs = _milliseconds(loaded.module, few, norms, certificates)
                try:
                    proved |= _proved(crew, store, groups, _asked(certificates), costs, loaded.name)
                except SoundnessError:  # whatever is mended then, is computed again
                    forget_units(Path(model))
                    raise
    return Proofs(
        weights_sha256=loaded.recipe.weights.sha256,
        data_digest=digest,
        norms=[proved[group.norm] for group in threats if group.norm in proved],
        torch=release_on(loaded.module),
    )


def forget_units(model: Path) -> None:
    """Take away what is kept of the proofs of an entry, when they are written or broken.

    Args:
        model: folder of the entry.
    """
    shutil.rmtree(model / PROVING_FOLDER, ignore_errors=True)


def _forget_others(place: Path, versions: dict[str, str]) -> None:
    """Take away units that other code computed, or code that was not committed.

    Certificates have versions for what is stored of suites; of what a whole test set is proved to
    be, nothing shall be left to their being kept in mind.
    """
    file = place / STORE_FILE
    if not file.exists():
        return
    try:
        with Store(file) as store:
            ours = store.last_start().environment == versions
    except UsageError:
        ours = False
    if not ours or "," in versions.get("commit", ""):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(exist_ok=True)


def _together(
    certificates_of: dict[Norm, list[Certificate]],
) -> list[tuple[list[Certificate], list[Norm]]]:
    """Norms in which the same certificates are asked, which share work."""
    found: list[tuple[list[Certificate], list[Norm]]] = []
    for norm, certificates in certificates_of.items():
        for asked, norms in found:
            if asked == certificates:
                norms.append(norm)
                break
        else:
            found.append((certificates, [norm]))
    return [(certificates, norms) for certificates, norms in found if certificates]


def _milliseconds(
    module: nn.Module, images: ImageSet, norms: list[Norm], certificates: list[Certificate]
) -> dict[Norm, float]:
    """Processor time per image in each norm, after the norms before."""
    found = {}
    with reproducible_arithmetic(), shared_work():
        for norm in norms:
            started = time.process_time()
            for certificate in certificates:
                certificate.certify(module, images.images, images.labels, norm)
            found[norm] = 1000 * (time.process_time() - started) / len(images)
    return found


def _suite(
    groups: list[ThreatsConfig],
    certificates: list[Certificate],
    model: str,
    data: str,
    audited: int,
    seed: int,
) -> Suite:
    """Of norms in which the same certificates are asked."""
    largest = max(1, audited // 5)
    return Suite(
        name="proofs",
        data=data,
        seed=seed,
        models=[model],
        threats=groups,
        certificates=[_table(certificate) for certificate in certificates],
        decay=False,
        flow=False,
        audit=AuditConfig(samples=max(1, audited - largest), largest=largest),
    )


def _table(certificate: Certificate) -> Any:
    """A certificate as suites ask for it."""
    if isinstance(certificate, ProgramCertificate):
        return {"name": certificate.name, "at": list(certificate.at)}
    return certificate.name


def _proved(
    crew: Crew,
    store: Store,
    groups: list[ThreatsConfig],
    asked: tuple[float, ...],
    milliseconds: dict[Norm, float],
    name: str,
) -> dict[Norm, ProvedNorm]:
    """What a run proved in each of its norms, if its audits broke nothing."""
    reader = Reader(Schedule(crew.plan, store))
    records = reader.records(0)
    if violations := confront(reader, [records]).violations:
        named = (violation.model_copy(update={"model": name}) for violation in violations)
        raise SoundnessError("; ".join(map(str, named)))
    audits = reader.jobs(0, AUDIT)
    found = {}
    for group in groups:
        norm = group.norm
        rows = [row for job in audits if job.norm is norm for row in reader.rows(job)]
        if failed := [row for row in rows if row.status is not Status.ROBUST]:
            raise SoundnessError(
                f"{name}: expected the audit to attack every image that it is given without "
                f"success, got {failed[0].status} on image {failed[0].sample} in {norm}: "
                f"{failed[0].detail or failed[0].found_by}"
            )
        claimed = [_certified(record, norm) for record in records]
        found[norm] = _summary(group, claimed, milliseconds[norm], len(rows), asked)
    return found


def _certified(record: SampleRecord, norm: Norm) -> CertifiedRadius | None:
    """The largest certified radius of one image; None where something failed or nothing is."""
    return record.best(norm) if record.certified_below(norm) > 0 else None


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


def read_proofs(file: Path) -> Proofs | None:
    """Read proofs back; None where there is no file.

    Raises:
        UsageError: the file is not one of this schema version.
    """
    if not file.exists():
        return None
    remedy = f"run `robustness card {file.parent} --prove`"
    return read_json(file, Proofs, "what was proved", remedy)
