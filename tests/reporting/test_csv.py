import csv
import io

import boards
import pytest

from robustness.certificates.base import Kind
from robustness.reporting.spreadsheet import csv_of
from robustness.reporting.tables import csv_text, samples_csv
from robustness.results.leaderboard import Proportion, WithoutFlow


def rows_of(board):
    return list(csv.DictReader(io.StringIO(csv_text(board))))


def test_values_survive_the_round_trip_to_the_last_bit(board):
    found = {
        (r["model"], r["norm"], float(r["eps"]), r["quantity"]): r
        for r in rows_of(board)
        if r["quantity"] in ("certified", "attacked")
    }
    for entry in board.models:
        for bracket in entry.brackets:
            for side in ("certified", "attacked"):
                row = found[entry.name, bracket.norm.value, bracket.eps, side]
                value = getattr(bracket, side)
                assert (int(row["count"]), int(row["total"])) == (value.count, value.total)
                numbers = (float(row["value"]), float(row["low"]), float(row["high"]))
                assert numbers == (value.value, value.low, value.high)


def test_every_model_has_one_clean_and_one_errors_row(board):
    rows = rows_of(board)
    for quantity in ("clean", "errors"):
        names = [row["model"] for row in rows if row["quantity"] == quantity]
        assert names == [entry.name for entry in board.models]
    failed = next(r for r in rows if r["quantity"] == "errors" and r["model"] == "digits/node")
    assert failed["count"] == "3"


def test_certificates_carry_their_kind_and_refusals_have_no_row(board):
    rows = [row for row in rows_of(board) if row["quantity"] == "certificate"]
    assert {row["kind"] for row in rows} == {Kind.CERTIFIED.value, Kind.ESTIMATE.value}
    assert "digits/resnet" not in {row["model"] for row in rows}


def test_attack_rows_name_the_attack_and_its_own_total(board):
    rows = [row for row in rows_of(board) if row["method"] == "autoattack"]
    assert len(rows) == 8
    assert {row["total"] for row in rows} == {str(boards.SUBSET)}


def test_a_comma_in_a_name_stays_in_its_cell(board):
    odd = boards.edit(board, "digits/node", name='a,"b"')
    assert 'a,"b"' in {row["model"] for row in rows_of(odd)}


def test_samples_have_a_row_per_model_norm_and_image(board):
    rows = list(csv.DictReader(io.StringIO(samples_csv(board))))
    assert len(rows) == len(board.models) * 2 * boards.SAMPLES
    entry = board.models[-1]
    mine = [r for r in rows if (r["model"], r["norm"]) == (entry.name, "L2")]
    known = entry.samples.norms[-1]
    assert [float(r["certified_radius"]) for r in mine] == known.radius
    assert [float(r["adversarial_distance"] or "nan") for r in mine] == [
        d if d is not None else pytest.approx(float("nan"), nan_ok=True) for d in known.distance
    ]


@pytest.mark.parametrize(
    ("name", "cell"),
    [("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@A1", "'@A1"), ("\t=1\r", r"\t=1\r")],
)
def test_no_text_is_a_formula_to_a_spreadsheet(name, cell):
    text = csv_of(("model", "value"), [(name, -0.5)])
    (row,) = csv.DictReader(io.StringIO(text, newline=""))
    assert row == {"model": cell, "value": "-0.5"}


def test_names_of_models_are_no_formulas_in_either_table(board):
    first = board.models[0].model_copy(update={"name": "=1+1"})
    poisoned = board.model_copy(update={"models": [first]})
    for text in (csv_text(poisoned), samples_csv(poisoned)):
        assert {row["model"] for row in csv.DictReader(io.StringIO(text))} <= {"'=1+1"}


def test_a_neural_ode_has_rows_of_what_it_predicts_without_its_flow(board):
    flow = WithoutFlow(other=Proportion.of(6, 599), clean=Proportion.of(570, 599))
    rows = rows_of(boards.edit(board, "digits/lyanet", without_flow=flow))
    found = {r["quantity"]: (r["model"], r["count"]) for r in rows if "flow" in r["quantity"]}
    assert found == {
        "other_without_flow": ("digits/lyanet", "6"),
        "clean_without_flow": ("digits/lyanet", "570"),
    }
