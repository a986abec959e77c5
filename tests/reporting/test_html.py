import re
from html.parser import HTMLParser

import boards
import pytest

from robustness.certificates.base import Kind
from robustness.reporting.html import html_text, reasons
from robustness.results.leaderboard import Proportion, WithoutFlow

VOID = {"meta", "br", "img", "rect", "col", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, links and visible text, and checks that elements nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids, self.words = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def source(drawn):
    return html_text(boards.leaderboard(), drawn.figures)


def test_what_the_flow_decides_stands_on_the_page(board):
    flow = WithoutFlow(other=Proportion.of(6, 599), clean=Proportion.of(570, 599))
    page = Page(render(boards.edit(board, "digits/lyanet", without_flow=flow)))
    assert "digits/lyanet 599 6 (1.0) 0.4–2.2" in page.text
    assert "flow" in page.ids


def render(board):
    return html_text(board, {})


def test_the_page_asks_for_nothing_outside_itself(source):
    assert "http://" not in source
    assert "https://" not in source
    assert "@import" not in source
    assert "url(" not in source
    page = Page(source)
    assert {"script", "link", "iframe"}.isdisjoint(page.tags)
    ways = ("#", "data:image/svg+xml;base64,", "../../docs/attacks.md#")
    assert all(link.startswith(ways) for link in page.links)
    assert sum(link.startswith("data:") for link in page.links) == 5


def test_links_inside_the_page_lead_somewhere_and_ids_are_unique(source):
    page = Page(source)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_page_says_what_it_was_run_on(source):
    text = Page(source).text
    assert "599 samples of the test split of digits, seed 0" in text
    assert "no violation; 80 certified images audited" in text
    assert "2.13.0" in text
    assert "11 min 42 s" in text


def test_every_model_has_its_bracket_width_in_the_headline(source, board):
    text = Page(source).text
    for entry in board.models:
        assert entry.description in text
        bracket = next(b for b in entry.brackets if b.eps == 0.5)
        assert re.search(
            rf"{entry.name} (serious: masked-gradients )?{100 * bracket.width:.1f} ", text
        )


def test_each_certificate_wears_its_kind_and_a_refusal_its_reason(source, board):
    text = Page(source).text
    for kind in (Kind.CERTIFIED, Kind.ESTIMATE):
        assert f'<span class="badge {kind.value}">{kind.value}</span>' in source
    assert "refuses" in text
    assert board.models[0].certificates[0].refusal in text


def test_the_subset_of_a_costly_attack_is_listed(source, board):
    text = Page(source).text
    assert "autoattack was run on the first 64 of the 599 samples" in text
    assert ", ".join(map(str, board.suite.subsets["autoattack"][:4])) in text


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
    suite = odd.suite.model_copy(update={"data": hostile, "settings": {hostile: [hostile]}})
    svg = b"<svg/>"
    page = Page(html_text(odd.model_copy(update={"suite": suite}), {"decay": svg}))
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert hostile in page.text


def test_a_violation_turns_the_verdict_red_and_is_spelt_out(board):
    source = render(boards.broken(board, boards.violation()))
    assert 'class="verdict unsound"' in source
    assert "image 7 (class 3) is certified by target-seeking to L2 0.5" in Page(source).text
    assert 'class="verdict unsound"' not in render(board)


def test_a_counter_example_is_shown_with_its_numbers(board):
    source = render(boards.broken(board, boards.violation(7), boards.violation(9, pictured=True)))
    page = Page(source)
    assert sum(link.startswith("data:image/png;base64,") for link in page.links) == 3
    assert "image 9, class 3 read as 8" in page.text
    for fact in ("target-seeking", "broken at ℓ2 0.05", "the audit, pgd@deployed", "seed 4"):
        assert fact in page.text


def test_a_serious_problem_is_a_badge_with_a_link_and_a_check_that_found_none_is_not(source):
    (name,) = set(re.findall(r'class="flag serious" href="([^"]+)"', source))
    assert name == "../../docs/attacks.md#masked-gradients"
    text = Page(source).text
    assert "masked-gradients serious problem 0.25 0.05 masked-gradients was measured on 64" in text
    assert "batch-invariance no problem found" in text


def test_certificates_say_what_they_won_what_they_cost_and_what_limits_them(source):
    text = Page(source).text
    assert "encoder 563, prediction 36" in text
    assert "4.25" in text
    assert "Limited by: encoder" in text


def test_a_probabilistic_accuracy_has_a_column_of_its_own(board):
    assert "probabilistic 95%" not in Page(render(board)).text
    entry = board.models[1]
    share = entry.brackets[0].certified.model_copy(update={"count": 123})
    brackets = [b.model_copy(update={"probabilistic": share}) for b in entry.brackets]
    text = Page(render(boards.edit(board, entry.name, brackets=brackets))).text
    assert "probabilistic 95% interval" in text
    assert "20.5" in text  # 123 of 599


def test_a_board_with_gaps_is_still_a_page(board):
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
    gaps = bare.model_copy(update={"suite": suite, "timings": {}, "environment": {}})
    text = Page(render(gaps.model_copy(update={"created": ""}))).text
    assert "not evaluated" in text
    Page(render(board.model_copy(update={"models": []})))


def test_rare_reasons_are_summed_in_one_line(board):
    row = board.models[1].certificates[1]
    many = {f"reason {i}": 10 - i for i in range(8)}
    shown = reasons(row.model_copy(update={"reasons": many}))
    assert shown[:2] == [("reason 0", 10), ("reason 1", 9)]
    assert shown[-1] == ("4 other reasons", 6 + 5 + 4 + 3)
    assert sum(n for _, n in shown) == sum(many.values())


def test_one_more_reason_is_named_rather_than_counted(board):
    row = board.models[1].certificates[1]
    assert reasons(row) == list(row.reasons.items())
