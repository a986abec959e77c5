"""A kind of job is one class; its rows are its table, its reading and its columns."""

import csv
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import robustness.evaluation.suite as suites
from robustness import api
from robustness.errors import UsageError
from robustness.evaluation import runner
from robustness.evaluation.jobs import KINDS, Asked, Findings, Kind, Row, SampleRow, Work
from robustness.evaluation.jobs.base import register_kind
from robustness.evaluation.jobs.rows import as_stored, columns, row_of, statement_of, values_of
from robustness.evaluation.plan import Job
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Suite
from robustness.reporting.columns import COLUMNS, Column
from robustness.results.leaderboard import STORE_FILE, Leaderboard

SUITE = {
    "name": "toys",
    "data": "digits",
    "samples": 40,
    "models": ["digits/resnet"],
    "threats": [{"norm": "Linf", "eps": [0.05]}],
    "jobs": ["toy"],
}


class Light(StrEnum):
    DARK = "dark"
    BRIGHT = "bright"


@dataclass(frozen=True)
class ToyRow(SampleRow):
    light: Light
    mean: float
    even: bool
    ratio: float | None
    corner: bytes


class Toy(Kind[ToyRow]):
    """How bright images are: nothing of it stands anywhere but here."""

    name = "toy"
    version = 1
    row = ToyRow

    def plan(self, asked: Asked) -> Iterator[Job]:
        yield self.job(asked, 36, name="brightness")

    def run(self, work: Work) -> list[ToyRow]:
        means = work.images.mean(dim=(1, 2, 3)).tolist()
        return [
            ToyRow(
                index,
                Light.BRIGHT if mean > 0.3 else Light.DARK,
                mean,
                index % 2 == 0,
                float("nan") if index % 2 else 1 / (1 + index),
                image.flatten()[:2].numpy().tobytes(),
            )
            for index, mean, image in zip(work.unit.indices, means, work.images, strict=True)
        ]

    def failed(self, work: Work, reason: str) -> list[ToyRow]:
        return []

    def summarise(self, findings: Findings[ToyRow]) -> dict[str, Any]:
        bright = sum(row.light is Light.BRIGHT for row in findings.rows)
        return {"further": {self.name: {"bright": bright, "of": len(findings.rows)}}}


@pytest.fixture(autouse=True)
def report_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn."""

    def leaderboard_alone(leaderboard: Leaderboard, folder: Path) -> None:
        (folder / "leaderboard.json").write_text(leaderboard.to_json())

    monkeypatch.setattr(api, "write_report", leaderboard_alone)


@pytest.fixture
def toy() -> Iterator[None]:
    with KINDS.having(Toy()):
        yield


def run(out: Path, **changes: object) -> Leaderboard:
    return api.evaluate(Suite.model_validate(SUITE | changes), out=out, workers=1)


def rows_in(out: Path, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(out / STORE_FILE)) as store:
        return store.execute(f"SELECT * FROM {table} ORDER BY sample").fetchall()


@pytest.mark.usefixtures("toy")
def test_a_kind_of_ones_own_is_planned_stored_read_shown_and_exported(tmp_path: Path) -> None:
    board = run(tmp_path)
    (entry,) = board.models
    stored = rows_in(tmp_path, "toy_1")
    assert len(stored) == 64  # of two shards, of which 36 samples count
    bright = entry.further["toy"]
    assert bright["of"] == 36
    assert 0 < bright["bright"] < 36
    column = Column("bright", lambda entry: float(entry.further["toy"]["bright"]))
    with COLUMNS.having(column):
        assert column.of(entry) == bright["bright"]

    # Rendered from the store, it says the same; its rows are those of the counted samples.
    again = api.render(tmp_path, tmp_path / "again", rows=True)
    assert again.comparable() == board.comparable()
    files = {file.stem for file in (tmp_path / "again/rows").iterdir()}
    assert files == {"clean", "toy"}
    with (tmp_path / "again/rows/toy.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    names = ["sample", "light", "mean", "even", "ratio", "corner"]
    assert list(table[0]) == ["model", "name", "norm", "eps", *names]
    assert {row["sample"] for row in table} == {
        str(index) for index in board.models[0].samples.index[:36]
    }
    known = {str(row[1]): row for row in stored}
    for row in table:
        _, _, light, mean, even, ratio, corner = known[row["sample"]]
        assert (row["name"], row["light"], float(row["mean"])) == ("brightness", light, mean)
        assert row["even"] == str(even)
        assert row["ratio"] == ("" if ratio is None else repr(ratio))
        assert bytes.fromhex(row["corner"]) == corner


@pytest.mark.usefixtures("toy")
def test_a_damaged_unit_of_it_is_named_kept_and_computed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    board, whole = run(tmp_path), rows_in(tmp_path, "toy_1")
    with closing(sqlite3.connect(tmp_path / STORE_FILE, isolation_level=None)) as store:
        store.execute("UPDATE toy_1 SET mean = 0.5 WHERE sample = (SELECT min(sample) FROM toy_1)")
    capsys.readouterr()
    assert run(tmp_path).comparable() == board.comparable()
    said = capsys.readouterr().err
    assert "of which toy brightness of digits/resnet is damaged" in said
    assert "of its 4 finished units 3 are taken over" in said
    assert rows_in(tmp_path, "toy_1") == whole


def test_a_store_keeps_the_rows_of_a_kind_that_is_not_here_and_of_other_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with KINDS.having(Toy()):
        first = run(tmp_path)
    whole = rows_in(tmp_path, "toy_1")
    with pytest.raises(UsageError, match=r"expected a kind of job, one of clean, .* got 'toy'"):
        run(tmp_path)
    with pytest.raises(UsageError, match="that this version planned"):
        api.render(tmp_path, tmp_path / "again")
    run(tmp_path, jobs=[])
    assert rows_in(tmp_path, "toy_1") == whole
    with KINDS.having(Toy()), Store(tmp_path / STORE_FILE) as store:
        before = store.done()
    monkeypatch.setattr(Toy, "version", 2)
    with KINDS.having(Toy()):
        assert run(tmp_path).comparable() == first.comparable()
        with Store(tmp_path / STORE_FILE) as store:
            assert len(store.done() - before) == 2  # computed again, under keys of its own
    assert rows_in(tmp_path, "toy_1") == whole
    assert [row[1:] for row in rows_in(tmp_path, "toy_2")] == [row[1:] for row in whole]
    assert capsys.readouterr().err == ""
    # They are checked like all others, and taken over with what is whole of a damaged store.
    with closing(sqlite3.connect(tmp_path / STORE_FILE, isolation_level=None)) as store:
        store.execute("UPDATE toy_1 SET mean = 0.5 WHERE sample = 33")
    with Store(tmp_path / STORE_FILE):
        said = capsys.readouterr().err
    assert "of which toy brightness of digits/resnet is damaged" in said
    assert "of its 6 finished units 5 are taken over" in said
    assert len(rows_in(tmp_path, "toy_1")) == 32
    assert len(rows_in(tmp_path, "toy_2")) == 64


def test_the_rows_of_every_kind_make_tables_that_give_them_back() -> None:
    """Whoever changes a row raises the version of its kind, and writes here what it is now."""
    assert {kind.name: kind.version for kind in KINDS.values()} == {
        "clean": 1,
        "flow": 1,
        "decay": 1,
        "envelope": 2,
        "certificate": 4,
        "attack": 1,
        "worst-case": 2,
        "audit": 1,
        "nearest": 2,
        "flags": 1,
    }
    names = {
        kind.name: " ".join(c.declaration for c in columns(kind.row)) for kind in KINDS.values()
    }
    assert names["flow"] == "sample INTEGER NOT NULL prediction INTEGER"
    assert names["attack"] == (
        "sample INTEGER NOT NULL status TEXT NOT NULL prediction INTEGER linf REAL l2 REAL "
        "rejected INTEGER NOT NULL detail TEXT NOT NULL"
    )
    row = ToyRow(3, Light.DARK, 1, True, float("nan"), b"\x00")
    assert values_of(row) == (3, "dark", 1.0, 1, None, b"\x00")
    assert row_of(ToyRow, values_of(row)) == ToyRow(3, Light.DARK, 1.0, True, None, b"\x00")
    assert [r.sample for r in as_stored([ToyRow(5, *values_of(row)[1:]), row])] == [3, 5]
    with closing(sqlite3.connect(":memory:")) as database:
        for kind in KINDS.values():
            database.execute(statement_of("t", kind.row))
            assert not database.execute("SELECT * FROM t").fetchall()
            database.execute("DROP TABLE t")
        database.execute(statement_of("t", ToyRow))
        database.execute("INSERT INTO t VALUES ('key', ?, ?, ?, ?, ?, ?)", values_of(row))
        ((_, *stored),) = database.execute("SELECT * FROM t").fetchall()
    assert row_of(ToyRow, stored) == row_of(ToyRow, values_of(row))
    for wrong in ((3, "dim", 1.0, 1, None, b""), (3, "dark", None, 1, None, b"")):
        with pytest.raises(ValueError, match=r"dim|mean"):
            row_of(ToyRow, wrong)


def test_what_no_store_holds_is_no_field_of_a_row_and_names_of_kinds_are_plain() -> None:
    @dataclass(frozen=True)
    class Strange(Row):
        IDENTITY = ("names",)
        names: list[str]

    with pytest.raises(TypeError, match="for the field names of a row"):
        columns(Strange)
    for changes in ({"name": "Toy; DROP"}, {"name": "toy", "version": 0}):
        with pytest.raises(ValueError, match="lower-case words"):
            register_kind(type("Other", (Toy,), changes))
    with pytest.raises(UsageError, match="a second time"):
        register_kind(type("Other", (Toy,), {"name": "clean"}))


def test_no_file_but_its_own_and_its_section_names_the_columns_of_a_kind() -> None:
    """What a stranger does not touch: the store, the schedule, the runner and the summary."""
    package = Path(suites.__file__).parent
    for name in ("store", "schedule", "runner", "reader", "kept", "plan", "planning"):
        text = (package / f"{name}.py").read_text()
        for word in ("linf", "prediction", "found_by", "potential", "threshold", ".queries"):
            assert word not in text, f"{name}.py names {word}"


@pytest.mark.slow
def test_a_suite_is_validated_once_and_a_model_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated, loaded, load = [], [], runner.load_model
    routine = suites.routine
    monkeypatch.setattr(suites, "routine", lambda: validated.append(1) or routine())
    monkeypatch.setattr(runner, "load_model", lambda name: loaded.append(name) or load(name))
    file = tmp_path / "small.toml"
    file.write_text(
        'name = "small"\ndata = "digits"\nmodels = ["digits/*"]\ncertificates = ["lyapunov"]\n'
        'threats = [{ norm = "L2", eps = [0.1] }]\n'
    )
    names = ["digits/resnet"]
    api.evaluate(str(file), out=tmp_path, workers=1, samples=1, models=names, seed=3)
    assert (len(validated), loaded) == (1, names)
    validated.clear()
    loaded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(sqlite3, "connect")  # there is no database behind a single model's answer
        api.attack("digits/resnet", "Linf", "0.05", "fgsm", samples=2, workers=1)
        assert loaded == ["digits/resnet"]
        loaded.clear()
        api.certify("digits/resnet", certificate="lipschitz-margin", samples=2, workers=1, audit=1)
    assert (len(validated), loaded) == (1, ["digits/resnet"])
