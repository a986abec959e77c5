"""The network inside a simplex field, in float64, and the rounding of the float32 one that runs."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from robustness.nets.simplex import SimplexField
from robustness.numerics import norms
from robustness.numerics.arithmetic import rounding_of_entries


@dataclass(frozen=True)
class SimplexNetwork:
    """The field's network in float64, the gain folded into its outer layer.

    Attributes:
        inner: A, shape (units, classes).
        offset: a.
        outer: gain B, shape (classes, units).
        shift: gain b.
        products: gain B_i A_i for each unit i, flattened, shape (units, classes^2).
        inner_norm: spectral norm of A.
        outer_norm: of gain B.
        entries: a bound on every number that enters a product, the gain included.
    """

    inner: Tensor
    offset: Tensor
    outer: Tensor
    shift: Tensor
    products: Tensor
    inner_norm: float
    outer_norm: float
    entries: float

    def hidden(self, states: Tensor, features: Tensor) -> Tensor:
        """What relu is applied to, shape (n, units)."""
        return states @ self.inner.T + self.offset + features

    def proposal(self, states: Tensor, features: Tensor) -> Tensor:
        """v, the point that is projected, shape (n, classes)."""
        active = self.hidden(states, features).clamp_min(0)
        return states + active @ self.outer.T + self.shift

    @classmethod
    def of(cls, field: SimplexField) -> "SimplexNetwork":
        """The network of `field`."""
        inner = field.from_state.weight.detach().double()
        outer = field.to_state.weight.detach().double()
        largest = max(float(inner.abs().max()), float(outer.abs().max()), field.gain)
        columns = field.gain * outer
        return cls(
            inner,
            field.from_state.bias.detach().double(),
            columns,
            field.gain * field.to_state.bias.detach().double(),
            (columns.T.unsqueeze(2) * inner.unsqueeze(1)).flatten(1),
            norms.spectral_norm(inner).value,
            field.gain * norms.spectral_norm(outer).value,
            max(1.0, field.gain) * largest,
        )


@dataclass(frozen=True)
class Rounding:
    """Float32 error of a target.

    Attributes:
        entry: of each of its entries, shape (n,).
        total: of their sum, which is that of a projection of whatever v was computed, (n,).
    """

    entry: Float[Tensor, " n"]
    total: Float[Tensor, " n"]


def rounding_of_target(
    net: SimplexNetwork,
    states: Float[Tensor, "n k"],
    reach: Float[Tensor, " n"],
    features: Float[Tensor, "n f"],
    distance: Float[Tensor, " n"],
) -> "Rounding":
    """Float32 error of the target, at states and features within l2 distances.

    The projection takes the last sorted entry above the mean excess e_r as its support. With
    q_r = r (v_(r) - e_r), which does not increase in r, an error of at most d in the excesses
    changes decisions only where |q_r| <= K d, and there e_r - e_{r-1} = q_r / (r (r - 1)), so
    that the threshold is off by at most K d + d.

    Args:
        net: the network.
        states: centres of the states, float64.
        reach: l2 distance of the states from their centres.
        features: centres of the features, float64.
        distance: l2 distance of the features from their centres.

    Returns:
        Bounds that are infinite where float32 might overflow.
    """
    classes, width = net.outer.shape
    state = states.abs() + reach.unsqueeze(1)
    feature = features.abs() + distance.unsqueeze(1)
    terms = state @ net.inner.abs().T + net.offset.abs() + feature
    operands = (state.amax(dim=1) + feature.amax(dim=1) + net.entries).unsqueeze(1)
    of_hidden = rounding_of_entries(classes + 4, terms, operands)
    hidden = net.hidden(states, features).clamp_min(0)
    active = hidden + (net.inner_norm * reach + distance).unsqueeze(1) + of_hidden
    sums = active @ net.outer.abs().T + net.shift.abs()
    operands = operands + active.amax(dim=1, keepdim=True)
    of_v = of_hidden @ net.outer.abs().T
    of_v = of_v + rounding_of_entries(width + 6, sums + state, operands)
    v = net.proposal(states, features)
    far = (1 + net.inner_norm * net.outer_norm) * reach + net.outer_norm * distance
    mass = v.abs().sum(dim=1) + math.sqrt(classes) * far + of_v.sum(dim=1)
    # K - 1 additions, one subtraction and one division, and the subtraction of the threshold.
    of_threshold = (classes + 2) * rounding_of_entries(classes + 3, mass + 1, 1.0)
    return Rounding(2 * of_v.amax(dim=1) + of_threshold, classes * of_threshold)
