from collections.abc import Iterator
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
    _shorten(monkeypatch)


@pytest.fixture(scope="module")
def short_audits() -> Iterator[None]:
    """The same for all tests of a file, and for what they share."""
    with pytest.MonkeyPatch.context() as patch:
        _shorten(patch)
        yield


def _shorten(patch: pytest.MonkeyPatch) -> None:
    def quick(model: object, threat: object) -> list[Stage]:
        return default_stages(model, threat, "quick")  # type: ignore[arg-type]

    patch.setattr(audit, "default_stages", quick)
    patch.setattr(audit, "_STEPS", 2)
    patch.setattr(audit, "_STARTS", 1)
