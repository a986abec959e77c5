"""A result depends on what its key names and on nothing else."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from suites import SUITE

import robustness.evaluation.runner as runner
from robustness import registry
from robustness.api import attack, certify, evaluate, render
from robustness.errors import UsageError
from robustness.evaluation.jobs import KINDS
from robustness.evaluation.suite import Suite, load_suite
from robustness.results.leaderboard import STORE_FILE, Leaderboard, read_leaderboard
from robustness.threat import Norm

pytestmark = pytest.mark.slow

PLUGIN = "short_audits"


def run(suite: Suite, out: Path, **options: object) -> Leaderboard:
    return evaluate(suite, out=out, **({"workers": 1} | options))  # type: ignore[arg-type]


@pytest.fixture(scope="module", autouse=True)
def short_audits_everywhere(short_audits: None) -> Iterator[None]:
    """Workers are told of a plugin by which theirs are short as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._loaded, PLUGIN, registry.release_of(PLUGIN))
        yield


@pytest.fixture(scope="module")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    (folder / "small.toml").write_text(SUITE)
    run(load_suite(str(folder / "small.toml")), folder)
    return folder


@pytest.fixture
def reference(reference_folder: Path, tmp_path: Path) -> Leaderboard:
    """The leaderboard of an uninterrupted run; its folder is copied to tmp_path/reference."""
    shutil.copytree(reference_folder, tmp_path / "reference")
    return read_leaderboard(tmp_path / "reference")


def test_a_second_run_computes_nothing_and_says_the_same(
    suite: Suite, reference: Leaderboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a stored unit was computed again")

    monkeypatch.setattr(runner, "run_unit", refuse)
    again = run(suite, tmp_path / "reference")
    assert again.comparable() == reference.comparable()


def test_workers_and_batch_size_change_nothing(
    suite: Suite, reference: Leaderboard, tmp_path: Path
) -> None:
    for number, options in enumerate(
        ({"workers": 2, "batch_size": 1}, {"workers": 1, "batch_size": 1000})
    ):
        other = run(suite, tmp_path / str(number), **options)
        assert other.comparable() == reference.comparable()
        assert rows(tmp_path / str(number)) == rows(tmp_path / "reference")


def rows(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    database = sqlite3.connect(folder / STORE_FILE)
    kinds = ("clean", "flow", "attack", "certificate", "decay", "audit")
    tables = [f"{kind}_{KINDS[kind].version}" for kind in kinds]
    found = {t: sorted(database.execute(f"SELECT * FROM {t}"), key=repr) for t in tables}
    database.close()
    return found


def test_asking_for_fewer_samples_gives_the_same_rows(
    suite: Suite, reference: Leaderboard, tmp_path: Path
) -> None:
    few = run(suite, tmp_path / "few", samples=9)
    assert few.models[0].clean.total == 9
    everything, part = rows(tmp_path / "reference"), rows(tmp_path / "few")
    for table, content in part.items():
        assert content, table
        # Which images are audited depends on all that was certified; each row only on itself.
        same = [row for row in everything[table] if row in content]
        assert same == content or table.startswith("audit")


def test_another_seed_gives_other_rows(
    suite: Suite, reference: Leaderboard, tmp_path: Path
) -> None:
    run(suite, tmp_path / "other", seed=1)
    folders = (tmp_path / "other", tmp_path / "reference")
    # Without the key, which names the seed.
    found, known = (
        sorted((row[1:] for row in rows(f)[f"attack_{KINDS['attack'].version}"]), key=repr)
        for f in folders
    )
    assert found != known


def started(suite_file: Path, out: Path) -> subprocess.Popen[str]:
    """The process of a run which has stored something."""
    command = [sys.executable, "-m", "robustness", "--plugin", PLUGIN, "evaluate", str(suite_file)]
    process = subprocess.Popen(
        [*command, "--out", str(out), "--quiet", "--workers", "2", "--batch-size", "1"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    stored = 0
    deadline = time.monotonic() + 120
    while stored < 5 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
        if (out / STORE_FILE).exists():
            database = sqlite3.connect(out / STORE_FILE)
            try:
                stored = database.execute("SELECT count(*) FROM shards").fetchone()[0]
            except sqlite3.OperationalError:
                stored = 0  # the table is not there yet
            finally:
                database.close()
    assert stored >= 5
    return process


def assert_all_end(children: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(child) for child in children), "a worker outlived its parent"


def test_a_run_killed_in_the_middle_ends_as_an_uninterrupted_one(
    suite_file: Path, reference: Leaderboard, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    process = started(suite_file, out)
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "leaderboard.json").exists()
    assert_all_end(children)

    finished = run(load_suite(str(suite_file)), out)
    assert finished.comparable() == reference.comparable()


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_leaves_no_process_and_says_one_line(
    suite_file: Path, tmp_path: Path
) -> None:
    process = started(suite_file, tmp_path / "closed")
    children = children_of(process.pid)
    os.killpg(process.pid, signal.SIGHUP)
    # The tracker of resources, which warns of those that are left, has the same standard error.
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert re.fullmatch(
        r"interrupted; \d+ of \d+ units were done; the same command goes on from these and all of "
        rf"before, kept in {tmp_path}/closed/results\.sqlite\n",
        said,
    )
    assert_all_end(children)


def children_of(pid: int) -> list[int]:
    """The processes that it started, and those that they did."""
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    children = [int(child) for child in listing.read_text().split()] if listing.exists() else []
    return children + [other for child in children for other in children_of(child)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z" and os.path.exists(f"/proc/{pid}")


def test_bad_input_leaves_the_store_untouched(
    suite: Suite, reference: Leaderboard, tmp_path: Path
) -> None:
    store = tmp_path / "reference" / STORE_FILE
    before = store.read_bytes()
    for options in (
        {"models": ["digits/lyanett"]},
        {"samples": 0},
        {"workers": 0},
        {"batch_size": 0},
        {"seed": -1},
    ):
        with pytest.raises(UsageError) as caught:
            run(suite, tmp_path / "reference", **options)
        assert "\n" not in str(caught.value)
    assert store.read_bytes() == before


def test_a_report_is_rendered_again_from_the_store_alone(
    reference: Leaderboard, tmp_path: Path
) -> None:
    again = render(tmp_path / "reference", tmp_path / "again")
    assert again.comparable() == reference.comparable()
    written = json.loads((tmp_path / "again" / "leaderboard.json").read_text())
    assert written["suite"]["name"] == "small"


def test_a_report_without_its_store_is_rendered_again_from_its_leaderboard(
    reference: Leaderboard, tmp_path: Path
) -> None:
    folder = tmp_path / "reference"
    (folder / STORE_FILE).unlink()
    (folder / "index.html").unlink()
    assert render(folder, folder).comparable() == reference.comparable()
    assert (folder / "index.html").is_file()


def test_a_folder_without_results_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        render(tmp_path / "nothing", tmp_path)


def test_the_bracket_never_closes_the_wrong_way_and_attacks_fall_with_eps(
    reference: Leaderboard,
) -> None:
    for model in reference.models:
        for bracket in model.brackets:
            assert bracket.certified.count <= bracket.attacked.count <= model.clean.count
        for norm in Norm:
            counts = [b.attacked.count for b in model.brackets if b.norm is norm]
            assert counts == sorted(counts, reverse=True)
    assert not reference.soundness.violations
    assert reference.soundness.attacked_inside > 0


def test_the_subset_of_an_attack_is_named(reference: Leaderboard) -> None:
    assert len(reference.suite.subsets["pgd"]) == 12
    assert all(a.subset == (12 if a.attack == "pgd" else 24) for a in reference.models[0].attacks)


def test_attack_and_certify_agree_with_the_suite(suite: Suite, reference: Leaderboard) -> None:
    row = attack("digits/resnet", "Linf", "0.05", "fgsm", samples=24, workers=1)
    stored = next(a for a in reference.models[0].attacks if a.attack == "fgsm" and a.eps == 0.05)
    assert row == stored
    radii = certify("digits/lyanet-certified", "L2", samples=24, workers=1, audit=1)
    certified = next(b for b in reference.models[1].brackets if (b.norm, b.eps) == ("L2", 0.25))
    assert sum(r.radius > 0.25 for r in radii) == certified.certified.count
