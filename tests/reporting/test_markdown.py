import re

import boards
import pytest

from robustness.reporting import words
from robustness.reporting.html import html_pages, suite_figures
from robustness.reporting.markdown import markdown_text
from robustness.results.leaderboard import Proportion, WholeTestSet, WithoutFlow


def test_the_subset_of_a_costly_attack_is_named_and_listed(board):
    text = markdown_text(board)
    assert "`autoattack` was run on the first 64 of the 599 samples" in text
    assert ", ".join(map(str, board.suite.subsets["autoattack"][:4])) in text


def test_every_bracket_and_width_is_in_the_file(board):
    text = markdown_text(board)
    for entry in board.models:
        mine = text.split(f"## `{entry.name}`\n")[1].split("\n## ")[0]
        for b in entry.brackets:
            low, high = 100 * b.certified.value, 100 * b.attacked.value
            (line,) = [
                line
                for line in mine.split("### Brackets")[1].splitlines()
                if line.startswith(f"| {words.threat_symbol(b.norm, b.eps)} |")
            ]
            assert f"| {low:.1f} (" in line
            assert f"| {high:.1f} (" in line
            assert line.endswith(f"| {100 * b.width:.1f} |")


def test_the_soundness_line_stands_near_the_top(board):
    head = markdown_text(board).split("## At ")[0]
    assert "**Soundness**: no violation; 80 certified images audited" in head
    head = markdown_text(boards.broken(board, boards.violation(pictured=True))).split("## At ")[0]
    assert "1 VIOLATION" in head
    assert "- digits/lyanet: image 7 (class 3) is certified by target-seeking to L2 0.5" in head
    assert "![adversarial](counterexamples/01-adversarial.png)" in head


def test_certificates_attacks_environment_and_settings_have_their_tables(board):
    text = markdown_text(board)
    for line in (
        "| lyapunov | estimate |",
        "| target-seeking | certified |",
        "| lyapunov | ℓ∞, ℓ2 | the model exposes no vector field",
        "| autoattack (pyautoattack 0.2 standard (100 steps, 5000 queries)) | 64 |",
        "| encoder 563, prediction 36 (211: Lipschitz bound of the margin over class 8;",
        "| ℓ2 | 40 | 0 | 0 | 0.01 | 0.9 |",
        "| [masked-gradients](../../docs/attacks.md#masked-gradients) | **serious problem** |",
        "| [**masked**](models/digits-lyanet.html#checks) (masked-gradients) |",
        "| torch | 2.13.0 |",
        "| seed | 0 |",
    ):
        assert line in text, line


def test_the_figures_that_are_drawn_are_shown(board, searched):
    for told in (board, searched):
        shown = re.findall(r"\]\(figures/(\w+)\.svg\)", markdown_text(told))
        assert shown == [figure.name for first, figure in suite_figures(told) if first]


def test_all_rows_of_a_table_have_as_many_cells_as_its_heading(board):
    hostile = "a|b\n`c` <script>"
    odd = boards.edit(board, "digits/node", name=hostile, description=hostile)
    block: list[str] = []
    for line in [*markdown_text(odd).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            bars = {row.replace("\\|", "").count("|") for row in block}
            assert len(bars) == 1
            block = []
    assert "<script>" not in markdown_text(odd).replace("\\<script\\>", "")


def test_what_the_flow_decides_has_a_line_for_every_set_of_images(board):
    flow = WithoutFlow(other=Proportion.of(6, 599), clean=Proportion.of(570, 599))
    whole = WholeTestSet(
        weights_sha256="ab" * 32,
        clean=Proportion.of(9000, 10_000),
        without_flow=WithoutFlow(other=Proportion.of(0, 10_000), clean=Proportion.of(9000, 10_000)),
    )
    told = boards.edit(board, "digits/lyanet", without_flow=flow, whole=whole)
    text = markdown_text(told)
    parts = {
        name: text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        for name in ("digits/resnet", "digits/node", "digits/lyanet")
    }
    clean = next(e.clean for e in board.models if e.name == "digits/lyanet")
    assert f"| 599 | 6 (1.0) | 0.4–2.2 | {100 * clean.value:.1f} | 95.2 |" in parts["digits/lyanet"]
    assert "| 10,000 | 0 (0.0) | 0.0–0.0 | 90.0 | 90.0 |" in parts["digits/lyanet"]
    assert "| 599 | not measured | - |" in parts["digits/node"]
    assert "without the flow" not in parts["digits/resnet"]


@pytest.mark.parametrize("name", ["=1+1", "<b>`x`</b>", "<img src=x>", "a|b", "\x1b[31mred", "$x$"])
def test_names_of_others_neither_mark_up_nor_steer_a_page(board, name):
    odd = boards.edit(board, "digits/node", name=name, description=f"{name} described")
    for page in (markdown_text(odd), *html_pages(odd).values()):
        assert "\x1b" not in page
        assert "<b>" not in page.replace("\\<b\\>", "")
        assert "<img src=x>" not in page
