"""What networks compute from given weights is told by a version, and is what it was."""

import json
from pathlib import Path

import pytest
import torch

from robustness import nets
from robustness.identity import probe_images
from robustness.zoo import has_weights, load_model, zoo_names, zoo_recipe

# By zoo name, logits of the first probe image, as they were computed under the version.
KNOWN = json.loads((Path(__file__).parent / "logits.json").read_text())


@pytest.mark.slow
def test_entries_compute_what_they_did_under_this_version() -> None:
    assert KNOWN["version"] == nets.VERSION
    names = [name for name in zoo_names() if has_weights(zoo_recipe(name))]
    trained = [name for name in names if zoo_recipe(name).training is not None]
    models = {name: load_model(name).module for name in trained}
    held = {type(part) for name in KNOWN["logits"] for part in models[name].modules()}
    new = {type(part) for model in models.values() for part in model.modules()} - held
    assert not new, "note the logits of entries that have these parts"
    for name in KNOWN["logits"]:
        image = probe_images(zoo_recipe(name).data.shape)[:1]
        with torch.no_grad():
            (logits,) = models[name](image).tolist()
        # Sums in another order differ by far less, another step or activation by far more.
        size = max(map(abs, KNOWN["logits"][name]))
        assert logits == pytest.approx(KNOWN["logits"][name], rel=0, abs=1e-3 * size), (
            f"{name} computes something else: raise nets.VERSION, and note the logits of now"
        )
