import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import proved_at_radius  # noqa: E402


def test_a_linear_model_is_proved_below_its_distance_and_not_above() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)).eval()
    model.requires_grad_(False)
    images = 0.3 + 0.4 * torch.rand(4, 1, 6, 6)
    logits = model(images)
    labels = logits.argmax(dim=1)
    reach = (model[1].weight[0] - model[1].weight[1]).abs().sum()
    distances = (logits[:, 0] - logits[:, 1]).abs() / reach
    below, above = float(distances.min()) * 0.99, float(distances.max()) * 1.01
    assert proved_at_radius.proved(model, images, labels, below) == (4, 4)
    assert proved_at_radius.proved(model, images, labels, above) == (4, 0)
    wrong = torch.where(torch.arange(4) < 1, 1 - labels, labels)
    assert proved_at_radius.proved(model, images, wrong, below) == (3, 3)
