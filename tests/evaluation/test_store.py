"""A store that was damaged is found out, kept, and computed again; none is half made."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import robustness.api as api
import robustness.evaluation.database as database
from robustness.api import evaluate, render
from robustness.attacks import Status, worst_case
from robustness.boundary import run
from robustness.errors import UsageError
from robustness.evaluation.database import DamagedError
from robustness.evaluation.jobs import Result, audit, clean, nearest
from robustness.evaluation.plan import Job
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.results.leaderboard import STORE_FILE, Leaderboard
from robustness.threat import Norm, ThreatModel

SUITE = Suite.model_validate(
    {
        "name": "damaged",
        "data": "digits",
        "samples": 40,
        "models": ["digits/resnet"],
        "certificates": ["lipschitz-margin"],
        "audit": {"samples": 1, "largest": 1},
        "threats": [{"norm": "Linf", "eps": [0.05]}],
        "attacks": [{"kind": "fgsm"}],
    }
)
# One unit of fgsm, whose rows the damage is done to.
UNIT = "key = (SELECT min(key) FROM shards WHERE kind = 'attack')"


@pytest.fixture(scope="module", autouse=True)
def nothing_slow() -> Iterator[None]:
    """Neither figures nor the audit matter here."""

    def leaderboard_alone(leaderboard: Leaderboard, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "leaderboard.json").write_text(leaderboard.model_dump_json())

    def unbroken(model, images, labels, *rest):
        return worst_case(model, images, labels, ThreatModel(Norm.LINF, 0.05), [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "write_report", leaderboard_alone)
        patch.setattr(audit, "audit", unbroken)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Leaderboard]:
    """The folder of an undisturbed run, and its leaderboard."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, evaluate(SUITE, out=folder, workers=1)


@pytest.fixture
def folder(whole: tuple[Path, Leaderboard], tmp_path: Path) -> Path:
    """A copy of that folder's store, to damage."""
    shutil.copy(whole[0] / STORE_FILE, tmp_path)
    return tmp_path


def sql(*statements: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        with closing(sqlite3.connect(store, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    return damage


def overwritten(start: float, length: int) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        content = bytearray(store.read_bytes())
        first = int(start * len(content))
        content[first : first + length] = b"\xa5" * length
        store.write_bytes(content)

    return damage


def cut(share: float) -> Callable[[Path], None]:
    return lambda store: os.truncate(store, int(share * store.stat().st_size))


UNITS_DAMAGED = {
    "a row is missing": sql(f"DELETE FROM attack_1 WHERE {UNIT} AND sample % 2"),
    "all rows of a unit are missing": sql(f"DELETE FROM attack_1 WHERE {UNIT}"),
    "a row too many": sql(
        f"INSERT INTO attack_1 SELECT key, -1, status, prediction, linf, l2, "
        f"rejected, detail FROM attack_1 WHERE {UNIT} LIMIT 1"
    ),
    "a radius that is no number": sql("UPDATE certificate_4 SET radius = 'nan'"),
    "a radius that is another": sql("UPDATE certificate_4 SET radius = 0.5"),
    "a status that is none": sql("UPDATE attack_1 SET status = 'splendid'"),
    "a negative count": sql("UPDATE attack_1 SET rejected = -1"),
    "text that is no UTF-8": sql("UPDATE attack_1 SET detail = CAST(x'ff00fe' AS TEXT)"),
    "seconds that are no number": sql("UPDATE shards SET seconds = 'long'"),
    "a note of another kind": sql("UPDATE shards SET kind = 'sqlite_master' WHERE kind = 'clean'"),
    "a byte": lambda store: store.write_bytes(store.read_bytes().replace(b"robust", b"Robust", 1)),
    "a checksum": sql("UPDATE shards SET digest = ''"),
}
FILES_DAMAGED = {
    "an empty file": cut(0.0),
    "a file cut in its header": cut(0.001),
    "half a file": cut(0.5),
    "another header": overwritten(0.0, 100),
    "pages overwritten": overwritten(0.3, 20000),
    "a table missing": sql("DROP TABLE attack_1"),
    "a column missing": sql("ALTER TABLE certificate_4 DROP COLUMN radius"),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON attack_1 BEGIN DELETE FROM clean_1; END"),
    "a table that holds no rows": sql("CREATE TABLE odd_1 (key TEXT, other INTEGER)"),
    "a view": sql("CREATE VIEW odd_1 AS SELECT * FROM attack_1"),
    "a store half made": sql("PRAGMA user_version = 0", "DROP TABLE runs", "DROP TABLE clean_1"),
}


def check(folder: Path, whole: tuple[Path, Leaderboard], capsys: pytest.CaptureFixture[str]) -> str:
    """Refused where it may only be read; else kept as it is, and the run as if undamaged."""
    before = (folder / STORE_FILE).read_bytes()
    assert run(lambda: render(folder, folder / "again")) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert not (folder / "again").exists()
    assert (folder / STORE_FILE).read_bytes() == before
    assert evaluate(SUITE, out=folder, workers=1).comparable() == whole[1].comparable()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "kept as results-damaged-1.sqlite" in said
    assert (folder / "results-damaged-1.sqlite").read_bytes() == before
    # The next to open it finds nothing to say, and nothing is left lying about.
    with Store(folder / STORE_FILE):
        assert capsys.readouterr().err == ""
    assert not list(folder.glob(".*"))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("damage", UNITS_DAMAGED.values(), ids=UNITS_DAMAGED)
def test_damaged_units_are_named_kept_and_computed_again(
    damage: Callable[[Path], None],
    folder: Path,
    whole: tuple[Path, Leaderboard],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder / STORE_FILE)
    assert "of digits/resnet" in check(folder, whole, capsys)


@pytest.mark.parametrize("damage", FILES_DAMAGED.values(), ids=FILES_DAMAGED)
def test_a_damaged_file_is_kept_under_another_name(
    damage: Callable[[Path], None],
    folder: Path,
    whole: tuple[Path, Leaderboard],
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder / STORE_FILE)
    check(folder, whole, capsys)


@pytest.mark.parametrize("plan", ["'[1, 2]'", "substr(plan, 1, 500)"])
def test_no_report_is_made_of_a_plan_that_is_none(
    plan: str,
    folder: Path,
    whole: tuple[Path, Leaderboard],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sql(f"UPDATE runs SET plan = {plan}")(folder / STORE_FILE)
    assert "the note of run 1" in check(folder, whole, capsys)


def test_what_is_whole_of_a_damaged_store_is_taken_over(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store(folder / STORE_FILE) as store:
        everything = store.done()
    sql(f"UPDATE attack_1 SET status = 'robust' WHERE {UNIT}")(folder / STORE_FILE)
    with Store(folder / STORE_FILE) as store:
        assert len(everything - store.done()) == 1
    assert "attack fgsm Linf 0.05 of digits/resnet" in capsys.readouterr().err
    sql("DROP TABLE certificate_4")(folder / STORE_FILE)
    with Store(folder / STORE_FILE) as store:
        assert len(everything - store.done()) == 3


def test_a_unit_that_is_missing_altogether_is_no_report(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("attack", "certificate"):
        sql(f"DELETE FROM shards WHERE kind = '{kind}'")(folder / STORE_FILE)
        assert run(lambda: render(folder, folder / "again")) == 3
        assert "of the last complete run are missing" in capsys.readouterr().err
        assert not (folder / "again").exists()


def test_damage_during_a_run_is_found_when_rows_are_read(folder: Path) -> None:
    with Store(folder / STORE_FILE) as store:
        plan = store.last_run().plan
        (job,) = (job for job in plan.jobs if job.kind == "attack")
        keys = [unit.key for unit in Schedule(plan, store).units(job)]
        sql("UPDATE attack_1 SET status = 'adversarial'")(folder / STORE_FILE)
        with pytest.raises(DamagedError, match="a unit of kind attack"):
            store.rows(job, keys)


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_of_an_earlier_version_is_kept_under_another_name(
    version: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder / STORE_FILE
    mark = [] if version == 3 else ["PRAGMA application_id = 0"]
    rename = "ALTER TABLE clean_1 RENAME TO clean"
    sql(f"PRAGMA user_version = {version}", *mark, rename)(store)
    before = store.read_bytes()
    with pytest.raises(UsageError, match=f"of version 4, got {version}; run"):
        Store(store, must_exist=True)
    assert not list(folder.glob("*version*"))
    with Store(store) as opened:
        assert opened.done() == set()
    kept = folder / f"results-version-{version}-1.sqlite"
    assert kept.read_bytes() == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert kept.name in said
    with Store(store):
        assert capsys.readouterr().err == ""


def test_a_store_of_a_later_version_is_refused_and_left_alone(folder: Path) -> None:
    sql("PRAGMA user_version = 99")(folder / STORE_FILE)
    with pytest.raises(UsageError, match="of version 4, got 99"):
        Store(folder / STORE_FILE)
    assert [file.name for file in folder.iterdir()] == [STORE_FILE]


def test_other_peoples_databases_and_things_that_are_no_files_are_refused(tmp_path: Path) -> None:
    sql("CREATE TABLE places (url TEXT)")(tmp_path / "foreign.sqlite")
    before = (tmp_path / "foreign.sqlite").read_bytes()
    with pytest.raises(UsageError, match="with the tables places"):
        Store(tmp_path / "foreign.sqlite")
    assert (tmp_path / "foreign.sqlite").read_bytes() == before
    os.mkfifo(tmp_path / "pipe.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    for name in ("pipe.sqlite", "folder.sqlite"):
        with pytest.raises(UsageError, match="no file"):
            Store(tmp_path / name)


def a_unit(rows: int = 3) -> tuple[Result, tuple[Job, str]]:
    content = [clean.Row(number, 1, 1, False, "", None) for number in range(rows)]
    return Result("some key", "clean", content, 0.5), (Job("clean", 1, 0, 1, rows), "digits/resnet")


def test_a_unit_is_whole_as_sqlite_stores_it(tmp_path: Path) -> None:
    unit, (job, model) = a_unit()
    search = Job("nearest", 2, 0, 1, 1, "nearest", Norm.L2)
    found = nearest.Row(
        1, Status.ADVERSARIAL, None, float("nan"), float("inf"), "", 1, 8, 8, None, None
    )
    with Store(tmp_path / STORE_FILE) as store:
        assert store.done() == set()
        for _ in range(2):  # as where two runs compute the same
            store.add(unit, job, model)
        store.add(Result("odd", "nearest", [found], 1.0), search, model)
        assert store.rows(search, ["odd"]) == [replace(found, linf=None)]
    with Store(tmp_path / STORE_FILE, must_exist=True) as store:
        assert store.rows(job, [unit.key]) == unit.rows
        with pytest.raises(DamagedError):
            store.rows(job, ["another"])


@pytest.fixture
def held(folder: Path) -> Iterator[sqlite3.Connection]:
    """A store that another connection writes to and does not finish."""
    connection = sqlite3.connect(folder / STORE_FILE, isolation_level=None, check_same_thread=False)
    with closing(connection):
        connection.execute("BEGIN EXCLUSIVE")
        yield connection


def test_a_store_that_is_held_is_waited_for_with_a_message(
    folder: Path,
    held: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(database, "_SILENCE_SECONDS", 0.1)
    unit, about = a_unit()
    with Store(folder / STORE_FILE) as store:
        release = threading.Timer(0.5, held.execute, ["COMMIT"])
        release.start()
        store.add(unit, *about)
        release.join()
        assert store.rows(about[0], [unit.key]) == unit.rows
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "waiting for another process that holds" in said


def test_a_store_that_stays_held_ends_with_exit_code_3(
    folder: Path,
    held: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(database, "PATIENCE_SECONDS", 0.2)
    assert run(lambda: evaluate(SUITE, out=folder, workers=1)) == 3
    assert "to become free within" in capsys.readouterr().err
    assert not (folder / "leaderboard.json").exists()


@pytest.mark.usefixtures("held")
def test_waiting_is_given_up_on_ctrl_c(folder: Path) -> None:
    unit, about = a_unit()
    interrupt = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
    with Store(folder / STORE_FILE) as store:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            store.add(unit, *about)


def test_two_that_find_one_damaged_store_make_one_new_one(folder: Path) -> None:
    cut(0.5)(folder / STORE_FILE)
    opened: list[Store] = []
    threads = [
        threading.Thread(target=lambda: opened.append(Store(folder / STORE_FILE))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    assert len(list(folder.glob("results-damaged-*.sqlite"))) == 1


# A process of its own, which the limit on the size of its files does not leave.
EVALUATE = """
import resource, sys
from robustness.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.slow
def test_a_full_disk_ends_with_one_line_and_exit_code_3_and_nothing_is_lost(
    whole: tuple[Path, Leaderboard], tmp_path: Path
) -> None:
    suite = tmp_path / "damaged.toml"
    suite.write_text(AS_TOML)
    for size in (20_000, 70_000):
        command = [sys.executable, "-c", EVALUATE, str(size), "evaluate", str(suite)]
        command += ["--out", str(tmp_path / "out"), "--workers", "1", "--quiet"]
        # What measures coverage would write to the full disk as well.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
        # Nor may Python leave halves of compiled files to the processes that come after.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 3, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert "disk" in done.stderr
        assert not (tmp_path / "out" / "leaderboard.json").exists()
    without = Suite.model_validate(SUITE.model_dump(mode="json") | {"certificates": []})
    finished = evaluate(without, out=tmp_path / "out", workers=1)
    assert finished.models[0].clean == whole[1].models[0].clean
    assert finished.models[0].attacks == whole[1].models[0].attacks
    assert not list((tmp_path / "out").glob("*damaged*"))


AS_TOML = """
name = "damaged"
data = "digits"
samples = 40
models = ["digits/resnet"]
threats = [{ norm = "Linf", eps = [0.05] }]
attacks = [{ kind = "fgsm" }]
"""
