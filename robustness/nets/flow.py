"""The flow of a neural ODE: the states it visits, what it costs, and the model without it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE


@dataclass(frozen=True)
class Course:
    """One forward pass of a batch.

    Attributes:
        logits: shape (n, classes).
        states: those that the solver visited, shape (t, n, ...) for each ODE of the model; empty
            for a model without one.
        nfe: evaluations of vector fields per image, for an adaptive solver the most that any
            image took; None for a model without an ODE.
    """

    logits: Float[Tensor, "n k"]
    states: list[Tensor]
    nfe: int | None


def course(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Course:
    """Predict, and tell what the solver did on the way."""
    if isinstance(model, NeuralODEClassifier):
        solution = model.solve(model.features(images))
        return Course(solution.final, [solution.states], solution.nfe)
    if isinstance(model, StagedODE):
        state, states, evaluations = model.normalise(images), [], 0
        for stage in range(model.stages):
            start = model.transition(stage, state)
            solution = model.solver.solve(
                model.field_of(stage), start, start.new_zeros((len(start), 0))
            )
            states.append(solution.states)
            state, evaluations = solution.final, evaluations + solution.nfe
        return Course(model.scores(state), states, evaluations)
    return Course(model(images), [], None)


def without_flow(model: nn.Module) -> nn.Module | None:
    """A neural ODE without its flow, images to scores of the classes; None for other models.

    Where it predicts as the model does, the flow decides nothing.
    """
    if isinstance(model, NeuralODEClassifier):
        return InitialVelocity(model)
    if isinstance(model, StagedODE):
        return InitialState(model)
    return None


class InitialVelocity(nn.Module):
    """The velocity of the class state at time 0, f(eta_0, z), read as logits.

    The entries of eta_0 are equal, so that the velocity of a field that seeks a target orders the
    classes as the target does: for `TargetSeekingField` as a linear layer on the features.

    Args:
        model: the neural ODE.
    """

    def __init__(self, model: NeuralODEClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Velocities, shape (n, classes)."""
        features = self.model.features(images)
        start = features.new_zeros(())
        return self.model.field(start, self.model.initial_state(features), features)


class InitialState(nn.Module):
    """A network of ODE blocks that hand on their initial state: transitions and head alone.

    Args:
        model: the network.
    """

    def __init__(self, model: StagedODE) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits, shape (n, classes)."""
        state = self.model.normalise(images)
        for stage in range(self.model.stages):
            state = self.model.transition(stage, state)
        return self.model.scores(state)
