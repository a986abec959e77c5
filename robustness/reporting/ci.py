"""The gate's verdict in the dialects of CI systems.

JUnit XML has no standard; what is written is what the schema of Jenkins' xUnit plugin
(junit-10.xsd) allows, which GitLab, Azure and pytest's own files keep to. GitLab's code quality
reports are documented at https://docs.gitlab.com/ci/testing/code_quality/, its metrics reports are
OpenMetrics text (https://prometheus.io/docs/specs/om/open_metrics_spec/), GitHub's annotations are
workflow commands (https://docs.github.com/actions/reference/workflow-commands-for-github-actions),
and the lists for trackers are those of github-action-benchmark's `customBiggerIsBetter` and
`customSmallerIsBetter`. Equal verdicts give equal bytes.
"""

import hashlib
import html
import json
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

from robustness.errors import one_line, printable
from robustness.reporting import words
from robustness.reporting.quantities import Metric, proportion, quantities
from robustness.reporting.regression import Case, Outcome, Verdict
from robustness.results.leaderboard import Leaderboard, Proportion

# GitHub shows ten annotations of a kind for each step.
_ANNOTATIONS = 10
_SEVERITIES = {Outcome.REGRESSION: "major", Outcome.CANNOT_TELL: "minor"}


def junit(verdict: Verdict, results: Leaderboard) -> str:
    """JUnit XML: a test suite of a case for each model, threat and metric.

    A regression is a failure, what cannot be told an error.
    """
    counts = {
        "tests": str(len(verdict.cases)),
        "failures": str(_count(verdict, Outcome.REGRESSION)),
        "errors": str(_count(verdict, Outcome.CANNOT_TELL)),
    }
    root = ET.Element("testsuites", {"name": "robustness", **counts})
    name = printable(f"robustness {results.suite.name}")
    suite = ET.SubElement(root, "testsuite", {"name": name, **counts, "skipped": "0"})
    if results.created:
        suite.set("timestamp", printable(results.created))
    for case in verdict.cases:
        # A dot would make viewers take what is before it for a package.
        where = printable(case.model or results.suite.name).replace(".", "_")
        test = ET.SubElement(suite, "testcase", {"name": case.what, "classname": where})
        if case.outcome is not Outcome.PASS:
            kind = "failure" if case.outcome is Outcome.REGRESSION else "error"
            said = {"message": printable(case.text), "type": str(case.outcome)}
            ET.SubElement(test, kind, said).text = printable(case.text)
        if numbers := _numbers(case):
            ET.SubElement(test, "system-out").text = numbers
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, "unicode") + "\n"


def _numbers(case: Case) -> str:
    said = []
    if case.old is not None:
        said.append(f"baseline {case.old.count} of {case.old.total}")
    if case.new is not None:
        said.append(f"now {case.new.count} of {case.new.total}")
    if case.p_value is not None:
        said.append(f"p {case.p_value:.3g}")
    return ", ".join(said)


def _count(verdict: Verdict, outcome: Outcome) -> int:
    return sum(case.outcome is outcome for case in verdict.cases)


def annotations(verdict: Verdict, path: str) -> list[str]:
    """GitHub's workflow commands: an error for each regression, a warning for what it cannot tell.

    Args:
        verdict: the gate's.
        path: of the results, which the annotations are attached to.
    """
    lines = []
    for outcome, command in ((Outcome.REGRESSION, "error"), (Outcome.CANNOT_TELL, "warning")):
        texts = _texts(verdict, outcome)
        if len(texts) > _ANNOTATIONS:
            rest = words.plural(len(texts) - _ANNOTATIONS + 1, "further finding")
            texts = [*texts[: _ANNOTATIONS - 1], f"{rest}, in the job's log and summary"]
        title = _property(f"robustness: {outcome}")
        place = f"file={_property(path)},title={title}"
        lines += [f"::{command} {place}::{_data(text)}" for text in texts]
    return lines


def _texts(verdict: Verdict, outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(c.text for c in verdict.cases if c.outcome is outcome))


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def summary(verdict: Verdict, results: Leaderboard) -> str:
    """Markdown for GitHub's job summary: what was found, then every number that was held."""
    held = [case for case in verdict.cases if case.quantity is not None]
    lines = [
        f"## Robustness of {_cell(results.suite.name)}: {verdict.outcome}",
        "",
        f"{words.plural(len(held), 'number')} held, "
        f"{words.plural(_count(verdict, Outcome.REGRESSION), 'regression')}, "
        f"{_count(verdict, Outcome.CANNOT_TELL)} that could not be told.",
        "",
    ]
    lines += [f"- {_cell(finding)}" for finding in verdict.findings]
    if verdict.findings:
        lines.append("")
    if held:
        lines += ["<details><summary>Every number</summary>", "", *_table(held), "", "</details>"]
        lines.append("")
    return "\n".join(lines)


def _table(cases: Iterable[Case]) -> Iterator[str]:
    yield "| model | number | baseline | now | change | p | verdict |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | --- |"
    for case in cases:
        old, new = case.old, case.new
        cells = [
            _cell(case.model),
            case.what,
            _percent(old),
            _percent(new),
            words.points(new.value - old.value) if old and new else words.ABSENT,
            words.ABSENT if case.p_value is None else f"{case.p_value:.2g}",
            f"**{case.outcome}**" if case.outcome is not Outcome.PASS else str(case.outcome),
        ]
        yield f"| {' | '.join(cells)} |"


def _percent(value: Proportion | None) -> str:
    return words.ABSENT if value is None else words.percent(value.value)


def _cell(text: str) -> str:
    """Words of others within Markdown: no markup, no end of a cell."""
    escaped = html.escape(printable(text), quote=False)
    return "".join(f"\\{c}" if c in "\\|`*_[]#" else c for c in escaped)


def code_quality(verdict: Verdict, results: Leaderboard, path: str) -> str:
    """GitLab's code quality report: an issue for each regression and for what cannot be told.

    A fingerprint is of the suite, the model and the number, so that the same regression is the
    same issue in the next run.

    Args:
        verdict: the gate's.
        results: the run in question.
        path: of the results within the repository.
    """
    issues = []
    known: set[str] = set()
    for case in verdict.cases:
        if case.outcome is Outcome.PASS:
            continue
        named = f"{results.suite.name}\0{case.model}\0{case.what}"
        if case.quantity is None:  # several may be of one kind
            named = f"{named}\0{case.text}"
        fingerprint = hashlib.sha256(named.encode()).hexdigest()
        if fingerprint in known:
            continue
        known.add(fingerprint)
        unsound = case.what == "soundness"
        issues.append(
            {
                "description": one_line(case.text, 500),
                "check_name": f"robustness/{_kind(case)}",
                "fingerprint": fingerprint,
                "severity": "blocker" if unsound else _SEVERITIES[case.outcome],
                "location": {
                    "path": str(PurePosixPath(path.replace("\\", "/"))),
                    "lines": {"begin": 1},
                },
            }
        )
    return _json(issues)


def _kind(case: Case) -> str:
    return str(case.quantity.metric) if case.quantity else case.what


def open_metrics(results: Leaderboard) -> str:
    """GitLab's metrics report: every number of the run as a gauge, in OpenMetrics text."""
    accuracies, failed = [], []
    for entry in results.models:
        failed.append(f"robustness_failed_samples{_labels(model=entry.name)} {entry.errors}")
        for quantity in quantities(entry):
            value = proportion(entry, quantity)
            if quantity.metric is Metric.FINISHED or value is None:
                continue
            labels = {"model": entry.name, "metric": str(quantity.metric)}
            if quantity.norm is not None and quantity.eps is not None:
                labels |= {"norm": quantity.norm.value, "eps": f"{quantity.eps:.9g}"}
            accuracies.append(f"robustness_accuracy{_labels(**labels)} {value.value:.6g}")
    lines = [
        "# TYPE robustness_accuracy gauge",
        "# HELP robustness_accuracy Proportion of samples; at a threat it is bracketed.",
        *accuracies,
        "# TYPE robustness_failed_samples gauge",
        "# HELP robustness_failed_samples Samples on which the model or an attack failed.",
        *failed,
        "# TYPE robustness_violations gauge",
        "# HELP robustness_violations Certificates that were broken.",
        f"robustness_violations {len(results.soundness.violations)}",
        "# EOF",
    ]
    return "\n".join(lines) + "\n"


def _labels(**labels: str) -> str:
    return "{" + ",".join(f'{name}="{_label(value)}"' for name, value in labels.items()) + "}"


def _label(value: str) -> str:
    return printable(value).replace("\\", "\\\\").replace('"', '\\"')


def bigger_is_better(results: Leaderboard) -> str:
    """Accuracies in percent, in the form `customBiggerIsBetter` of github-action-benchmark."""
    benches = []
    for entry in results.models:
        for quantity in quantities(entry):
            value = proportion(entry, quantity)
            if quantity.metric is Metric.FINISHED or value is None:
                continue
            benches.append(
                {
                    "name": printable(f"{entry.name} {quantity}"),
                    "unit": "percent",
                    "value": round(100 * value.value, 6),
                    "range": words.interval(value),
                    "extra": f"{value.count} of {value.total} samples",
                }
            )
    return _json(benches)


def smaller_is_better(results: Leaderboard) -> str:
    """What should shrink, in the form `customSmallerIsBetter` of github-action-benchmark.

    The width of each bracket in percentage points, failed samples, and what certificates cost.
    """
    benches: list[dict[str, Any]] = []
    for entry in results.models:
        name = printable(entry.name)
        benches.append({"name": f"{name} failed", "unit": "samples", "value": entry.errors})
        for bracket in entry.brackets:
            threat = words.threat(bracket.norm, bracket.eps)
            benches.append(
                {
                    "name": f"{name} width, {threat}",
                    "unit": "points",
                    "value": round(100 * bracket.width, 6),
                    "extra": f"certified {words.percent(bracket.certified.value)}, attacked "
                    f"{words.percent(bracket.attacked.value)}",
                }
            )
    for cost in results.costs:
        name = printable(f"{cost.model} {cost.certificate}, {cost.norm.value}")
        benches.append({"name": name, "unit": "ms/image", "value": cost.milliseconds})
    return _json(benches)


def _json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
