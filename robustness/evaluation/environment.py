"""The versions of everything that results may depend on."""

import shutil
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from platform import python_version

from robustness.numerics.devices import ON_CPU, Placement, described
from robustness.registry import plugins

_PACKAGES = (
    "lyanet-robustness",
    "torch",
    "torchdiffeq",
    "torchattacks",
    "pyautoattack",
    "numpy",
    "scipy",
    "scikit-learn",
)
# Files beside recipes that the code makes: one that differs makes no other code.
_MADE = ("CARD.md", "measured.json", "proved.json")


def environment(placement: Placement = ON_CPU) -> dict[str, str]:
    """Versions of everything that results may depend on, and the devices other than the CPU."""
    own = {"python": python_version()} | {name: version(name) for name in _PACKAGES} | _commit()
    own |= {f"plugin {module}": release for module, release in plugins().items()}
    return own | described(placement)


@cache
def _commit() -> dict[str, str]:
    """The commit of the checkout that this code is of, if it is of one."""
    commit = commit_of(Path(__file__).parents[2])
    return {} if commit is None else {"commit": commit}


def commit_of(root: Path) -> str | None:
    """The commit of a checkout of this project, and whether its code is another by now.

    Args:
        root: folder of the checkout.

    Returns:
        None where it is none.
    """
    git = shutil.which("git")
    if git is None or not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    sources = ["robustness", "models", *(f":(exclude,glob)models/**/{name}" for name in _MADE)]
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", *sources])
    answers = [
        subprocess.run([git, "-C", str(root), *words], capture_output=True, text=True, check=False)
        for words in asked
    ]
    if any(answer.returncode for answer in answers):
        return None
    commit, changes = (answer.stdout.strip() for answer in answers)
    return commit + (", with changes" if changes else "")
