"""A leaderboard's report: every file of it, written atomically and always the same."""

from pathlib import Path

from robustness.errors import os_failure
from robustness.files import replace_file, require_own_folder
from robustness.reporting.figures import FIGURES, figures
from robustness.reporting.html import html_text
from robustness.reporting.markdown import markdown_text
from robustness.reporting.pictures import FOLDER, PARTS, pictures
from robustness.reporting.tables import csv_text, samples_csv
from robustness.results.leaderboard import LEADERBOARD_FILE, STORE_FILE, Leaderboard

_TEXTS = (LEADERBOARD_FILE, "leaderboard.csv", "leaderboard.md", "index.html", "samples.csv")


def write_report(leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write the leaderboard and its renderings; equal leaderboards give equal bytes.

    Args:
        leaderboard: what to report.
        folder: created if it does not exist; other files in it are left alone.

    Returns:
        The files written: leaderboard.json, .csv and .md, samples.csv, index.html, figures/*.svg
        and, where a certificate was broken, counterexamples/*.png.

    Raises:
        UsageError: the folder cannot be written to.
        OperationalError: the disk is full or broken.
    """
    try:
        return _write(render(leaderboard), folder)
    except OSError as error:
        raise os_failure(
            error, f"a folder to write the report to at {folder}", "give another with --out"
        ) from None


def require_report_folder(folder: Path, *more: str) -> None:
    """Refuse a folder where a report would be written over files of another origin.

    Args:
        folder: of the report.
        *more: names that are written in it besides the report's own.

    Raises:
        UsageError: it is refused.
    """
    marks = {STORE_FILE: "SQLite format 3", LEADERBOARD_FILE: '"schema_version"'}
    require_own_folder(folder, (*_TEXTS, "figures", FOLDER, *more), marks)


def render(leaderboard: Leaderboard) -> dict[str, bytes]:
    """The report's files: path inside the folder to content."""
    drawn = figures(leaderboard)
    texts = (
        leaderboard.to_json(),
        csv_text(leaderboard),
        markdown_text(leaderboard, list(drawn)),
        html_text(leaderboard, drawn),
        samples_csv(leaderboard),
    )
    files = {name: text.encode() for name, text in zip(_TEXTS, texts, strict=True)}
    files |= pictures(leaderboard)
    return files | {_figure_file(name): content for name, content in drawn.items()}


def _write(files: dict[str, bytes], folder: Path) -> list[Path]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, content)
    # An earlier run's figures and counter-examples would contradict this one.
    stale = [*map(_figure_file, FIGURES), *(f"{FOLDER}/{f.name}" for f in _pngs(folder))]
    for name in stale:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


def _pngs(folder: Path) -> list[Path]:
    return [f for part in PARTS for f in (folder / FOLDER).glob(f"[0-9]*-{part}.png")]


def _figure_file(name: str) -> str:
    return f"figures/{name}.svg"
