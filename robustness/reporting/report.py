"""A leaderboard's report: every file of it, written atomically and always the same."""

import os
from collections.abc import Mapping
from pathlib import Path

from robustness.errors import UsageError, os_failure
from robustness.files import replace_file, require_own_folder
from robustness.reporting import pages
from robustness.reporting.html import html_pages, is_own, suite_figures
from robustness.reporting.index import claims_in, index_page
from robustness.reporting.markdown import markdown_text
from robustness.reporting.pictures import FOLDER, PARTS, pictures
from robustness.reporting.ranking import ranking_csv
from robustness.reporting.tables import csv_text, samples_csv
from robustness.results.leaderboard import DEEPEST, LEADERBOARD_FILE, STORE_FILE, Leaderboard

_TEXTS = (
    LEADERBOARD_FILE,
    "leaderboard.csv",
    "leaderboard.md",
    "ranking.csv",
    "samples.csv",
    pages.SUITE_PAGE,
)
# What earlier versions drew.
_FORMER = ("brackets", "certificates", "distances", "decay", "horizon")
_DRAWN = ("standing", "attacks", "radius", "price")


def write_report(leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write the leaderboard and its renderings; equal leaderboards give equal bytes.

    Args:
        leaderboard: what to report.
        folder: created if it does not exist; other files in it are left alone.

    Returns:
        The files written: leaderboard.json, .csv and .md, ranking.csv, samples.csv, index.html,
        models/*.html, figures/*.svg and, where a certificate was broken, counterexamples/*.png.

    Raises:
        UsageError: the folder cannot be written to.
        OperationalError: the disk is full or broken.
    """
    try:
        return _write(render(leaderboard, depth_of(folder)), folder)
    except OSError as error:
        raise os_failure(
            error, f"a folder to write the report to at {folder}", "give another with --out"
        ) from None


def write_index(boards: Mapping[str, Leaderboard], folder: Path) -> Path:
    """Write the page that leads to several reports.

    Args:
        boards: leaderboards by the folders inside `folder` that they lie in, as links have them.
        folder: of the page, which is `index.html`.

    Returns:
        The page.

    Raises:
        UsageError: a page of another origin is there, or the folder cannot be written to.
    """
    page = folder / pages.SUITE_PAGE
    try:
        if page.exists() and not is_own(page):
            raise UsageError(
                f"expected no index.html of another origin, got {page}; move it, or give another "
                "folder with --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(page, index_page(boards, claims_in(folder)).encode())
    except OSError as error:
        raise os_failure(
            error, f"a folder to write the index to at {folder}", "give another with --out"
        ) from None
    return page


def require_report_folder(folder: Path, *more: str) -> None:
    """Refuse a folder where a report would be written over files of another origin.

    Args:
        folder: of the report.
        *more: names that are written in it besides the report's own.

    Raises:
        UsageError: it is refused.
    """
    marks = {STORE_FILE: "SQLite format 3", LEADERBOARD_FILE: '"schema_version"'}
    require_own_folder(folder, (*_TEXTS, "figures", FOLDER, pages.FOLDER, *more), marks)


def depth_of(folder: Path) -> int:
    """How deep a report's folder lies in the folder called `reports` that holds it; 1 in others.

    Reports lie there by default, one or two folders deep, and the page that leads to all of them
    and the checkout are found from its pages by this.

    Example:
        >>> depth_of(Path("reports/digits")), depth_of(Path("reports/peers/mnist"))
        (1, 2)
    """
    above = Path(os.path.abspath(folder)).parts[:-1]
    depth = above[::-1].index("reports") + 1 if "reports" in above else 1
    return depth if depth <= DEEPEST else 1


def render(leaderboard: Leaderboard, depth: int = 1) -> dict[str, bytes]:
    """The report's files: path inside the folder to content.

    Args:
        leaderboard: what to report.
        depth: see `depth_of`.
    """
    drawn = [figure for first, figure in suite_figures(leaderboard) if first]
    texts = {
        LEADERBOARD_FILE: leaderboard.to_json(),
        "leaderboard.csv": csv_text(leaderboard),
        "leaderboard.md": markdown_text(leaderboard, depth),
        "ranking.csv": ranking_csv(leaderboard),
        "samples.csv": samples_csv(leaderboard),
        **html_pages(leaderboard, depth),
    }
    files = {name: text.encode() for name, text in texts.items()}
    files |= pictures(leaderboard)
    return files | {_figure_file(figure.name): figure.canvas.file for figure in drawn}


def _write(files: dict[str, bytes], folder: Path) -> list[Path]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, content)
    # An earlier run's figures, models and counter-examples would contradict this one.
    stale = [
        *map(_figure_file, (*_DRAWN, *_FORMER)),
        *(f"{FOLDER}/{f.name}" for f in _pngs(folder)),
    ]
    written = (folder / pages.FOLDER).glob("*.html")
    stale += [f"{pages.FOLDER}/{page.name}" for page in written if is_own(page)]
    for name in stale:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name in files]


def _pngs(folder: Path) -> list[Path]:
    return [f for part in PARTS for f in (folder / FOLDER).glob(f"[0-9]*-{part}.png")]


def _figure_file(name: str) -> str:
    return f"figures/{name}.svg"
