from pathlib import Path

import pytest
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
