from collections.abc import Iterator
from pathlib import Path

import pytest
from shortening import shorten
from suites import SUITE

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
    shorten(monkeypatch.setattr)


@pytest.fixture(scope="module")
def short_audits() -> Iterator[None]:
    """The same for all tests of a file, and for what they share."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch.setattr)
        yield
