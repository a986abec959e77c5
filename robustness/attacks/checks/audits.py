"""Audits: can the numbers of an attack be believed? Machine-readable, each with a threshold.

Each audit is a pure function of a model, images and settings, and answers with a `Flag`. What a
raised flag means, and what to do about it, is in docs/attacks.md.
"""

from collections.abc import Callable, Iterator, Mapping

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.checks.attack_audits import incomplete_optimisation, silent_success
from robustness.attacks.checks.flag import Flag
from robustness.attacks.checks.gradient_audits import (
    gradient_agreement,
    gradient_health,
    larger_eps,
    masked_gradients,
    more_steps,
    solver_tolerance,
    unbounded_attack,
)
from robustness.attacks.checks.model_audits import (
    batch_invariance,
    input_range,
    logits_check,
    normalisation,
    randomness,
    solver_failures,
)
from robustness.attacks.lanes import scores
from robustness.errors import in_words, is_exhausted
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE
from robustness.numerics.devices import beside
from robustness.threat import ThreatModel


def audit(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    seed: int = 0,
    sources: Mapping[str, nn.Module] | None = None,
) -> list[Flag]:
    """All audits that apply to a model.

    An audit that cannot be run, because the model raises or has no samples that it gets right,
    raises its flag and says why; the others are not lost.

    Args:
        model: the deployed model.
        images: originals in [0, 1], shape (n, c, h, w); 64 or more for the tests to have power.
        labels: true classes, shape (n,).
        threat: the ball that attacks are compared in.
        seed: decides every random draw.
        sources: other models by name, whose adversarial images are tried on this one.
    """
    images, labels = beside(model, images, labels)
    flags = _audit_model(model, images, labels)
    return flags + _audit_gradients(model, images, labels, threat, seed, sources)


def _audit_model(model: nn.Module, images: Tensor, labels: Tensor) -> list[Flag]:
    audits: dict[str, Callable[[], Flag | list[Flag]]] = {
        "batch-invariance": lambda: batch_invariance(model, images),
        "randomness": lambda: randomness(model, images),
        "solver-failures": lambda: solver_failures(model, images),
        "logits": lambda: logits_check(model, images),
        "input-range": lambda: input_range(model, images, labels),
        "normalisation": lambda: normalisation(model, images, labels),
    }
    return [flag for name, run in audits.items() for flag in _guarded(name, run)]


def _audit_gradients(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    seed: int,
    sources: Mapping[str, nn.Module] | None,
) -> list[Flag]:
    def correct() -> tuple[Tensor, Tensor]:
        right = scores(model, images).argmax(dim=1) == labels
        if not bool(right.any()):
            raise ValueError("expected samples that the model gets right, got none")
        return images[right], labels[right]

    audits: dict[str, Callable[[], Flag | list[Flag]]] = {
        "masked-gradients": lambda: masked_gradients(model, *correct(), threat, seed, sources),
        "gradient-health": lambda: gradient_health(model, *correct()),
        "gradient-agreement": lambda: gradient_agreement(model, *correct()),
        "more-steps": lambda: more_steps(model, *correct(), threat, seed),
        "larger-eps": lambda: larger_eps(model, *correct(), threat, seed),
        "unbounded-attack": lambda: unbounded_attack(model, *correct(), threat.norm, seed),
        "silent-success": lambda: silent_success(model, *correct(), threat, seed),
        "incomplete-optimisation": lambda: incomplete_optimisation(model, *correct(), threat, seed),
    }
    if isinstance(model, NeuralODEClassifier | StagedODE):
        solved = model
        audits["solver-tolerance"] = lambda: solver_tolerance(solved, *correct(), threat, seed)
    return [flag for name, run in audits.items() for flag in _guarded(name, run)]


def _guarded(name: str, run: Callable[[], Flag | list[Flag]]) -> Iterator[Flag]:
    try:
        found = run()
    except Exception as error:  # a user's model: any failure is data, but for the machine's
        if is_exhausted(error):
            raise
        reason = " ".join(in_words(error).split())[:300]
        yield Flag(name, True, None, 0.0, f"could not be run: {reason}")
        return
    yield from [found] if isinstance(found, Flag) else found
