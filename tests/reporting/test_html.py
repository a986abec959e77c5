"""What stands on the pages of a report; how they behave is in test_pages.py."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import boards
import pytest

from robustness.certificates.base import Kind
from robustness.recipe import Published
from robustness.reporting import images, model_sections, pages, ranking, selection, words
from robustness.reporting.html import html_pages, model_page, suite_page
from robustness.reporting.sections import table_csv, table_markdown
from robustness.results.leaderboard import Origin, Proportion, WithoutFlow
from robustness.threat import Norm

VOID = {"meta", "br", "img", "col", "link", "input", "hr"}
SVG = {"rect", "circle", "line", "path"}


class Page(HTMLParser):
    """Collects tags, links and visible text, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.words = [], [], [], [], []
        self.styles, self.headings, self.alts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        self.ids += [v for k, v in attributes if k == "id"]
        self.styles += [v for k, v in attributes if k == "style"]
        told = dict(attributes)
        if tag == "th":
            self.headings.append(told.get("scope"))
        if tag == "img" or told.get("role") == "img":
            self.alts.append(told.get("alt") or told.get("aria-label"))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def told(searched):
    """All pages of the board."""
    return html_pages(searched)


@pytest.fixture(scope="module")
def suite(told):
    return told["index.html"]


def page_of(board, name):
    return model_page(board, next(e for e in board.models if e.name == name))


def test_pages_ask_for_nothing_outside_themselves(told):
    for source in told.values():
        assert "@import" not in source
        assert "url(" not in source
        page = Page(source)
        assert {"link", "iframe", "object"}.isdisjoint(page.tags)
        assert page.styles == []
        outside = [x for x in page.links if x.startswith(("http:", "https:", "//"))]
        assert outside == []
        pictures = [x for x in page.links if x.startswith("data:")]
        assert all(x.startswith("data:image/png;base64,") for x in pictures)


def test_the_policy_allows_the_pages_own_style_and_script_and_no_other(told):
    for source in told.values():
        (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', source)
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        for kind in ("style", "script"):
            (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", source, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert source.count("<script") == 1
        assert len(re.findall(r"<script>(.*?)</script>", source, re.DOTALL)[0]) < 6000


def test_links_lead_to_other_pages_of_the_report_and_to_places_on_them(told):
    parsed = {name: Page(source) for name, source in told.items()}
    for name, page in parsed.items():
        assert len(page.ids) == len(set(page.ids))
        folder = name.rpartition("/")[0]
        for link in page.links:
            path, _, anchor = link.partition("#")
            path = path.removeprefix("../") if folder else path
            target = f"{folder}/{path}" if folder and not link.startswith("../") else path
            if target in parsed and anchor:
                assert anchor in parsed[target].ids


def test_every_heading_says_what_it_heads_and_every_picture_what_is_seen(told):
    for source in told.values():
        page = Page(source)
        assert set(page.headings) <= {"col", "row"}
        assert page.tags.count("main") == 1
        assert page.tags.count("caption") == page.tags.count("table")
        assert all(alt for alt in page.alts)


def test_a_model_that_misleads_and_is_not_masked_is_not_said_to_be(searched):
    plain = boards.edit(searched, "digits/lyanet", flags=[])
    assert "PGD misleads most about digits/lyanet: alone" in Page(suite_page(plain)).text


def test_nothing_is_said_of_gaps_and_flows_where_there_are_none(board):
    told = board.model_copy(update={"models": board.models[:1]})  # no ODE, no worst case
    text = Page(suite_page(told)).text
    assert "Flow decides" not in text
    assert "whatever the trust mark" not in text


def test_the_suite_says_first_what_was_found_and_how(suite, searched):
    text = Page(suite).text
    entry = next(e for e in searched.models if e.name == "digits/lyanet-certified")
    bracket = next(b for b in entry.brackets if (b.norm, b.eps) == (Norm.LINF, 0.05))
    certified = f"{100 * bracket.certified.value:.1f}"
    assert f"At ℓ∞ 0.05 digits/lyanet-certified is best proved: {certified} % of the" in text
    fooled = next(e for e in searched.models if e.name == "digits/lyanet")
    plain = next(r for r in fooled.attacks if (r.attack, r.norm, r.eps) == ("pgd", Norm.LINF, 0.05))
    said = "PGD misleads most about digits/lyanet (trust mark: masked): alone it leaves "
    assert f"{said}{100 * plain.robust.value:.1f} %" in text
    assert "Flow decides: on how many images the class is another without" in text
    assert "PGD alone says so many points too much, whatever the trust mark." in text
    assert "(ascent-targeted-20@deployed broke 170 images); the check masked-gradients" in text
    assert "599 samples of the test split of digits, seed 0" in text
    assert "no violation; 80 certified images audited" in text
    assert "robustness evaluate digits --samples 599 --seed 0" in text
    assert "2.13.0" in text
    assert "11 min 42 s" in text


def test_every_number_of_the_ranking_is_that_of_the_leaderboard(suite, searched):
    """The rows of each table, in order, and what is read in their cells."""
    for threat in ranking.selection.threats(searched):
        source = suite.split(f'<table id="ranking-{ranking.threat_id(threat)}"')[1]
        rows = re.findall(r"<tr[^>]* data-mark=.*?</tr>", source.split("</table>")[0])
        order = [entry for entry, _ in ranking.ranked(searched, threat)]
        assert len(rows) == len(order) == 4
        keys = []
        for row, entry in zip(rows, order, strict=True):
            bracket = next(b for b in entry.brackets if (b.norm, b.eps) == threat)
            keys.append((-bracket.certified.value, -bracket.attacked.value))
            cells = [Page(cell).text for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            plain = ranking.attack_row(entry, "pgd", threat)
            low, high = bracket.certified, bracket.attacked
            assert cells[1] == entry.name
            assert cells[3] == f"{100 * entry.clean.value:.1f}"
            assert cells[4] == f"{100 * low.value:.1f} {100 * low.low:.1f}–{100 * low.high:.1f}"
            assert cells[5] == f"{100 * high.value:.1f} {100 * high.low:.1f}–{100 * high.high:.1f}"
            gap = round(100 * (plain.robust.value - high.value), 1)
            assert float(cells[7]) == gap
            assert cells[9].split()[0] == ("masked" if entry.name == "digits/lyanet" else "sound")
            widths = [float(w) for w in re.findall(r'class="b\d" width="([\d.]+)%', row)]
            expected = [s for s in (entry.clean.value, high.value, low.value) if s]
            assert widths == pytest.approx([100 * v for v in expected], abs=0.01)
        assert keys == sorted(keys)


def test_equal_models_share_a_rank_and_those_without_a_bracket_come_last(searched):
    bare = boards.edit(searched, "digits/node", brackets=[])
    table = ranking.ranking_table(bare, (Norm.LINF, 0.2))
    ranks = [row.cells[0].text for row in table.rows]
    assert ranks == ["1", "2", "3", "-"]
    assert table.rows[-1].cells[1].text == "digits/node"
    same = [searched.models[0].model_copy(update={"name": f"m{i}"}) for i in range(3)]
    tied = searched.model_copy(update={"models": [*same, searched.models[-1]]})
    table = ranking.ranking_table(tied, (Norm.LINF, 0.2))
    assert [row.cells[0].text for row in table.rows] == ["1", "2", "2", "2"]


def test_a_family_leads_to_its_paper_and_its_recipe(searched):
    origin = Origin(family="LyaNet", paper="https://example.org/paper")
    source = suite_page(boards.edit(searched, "digits/lyanet", origin=origin))
    assert '<a href="https://example.org/paper">LyaNet</a>' in source
    assert '<a href="../../models/digits/lyanet/recipe.toml">recipe</a>' in source
    assert "<option>LyaNet</option>" in source


def test_a_trust_mark_leads_to_the_checks_of_its_model_where_there_are_any(searched):
    bare = boards.edit(searched, "digits/node", flags=[])
    for row in ranking.ranking_table(bare, (Norm.LINF, 0.2)).rows:
        mark = next(cell for cell in row.cells if cell.badge in ranking.MARKS)
        assert mark.href.endswith("#checks") == (row.anchor != "digits/node")


def test_what_authors_published_stands_beside_what_was_measured_at_its_radius_alone(searched):
    said = Published(eps=0.1, clean=0.955, certified=0.89, basis="mean of three, 1,000 images")
    origin = Origin(
        family="GAINS", paper="https://example.org/paper", published=[said], weights="theirs (MIT)"
    )
    board = boards.edit(searched, "digits/lyanet", origin=origin)
    assert ranking.default_threat(searched) == (Norm.LINF, 0.05)
    assert ranking.default_threat(board) == (Norm.LINF, 0.1)
    there = ranking.ranking_table(board, (Norm.LINF, 0.1))
    column = [heading.name for heading in there.headings].index("their paper")
    cells = {row.anchor: row.cells[column] for row in there.rows}
    assert (cells["digits/lyanet"].text, cells["digits/lyanet"].value) == ("89.0", 0.89)
    assert cells["digits/node"].text == "-"
    assert "published: mean of three, 1,000 images; it was not measured here." in there.caption
    for other in (Norm.LINF, 0.2), (Norm.L2, 0.1):
        names = [heading.name for heading in ranking.ranking_table(board, other).headings]
        assert "their paper" not in names
    head, *lines = ranking.ranking_csv(board).splitlines()
    assert "their paper" in head
    assert {line.count(",") for line in lines} == {head.count(",")}
    page = Page(page_of(board, "digits/lyanet")).text
    assert "certified 89.0 %, clean 95.5 %: mean of three, 1,000 images; not measured here" in page
    assert "weights, not included theirs (MIT)" in page
    assert "their paper" not in ranking.ranking_csv(searched)
    again = "ROBUSTNESS_WEIGHTS_DIR=DIR robustness evaluate digits --samples"
    assert again in Page(suite_page(board)).text
    assert again not in Page(suite_page(searched)).text


def test_what_the_flow_decides_is_in_the_ranking_and_on_the_page_of_the_model(board):
    flow = WithoutFlow(other=Proportion.of(6, 599), clean=Proportion.of(570, 599))
    told = boards.edit(board, "digits/lyanet", without_flow=flow)
    row = next(
        r for r in ranking.ranking_table(told, (Norm.L2, 0.5)).rows if r.anchor == "digits/lyanet"
    )
    assert "1.0" in [cell.text for cell in row.cells]
    assert "599 6 (1.0) 0.4–2.2" in Page(page_of(told, "digits/lyanet")).text


def test_each_certificate_wears_its_kind_and_a_refusal_its_reason(told, board):
    source = told["models/digits-lyanet.html"]
    for kind in (Kind.CERTIFIED, Kind.ESTIMATE):
        assert f'<span class="badge {kind.value}">{kind.value}</span>' in source
    text = Page(source).text
    for fact in ("encoder 563, prediction 36", "4.25", "Limited by: encoder"):
        assert fact in text
    refused = Page(told["models/digits-resnet.html"]).text
    assert f"lyapunov ℓ∞, ℓ2 {board.models[0].certificates[0].refusal}" in refused


def test_the_gravest_check_comes_first_with_a_link_to_what_it_means(told):
    source = told["models/digits-lyanet.html"]
    names = re.findall(r'href="../../../docs/attacks.md#([a-z-]+)"', source)
    assert names == ["masked-gradients", "batch-invariance"]
    text = Page(source).text
    assert "masked-gradients serious problem 0.25 0.05 masked-gradients was measured on 64" in text
    assert "batch-invariance no problem found" in text


def test_the_subset_of_a_costly_attack_is_listed(suite, board):
    text = Page(suite).text
    assert "autoattack was run on the first 64 of the 599 samples" in text
    assert ", ".join(map(str, board.suite.subsets["autoattack"][:4])) in text


@pytest.mark.parametrize(
    ("largest", "said"), [(0.0123, "41"), (0.000045, "11,000"), (0.0023, "220"), (0.2, "2.5")]
)
def test_how_much_a_difference_is_enlarged_is_said_in_plain_numbers(searched, largest, said):
    entry = searched.models[0]
    row = entry.nearest[0]
    example = row.examples[0].model_copy(update={"largest": largest})
    assert images.shown(entry, "", row.norm, example).change.endswith(
        f"drawn {said} times as strong"
    )


def test_a_page_of_a_model_begins_with_its_bracket_and_what_its_mark_means(searched):
    entry = next(e for e in searched.models if e.name == "digits/lyanet")
    threat = ranking.default_threat(searched)
    bracket = selection.find_bracket(entry, *threat)
    said = (
        f"{words.percent(bracket.certified.value)} % certified, "
        f"{words.percent(bracket.attacked.value)} % attacked (worst case)"
    )
    facts = model_page(searched, entry).split('<dl class="facts">')[1].split("</dl>")[0]
    first, second = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", facts)[:2]
    assert first == (f"robust accuracy at {words.threat_symbol(*threat)}", said)
    mark = ranking.trust(entry, searched)
    assert second == ("trust mark", f"{mark}: {ranking.MARKS[mark]}")


def test_the_nearest_images_are_shown_with_distances_and_classes(suite, told, board):
    text = Page(suite).text
    assert "image 17: 3 read as 8, ℓ∞ 0.0123" in text
    assert "difference drawn 41 times as strong" in text
    assert suite.count("data:image/png") == 2 * 4 * 3  # norms, models, parts
    assert told["models/digits-node.html"].count("data:image/png") == 2 * 3
    assert "data:image/png" not in suite_page(board)  # of which none are known
    assert "nearest adversarial images found" not in suite_page(board)


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", '"><img src=x onerror=y>'])
def test_foreign_words_are_shown_and_never_obeyed(board, hostile):
    entry = board.models[1]
    attack = entry.attacks[0].model_copy(update={"attack": hostile, "version": hostile})
    certificate = entry.certificates[1].model_copy(update={"reasons": {hostile: 3}})
    odd = boards.edit(
        board,
        "digits/node",
        name=hostile,
        description=hostile,
        attacks=[attack],
        certificates=[certificate],
    )
    summary = odd.suite.model_copy(update={"data": hostile, "settings": {hostile: [hostile]}})
    odd = odd.model_copy(update={"suite": summary})
    for name, source in html_pages(odd).items():
        page = Page(source)
        assert page.tags.count("script") == 1
        assert "img" not in page.tags
        assert re.fullmatch(r"index\.html|models/[a-z0-9.-]+\.html", name)
    assert hostile in Page(html_pages(odd)["index.html"]).text


def test_a_violation_is_spelt_out_first_and_its_model_marked(board):
    broken = boards.broken(board, boards.violation(7), boards.violation(9, pictured=True))
    source = suite_page(broken)
    assert 'class="verdict refuted"' in source
    page = Page(source)
    assert "image 7 (class 3) is certified by target-seeking to L2 0.5" in page.text
    assert sum(link.startswith("data:image/png;base64,") for link in page.links) == 3
    assert "image 9, class 3 read as 8" in page.text
    for fact in ("target-seeking", "broken at ℓ2 0.05", "the audit, pgd@deployed", "seed 4"):
        assert fact in page.text
    marks = {e.name: ranking.trust(e, broken) for e in broken.models}
    assert marks["digits/lyanet"] == "unsound"
    assert 'class="verdict refuted"' not in suite_page(board)


def test_a_probabilistic_accuracy_has_a_column_of_its_own(board):
    at = (Norm.LINF, 0.05)
    names = [h.name for h in ranking.ranking_table(board, at).headings]
    assert "probabilistic" not in names
    entry = board.models[1]
    share = entry.brackets[0].certified.model_copy(update={"count": 123})
    brackets = [b.model_copy(update={"probabilistic": share}) for b in entry.brackets]
    told = boards.edit(board, entry.name, brackets=brackets)
    table = ranking.ranking_table(told, at)
    place = [h.name for h in table.headings].index("probabilistic")
    assert sorted(row.cells[place].text for row in table.rows) == ["-", "-", "-", "20.5"]
    assert "20.5" in Page(page_of(told, entry.name)).text  # 123 of 599


def test_a_board_with_gaps_is_still_a_report(board):
    bare = boards.edit(
        board,
        "digits/node",
        brackets=[],
        attacks=[],
        certificates=[],
        curves=[],
        decay=None,
        nfe=None,
        audits=[],
        flags=[],
        samples=None,
    )
    suite = bare.suite.model_copy(update={"subsets": {}, "settings": {}})
    gaps = bare.model_copy(update={"suite": suite, "timings": {}, "environment": {}, "created": ""})
    texts = {name: Page(source).text for name, source in html_pages(gaps).items()}
    assert "not evaluated" in texts["index.html"]
    assert "unchecked" in texts["index.html"]
    Page(suite_page(board.model_copy(update={"models": []})))


def test_models_of_like_names_have_pages_and_anchors_of_their_own(board):
    names = ["a b", "A-b", "a b", "名前", "../../x", "a-b-2"]
    models = [board.models[0].model_copy(update={"name": name}) for name in names]
    told = board.model_copy(update={"models": models})
    files = pages.model_pages(told)
    assert len(set(files)) == len(names)
    assert all(re.fullmatch(r"models/[a-z0-9][a-z0-9.-]*\.html", file) for file in files)
    anchors = [pages.anchor(told, model) for model in models]
    assert len(set(anchors)) == len(names)
    assert not any(" " in anchor for anchor in anchors)


def test_a_table_is_the_same_on_a_page_in_markdown_and_as_csv(searched):
    table = ranking.ranking_table(searched, (Norm.LINF, 0.05))
    lines = table_csv(table).splitlines()
    assert lines[0].startswith("#,model,family,clean,certified,attacked,PGD − worst")
    best = ranking.ranked(searched, (Norm.LINF, 0.05))[0]
    assert f"1,{best[0].name}," in lines[1]
    assert repr(best[1].certified.value) in lines[1]
    markdown = table_markdown(table).splitlines()
    assert len(markdown) == len(lines) + 1
    assert {line.count(" | ") for line in markdown[2:]} == {markdown[0].count(" | ")}
    assert f"{100 * best[1].certified.value:.1f}" in markdown[2]


def test_rare_reasons_are_summed_in_one_line(board):
    row = board.models[1].certificates[1]
    many = {f"reason {i}": 10 - i for i in range(8)}
    shown = model_sections.reasons(row.model_copy(update={"reasons": many}))
    assert shown[:2] == [("reason 0", 10), ("reason 1", 9)]
    assert shown[-1] == ("4 other reasons", 6 + 5 + 4 + 3)
    assert sum(n for _, n in shown) == sum(many.values())


def test_one_more_reason_is_named_rather_than_counted(board):
    row = board.models[1].certificates[1]
    assert model_sections.reasons(row) == list(row.reasons.items())


def test_only_screens_get_cards_for_tables(suite):
    # Paper is narrow, too, and would get them, and figures wider than it is.
    style = suite.split("<style>")[1].split("</style>")[0]
    assert "@media screen and (max-width:" in style
    assert "@media (max-width:" not in style


def test_a_page_says_by_which_commits_its_units_were_computed(searched):
    here, before = "c" * 40, "b" * 40
    environment = searched.environment | {"commit": here}
    for by, said in (
        ([], ()),
        ([here], ()),
        ([before, f"{here}, with changes"], (before[:12], f"{here[:12]} with changes")),
    ):
        board = searched.model_copy(update={"environment": environment, "computed_by": by})
        text = Page(suite_page(board)).text
        assert f"Commit {here}" in text
        assert ("computed by the same attacks and proofs of commit" in text) == bool(said)
        assert all(words in text for words in said)
