"""Families of zoo entries come from their recipes, and only where the weights are the entry's."""

import boards

from robustness.cards.measure import MEASURED_FILE, read_measurement
from robustness.cards.origin import origin_of, with_origins
from robustness.recipe import RECIPE_FILE, read_recipe
from robustness.zoo import zoo_folder


def test_every_entry_of_the_zoo_has_a_family_and_its_paper() -> None:
    families = {
        str(file.parent.relative_to(zoo_folder())): origin_of(read_recipe(file.parent))
        for file in zoo_folder().glob(f"*/*/{RECIPE_FILE}")
    }
    assert all(families.values()), families
    assert families["mnist/resnet"].family == families["digits/resnet"].family == "residual network"
    assert families["mnist/node"].family == "neural ODE"
    assert families["mnist/continuousnet"].family == "ContinuousNet"
    assert families["mnist/gains-0.22-seed-12346"].family == "GAINS"
    assert families["mnist/gains-0.22-seed-12346"].published == []
    source = "https://github.com/eth-sri/GAINS (MIT)"
    assert families["mnist/gains-0.22-seed-12346"].weights == source
    assert families["mnist/lyanet"].weights == ""
    (said,) = families["fashion-mnist/gains-0.11-seed-12346"].published
    assert (said.norm, said.eps, said.clean, said.certified) == ("Linf", 0.1, 0.751, 0.625)
    assert families["mnist/lyanet"].paper == "https://arxiv.org/abs/2202.02526"
    assert families["mnist/lyanet-certified"].family == "LyaNet, certified"


def test_only_the_very_weights_of_an_entry_are_of_its_family() -> None:
    digest = read_measurement(zoo_folder() / "digits/lyanet" / MEASURED_FILE).digest
    board = boards.edit(boards.leaderboard(), "digits/lyanet", digest=digest)
    origins = {entry.name: entry.origin for entry in with_origins(board).models}
    assert origins.pop("digits/lyanet").family == "LyaNet"
    assert set(origins.values()) == {None}
