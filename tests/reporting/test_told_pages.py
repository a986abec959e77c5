"""Comparison and history as pages."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import boards
import pytest
from browser import Browser, executable
from test_pages import AXE, CHECK

from robustness import cli
from robustness.reporting.compare import compare
from robustness.reporting.comparison_page import comparison_page
from robustness.reporting.history import History, State
from robustness.reporting.history_page import bracket_figure, history_page
from robustness.results.leaderboard import Proportion
from robustness.results.revisions import Version
from robustness.threat import Norm

NODE = "digits/node"
HOSTILE = "<script>alert(1)</script>&\x1b[31m"


class Tables(HTMLParser):
    """The cells of every table by its id, without what is small beneath them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.scripts = 0
        self._table, self._open, self._small = "", False, False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self._table = dict(attrs)["id"]
            self.rows[self._table] = []
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag in ("td", "th"):
            self.rows[self._table][-1].append("")
            self._open = True
        elif tag == "small":
            self._small = True
        elif tag == "script":
            self.scripts += 1

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = False
        elif tag == "small":
            self._small = False

    def handle_data(self, data):
        if self._open and not self._small:
            self.rows[self._table][-1][-1] += data


def turned(board, count):
    """The board with the first `count` right predictions of one model turned wrong."""
    entry = next(model for model in board.models if model.name == NODE)
    right = [i for i, p in enumerate(entry.samples.prediction) if p == 3][:count]
    prediction = [8 if i in right else p for i, p in enumerate(entry.samples.prediction)]
    samples = entry.samples.model_copy(update={"prediction": prediction})
    clean = Proportion.of(entry.clean.count - count, entry.clean.total)
    return boards.edit(board, NODE, samples=samples, clean=clean), right


@pytest.fixture(scope="module")
def small():
    board = boards.leaderboard()
    return board.model_copy(update={"models": board.models[:2]})


def test_a_comparison_shows_every_number_and_which_samples_broke(small):
    worse, broke = turned(small, 5)
    page = comparison_page(compare(small, worse), "before", "after")
    tables = Tables(page).rows
    assert len(tables["numbers"]) == 1 + 2 * 17
    assert tables["numbers"][1] == [NODE, "clean", "96.8", "96.0", "-0.8", "5", "0", "0.062"]
    assert tables["samples"][1][0] == NODE
    listed = tables["samples"][1][2]
    assert listed.split(", ")[0].split("–")[0] == str(broke[0])
    assert "Of 34 numbers that both have, 1 fell, 0 rose and 33 held." in page
    assert "where 5 samples broke and 0 were mended (p 0.062)" in page


def test_a_comparison_of_equal_runs_lists_no_samples(small):
    page = comparison_page(compare(small, small), "a", "b")
    assert "0 fell, 0 rose and 34 held" in page
    assert "samples" not in Tables(page).rows


def test_a_comparison_names_what_is_new_and_gone_and_what_cannot_be_compared(small):
    first = small.model_copy(update={"models": small.models[:1]})
    second = boards.leaderboard(seed=3)
    second = second.model_copy(update={"models": second.models[1:2]})
    page = comparison_page(compare(first, second), "a", "b")
    assert f"New in B: {NODE}." in page
    assert "Gone from B: digits/resnet." in page
    assert "Not comparable: other seed (0 against 3)." in page


@pytest.fixture(scope="module")
def history(small) -> History:
    fallen = boards.shift(small, NODE, "attacked", -60)
    later = boards.shift(fallen, NODE, "attacked", -30)
    only = later.model_copy(update={"models": later.models[1:]})

    def version(number: int, subject: str) -> Version:
        return Version(f"{number:040x}", f"2026-11-{number:02d}T00:00:00+00:00", subject, "x.json")

    return History(
        "reports/x",
        (
            State(version(1, "old"), None, "of another schema"),
            State(version(2, "first"), small),
            State(version(3, "stronger"), fallen, obstacles=("other settings (attacks)",)),
            State(version(4, HOSTILE), only, gone=("digits/resnet",)),
        ),
    )


def test_a_history_shows_brackets_commits_and_what_moved(history):
    page = history_page(history)
    tables = Tables(page).rows
    assert [row[0] for row in tables["commits"][1:]] == [f"{n:040x}"[:8] for n in (4, 3, 2, 1)]
    assert tables["commits"][4][4] == "not read, of another schema"
    assert len(tables["brackets-linf"][0]) == 4
    node = next(row for row in tables["brackets-linf"] if row[0] == NODE)
    attacked = [float(cell.split("–")[1]) for cell in node[1:]]
    assert attacked[0] - attacked[2] == pytest.approx(15, abs=0.11)
    gone = next(row for row in tables["brackets-linf"] if row[0] == "digits/resnet")
    assert gone[3] == "-"
    assert f"{NODE} went from {attacked[0]} to {attacked[2]} %" in page


def test_the_figure_has_a_panel_for_each_model_and_a_line_where_it_was_measured_otherwise(history):
    drawn = bracket_figure(history, Norm.LINF, 0.1)
    markup = drawn.canvas.markup
    assert markup.count('class="band"') == 1 + 2
    assert markup.count("<circle") == 3 + 2
    assert markup.count('stroke-dasharray="3 3"') == 2
    assert f"{NODE} went from" in drawn.canvas.alt
    assert "00000000 2026-11-02: certified " in markup


def test_words_of_others_are_neither_markup_nor_controls(history, small):
    named = boards.edit(small, NODE, name=HOSTILE)
    pages = [
        history_page(history),
        comparison_page(compare(small, named), HOSTILE, "b"),
    ]
    for page in pages:
        assert Tables(page).scripts == 1
        assert "\x1b" not in page
        assert "&lt;script&gt;alert" in page
        assert re.search("script-src 'sha256-[^']+='", page.replace("&#39;", "'"))
        assert len(page) < 300_000


def test_the_commands_write_the_pages_and_nothing_over_other_files(
    small, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    worse, _ = turned(small, 5)

    def git(*words: str) -> None:
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *named, *words], check=True, capture_output=True)

    def run(line: str) -> int:
        return cli.run(lambda: cli.app(line.split(), standalone_mode=False))

    git("init", "-b", "main")
    for name, board in {"a": small, "b": worse}.items():
        for file in (f"{name}.json", "leaderboard.json"):
            Path(file).write_text(board.to_json(), encoding="utf-8")
        git("add", "leaderboard.json")
        git("commit", "-m", name)
    for _ in range(2):  # a page may be written over
        assert run("compare a.json b.json --html c.html") == 0
        assert run("history leaderboard.json --html h.html") == 0
    assert "b.json against a.json" in Path("c.html").read_text(encoding="utf-8")
    moved = Tables(Path("h.html").read_text(encoding="utf-8")).rows["moves"]
    assert [row[1:3] for row in moved[1:]] == [[NODE, "clean"]]
    capsys.readouterr()
    for line in ("compare a.json b.json --html a.json", "history x --html a.json"):
        assert run(line) == 2
        assert "move it away" in capsys.readouterr().err
    assert Path("a.json").read_text(encoding="utf-8") == small.to_json()


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="no Chromium: apt install chromium")
def test_both_pages_can_be_used_by_everybody(small, history, tmp_path):
    worse, _ = turned(small, 5)
    pages = {
        "history.html": history_page(history),
        "comparison.html": comparison_page(compare(small, worse), "before", "after"),
    }
    browser = Browser(str(executable()), tmp_path / "profile")
    try:
        for name, page in pages.items():
            (tmp_path / name).write_text(page, encoding="utf-8")
            for width, scheme in ((390, "dark"), (1440, "light")):
                browser.show(tmp_path / name, width=width, prefers_color_scheme=scheme)
                assert browser.run("document.documentElement.scrollWidth") <= width
                browser.run(AXE)
                assert browser.run(CHECK) == []
        assert browser.complaints == []
    finally:
        browser.close()
