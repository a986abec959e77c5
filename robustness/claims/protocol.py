"""Robust accuracy under the authors' own protocol, in pixel units, and through another horizon."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.claims.horizon import shorter
from robustness.data import ImageSet
from robustness.evaluation.leaderboard import Proportion
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.solvers import FixedStepSolver
from robustness.threat import Norm
from robustness.training.adversarial import perturb

IMAGES = 500
_STEP, _STEPS = 2 / 255, 10
_SEED, _BATCH = 0, 250

# Norm and radius as in the authors' script, which reads both in units of normalised pixels.
PAPER = {"linf 8/255": (Norm.LINF, 8 / 255), "l2 127/255": (Norm.L2, 127 / 255)}

# Where the authors' protocol is too weak to say anything about digits.
WIDE, WIDE_STEPS = 0.1, 20
_SHORT = 0.25


class _Normalised(nn.Module):
    """A model from normalised pixels to logits: what the authors' script attacks."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, normalised: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        normalise = self.model.normalise
        assert isinstance(normalise, Normalise)
        return self.model(normalised * normalise.std + normalise.mean)


class _Shorter(nn.Module):
    """A neural ODE read early, its logits rescaled to unit spread: gradients that do not vanish."""

    def __init__(self, model: NeuralODEClassifier, solver: FixedStepSolver) -> None:
        super().__init__()
        self.model, self.solver = model, solver

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        model = self.model
        features = model.features(images)
        solution = self.solver.solve(model.field, model.initial_state(features), features)
        logits = solution.final
        return logits / logits.detach().std(dim=1, keepdim=True).clamp_min(1e-12)


def protocols(model: nn.Module, images: ImageSet) -> dict[str, Proportion]:
    """Robust accuracy of one model under every protocol, by projected gradient descent.

    - `paper`: images are normalised first, and the attack's radius, step and clip to [0, 1] are
      in normalised units; the clip alone moves every pixel darker than the mean.
    - `pixels`: the same radius, step size and number of steps in true pixel units.
    - `wide`: l-infinity 0.1 in pixel units, through the deployed model, and for class-state ODEs
      `short` as well: through a quarter of the horizon with rescaled logits. `short` is judged
      on the deployed model, and counts an image as robust only if `wide` failed on it too.

    Args:
        model: pixels to logits, with a `normalise` layer, in evaluation mode.
        images: the images to attack, in pixel units.
    """
    found = {}
    for name, (norm, eps) in PAPER.items():
        for units in ("paper", "pixels"):
            standing = torch.cat(
                [_standing(model, x, y, units, norm, eps) for x, y in _batches(images)]
            )
            found[f"{units} {name}"] = _proportion(standing)
    wide = torch.cat([_wide(model, model, x, y) for x, y in _batches(images)])
    found["wide linf 0.1"] = _proportion(wide)
    if isinstance(model, NeuralODEClassifier):
        view = _Shorter(model, shorter(model, _SHORT)).eval()
        short = torch.cat([_wide(model, view, x, y) for x, y in _batches(images)])
        found["short linf 0.1"] = _proportion(wide & short)
    return found


def _batches(images: ImageSet) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(images.images.split(_BATCH), images.labels.split(_BATCH), strict=True)


def _standing(
    model: nn.Module, pixels: Tensor, labels: Tensor, units: str, norm: Norm, eps: float
) -> Tensor:
    attacked, images = model, pixels
    if units == "paper":
        normalise = model.normalise
        assert isinstance(normalise, Normalise)
        attacked, images = _Normalised(model).eval(), normalise(pixels)
    generator = torch.Generator().manual_seed(_SEED)
    found = perturb(attacked, images, labels, norm, eps, _STEPS, generator, _STEP)
    return _right(attacked, images, labels) & _right(attacked, found, labels)


def _wide(model: nn.Module, view: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    found = perturb(view, pixels, labels, Norm.LINF, WIDE, WIDE_STEPS, generator)
    return _right(model, pixels, labels) & _right(model, found, labels)


@torch.no_grad()
def _right(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return model(images).argmax(dim=1) == labels


def _proportion(standing: Tensor) -> Proportion:
    return Proportion.of(int(standing.sum()), len(standing))
