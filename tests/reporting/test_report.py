import re
from pathlib import Path

import boards
import pytest

from robustness import cli
from robustness.errors import UsageError
from robustness.reporting import ranking, words
from robustness.reporting.index import suites_table
from robustness.reporting.report import depth_of, write_index, write_report
from robustness.results.leaderboard import Origin, Proportion, read_leaderboard, reports_in

DRAWN = ["standing", "attacks", "radius", "price"]
MODELS = [f"models/digits-{name}.html" for name in ("lyanet", "lyanet-certified", "node", "resnet")]
FILES = {
    "leaderboard.json",
    "leaderboard.csv",
    "leaderboard.md",
    "ranking.csv",
    "index.html",
    "samples.csv",
    *MODELS,
    *(f"figures/{name}.svg" for name in DRAWN),
}


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_report_is_all_its_files_and_no_leftovers(board, tmp_path):
    paths = write_report(board, tmp_path / "reports" / "digits")
    folder = tmp_path / "reports" / "digits"
    assert {path.relative_to(folder).as_posix() for path in paths} == FILES
    assert set(contents(folder)) == FILES


def test_a_second_writing_gives_the_same_bytes(board, tmp_path):
    write_report(board, tmp_path / "a")
    first = contents(tmp_path / "a")
    write_report(board.model_copy(deep=True), tmp_path / "a")
    assert contents(tmp_path / "a") == first


def test_the_leaderboard_can_be_read_back(board, tmp_path):
    write_report(board, tmp_path)
    assert read_leaderboard(tmp_path) == board


def test_figures_and_models_of_an_earlier_run_do_not_stay_behind(board, tmp_path):
    write_report(board, tmp_path)
    (tmp_path / "figures" / "mine.svg").write_text("mine")
    (tmp_path / "figures" / "horizon.svg").write_text("of an earlier version")
    (tmp_path / "models" / "mine.html").write_text("mine")
    write_report(board.model_copy(update={"models": board.models[:1]}), tmp_path)
    left = {path.name for path in (tmp_path / "figures").iterdir()}
    assert left == {"standing.svg", "attacks.svg", "radius.svg", "mine.svg"}
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert left == {"digits-resnet.html", "mine.html"}


def test_the_page_of_all_reports_leads_to_each_and_replaces_no_page_of_others(board, tmp_path):
    other = boards.with_worst_case(board)
    page = write_index({"a": board, "b": other}, tmp_path)
    text = page.read_text()
    assert 'href="a/index.html"' in text
    assert 'href="b/index.html#digits/lyanet"' in text
    write_index({"a": board}, tmp_path)
    page.write_text("mine")
    with pytest.raises(UsageError, match="of another origin"):
        write_index({"a": board}, tmp_path)
    assert page.read_text() == "mine"


def test_the_page_of_all_reports_says_what_is_proved_elsewhere_than_where_pages_begin(board):
    """A suite that proves nothing at its first threat is not said to prove nothing."""
    told = boards.with_worst_case(board)
    first = ranking.default_threat(told)
    bare = []
    for entry in told.models:
        there = next(b for b in entry.brackets if (b.norm, b.eps) == first)
        nothing = there.model_copy(update={"certified": Proportion.of(0, there.certified.total)})
        alike = {"robust": there.attacked, "subset": there.attacked.total}
        changes = {
            "brackets": [nothing if b is there else b for b in entry.brackets],
            "attacks": [
                r.model_copy(update=alike) if (r.norm, r.eps) == first else r for r in entry.attacks
            ],
        }
        bare.append(entry.model_copy(update=changes))
    (row,) = suites_table({"digits": told.model_copy(update={"models": bare})}).rows
    proved, misled = row.cells[5], row.cells[6]
    assert proved.text == "nothing there"
    assert proved.notes[0].text.startswith("digits/lyanet-certified ")
    assert ", at ℓ" in proved.notes[0].text
    assert words.threat_symbol(*first) not in proved.notes[0].text
    assert misled.text == "none there"
    assert misled.notes[0].text.startswith("on digits/lyanet")
    (row,) = suites_table({"digits": told}).rows
    assert row.cells[5].text.startswith("digits/")
    assert row.cells[6].text == "PGD alone"


def test_the_page_of_all_reports_leads_to_those_of_the_claims(board, tmp_path):
    assert "LyaNet paper" not in write_index({"a": board}, tmp_path).read_text()
    (tmp_path / "lyanet-claims").mkdir()
    (tmp_path / "lyanet-claims" / "claims.json").write_text("{}")
    assert 'href="lyanet-claims/index.html"' in write_index({"a": board}, tmp_path).read_text()


def test_a_folder_of_reports_is_reported_as_their_page(board, tmp_path, capsys):
    write_report(board, tmp_path / "digits")
    command = ["report", str(tmp_path), "--out", str(tmp_path)]
    assert cli.run(lambda: cli.app(command, standalone_mode=False)) == 0
    assert f"index: {tmp_path}" in capsys.readouterr().out.replace("\n", "")
    assert 'id="digits"' in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize("folder", ["digits", "peers/digits", "peers"])
def test_links_out_of_a_report_lead_through_the_checkout_at_any_depth(board, tmp_path, folder):
    origin = Origin(family="LyaNet", paper="https://example.org/paper")
    told = boards.edit(board, "digits/lyanet", origin=origin)
    place = tmp_path / "reports" / folder
    written = write_report(told, place)
    assert depth_of(place) == folder.count("/") + 1
    index = tmp_path / "reports" / "index.html"
    known = {file.resolve() for file in written} | {index.resolve()}
    outside = set()
    for page in written:
        text = page.read_text() if page.suffix in (".html", ".md") else ""
        found = re.findall(r'href="([^"#]+)|\]\(([^)#\s]+)', text)
        for link in filter(None, (a or b for a, b in found)):
            target = (page.parent / link).resolve()
            if not link.startswith("http") and target not in known:
                outside.add(target.relative_to(tmp_path).as_posix())
    assert outside == {"docs/attacks.md", "models/digits/lyanet/recipe.toml"}
    assert write_index({folder: told}, index.parent) == index
    assert f'href="{folder}/index.html"' in index.read_text()
    assert reports_in(tmp_path / "reports") == {folder: place / "leaderboard.json"}


def test_a_folder_that_is_in_no_folder_of_reports_is_taken_for_one_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert depth_of(Path("mine")) == depth_of(tmp_path / "reports/a/b/c") == 1
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path / "reports")
    assert depth_of(Path("peers/mnist")) == 2


@pytest.mark.slow
def test_the_pictures_of_an_earlier_violation_do_not_stay_behind(board, tmp_path):
    write_report(boards.broken(board, boards.violation(pictured=True)), tmp_path)
    pictures = tmp_path / "counterexamples"
    (pictures / "mine.png").write_text("mine")
    assert len(list(pictures.iterdir())) == 4
    write_report(board, tmp_path)
    assert [path.name for path in pictures.iterdir()] == ["mine.png"]


def test_a_place_that_cannot_hold_a_report_is_refused_in_one_line(board, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder") as refusal:
        write_report(board, tmp_path / "file")
    assert "\n" not in str(refusal.value)
