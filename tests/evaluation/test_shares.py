"""Shares that are computed apart and merged are one run, bit for bit."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import robustness
from robustness import UsageError, api
from robustness.attacks import default_stages
from robustness.cli import app
from robustness.evaluation.database import DamagedError, Database
from robustness.evaluation.jobs import Result, audit, worst_case
from robustness.evaluation.plan import Plan
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.evaluation.worst_case import WorstCase
from robustness.results.leaderboard import STORE_FILE, Leaderboard, read_leaderboard

SUITE = Suite.model_validate(
    {
        "name": "shared",
        "data": "digits",
        "samples": 70,
        "models": ["digits/resnet", "digits/lyanet-certified"],
        "threats": [{"norm": "L2", "eps": [0.02, 0.4]}],
        "certificates": ["lyapunov"],
        "attacks": [
            {"kind": "fgsm", "samples": 40},
            {"kind": "pgd", "steps": 2, "samples": 40, "threats": [{"norm": "L2", "eps": [0.4]}]},
            {"kind": "worst-case", "effort": "quick", "transfer": False},
        ],
        "audit": {"samples": 1, "largest": 1},
        "decay": False,
    }
)


@pytest.fixture(scope="module", autouse=True)
def short() -> Iterator[None]:
    """Attacks of one stage, and a worst case whose units are shards."""

    def first(model: Any, threat: Any, *_: object) -> Any:
        return default_stages(model, threat, "quick")[:1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit, "audit_stages", first)
        patch.setattr(WorstCase, "stages", lambda _, *arguments: first(*arguments))
        patch.setattr(worst_case, "SHARDS_AT_ONCE", 1)
        yield


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(f"share-{number}") for number in (1, 2, 3)]
    for number, folder in enumerate(folders, 1):
        assert api.evaluate(SUITE, out=folder, workers=1, shard=(number, 3)) is None
    return folders


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Leaderboard]:
    folder = tmp_path_factory.mktemp("one")
    return folder, api.evaluate(SUITE, out=folder, workers=1)


def contents(folder: Path) -> dict[str, list[Any]]:
    database = sqlite3.connect(folder / STORE_FILE)
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    tables = [name for name in names if re.fullmatch(r"[a-z_]+_\d+", name)]
    found = {t: sorted(database.execute(f"SELECT * FROM {t}"), key=repr) for t in tables}
    database.close()
    return found


@pytest.mark.slow
def test_shares_merged_are_one_run_bit_for_bit(
    shares: list[Path], one: tuple[Path, Leaderboard], tmp_path: Path
) -> None:
    out, (whole, expected) = tmp_path / "merged", one
    stores = [str(path) for path in reversed(shares)]
    said = CliRunner().invoke(app, ["merge", *stores, "--out", str(out)])
    assert said.exit_code == 0, said.output
    found = read_leaderboard(out)
    assert found.comparable() == expected.comparable()
    assert contents(out) == contents(whole)
    assert (out / "samples.csv").read_bytes() == (whole / "samples.csv").read_bytes()
    assert "wall seconds of all 4 starts on these results" in found.timings
    # What starts from certified radii was told of them, and of what was broken before.
    small, large = (
        next(a for a in model.attacks if (a.attack, a.eps) == ("worst-case", eps))
        for model, eps in zip(found.models[::-1], (0.02, 0.4), strict=True)
    )
    assert small.skipped
    assert large.found_by.get("pgd")
    with pytest.raises(UsageError, match="without results"):
        robustness.merge(shares, out)


def test_every_share_has_its_own_work_and_only_proofs_are_done_twice(
    shares: list[Path], one: tuple[Path, Leaderboard]
) -> None:
    alone = [contents(path) for path in shares]
    for table, rows in contents(one[0]).items():
        twice = sum(len(part.get(table, [])) for part in alone) - len(rows)
        assert (twice > 0) if table.startswith("certificate") else (twice == 0), table
    assert all(len(part["clean_2" if "clean_2" in part else "clean_1"]) >= 32 for part in alone)
    assert sum(bool(part.get("audit_1") or part.get("audit_2")) for part in alone) == 1


def test_a_share_is_no_run_and_a_share_less_is_no_whole(shares: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    with pytest.raises(UsageError, match="got share 2 of 3; unite all"):
        api.render(shares[1], tmp_path / "report")
    with pytest.raises(UsageError, match="got no share 2 of 3; add it"):
        api.merge([shares[0], shares[2]], out)
    with pytest.raises(UsageError, match="expected stores"):
        api.merge([], out)
    with pytest.raises(UsageError, match="no such file"):
        api.merge([tmp_path / "nothing", *shares], out)
    assert not out.exists()


def changed(share: Path, folder: Path, change: Callable[[str], str]) -> Path:
    """A share with another note of its run, under a checksum that fits."""
    shutil.copytree(share, folder)
    database = Database(folder / STORE_FILE)
    ((plan, versions),) = database.query("SELECT plan, environment FROM runs")
    database.query("DELETE FROM runs")
    database.close()
    assert change(plan) != plan or change(versions) != versions
    with Store(folder / STORE_FILE) as store:
        run = store.begin_run(Plan.from_json(change(plan)), json.loads(change(versions)))
        store.end_run(run, 1.0)
    return folder


def test_what_does_not_belong_together_is_refused_in_one_line(
    shares: list[Path], tmp_path: Path
) -> None:
    with Store(shares[1] / STORE_FILE, must_exist=True) as store:
        plan = store.last_start().plan
    for number, (words, old, new) in enumerate(
        [
            (
                "another samples of the suite, 70 and 69",
                '"samples": 70, "seed"',
                '"samples": 69, "seed"',
            ),
            ("another numpy, .* and 1.0,", '"numpy": "', '"numpy": "1.0", "was": "'),
            ("another digits/resnet, of other logits", plan.models[0].fingerprint, "0" * 64),
            ("another digits/resnet, of other weights", plan.models[0].digest, "1" * 64),
            ("another digits/resnet, of other weights or code", plan.models[0].identity, "4" * 64),
            ("other images, of SHA-256", plan.data_digest, "2" * 64),
            ("another plan, of attack fgsm", "torchattacks ", "torchattacks 0."),
        ]
    ):
        edits = [(old, new)]
        if words.endswith("weights"):
            edits.append((plan.models[0].identity, "3" * 64))

        def change(text: str, edits: list[tuple[str, str]] = edits) -> str:
            for before, after in edits:
                text = text.replace(before, after)
            return text

        other = changed(shares[1], tmp_path / str(number), change)
        with pytest.raises(UsageError, match=words) as refused:
            api.merge([shares[0], other, shares[2]], tmp_path / "merged")
        assert len(str(refused.value)) <= 300
        assert not (tmp_path / "merged").exists()


def test_rows_that_contradict_each_other_are_refused(shares: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(shares[0], other)
    with Store(other / STORE_FILE) as store:
        plan = store.last_start().plan
        jobs = [job for job in plan.jobs if job.kind == "clean"]
        job, key = next(
            (job, unit)
            for job in jobs
            for unit in (plan.unit(job, shard).key for shard in plan.shards(job))
            if unit in store.done()
        )
        rows = store.rows(job, [key])
        wrong = [replace(rows[0], prediction=9 - rows[0].label), *rows[1:]]
        store.add(Result(key, "clean", wrong, 0.0), job, plan.models[job.model].name)
    with pytest.raises(UsageError, match=r"same rows of one unit, got others .*\(clean"):
        api.merge([*shares, other], tmp_path / "merged")
    database = sqlite3.connect(other / STORE_FILE)
    database.execute(f"UPDATE clean_{job.code} SET prediction = 3 WHERE key = ?", (key,))
    database.commit()
    database.close()
    with pytest.raises(DamagedError):
        api.merge([*shares, other], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_units_that_are_not_there_are_counted(shares: list[Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(shares[0], cut)
    database = sqlite3.connect(cut / STORE_FILE)
    database.execute("DELETE FROM shards WHERE kind = 'clean'")
    database.commit()
    database.close()
    with pytest.raises(UsageError, match=r"got [0-9]+ units less; add"):
        api.merge([cut, *shares[1:]], tmp_path / "merged")
    database = sqlite3.connect(cut / STORE_FILE)
    database.execute("DELETE FROM runs")
    database.commit()
    database.close()
    with Store(cut / STORE_FILE) as store:
        with Store(shares[0] / STORE_FILE, must_exist=True) as whole:
            note = whole.last_start()
        store.begin_run(note.plan, note.environment)
    with pytest.raises(UsageError, match=r"less; the run of .*cut.* did not end: run it again"):
        api.merge([cut, *shares[1:]], tmp_path / "merged")


@pytest.mark.parametrize("words", ["0/3", "4/3", "2", "a/b", "1/0", "1/-3"])
def test_a_share_that_is_none_is_refused_in_one_line(words: str) -> None:
    said = CliRunner().invoke(app, ["evaluate", "digits-quick", "--shard", words])
    assert isinstance(said.exception, UsageError)
    assert "share" in str(said.exception)
