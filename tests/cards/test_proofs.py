"""Whole test sets certified and audited beside a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustness.api import committed_leaderboards
from robustness.cards import proofs
from robustness.cards.proofs import PROVED_FILE, prove, read_proofs
from robustness.certificates import CERTIFICATES, CertifiedRadius
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.data import ImageSet, load_images
from robustness.errors import SoundnessError, UsageError
from robustness.evaluation.suite import load_suite
from robustness.zoo import load_model, zoo_folder

NAME = "digits/lyanet-certified"
THREATS = load_suite("digits").threats


class Boastful(TargetSeekingCertificate):
    """Claims three times what it can prove."""

    def certify(self, model, images, labels, norm) -> list[CertifiedRadius]:
        honest = super().certify(model, images, labels, norm)
        return [replace(claim, radius=3 * claim.radius) for claim in honest]


def few(count: int) -> ImageSet:
    data = load_images("digits", "test", None)
    return ImageSet("digits", "test", data.images[:count], data.labels[:count], 10)


@pytest.fixture
def no_attack(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The audit's attacks take no time here; how many images they were given."""
    audited: list[int] = []

    def nothing(model, images, labels, norm, radii, seed):
        audited.append(len(images))
        return proofs_audit(model, images, labels, norm, radii, seed)

    proofs_audit = proofs.audit
    monkeypatch.setattr("robustness.evaluation.jobs.audit.audit_stages", lambda *_: [])
    monkeypatch.setattr(proofs, "audit", nothing)
    return audited


def test_accuracies_and_wins_are_those_of_the_certificates_radii(no_attack: list[int]) -> None:
    found = prove(load_model(NAME), few(150), THREATS, audited=40)
    assert found is not None
    assert no_attack == [32, 8, 32, 8]
    data = few(150)
    for part in found.norms:
        claims = CERTIFICATES["target-seeking"].certify(
            load_model(NAME).module, data.images, data.labels, part.norm
        )
        radii = torch.tensor([claim.radius for claim in claims], dtype=torch.float64)
        assert part.won == {"target-seeking": int((radii > 0).sum())}
        assert part.audited == 40
        assert 0 < part.at[0].certified.count < 150
        for at in part.at:
            assert at.certified.count == int((radii > at.eps).sum())
        assert part.largest == pytest.approx(float(radii.max()), rel=1e-3)


def test_a_certificate_that_lies_ends_in_a_soundness_error() -> None:
    with (
        CERTIFICATES.having(Boastful()),
        pytest.raises(SoundnessError, match=r"certified to L2 .* by target-seeking"),
    ):
        prove(load_model(NAME), few(64), THREATS[1:], audited=20)


def test_a_model_without_certificates_has_no_proofs() -> None:
    assert prove(load_model("digits/node"), few(5), THREATS, audited=1) is None


def test_every_committed_proof_is_of_its_weights_and_two_thousand_pairs_were_audited() -> None:
    audited = 0
    for file in zoo_folder().glob(f"*/*/{PROVED_FILE}"):
        found = read_proofs(file)
        assert found is not None
        recipe = load_model(str(file.parent)).recipe
        assert recipe is not None
        assert recipe.weights is not None
        assert found.weights_sha256 == recipe.weights.sha256
        audited += sum(part.audited for part in found.norms)
    for board in committed_leaderboards().values():
        assert board.soundness.violations == []
        audited += board.soundness.audited
    assert audited >= 2000


def test_the_file_of_another_schema_is_one_line(tmp_path: Path) -> None:
    assert read_proofs(tmp_path / PROVED_FILE) is None
    (tmp_path / PROVED_FILE).write_text("{}")
    with pytest.raises(UsageError, match="missing key"):
        read_proofs(tmp_path / PROVED_FILE)
