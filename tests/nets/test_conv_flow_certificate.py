import copy

import torch
from small_models import conv_flow_encoder

from robustness.certificates.layers import bounds
from robustness.certificates.target_seeking import TargetSeekingCertificate
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import (
    ConvContractiveStep,
    Normalise,
)
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import FixedStepSolver
from robustness.threat import Norm


def test_a_released_flow_is_proved_to_be_1_lipschitz() -> None:
    bound = bounds.lipschitz(conv_flow_encoder())
    assert bound is not None
    assert bound.value == 1.0


def test_a_step_beyond_the_limit_is_given_the_lipschitz_constant_that_it_has() -> None:
    # One pixel, one channel, W = 2: z -> z - 2 relu(2 z) has slope 1 - 4 = -3 where it moves.
    step = ConvContractiveStep(1, 1, 1, (1, 1))
    with torch.no_grad():
        step.weight.fill_(2.0)
    bound = bounds.lipschitz(step)
    assert bound is not None
    assert 3.0 <= bound.value <= 3.0 + 1e-6


def test_the_tube_holds_every_perturbed_and_every_rounded_feature() -> None:
    encoder = conv_flow_encoder()
    exact = copy.deepcopy(encoder).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(40, 1, 8, 8, generator=generator)
    radius = torch.full((40,), 0.3)
    tube = bounds.propagate(encoder, bounds.Tube.around(images, radius))
    with torch.no_grad():
        torch.testing.assert_close(tube.centre, exact(images.double()), rtol=0, atol=1e-12)
        for _ in range(20):
            noise = torch.randn(images.shape, generator=generator)
            noise = 0.3 * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            moved = images + 0.999 * noise
            true, computed = exact(moved.double()), encoder(moved)
            assert bool(((true - tube.centre).norm(dim=1) <= tube.reach).all())
            assert bool(((computed.double() - true).norm(dim=1) <= tube.error).all())
    # The allowance is not so large that it proves nothing.
    assert float(tube.error.max()) < 1e-2


def test_radii_shrink_by_no_more_than_rounding_from_the_exact_margins() -> None:
    encoder = conv_flow_encoder()
    torch.manual_seed(2)
    field = TargetSeekingField(3, encoder.outputs, 10.0, 1.0)
    solver = FixedStepSolver("euler", 10, 1.0)
    model = NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, 3).eval()
    images = torch.rand(20, 1, 8, 8)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
        scores = field.head(encoder(images)).double()
    certificate = TargetSeekingCertificate()
    assert certificate.refusal(model, Norm.L2) is None
    found = certificate.certify(model, images, labels, Norm.L2)
    rows = field.head.weight.detach().double()
    for radius, score, label in zip(found, scores, labels.tolist(), strict=True):
        exact = min(
            float((score[label] - score[j]) / (rows[label] - rows[j]).norm())
            for j in range(3)
            if j != label
        )
        assert exact - 0.02 <= radius.radius <= exact * (1 + 1e-5)
