"""A committed report is what the code at hand makes of its leaderboard."""

import pytest

from robustness.api import committed_leaderboards
from robustness.cards.measure import whole_test_set
from robustness.cards.origin import with_origins
from robustness.evaluation.packing import PACKED_FILE
from robustness.reporting.index import claims_in, index_page
from robustness.reporting.report import depth_of, render
from robustness.zoo import zoo_folder

BOARDS = committed_leaderboards()


@pytest.mark.slow
@pytest.mark.parametrize("folder", list(BOARDS))
def test_a_committed_report_is_what_its_leaderboard_gives(folder: str) -> None:
    board, place = BOARDS[folder], zoo_folder().parent / folder
    again = f"run `robustness report {folder} --out {folder}`"
    assert board == with_origins(whole_test_set(board)), again
    files = render(board, depth_of(place))
    for name, content in files.items():
        assert (place / name).read_bytes() == content, again
    lying = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    assert lying - {PACKED_FILE} == set(files), again


def test_no_page_of_a_committed_report_is_larger_than_300_kilobytes() -> None:
    pages = (zoo_folder().parent / "reports").rglob("*.html")
    sizes = {page: page.stat().st_size for page in pages if "lyanet-claims" not in str(page)}
    assert len(sizes) > len(BOARDS)
    assert max(sizes.values()) < 300_000, max(sizes, key=sizes.__getitem__)


def test_the_committed_page_of_all_suites_is_of_their_leaderboards() -> None:
    root = zoo_folder().parent / "reports"
    boards = {folder.removeprefix("reports/"): board for folder, board in BOARDS.items()}
    again = "run `robustness report reports --out reports`"
    told = index_page(boards, claims_in(root))
    assert (root / "index.html").read_text(encoding="utf-8") == told, again
