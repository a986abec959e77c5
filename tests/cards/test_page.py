"""A card says what was measured of the weights it stands beside, and nothing else."""

import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from robustness import cli
from robustness.api import card, committed_leaderboards
from robustness.cards.measure import MEASURED_FILE, Measurement, measure, read_measurement
from robustness.cards.page import CARD_FILE, LOSSES, card_text
from robustness.cards.proofs import PROVED_FILE, read_proofs
from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.nets.solvers import FixedStepSolver
from robustness.recipe import LossConfig, read_recipe
from robustness.results.leaderboard import Leaderboard, ModelEntry, Proportion
from robustness.training.loop import train
from robustness.zoo import (
    WEIGHTS_DIR,
    LoadedModel,
    has_weights,
    load_model,
    zoo_folder,
    zoo_names,
)

CARDED = [name for name in zoo_names() if (zoo_folder() / name / MEASURED_FILE).is_file()]


@pytest.mark.parametrize("name", CARDED)
def test_a_committed_card_is_that_of_its_recipe_its_measurement_and_the_reports(name: str) -> None:
    folder = zoo_folder() / name
    recipe, facts = read_recipe(folder), read_measurement(folder / MEASURED_FILE)
    assert recipe.weights is not None
    assert facts.weights_sha256 == recipe.weights.sha256
    assert facts.digest == recipe.digest
    if has_weights(recipe):  # those of others are not here
        assert facts.digest == load_model(name).digest
    written = (folder / CARD_FILE).read_text(encoding="utf-8")
    proofs = read_proofs(folder / PROVED_FILE)
    assert proofs is None or proofs.weights_sha256 == recipe.weights.sha256, (
        f"run `robustness card {name} --prove`"
    )
    assert written == card_text(name, recipe, facts, committed_leaderboards(), proofs), (
        f"run `robustness card {name}`"
    )


def test_every_entry_with_weights_has_a_card_and_finite_states() -> None:
    for name in zoo_names():
        weights = read_recipe(zoo_folder() / name).weights
        if weights is not None and weights.source is None:
            assert name in CARDED
            facts = read_measurement(zoo_folder() / name / MEASURED_FILE)
            assert facts.non_finite == 0
            assert math.isfinite(facts.largest_logit)


class Threshold(nn.Module):
    """Two logits from the mean of an image: NaN below 0.1, else 4 on the side of 0.5."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean(dim=(1, 2, 3))
        logits = torch.stack([-8 * (level - 0.5), 8 * (level - 0.5)], dim=1)
        return logits.where(level[:, None] > 0.1, torch.nan)


def test_accuracy_and_images_without_finite_logits_are_counted_by_hand() -> None:
    levels = [0.0, 0.05, 0.2, 0.4, 0.75, 1.0]
    images = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    loaded = load_model("digits/resnet")
    stand_in = LoadedModel("digits/resnet", Threshold(), loaded.digest, loaded.recipe)
    facts = measure(stand_in, ImageSet("digits", "test", images, labels, 10))
    assert facts.non_finite == 2
    # 0.2 is called 0, rightly; 0.4 is called 0, wrongly; the last two are called 1, rightly.
    assert facts.clean == Proportion.of(3, 6)
    assert facts.largest_logit == pytest.approx(4.0)
    assert facts.largest_state is None
    assert facts.nfe is None


@pytest.mark.parametrize(
    ("name", "nfe"), [("digits/lyanet", None), ("mnist/continuousnet", 6), ("mnist/lyanet", 32)]
)
def test_logits_states_and_evaluations_are_those_of_the_deployed_model(
    name: str, nfe: int | None
) -> None:
    loaded = load_model(name)
    assert loaded.recipe is not None
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(20, *loaded.recipe.data.shape, generator=generator)
    images = ImageSet("test", "test", pixels, torch.zeros(20, dtype=torch.int64), 10)
    facts = measure(loaded, images)
    logits = loaded.module(pixels)
    assert facts.largest_logit == pytest.approx(float(logits.abs().max()), rel=1e-3)
    assert facts.largest_state is not None
    if "continuousnet" not in name:
        assert facts.largest_state >= facts.largest_logit
    assert nfe is None or facts.nfe == nfe


def test_a_card_of_others_weights_says_whose_they_are_and_not_how_to_train_them() -> None:
    recipe = read_recipe(zoo_folder() / "mnist/gains-0.11-seed-12345")
    card = card_text("mnist/gains", recipe, facts_of("mnist/node"), {})
    assert "others', from https://github.com/eth-sri/GAINS (MIT)" in card
    measured_from = f"measured from `{recipe.weights.file}`" if recipe.weights else ""
    assert f"{measured_from}, which commands read in the folder that `{WEIGHTS_DIR}` names" in card
    assert "ℓ∞ 0.1: certified 89.0 %, clean 95.5 %: mean of the three seeds" in card
    assert "not measured here" in card
    assert "robustness train" not in card
    assert "rk4, 2 fixed steps" in card
    assert "robustness train" in card_text(
        "mnist/node", read_recipe(zoo_folder() / "mnist/node"), facts_of("mnist/node"), {}
    )


@pytest.mark.parametrize(
    ("name", "bounded"), [("continuousnet", True), ("continuousnet-proved", False)]
)
def test_a_card_says_that_a_velocity_is_bounded_only_where_group_norms_bound_it(
    name: str, bounded: bool
) -> None:
    recipe = read_recipe(zoo_folder() / "mnist" / name)
    card = card_text(name, recipe, facts_of(f"mnist/{name}"), {})
    assert ("bounded whatever the state" in card) == bounded
    assert ("nothing but the finite horizon" in card) != bounded


def facts_of(name: str, digest: str | None = None) -> Measurement:
    facts = read_measurement(zoo_folder() / name / MEASURED_FILE)
    return facts if digest is None else facts.model_copy(update={"digest": digest})


def test_robustness_is_quoted_of_the_same_weights_only(board: Leaderboard) -> None:
    entry = board.models[0]
    recipe = read_recipe(zoo_folder() / "digits/lyanet")
    reports = {"reports/small": board}
    same = card_text(entry.name, recipe, facts_of("digits/lyanet", entry.digest), reports)
    assert "From `reports/small`" in same
    assert "Not yet measured" not in same
    assert f"{100 * entry.brackets[0].attacked.value:.1f}" in same
    other = card_text(entry.name, recipe, facts_of("digits/lyanet", "0" * 64), reports)
    assert "Not yet measured" in other
    renamed = card_text("digits/other", recipe, facts_of("digits/lyanet", entry.digest), reports)
    assert "Not yet measured" in renamed


def test_a_card_says_beside_attacked_figures_what_attacked_and_what_the_checks_found(
    board: Leaderboard,
) -> None:
    recipe, facts = read_recipe(zoo_folder() / "digits/lyanet"), facts_of("digits/lyanet")

    def robustness(entry: ModelEntry) -> str:
        told = board.model_copy(update={"models": [entry]})
        known = facts.model_copy(update={"digest": entry.digest})
        text = card_text(entry.name, recipe, known, {"reports/small": told})
        return text.split("## Robustness")[1]

    lyanet = next(entry for entry in board.models if entry.name == "digits/lyanet")
    text = robustness(lyanet)
    assert (
        "- ⚑ **serious problem**, "
        "[masked-gradients](../../../docs/attacks.md#masked-gradients): "
        "masked-gradients was measured on 64 samples"
    ) in text
    bracket = lyanet.brackets[0]
    assert f"| {100 * bracket.attacked.value:.1f} ⚑ |" in text
    assert text.count("| FGSM, PGD only |") == 3  # at 0.1 AutoAttack ran too
    assert "| FGSM, PGD, AutoAttack on 64 only |" in text
    clear = robustness(lyanet.model_copy(update={"flags": lyanet.flags[1:]}))
    assert "⚑" not in clear
    assert "None of the report's checks found a problem" in clear
    noted = lyanet.flags[0].model_copy(update={"name": "adjoint-agreement"})
    told = robustness(lyanet.model_copy(update={"flags": [noted]}))
    assert "None of the report's checks found a problem" in told
    assert "- **note**, [adjoint-agreement]" in told
    assert "⚑" not in told
    assert "did not check" in robustness(lyanet.model_copy(update={"flags": []}))


def test_card_and_report_give_the_same_hashes_the_same_names() -> None:
    for folder, board in committed_leaderboards().items():
        page = (zoo_folder().parent / folder / "leaderboard.md").read_text(encoding="utf-8")
        for entry in board.models:
            facts = facts_of(entry.name)
            card = (zoo_folder() / entry.name / CARD_FILE).read_text(encoding="utf-8")
            assert f"| weights | SHA-256 `{facts.weights_sha256}` |" in card
            assert f"| digest of weights and architecture | `{entry.digest}`" in card
            assert f"weights, SHA-256 {facts.weights_sha256}" in page
            assert f"digest of weights and architecture {entry.digest};" in page


def test_every_loss_that_a_recipe_can_name_has_words() -> None:
    members = get_args(get_args(LossConfig)[0])
    kinds = {get_args(member.model_fields["kind"].annotation)[0] for member in members}
    assert kinds == set(LOSSES)


def test_images_without_finite_logits_are_said() -> None:
    recipe = read_recipe(zoo_folder() / "digits/lyanet")
    facts = facts_of("digits/lyanet").model_copy(update={"non_finite": 3})
    assert "not finite | 3 |" in card_text("digits/lyanet", recipe, facts, {})


def test_the_bound_of_the_published_field_holds_for_its_exact_flow() -> None:
    name = "mnist/lyanet-gain-1"
    recipe = read_recipe(zoo_folder() / name)
    text = card_text(name, recipe, facts_of(name), {})
    bound = float(text.split("|η(T)| ≤ ")[1].split()[0])
    model = recipe.model.build(recipe.data.shape, 10)
    generator = torch.Generator().manual_seed(0)
    features = 10 * torch.randn(500, 256, generator=generator)
    with torch.no_grad():
        final = (
            FixedStepSolver("rk4", 100, 1.0)
            .solve(model.field, torch.zeros(500, 10), features)
            .final
        )
    norms = torch.linalg.vector_norm(final, dim=1)
    assert 0.8 * bound < float(norms.max()) <= bound  # sound, and not idle


def test_a_freshly_trained_entry_is_measured_once_and_again_when_its_weights_change(
    recipe_folder: Path,
) -> None:
    train(recipe_folder, quiet=True)
    file, first = card(str(recipe_folder))
    assert first.clean.total == 599
    assert first.digest == load_model(str(recipe_folder)).digest
    written = file.read_bytes(), (recipe_folder / MEASURED_FILE).read_bytes()
    assert card(str(recipe_folder))[1] == first
    assert (file.read_bytes(), (recipe_folder / MEASURED_FILE).read_bytes()) == written
    recipe = recipe_folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 3", "epochs = 1"))
    train(recipe_folder, quiet=True)
    second = card(str(recipe_folder))[1]
    assert second.weights_sha256 == read_recipe(recipe_folder).weights.sha256
    assert second.weights_sha256 != first.weights_sha256


def test_broken_facts_are_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / MEASURED_FILE
    with pytest.raises(UsageError, match="expected measured facts at"):
        read_measurement(file)
    file.write_text("{}")
    with pytest.raises(UsageError, match="missing key"):
        read_measurement(file)


@pytest.mark.parametrize(
    "arguments", [[], ["digits/lyanet", "--all"], ["--dataset", "digits", "--all"]]
)
def test_the_command_asks_for_exactly_one_choice(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(lambda: cli.app(["card", *arguments], standalone_mode=False)) == 2
    assert "expected a model, --dataset or --all" in capsys.readouterr().err


def test_a_card_takes_nothing_of_a_recipe_for_markup(tmp_path: Path) -> None:
    folder = zoo_folder() / "digits/node"
    recipe = read_recipe(folder)
    evil = "<script>`x`</script> \x1b[2J"
    assert recipe.measured is not None
    odd = recipe.model_copy(
        update={
            "description": evil,
            "data": recipe.data.model_copy(update={"name": evil}),
            "measured": recipe.measured.model_copy(update={"device": evil, "torch": evil}),
        }
    )
    page = card_text(evil, odd, read_measurement(folder / MEASURED_FILE), {})
    assert "\x1b" not in page
    assert "<script>" not in page
    assert "\\<script\\>\\`x\\`" in page
