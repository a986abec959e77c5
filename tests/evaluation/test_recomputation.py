"""A report that is what it says agrees with itself, and one that was touched up is found out."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import robustness.api as api
from robustness.cli import app
from robustness.errors import UsageError
from robustness.evaluation.database import DamagedError
from robustness.evaluation.jobs import Result
from robustness.evaluation.packing import PACKED_FILE
from robustness.evaluation.plan import Job, Unit
from robustness.evaluation.recomputation import Recomputation, draw, stored_units
from robustness.evaluation.store import Agreement, Store
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import LEADERBOARD_FILE, STORE_FILE, Leaderboard, Proportion
from tests.evaluation.shortening import shorten
from tests.evaluation.test_store import sql

# Units of both phases, of which some start from others: audits from radii, the worst case at the
# smaller radius from what is found at the larger one.
SUITE = Suite.model_validate(
    {
        "name": "again",
        "data": "digits",
        "samples": 4,
        "models": ["digits/lyanet-certified"],
        "certificates": ["target-seeking"],
        "audit": {"samples": 1, "largest": 1},
        "threats": [{"norm": "L2", "eps": [0.25, 0.5]}],
        "attacks": [{"kind": "pgd", "steps": 4}, {"kind": "worst-case", "effort": "quick"}],
    }
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Short audits, and no pages."""

    def leaderboard_alone(leaderboard: Leaderboard, folder: Path) -> None:
        (folder / LEADERBOARD_FILE).write_text(leaderboard.to_json())

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        patch.setattr(api, "write_report", leaderboard_alone)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    api.evaluate(SUITE, out=folder, workers=1)
    api.render(folder, folder / "packed", pack=True)
    return folder


@pytest.fixture
def report(run: Path, tmp_path: Path) -> Path:
    """A copy of the report, to touch up."""
    for name in (STORE_FILE, LEADERBOARD_FILE):
        shutil.copy(run / name, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_all_of_a_report_gives_the_same_again_and_nothing_of_it_changes(run: Path) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    found = api.recompute(run / "packed", units=10_000, workers=1)
    assert found.agrees
    assert found.same.count == found.same.total == found.units
    with Store(run / STORE_FILE, must_exist=True) as store:
        kinds = {job.kind for job, *_ in store.costs()}
        assert found.units == len(store.done())
    assert kinds >= {"clean", "attack", "certificate", "worst-case", "audit"}
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_few_units_by_the_command_and_how_sure_they_make(run: Path) -> None:
    command = ["recompute", str(run), "--units", "3", "--workers", "1", "--seed", "77"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "77" in done.stdout
    # Three of three: the exact interval begins at 0.025 ** (1 / 3).
    assert "3 of 3 units" in done.stdout
    assert "29.2-100" in done.stdout


def touched_up(kind: str, change: Callable[[object], object]) -> Callable[[Path], None]:
    """Write other rows over those of the last unit of a kind, with a digest that is right."""

    def touch(file: Path) -> None:
        with Store(file) as store:
            units = stored_units(store.last_run().plan, store)
            job, unit = next((job, unit) for job, unit in reversed(units) if job.kind == kind)
            rows = [change(row) for row in store.rows(job, [unit.key])]
            store.add(Result(unit.key, kind, rows, 1.0), job, "digits/lyanet-certified")

    return touch


@pytest.mark.slow
def test_rows_that_were_touched_up_are_named(report: Path) -> None:
    touched_up("worst-case", lambda row: replace(row, queries=row.queries + 1))(report / STORE_FILE)
    api.render(report, report)
    command = ["recompute", str(report), "--units", "10000", "--workers", "1", "--quiet"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    (named,) = [line for line in done.stdout.splitlines() if ": differs: " in line]
    assert named.startswith(f"{report}: differs: worst-case L2 0.5 of digits/lyanet-certified")


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(1.0, Agreement.SAME), (1 + 1e-9, Agreement.CLOSE), (1 + 1e-5, Agreement.OTHER)],
)
def test_last_bits_that_differ_are_told_from_other_numbers(
    factor: float, expected: Agreement, report: Path
) -> None:
    with Store(report / STORE_FILE) as store:
        job, unit = next(
            u for u in stored_units(store.last_run().plan, store) if u[0].kind == "audit"
        )
        rows = store.rows(job, [unit.key])
        changed = [replace(row, radius=factor * row.radius) for row in rows]
        assert store.agreement(Result(unit.key, "audit", changed, 1.0), job) is expected
        fewer = Result(unit.key, "audit", rows[1:], 1.0)
        assert store.agreement(fewer, job) is Agreement.OTHER


def test_a_radius_that_was_touched_up_leaves_what_starts_from_it_unknown(report: Path) -> None:
    doubled = touched_up("certificate", lambda row: replace(row, radius=2 * row.radius))
    doubled(report / STORE_FILE)
    with pytest.raises(DamagedError, match="units of the last complete run are missing"):
        api.recompute(report, units=1, workers=1)
    (report / LEADERBOARD_FILE).unlink()
    with pytest.raises(UsageError, match="of the code, weights and images at hand, got none of"):
        api.recompute(report, units=1, workers=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda board: board["models"][0]["clean"].update(count=1),
        lambda board: board.update(computed_by=["a" * 40]),
        lambda board: board["timings"].update({"wall seconds of this run": 1.0}),
    ],
)
def test_a_summary_that_its_store_does_not_give_is_named(
    change: Callable[[dict], object], report: Path
) -> None:
    file = report / LEADERBOARD_FILE
    assert api.recompute(report, units=1, workers=1).agrees
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    for named in (report, report / STORE_FILE):
        found = api.recompute(named, units=1, workers=1)
        assert found.different == [f"{LEADERBOARD_FILE} is not what the store gives"]
        assert not found.agrees


@pytest.mark.parametrize("what", ["jobs", "models", "images"])
def test_a_run_that_says_of_itself_what_is_not_so_is_refused(what: str, report: Path) -> None:
    with Store(report / STORE_FILE) as store:
        run = store.last_run()
        named = [replace(model, name="digits/resnet") for model in run.plan.models]
        forged = {
            "jobs": {"jobs": [job for job in run.plan.jobs if job.kind != "attack"]},
            "models": {"models": named},
            "images": {"order": run.plan.order[::-1]},
        }[what]
        number = store.begin_run(replace(run.plan, **forged), run.environment)
        store.end_run(number, 1.0)
    (report / LEADERBOARD_FILE).unlink()
    with pytest.raises(UsageError, match=f"got one of other {what}"):
        api.recompute(report, units=1, workers=1)


def test_what_was_found_of_one_report_is_told_though_the_next_fails(report: Path) -> None:
    content = json.loads((report / LEADERBOARD_FILE).read_text())
    (report / LEADERBOARD_FILE).write_text(json.dumps(content | {"computed_by": ["nobody"]}))
    command = ["recompute", str(report), str(report / "none"), "--units", "1", "--workers", "1"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    assert "differs: leaderboard.json" in done.stdout


def test_results_of_other_code_are_refused_in_one_line(report: Path) -> None:
    sql("DELETE FROM shards WHERE kind = 'attack'")(report / STORE_FILE)
    with pytest.raises(DamagedError, match="units of the last complete run are missing"):
        api.recompute(report, units=1, workers=1)
    (report / LEADERBOARD_FILE).unlink()
    with pytest.raises(UsageError, match=r"got none of \d+ units of \d+, the first of attack pgd"):
        api.recompute(report, units=1, workers=1)
    (report / STORE_FILE).unlink()
    done = CliRunner().invoke(app, ["recompute", str(report)])
    assert isinstance(done.exception, UsageError)
    assert "no such file" in str(done.exception)
    assert not (report / PACKED_FILE).exists()


@pytest.mark.slow
def test_nobody_can_know_which_units_are_drawn(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = Proportion.of(1, 1)

    def nothing(crew, store, number, seed, commit, quiet) -> Recomputation:
        return Recomputation(
            same=same, to_the_bit=1, units=1, different=[], seed=seed, seconds=0.0, commit=commit
        )

    monkeypatch.setattr(api, "recomputation", nothing)
    assert len({api.recompute(run, workers=1).seed for _ in range(4)}) == 4
    assert api.recompute(run, seed=5, workers=1).seed == 5


def test_units_are_drawn_alike() -> None:
    job = Job("clean", 1, 0, 1, 20)
    units = [(job, Unit(str(number), [number], 0)) for number in range(20)]
    drawn = Counter(unit.key for seed in range(2_000) for _, unit in draw(units, 5, seed))
    # Each is drawn by a quarter of the seeds: 500, with a standard deviation of 19.4.
    assert all(abs(drawn[unit.key] - 500) < 5 * 19.4 for _, unit in units)
    assert draw(units, 5, 1) == draw(units, 5, 1) != draw(units, 5, 2)
    assert draw(units, 21, 0) == units
