"""A leaderboard's report: every file of it, written atomically and always the same."""

from pathlib import Path

from robustness.errors import UsageError
from robustness.evaluation.leaderboard import Leaderboard
from robustness.recipe import replace_file
from robustness.reporting.figures import FIGURES, figures
from robustness.reporting.html import html_text
from robustness.reporting.markdown import markdown_text
from robustness.reporting.tables import csv_text


def write_report(leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write the leaderboard and its renderings; equal leaderboards give equal bytes.

    Args:
        leaderboard: what to report.
        folder: created if it does not exist; other files in it are left alone.

    Returns:
        The files written: leaderboard.json, .csv and .md, index.html and figures/*.svg.

    Raises:
        UsageError: the folder cannot be written to.
    """
    try:
        return _write(render(leaderboard), folder)
    except OSError as error:
        raise UsageError(
            f"expected a folder to write the report to, got {folder}: "
            f"{error.strerror or error}; give another with --out"
        ) from None


def render(leaderboard: Leaderboard) -> dict[str, bytes]:
    """The report's files: path inside the folder to content."""
    drawn = figures(leaderboard)
    texts = {
        "leaderboard.json": leaderboard.to_json(),
        "leaderboard.csv": csv_text(leaderboard),
        "leaderboard.md": markdown_text(leaderboard, list(drawn)),
        "index.html": html_text(leaderboard, drawn),
    }
    files = {name: text.encode() for name, text in texts.items()}
    return files | {_figure_file(name): content for name, content in drawn.items()}


def _write(files: dict[str, bytes], folder: Path) -> list[Path]:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / name, content)
    for name in map(_figure_file, FIGURES):
        if name not in files:  # an earlier run's, which would contradict this one
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


def _figure_file(name: str) -> str:
    return f"figures/{name}.svg"
