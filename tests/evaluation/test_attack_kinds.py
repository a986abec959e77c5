"""Every attack that a suite can name, on a linear model whose robust accuracy is known."""

from pathlib import Path

import pytest
import torch
from torch import nn

from robustness.api import evaluate
from robustness.data import load_images
from robustness.evaluation.suite import Suite
from robustness.threat import Norm

KINDS = ["fgsm", "mi-fgsm", "pgd", "apgd", "fab", "cw", "deepfool", "square", "autoattack"]
LINF_ONLY, L2_ONLY = {"fgsm", "mi-fgsm"}, {"cw", "deepfool"}
SAMPLES = 24


def nearest_mean() -> nn.Module:
    """The linear model whose logits are those of the nearest class mean of the training digits."""
    data = load_images("digits", "train", None)
    means = torch.stack([data.images[data.labels == k].mean(dim=0).flatten() for k in range(10)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    with torch.no_grad():
        model[1].weight.copy_(means)
        model[1].bias.copy_(-means.pow(2).sum(dim=1) / 2)
    return model


def standing_of(board_order: list[int], norm: Norm, eps: float) -> int:
    """How many samples no image of the ball breaks, were there no box."""
    data = load_images("digits", "test", None)
    images, labels = data.images[board_order].flatten(1).double(), data.labels[board_order]
    weight, bias = nearest_mean()[1].weight.double(), nearest_mean()[1].bias.double()
    scores = images @ weight.T + bias
    leads = scores.gather(1, labels.unsqueeze(1)) - scores
    apart = weight[labels].unsqueeze(1) - weight
    slope = apart.abs().sum(dim=2) if norm is Norm.LINF else apart.norm(dim=2)
    wrong = (leads - eps * slope).scatter(1, labels.unsqueeze(1), torch.inf) < 0
    return int((~wrong.any(dim=1)).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [(Norm.LINF, 0.02), (Norm.L2, 0.2)])
def test_every_kind_runs_and_none_beats_the_closed_form(
    tmp_path: Path, norm: Norm, eps: float
) -> None:
    few = {"cw": {"steps": 60}, "deepfool": {"steps": 10}, "square": {"queries": 300}}
    suite = Suite.model_validate(
        {
            "name": "kinds",
            "data": "digits",
            "samples": SAMPLES,
            "models": [f"{Path(__file__).stem}:nearest_mean"],
            "threats": [{"norm": norm, "eps": [eps]}],
            "attacks": [{"kind": kind} | few.get(kind, {}) for kind in KINDS],
            "decay": False,
        }
    )
    board = evaluate(suite, out=tmp_path, workers=1)
    rows = {row.attack: row for row in board.models[0].attacks}
    without = L2_ONLY if norm is Norm.LINF else LINF_ONLY
    ran = {kind.replace("apgd", "apgd-ce") for kind in KINDS} - without
    assert set(rows) == ran
    # Without the box the ball is larger, so that fewer stand than the attacks can bring about.
    least = standing_of(board.models[0].samples.index, norm, eps)
    assert 0 < least < SAMPLES - 4
    for name in ran:
        assert rows[name].robust.count >= least
    assert rows["autoattack"].robust.count - least <= 2
