"""Audits: can the numbers of an attack be believed? Machine-readable, each with a threshold.

Each audit is a pure function of a model, images and settings, and answers with a `Flag`. What a
raised flag means, and what to do about it, is in docs/attacks.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.judge import predict_alone
from robustness.threat import ThreatModel


@dataclass(frozen=True)
class Flag:
    """The answer of one audit.

    Attributes:
        name: which audit, in lower case with hyphens.
        raised: whether the value is on the wrong side of the threshold.
        value: what was measured.
        threshold: what it was compared with.
        detail: the measurement in words, with its units and numbers of samples.
    """

    name: str
    raised: bool
    value: float
    threshold: float
    detail: str


@torch.no_grad()
def batch_invariance(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Flag:
    """Whether a prediction changes with its company: alone, in a batch, in a shuffled batch.

    Raised if any prediction flips.
    """
    alone, _ = predict_alone(model, images)
    order = torch.arange(len(images)).flip(0)
    half = len(images) // 2
    together = model(images).argmax(dim=1)
    shuffled = torch.empty_like(together)
    shuffled[order] = model(images[order]).argmax(dim=1)
    split = torch.cat([model(part).argmax(dim=1) for part in images.tensor_split([half])])
    flips = int(((together != alone) | (shuffled != alone) | (split != alone)).sum())
    detail = f"{flips} of {len(images)} predictions change with the batch they are made in"
    return Flag("batch-invariance", flips > 0, float(flips), 0.0, detail)


def audit(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
    sources: Mapping[str, nn.Module] | None = None,
) -> list[Flag]:
    """All audits that apply to a model.

    Args:
        model: the deployed model.
        images: originals in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        threat: the ball that attacks are compared in.
        seed: decides every random draw.
        sources: other models by name, whose adversarial images are tried on this one.
    """
    return [batch_invariance(model, images)]
