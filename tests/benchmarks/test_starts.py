import sys
from pathlib import Path

import pytest
import torch
from toys import CLASSES, make_problem, minimal_distance

from robustness.attacks import View
from robustness.threat import Norm, ThreatModel

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import starts  # noqa: E402


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("loss", ["targeted", "margin"])
def test_a_linear_model_is_broken_beyond_its_distance_from_any_start(
    loss: str, beside: bool
) -> None:
    model, images, labels = make_problem(CLASSES, count=1)
    distance = float(minimal_distance(model, images, labels, Norm.LINF))
    gap = model(images).topk(2, dim=1).indices
    leaf = images.clone().requires_grad_()
    logits = model(leaf)[0]
    (slope,) = torch.autograd.grad(logits[gap[0, 1]] - logits[gap[0, 0]], leaf)
    farther = (images + 2 * distance * slope.sign()).clamp(0, 1)
    for factor, falls in ((1.1, True), (0.99, False)):
        threat = ThreatModel(Norm.LINF, factor * distance)
        known = starts.Chased(model, threat, images, labels, farther, gap[:, 1], 0.5)
        found, seconds = known.climbed(View("deployed", model, faithful=True), loss, beside)
        assert found.tolist() == [falls]
        assert seconds > 0
