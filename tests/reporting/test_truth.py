"""What stands beside an attacked figure: what attacked, what the checks say, on which images."""

import csv
import io
import re

import boards
import pytest
from rich.console import Console

from robustness.reporting import figures, prose, selection
from robustness.reporting.compare import compare, render
from robustness.reporting.html import html_text
from robustness.reporting.markdown import markdown_text
from robustness.reporting.tables import csv_text, summary_table
from robustness.results.leaderboard import (
    AttackRow,
    Flag,
    Leaderboard,
    Proportion,
    WholeTestSet,
)
from robustness.results.severity import Severity, severity
from robustness.threat import Norm

WORST = "standard effort, 3 stages: the rest"
QUICK = "quick effort, 2 stages: the rest"


def row(
    attack: str, version: str = "", subset: int = boards.SAMPLES, eps: float = 0.1
) -> AttackRow:
    return AttackRow(
        attack=attack,
        version=version,
        norm=Norm.LINF,
        eps=eps,
        robust=Proportion.of(1, subset),
        subset=subset,
        errors=0,
        rejected=0,
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no attack"),
        ([row("pgd")], "PGD only"),
        ([row("fgsm"), row("pgd"), row("pgd", eps=0.2)], "FGSM, PGD only"),
        ([row("pgd"), row("autoattack", subset=64)], "PGD, AutoAttack on 64 only"),
        ([row("pgd"), row("worst-case", QUICK)], "PGD, quick worst case only"),
        ([row("pgd"), row("worst-case", WORST)], "worst case"),
        ([row("pgd"), row("worst-case", "thorough effort, 30 stages")], "thorough worst case"),
        ([row("worst-case", WORST, subset=64)], "worst case on 64 only"),
    ],
)
def test_the_strength_of_an_attacked_figure_is_what_attacked_there(
    board: Leaderboard, rows: list[AttackRow], said: str
) -> None:
    entry = board.models[0].model_copy(update={"attacks": rows})
    assert selection.strength(entry, Norm.LINF, 0.1) == said


def test_the_effort_of_a_worst_case_is_said_and_not_read_off_its_version(
    board: Leaderboard,
) -> None:
    written = row("worst-case", "stages of another wording").model_dump() | {"effort": "quick"}
    entry = board.models[0].model_copy(update={"attacks": [AttackRow.model_validate(written)]})
    assert selection.strength(entry, Norm.LINF, 0.1) == "quick worst case only"
    assert row("pgd", "standard effort").effort is None


@pytest.fixture
def mixed(board: Leaderboard) -> Leaderboard:
    """The worst case at l-infinity 0.1 alone, as in a suite that affords no more."""
    models = [
        m.model_copy(update={"attacks": [*m.attacks, row("worst-case", WORST)]})
        for m in board.models
    ]
    return board.model_copy(update={"models": models})


def printed(table: object) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    return " ".join(console.file.getvalue().split())


def test_every_attacked_figure_carries_its_strength_wherever_it_is_shown(
    mixed: Leaderboard,
) -> None:
    text = markdown_text(mixed, [])
    headings = [line for line in text.splitlines() if line.startswith("| model |")]
    assert any("ℓ∞ 0.05, FGSM, PGD only | width | ℓ∞ 0.1, worst case" in h for h in headings)
    assert any("certified–attacked, worst case" in h for h in headings)
    assert re.search(r"\| ℓ∞ 0\.05 \| [^|]+\| [^|]+\| [^|]+\| [^|]+\| FGSM, PGD only \|", text)
    page = html_text(mixed, {})
    assert "<th>0.05<small>FGSM, PGD only</small></th>" in page
    assert "<th>0.1<small>worst case</small></th>" in page
    assert "</small><small>worst case</small></th>" in page  # the headline
    rows = csv.DictReader(io.StringIO(csv_text(mixed)))
    attacked = {(r["norm"], r["eps"], r["method"]) for r in rows if r["quantity"] == "attacked"}
    assert ("Linf", "0.1", "worst case") in attacked
    assert ("Linf", "0.05", "FGSM, PGD only") in attacked
    assert all(method for _, _, method in attacked)
    assert "attacked at Linf 0.1 by: worst case" in printed(summary_table(mixed))
    assert "Linf 0.05, FGSM," in printed(render(compare(mixed, mixed)))


def test_figures_draw_weaker_attacks_with_other_hollow_marks(mixed: Leaderboard) -> None:
    figure = figures.bracket_figure(mixed)
    assert figure is not None
    named = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert {"by worst case", "by FGSM, PGD only"} <= named
    panel = figure.axes[0]  # l-infinity of the first model
    marked = {
        (line.get_xdata()[0], line.get_marker(), line.get_markerfacecolor())
        for line in panel.lines
        if line.get_linestyle() == "None" and len(line.get_xdata()) == 1
    }
    hollow = {x for x, _, face in marked if face == "white"}
    assert {0.02, 0.05, 0.2} <= hollow
    assert 0.1 in {x for x, marker, face in marked if marker == "o" and face != "white"}


def flag(name: str, raised: bool = True, value: float | None = 0.5) -> Flag:
    return Flag(name=name, raised=raised, value=value, threshold=0.05, detail=f"{name} on 64")


FLAGS = [
    flag("adjoint-agreement"),
    flag("logits"),
    flag("masked-gradients"),
    flag("randomness", raised=False),
    flag("more-steps", value=None),
]


def test_verdicts_are_words_that_cannot_be_read_the_other_way_round() -> None:
    assert [prose.verdict(f) for f in FLAGS] == [
        "note",
        "caution",
        "serious problem",
        "no problem found",
        "could not be checked",
    ]


def test_a_note_is_no_badge_and_the_gravest_comes_first(board: Leaderboard) -> None:
    told = boards.edit(board, "digits/node", flags=FLAGS)
    text = markdown_text(told, [])
    named = next(line for line in text.splitlines() if line.startswith("| `digits/node` ["))
    badges = re.findall(r"\[(.*?: [\w-]+)\]", named)
    assert badges == ["⚑ serious: masked-gradients", "⚑ serious: more-steps", "caution: logits"]
    assert "- ⚑ **could not be checked**, [more-steps]" in text
    assert "- **note**, [adjoint-agreement]" in text
    assert "[adjoint-agreement](../../docs/attacks.md#adjoint-agreement) | note |" in text
    page = html_text(told, {})
    assert '<span class="flag note">note</span>' in page
    assert '<span class="flag none">no problem found</span>' in page
    assert ">serious: adjoint-agreement<" not in page
    for word in ("raised", "down"):
        assert f">{word}<" not in page
        assert f"| {word} |" not in text


@pytest.mark.parametrize("name", ["silent-success", "incomplete-optimisation"])
def test_a_check_of_the_attacks_is_a_caution_with_its_definition(
    board: Leaderboard, name: str
) -> None:
    told = boards.edit(board, "digits/node", flags=[flag(name)])
    text = markdown_text(told, [])
    assert f"[caution: {name}](../../docs/attacks.md#{name})" in text
    assert f"- **caution**, [{name}]" in text
    assert f'docs/attacks.md#{name}"' in html_text(told, {})


def test_a_note_alone_casts_no_doubt_on_attacked_figures(board: Leaderboard) -> None:
    entry = board.models[1].model_copy(update={"flags": [flag("adjoint-agreement")]})
    assert not selection.doubted(entry)
    assert severity("adjoint-agreement") is Severity.NOTE
    assert severity("a check of tomorrow") is Severity.SERIOUS


def test_clean_accuracy_on_few_images_has_that_of_the_whole_test_set_beside_it(
    board: Leaderboard,
) -> None:
    whole = WholeTestSet(
        weights_sha256="cd" * 32, clean=Proportion.of(9876, 10_000), without_flow=None
    )
    told = boards.edit(board, "digits/resnet", whole=whole)
    clean = f"{100 * board.models[0].clean.value:.1f}"
    text = markdown_text(told, [])
    assert "| model | clean, 599 samples | clean, whole test set |" in text
    assert f"| `digits/resnet` | {clean} | 98.76 |" in text
    assert f"{clean}% of 599 samples, 98.76% of the 10,000 test images" in text
    page = html_text(told, {})
    assert "98.76<small>10,000 images</small>" in page
    assert "98.76% of the whole test set (9,876 of 10,000)" in page
    assert "clean_whole_test_set,,9876,10000" in csv_text(told).replace(",,,", ",,")
    # Where the suite saw the whole of it, it is not said twice.
    same = whole.model_copy(update={"clean": board.models[0].clean})
    assert "whole test set" not in markdown_text(
        boards.edit(board, "digits/resnet", whole=same), []
    )


def test_the_hash_of_the_weights_and_the_digest_of_the_model_have_names_of_their_own(
    board: Leaderboard,
) -> None:
    whole = WholeTestSet(weights_sha256="cd" * 32, clean=board.models[0].clean, without_flow=None)
    told = boards.edit(board, "digits/resnet", whole=whole)
    digest = board.models[0].digest
    text = markdown_text(told, [])
    assert f"digest of weights and architecture `{digest[:12]}`" in text
    assert "weights SHA-256 `cdcdcdcdcdcd`" in text
    page = html_text(told, {})
    assert f'<dt>digest of weights and architecture</dt><dd class="mono" title="{digest}">' in page
    assert f'<dt>weights, SHA-256</dt><dd class="mono" title="{"cd" * 32}">' in page
    assert f"weights `{digest[:12]}`" not in text


def test_why_samples_failed_is_said_in_both_reports_and_cannot_write_markup(
    board: Leaderboard,
) -> None:
    known = {f"RuntimeError: <b>{i}</b>": 9 - i for i in range(7)}
    edited = boards.edit(board, "digits/node", failures=known)
    page, lines = html_text(edited, {}), markdown_text(edited, [])
    for text in (page, lines):
        assert "Samples failed: 9 × RuntimeError: " in text
        assert "and 2 other reasons." in text
        assert "<b>0</b>" not in text
    assert "Samples failed" not in html_text(board, {}) + markdown_text(board, [])
    assert '"failures"' in edited.to_json()
    assert '"failures"' not in board.to_json()
