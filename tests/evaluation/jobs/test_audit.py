"""The audit: a certificate that lies is caught, shown, and ends the run with exit code 1."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustness import cli
from robustness.api import evaluate
from robustness.attacks import Ascent, Stage, views_of, worst_case_within
from robustness.certificates import CERTIFICATES, CertifiedRadius
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.data import load_images
from robustness.evaluation.jobs import audit as auditing
from robustness.evaluation.jobs.audit import choose
from robustness.evaluation.suite import load_suite
from robustness.results.leaderboard import read_leaderboard
from robustness.zoo import load_model

SUITE = """
name = "audited"
data = "digits"
samples = 32
models = ["digits/lyanet-certified"]
certificates = ["target-seeking"]
decay = false
audit = { samples = 2, largest = 1 }
[[threats]]
norm = "L2"
eps = [0.25]
"""


class Boastful(TargetSeekingCertificate):
    """Claims twice what it can prove."""

    def certify(self, model, images, labels, norm) -> list[CertifiedRadius]:
        honest = super().certify(model, images, labels, norm)
        return [replace(claim, radius=2 * claim.radius) for claim in honest]


@pytest.fixture
def boastful() -> Iterator[None]:
    with CERTIFICATES.having(Boastful()):
        yield


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    file = tmp_path / "audited.toml"
    file.write_text(SUITE)
    return file


def call(*arguments: str) -> int:
    return cli.run(lambda: cli.app(list(arguments), standalone_mode=False))


@pytest.mark.slow
def test_a_certificate_that_doubles_its_radii_is_caught_and_shown(
    suite_file: Path,
    tmp_path: Path,
    boastful: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert call("evaluate", str(suite_file), "--out", str(out), "--workers", "1") == 1
    assert "soundness failure: digits/lyanet-certified: image" in capsys.readouterr().err

    board = read_leaderboard(out)
    audit = board.models[0].audits[0]
    assert (audit.pairs, board.soundness.audited) == (3, 3)
    pictured = [v for v in board.soundness.violations if v.picture is not None]
    assert len(pictured) == audit.broken > 0
    model = load_model("digits/lyanet-certified").module
    images = load_images("digits", "test", None)
    for violation in pictured:
        picture = violation.picture
        original = torch.tensor(picture.original).view(1, *picture.shape)
        adversarial = torch.tensor(picture.adversarial).view(1, *picture.shape)
        assert torch.equal(original[0], images.images[violation.index])
        assert violation.label == images.labels[violation.index]
        assert float((adversarial.double() - original.double()).norm()) == pytest.approx(
            violation.distance, rel=1e-12
        )
        assert violation.distance < violation.radius
        predicted = int(model(adversarial).argmax())
        assert predicted == violation.prediction != violation.label
        assert violation.certificate == "target-seeking"

    page = (out / "index.html").read_text()
    assert 'class="verdict refuted"' in page
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) >= 2 * len(pictured)
    assert all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    markdown = (out / "leaderboard.md").read_text()
    for violation in pictured:
        assert f"image {violation.index}" in markdown
    linked = re.findall(r"\]\((counterexamples/[^)]+\.png)\)", markdown)
    assert len(linked) >= 2 * len(pictured)
    assert all((out / name).read_bytes().startswith(b"\x89PNG") for name in linked)

    # Rendered again from the store alone, the counter-example is still there.
    assert call("report", str(out), "--out", str(tmp_path / "again")) == 1
    assert read_leaderboard(tmp_path / "again").comparable() == board.comparable()


def test_certify_ends_with_exit_code_1_too(
    boastful: None, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--samples", "32", "--workers", "1", "--audit", "2"]
    assert call("certify", "digits/lyanet-certified", *arguments) == 1
    assert "soundness failure" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_audit_goes_on_where_it_stopped(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(model, threat):
        return [Stage(Ascent("margin", 3), views_of(model)[0])]

    monkeypatch.setattr("robustness.evaluation.jobs.audit.audit_stages", short)
    suite, audited, real = load_suite(str(suite_file)), [], auditing.audit

    def interrupted(model, images, labels, norm, radii, seed):
        if len(audited) == 2:
            raise KeyboardInterrupt
        audited.extend(radii.tolist())
        return real(model, images, labels, norm, radii, seed)

    monkeypatch.setattr("robustness.evaluation.jobs.audit.AUDITED_AT_ONCE", 1)
    monkeypatch.setattr(auditing, "audit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(suite, out=tmp_path / "out", workers=1, batch_size=1)
    monkeypatch.setattr(auditing, "audit", lambda *a: audited.extend(a[4].tolist()) or real(*a))
    resumed = evaluate(suite, out=tmp_path / "out", workers=1)
    assert len(audited) == 3
    assert len(set(audited)) == 3
    monkeypatch.setattr(auditing, "audit", real)
    whole = evaluate(suite, out=tmp_path / "whole", workers=1)
    assert resumed.comparable() == whole.comparable()


def test_every_audited_image_is_attacked_just_inside_its_own_radius(
    suite_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []

    def note(model, images, labels, norm, radii, stages, seed):
        seen.extend(radii.tolist())
        return worst_case_within(model, images, labels, norm, radii, [], seed=seed)

    monkeypatch.setattr("robustness.evaluation.jobs.audit.worst_case_within", note)
    board = evaluate(load_suite(str(suite_file)), out=tmp_path / "out", workers=1)
    radii = np.array(board.models[0].samples.norms[0].radius)
    for eps in seen:
        gap = radii - eps
        assert ((gap > 0) & (gap < 2e-6 * radii)).any()
    assert max(seen) == pytest.approx(radii.max(), rel=1e-5)


@pytest.mark.parametrize("setting", ["samples = 0", "largest = 0", "samples = false", "off = true"])
def test_the_audit_cannot_be_switched_off(
    suite_file: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    suite_file.write_text(SUITE.replace("samples = 2, largest = 1", setting))
    assert call("evaluate", str(suite_file)) == 2
    assert "audit" in capsys.readouterr().err


def test_the_largest_radii_are_always_chosen_and_the_rest_by_the_seed() -> None:
    radii = {index: float(index % 7) for index in range(70)}
    chosen = choose(radii, samples=20, largest=10, seed=0, salt="a")
    assert len(chosen) == 30
    assert {index for index in radii if radii[index] == 6.0} <= set(chosen)
    assert all(radii[index] > 0 for index in chosen)
    assert chosen == choose(dict(reversed(radii.items())), 20, 10, 0, "a")
    assert chosen != choose(radii, 20, 10, 1, "a")
    assert chosen != choose(radii, 20, 10, 0, "b")
    assert choose({1: 0.5, 2: 0.0}, samples=20, largest=10, seed=0, salt="a") == [1]
