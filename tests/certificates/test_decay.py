"""Certified decay: the envelope of V(t) holds for every image of the ball, as it is computed."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.certificates.decay import envelope
from robustness.nets.classifiers import NeuralODEClassifier, potential
from robustness.nets.encoders import Normalise
from robustness.nets.fields import LyaNetField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver
from robustness.programs.graph import Refusal
from robustness.threat import Norm

SHAPE = (1, 3, 3)


class Relaxing(nn.Module):
    """W z - eta: Euler's states are (1 - (1 - h)^k) W z."""

    def __init__(self, classes: int, detour: float = 0.0) -> None:
        super().__init__()
        self.head, self.detour = nn.Linear(9, classes, bias=False), detour

    def forward(self, t: Tensor, state: Tensor, features: Tensor) -> Tensor:
        # A sum that is taken back: nothing in exact arithmetic.
        scores = (self.head(features) + self.detour) - self.detour
        return scores - state


def classifier(field: nn.Module, solver: Solver, classes: int, encoder: nn.Module):
    model = NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, classes)
    return model.eval()


def relaxing(classes: int = 2, detour: float = 0.0, steps: int = 4) -> NeuralODEClassifier:
    torch.manual_seed(0)
    solver = FixedStepSolver("euler", steps)
    return classifier(Relaxing(classes, detour), solver, classes, nn.Flatten())


def lyanet(variant: str) -> NeuralODEClassifier:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 9))
    field = LyaNetField(3, 3, variant, 1.0)
    return classifier(field, FixedStepSolver("heun2", 2), 3, encoder)


def images_of(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return 0.3 + 0.4 * torch.rand((count, *SHAPE), generator=generator)


@torch.no_grad()
def measured(model: NeuralODEClassifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """V and least lead at every state of each image alone, shape (n, t)."""
    states = torch.stack([model.solve(model.features(x.unsqueeze(0))).states for x in images])
    states = states.squeeze(2).double()
    every = labels.unsqueeze(1).expand(states.shape[:2]).flatten()
    flat = states.flatten(0, 1)
    leads = flat.gather(1, every.unsqueeze(1)) - flat
    others = leads.masked_fill(functional.one_hot(every, flat.shape[1]).bool(), torch.inf)
    shape = states.shape[:2]
    return potential(flat, every).view(shape), others.amin(dim=1).view(shape)


@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_the_envelope_of_a_linear_field_is_its_closed_form(eps: float) -> None:
    model, images, labels = relaxing(), images_of(3), torch.tensor([0, 1, 1])
    found = envelope(model, images, labels, Norm.LINF, torch.full((3,), eps))
    weight = model.field.head.weight.detach().double()
    normal = weight[labels] - weight[1 - labels]
    kept = 1 - (1 - 0.25) ** torch.arange(5)
    middle = (normal * images.double().flatten(1)).sum(dim=1)
    reach = eps * normal.abs().sum(dim=1)
    least, most = (kept * (middle + sign * reach).unsqueeze(1) for sign in (-1, 1))
    for got, lead in ((found.high, least), (found.low, most)):
        torch.testing.assert_close(got, torch.log1p(torch.exp(-lead)), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.lead, least, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.decays, found.high[:, -1] < found.low[:, 0])
    torch.testing.assert_close(found.times, torch.linspace(0, 1, 5, dtype=torch.float64))
    assert torch.equal(found.leading, least[:, -1] > 0)


@pytest.mark.slow
@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("variant", ["normalised", "simplex"])
def test_trajectories_of_a_ball_stay_within_its_envelope(variant: str, norm: Norm) -> None:
    model, image, eps = lyanet(variant), images_of(1), 0.02 if norm is Norm.LINF else 0.05
    label = torch.tensor([1])
    generator = torch.Generator().manual_seed(5)
    moves = torch.randn((60, *SHAPE), generator=generator)
    if norm is Norm.LINF:
        moves[:30] = moves[:30].sign() * 1e9
        moves = moves.clamp(-eps, eps)
    else:
        moves = functional.normalize(moves.flatten(1), dim=1).view(moves.shape) * (eps * 0.999999)
    labels = label.expand(60)
    values, leads = measured(model, image + moves, labels)

    def holds(radius: float) -> bool:
        found = envelope(model, image, label, norm, torch.tensor([radius]))
        inside = (found.low <= values) & (values <= found.high) & (found.lead <= leads)
        return bool(inside.all())

    assert holds(eps)
    assert not holds(0.0)


def test_the_envelope_of_a_single_image_holds_what_rounding_makes_of_it() -> None:
    """What is computed differs from the exact trajectory, and both lie in the envelope."""
    images, labels = images_of(4), torch.tensor([0, 1, 2, 0])
    model = relaxing(3, detour=4096.0)
    exact, _ = measured(relaxing(3, detour=4096.0).double(), images, labels)
    computed, leads = measured(model, images, labels)
    assert float((exact - computed).abs().amax()) > 1e-5
    found = envelope(model, images, labels, Norm.LINF, torch.zeros(4))
    for values in (exact, computed):
        assert bool(((found.low <= values) & (values <= found.high)).all())
    assert bool((found.lead <= leads).all())
    assert float((found.high - found.low).amax()) < 0.02
    # Without rounding, as a float64 program has all but none, the computed states are outside.
    twin = relaxing(3, detour=4096.0).double()
    without = envelope(twin, images, labels, Norm.LINF, torch.zeros(4))
    assert not bool(((without.low <= computed) & (computed <= without.high)).all())


def test_what_has_no_recorded_trajectory_is_refused_in_words() -> None:
    images, labels, radii = images_of(1), torch.tensor([0]), torch.zeros(1)
    adaptive = classifier(Relaxing(2), AdaptiveSolver(), 2, nn.Flatten())
    for model, words in (
        (nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).eval(), "no neural ODE on the class state"),
        (adaptive, "the path depends on the image"),
        (relaxing().train(), "training mode"),
    ):
        with pytest.raises(Refusal, match=words):
            envelope(model, images, labels, Norm.LINF, radii)
