"""Whether a model takes the images, and answers with logits of their classes."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.doctor.base import Finding, FirstTensor, Patient, logits_among
from robustness.errors import in_words, is_exhausted, is_interruption, one_line

_SIDES = (28, 32, 64, 96, 128, 224, 299)


class Unanswered(Exception):  # noqa: N818
    """There are no logits to look at further.

    Attributes:
        finding: why.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


def answering(patient: Patient) -> tuple[Patient, list[Finding]]:
    """The patient with a module that gives logits, and what had to be mended for that.

    Raises:
        Unanswered: there is none.
    """
    images = patient.images[:2]
    try:
        with torch.no_grad():
            output: object = patient.module(images)
    except BaseException as error:  # SystemExit too: it is a user's code that runs
        if is_interruption(error) or is_exhausted(error):
            raise
        raise Unanswered(_untaken(patient.module, images, error)) from error
    if isinstance(output, Tensor) and output.is_floating_point():
        if output.shape == (len(images), patient.classes):
            return patient, []
        raise Unanswered(_other_classes(output, len(images), patient.classes))
    try:
        place, _ = logits_among(output, len(images), patient.classes)
    except TypeError:
        raise Unanswered(_no_logits(output)) from None
    kind = type(output).__name__
    finding = Finding(
        "output",
        True,
        f"the model returns a {kind}, of which {place} has the shape of logits",
        f"return self.net(images){place}   # in forward of the module that the factory returns",
    )
    return patient.reading(FirstTensor(patient.module, patient.classes).eval()), [finding]


def _no_logits(output: object) -> Finding:
    kind = type(output).__name__
    if isinstance(output, Tensor):
        found = f"the model returns a tensor of {output.dtype}: classes, and no logits"
        remedy = "return logits   # and not logits.argmax(1); or logits.float()"
    elif isinstance(output, np.ndarray):
        found = "the model returns a numpy array, through which no gradient passes"
        remedy = "return logits   # computed in torch, without .detach().numpy()"
    elif isinstance(output, Mapping | tuple | list):
        found = f"the model returns a {kind} in which nothing has the shape of logits"
        remedy = "return outputs[0]   # whichever of them are the logits, shape (n, classes)"
    else:
        found = f"the model returns a {kind}"
        remedy = "return logits   # at the end of forward"
    return Finding("output", True, found, remedy)


def _other_classes(output: Tensor, count: int, classes: int) -> Finding:
    shape = tuple(output.shape)
    found = f"the model gives {shape} for {count} images of {classes} classes"
    if len(shape) == 2 and shape[0] == count:
        if shape[1] > classes:
            remedy = f"return logits[:, :{classes}]   # if these are the first classes"
        elif shape[1] == 1 and classes == 2:
            remedy = "return torch.cat([-logits, logits], 1) / 2   # one logit of two classes"
        else:
            remedy = f"nn.Linear(features, {classes})   # as the last layer, trained for them"
        return Finding("classes", True, found, remedy)
    if len(shape) == 1:
        remedy = "return logits   # a row for each image: no squeeze(), no mean over the batch"
    elif len(shape) > 2 and shape[:2] == (count, classes):
        remedy = "return logits.flatten(2).mean(2)   # one number for each class"
    elif len(shape) == 3 and shape[1:] == (count, classes):
        remedy = "return odeint(f, x, t)[-1]   # the state at the end, not the whole trajectory"
    else:
        remedy = f"return logits.view(len(images), {classes})"
    return Finding("output", True, found, remedy)


def _untaken(module: nn.Module, images: Tensor, error: BaseException) -> Finding:
    """Why a model raised: what other form of the same images it takes."""
    height, width = images.shape[2:]
    forms: list[tuple[str, Callable[[Tensor], Tensor], str]] = []
    if images.shape[1] == 1:
        forms.append(
            (
                "three channels",
                lambda x: x.expand(-1, 3, -1, -1),
                "images.expand(-1, 3, -1, -1)",
            )
        )
    if images.shape[1] == 3:
        forms.append(("one channel", lambda x: x.mean(1, True), "images.mean(1, keepdim=True)"))
    forms.append(("flat vectors", lambda x: x.flatten(1), "images.flatten(1)"))
    forms.append(("channels last", lambda x: x.movedim(1, 3), "images.movedim(1, 3)"))
    forms.append(("images without a channel axis", lambda x: x[:, 0], "images[:, 0]"))
    forms.append(("float64", lambda x: x.double(), "images.double()"))
    channels = [("", lambda x: x, "images"), *forms[:1]]
    for side in _SIDES:
        if (side, side) == (height, width):
            continue
        for words, change, line in channels:
            forms.append(
                (
                    f"images of {side}x{side}" + (f" and {words}" if words else ""),
                    lambda x, side=side, change=change: functional.interpolate(  # type: ignore[misc]
                        change(x), size=(side, side), mode="bilinear"
                    ),
                    f'F.interpolate({line}, size=({side}, {side}), mode="bilinear")',
                )
            )
    said = one_line(in_words(error), 120)
    shape = tuple(images.shape[1:])
    for words, change, line in forms:
        if _takes(module, change(images)):
            return Finding(
                "channels and size",
                True,
                f"the model takes {words}, and the images are {shape} ({said})",
                f"return self.net({line})   # in forward of the module that the factory returns",
            )
    return Finding(
        "channels and size",
        True,
        f"the model does not take images of shape {shape}: {said}",
        f"x = torch.rand(2, {', '.join(map(str, shape))})   # see what model(x) needs",
    )


def _takes(module: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            module(images)
    except BaseException as error:
        if is_interruption(error) or is_exhausted(error):
            raise
        return False
    return True
