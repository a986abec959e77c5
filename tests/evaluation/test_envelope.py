"""A suite's `envelope`: V(t) is bounded over every threat's ball, and reported."""

import math
from pathlib import Path

import pytest

from robustness.api import evaluate
from robustness.evaluation.suite import Suite
from robustness.reporting import selection
from robustness.reporting.markdown import markdown_text

SUITE = {
    "name": "envelope",
    "data": "digits",
    "samples": 4,
    "models": ["digits/lyanet-certified", "digits/resnet"],
    "threats": [{"norm": "Linf", "eps": [0.1]}],
    "envelope": {"samples": 2, "threats": [{"norm": "Linf", "eps": [0.0001, 0.3]}]},
    "decay": False,
    "flow": False,
}


@pytest.mark.slow
def test_a_suite_bounds_the_potential_of_its_first_samples_at_every_threat(tmp_path: Path) -> None:
    board = evaluate(Suite.model_validate(SUITE), out=tmp_path, workers=1)
    near, far = board.models[0].envelopes
    assert (near.eps, far.eps) == (0.0001, 0.3)
    assert near.decays is not None
    assert near.leads is not None
    assert near.decays.total == 2
    assert len(near.time) == len(near.potential) == len(near.low) == len(near.high)
    assert near.time[0] == 0
    assert near.time[-1] == 1
    assert math.isclose(near.low[0], math.log(10), rel_tol=1e-9)
    # Of two samples the medians are those of one of them, wherever one lies above the other.
    within = zip(near.low, near.potential, near.high, strict=True)
    assert all(low <= value <= high for low, value, high in within)
    assert near.high[-1] < near.low[0]
    assert near.decays.count >= 1
    assert far.decays is not None
    assert far.decays.count == 0
    assert far.high[-1] > near.high[-1]
    assert board.models[1].envelopes == []
    rows = selection.envelope_rows(board.models[0])
    assert [row[0] for row in rows] == ["ℓ∞ 0.0001", "ℓ∞ 0.3"]
    assert rows[0][1:3] == ["2", str(near.decays.count)]
    said = markdown_text(board)
    assert "### Certified decay" in said
    assert "| ℓ∞ 0.0001 | 2 |" in said
