"""Vector fields on the class state: what moves the logits, conditioned on features.

Every field is called as `field(t, state, features)` with states of shape (n, classes) and
features of shape (n, features), and returns velocities of shape (n, classes). `on_grid` gives
the velocities of every image at every one of some states that all images share, as Monte Carlo
training needs them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

# Distance of the class corners from the origin along each axis, in LyaNet's published code.
CORNER = 15.0


def lyapunov_rate(classes: int) -> float:
    """LyaNet's kappa = ln sqrt(n * 15^2): 3.859 for ten classes (arXiv 2202.02526, code)."""
    return math.log(math.sqrt(classes * CORNER**2))


def class_corners(classes: int) -> Float[Tensor, "classes classes"]:
    """The corner of each class: +15 on its own axis and -15 on the others, shape (n, n)."""
    return 2 * CORNER * torch.eye(classes) - CORNER


class LyaNetField(nn.Module):
    """LyaNet's data-controlled field (arXiv 2202.02526), in its two published variants.

    The features are a square matrix M(z) between two small layers,
    `raw = B act(M(z) act(A eta + a)) + b`. Then, with class corners c_i and the rate kappa,

    - `normalised`: eta' = kappa * gain * speed * raw / |raw|, where the speed is the mean over
      classes of |c_i - eta| weighted by softmax over i of (c_i - eta).raw/|raw|. The speed
      grows in proportion to the state, so nothing but the finite horizon bounds the solution:
      |eta| grows at most like exp(kappa * gain * t / n).
    - `simplex`: eta' = (kappa * gain / n) * (sum_i softmax(raw)_i c_i - eta), a relaxation
      towards a point of the class simplex; the state stays in the hull of the corners and eta(0).

    Both means run over the n classes, as in the authors' code; gain = n cancels that factor.

    Args:
        classes: number of classes n, the dimension of the state.
        width: m; features have m * m entries.
        variant: `normalised` or `simplex`.
        gain: the authors' gain, which their training loop alters.
        moving: that training may move the gain: it is then a buffer, and kept with the weights.
        softening: smallest |raw| that is divided by; torch's normalisation uses 1e-12.
        feedback: factor of the weights A that the state enters by, before training. A small one
            keeps boxes of states, whose entries reach 15, from widening the next velocity's.
    """

    corners: Tensor
    gain: float | Tensor

    def __init__(
        self,
        classes: int,
        width: int,
        variant: str,
        gain: float,
        softening: float = 1e-12,
        feedback: float = 1.0,
        moving: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.width, self.variant = classes, width, variant
        # Stored results know a field by its attributes: one whose gain stays has no other ones.
        if moving:
            self.register_buffer("gain", torch.tensor(gain))
            self.largest_gain = gain
        else:
            self.gain = gain
        self.softening = softening
        self.rate = lyapunov_rate(classes)
        self.from_state = nn.Linear(classes, width)
        if feedback != 1:
            with torch.no_grad():
                self.from_state.weight.mul_(feedback)
        self.to_state = nn.Linear(width, classes)
        self.register_buffer("corners", class_corners(classes), persistent=False)

    @property
    def features(self) -> int:
        """Number of features the field is conditioned on."""
        return self.width**2

    def forward(
        self, t: Tensor, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """Velocity of the state, shape (n, classes)."""
        del t
        raw = self._raw(state, features)
        if self.variant == "simplex":
            return self._relaxing(raw, state)
        distances = torch.linalg.vector_norm(self.corners - state.unsqueeze(1), dim=2)
        return self._steered(raw, distances)

    def on_grid(
        self,
        states: Float[Tensor, "s c"],
        features: Float[Tensor, "n f"],
        drop: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "n s c"]:
        """Velocity of every image at every state: `forward` up to float32 rounding.

        What depends on the state alone is computed once per state, and M(z) is multiplied with
        the hidden units of all states at once, so that no matrix is copied per state.

        Args:
            states: shape (s, classes), the same for every image.
            features: shape (n, features).
            drop: what happens to the hidden units of every image and state, before and after
                M(z), each of shape (n, s, m). The authors train with dropout there.

        Returns:
            Velocities, shape (n, s, classes).
        """
        hidden = functional.relu(self.from_state(states))
        matrix = features.view(-1, self.width, self.width)
        if drop is not None:
            hidden = drop(hidden.expand(len(features), -1, -1))
        mixed = functional.relu(hidden @ matrix.transpose(1, 2))
        raw = self.to_state(mixed if drop is None else drop(mixed))
        if self.variant == "simplex":
            return self._relaxing(raw, states)
        # Without the mode torch expands the square, which cancels where a state is at a corner.
        exact = "donot_use_mm_for_euclid_dist"
        return self._steered(raw, torch.cdist(states, self.corners, compute_mode=exact))

    def _relaxing(self, raw: Float[Tensor, "*n c"], state: Float[Tensor, "*s c"]) -> Tensor:
        target = raw.softmax(dim=-1) @ self.corners
        return (self.rate * self.gain / self.classes) * (target - state)

    def _steered(self, raw: Float[Tensor, "*n c"], distances: Float[Tensor, "*s c"]) -> Tensor:
        direction = functional.normalize(raw, dim=-1, eps=self.softening)
        # (c_i - eta).d = 30 d_i + a term without i, which a softmax over i does not see.
        weights = (2 * CORNER * direction).softmax(dim=-1)
        speed = (distances * weights).mean(dim=-1, keepdim=True)
        return self.rate * self.gain * speed * direction

    def _raw(self, state: Tensor, features: Tensor) -> Tensor:
        hidden = functional.relu(self.from_state(state))
        matrix = features.view(-1, self.width, self.width)
        hidden = functional.relu((matrix @ hidden.unsqueeze(2)).squeeze(2))
        return self.to_state(hidden)


class TargetSeekingField(nn.Module):
    """Relaxation towards a target: eta' = kappa * (g(eta, z) - eta).

    The target is g(eta, z) = gain * (W z + b) + coupling * softmax(eta), with coupling >= 0: the
    class that leads is reinforced, which makes the dynamics nonlinear in the state. Where
    eta_y >= eta_j the reinforcement only adds to the margin of y over j, so that every
    certificate of the linear part carries over to the flow (see `certificates.target_seeking`).

    Args:
        classes: number of classes n, the dimension of the state.
        features: number of features z.
        gain: scale of the target, in logits per unit of feature margin.
        coupling: strength of the reinforcement, in logits.
    """

    def __init__(self, classes: int, features: int, gain: float, coupling: float) -> None:
        super().__init__()
        if coupling < 0 or gain <= 0:
            raise ValueError(f"expected gain > 0 and coupling >= 0, got {gain} and {coupling}")
        self.classes, self.features = classes, features
        self.gain, self.coupling = gain, coupling
        self.rate = lyapunov_rate(classes)
        self.head = nn.Linear(features, classes)

    def target(
        self, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """The target g(eta, z), shape (n, classes)."""
        return self.gain * self.head(features) + self.coupling * state.softmax(dim=1)

    def forward(
        self, t: Tensor, state: Float[Tensor, "n c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n c"]:
        """Velocity of the state, shape (n, classes)."""
        del t
        return self.rate * (self.target(state, features) - state)

    def on_grid(
        self, states: Float[Tensor, "s c"], features: Float[Tensor, "n f"]
    ) -> Float[Tensor, "n s c"]:
        """Velocity of every image at every state, shape (n, s, classes)."""
        target = self.gain * self.head(features).unsqueeze(1)
        return self.rate * (target + self.coupling * states.softmax(dim=1) - states)


def velocities_on_grid(
    field: nn.Module, states: Float[Tensor, "s c"], features: Float[Tensor, "n f"]
) -> Float[Tensor, "n s c"]:
    """Velocity of every image at every state, shape (n, s, classes).

    Args:
        field: evaluated by its own `on_grid` where it has one, else pair by pair.
        states: shape (s, classes), the same for every image.
        features: shape (n, features).
    """
    if isinstance(field, LyaNetField | TargetSeekingField):
        return field.on_grid(states, features)
    images, count = len(features), len(states)
    pairs = states.repeat(images, 1), features.repeat_interleave(count, dim=0)
    velocities: Tensor = field(states.new_zeros(()), *pairs)
    return velocities.view(images, count, -1)
