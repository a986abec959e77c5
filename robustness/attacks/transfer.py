"""Transfer: images that fool another model, tried on this one."""

from dataclasses import dataclass, field

from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.ascent import Ascent
from robustness.attacks.base import Pursuit
from robustness.attacks.views import View
from robustness.threat import Norm, ThreatModel


@dataclass(frozen=True)
class Transfer(Pursuit):
    """An ascent of another model's loss, until this model is fooled.

    The ascent does not stop where the other model is fooled: images that fool it by far
    transfer better.

    Attributes:
        source: the other model's name.
        model: the other model, pixels to logits of the same classes.
        ascent: how it is climbed.
    """

    source: str
    model: nn.Module = field(repr=False, compare=False)
    ascent: Ascent = field(default_factory=lambda: Ascent("margin", 20))

    @property
    def name(self) -> str:
        """`transfer(source)`."""
        return f"transfer({self.source})"

    @property
    def version(self) -> str:
        """The source and the ascent's settings."""
        return f"transfer from {self.source} by {self.ascent.version}"

    def refusal(self, threat: ThreatModel, classes: int) -> str | None:
        """As the ascent."""
        return self.ascent.refusal(threat, classes)

    def pursue(
        self,
        view: View,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
    ) -> Float[Tensor, "k n c h w"]:
        """Climb the source in place of the view; see `Guided.pursue`."""
        del view
        source = View(self.source, self.model)
        return self.ascent.pursue(source, deployed, images, labels, norm, radii, seed)
