"""FI-ODE's grid over the decision boundary against the tube along one trajectory, in one run.

Run as `python benchmarks/invariance_grid.py --data-dir DIR`. FI-ODE (arXiv 2210.16940) certifies
an image when W' <= -sqrt(2) L eps at every point of a grid on the boundary {W = 0} of the simplex:
for ten classes and a spacing of 1/40, 41,320,837 points per image. Here the grid is rebuilt at a
coarser spacing, on which every image costs the same work per point; the full grid is costed from
the measured time per point. With f = kappa (T - eta) and L = kappa gain |B|, the condition at a
boundary point is W(T) <= -sqrt(2) gain |B| Lip(E) eps. The grid says nothing of what lies between
its points, so that what it "certifies" here is more than it proves.

The tube is that of the certificate `contraction`; the branch and bound of `forward-invariance` is
shown too. Both are asked for the same radius, and both count the encoder's part.
"""

import argparse
import math
import time
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from robustness.certificates import invariance
from robustness.certificates.flows import relaxed_flows
from robustness.certificates.flows.constants import pixel_slope
from robustness.certificates.invariance import InvarianceCertificate
from robustness.certificates.layers import bounds
from robustness.data import load_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.simplex import SimplexField
from robustness.zoo import load_model

MODEL, EPS, PUBLISHED_SPACING, PUBLISHED_POINTS = "mnist/fi-ode", 0.1, 40, 41_320_837
_BATCH = 4096


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--spacing", type=int, default=10, help="points per unit length")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(MODEL).module.eval().requires_grad_(False)
    assert isinstance(model, NeuralODEClassifier)
    data = load_images(MODEL.split("/")[0], "test", options.data_dir)
    images, labels = data.images[: options.samples], data.labels[: options.samples]
    assert boundary_count(model.classes, PUBLISHED_SPACING) == PUBLISHED_POINTS

    grid, started = boundary_points(model.classes, options.spacing), time.perf_counter()
    by_grid = torch.tensor(
        [grid_holds(model, grid, x, int(y)) for x, y in zip(images, labels, strict=True)]
    )
    per_point = (time.perf_counter() - started) / (len(images) * len(grid))
    full = per_point * PUBLISHED_POINTS
    print(
        f"grid of spacing 1/{options.spacing}: {len(grid)} points, {1e6 * per_point:.3f} us each; "
        f"{PUBLISHED_POINTS} points at 1/{PUBLISHED_SPACING} would take {full:.1f} s per image; "
        f"holds at {int(by_grid.sum())} of {len(images)} images, l2 {EPS}"
    )
    right = model(images).argmax(dim=1) == labels
    for name, holds in (("tube", tube_holds), ("branch and bound", cone_holds)):
        started = time.perf_counter()
        proved = holds(model, images, labels) & right
        each = (time.perf_counter() - started) / len(images)
        missed = int((by_grid & right & ~proved).sum())
        print(
            f"{name}: {1e3 * each:.2f} ms per image, {full / each:.0f} times faster than the full "
            f"grid; certifies {int(proved.sum())} of {len(images)}, and misses {missed} of the "
            "images at which the grid holds"
        )


def tube_holds(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether the tube of radius EPS proves each image, features included.

    As in the certificate, cells are cut in parts only where the plain tube does not decide.
    """
    features = relaxed_flows.perturbed_features(model, images)
    radius = torch.full((len(images),), EPS, dtype=torch.float64)
    final = relaxed_flows.solve(model, features, radius, labels, local=True)
    holds = (final.least_leads(labels) > 0).all(dim=1)
    left = torch.nonzero(~holds).squeeze(1)
    for i in left.tolist():
        one = slice(i, i + 1)
        fine = relaxed_flows.solve(
            model, features[one], radius[one], labels[one], local=True, halvings=4
        )
        holds[i] = bool((fine.least_leads(labels[one]) > 0).all())
    return holds


def cone_holds(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Whether branch and bound proves each image at EPS, features included."""
    features = relaxed_flows.perturbed_features(model, images)
    radius = torch.full((len(images),), EPS, dtype=torch.float64)
    found = invariance.answers(model, features, labels, radius, InvarianceCertificate().budget)
    return torch.tensor([answer.holds for answer in found])


def boundary_count(classes: int, spacing: int) -> int:
    """Points of the grid at which the label shares the largest entry with another class."""
    # Entries are whole numbers m >= others that sum to the spacing, the label's equal to the top.
    total = 0
    for top in range(1, spacing + 1):
        total += _ways(classes - 1, spacing - top, top) - _ways(classes - 1, spacing - top, top - 1)
    return total


def _ways(parts: int, total: int, most: int) -> int:
    """Ordered sums of `parts` whole numbers from 0 to `most`."""
    if total < 0 or most < 0:
        return 0
    signs = ((-1) ** k * math.comb(parts, k) for k in range(parts + 1))
    terms = (total - k * (most + 1) for k in range(parts + 1))
    return sum(
        sign * math.comb(rest + parts - 1, parts - 1)
        for sign, rest in zip(signs, terms, strict=True)
        if rest >= 0
    )


def boundary_points(classes: int, spacing: int) -> Tensor:
    """The grid's points on the boundary, the label's entry first; shape (points, classes)."""
    bars = torch.tensor(list(combinations(range(spacing + classes - 1), classes - 1)))
    ends = torch.full((len(bars), 1), spacing + classes - 1)
    edges = torch.cat([torch.full_like(ends, -1), bars, ends], dim=1)
    points = edges.diff(dim=1) - 1
    largest = points[:, 1:].amax(dim=1)
    return points[points[:, 0] == largest].float() / spacing


def grid_holds(model: NeuralODEClassifier, grid: Tensor, image: Tensor, label: int) -> bool:
    """FI-ODE's condition at every point of the grid, all of which are visited."""
    field = model.field
    assert isinstance(field, SimplexField)
    features = model.features(image.unsqueeze(0))
    others = [j for j in range(model.classes) if j != label]
    states = torch.empty_like(grid)
    states[:, [label, *others]] = grid
    slope = (
        field.gain * bounds.spectral_norm(field.to_state.weight).value * pixel_slope(model).value
    )
    worst = -math.inf
    for batch in states.split(_BATCH):
        target = field.target(batch, features.expand(len(batch), -1))
        rival = target[:, others].amax(dim=1)
        worst = max(worst, float((rival - target[:, label]).max()))
    return worst <= -math.sqrt(2) * slope * EPS


if __name__ == "__main__":
    main()
