"""The attack of kind `worst-case`: `attacks.harness` as a suite names and sets it."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from robustness.attacks import Effort, Stage, default_stages, register_attack
from robustness.results.leaderboard import WORST_CASE
from robustness.threat import ThreatModel


def describe(stages: Sequence[Stage]) -> str:
    """The stages by name, and a digest of their versions: settings enter keys through it."""
    versions = "; ".join(stage.version for stage in stages)
    digest = hashlib.sha256(versions.encode()).hexdigest()[:8]
    return f"{len(stages)} stages ({digest}): {', '.join(stage.name for stage in stages)}"


@register_attack(WORST_CASE)
@dataclass(frozen=True)
class WorstCase:
    """Every view and attack in turn, cheap ones first, on what still stands and is not certified.

    Attributes:
        effort: how much is tried.
        transfer: whether adversarial images of the suite's other models are tried too.
    """

    effort: Effort = "standard"
    transfer: bool = True
    name: ClassVar[str] = WORST_CASE

    def stages(
        self, model: nn.Module, threat: ThreatModel, sources: Mapping[str, nn.Module]
    ) -> list[Stage]:
        """The stages for one model and threat.

        Args:
            model: the deployed model.
            threat: the ball.
            sources: the suite's other models by name.
        """
        used = sources if self.transfer else None
        return default_stages(model, threat, self.effort, used)

    def version(
        self, model: nn.Module, threat: ThreatModel, sources: Mapping[str, nn.Module]
    ) -> str:
        """Effort and stages."""
        return f"{self.effort} effort, {describe(self.stages(model, threat, sources))}"
