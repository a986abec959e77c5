"""How many images a recorded program's lines prove at one radius, without searching for radii.

    python benchmarks/proved_at_radius.py mnist/lyanet-proved --data mnist --data-dir DIR --eps 0.1

Each image's l-infinity ball is bounded once, and once more with climbed slopes where that is not
enough; rounding is included, as in the certificate `program`, whose search for the largest radius
takes several times as long.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness.certificates.program import network_of
from robustness.data import load_images
from robustness.programs.network import Ball, Bounds, margin_rows
from robustness.programs.slopes import climbed
from robustness.threat import Norm
from robustness.zoo import load_model

_TOGETHER, _SLOPES = 16, 10
# Beyond the radius by more than its own rounding.
_BEYOND = 1 + 1e-9


@torch.no_grad()
def proved(model: nn.Module, images: Tensor, labels: Tensor, eps: float) -> tuple[int, int]:
    """How many images are right, and of these proved at `eps`, for images of shape (n, c, h, w)."""
    channels, height, width = images.shape[1:]
    network = network_of(model, (channels, height, width))
    last, right, held = len(network) - 1, 0, 0
    for part, of in zip(images.split(_TOGETHER), labels.split(_TOGETHER), strict=True):
        logits = torch.cat([network.program.run(image.unsqueeze(0)) for image in part])
        kept = logits.argmax(dim=1) == of
        right += int(kept.sum())
        if not kept.any():
            continue
        rows, _ = margin_rows(logits.shape[1], of[kept])
        radii = torch.full((int(kept.sum()),), eps * _BEYOND, dtype=torch.float64)
        ball = Ball(part[kept].double().unsqueeze(1), radii, Norm.LINF)
        bounds = Bounds(network, ball, network.bends)
        margins = bounds.lower(last, rows)
        open_ = (~(margins > 0).all(dim=1)).nonzero().squeeze(1)
        if len(open_):
            lanes = bounds.lanes(open_)
            margins[open_] = climbed(lanes, last, rows[open_], margins[open_], _SLOPES)
        held += int((margins > 0).all(dim=1).sum())
    return right, held


def main() -> None:
    """Print both counts, and what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load_images(asked.data, "test", asked.data_dir)
    images, labels = data.images[: asked.samples], data.labels[: asked.samples]
    began = time.process_time()
    right, held = proved(load_model(asked.model).module, images, labels, asked.eps)
    seconds = (time.process_time() - began) / len(images)
    print(
        f"{asked.model}, {len(images)} images: {right} right, {held} of them proved at l-inf "
        f"{asked.eps}; {seconds:.2f} s of processor time an image"
    )


if __name__ == "__main__":
    main()
