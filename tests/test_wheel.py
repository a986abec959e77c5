"""An installed wheel carries the zoo and runs outside the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_every_recipe_weight_file_and_card_of_the_zoo(wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    patterns = ("recipe.toml", "*.safetensors", "CARD.md", "measured.json")
    entries = [path for pattern in patterns for path in (ROOT / "models").glob(f"*/*/{pattern}")]
    assert len(entries) >= 8
    for path in entries:
        assert f"robustness/_zoo/{path.relative_to(ROOT / 'models').as_posix()}" in carried
    assert "robustness/suites/digits.toml" in carried
    assert "pytest_robustness/__init__.py" in carried
    assert "robustness/claims/page.html.j2" in carried


def test_the_installed_wheel_evaluates_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "work").mkdir()
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = ["evaluate", "digits-quick", "--models", "digits/resnet", "--workers", "1"]
    where = "import robustness, runpy; print(robustness.__file__, flush=True)"
    start = f"{where}; runpy.run_module('robustness', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", start, *command],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert (tmp_path / "work" / "reports" / "digits-quick" / "index.html").is_file()
