"""How many images a recorded program's bounds prove at one radius, without searching for radii.

    python benchmarks/proved_at_radius.py mnist/lyanet-proved --data mnist --data-dir DIR --eps 0.1

By the certificate `program`, asked for this radius alone; rounding is included. Its search for the
largest radius takes several times as long.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness.certificates import ProgramCertificate
from robustness.certificates.sharing import shared_work
from robustness.data import load_images
from robustness.threat import Norm
from robustness.zoo import load_model


def proved(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    narrow: int = 0,
    splits: int = 0,
) -> tuple[int, int]:
    """How many images are right, and of these proved at `eps`, for images of shape (n, c, h, w)."""
    with torch.no_grad():
        right = torch.cat([model(image.unsqueeze(0)) for image in images]).argmax(dim=1) == labels
    certificate = ProgramCertificate(at=(eps,), narrow=narrow, splits=splits)
    with shared_work():
        claims = certificate.certify(model, images[right], labels[right], Norm.LINF)
    return int(right.sum()), sum(claim.radius > eps for claim in claims)


def main() -> None:
    """Print both counts, and what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--narrow", type=int, default=0, help="The setting of the certificate.")
    parser.add_argument("--splits", type=int, default=0, help="The setting of the certificate.")
    parser.add_argument("--images", type=int, nargs="*", help="These of the test set alone.")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = load_images(asked.data, "test", asked.data_dir)
    chosen = torch.tensor(asked.images or range(min(asked.samples, len(data))))
    images, labels = data.images[chosen], data.labels[chosen]
    model = load_model(asked.model).module
    began = time.process_time()
    right, held = proved(model, images, labels, asked.eps, asked.narrow, asked.splits)
    seconds = (time.process_time() - began) / len(images)
    print(
        f"{asked.model}, {len(images)} images: {right} right, {held} of them proved at l-inf "
        f"{asked.eps}; {seconds:.2f} s of processor time an image"
    )


if __name__ == "__main__":
    main()
