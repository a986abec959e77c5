"""What CI systems are told: it fits the schemas it claims, and a planted regression is in it."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import boards
import pytest
import xmlschema
from jsonschema import Draft202012Validator
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from robustness.reporting import ci
from robustness.reporting.quantities import quantities
from robustness.reporting.regression import check

SCHEMAS = Path(__file__).parent / "schemas"
NODE = "digits/node"
HOSTILE = 'my|model"<b>\\ 100%\n::error::\x1b[31m, 1.5'


def valid_json(text: str, schema: str) -> list[dict]:
    content = json.loads(text)
    loaded = json.loads((SCHEMAS / schema).read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(loaded)
    Draft202012Validator(loaded).validate(content)
    return content


@pytest.fixture(scope="module")
def junit_schema() -> xmlschema.XMLSchema:
    return xmlschema.XMLSchema(SCHEMAS / "junit.xsd")


@pytest.fixture
def hostile(board):
    """A run with a planted regression of a model whose name means something everywhere."""
    named = boards.edit(board, NODE, name=HOSTILE)
    return check(boards.shift(named, HOSTILE, "clean", -30), named), named


@pytest.fixture
def runs(board):
    """A passing run, a planted regression, one that cannot be told, and one that is unsound."""
    missing = board.model_copy(update={"models": board.models[1:]})
    unsound = boards.broken(boards.leaderboard(seed=5), boards.violation())
    fallen = boards.shift(board, NODE, "clean", -30)
    return {
        name: (check(run, board), run)
        for name, run in {
            "pass": board,
            "regression": fallen,
            "missing": missing,
            "unsound": unsound,
        }.items()
    }


def test_every_junit_file_fits_the_schema(junit_schema, runs, hostile):
    for verdict, results in [*runs.values(), hostile]:
        junit_schema.validate(ci.junit(verdict, results))


def test_junit_has_a_case_for_each_model_threat_and_metric(board, runs):
    root = ET.fromstring(ci.junit(*runs["regression"]))
    cases = [(c.get("classname"), c.get("name")) for c in root.iter("testcase")]
    assert len(cases) == len(set(cases))
    expected = {(m.name, str(q)) for m in board.models for q in quantities(m)}
    assert expected | {("digits", "soundness"), ("digits", "comparability")} == set(cases)
    assert (NODE, "attacked, Linf 0.1") in cases


def test_junit_shows_the_planted_regression_as_the_one_failure(runs):
    root = ET.fromstring(ci.junit(*runs["regression"]))
    failed = [case for case in root.iter("testcase") if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failed] == [(NODE, "clean")]
    assert "96.8 -> 91.8" in failed[0].find("failure").get("message")
    assert failed[0].find("system-out").text == "baseline 580 of 599, now 550 of 599"
    assert (root.get("failures"), root.get("errors")) == ("1", "0")
    passed = ET.fromstring(ci.junit(*runs["pass"]))
    assert (passed.get("failures"), passed.get("errors")) == ("0", "0")
    assert passed.find(".//failure") is None


def test_junit_shows_what_cannot_be_told_as_an_error(runs):
    root = ET.fromstring(ci.junit(*runs["missing"]))
    failed = [case for case in root.iter("testcase") if case.find("error") is not None]
    assert [(c.get("classname"), c.get("name")) for c in failed] == [("digits/resnet", "presence")]
    assert root.get("errors") == "1"


def test_every_code_quality_report_fits_the_schema_and_shows_the_regression(runs, hostile):
    for verdict, results in [*runs.values(), hostile]:
        valid_json(
            ci.code_quality(verdict, results, "reports/x/leaderboard.json"), "code-quality.json"
        )
    path = "reports/x/leaderboard.json"
    [issue] = json.loads(ci.code_quality(*runs["regression"], path))
    assert issue["check_name"] == "robustness/clean"
    assert issue["severity"] == "major"
    assert "digits/node, clean: 96.8 -> 91.8" in issue["description"]
    assert issue["location"] == {"path": path, "lines": {"begin": 1}}
    assert json.loads(ci.code_quality(*runs["pass"], path)) == []
    unsound = json.loads(ci.code_quality(*runs["unsound"], path))
    assert unsound[0]["severity"] == "blocker"
    assert {issue["severity"] for issue in unsound[1:]} == {"minor"}


def test_a_regression_keeps_its_fingerprint_while_its_size_changes(board):
    further = boards.shift(board, NODE, "clean", -40)
    both = boards.shift(further, NODE, "certified", -30)
    first, second = (
        {i["fingerprint"] for i in json.loads(ci.code_quality(check(run, board), run, "x"))}
        for run in (boards.shift(board, NODE, "clean", -30), both)
    )
    assert first < second
    assert len(second) == len(check(both, board).findings)


def test_annotations_are_single_commands_for_each_regression_and_each_doubt(runs, hostile):
    assert ci.annotations(runs["pass"][0], "x") == []
    [line] = ci.annotations(runs["regression"][0], "a,b.json")
    assert line.startswith("::error file=a%2Cb.json,title=robustness%3A regression::REGRESSION ")
    assert "96.8 -> 91.8" in line
    [line] = ci.annotations(runs["missing"][0], "x")
    assert line.startswith("::warning file=x,")
    [line] = ci.annotations(hostile[0], "x")
    assert "\n" not in line
    assert "100%25%0A" in line


def test_no_more_annotations_than_github_shows(board):
    fallen = board
    for entry in board.models:
        fallen = boards.shift(fallen, entry.name, "attacked", -30)
    lines = ci.annotations(check(fallen, board), "x")
    assert len(lines) == 10
    assert "23 further findings" in lines[-1]


def test_the_summary_names_the_regression_and_every_number(board, runs):
    verdict, results = runs["regression"]
    text = ci.summary(verdict, results)
    assert text.startswith("## Robustness of digits: regression\n")
    assert "- REGRESSION digits/node, clean: 96.8" in text
    assert "| digits/node | clean | 96.8 | 91.8 | -5.0 | - | **regression** |" in text
    rows = [line for line in text.splitlines() if line.startswith("| digits/")]
    assert len(rows) == sum(len(quantities(entry)) for entry in board.models)
    assert "**regression**" not in ci.summary(*runs["pass"])


def test_words_of_others_end_no_cell_and_are_no_markup(hostile):
    text = ci.summary(*hostile)
    row = next(line for line in text.splitlines() if line.startswith("| my"))
    assert row.replace("\\|", "").count("|") == 8
    assert "<b>" not in text
    assert "\x1b" not in text


def test_metrics_are_openmetrics_and_hold_the_planted_number(runs, hostile):
    families = {
        family.name: family
        for family in text_string_to_metric_families(ci.open_metrics(runs["regression"][1]))
    }
    samples = families["robustness_accuracy"].samples
    clean = {s.labels["model"]: s.value for s in samples if s.labels["metric"] == "clean"}
    assert clean[NODE] == pytest.approx(550 / 599, abs=1e-6)
    attacked = [s for s in samples if s.labels["metric"] == "attacked"]
    assert {(s.labels["norm"], s.labels["eps"]) for s in attacked} >= {("Linf", "0.1"), ("L2", "1")}
    failed = families["robustness_failed_samples"].samples
    assert {s.labels["model"]: s.value for s in failed}[NODE] == 3
    assert families["robustness_violations"].samples[0].value == 0
    names = {
        s.labels["model"]
        for family in text_string_to_metric_families(ci.open_metrics(hostile[1]))
        for s in family.samples
        if s.labels
    }
    assert any(name.startswith('my|model"<b>\\ 100%') for name in names)


def test_trackers_get_accuracies_that_are_better_bigger(board, runs):
    benches = valid_json(ci.bigger_is_better(runs["regression"][1]), "benchmark.json")
    values = {bench["name"]: bench for bench in benches}
    assert len(values) == len(benches) == len(board.models) * 17
    assert values["digits/node clean"]["value"] == pytest.approx(100 * 550 / 599)
    assert values["digits/node clean"]["extra"] == "550 of 599 samples"
    before = {b["name"]: b["value"] for b in json.loads(ci.bigger_is_better(runs["pass"][1]))}
    fell = [name for name, bench in values.items() if bench["value"] < before[name]]
    assert fell == ["digits/node clean"]


def test_trackers_get_widths_failures_and_costs_that_are_better_smaller(board):
    worse = boards.edit(boards.shift(board, NODE, "certified", -30), NODE, errors=30)
    benches = valid_json(ci.smaller_is_better(worse), "benchmark.json")
    values = {bench["name"]: bench["value"] for bench in benches}
    before = {b["name"]: b["value"] for b in json.loads(ci.smaller_is_better(board))}
    rose = [name for name in values if values[name] > before[name]]
    assert "digits/node failed" in rose
    assert any(name.startswith("digits/node width, ") for name in rose)
    assert values["digits/lyanet target-seeking, L2"] == 4.25


def test_equal_verdicts_give_equal_bytes(board):
    def everything() -> list[str]:
        fallen = boards.shift(board, NODE, "clean", -30)
        verdict = check(fallen, board)
        return [
            ci.junit(verdict, fallen),
            ci.code_quality(verdict, fallen, "x"),
            ci.open_metrics(fallen),
            ci.bigger_is_better(fallen),
            ci.smaller_is_better(fallen),
            ci.summary(verdict, fallen),
        ]

    assert everything() == everything()
