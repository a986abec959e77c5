"""A view: something else to climb where the gradients of a model are of no use."""

from collections.abc import Iterator

from torch import Tensor, nn

from robustness.attacks import View, register_view
from robustness_example.model import Halves


class Doubled(nn.Module):
    """The same logits, twice as far apart."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Scores, shape (n, 2)."""
        return 2 * self.inner(images)


@register_view(Halves)
def doubled(model: Halves) -> Iterator[View]:
    """The view `doubled`."""
    yield View("doubled", Doubled(model), faithful=True)
