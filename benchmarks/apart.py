"""What an attack that shares no search with the suite's still breaks of what a report calls robust.

    python benchmarks/apart.py reports/digits --model digits/lyanet --norm L2 --eps 0.5 --starts 16

Without `--model` every model of the report is attacked, with `--open` no image that is certified
there.

Momentum on margins, every other round standardised, through the deployed model and four twins of
it; a third of the starts begin at the image, the others at the best points so far. The deployed
model alone in its batch says what is broken.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness.attacks.views import Smooth, views_of
from robustness.data import load_images
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.threat import Norm
from robustness.zoo import load_model, zoo_recipe

ROUNDS, STEPS, RIVALS = 40, 20, 5


def standing(report: Path, model: str, norm: Norm, eps: float, certified: bool = True) -> list[int]:
    """Indices of the images that are right and that nothing in a report broke within `eps`.

    Args:
        report: its folder.
        model: one of it.
        norm: of the ball.
        eps: its radius.
        certified: whether those are among them that are certified there.
    """
    return sorted(
        int(row["index"])
        for row in _samples(report)
        if (row["model"], row["norm"]) == (model, norm)
        and row["prediction"] == row["label"]
        and (certified or not float(row["certified_radius"] or 0) >= eps)
        and (not row["adversarial_distance"] or float(row["adversarial_distance"]) > eps)
    )


def _samples(report: Path) -> list[dict[str, str]]:
    with (report / "samples.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def twins_of(model: nn.Module) -> list[nn.Module]:
    """What is climbed in turn."""
    views = {view.name: view.module for view in views_of(model)}
    half = views.get("horizon/2", model)
    return [
        model,
        *(views[name] for name in ("horizon/2", "euler") if name in views),
        Smooth(half, backward_only=True),
        Smooth(model, backward_only=True, sharpness=5.0),
    ]


def _wide(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _unit(points: Tensor, least: float) -> Tensor:
    return points / _wide(points.flatten(1).norm(dim=1).clamp_min(least))


def into_ball(points: Tensor, images: Tensor, norm: Norm, eps: float) -> Tensor:
    """Points moved into ball and box."""
    if norm is Norm.LINF:
        return (images + (points - images).clamp(-eps, eps)).clamp(0, 1)
    for _ in range(3):
        away = points - images
        size = _wide(away.flatten(1).norm(dim=1).clamp_min(1e-12))
        points = (images + away * (eps / size).clamp(max=1)).clamp(0, 1)
    return points


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.scatter(1, labels[:, None], -1e30)


def _lead(logits: Tensor, labels: Tensor) -> Tensor:
    """How far another class leads, in deviations of the logits; above 0 where one is fooled."""
    rival = _without(logits, labels).amax(dim=1)
    label = logits.gather(1, labels[:, None])[:, 0]
    return (rival - label) / logits.std(dim=1).clamp_min(1e-12)


def broken(
    model: nn.Module, images: Tensor, labels: Tensor, norm: Norm, eps: float, starts: int, seed: int
) -> list[int]:
    """Places of the images that are broken, in the order in which they are.

    Args:
        model: the deployed model.
        images: shape (n, c, h, w).
        labels: shape (n,).
        norm: of the ball.
        eps: its radius.
        starts: points that are climbed of each image.
        seed: of all draws.
    """
    torch.manual_seed(seed)
    twins, count = twins_of(model), len(images)
    best = images.repeat_interleave(starts, 0).unflatten(0, (count, starts)).clone()
    near = torch.full((count, starts), -1e9)
    alive, found = list(range(count)), []
    for number in range(ROUNDS):
        if not alive:
            break
        index = torch.tensor(alive)
        x, y = (
            images[index].repeat_interleave(starts, 0),
            labels[index].repeat_interleave(starts, 0),
        )
        points = _begun(best[index].flatten(0, 1), x, norm, eps, number == 0)
        climbed = _Climb(model, twins[number % len(twins)], x, y, norm, eps, bool(number % 2))

        def noted(points: Tensor, leads: Tensor, index: Tensor = index) -> None:
            better = leads.view(len(index), starts) > near[index]
            near[index] = torch.where(better, leads.view(len(index), starts), near[index])
            kept = best[index]
            kept[better] = points.view_as(kept)[better]
            best[index] = kept

        climbed.run(points, noted)
        left = []
        for place in alive:
            first = int(near[place].argmax())
            if near[place, first] > 0:
                if _fools(model, best[place, first], images[place], labels[place], norm, eps):
                    found.append(place)
                    continue
                near[place, first] = -1e-3
            left.append(place)
            # The worse half goes on from the better.
            order = near[place].argsort(descending=True)
            half = starts // 2
            for values in (best, near):
                values[place, order[half:]] = values[place, order[: starts - half]].clone()
        alive = left
    return found


def _begun(points: Tensor, images: Tensor, norm: Norm, eps: float, first: bool) -> Tensor:
    kind = torch.rand(len(points))
    if norm is Norm.L2:
        noise = torch.randn_like(points)
        noise = noise / _wide(noise.flatten(1).norm(dim=1))
    else:
        noise = 2 * torch.rand_like(points) - 1
    size = torch.where(kind < 0.3, torch.tensor(1.0), torch.rand(len(points)) ** 2) * eps
    if first:
        size[:] = eps
    begun = torch.where(_wide(kind < 0.3), images, points) + noise * _wide(size)
    return into_ball(begun, images, norm, eps)


class _Climb:
    """Steps with momentum towards some class or the nearest, through one twin."""

    def __init__(
        self,
        model: nn.Module,
        twin: nn.Module,
        images: Tensor,
        labels: Tensor,
        norm: Norm,
        eps: float,
        standardised: bool,
    ) -> None:
        self.model, self.twin, self.images, self.labels = model, twin, images, labels
        self.norm, self.eps, self.standardised = norm, eps, standardised

    def run(self, points: Tensor, noted: Callable[[Tensor, Tensor], None]) -> None:
        """Climb; every point that is passed is looked at on the deployed model, and noted."""
        with torch.no_grad():
            order = _without(self.model(self.images), self.labels).argsort(1, descending=True)
        pick = (torch.rand(len(points)) ** 2 * RIVALS).long().clamp(max=RIVALS - 1)
        target = order.gather(1, pick[:, None])[:, 0]
        free = torch.rand(len(points)) < 0.4
        size = self.eps * 10 ** (-1.3 * torch.rand(len(points)))
        momentum = torch.zeros_like(points)
        for step in range(STEPS):
            slope = self._slope(points, target, free)
            momentum = 0.6 * momentum + self._steepest(slope)
            length = size * (0.05 + 0.95 * (1 - step / STEPS))
            points = points + _wide(length) * self._steepest(momentum)
            points = into_ball(points, self.images, self.norm, self.eps)
            with torch.no_grad():
                noted(points, _lead(self.model(points), self.labels))

    def _slope(self, points: Tensor, target: Tensor, free: Tensor) -> Tensor:
        leaf = points.clone().requires_grad_()
        out = self.twin(leaf)
        label = out.gather(1, self.labels[:, None])[:, 0]
        nearest = _without(out, self.labels).amax(dim=1)
        rival = torch.where(free, nearest, out.gather(1, target[:, None])[:, 0])
        scale = out.detach().std(dim=1).clamp_min(1e-12) if self.standardised else 1.0
        (slope,) = torch.autograd.grad(((rival - label) / scale).sum(), leaf)
        return slope.nan_to_num(0, 0, 0)

    def _steepest(self, slope: Tensor) -> Tensor:
        return slope.sign() if self.norm is Norm.LINF else _unit(slope, 1e-30)


@torch.no_grad()
def _fools(
    model: nn.Module, point: Tensor, image: Tensor, label: Tensor, norm: Norm, eps: float
) -> bool:
    """Whether a point in box and ball, or a little nearer, is of another class by itself."""
    away = point.double() - image.double()
    distance = float(away.abs().max() if norm is Norm.LINF else away.norm())
    if distance > eps:
        point = (image + (point - image) * (eps / distance * (1 - 1e-6))).clamp(0, 1)
    return int(model(point[None]).argmax()) != int(label)


@reproducible_arithmetic()
def main() -> None:
    """Print which of the standing images are broken, and what that took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--norm", required=True)
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--starts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--open", action="store_true")
    parser.add_argument("--data-dir", type=Path)
    asked = parser.parse_args()
    norm = Norm.parse(asked.norm)
    names = [asked.model] if asked.model else sorted({r["model"] for r in _samples(asked.report)})
    for name in names:
        left = standing(asked.report, name, norm, asked.eps, certified=not asked.open)
        if not left:
            print(f"{name}, {norm} {asked.eps:g}: nothing stands", flush=True)
            continue
        data = load_images(zoo_recipe(name).data.name, "test", asked.data_dir)
        began = time.process_time()
        model, found = load_model(name).module, []
        for first in range(0, len(left), asked.batch):
            some = left[first : first + asked.batch]
            images, labels = data.images[some], data.labels[some]
            places = broken(model, images, labels, norm, asked.eps, asked.starts, asked.seed)
            found += [some[place] for place in places]
        seconds = time.process_time() - began
        print(
            f"{name}, {norm} {asked.eps:g}: {len(found)} of {len(left)} that stand are broken, "
            f"images {found}; {seconds / len(left):.2f} s of processor time an image",
            flush=True,
        )


if __name__ == "__main__":
    main()
