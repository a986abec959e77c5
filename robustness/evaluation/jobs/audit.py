"""The audit: the strongest attack there is, just inside what was certified.

Section "What makes a radius certified" of docs/theory.md, point 6. In every run, a random sample
of the certified images and those with the largest radii are attacked, each just inside its own
radius.
"""

import hashlib
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks import (
    PGD,
    Ascent,
    Outcome,
    Stage,
    climbed_view,
    default_stages,
    shortened,
    views_of,
    worst_case_within,
)
from robustness.attacks.lanes import LANE_OF_FEW
from robustness.threat import Norm, ThreatModel

# A radius promises nothing at its own edge, so the attack stays this share below it.
INSIDE = 1 - 1e-6
NAME = "audit"
_STEPS, _STARTS = 50, 4


def audit_stages(model: nn.Module, threat: ThreatModel) -> list[Stage]:
    """The pipeline of a verdict, and behind it plain attacks without its views.

    One comes from another library, so that no slip of one implementation makes the audit blind.
    """
    base = climbed_view(model)
    plain = [
        Stage(Ascent("margin", _STEPS, _STARTS), base),
        Stage(Ascent("ce", _STEPS), base),
        Stage(PGD(_STEPS), views_of(model)[0], copies=_STARTS),
    ]
    return [shortened(stage, LANE_OF_FEW) for stage in [*default_stages(model, threat), *plain]]


def describe(stages: list[Stage]) -> str:
    """The stages by name, and a digest of their versions: settings enter keys through it."""
    versions = "; ".join(stage.version for stage in stages)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:8]
    return f"{len(stages)} stages ({digest}): {', '.join(stage.name for stage in stages)}"


def audit(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    radii: Float[Tensor, " n"],
    seed: int,
) -> list[Outcome]:
    """Attack each image just inside its certified radius by every stage, until one breaks it.

    What comes out for one image depends on it, its radius and the seed, not on its company.
    """
    within = radii * INSIDE
    stages = audit_stages(model, ThreatModel(norm, float(within.max())))
    return worst_case_within(model, images, labels, norm, within, stages, seed=seed)


def choose(
    radii: Mapping[int, float], samples: int, largest: int, seed: int, salt: str
) -> list[int]:
    """The images to audit: those with the largest radii, and a random sample of the others.

    Args:
        radii: certified radius of each image; those without one are never chosen.
        samples: how many at random.
        largest: how many by their radius, ties by index.
        seed: of the suite.
        salt: what tells one draw of the suite from another.

    Returns:
        Indices in increasing order.
    """
    ranked = sorted((i for i in radii if radii[i] > 0), key=lambda i: (-radii[i], i))
    top, rest = ranked[:largest], sorted(ranked[largest:])
    digest = hashlib.sha256(f"{seed}:audit:{salt}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    drawn = torch.randperm(len(rest), generator=generator)[:samples].tolist()
    return sorted(top + [rest[i] for i in drawn])
