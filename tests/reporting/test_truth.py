"""What stands beside an attacked figure: what attacked, what the checks say, on which images."""

import csv
import io
import re

import boards
import pytest
from rich.console import Console

from robustness.reporting import figures, prose, ranking, selection
from robustness.reporting.compare import compare, render
from robustness.reporting.html import html_pages, model_page, suite_page
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
    text = markdown_text(mixed)
    weak, strong = (
        text.split(f"## At ℓ∞ {eps}\n")[1].split("\n## ")[0].splitlines() for eps in (0.05, 0.1)
    )
    assert "attacked, %, FGSM, PGD only |" in weak[1]
    assert "attacked, %, worst case |" in strong[1]
    assert re.search(r"\| ℓ∞ 0\.05 \| [^|]+\| [^|]+\| FGSM, PGD only \|", text)
    page = suite_page(mixed)
    for said in ("%, FGSM, PGD only", "%, worst case"):
        assert f'<th scope="col">attacked<small>{said}</small></th>' in page
    some = boards.edit(mixed, "digits/node", attacks=mixed.models[1].attacks[:-1])
    table = ranking.ranking_table(some, (Norm.LINF, 0.1))  # where they differ, in every cell
    place = [heading.name for heading in table.headings].index("attacked")
    by = {row.anchor: row.cells[place].notes[0].text for row in table.rows}
    assert by["digits/lyanet"] == "worst case"
    assert by["digits/node"] == "FGSM, PGD, AutoAttack on 64 only"
    rows = csv.DictReader(io.StringIO(csv_text(mixed)))
    attacked = {(r["norm"], r["eps"], r["method"]) for r in rows if r["quantity"] == "attacked"}
    assert ("Linf", "0.1", "worst case") in attacked
    assert ("Linf", "0.05", "FGSM, PGD only") in attacked
    assert all(method for _, _, method in attacked)
    assert "attacked at Linf 0.1 by: worst case" in printed(summary_table(mixed))
    assert "Linf 0.05, FGSM," in printed(render(compare(mixed, mixed)))


def test_no_plain_attack_is_said_to_mislead_where_nothing_stronger_ran(
    mixed: Leaderboard,
) -> None:
    entry = mixed.models[0]
    assert ranking.gap(entry, "pgd", (Norm.LINF, 0.05)) is None
    assert ranking.gap(entry, "autoattack", (Norm.LINF, 0.1)) is None  # it saw 64 images
    assert ranking.gap(entry, "pgd", (Norm.LINF, 0.1)) is not None
    said = ranking.found(mixed, (Norm.LINF, 0.05))
    assert said[1].startswith("No worst case was run there")


def test_a_suite_of_the_worst_case_alone_is_not_said_to_have_none(mixed: Leaderboard) -> None:
    """Nor that an orange line is drawn, of an attack that did not run."""
    only = mixed.model_copy(
        update={
            "models": [
                entry.model_copy(
                    update={"attacks": [r for r in entry.attacks if r.attack == "worst-case"]}
                )
                for entry in mixed.models
            ]
        }
    )
    threat = (Norm.LINF, 0.1)
    assert ranking.found(only, threat)[1].startswith("No plain attack was run")
    assert ranking.found(only, (Norm.LINF, 0.05))[1].startswith("No worst case was run")
    first = only.models[0].model_copy(update={"attacks": []})
    some = only.model_copy(update={"models": [first, *only.models[1:]]})
    assert ranking.found(some, threat)[1].startswith(
        f"No worst case was run there on 1 of {len(only.models)} models, so"
    )
    drawn, with_plain = figures.dumbbells(only, threat), figures.dumbbells(mixed, threat)
    assert drawn is not None
    assert with_plain is not None
    assert "orange" not in drawn.caption
    assert "PGD alone" in with_plain.caption


def test_a_plain_attack_is_not_named_as_what_shows_that_it_misleads(board: Leaderboard) -> None:
    told = boards.with_worst_case(board)
    threat = (Norm.LINF, 0.1)

    def said(found_by: dict[str, int]) -> str:
        models = [
            entry.model_copy(
                update={
                    "attacks": [
                        r.model_copy(update={"found_by": found_by})
                        if r.attack == "worst-case"
                        else r
                        for r in entry.attacks
                    ]
                }
            )
            for entry in told.models
        ]
        return ranking.found(told.model_copy(update={"models": models}), threat)[1]

    assert "PGD misleads most about digits/lyanet" in said({})
    shown = said({"pgd": 200, "fgsm": 90, "ascent-ce-10@deployed": 7, "square@deployed": 3})
    assert "(ascent-ce-10@deployed broke 7 images)" in shown
    assert " broke " not in said({"fgsm": 90, "pgd": 200})


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
    text = markdown_text(told)
    row = next(
        row
        for row in ranking.ranking_table(told, (Norm.LINF, 0.1)).rows
        if row.anchor == "digits/node"
    )
    assert row.cells[-1].text == "masked"
    assert [n.text for n in row.cells[-1].notes] == ["masked-gradients", "and 2 more"]
    names = re.findall(r"^- .*?, \[([\w-]+)\]", text.split("## `digits/node`")[1], re.MULTILINE)
    assert names[:4] == ["masked-gradients", "more-steps", "logits", "adjoint-agreement"]
    assert "- ⚑ **could not be checked**, [more-steps]" in text
    assert "- **note**, [adjoint-agreement]" in text
    assert "[adjoint-agreement](../../docs/attacks.md#adjoint-agreement) | note |" in text
    page = model_page(told, told.models[1])
    assert '<span class="badge unchecked">note</span>' in page
    assert '<span class="badge sound">no problem found</span>' in page
    assert ranking.trust(told.models[1], told) == "masked"
    for word in ("raised", "down"):
        assert f">{word}<" not in page
        assert f"| {word} |" not in text


@pytest.mark.parametrize("name", ["silent-success", "incomplete-optimisation"])
def test_a_check_of_the_attacks_is_a_caution_with_its_definition(
    board: Leaderboard, name: str
) -> None:
    told = boards.edit(board, "digits/node", flags=[flag(name)])
    text = markdown_text(told)
    assert f"- **caution**, [{name}](../../docs/attacks.md#{name})" in text
    assert ranking.trust(told.models[1], told) == "caution"
    assert f'docs/attacks.md#{name}"' in model_page(told, told.models[1])


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
    text = markdown_text(told)
    assert "| clean, % of all 10,000 |" in text
    assert "| [digits/resnet](models/digits-resnet.html) | - | 98.76 |" in text
    assert f"clean accuracy {clean} % (" in text
    assert "clean, whole test set 98.76 % (9,876 of 10,000)" in text
    # Models of which it is not known say on how many images theirs is.
    assert re.search(r"\[digits/node\].*\| - \| [\d.]+ \(of 599\) \|", text)
    page = model_page(told, told.models[0])
    assert "<dt>clean, whole test set</dt><dd>98.76 % (9,876 of 10,000)</dd>" in page
    assert "clean_whole_test_set,,9876,10000" in csv_text(told).replace(",,,", ",,")
    # Where the suite saw the whole of it, it is not said twice.
    same = whole.model_copy(update={"clean": board.models[0].clean})
    assert "whole test set" not in markdown_text(boards.edit(board, "digits/resnet", whole=same))


def test_the_hash_of_the_weights_and_the_digest_of_the_model_have_names_of_their_own(
    board: Leaderboard,
) -> None:
    whole = WholeTestSet(weights_sha256="cd" * 32, clean=board.models[0].clean, without_flow=None)
    told = boards.edit(board, "digits/resnet", whole=whole)
    digest = board.models[0].digest
    text = markdown_text(told)
    assert f"digest of weights and architecture {digest}" in text
    assert f"weights, SHA-256 {'cd' * 32}" in text
    page = model_page(told, told.models[0])
    assert f"<dt>digest of weights and architecture</dt><dd>{digest}</dd>" in page
    assert f"<dt>weights, SHA-256</dt><dd>{'cd' * 32}</dd>" in page


def test_why_samples_failed_is_said_in_both_reports_and_cannot_write_markup(
    board: Leaderboard,
) -> None:
    known = {f"RuntimeError: <b>{i}</b>": 9 - i for i in range(7)}
    edited = boards.edit(board, "digits/node", failures=known)
    page, lines = model_page(edited, edited.models[1]), markdown_text(edited)
    for text in (page, lines):
        assert "Samples failed: 9 × RuntimeError: " in text
        assert "and 2 other reasons." in text
        assert "<b>0</b>" not in text
    assert "Samples failed" not in "".join([*html_pages(board).values(), markdown_text(board)])
    assert '"failures"' in edited.to_json()
    assert '"failures"' not in board.to_json()
