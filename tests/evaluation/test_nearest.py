"""The nearest adversarial images of a suite bound robust radii from above."""

import base64
import time
import zlib
from pathlib import Path

import pytest
import torch

from robustness.api import evaluate
from robustness.attacks import Status, Verdict, nearest_adversarial
from robustness.data import load_images
from robustness.evaluation.jobs import Result, clean, nearest
from robustness.evaluation.jobs.base import Work
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.planning import make_plan
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.reporting.markdown import markdown_text
from robustness.results.leaderboard import Example, Leaderboard
from robustness.threat import Norm
from robustness.zoo import load_model

pytestmark = pytest.mark.slow

SUITE = {
    "name": "nearest",
    "data": "digits",
    "samples": 32,
    "models": ["digits/resnet", "digits/lyanet-certified"],
    "certificates": ["target-seeking", "lipschitz-margin"],
    "decay": False,
    "audit": {"samples": 1, "largest": 1},
    "nearest": {"samples": 32},
    "threats": [{"norm": "L2", "eps": [0.05, 0.5, 2.0]}, {"norm": "Linf", "eps": [0.1]}],
}


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, short_audits: None) -> Leaderboard:
    folder = tmp_path_factory.mktemp("nearest")
    return evaluate(Suite.model_validate(SUITE), out=folder, workers=1)


def test_an_image_is_found_for_each_sample_and_no_nearer_than_is_proved(
    board: Leaderboard,
) -> None:
    for entry in board.models:
        assert entry.samples is not None
        for row, known in zip(entry.nearest, entry.samples.norms, strict=True):
            assert row.norm is known.norm
            assert (row.samples, row.found, row.errors) == (32, 32, 0)
            for radius, distance in zip(known.radius, known.distance, strict=True):
                assert distance is not None
                assert distance == 0 or distance >= radius
            assert 0 <= row.median_certified < row.median
    assert not board.soundness.violations


def test_what_was_found_bounds_the_bracket_at_every_radius(board: Leaderboard) -> None:
    for entry in board.models:
        assert entry.samples is not None
        for known in entry.samples.norms:
            for bracket in (b for b in entry.brackets if b.norm is known.norm):
                stands = [
                    p == label and (d is None or d > bracket.eps)
                    for p, label, d in zip(
                        entry.samples.prediction, entry.samples.label, known.distance, strict=True
                    )
                ]
                assert bracket.attacked.count == sum(stands)
        # No attack ran, and yet most of those that were searched fall within the largest radius.
        assert entry.brackets[2].attacked.count < entry.clean.count - 3


def test_the_nearest_of_all_images_are_kept_to_be_looked_at(board: Leaderboard) -> None:
    images = load_images("digits", "test", None)
    for entry in board.models:
        model = load_model(entry.name).module
        for row, known in zip(entry.nearest, entry.samples.norms, strict=True):
            found = sorted(d for d in known.distance if d)
            assert [e.distance for e in row.examples] == pytest.approx(found[:3])
            for example in row.examples:
                original = pixels(example.original, example) / 255
                change = (pixels(example.change, example) - 128) / 127 * example.largest
                image = images.images[example.index].double()
                assert (original - image).abs().max() <= 0.5 / 255 + 1e-6
                length = change.abs().max() if row.norm is Norm.LINF else change.norm()
                assert length == pytest.approx(example.distance, rel=0.05)
                assert example.label == images.labels[example.index]
                logits = model((image + change).clamp(0, 1).float().unsqueeze(0))
                near = logits[0, example.prediction] - logits[0, example.label]
                assert near > -0.2 * logits.abs().max()  # rounded as it is: at the boundary


def pixels(levels: str, example: Example) -> torch.Tensor:
    """The levels of an example, shape (c, h, w)."""
    flat = zlib.decompress(base64.b64decode(levels))
    return torch.tensor(list(flat), dtype=torch.float64).view(example.shape)


def test_a_row_keeps_images_of_the_nearest_of_its_unit_alone() -> None:
    def verdict(distance: float, found: bool = True) -> Verdict:
        status = Status.ADVERSARIAL if found else Status.ROBUST
        image = torch.full((1, 1, 1), distance) if found else None
        return Verdict(status, prediction=1, linf=distance, l2=distance, image=image)

    verdicts = [verdict(d) for d in (0.5, 0.0, 0.2, 0.4, 0.3)] + [verdict(0.1, False)]
    unit = Unit("key", list(range(6)), 0)
    suite = Suite.model_validate(SUITE)
    job = Job("nearest", 2, 0, 1, 6, norm=Norm.L2)
    work = Work(
        job,
        unit,
        suite,
        torch.nn.Identity(),
        torch.zeros(6, 1, 1, 1),
        torch.zeros(6, dtype=torch.int64),
    )
    kept = [row.sample for row in nearest.rows_of(work, verdicts) if row.adversarial is not None]
    assert kept == [2, 3, 4]


def test_the_report_has_a_table_of_them(board: Leaderboard) -> None:
    text = markdown_text(board)
    assert "### Nearest adversarial images" in text
    row = board.models[0].nearest[0]
    assert f"| ℓ2 | 32 | 32 | 0 | {row.median:.3g} |" in text


def test_a_model_that_fails_is_an_error_and_not_robust_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments, **keywords):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(nearest, "nearest_adversarial", fails)
    changes = {"models": ["digits/resnet"], "certificates": [], "samples": 8}
    changes["nearest"] = {"samples": 6}
    entry = evaluate(Suite.model_validate(SUITE | changes), out=tmp_path, workers=1).models[0]
    for row in entry.nearest:
        assert (row.samples, row.found, row.errors, row.median) == (6, 0, 6, None)


def test_the_wall_time_of_all_starts_counts_those_that_were_killed(tmp_path: Path) -> None:
    changes = {"models": ["digits/resnet"], "certificates": [], "samples": 8}
    suite = Suite.model_validate(SUITE | changes)
    plan = make_plan(suite, load_images("digits", "test", None), [load_model("digits/resnet")])
    rows = [clean.Row(1, 2, 2, False, "", None)]
    with Store(tmp_path / "results.sqlite") as store:
        before = time.time()
        store.begin_run(plan, {})
        time.sleep(0.05)
        store.add(Result("key", "clean", rows, 0.01), plan.jobs[0], "m")
        after = time.time()
        time.sleep(0.05)
        store.begin_run(plan, {})
        again = store.begin_run(plan, {})
        store.end_run(again, 7.0)
        killed, idle, complete = store.wall_seconds("nearest")
        assert 0.04 < killed <= after - before
        assert (idle, complete) == (0.0, 7.0)
        assert store.wall_seconds("another") == []
        # A start that computed nothing of what is asked for is none of it, but for the last.
        assert store.wall_seconds("nearest", {"key"}) == [killed, 7.0]
        assert store.wall_seconds("nearest", {"another key"}) == [7.0]


def test_the_commits_that_computed_units_are_those_of_their_starts(tmp_path: Path) -> None:
    changes = {"models": ["digits/resnet"], "certificates": [], "samples": 8}
    suite = Suite.model_validate(SUITE | changes)
    plan = make_plan(suite, load_images("digits", "test", None), [load_model("digits/resnet")])
    rows = [clean.Row(1, 2, 2, False, "", None)]
    with Store(tmp_path / "results.sqlite") as store:
        for key, environment in (
            ("first", {"commit": "a"}),
            ("second", {}),
            ("third", {"commit": "b, with changes"}),
        ):
            store.begin_run(plan, environment)
            store.add(Result(key, "clean", rows, 0.01), plan.jobs[0], "m")
            time.sleep(0.05)
        store.begin_run(plan, {"commit": "c"})
        assert store.commits(["first", "second", "third"]) == ["a", "b, with changes", "unknown"]
        assert store.commits(["first", "third"]) == ["a", "b, with changes"]
        assert store.commits(["second"]) == ["unknown"]
        assert store.commits(["fourth"]) == []


def test_of_no_images_nothing_is_found() -> None:
    model, nothing = load_model("digits/resnet").module, torch.zeros(0, 1, 8, 8)
    assert nearest_adversarial(model, nothing, torch.zeros(0, dtype=torch.int64), Norm.L2) == []
