"""What a check is given, and what it gives."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.doctor.cost import Cost
from robustness.results.shown import Shown

_BATCH = 32


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that one should know.

    Attributes:
        check: which check found it.
        serious: whether results would mislead, or could not be had.
        found: what was seen, in words.
        remedy: a line of code that mends it.
    """

    check: str
    serious: bool
    found: str
    remedy: str


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """What `examine` found.

    Attributes:
        model: its name.
        data: name of the images.
        samples: how many of them were looked at.
        findings: serious ones first.
        passed: names of the checks that found nothing.
        skipped: names of the checks that need what an earlier one did not find.
        accuracy: on these images, from 0 to 1; None where there is none.
        cost: time per image and of a suite; None where there are no logits.
    """

    model: str
    data: str
    samples: int
    findings: list[Finding]
    passed: list[str]
    skipped: list[str]
    accuracy: float | None = None
    cost: Cost | None = None

    @property
    def healthy(self) -> bool:
        """Whether nothing serious was found."""
        return not any(finding.serious for finding in self.findings)

    def lines(self) -> Iterator[str]:
        """All of it in words, as the command prints it."""
        yield f"{self.model} on {self.samples} images of {self.data}"
        for finding in self.findings:
            yield f"{'SERIOUS' if finding.serious else 'note'}: {finding.check}: {finding.found}"
            yield f"    mend it: {finding.remedy}"
        if self.passed:
            yield f"nothing found: {', '.join(self.passed)}"
        if self.skipped:
            yield f"not looked at: {', '.join(self.skipped)}"
        if self.accuracy is not None:
            yield f"accuracy on these images: {self.accuracy:.1%}"
        if self.cost is not None:
            yield from self.cost.lines()
        serious = sum(finding.serious for finding in self.findings)
        yield "nothing serious" if not serious else f"serious findings: {serious}"

    def in_short(self) -> str:
        """See `Shown`."""
        found = ", ".join(finding.check for finding in self.findings) or "nothing"
        return f"Diagnosis of {self.model} on {self.samples} images of {self.data}: {found}"

    def rows_shown(self) -> list[dict[str, object]]:
        """See `Shown`: a row per finding."""
        return [vars(finding) for finding in self.findings]


@dataclass(frozen=True)
class Patient:
    """A model and the images that it is examined on.

    Attributes:
        module: pixels to logits, as it was loaded.
        images: pixels in [0, 1], shape (n, c, h, w).
        labels: their classes, shape (n,).
        classes: how many there are.
    """

    module: nn.Module
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    classes: int

    def reading(self, module: nn.Module) -> "Patient":
        """The same with another module."""
        return replace(self, module=module)

    def logits(self, images: Float[Tensor, "n c h w"] | None = None) -> Float[Tensor, "n k"]:
        """Of some images, of all by default, in batches."""
        chosen = self.images if images is None else images
        with torch.no_grad():
            return torch.cat([self.module(batch) for batch in chosen.split(_BATCH)])

    def correct(self, images: Float[Tensor, "n c h w"]) -> Bool[Tensor, " n"]:
        """Which of the images, in whatever units, are classified as labelled."""
        return self.logits(images).argmax(1) == self.labels


class FirstTensor(nn.Module):
    """A model that answers with more than logits, read by the first tensor that can be them.

    Args:
        module: the model.
        classes: how many logits there are.
    """

    def __init__(self, module: nn.Module, classes: int) -> None:
        super().__init__()
        self.module, self.classes = module, classes

    def forward(self, images: Tensor) -> Tensor:
        """The logits alone.

        Raises:
            TypeError: nothing of what the model gives has their shape.
        """
        _, logits = logits_among(self.module(images), len(images), self.classes)
        return logits


def logits_among(output: object, count: int, classes: int) -> tuple[str, Tensor]:
    """The first tensor of shape (count, classes) in a tuple, list or table, and how to reach it.

    Raises:
        TypeError: there is none.
    """
    parts: list[tuple[str, object]] = []
    if isinstance(output, Mapping):
        parts = [(f"[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        parts = [(f"[{index}]", value) for index, value in enumerate(output)]
    for place, value in parts:
        if isinstance(value, Tensor) and tuple(value.shape) == (count, classes):
            return place, value
    raise TypeError(f"no tensor of shape ({count}, {classes}) in a {type(output).__name__}")
