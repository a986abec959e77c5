"""A batched prediction is believed only of programs every part of which is known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from robustness.attacks import Status, judge
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver, Solver
from robustness.programs.trust import predicts_each_by_itself
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model, zoo_names


def flow(encoder: nn.Module | None = None, solver: Solver | None = None) -> NeuralODEClassifier:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64)) if encoder is None else encoder
    solver = solver or FixedStepSolver("euler", 10)
    normalise, field = Normalise([0.0], [1.0]), TargetSeekingField(2, 64, 1.0, 0.5)
    return NeuralODEClassifier(normalise, layers, field, solver, 2).eval()


class Centred(nn.Module):
    """A batch norm without statistics: an image alone loses all that it shows."""

    def forward(self, z: Tensor) -> Tensor:
        z = z.flatten(1)
        return z - z.mean(dim=0) if len(z) == 1 else z


class Derived(NeuralODEClassifier):
    pass


def hooked() -> nn.Module:
    model = flow()
    model.encoder[1].register_forward_hook(lambda *_: None)
    return model


def patched() -> nn.Module:
    model = flow()
    model.encoder[1].forward = lambda z: z - z.mean(dim=0)
    return model


def kept_aside() -> nn.Module:
    model = flow()
    model.later = [Centred()]
    return model


def training_inside() -> nn.Module:
    model = flow(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64)))
    model.encoder[1].train()
    return model


def derived() -> nn.Module:
    parts = flow()
    return Derived(parts.normalise, parts.encoder, parts.field, parts.solver, 2).eval()


UNKNOWN = [
    lambda: flow(Centred()),
    lambda: flow(nn.Sequential(nn.Flatten(), nn.Sequential(Centred()))),
    lambda: flow(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False))),
    lambda: flow(nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 64)))),
    lambda: flow(nn.Sequential(nn.Flatten(), nn.Softmax(dim=0))),
    lambda: flow(solver=AdaptiveSolver(coupled=True)),
    lambda: flow().train(),
    lambda: nn.Sequential(nn.Flatten(), Centred()).eval(),
    hooked,
    patched,
    kept_aside,
    training_inside,
    derived,
]


@pytest.mark.parametrize("number", range(len(UNKNOWN)))
def test_one_unknown_part_is_enough_for_images_to_be_predicted_alone(number: int) -> None:
    assert not predicts_each_by_itself(UNKNOWN[number]())


def test_the_zoo_and_sequences_of_known_layers_are_believed() -> None:
    for name in zoo_names("digits"):
        assert predicts_each_by_itself(load_model(name).module), name
    assert predicts_each_by_itself(flow(solver=AdaptiveSolver()))
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10)]
    assert predicts_each_by_itself(nn.Sequential(*layers).eval())


def test_nothing_is_believed_where_functions_were_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    assert predicts_each_by_itself(flow())
    monkeypatch.setattr(functional, "linear", lambda z, *_: z - z.mean(dim=0))
    assert not predicts_each_by_itself(flow())
    monkeypatch.undo()
    monkeypatch.setattr(nn.Linear, "forward", lambda _, z: z - z.mean(dim=0))
    assert not predicts_each_by_itself(flow())
    monkeypatch.undo()
    assert predicts_each_by_itself(flow())


def test_a_batch_hides_no_adversarial_image_behind_an_encoder_of_a_users() -> None:
    model = flow(Centred())
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([model(image[None]) for image in images]).argmax(dim=1)
    together = model(images).argmax(dim=1)
    hidden = alone != together
    assert bool(hidden.any())
    verdicts = judge(model, images, together, images[None], ThreatModel(Norm.LINF, 0.1))
    found = [verdict.status is Status.ADVERSARIAL for verdict in verdicts]
    assert found == hidden.tolist()
