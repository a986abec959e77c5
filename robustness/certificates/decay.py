"""Certified decay: between which numbers V(t) lies at every step of the solver, over a ball.

The program that computes the trajectory is recorded as the one that predicts is (`programs.record`)
and every state that its solver gives is found among its values. Lines through the program bound
the leads of the label over every other class at each of these states, for every image of the ball
and with the rounding of every operation; V_y = log(1 + sum_j exp(-lead_j)) follows. No region and
no rate is asked for: the envelope holds for all perturbed trajectories at once, whether V falls
along them or not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustness.certificates.base import require_pixels
from robustness.certificates.layers import bounds
from robustness.certificates.sharing import shared
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.programs.graph import Refusal
from robustness.programs.network import Ball, Bounds, Network, margin_rows
from robustness.programs.operations.shapes import Selection
from robustness.programs.record import record
from robustness.threat import Norm

# Images that are bounded together.
_TOGETHER = 16
# Float64 room of V and of a sum of a state's entries, as a share of all that enters it.
_ROOM = 2.0**-40


@dataclass(frozen=True)
class Envelope:
    """What is proved of the trajectories of all images of a ball, for each of n balls.

    Attributes:
        times: of the states, as shares of the horizon, shape (t,).
        low: lower ends of V_y, shape (n, t).
        high: upper ends of V_y, infinite where nothing is known, shape (n, t).
        lead: lower ends of the least eta_y - eta_j over all j other than y, shape (n, t).
    """

    times: Float[Tensor, " t"]
    low: Float[Tensor, "n t"]
    high: Float[Tensor, "n t"]
    lead: Float[Tensor, "n t"]

    @property
    def decays(self) -> Bool[Tensor, " n"]:
        """Whether V at the horizon is proved to be below V at the start, over the whole ball."""
        return self.high[:, -1] < self.low[:, 0]

    @property
    def leading(self) -> Bool[Tensor, " n"]:
        """Whether the label is proved to lead at the horizon: no image of the ball is misread."""
        return self.lead[:, -1] > 0


class _Trajectory(nn.Module):
    """All states of a neural ODE one behind the other, shape (n, t * classes)."""

    def __init__(self, model: NeuralODEClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        states = self.model.solve(self.model.features(images)).states
        return states.movedim(0, 1).flatten(1)


@dataclass(frozen=True)
class Course:
    """The recorded trajectory of a model.

    Attributes:
        network: the program, with the rules of its operations; it ends with all states.
        states: of each state the step that computes it and which of its entries it is; a state that
            does not depend on the image is given by its value.
        times: of the states, as shares of the horizon.
    """

    network: Network
    states: list[tuple[int, Tensor] | Tensor]
    times: Float[Tensor, " t"]


@shared
def course_of(model: nn.Module, shape: tuple[int, int, int]) -> Course:
    """Record the trajectory of a model.

    Raises:
        Refusal: it has none on the class state, it cannot be recorded, or an operation has no rule.
    """
    if not isinstance(model, NeuralODEClassifier):
        raise Refusal("the model is no neural ODE on the class state")
    if model.training:
        raise Refusal("the model is in training mode; call eval() first")
    arithmetic = bounds.refusal_of_arithmetic(model, model.dtype)
    if arithmetic is not None:
        raise Refusal(arithmetic)
    program = record(_Trajectory(model), shape)
    network = Network(program)
    with torch.no_grad():
        solution = model.solve(model.features(torch.zeros(1, *shape)))
    times = solution.times.double() / model.solver.horizon
    entries = torch.arange(network.node(len(network) - 1).size).view(len(times), -1)
    states = [_source(network, len(network) - 1, part) for part in entries]
    return Course(network, states, times)


def _source(network: Network, step: int, entries: Tensor) -> tuple[int, Tensor] | Tensor:
    """Where some entries of a step are computed, behind all that only moves them about."""
    while True:
        given = network.steps[step]
        if given is None or not isinstance(given.operation, Selection):
            return step, entries
        came = [given.operation.origin(int(entry)) for entry in entries]
        constants = [value for value in came if isinstance(value, float)]
        if len(constants) == len(came):
            return torch.tensor(constants, dtype=torch.float64)
        places = [place for place in came if not isinstance(place, float)]
        parents = {parent for parent, _ in places}
        if constants or len(parents) > 1:
            return step, entries
        step, entries = given.parents[parents.pop()], torch.tensor([i for _, i in places])


@torch.no_grad()
def envelope(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    radii: Float[Tensor, " n"],
) -> Envelope:
    """The proved envelope of V_y and of the label's lead along the solver's states.

    For each image it speaks of every image of the ball around it, within [0, 1], as the model
    computes its trajectory alone in its batch. V_y is the real number that belongs to a computed
    state (`nets.classifiers.potential`).

    Args:
        model: a `NeuralODEClassifier` with a fixed-step solver, in evaluation mode.
        images: pixels.
        labels: the class y of each image.
        norm: of the balls.
        radii: of the balls, one for each image; 0 leaves rounding alone.

    Raises:
        Refusal: the model has no such program; the words say why.
        ValueError: the images are not what the model takes.
    """
    require_pixels(model, images)
    channels, height, width = images.shape[1:]
    course = course_of(model, (channels, height, width))
    parts = [
        _bounded(course, images[part], labels[part], norm, radii[part])
        for part in (slice(start, start + _TOGETHER) for start in range(0, len(images), _TOGETHER))
    ]
    low, high, lead = (torch.cat(found) for found in zip(*parts, strict=True))
    return Envelope(course.times, low, high, lead)


def _bounded(
    course: Course, images: Tensor, labels: Tensor, norm: Norm, radii: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    network = course.network
    ball = Ball(images.double().unsqueeze(1), radii.double(), norm)
    found = Bounds(network, ball, network.bends)
    ends = [_at(found, state, labels) for state in course.states]
    low, high, lead = (torch.stack(part, dim=1) for part in zip(*ends, strict=True))
    return low, high, lead


def _at(
    found: Bounds, state: tuple[int, Tensor] | Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of V and the least lead at one state, each of shape (n,)."""
    if isinstance(state, Tensor):
        leads = state[labels].unsqueeze(1) - state.expand(len(labels), -1)
        own = torch.zeros_like(leads, dtype=torch.bool).scatter(1, labels.unsqueeze(1), True)
        value, least = _potential(leads), leads.masked_fill(own, torch.inf).amin(dim=1)
        room = _ROOM * (1 + state.abs().amax())
        return value - room, value + room, least - room
    step, entries = state
    classes, box = len(entries), found.boxes[step]
    size = box.low[0].numel()
    rows, _ = margin_rows(classes, labels)
    count = rows.shape[1]
    # V is convex: it lies above its tangent at the middle of the state's box.
    centre = box.centre.flatten(1)[:, entries]
    share = centre.nan_to_num().softmax(dim=1)
    tangent = (share - torch.eye(classes, dtype=torch.float64)[labels]).view(-1, 1, 1, classes)
    every = torch.cat([rows, -rows, tangent], dim=1).squeeze(2)
    placed = every.new_zeros(len(every), every.shape[1], size)
    placed[:, :, entries] = every
    bounds = found.lower(step, placed.view(*every.shape[:2], *box.low.shape[1:]))
    least, most = bounds[:, :count], -bounds[:, count : 2 * count]
    low, high = (
        _potential(torch.cat([most, torch.zeros_like(most[:, :1])], dim=1)),
        _potential(torch.cat([least, torch.zeros_like(least[:, :1])], dim=1)),
    )
    # Gibbs: log sum exp(v) >= p v + H(p) for every p on the simplex.
    entropy = torch.special.entr(share).sum(dim=1)
    room = _ROOM * (1 + box.size.flatten(1)[:, entries].sum(dim=1))
    by_tangent = bounds[:, -1] + entropy - room
    low = torch.maximum(low * (1 - _ROOM), by_tangent.nan_to_num(nan=-torch.inf)).clamp_min(0)
    return low, high * (1 + _ROOM) + _ROOM, least.amin(dim=1)


def _potential(leads: Tensor) -> Tensor:
    """V_y = log sum_j exp(-(eta_y - eta_j)), of leads that include the label's own, 0."""
    return torch.logsumexp(-leads, dim=1)
