"""Losses that an attack ascends: one value per sample, larger is closer to a wrong class."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

# A loss maps logits (n, classes), labels (n,) and targets (n,) to values (n,).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def cross_entropy(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy of the true class. Its gradient vanishes as softmax saturates."""
    del targets
    return functional.cross_entropy(logits, labels, reduction="none")


def margin(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Best wrong logit minus the true one (Carlini and Wagner, arXiv 1608.04644, f6)."""
    del targets
    true = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    return logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(dim=1) - true


def difference_of_logits_ratio(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The margin over the first-to-third gap of logits (Croce and Hein, arXiv 2003.01690, eq. 6).

    With two classes there is no third logit; the gap is then that of the two, which makes the
    loss +1 or -1 and its gradient zero, so the margin is used instead.
    """
    difference = margin(logits, labels, targets)
    if logits.shape[1] < 3:
        return difference
    ordered = logits.topk(3, dim=1).values
    gap = ordered[:, 0] - ordered[:, 2]
    return difference / (gap + torch.finfo(logits.dtype).tiny)


def targeted(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """The target's logit minus the true one."""
    return (logits.gather(1, targets.unsqueeze(1)) - logits.gather(1, labels.unsqueeze(1))).squeeze(
        1
    )


def toward(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """`targeted`, and `margin` where the target is the label: where any other class will do."""
    free = margin(logits, labels, targets)
    return torch.where(targets == labels, free, targeted(logits, labels, targets))


def toward_standardised(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], targets: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """`toward` in units of the spread of the logits, which carries a gradient.

    Where all logits grow with the input's distance from a decision, as those of a flow with a
    large gain do, a margin rises by their shrinking together; this one does not.
    """
    return toward(standardised(logits), labels, targets)


def nearness(logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The margin in units of the spread of the logits: alike at any scale, above 0 where wrong."""
    return margin(standardised(logits), labels, labels)


def standardised(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Logits of each sample less their mean, in units of their spread."""
    tiny = torch.finfo(logits.dtype).tiny
    centred = logits - logits.mean(dim=1, keepdim=True)
    # Divided by the largest deviation first: squares of large logits overflow.
    unit = centred / centred.detach().abs().amax(dim=1, keepdim=True).clamp_min(tiny)
    return unit / unit.std(dim=1, keepdim=True).clamp_min(tiny)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": difference_of_logits_ratio,
    "targeted": targeted,
}


def likely_targets(
    logits: Float[Tensor, "n k"], labels: Int[Tensor, " n"], count: int
) -> Int[Tensor, "n t"]:
    """The wrong classes of largest logit, `count` of them or as many as there are."""
    finite = logits.nan_to_num(nan=torch.finfo(logits.dtype).min)
    wrong = finite.scatter(1, labels.unsqueeze(1), -torch.inf)
    return wrong.argsort(dim=1, descending=True)[:, : min(count, logits.shape[1] - 1)]
