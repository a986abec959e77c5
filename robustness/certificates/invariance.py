"""Forward invariance of the right answers, by branch and bound (FI-ODE, arXiv 2210.16940).

FI-ODE asks for W' <= -sqrt(2) L eps on the decision boundary {W = 0} of the simplex, W = max_j
eta_j - eta_y, so that a perturbed flow cannot leave the set {W <= 0} of right answers; it covers
the boundary with a grid, anew for each image.

That condition speaks of the continuous flow. A step of the program has a length, and could cross
the boundary from a state inside of it, where nothing was asked. What the program needs is that
Euler's map E(eta) = (1 - s) eta + s T(eta, z), s = h kappa <= 1, takes every state of {W <= 0} to
{W < 0}. Since W is convex it is enough that

    W(E(eta)) <= (1 - s) W(eta) + s W(T(eta, z)) < 0      at every eta of the simplex, W(eta) <= 0,

which is FI-ODE's condition on the boundary, W(T) < 0, and a weaker one inside, where W(eta) < 0
helps. By induction every state of the solve has W < 0: eta(0) has W = 0, and heun2 gives eta/2 +
E(E(eta))/2. The condition here is the left side, not its bound by convexity.

The states with W <= 0 are a unit cube (`cone_cells`), on whose cells the leads after a step are
bounded by linear functions (`cone_steps`). Only cells that are not decided are split.

The float32 program leaves the simplex by rounding: what that, and every other rounding, can take
from a lead is bounded for all steps, and asked for on top.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    BaseCertificate,
    CertifiedRadius,
    Kind,
    register_certificate,
)
from robustness.certificates.flows import relaxed_flows, tubes
from robustness.certificates.flows.constants import failure, to_norm
from robustness.certificates.flows.margins import Claim
from robustness.certificates.flows.simplex.cone_cells import Cells
from robustness.certificates.flows.simplex.cone_steps import (
    ConeNetwork,
    hidden_range,
    leads_after,
    steepest_axis,
)
from robustness.certificates.flows.simplex.simplex_networks import (
    SimplexNetwork,
    rounding_of_target,
)
from robustness.certificates.limits import Limit
from robustness.certificates.sharing import shared
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.runge_kutta import CONVEX, METHODS, FixedMethod
from robustness.nets.simplex import SimplexField, project_to_simplex
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics import arithmetic
from robustness.threat import Norm

# Cells that are bounded at once.
_BATCH = 512
_BISECTIONS = 8
# Every state of the float32 program is this near to the simplex, or nothing is certified.
_LARGEST_DRIFT = 0.01


@dataclass(frozen=True)
class Answer:
    """What branch and bound says of one radius.

    Attributes:
        holds: whether every state with the label in the lead keeps it.
        cells: how many cells were bounded.
        refuted: whether a state was found that does not.
    """

    holds: bool
    cells: int
    refuted: bool


@dataclass(frozen=True)
class ConeStep:
    """Euler's map on the states where one image's label leads, the label's entry first.

    Attributes:
        net: the field's network, classes in that order.
        features: exact features of the image, float64, shape (f,).
        distance: l2 distance of the perturbed program's features.
        share: h * kappa.
        loss: what float32 rounding can take from a lead.
    """

    net: SimplexNetwork
    features: Float[Tensor, " f"]
    distance: float
    share: float
    loss: float

    def least_lead(self, cells: Cells) -> tuple[Float[Tensor, " c"], Int[Tensor, " c"]]:
        """A lower bound of every lead after a step, less the loss, and the axis to split."""
        classes = self.net.inner.shape[1]
        distance = torch.tensor([self.distance], dtype=torch.float64)
        net = ConeNetwork.of(self.net, torch.arange(classes), self.features, distance)
        leads = leads_after(cells, net, self.share, *hidden_range(cells, net))
        return leads.least.amin(dim=1) - self.loss, steepest_axis(cells, leads)

    def lead_at(self, states: Float[Tensor, "c k"]) -> Float[Tensor, " c"]:
        """The least lead after a step, for features that are worst to first order; shape (c,)."""
        hidden = self.net.hidden(states, self.features)
        v = self.net.proposal(states, self.features)
        rival = 1 + (v[:, :1] - v[:, 1:]).argmin(dim=1)
        against = (self.net.outer[rival] - self.net.outer[:1]) * (hidden > 0)
        worst = torch.nn.functional.normalize(against, dim=1) * self.distance
        target = project_to_simplex(self.net.proposal(states, self.features + worst))
        after = (1 - self.share) * states + self.share * target
        return (after[:, :1] - after[:, 1:]).amin(dim=1)

    def answer(self, budget: int) -> Answer:
        """Whether every state with the label in the lead keeps it, by branch and bound.

        Args:
            budget: the most cells that are bounded.
        """
        stack, used = Cells.whole(self.net.inner.shape[1]), 0
        while len(stack):
            if used >= budget:
                return Answer(False, used, refuted=False)
            index = torch.arange(len(stack))
            batch = stack[index[-_BATCH:]]
            stack = stack[index[:-_BATCH]]
            used += len(batch)
            lead, axis = self.least_lead(batch)
            undecided = ~(lead > 0)
            batch = batch[undecided]
            if not bool((self.lead_at(batch.centres()) > self.loss).all()):
                return Answer(False, used, refuted=True)
            halves = batch.halves(axis[undecided])
            stack = Cells(torch.cat([stack.low, halves.low]), torch.cat([stack.high, halves.high]))
        return Answer(True, used, refuted=False)


def label_first(net: SimplexNetwork, label: int) -> SimplexNetwork:
    """The same network with the label's class moved to the front."""
    classes = net.inner.shape[1]
    order = torch.tensor([label, *(j for j in range(classes) if j != label)])
    products = net.products.view(-1, classes, classes)[:, order][:, :, order].flatten(1)
    return SimplexNetwork(
        net.inner[:, order],
        net.offset,
        net.outer[order],
        net.shift[order],
        products,
        net.inner_norm,
        net.outer_norm,
        net.entries,
    )


def rounding_loss(
    net: SimplexNetwork,
    features: Float[Tensor, "n f"],
    distance: Float[Tensor, " n"],
    share: float,
    shortest: float,
    method: FixedMethod,
) -> Float[Tensor, " n"]:
    """What float32 rounding can take from a lead in one step, shape (n,); infinite if too much.

    With targets off by at most a per entry and t in sum, and the step's own rounding of at most b,
    entries of a state are at least -b/s and their sum is within t + K b/s of 1 at every step of
    Euler's; heun2 rounds twice, and both may be twice that.
    Clamping to 0 and dividing by the sum keep the order of the entries, so that a state with the
    label in the lead is as near as `drift` to one of the simplex where it leads too; E, with a
    Lipschitz constant of at most 1 + s |A| |B|, is then off by as much, and s a + b per entry.
    """
    classes = net.inner.shape[1]
    centre = torch.full((len(features), classes), 1 / classes, dtype=torch.float64)
    # No state of the simplex is farther than 1 from its centre.
    reach = torch.full_like(distance, 1 + _LARGEST_DRIFT)
    of_target = rounding_of_target(net, centre, reach, features, distance)
    of_step = METHODS[method].roundings * arithmetic.FLOAT32.unit * (1 + _LARGEST_DRIFT)
    # What earlier steps left behind is largest where they retained the most.
    low = METHODS[method].evaluations * of_step / shortest
    drift = math.sqrt(classes) * low + 1.02 * (of_target.total + 2 * classes * low)
    per_step = 2 * (share * of_target.entry + of_step)
    loss = math.sqrt(2) * (1 + share * net.inner_norm * net.outer_norm) * drift + per_step
    # heun2's halves are rounded once more.
    return torch.where(drift <= _LARGEST_DRIFT, loss + 2 * of_step, torch.inf)


@torch.no_grad()
def answers(
    model: NeuralODEClassifier,
    features: relaxed_flows.Features,
    labels: Int[Tensor, " n"],
    radius: Float[Tensor, " n"],
    budget: int,
) -> list[Answer]:
    """For each image, whether its label keeps the lead for all perturbations within `radius`.

    Args:
        model: a model that the certificate does not refuse.
        features: of the images.
        labels: classes that are to be predicted.
        radius: l2 radius of the perturbations, in pixels.
        budget: the most cells per image and step size.
    """
    assert isinstance(model.field, SimplexField)
    solver = model.solver
    assert isinstance(solver, FixedStepSolver)
    net, distance = SimplexNetwork.of(model.field), features.distance(radius)
    steps = sorted(set(tubes.shares(solver, model.field.rate)))
    # Of steps that differ by float32 rounding alone the shortest and the longest are enough: the
    # lead after a step is affine in the step.
    ends = {steps[0], steps[-1]}
    found = [Answer(True, 0, refuted=False)] * len(labels)
    for share in sorted(ends):
        lost = rounding_loss(net, features.centre, distance, share, steps[0], solver.method)
        losses = lost.tolist()
        for i, (label, loss) in enumerate(zip(labels.tolist(), losses, strict=True)):
            if not found[i].holds:
                continue
            if not math.isfinite(loss):
                found[i] = Answer(False, found[i].cells, refuted=False)
                continue
            image = features.centre[i]
            step = ConeStep(label_first(net, label), image, float(distance[i]), share, loss)
            answer = step.answer(budget)
            found[i] = Answer(answer.holds, found[i].cells + answer.cells, answer.refuted)
    return found


@register_certificate
@dataclass(frozen=True)
class InvarianceCertificate(BaseCertificate):
    """Forward invariance of the label's cone under the steps that run.

    Attributes:
        budget: cells per image, radius and step size; beyond it the radius is not certified.
    """

    name: ClassVar[str] = "forward-invariance"
    routine: ClassVar[bool] = True
    budget: int = 500

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why nothing is proved of the model; it keeps to the simplex by convex steps or not."""
        del norm
        unproved = relaxed_flows.refusal(model)
        if unproved is not None:
            return unproved
        assert isinstance(model, NeuralODEClassifier)
        if not isinstance(model.field, SimplexField):
            return "the state does not live on the probability simplex"
        assert isinstance(model.solver, FixedStepSolver)
        if model.solver.method not in CONVEX:
            return (
                f"{model.solver.method} steps are not convex combinations of Euler steps; "
                f"use {' or '.join(CONVEX)}"
            )
        if abs(model.initial - 1 / model.classes) > arithmetic.FLOAT32.unit:
            return f"the initial state is not the simplex's centre, entries of 1/{model.classes}"
        return None

    @torch.no_grad()
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """See `Certificate.certify`."""
        assert isinstance(model, NeuralODEClassifier)
        results = []
        for claim in _by_cells(self, model, images, labels):
            # In float64: rounded to float32, a radius could exceed what was proved.
            shrunk = torch.tensor([claim.radius * SHRINK], dtype=torch.float64)
            proved = float(to_norm(shrunk, images[0].numel(), norm)[0])
            results.append(
                CertifiedRadius(
                    proved,
                    norm,
                    Kind.CERTIFIED,
                    self.name,
                    claim.reason,
                    claim.limit,
                    claim.general,
                )
            )
        return results

    def radius(
        self, model: NeuralODEClassifier, features: relaxed_flows.Features, label: Tensor
    ) -> Claim:
        """The l2 radius of one image that is predicted right, and what limits it."""

        def at(radius: float) -> Answer:
            wide = torch.tensor([radius], dtype=torch.float64)
            return answers(model, features, label, wide, self.budget)[0]

        still = at(0.0)
        if still.refuted:
            why = "a state where the label leads loses the lead without a perturbation"
            return Claim(0.0, why, Limit.OTHER)
        if not still.holds:
            why = f"not decided within {self.budget} cells of the label's cone"
            return Claim(0.0, why, Limit.OTHER)
        # No lead exceeds 1: where features move by more than the largest lead in v, all is lost.
        assert isinstance(model.field, SimplexField)
        low, high, last = 0.0, 2.0, still
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            answer = at(middle)
            if answer.holds:
                low = middle
            else:
                high, last = middle, answer
        why = "a bound that fails" if last.refuted else f"the budget of {self.budget} cells"
        limit = Limit.OTHER if last.refuted else Limit.BUDGET
        return Claim(low, f"invariance of the label's cone, limited by {why}", limit)


@shared
def _by_cells(
    certificate: InvarianceCertificate,
    model: NeuralODEClassifier,
    images: Tensor,
    labels: Tensor,
) -> list[Claim]:
    """The l2 radius of each image, and what limits it or why there is none."""
    features = relaxed_flows.perturbed_features(model, images)
    found = []
    for i, failed in enumerate(failure(model, images, labels)):
        one = slice(i, i + 1)
        found.append(
            Claim(0.0, failed, Limit.PREDICTION)
            if failed
            else certificate.radius(model, features[one], labels[one])
        )
    return found
