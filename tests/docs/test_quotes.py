"""What README and docs quote of reports and cards is what these say."""

import json
import re

import pytest

from robustness.cards import quotes
from robustness.errors import UsageError
from robustness.zoo import zoo_folder

ROOT = zoo_folder().parent


@pytest.fixture(scope="module")
def sources() -> quotes.Sources:
    return quotes.committed()


@pytest.mark.parametrize("page", quotes.pages(ROOT), ids=lambda page: page.name)
def test_a_page_quotes_what_its_sources_say(page, sources) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == quotes.quoted(text, sources), "run `python -m robustness.cards.quotes`"


def test_the_tables_and_figures_of_the_readme_are_quotes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("<!-- table:") == 2
    bare = re.sub(r"<!-- table:.*?<!-- /table -->|<!-- =.*?<!-- /= -->", "", text, flags=re.S)
    assert re.findall(r"\d+\.\d+ %|^\|.*\d", bare, re.M) == []


def test_other_results_are_quoted_otherwise(sources) -> None:
    board = sources.boards["digits"]
    entry = next(m for m in board.models if m.name == "digits/lyanet")
    bracket = entry.brackets[0]
    other = bracket.model_copy(
        update={"attacked": bracket.attacked.model_copy(update={"count": 123, "value": 123 / 599})}
    )
    eps = f"{bracket.norm}/{bracket.eps}"
    text = (
        f"it keeps <!-- = attacked digits digits/lyanet {eps} -->9.9<!-- /= --> %, that is "
        f"<!-- = standing digits digits/lyanet {eps} -->9<!-- /= -->\n\n"
        f"<!-- table: digits {eps} | digits/lyanet -->\n<!-- /table -->\n"
    )
    changed = board.model_copy(
        update={
            "models": [
                m.model_copy(update={"brackets": [other, *m.brackets[1:]]})
                if m.name == entry.name
                else m
                for m in board.models
            ]
        }
    )
    said = [
        quotes.quoted(text, quotes.Sources({"digits": b}, sources.measured, sources.proofs))
        for b in (board, changed)
    ]
    assert said[0] != said[1]
    assert "-->20.5<!--" in said[1]
    assert "-->123<!--" in said[1]
    assert "–20.5 |" in said[1]
    # What was written is written again as it is.
    assert quotes.quoted(said[1], quotes.Sources({"digits": changed}, len, len)) == said[1]


def test_sentences_of_claims_are_quoted(tmp_path) -> None:
    (tmp_path / "claims").mkdir()
    claims = {"claims": [], "sentences": {"It is better": "of 2 comparisons", "Faster": "of 3"}}
    (tmp_path / "claims" / "claims.json").write_text(json.dumps(claims))
    sources = quotes.Sources({}, len, len, tmp_path)
    said = quotes.quoted("a <!-- = sentence claims 2 --><!-- /= -->", sources)
    assert "-->Faster: of 3<!--" in said
    with pytest.raises(UsageError, match="claim of reports/claims"):
        quotes.quoted("a <!-- = sentence claims 3 --><!-- /= -->", sources)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "-->19 of 20 drawn from 1,275<!--"),
        ({"to_the_bit": 11}, "19 of 20 drawn from 1,275 (11 to the bit)"),
        ({"different": ["a unit", "the summary"]}, "1,275, and 2 things differed"),
        ({"report": "of another report"}, "none were drawn"),
        (None, "none were drawn"),
    ],
)
def test_what_was_computed_again_of_this_very_report_is_quoted(
    changes, said, tmp_path, sources
) -> None:
    board = sources.boards["digits"]
    again = {
        "same": {"count": 19, "total": 20, "low": 0.75, "high": 0.99},
        "to_the_bit": 19,
        "units": 1275,
        "different": [],
        "report": board.digest(),
    }
    record = {"made": {}, "recomputed": {} if changes is None else {"part": again | changes}}
    (tmp_path / "reproduced.json").write_text(json.dumps(record))
    of = quotes.Sources({"digits": board}, len, len, tmp_path)
    assert said in quotes.quoted("a <!-- = again part digits --><!-- /= -->", of)


def test_figures_of_others_are_quoted_as_theirs_and_only_where_there_are_any(sources) -> None:
    models = "mnist/gains-0.11-seed-12345 mnist/gains-0.22-seed-12345"
    text = f"<!-- table: peers/mnist Linf/0.1 paper:Linf/0.1 | {models} -->\n<!-- /table -->\n"
    head, _, first, second = quotes.quoted(text, sources).split("\n")[2:6]
    assert head.endswith(" | ℓ∞ 0.1, certified in their paper |")
    assert first.endswith(" | 89.0 |")
    assert second.endswith(" |  |")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a <!-- = images digits -->9", "its end"),
        ("<!-- table: digits clean -->\n", "its end"),
        ("<!-- = images digits -->9<!-- /= -->", "start of a line"),
        ("a <!-- = imges digits -->9<!-- /= -->", "figure to quote"),
        ("a <!-- = images -->9<!-- /= -->", "expected suite after"),
        ("a <!-- = images digts -->9<!-- /= -->", "folder of reports"),
        ("a <!-- = clean digits digits/none -->9<!-- /= -->", "model of reports/digits"),
        ("a <!-- = attacked digits digits/node Linf/7 -->9<!-- /= -->", "bracket of digits/node"),
        ("a <!-- = alone digits digits/node cw Linf/0.1 -->9<!-- /= -->", "not run"),
        ("a <!-- = proved mnist/lyanet-certified L2/7 -->9<!-- /= -->", "proof of"),
        ("a <!-- = flow digits/resnet -->9<!-- /= -->", "with a flow"),
    ],
)
def test_a_mark_that_asks_for_what_is_not_there_is_refused(text, said, sources) -> None:
    with pytest.raises(UsageError, match=said):
        quotes.quoted(text, sources)


def test_stale_pages_are_found_and_mended(tmp_path, monkeypatch, sources, capsys) -> None:
    page = tmp_path / "README.md"
    page.write_text("of <!-- = images digits -->9<!-- /= --> images\n", encoding="utf-8")
    monkeypatch.setattr(quotes, "zoo_folder", lambda: tmp_path / "models")
    monkeypatch.setattr(quotes, "committed", lambda: sources)
    assert quotes.main(["--check"]) == 1
    assert "-->9<!--" in page.read_text(encoding="utf-8")
    assert quotes.main([]) == 0
    assert "-->599<!--" in page.read_text(encoding="utf-8")
    capsys.readouterr()
    assert quotes.main(["--check"]) == 0
    assert capsys.readouterr().out == ""


def test_a_table_of_suites_is_of_all_or_of_those_that_are_named(sources) -> None:
    def suites(chosen: str) -> list[str]:
        said = quotes.quoted(f"<!-- table: suites reports{chosen} -->\n<!-- /table -->\n", sources)
        return re.findall(r"^\| \[([^\]]+)\]", said, re.M)

    assert suites("") == sorted(sources.boards)
    assert suites(" mnist digits") == ["digits", "mnist"]
    with pytest.raises(UsageError, match="digist"):
        suites(" digist")
