"""Whole test sets certified and audited beside a recipe."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from robustness.api import committed_leaderboards
from robustness.attacks import Outcome, Status
from robustness.cards import proofs
from robustness.cards.proofs import (
    PROVED_FILE,
    PROVING_FOLDER,
    Proofs,
    applying,
    forget_units,
    prove,
    read_proofs,
)
from robustness.certificates import CERTIFICATES, CertifiedRadius, ProgramCertificate
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.cli import app
from robustness.data import load_images
from robustness.errors import Interruption, SoundnessError, UsageError
from robustness.evaluation.executors.here import Here
from robustness.evaluation.jobs import audit
from robustness.evaluation.suite import ThreatsConfig, load_suite
from robustness.threat import Norm
from robustness.zoo import find_entry, load_model, zoo_folder

NAME = "digits/lyanet-certified"
THREATS = load_suite("digits").threats


class Boastful(TargetSeekingCertificate):
    """Claims three times what it can prove."""

    def certify(self, model, images, labels, norm) -> list[CertifiedRadius]:
        honest = super().certify(model, images, labels, norm)
        return [replace(claim, radius=3 * claim.radius) for claim in honest]


@pytest.fixture
def proved(tmp_path: Path):
    """Proves an entry's copy on a few images."""

    def of(
        name: str,
        images: Tensor,
        labels: Tensor,
        threats: list[ThreatsConfig],
        audited: int,
        workers: int = 1,
    ) -> Proofs | None:
        file, model = tmp_path / "few.npz", tmp_path / "entry"
        np.savez(file, images=images.numpy(), labels=labels.numpy(), classes=10)
        if not model.exists():
            shutil.copytree(find_entry(name), model)
        loaded = load_model(str(model))
        return prove(loaded, threats, audited, model=str(model), data=str(file), workers=workers)

    return of


def few(count: int) -> tuple[Tensor, Tensor]:
    data = load_images("digits", "test", None)
    return data.images[:count], data.labels[:count]


@pytest.fixture
def no_attack(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The audit's attacks take no time here; how many images they were given."""
    audited: list[int] = []
    run = audit.Audit.run

    def counted(kind, work):
        audited.append(len(work.unit.indices))
        return run(kind, work)

    monkeypatch.setattr(audit, "audit_stages", lambda *_: [])
    monkeypatch.setattr(audit.Audit, "run", counted)
    return audited


@pytest.mark.slow
def test_accuracies_and_wins_are_those_of_the_certificates_radii(
    proved, no_attack: list[int], tmp_path: Path
) -> None:
    images, labels = few(150)
    found = proved(NAME, images, labels, THREATS, 40)
    assert found is not None
    assert sum(no_attack) == 80
    assert [part.norm for part in found.norms] == [group.norm for group in THREATS]
    for part in found.norms:
        claims = CERTIFICATES["target-seeking"].certify(
            load_model(NAME).module, images, labels, part.norm
        )
        radii = torch.tensor([claim.radius for claim in claims], dtype=torch.float64)
        assert part.won == {"target-seeking": int((radii > 0).sum())}
        assert part.audited == 40
        assert 0 < part.at[0].certified.count < 150
        for at in part.at:
            assert at.certified.count == int((radii > at.eps).sum())
        assert part.largest == pytest.approx(float(radii.max()), rel=1e-3)
        assert part.median == pytest.approx(float(radii.median()), rel=1e-3)
    # They are kept until the result is written.
    assert (tmp_path / "entry" / PROVING_FOLDER).is_dir()


@pytest.mark.slow
def test_a_certificate_that_lies_ends_in_a_soundness_error(proved, tmp_path: Path) -> None:
    with (
        CERTIFICATES.having(Boastful()),
        pytest.raises(SoundnessError, match=r"certified .* by target-seeking"),
    ):
        proved(NAME, *few(64), THREATS[1:], 20)
    assert read_proofs(tmp_path / "entry" / PROVED_FILE) == read_proofs(
        find_entry(NAME) / PROVED_FILE
    )


@pytest.mark.slow
def test_a_run_that_stops_goes_on_with_what_was_done(
    proved, no_attack: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images, labels = few(130)
    monkeypatch.setattr(proofs, "environment", lambda _: {"commit": "0" * 40})
    done = 0
    result = Here.result

    def stopped(executor, future):
        nonlocal done
        done += 1
        if done == 3:
            raise KeyboardInterrupt
        return result(executor, future)

    with monkeypatch.context() as patch:
        patch.setattr(Here, "result", stopped)
        with pytest.raises(Interruption, match="goes on from these"):
            proved(NAME, images, labels, THREATS[1:], 4)
    assert (tmp_path / "entry" / PROVING_FOLDER).is_dir()
    tasks: list[object] = []
    monkeypatch.setattr(Here, "result", lambda e, f: tasks.append(f) or result(e, f))
    found = proved(NAME, images, labels, THREATS[1:], 4)
    half = len(tasks)
    forget_units(tmp_path / "entry")
    again = proved(NAME, images, labels, THREATS[1:], 4)
    assert half < len(tasks) - half
    assert [part.at for part in found.norms] == [part.at for part in again.norms]


@pytest.mark.slow
@pytest.mark.parametrize("commit", ["1" * 40, "0" * 40 + ", with changes"])
def test_nothing_is_taken_from_units_that_other_code_computed(
    commit: str, proved, no_attack: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proofs, "environment", lambda _: {"commit": "0" * 40})
    with CERTIFICATES.having(Boastful()):
        wrong = proved(NAME, *few(40), THREATS[1:], 1)
    monkeypatch.setattr(proofs, "environment", lambda _: {"commit": commit})
    right = proved(NAME, *few(40), THREATS[1:], 1)
    assert wrong.norms[0].largest == pytest.approx(3 * right.norms[0].largest, rel=1e-3)


@pytest.mark.slow
def test_an_audit_that_could_not_attack_is_no_audit(
    proved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def failed(model, images, *_) -> list[Outcome]:
        return [Outcome(Status.ERROR, errors=("no logits",))] * len(images)

    monkeypatch.setattr(audit, "audit", failed)
    with pytest.raises(SoundnessError, match=r"without success, got .*no logits"):
        proved(NAME, *few(40), THREATS[1:], 1)
    # When that is mended, it is attacked again.
    assert not (tmp_path / "entry" / PROVING_FOLDER).exists()


@pytest.mark.slow
def test_cost_is_of_one_thread(monkeypatch: pytest.MonkeyPatch, proved, no_attack) -> None:
    threads: list[int] = []

    class Counting(TargetSeekingCertificate):
        def certify(self, *given) -> list[CertifiedRadius]:
            threads.append(torch.get_num_threads())
            return super().certify(*given)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with CERTIFICATES.having(Counting()):
            proved(NAME, *few(40), THREATS[1:], 1)
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1}


@pytest.mark.slow
def test_a_model_trained_by_bounds_of_its_program_is_proved_at_the_radius_it_was_trained_for(
    proved, no_attack: list[int]
) -> None:
    name = "mnist/lyanet-proved"
    loaded, threats = load_model(name), load_suite("mnist").threats
    assert [group.eps for group in threats if group.norm is Norm.LINF] == [[0.1, 0.3]]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 28, 28, generator=generator).mul(0.2)
    labels = loaded.module(images).argmax(dim=1).detach()
    labels[2] = (labels[2] + 1) % 10
    found = proved(name, images, labels, threats, 1)
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


def test_a_model_without_certificates_has_no_proofs(proved) -> None:
    assert proved("digits/node", *few(5), THREATS, 1) is None


@pytest.mark.slow
def test_workers_change_nothing(proved, tmp_path: Path) -> None:
    alone = proved(NAME, *few(40), THREATS[1:], 1, workers=1)
    forget_units(tmp_path / "entry")
    together = proved(NAME, *few(40), THREATS[1:], 1, workers=2)
    without = {"milliseconds": 0.0}
    assert [p.model_copy(update=without) for p in alone.norms] == [
        p.model_copy(update=without) for p in together.norms
    ]


def test_the_command_hands_on_how_many_workers_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("robustness.api.prove", lambda *_, workers, **__: asked.append(workers))
    entry = shutil.copytree(find_entry(NAME), tmp_path / "entry")
    done = CliRunner().invoke(app, ["card", str(entry), "--prove", "--workers", "2", "--quiet"])
    assert done.exit_code == 0, done.output
    assert asked == [2]


@pytest.mark.slow
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
