"""Whole test sets certified and audited beside a recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustness.api import committed_leaderboards
from robustness.cards import proofs
from robustness.cards.proofs import PROVED_FILE, applying, prove, read_proofs
from robustness.certificates import CERTIFICATES, CertifiedRadius, ProgramCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.data import ImageSet, load_images
from robustness.errors import SoundnessError, UsageError
from robustness.evaluation.suite import load_suite
from robustness.threat import Norm
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


def test_a_model_trained_by_bounds_of_its_program_is_proved_at_the_radius_it_was_trained_for(
    no_attack: list[int],
) -> None:
    name = "mnist/lyanet-proved"
    loaded, threats = load_model(name), load_suite("mnist").threats
    assert loaded.recipe is not None
    assert [group.eps for group in threats if group.norm is Norm.LINF] == [[0.1, 0.3]]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 28, 28, generator=generator).mul(0.2)
    labels = loaded.module(images).argmax(dim=1).detach()
    labels[2] = (labels[2] + 1) % 10
    found = prove(loaded, ImageSet("mnist", "test", images, labels, 10), threats, audited=1)
    assert found is not None
    (linf,) = found.norms
    claims = ProgramCertificate(at=(0.1,)).certify(loaded.module, images, labels, Norm.LINF)
    assert linf.asked == (0.1,)
    assert [at.eps for at in linf.at] == [0.1]
    assert linf.at[0].certified.count == sum(claim.radius > 0.1 for claim in claims)
    assert linf.at[0].certified.total == 3
    # One that was trained otherwise is not given to it: its bounds would take minutes an image.
    other = load_model("mnist/node")
    assert other.recipe is not None
    assert not any(applying(other.module, threats, other.recipe).values())


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
