"""The paper's protocol does what its script did, and the judge sees what that was."""

import pytest
import torch
from torch import nn
from toys import Linear

from robustness.attacks import PaperProtocol, Status, judge, published_accuracy
from robustness.errors import UsageError
from robustness.nets.encoders import Normalise
from robustness.threat import Norm, ThreatModel

MODEL = nn.Sequential(Normalise([0.1307], [0.3081]), nn.Flatten(), nn.Linear(16, 3)).eval()
DARK = torch.zeros(4, 1, 4, 4)
THREAT = ThreatModel.parse("Linf", "8/255")


def test_the_clip_of_normalised_images_moves_a_dark_background_to_the_mean() -> None:
    labels = MODEL(DARK).argmax(dim=1)
    (found,) = PaperProtocol().propose(MODEL, DARK, labels, THREAT, seed=0)
    assert float(found.min()) >= 0.1307 - 1e-6
    assert all(v.rejected == 1 for v in judge(MODEL, DARK, labels, found.unsqueeze(0), THREAT))


def test_inside_the_clip_its_radius_is_one_of_normalised_pixels() -> None:
    bright = torch.full((4, 1, 4, 4), 0.3)
    labels = MODEL(bright).argmax(dim=1)
    (found,) = PaperProtocol().propose(MODEL, bright, labels, THREAT, seed=0)
    farthest = float(Norm.LINF.distance(found, bright).max())
    assert farthest == pytest.approx(8 / 255 * 0.3081, rel=1e-3)
    for verdict in judge(MODEL, bright, labels, found.unsqueeze(0), THREAT):
        assert verdict.rejected == 0
        assert verdict.status in (Status.ROBUST, Status.ADVERSARIAL)
    assert 0 <= published_accuracy(MODEL, bright, labels, THREAT) <= 1


def test_a_model_without_a_normalising_layer_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match="expected a model whose first layer is Normalise"):
        PaperProtocol().propose(Linear(), torch.rand(1, 1, 6, 6), torch.tensor([0]), THREAT, 0)
