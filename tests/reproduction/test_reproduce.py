"""What is stale is named with its reason and made, and nothing else is."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from robustness import api
from robustness.cards.measure import MEASURED_FILE
from robustness.cards.page import CARD_FILE
from robustness.cards.proofs import PROVED_FILE
from robustness.claims.models import study_of
from robustness.claims.report import write_claims
from robustness.claims.results import read_seed
from robustness.cli import app
from robustness.errors import OperationalError, UsageError
from robustness.evaluation.jobs import Result
from robustness.evaluation.packing import PACKED_FILE
from robustness.evaluation.recomputation import stored_units
from robustness.evaluation.store import Store
from robustness.evaluation.suite import load_suite
from robustness.reproduction import state
from robustness.reproduction.plan import CardsPart, ClaimsPart, SuitePart, read_plan
from robustness.reproduction.run import RECORD_FILE, reproduce
from robustness.reproduction.state import state_of
from robustness.results.leaderboard import LEADERBOARD_FILE, STORE_FILE
from robustness.zoo import WEIGHTS_DIR, find_entry, zoo_folder

ROOT = zoo_folder().parent
SUITE = """
name = "toy"
data = "digits"
samples = 4
models = ["digits/resnet"]
decay = false
flow = false
threats = [{ norm = "Linf", eps = [0.05] }]
attacks = [{ kind = "fgsm" }]
"""
PEER = "mnist/gains-0.11-seed-12345"
PLAN = """
[[part]]
name = "toy"
kind = "suite"
suite = "toy.toml"
out = "reports/toy"

[[part]]
name = "index"
kind = "index"
folder = "reports"

[[part]]
name = "page"
kind = "script"
make = ["-c", "open('page', 'w')"]
check = ["-c", "import os, sys; sys.exit(0 if os.path.exists('page') else 'there is no page')"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all of the plan was made, from nothing, by the command."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "toy.toml").write_text(SUITE)
    (folder / "plan.toml").write_text(PLAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = CliRunner().invoke(app, ["reproduce", "plan.toml", "--dry-run"])
        assert before.exit_code == 1, before.output
        assert "toy: there is no report" in before.stdout
        assert "page: there is no page" in before.stdout
        assert not (folder / "reports").exists()
        done = CliRunner().invoke(app, ["reproduce", "plan.toml", "--workers", "1"])
        assert done.exit_code == 0, done.output
        assert done.stdout.count("made") == 3
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, to work in."""
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.slow
def test_what_is_as_it_would_be_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "reports" / "toy" / STORE_FILE).unlink()  # as in a fresh checkout
    monkeypatch.setattr(api, "evaluate", None)
    outcomes = reproduce(folder / "plan.toml")
    assert [(o.name, o.made, o.state.stale) for o in outcomes] == [
        ("toy", False, False),
        ("index", False, False),
        ("page", False, False),
    ]
    record = json.loads((folder / RECORD_FILE).read_text())["made"]
    assert set(record) == {"toy", "index", "page"}
    assert record["toy"]["seconds"] > 0
    assert outcomes[0].seconds == record["toy"]["seconds"]


def leaderboard(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        file = folder / LEADERBOARD_FILE
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return changed


def without_a_unit(folder: Path) -> None:
    with closing(sqlite3.connect(folder / STORE_FILE, isolation_level=None)) as store:
        store.execute("DELETE FROM shards WHERE kind = 'attack'")


STALE = {
    "toy has other weights": leaderboard(lambda b: b["models"][0].update(digest="0" * 64)),
    "torch was 1.0, is": leaderboard(lambda b: b["environment"].update(torch="1.0")),
    "the attack fgsm is of another version": leaderboard(
        lambda b: b["models"][0]["attacks"][0].update(version="another")
    ),
    "the suite has another seed": leaderboard(lambda b: b["suite"].update(seed=9)),
    "units to be computed: 1 of attack": without_a_unit,
    "its store is not with it": lambda f: [(f / n).unlink() for n in (STORE_FILE, PACKED_FILE)],
    "index.html is not what its results give": lambda f: (f / "index.html").write_text("another"),
}


@pytest.mark.parametrize("reason", STALE)
def test_a_stale_report_is_named_with_its_reason(reason: str, folder: Path) -> None:
    part = SuitePart(name="toy", kind="suite", suite="toy.toml", out="reports/toy")
    STALE[reason](folder / "reports" / "toy")
    found = state_of(part, None)
    assert len(found.reasons) == 1
    assert reason.replace("toy has", "digits/resnet has") in found.reasons[0]
    assert found.pages_alone == reason.startswith("index.html")


def test_a_suite_that_asks_for_more_costs_what_is_missing_and_no_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "toy.toml").write_text(SUITE.replace("[0.05]", "[0.05, 0.1]"))
    computed: list[str] = []
    run_task = api.run_plan

    def spied(crew, store, *rest):
        done = store.done()
        run_task(crew, store, *rest)
        computed.extend(store.done() - done)

    monkeypatch.setattr(api, "run_plan", spied)
    (stale,) = reproduce(folder / "plan.toml", only=["toy"], dry_run=True)
    assert not computed
    assert stale.state.reasons == (
        "the suite has another threats",
        "units to be computed: 1 of attack",
    )
    (outcome,) = reproduce(folder / "plan.toml", only=["toy"], workers=1)
    assert (outcome.made, outcome.state.stale) == (True, False)
    assert len(computed) == 1


@pytest.mark.slow
def test_of_a_model_that_is_added_its_own_units_alone_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the second phase too, which nobody knows before the first is done."""
    monkeypatch.chdir(tmp_path)
    suite = SUITE.replace('"fgsm"', '"worst-case", effort = "quick"')
    (tmp_path / "toy.toml").write_text(suite)
    api.evaluate("toy.toml", out=Path("reports/toy"), workers=1)
    part = SuitePart(name="toy", kind="suite", suite="toy.toml", out="reports/toy")
    assert not state_of(part, None).stale
    (tmp_path / "toy.toml").write_text(f'{suite}added = ["digits/node"]\n')
    reasons = state_of(part, None).reasons
    assert "units to be computed: 1 of clean, 1 of worst-case" in reasons


def test_pages_alone_are_rendered_and_anew_names_this_commit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder / "reports" / "toy" / "index.html"
    page.write_text("another")
    with monkeypatch.context() as patch:
        patch.setattr(api, "evaluate", None)
        assert not reproduce(folder / "plan.toml", only=["toy"])[0].state.stale
    assert page.read_text() != "another"
    leaderboard(lambda b: b["environment"].update(commit="0" * 40))(page.parent)
    assert reproduce(folder / "plan.toml", only=["toy"], dry_run=True)[0].commit == "0" * 40
    reproduce(folder / "plan.toml", only=["toy"], anew=True, workers=1)
    now = reproduce(folder / "plan.toml", only=["toy"], dry_run=True)[0].commit
    assert now != "0" * 40


def test_units_are_computed_again_and_noted_as_of_this_report(folder: Path) -> None:
    command = ["reproduce", "plan.toml", "--only", "toy", "--workers", "1"]
    done = CliRunner().invoke(app, [*command, "--recompute", "5"])
    assert done.exit_code == 0, done.output
    (outcome,) = reproduce(folder / "plan.toml", only=["toy"], dry_run=True)
    assert not outcome.made
    again = outcome.recomputed
    assert again is not None
    assert (again.same.count, again.same.total, again.units) == (2, 2, 2)
    assert "2 of 2 same" in done.stdout
    # Whatever else lies there later is another report.
    leaderboard(lambda b: b["environment"].update(commit="0" * 40))(folder / "reports" / "toy")
    (outcome,) = reproduce(folder / "plan.toml", only=["toy"], dry_run=True)
    assert outcome.recomputed is None


@pytest.mark.parametrize("asked", [{"dry_run": True, "recompute": 5}, {"recompute": 0}])
def test_what_cannot_be_computed_again_is_refused_before_anything_is_made(
    asked: dict, folder: Path
) -> None:
    (folder / "page").unlink()
    with pytest.raises(UsageError, match="expected"):
        reproduce(folder / "plan.toml", **asked)
    assert not (folder / "page").exists()


@pytest.mark.slow
def test_a_report_of_which_a_unit_gives_other_rows_stays_stale(folder: Path) -> None:
    report = folder / "reports" / "toy"
    with Store(report / STORE_FILE) as store:
        job, unit = next(
            u for u in stored_units(store.last_run().plan, store) if u[0].kind != "clean"
        )
        rows = [replace(row, detail="touched up") for row in store.rows(job, [unit.key])]
        store.add(Result(unit.key, job.kind, rows, 1.0), job, "digits/resnet")
    api.render(report, report, pack=True)
    command = ["reproduce", "plan.toml", "--only", "toy", "--workers", "1"]
    for more in (["--recompute", "5"], ["--dry-run"], ["--anew"]):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 1, more
        assert "toy: computed otherwise: attack fgsm Linf 0.05 of digits/resnet" in done.stdout
        assert "1 of 2 same" in done.stdout
    for name in (STORE_FILE, PACKED_FILE):
        (report / name).unlink()
    done = CliRunner().invoke(app, [*command, "--recompute", "5"])
    assert done.exit_code == 0, done.output
    assert "2 of 2 same" in done.stdout


def test_what_a_report_cost_is_that_of_all_its_starts(folder: Path) -> None:
    timings = {
        "wall seconds of this run": 1.5,
        "wall seconds of all 3 starts on these results": 90.0,
    }
    leaderboard(lambda b: b.update(timings=timings))(folder / "reports" / "toy")
    (folder / "reports" / "toy" / "index.html").write_text("another")
    (folder / "reports" / "toy" / STORE_FILE).unlink()
    (folder / "reports" / "toy" / PACKED_FILE).unlink()
    plan = folder / "plan.toml"
    plan.write_text(plan.read_text().replace('"reports/toy"', '"reports/toy"\nstore = false', 1))
    assert reproduce(plan, only=["toy"])[0].seconds == 90.0


def test_a_report_whose_images_are_not_here_is_told_and_the_next_parts_are_looked_at(
    folder: Path,
) -> None:
    suite = (folder / "toy.toml").read_text().replace('data = "digits"', 'data = "mnist"')
    (folder / "toy.toml").write_text(suite)
    (folder / "page").unlink()
    toy, _, page = reproduce(folder / "plan.toml", dry_run=True, data_dir=folder)
    (said,) = toy.state.reasons
    assert said.startswith("it cannot be compared: ")
    assert "mnist" in said
    assert page.state.stale


def test_weights_that_are_not_included_are_needed_and_make_nothing_stale_but_pages(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEIGHTS_DIR, raising=False)
    theirs = (folder / "toy.toml").read_text().replace("digits/resnet", PEER)
    (folder / "peers.toml").write_text(theirs.replace('"digits"', '"mnist"'))
    (folder / "plan.toml").write_text(
        PLAN.replace("toy.toml", "peers.toml").replace('name = "toy"', 'name = "peers"')
    )
    monkeypatch.setattr(api, "evaluate", None)
    page = folder / "reports" / "toy" / "index.html"
    page.write_text("another")
    command = ["reproduce", "plan.toml", "--only", "peers"]
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    assert dry.exit_code == 1
    assert "peers: index.html is not what its results give" in dry.stdout
    assert CliRunner().invoke(app, [*command, "--anew"]).exit_code == 0
    assert page.read_text() != "another"
    for more in ([], ["--dry-run"], ["--anew"]):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0, done.output
        assert f"needs {WEIGHTS_DIR}" in done.stdout
        assert "0 parts stale" in done.stdout
    shutil.rmtree(page.parent)
    assert CliRunner().invoke(app, [*command, "--dry-run"]).exit_code == 0


def test_a_script_that_fails_is_named_and_not_noted_as_made(folder: Path) -> None:
    (folder / "page").unlink()
    plan = (folder / "plan.toml").read_text().replace("open('page', 'w')", "raise SystemExit('no')")
    (folder / "plan.toml").write_text(plan)
    (folder / RECORD_FILE).unlink()
    with pytest.raises(OperationalError, match="page: expected -c to end with 0, got: no"):
        reproduce(folder / "plan.toml")
    assert not (folder / RECORD_FILE).exists()


@pytest.mark.slow
def test_a_card_is_stale_with_other_weights_facts_or_words(tmp_path: Path) -> None:
    entry = shutil.copytree(find_entry("digits/lyanet-certified"), tmp_path / "entry")
    part = CardsPart(name="cards", kind="cards", models=[str(entry)], proofs=True)
    api.card(str(entry))

    def reasons() -> str:
        return ", ".join(state_of(part, None).reasons)

    proved = entry / PROVED_FILE
    assert reasons() == ("" if proved.is_file() else "entry: never certified")
    whole = {name: (entry / name).read_text() for name in (CARD_FILE, MEASURED_FILE)}
    (entry / CARD_FILE).write_text("\n## What it is\nanother\n")
    assert "its card is not what is known of it" in reasons() or not proved.is_file()
    facts = json.loads(whole[MEASURED_FILE])
    (entry / MEASURED_FILE).write_text(json.dumps(facts | {"digest": "0"}))
    assert "measured with other weights" in reasons()
    (entry / MEASURED_FILE).write_text(json.dumps(facts | {"torch": "1.0"}))
    assert "measured with torch 1.0" in reasons()
    (entry / MEASURED_FILE).write_text(whole[MEASURED_FILE])
    if proved.is_file():
        content = json.loads(proved.read_text())
        proved.write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
        found = state_of(part, None)
        assert "certified with other weights" in found.reasons[0]
        assert found.seconds is not None
        assert found.seconds > 0


@pytest.mark.slow
def test_claims_are_stale_by_seed_and_by_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(ROOT / "reports" / "lyanet-claims", tmp_path / "claims")
    part = ClaimsPart(name="claims", kind="claims", out=str(folder))
    # As if the committed measurements were of the recipes and protocols of today.
    monkeypatch.setattr(state, "stored", lambda _study, seed, _folder: done[seed])
    done = {seed: read_seed(seed, folder) for seed in study_of("mnist").seeds}
    write_claims(list(done.values()), folder)
    assert not state_of(part, None).stale
    (folder / "report.md").write_text("another")
    assert state_of(part, None).reasons == ("report.md is not what its results give",)
    done[2] = done[2].model_copy(update={"clean": {}})
    (reason,) = state_of(part, None).reasons
    assert reason.endswith("of seed 2")


def test_plans_are_checked_and_the_committed_one_names_what_there_is(folder: Path) -> None:
    (folder / "plan.toml").write_text(PLAN.replace('name = "index"', 'name = "toy"'))
    with pytest.raises(UsageError, match="parts of different names, got toy twice"):
        reproduce(folder / "plan.toml")
    (folder / "plan.toml").write_text(PLAN)
    with pytest.raises(UsageError, match="expected one of toy, index, page, got 'other'"):
        reproduce(folder / "plan.toml", only=["other"])
    parts = read_plan(ROOT / "reports" / "plan.toml").part
    suites = {part.out: part.suite for part in parts if isinstance(part, SuitePart)}
    for suite in suites.values():
        load_suite(suite)
    assert suites.keys() == api.committed_leaderboards().keys()
    claims = {part.out for part in parts if isinstance(part, ClaimsPart)}
    committed = (ROOT / "reports").glob("lyanet-claims*")
    assert claims == {folder.relative_to(ROOT).as_posix() for folder in committed}
