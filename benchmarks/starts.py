"""Whether adversarial images of a larger radius are better starts than random points.

    python benchmarks/starts.py digits/lyanet Linf 0.1 0.2 [--samples 599]

The images that stand at a radius after the sweep of all views, and that the first stages break at a
larger one, are climbed five times with 100 steps: from random points of the ball, and from points
on the way to the larger radius' adversarial image, a little beside it, towards its class or any.
Printed is how many each breaks, how many of these neither random climb does, and processor time
over that of random starts with the same loss.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness.attacks import Outcome, Stage, Status, default_stages, views_of, worst_case
from robustness.attacks.climb import Hunt, Rows
from robustness.attacks.lanes import sample_generator, scores
from robustness.attacks.losses import LOSSES, likely_targets
from robustness.attacks.views import View
from robustness.data import load_images
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model, training_data

STARTS, STEPS, FIRST = 5, 100, 3
# How far on the way to the edge of the ball, and by how much of its radius beside the way.
LEAST, MOST, BESIDE = 0.3, 1.0, 0.3


@dataclass(frozen=True)
class Chased:
    """What is climbed: images that stand, and adversarial images of theirs farther away."""

    model: nn.Module
    threat: ThreatModel
    images: Tensor
    labels: Tensor
    farther: Tensor
    classes: Tensor
    share: float

    def climbed(self, view: View, loss: str, beside: bool) -> tuple[Tensor, float]:
        """Which images fall, and in how many seconds of a processor."""
        radii = self.threat.radii(len(self.images))
        hunt = Hunt(self.model, self.images, self.labels, self.threat.norm, radii, None)
        sample = torch.arange(len(self.images)).repeat_interleave(STARTS)
        targets = self._targets(beside) if loss == "targeted" else self.labels[sample]
        drawn = [hunt.noise(image, STARTS, sample_generator(0, image)) for image in self.images]
        noise = torch.cat(drawn) * hunt.radius(sample)
        points, size = self.images[sample] + noise, 2.0
        if beside:
            chance = torch.rand(len(sample), generator=torch.Generator().manual_seed(0))
            way = self.share * (LEAST + (MOST - LEAST) * chance).view(-1, 1, 1, 1)
            points = self.images[sample] + way * (self.farther - self.images)[sample]
            points, size = points + BESIDE * noise, 1.0
        begun = time.process_time()
        start = hunt.into_ball(points, sample)
        rows = Rows.at(start, sample, targets, size * hunt.reach[sample])
        hunt.climb(view, rows, LOSSES[loss], STEPS)
        return hunt.found, time.process_time() - begun

    def _targets(self, beside: bool) -> Tensor:
        if beside:
            return self.classes.repeat_interleave(STARTS)
        likely = likely_targets(scores(self.model, self.images), self.labels, STARTS)
        return likely[:, torch.arange(STARTS) % likely.shape[1]].flatten()


def chased(
    model: nn.Module, images: Tensor, labels: Tensor, near: ThreatModel, far: ThreatModel
) -> tuple[Chased, int]:
    """What stands at the one radius and is broken at the other; how many stand at the one."""
    stages = default_stages(model, near)
    swept = [stage for stage in stages if not _is_long(stage)]
    standing = _where(worst_case(model, images, labels, near, swept), Status.ROBUST)
    images, labels = images[standing], labels[standing]
    outcomes = worst_case(model, images, labels, far, stages[:FIRST])
    broken = [(i, one) for i, one in enumerate(outcomes) if one.image is not None]
    rows = torch.tensor([i for i, _ in broken])
    farther = torch.stack([one.image for _, one in broken if one.image is not None])
    classes = torch.tensor([one.prediction for _, one in broken])
    share = near.eps / far.eps
    return Chased(model, near, images[rows], labels[rows], farther, classes, share), len(standing)


def _is_long(stage: Stage) -> bool:
    return getattr(stage.attack, "steps", 0) >= STEPS or stage.attack.name.startswith("iterated")


def _where(outcomes: Sequence[Outcome], status: Status) -> Tensor:
    return torch.tensor([i for i, one in enumerate(outcomes) if one.status is status])


def table(known: Chased, view: View) -> list[str]:
    """A line for each kind of start and loss."""
    lines, random = [], {}
    for loss in ("targeted", "margin"):
        random[loss] = known.climbed(view, loss, beside=False)
    neither = ~(random["targeted"][0] | random["margin"][0])
    for loss, (alone, seconds) in random.items():
        found, taken = known.climbed(view, loss, beside=True)
        more = int((found & neither).sum())
        lines.append(
            f"{view.name}, {loss}: random {int(alone.sum())}, from farther images "
            f"{int(found.sum())}, of which random climbs break all but {more}; "
            f"time {taken / seconds:.2f}"
        )
    return lines


@reproducible_arithmetic()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("norm", type=Norm)
    parser.add_argument("eps", type=float)
    parser.add_argument("larger", type=float)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--data-dir", type=Path)
    given = parser.parse_args()
    model = load_model(given.model).module
    data = load_images(training_data(given.model) or "digits", "test", given.data_dir)
    images, labels = data.images[: given.samples], data.labels[: given.samples]
    near, far = (ThreatModel(given.norm, eps) for eps in (given.eps, given.larger))
    known, standing = chased(model, images, labels, near, far)
    print(f"{given.model} {near}: {standing} stand, {len(known.images)} broken at {given.larger}")
    for view in views_of(model):
        if view.name in ("deployed", "smooth-backward"):
            print("\n".join(table(known, view)), flush=True)


if __name__ == "__main__":
    main()
