"""Audits of a model's gradients: would an attack that fails have failed for want of slopes?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.ascent import Ascent
from robustness.attacks.base import Attack
from robustness.attacks.checks.flag import SIGNIFICANCE, Flag, Pairs
from robustness.attacks.harness import Stage, worst_case
from robustness.attacks.judge import Status, judge
from robustness.attacks.lanes import scores_and_gradients
from robustness.attacks.libraries.autoattack_adapter import Square
from robustness.attacks.losses import cross_entropy, margin
from robustness.attacks.nearest import whole_box
from robustness.attacks.transfer import Transfer
from robustness.attacks.views import Float64, View, graded, views_of, with_solver
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE
from robustness.threat import Norm, ThreatModel

# The attack that is compared through one view and another.
_PROBE = Ascent("ce", steps=15)
# Random starts of the deployed gradients, at most; black-box queries per image.
_STARTS, _BLACK_BOX = 5, Square(150)
# Radii at which gradients are compared, as parts of eps: the first one at which the deployed
# gradients leave this share of samples standing.
_PARTS, _STANDING = (1, 2, 4, 8), 0.3
# Least share of samples by which a rival must win.
_LEAD = 0.02
# A gradient of cross-entropy per pixel below the first or above the second is of no use.
_VANISHED, _EXPLODED = 1e-30, 1e6
# Share of samples that may have one.
_TOLERATED = 0.05
# Cosine with the reference below which a gradient points elsewhere.
_AGREES = 0.9


def broken(
    stage: Stage,
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int,
) -> list[bool]:
    """Which samples one stage breaks."""
    outcomes = worst_case(model, images, labels, threat, [stage], seed=seed)
    return [outcome.status is Status.ADVERSARIAL for outcome in outcomes]


def masked_gradients(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
    sources: Mapping[str, nn.Module] | None = None,
) -> Flag:
    """Whether other gradients than the deployed model's, or none, break more samples.

    The same ascent of cross-entropy climbs the deployed model, from as many random starts as
    there are rivals or five, and climbs each rival once: views, transfer from `sources`, and,
    without any gradient, Square. Compared at the first of eps, eps/2, eps/4 and eps/8 at which
    the deployed gradients leave three in ten standing, since nothing can be told where all break.

    Raised if the rivals together break more samples with p < 0.01 by McNemar's exact test, and
    at least 2% more.
    """
    deployed, *others = views_of(model)
    rivals = [Stage(_PROBE, view) for view in others if view.rival]
    transfers = [Transfer(name, source, _PROBE) for name, source in (sources or {}).items()]
    rivals += [Stage(transfer, deployed) for transfer in transfers]
    own = Stage(replace(_PROBE, starts=min(_STARTS, len(rivals) + 1)), deployed)
    for part in _PARTS:
        here = replace(threat, eps=threat.eps / part)
        first = broken(own, model, images, labels, here, seed)
        if first.count(False) >= _STANDING * len(first):
            break
    wins = {stage.name: broken(stage, model, images, labels, here, seed + 1) for stage in rivals}
    candidates = _BLACK_BOX.propose(model, images, labels, here, seed)
    verdicts = judge(model, images, labels, candidates, here)
    wins[_BLACK_BOX.name] = [verdict.status is Status.ADVERSARIAL for verdict in verdicts]
    second = [any(column) for column in zip(*wins.values(), strict=True)]
    pairs = Pairs.of(first, second)
    lead = (pairs.gained - pairs.lost) / max(1, len(first))
    best = max(wins, key=lambda name: sum(wins[name]))
    detail = (
        f"at {here} deployed gradients ({own.attack.version}) break {sum(first)} of {len(first)}, "
        f"rivals {sum(second)}, {pairs.gained} of which the deployed do not and without "
        f"{pairs.lost} that they do; best: {best} {sum(wins[best])}; p = {pairs.probability:.2g}"
    )
    raised = pairs.probability < SIGNIFICANCE and lead >= _LEAD
    return Flag("masked-gradients", raised, pairs.probability, SIGNIFICANCE, detail)


def gradient_health(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> Flag:
    """Share of samples whose gradient of cross-entropy is zero, not finite, or exploded.

    Raised above 5%. Zero: no pixel's slope exceeds 1e-30; exploded: some slope exceeds 1e6.
    """
    _, _, gradients = scores_and_gradients(
        model, images, lambda z, part: cross_entropy(z, labels[part], labels[part])
    )
    finite = gradients.flatten(1).isfinite().all(dim=1)
    steepest = gradients.flatten(1).nan_to_num(0, 0, 0).abs().amax(dim=1)
    zero = finite & (steepest < _VANISHED)
    exploded = finite & (steepest > _EXPLODED)
    share = float((~finite | zero | exploded).cpu().double().mean())
    detail = (
        f"of {len(images)} gradients {int(zero.sum())} are zero, {int((~finite).sum())} not "
        f"finite, {int(exploded.sum())} exploded; median slope {float(steepest.median()):.1e}"
    )
    return Flag("gradient-health", share > _TOLERATED, share, _TOLERATED, detail)


def more_steps(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
) -> Flag:
    """Whether four times the steps break fewer samples. Raised beyond chance (p < 0.01)."""
    many = replace(_PROBE, steps=4 * _PROBE.steps)
    return _worse_when_stronger(
        "more-steps", model, images, labels, (_PROBE, threat), (many, threat), seed
    )


def larger_eps(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
) -> Flag:
    """Whether twice the radius breaks fewer samples. Raised beyond chance (p < 0.01)."""
    wide = replace(threat, eps=2 * threat.eps)
    return _worse_when_stronger(
        "larger-eps", model, images, labels, (_PROBE, threat), (_PROBE, wide), seed
    )


def _worse_when_stronger(
    name: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    weak: tuple[Attack, ThreatModel],
    strong: tuple[Attack, ThreatModel],
    seed: int,
) -> Flag:
    deployed = View("deployed", model, faithful=True)
    weaker, stronger = (
        broken(Stage(attack, deployed), model, images, labels, threat, seed)
        for attack, threat in (weak, strong)
    )
    chance = Pairs.of(stronger, weaker).probability
    detail = (
        f"{weak[0].name} at {weak[1]} breaks {sum(weaker)} of {len(images)}, "
        f"{strong[0].name} at {strong[1]} {sum(stronger)}; p = {chance:.2g}"
    )
    return Flag(name, chance < SIGNIFICANCE, chance, SIGNIFICANCE, detail)


def unbounded_attack(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    seed: int = 0,
) -> Flag:
    """Share of samples that stand when any image of the box may be proposed.

    In a ball that holds the whole box every image can become any other, so an attack that
    fails has lost its way. Raised above 5%.
    """
    threat = whole_box(norm, images[0])
    attack = replace(_PROBE, steps=2 * _PROBE.steps)
    stage = Stage(attack, View("deployed", model, faithful=True))
    standing = broken(stage, model, images, labels, threat, seed).count(False)
    share = standing / len(images)
    detail = f"{standing} of {len(images)} samples stand at {threat}, which holds every image"
    return Flag("unbounded-attack", share > _TOLERATED, share, _TOLERATED, detail)


@dataclass(frozen=True)
class Agreement:
    """How a gradient agrees with the reference, per sample.

    Attributes:
        cosine: cosine of the angle between the two, shape (n,); 0 where either is zero.
        sign: share of pixels with the same sign, shape (n,).
    """

    cosine: Float[Tensor, " n"]
    sign: Float[Tensor, " n"]


def gradient_agreements(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> dict[str, Agreement]:
    """Gradients of the margin by each available mode against those of a float64 copy.

    The reference back-propagates through the solver's steps in float64.

    Returns:
        Agreement of `deployed` and, for a solved model, of `adjoint` or `backprop`.
    """
    modes: dict[str, nn.Module] = {"deployed": model}
    reference = model
    if isinstance(model, NeuralODEClassifier | StagedODE):
        for mode in ("backprop", "adjoint"):
            modes[mode] = with_solver(model, replace(model.solver, gradient=mode))
        reference = modes["backprop"]
        del modes[model.solver.gradient]
    true = _margin_gradient(Float64(reference), images, labels)
    return {
        mode: _agreement(_margin_gradient(module, images, labels), true)
        for mode, module in modes.items()
    }


def _margin_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    _, _, gradients = scores_and_gradients(
        model, images, lambda z, part: margin(z, labels[part], labels[part])
    )
    return gradients.cpu().double().flatten(1)


def _agreement(gradient: Tensor, reference: Tensor) -> Agreement:
    cosine = torch.nn.functional.cosine_similarity(gradient, reference, dim=1, eps=1e-300)
    same = (gradient.sign() == reference.sign()).double().mean(dim=1)
    return Agreement(cosine.nan_to_num(0), same)


def gradient_agreement(
    model: nn.Module, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"]
) -> list[Flag]:
    """Share of samples whose gradient points elsewhere than the float64 reference.

    One flag for the deployed gradient, `gradient-agreement`, and one for the mode that is not
    deployed. Raised where the cosine is below 0.9 for more than 5% of samples.
    """
    flags = []
    for mode, found in gradient_agreements(model, images, labels).items():
        share = float((found.cosine < _AGREES).double().mean())
        detail = (
            f"{mode} gradient against float64: cosine below {_AGREES} on {share:.1%} of "
            f"{len(images)} samples, median {float(found.cosine.median()):.4f}; "
            f"median agreement of signs {float(found.sign.median()):.1%}"
        )
        name = "gradient-agreement" if mode == "deployed" else f"{mode}-agreement"
        flags.append(Flag(name, share > _TOLERATED, share, _TOLERATED, detail))
    return flags


def solver_tolerance(
    model: NeuralODEClassifier | StagedODE,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
) -> Flag:
    """Robust accuracy against the solver's tolerance or number of steps.

    The same ascent attacks the model as deployed and solved more finely and more coarsely, each
    through its own gradients. Raised if a finer solve breaks more samples than the deployed one
    beyond chance (p < 0.01): then the solver's steps, not the flow, hold the attack off.
    """
    results = {
        name: broken(
            Stage(_PROBE, View(name, twin, faithful=True)), twin, images, labels, threat, seed
        )
        for name, twin in graded(model).items()
    }
    chance = Pairs.of(results["deployed"], results["finer"]).probability
    standing = ", ".join(f"{name} {result.count(False)}" for name, result in results.items())
    detail = f"of {len(images)} samples stand at {threat}, solved: {standing}; p = {chance:.2g}"
    return Flag("solver-tolerance", chance < SIGNIFICANCE, chance, SIGNIFICANCE, detail)
