from pathlib import Path

import pytest
from suites import SUITE

from robustness.attacks import Stage, default_stages
from robustness.evaluation.jobs import audit
from robustness.evaluation.suite import Suite, load_suite


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SUITE)
    return file


@pytest.fixture
def suite(suite_file: Path) -> Suite:
    return load_suite(str(suite_file))


@pytest.fixture
def short_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is no matter, and runs in this process, the audit takes a few steps only."""

    def quick(model: object, threat: object) -> list[Stage]:
        return default_stages(model, threat, "quick")  # type: ignore[arg-type]

    monkeypatch.setattr(audit, "default_stages", quick)
    monkeypatch.setattr(audit, "_STEPS", 2)
    monkeypatch.setattr(audit, "_STARTS", 1)
