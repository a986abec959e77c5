"""Probabilistic radii are reported, and never summed as certified accuracy."""

from pathlib import Path

import pytest

from robustness.api import certified_accuracy, certify, evaluate
from robustness.certificates import Kind
from robustness.errors import UsageError
from robustness.evaluation.suite import Suite

pytestmark = pytest.mark.usefixtures("short_audit")

SMOOTHING = {"name": "smoothing", "sigma": 0.1, "samples": 60, "selection": 10, "alpha": 0.01}


@pytest.mark.slow
def test_smoothing_has_a_row_of_its_own_and_no_part_in_the_bracket(tmp_path: Path) -> None:
    suite = Suite.model_validate(
        {
            "name": "smoothed",
            "data": "digits",
            "samples": 20,
            "models": ["digits/resnet"],
            "certificates": ["lipschitz-margin", SMOOTHING],
            "threats": [{"norm": "L2", "eps": [0.1]}],
            "decay": False,
        }
    )
    entry = evaluate(suite, out=tmp_path, workers=1).models[0]
    margin, smoothed = entry.certificates
    assert (margin.kind, smoothed.kind) == (Kind.CERTIFIED, Kind.PROBABILISTIC)
    assert smoothed.accuracy[0].count >= 15
    # At this radius an ordinary network's Lipschitz margin is vacuous, and all that is proved.
    assert entry.brackets[0].certified.count == margin.accuracy[0].count == 0
    again = Suite.model_validate(suite.model_dump() | {"samples": 10})
    fewer = evaluate(again, out=tmp_path / "few", workers=1).models[0].certificates[1]
    assert fewer.accuracy[0].count <= smoothed.accuracy[0].count


@pytest.mark.slow
def test_smoothing_runs_where_it_is_named_and_only_there() -> None:
    rows = certify("digits/resnet", certificate="smoothing", samples=1)
    assert [row.kind for row in rows] == [Kind.PROBABILISTIC]
    assert certified_accuracy(rows, 0.0).count == 0
    assert certified_accuracy(rows, 0.0, Kind.PROBABILISTIC).count == 1
    unnamed = certify("digits/resnet", samples=1)[0]
    assert (unnamed.kind, unnamed.certificate) == (Kind.CERTIFIED, "lipschitz-margin")


def test_a_named_certificate_that_does_not_apply_is_an_error_and_not_an_empty_answer() -> None:
    with pytest.raises(UsageError, match="got lipschitz-margin: the model is a neural ODE"):
        certify("digits/node", certificate="lipschitz-margin", samples=1)
    with pytest.raises(UsageError, match="expected a certificate, one of"):
        certify("digits/node", certificate="magic", samples=1)
