"""The pages of a report in a browser: they sort, filter, fit a phone, and say what they show."""

from collections.abc import Iterator
from pathlib import Path

import boards
import pytest
from browser import Browser, executable

from robustness.reporting.report import write_index, write_report
from robustness.results.leaderboard import Leaderboard
from robustness.zoo import zoo_folder

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium: apt install chromium")

AXE = (Path(__file__).parent / "axe.min.js").read_text(encoding="utf-8")
CHECK = (
    "axe.run().then(r => r.violations.filter(v => ['serious', 'critical'].includes(v.impact))"
    ".map(v => v.id + ': ' + v.nodes.slice(0, 3).map(n => n.html).join(' ')))"
)
SCHEME = "prefers_color_scheme"
REPORTS = zoo_folder().parent / "reports"
# Of a made-up report, and of the largest that is committed.
SEEN = ("index.html", "digits/index.html", "digits/models/digits-lyanet.html")
COMMITTED = ("index.html", "mnist/index.html", "mnist/models/mnist-lyanet-certified-wide.html")
ROWS = "[...document.querySelectorAll('div[data-threat]:not([hidden]) tbody tr:not([hidden])')]"
NAMES = f"{ROWS}.map(r => r.cells[1].innerText.trim())"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(str(executable()), tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def told() -> Leaderboard:
    return boards.with_worst_case(boards.leaderboard())


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory, told: Leaderboard) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    write_report(told, folder / "digits")
    write_index({"digits": told}, folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("page", SEEN)
def test_a_page_can_be_used_by_everybody(
    browser: Browser, reports: Path, page: str, scheme: str
) -> None:
    browser.show(reports / page, width={"light": 1440, "dark": 390}[scheme], **{SCHEME: scheme})
    browser.run(AXE)
    assert browser.run(CHECK) == []
    assert browser.complaints == []


@pytest.mark.parametrize("page", COMMITTED)
def test_a_committed_page_is_quiet_fits_a_phone_and_three_screens(
    browser: Browser, page: str
) -> None:
    browser.show(REPORTS / page, width=390)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.show(REPORTS / page)
    assert browser.run("document.documentElement.scrollWidth") <= 1440
    if page.endswith("index.html"):
        assert browser.run("document.documentElement.scrollHeight") < 4000
    assert browser.complaints == []


def test_the_table_of_all_committed_suites_is_whole_on_a_screen(browser: Browser) -> None:
    browser.show(REPORTS / "index.html")
    hidden = "(part => part.scrollWidth - part.clientWidth)(document.querySelector('.scroll'))"
    assert browser.run(hidden) <= 0


def test_a_printed_table_keeps_headings_that_a_reader_may_click(browser: Browser) -> None:
    """Chromium repeats no button on the next page, so that printed ones have no box of theirs."""
    browser.show(REPORTS / "mnist/index.html")
    shown = "getComputedStyle(document.querySelector('thead th button')).display"
    assert browser.run(shown) != "contents"
    browser.call("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.run(shown) == "contents"
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_report_of_the_claims_is_dark_fits_a_phone_and_leads_back(browser: Browser) -> None:
    page = REPORTS / "lyanet-claims/index.html"
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.show(page, width=390)
    assert browser.run(ground) == "rgb(255, 255, 255)"
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.show(page, **{SCHEME: "dark"})
    assert browser.run(ground) == "rgb(13, 17, 23)"
    assert browser.run("document.querySelector('.crumbs a').href").endswith("reports/index.html")


def test_a_reader_sorts_filters_searches_and_chooses_the_threat(
    browser: Browser, reports: Path, told: Leaderboard
) -> None:
    browser.show(reports / "digits/index.html")
    first = browser.run(NAMES)
    assert first[0] == "digits/lyanet-certified"
    by_name = "[...document.querySelectorAll('th[scope=col] button')][1].click()"
    browser.run(by_name)
    assert browser.run(NAMES) == sorted(first)
    browser.run(by_name)
    assert browser.run(NAMES) == sorted(first, reverse=True)
    sorts = "document.querySelector('th[aria-sort]').getAttribute('aria-sort')"
    assert browser.run(sorts) == "descending"

    clean = {entry.name: entry.clean.value for entry in told.models}
    browser.run("[...document.querySelectorAll('th[scope=col] button')][3].click()")
    assert browser.run(NAMES) == sorted(first, key=lambda name: -clean[name])

    choose(browser, "mark", "masked")
    assert browser.run(NAMES) == ["digits/lyanet"]
    assert browser.run("document.querySelector('output').value") == "1 of 4 models"
    choose(browser, "mark", "")
    choose(browser, "words", "CERTIFIED")
    assert browser.run(NAMES) == ["digits/lyanet-certified"]
    choose(browser, "words", "")
    assert len(browser.run(NAMES)) == 4

    choose(browser, "threat", "l2-0.25")
    assert browser.run(f"{ROWS}[0].closest('table').id") == "ranking-l2-0.25"
    shown = "[...document.querySelectorAll('.found:not([hidden])')].map(p => p.innerText)"
    (said,) = browser.run(shown)
    assert said.startswith("At ℓ2 0.25 ")
    # The address of a model stays that of its row, in whichever table.
    target = "document.getElementById('digits/lyanet').closest('table').id"
    assert browser.run(target) == "ranking-l2-0.25"
    assert browser.complaints == []


def choose(browser: Browser, name: str, value: str) -> None:
    field = f"document.querySelector('#filters [name={name}]')"
    browser.run(
        f"{field}.value = '{value}', {field}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )


def test_at_most_five_models_are_drawn_over_the_radius_and_a_reader_chooses_which(
    browser: Browser,
) -> None:
    browser.show(REPORTS / "mnist/index.html")
    drawn = (
        "[...new Set([...document.querySelectorAll('#radius [data-model]')]"
        ".filter(g => getComputedStyle(g).display !== 'none').map(g => g.dataset.model))].length"
    )
    boxes = "[...document.querySelectorAll('#radius input')]"
    assert browser.run(drawn) == 5
    assert browser.run(f"{boxes}.filter(b => !b.checked).every(b => b.disabled)")
    browser.run(f"{boxes}[0].click()")
    assert browser.run(drawn) == 4
    browser.run(f"{boxes}.at(-1).click()")
    assert browser.run(drawn) == 5
    hues = "[...document.querySelectorAll('#radius li line')].map(l => l.classList[0])"
    assert len({hue for hue in browser.run(hues) if hue != "s6"}) == 5


def test_an_address_with_a_model_leads_to_its_row(browser: Browser, reports: Path) -> None:
    browser.show(reports / "digits/index.html", anchor="digits/lyanet")
    assert browser.run("document.querySelector('tr:target').id") == "digits/lyanet"


def test_without_script_the_ranking_is_there_sorted_and_nothing_pretends_to_work(
    browser: Browser, reports: Path
) -> None:
    browser.scripts(allowed=False)
    try:
        browser.show(reports / "digits/index.html")
        assert browser.run(NAMES)[0] == "digits/lyanet-certified"
        assert browser.run("document.querySelectorAll('button, input').length") == 1  # the search
        assert browser.run("document.getElementById('filters').checkVisibility()") is False
    finally:
        browser.scripts(allowed=True)
