"""What a zoo entry's card reports: facts measured on the whole test set, kept beside the recipe."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from robustness.data import ImageSet
from robustness.errors import UsageError
from robustness.files import read_json
from robustness.nets.flow import course, without_flow
from robustness.numerics.devices import beside, release_on
from robustness.results.leaderboard import (
    Leaderboard,
    ModelEntry,
    Proportion,
    Summary,
    WholeTestSet,
    WithoutFlow,
)
from robustness.zoo import LoadedModel, zoo_folder

MEASURED_FILE = "measured.json"

# Images per forward pass; fixed, because the last bits of a sum depend on it.
_BATCH = 250


class Measurement(Summary):
    """Facts about one entry on a whole test set.

    Attributes:
        weights_sha256: of the weights that were measured, as in the recipe.
        digest: of weights and architecture, which names the model in a leaderboard.
        data: name of the data set.
        data_digest: SHA-256 of its test images and labels.
        clean: accuracy; an image with a logit that is not finite counts as wrong.
        non_finite: images with a logit that is not finite.
        largest_logit: largest finite absolute value of any logit.
        largest_state: largest finite absolute value of any entry of a state, at the times that
            the solver visits; None for a model without an ODE.
        nfe: evaluations of the vector field per prediction (for an adaptive solver the most
            that any image took); None for a model without an ODE.
        without_flow: what is predicted without the flow; None for a model without an ODE.
        parameters: number of trained parameters.
        torch: version of the library that ran, and the device if it was not the CPU.
    """

    schema_version: Literal[2] = 2
    weights_sha256: str
    digest: str
    data: str
    data_digest: str
    clean: Proportion
    non_finite: int
    largest_logit: float
    largest_state: float | None
    nfe: int | None
    without_flow: WithoutFlow | None
    parameters: int
    torch: str


@torch.no_grad()
def measure(loaded: LoadedModel, images: ImageSet) -> Measurement:
    """Run a zoo entry on every image, in batches.

    Args:
        loaded: a model with a recipe.
        images: the test set of the recipe's data.

    Raises:
        UsageError: the model is a user's own, or its images have another shape.
    """
    recipe = loaded.recipe
    if recipe is None or recipe.weights is None:
        raise UsageError(
            f"expected a zoo entry with weights, got {loaded.name}; cards are written from recipes"
        )
    if images.shape != recipe.data.shape or images.classes != recipe.data.classes:
        raise UsageError(
            f"{loaded.name}: expected images {recipe.data.shape} of {recipe.data.classes} classes "
            f"as the recipe says, got {images.shape} of {images.classes}; correct [data]"
        )
    correct = non_finite = 0
    largest_logit, largest_state, nfe = 0.0, None, None
    flowless, other, still_correct = without_flow(loaded.module), 0, 0
    for pixels, labels in zip(
        images.images.split(_BATCH), images.labels.split(_BATCH), strict=True
    ):
        pixels, labels = beside(loaded.module, pixels, labels)
        run = course(loaded.module, pixels)
        finite = run.logits.isfinite().all(dim=1)
        classes = _classes(run.logits)
        non_finite += int((~finite).sum())
        correct += int((classes == labels).sum())
        largest_logit = max(largest_logit, _largest(run.logits))
        for state in run.states:
            largest_state = max(largest_state or 0.0, _largest(state))
        if run.nfe is not None:
            nfe = max(nfe or 0, run.nfe)
        if flowless is not None:
            instead = _classes(flowless(pixels))
            other += int((~finite | (instead != classes)).sum())
            still_correct += int((instead == labels).sum())
    return Measurement(
        weights_sha256=recipe.weights.sha256,
        digest=loaded.digest,
        data=images.name,
        data_digest=images.digest,
        clean=Proportion.of(correct, len(images)),
        non_finite=non_finite,
        largest_logit=float(f"{largest_logit:.4g}"),
        largest_state=None if largest_state is None else float(f"{largest_state:.4g}"),
        nfe=nfe,
        without_flow=None
        if flowless is None
        else WithoutFlow(
            other=Proportion.of(other, len(images)), clean=Proportion.of(still_correct, len(images))
        ),
        parameters=sum(p.numel() for p in loaded.module.parameters()),
        torch=release_on(loaded.module),
    )


def _classes(logits: Tensor) -> Tensor:
    """The class of each image; -1, which is no class, where a logit is not finite."""
    return logits.argmax(dim=1).where(logits.isfinite().all(dim=1), -1)


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def known_measurement(file: Path) -> Measurement | None:
    """A stored measurement; None where there is none, or none of this schema version."""
    try:
        return read_measurement(file)
    except UsageError:
        return None


def whole_test_set(leaderboard: Leaderboard) -> Leaderboard:
    """The leaderboard with what the zoo knows of its very models on the whole of its images."""
    return leaderboard.model_copy(
        update={"models": [_on_whole(e, leaderboard.suite.data_digest) for e in leaderboard.models]}
    )


def _on_whole(entry: ModelEntry, data_digest: str) -> ModelEntry:
    facts = known_measurement(zoo_folder() / entry.name / MEASURED_FILE)
    if facts is None or (facts.digest, facts.data_digest) != (entry.digest, data_digest):
        return entry
    whole = WholeTestSet(
        weights_sha256=facts.weights_sha256, clean=facts.clean, without_flow=facts.without_flow
    )
    nfe = facts.nfe if entry.nfe is None else entry.nfe
    return entry.model_copy(update={"whole": whole, "nfe": nfe})


def read_measurement(file: Path) -> Measurement:
    """Read a measurement back.

    Raises:
        UsageError: there is none, or it is not one of this schema version.
    """
    return read_json(
        file, Measurement, "measured facts", f"run `robustness card {file.parent} --remeasure`"
    )
