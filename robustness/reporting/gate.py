"""The gate as commands and tests use it: reads both runs, holds one to the other, writes files."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from robustness import inputs
from robustness.errors import UsageError
from robustness.files import read_toml, require_own, write_file
from robustness.reporting import ci
from robustness.reporting.regression import Outcome, Verdict, check
from robustness.reporting.thresholds import Thresholds
from robustness.results.leaderboard import (
    LEADERBOARD_FILE,
    Leaderboard,
    leaderboard_file,
    read_leaderboard,
)
from robustness.results.revisions import read_revision

_MARK = '"schema_version"'


@dataclass(frozen=True)
class Held:
    """A run that was held to its baseline.

    Attributes:
        results: the run.
        verdict: the gate's.
        path: of the results, for reports that point to them.
    """

    results: Leaderboard
    verdict: Verdict
    path: str


def hold(
    results: Path | Leaderboard,
    baseline: Path | Leaderboard | None = None,
    revision: str | None = None,
    thresholds: Path | Thresholds | None = None,
    tolerance: float = 0.01,
) -> Held:
    """Hold a run to a baseline.

    Args:
        results: the run, its file or its report folder.
        baseline: a leaderboard, its file, its report folder, or a folder of baselines, which has
            the one of this suite as `<suite>.json` or `<suite>/leaderboard.json`.
        revision: of git, in place of `baseline`: `REV:PATH`, or `REV` for the place of `results`.
        thresholds: a TOML file, or what it says.
        tolerance: the largest fall that passes where the thresholds say nothing of falls.

    Raises:
        UsageError: one of them is missing or does not fit, or two baselines are given.
    """
    if baseline is not None and revision is not None:
        raise UsageError(
            "expected --baseline or --baseline-rev, got both; name one place of the baseline"
        )
    limits = read_toml(thresholds, Thresholds) if isinstance(thresholds, Path) else thresholds
    found = read_leaderboard(results) if isinstance(results, Path) else results
    path = leaderboard_file(results) if isinstance(results, Path) else Path(LEADERBOARD_FILE)
    if revision is not None:
        held_to: Leaderboard | None = read_revision(revision, path)
    elif isinstance(baseline, Path):
        held_to = read_leaderboard(baseline_file(baseline, found.suite.name))
    else:
        held_to = baseline
    return Held(found, check(found, held_to, tolerance, limits), relative(path))


def relative(path: Path) -> str:
    """A path as CI systems want it: from the working folder, where it is inside."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def baseline_file(place: Path, suite: str) -> Path:
    """The file of a suite's baseline: a file, a report folder, or one of a folder of baselines."""
    if not place.is_dir() or (place / LEADERBOARD_FILE).exists():
        return leaderboard_file(place)
    if suite != Path(suite).name:
        raise UsageError(
            f"expected a suite whose name can be that of a file in {place}, got {suite!r}; name "
            "the file of the baseline itself"
        )
    in_folder = place / suite / LEADERBOARD_FILE
    return in_folder if in_folder.exists() else place / f"{suite}.json"


def update_baseline(
    results: Path | Leaderboard,
    baseline: Path,
    thresholds: Path | Thresholds | None = None,
    tolerance: float = 0.01,
    accept: bool = False,
) -> tuple[Path, Verdict | None]:
    """Make a run the baseline of its suite.

    What falls behind the baseline of before takes its place only if that is accepted; a run with
    a certificate that was broken never does.

    Args:
        results: as of `hold`.
        baseline: its file, which need not be there yet, its report folder, or a folder of
            baselines, as of `hold`.
        thresholds: as of `hold`.
        tolerance: as of `hold`.
        accept: whether a regression, or what cannot be told, is accepted.

    Returns:
        The file of the baseline, and the verdict on the run; None where there was no baseline.
        The file is written unless the verdict is another than pass and not accepted.

    Raises:
        UsageError: the run cannot be read or is unsound, or the place cannot be written to.
    """
    found = read_leaderboard(results) if isinstance(results, Path) else results
    if found.soundness.violations:
        raise UsageError(
            f"expected a run without broken certificates for a baseline, got "
            f"{len(found.soundness.violations)}, {found.soundness.violations[0]}; mend them first"
        )
    file = baseline_file(baseline, found.suite.name)
    verdict = None
    if file.exists():
        require_own(file, _MARK)
        verdict = hold(found, file, None, thresholds, tolerance).verdict
    if verdict is None or verdict.outcome is Outcome.PASS or accept:
        write_file(inputs.file_to_write(file), found.to_json().encode())
    return file, verdict


@dataclass(frozen=True)
class Outputs:
    """Files to write the verdict to, each in one dialect; None for none."""

    junit: Path | None = None
    code_quality: Path | None = None
    metrics: Path | None = None
    bigger_is_better: Path | None = None
    smaller_is_better: Path | None = None

    def require_writable(self) -> None:
        """Refuse what cannot be written before anything is read.

        Raises:
            UsageError: one of them cannot be written.
        """
        for file in vars(self).values():
            if file is not None:
                inputs.file_to_write(file)

    def write(self, held: Held) -> None:
        """Write all of them.

        Raises:
            UsageError: one of them cannot be written.
        """
        verdict, results = held.verdict, held.results
        renderings = {
            self.junit: lambda: ci.junit(verdict, results),
            self.code_quality: lambda: ci.code_quality(verdict, results, held.path),
            self.metrics: lambda: ci.open_metrics(results),
            self.bigger_is_better: lambda: ci.bigger_is_better(results),
            self.smaller_is_better: lambda: ci.smaller_is_better(results),
        }
        for file, render in renderings.items():
            if file is not None:
                write_file(file, render().encode())


def tell_github(held: Held, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Lines to print within a job of GitHub's, whose summary is written; elsewhere there are none.

    Args:
        held: the run.
        environment: as GitHub sets it: GITHUB_ACTIONS, and GITHUB_STEP_SUMMARY for the summary.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    if place := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(ci.summary(held.verdict, held.results))
    return ci.annotations(held.verdict, held.path)
