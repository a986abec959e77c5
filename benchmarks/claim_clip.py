"""What the paper's protocol leaves of the claims' models without any attack: its clip alone.

Run as `python benchmarks/claim_clip.py mnist --out DIR --data-dir DIR`, where `--out` is the folder
of `robustness claims`, whose weights are in its `work/`. The protocol clips what is normalised to
[0, 1], that is to pixels between the mean and one standard deviation above it.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness import inputs
from robustness.claims.models import GROUPS, STUDIES, study_of, trained_group
from robustness.claims.protocol import IMAGES
from robustness.claims.results import read_seed
from robustness.data import ImageSet, load_images
from robustness.errors import UsageError
from robustness.nets.encoders import Normalise
from robustness.numerics.devices import arithmetic_on
from robustness.numerics.reproducible import reproducible_arithmetic

_BATCH = 250


@reproducible_arithmetic()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", choices=sorted(STUDIES))
    parser.add_argument("--data-dir", type=Path, help="folder of the official image files")
    parser.add_argument("--out", type=Path, required=True, help="folder of `robustness claims`")
    asked = parser.parse_args()
    try:
        _print(asked.data, asked.out, asked.data_dir)
    except UsageError as error:
        parser.error(str(error))


def _print(data: str, out: Path, data_dir: Path | None) -> None:
    study, images = study_of(data), load_images(data, "test", data_dir)
    print(f"Of the first {IMAGES} test images of {study.title}, predicted right:\n")
    print("| seed | model | clipped | only raised to the mean | after the l2 attack |")
    print("| ---: | --- | ---: | ---: | ---: |")
    with arithmetic_on(inputs.placement(None, None)):
        for seed in study.seeds:
            told = read_seed(seed, out).robust.get("paper l2 127/255", {})
            for group in GROUPS:
                found = trained_group(study, group, seed, out / "work", data_dir, quiet=True)
                for name, (model, _) in found.items():
                    clipped, raised = (right(model, images, cut) for cut in (True, False))
                    attacked = told[name].count if name in told else "-"
                    print(f"| {seed} | {name} | {clipped} | {raised} | {attacked} |", flush=True)


@torch.no_grad()
def right(model: nn.Module, images: ImageSet, cut: bool) -> int:
    """How many of the first images a model predicts right that are clipped, and not attacked.

    Args:
        model: with a `Normalise` layer.
        images: in pixel units.
        cut: whether what is above is clipped too, not only what is below the mean.
    """
    normalise = next(layer for layer in model.modules() if isinstance(layer, Normalise))
    mean, std = (t.view(-1, 1, 1) for t in (normalise.mean, normalise.std))

    def clipped(pixels: Tensor) -> Tensor:
        raised = torch.maximum(pixels, mean)
        return torch.minimum(raised, mean + std) if cut else raised

    batches = zip(
        images.images[:IMAGES].split(_BATCH), images.labels[:IMAGES].split(_BATCH), strict=True
    )
    return sum(int((model(clipped(x)).argmax(dim=1) == y).sum()) for x, y in batches)


if __name__ == "__main__":
    main()
