"""A program that computes in float64 is certified for its own, far smaller, rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import PIXELS, Blueprint, conv_flow_encoder, random_images
from torch.nn import functional

from robustness.certificates import CERTIFICATES
from robustness.certificates.flows.constants import (
    deployed,
    deployed_logits,
    reach_of,
    target_margins,
)
from robustness.certificates.layers import bounds
from robustness.certificates.layers.bounds import Tube, propagate
from robustness.certificates.sharing import shared_work
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ConvContractiveStep,
    Normalise,
)
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import FixedStepSolver
from robustness.numerics import arithmetic
from robustness.threat import Norm


@pytest.mark.slow
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_float64_activations_stay_within_their_tube_by_an_extended_precision_reference(seed, scale):
    torch.manual_seed(seed)
    flow = ContractiveFlowEncoder(PIXELS, 3, 7).double()
    images = (scale * torch.rand(4, PIXELS)).double()
    with arithmetic.computed_in(torch.float64), torch.no_grad():
        tube = propagate(flow, Tube.around(images, torch.zeros(4)))
        computed = flow(images)
    truth = images.numpy().astype(np.longdouble)
    for step in list(flow)[1:]:
        weight = step.weight.detach().numpy().astype(np.longdouble)
        bias = step.bias.detach().numpy().astype(np.longdouble)
        truth = truth - np.maximum(truth @ weight.T + bias, 0) @ weight
    # The charge covers the program's error and the certificate's own centre at once.
    apart = np.linalg.norm((computed.numpy() - truth).astype(float), axis=1)
    apart += np.linalg.norm((tube.centre.numpy() - truth).astype(float), axis=1)
    assert (apart <= tube.error.numpy()).all()
    assert (tube.error.numpy() < 1e-11 * scale * PIXELS).all()


def test_a_float64_program_gives_up_next_to_nothing_to_rounding():
    images = random_images(8, 3)
    single = Blueprint(depth=4).build()
    labels = single(images).argmax(dim=1)
    double = Blueprint(depth=4).build().double()
    certify = CERTIFICATES["target-seeking"].certify
    before = torch.tensor([r.radius for r in certify(single, images, labels, Norm.L2)])
    after = torch.tensor([r.radius for r in certify(double, images, labels, Norm.L2)])
    assert (after > before).all()
    assert arithmetic.current_arithmetic() is arithmetic.FLOAT32


@pytest.mark.parametrize("coupling", [0.0, 5.0])
@pytest.mark.parametrize("initial", [0.0, -3.0])
def test_the_reach_that_logits_tell_is_no_less_than_the_margins(coupling, initial):
    model = Blueprint(depth=2, coupling=coupling, initial=initial).build().double()
    images = random_images(8, 1)
    labels = model(images).argmax(dim=1)
    found = target_margins(model, images, labels)
    exact = found.margins + found.allowance
    least = reach_of(exact, found.slopes, images)
    assert bool((found.reach >= least).all())
    assert bool((least > 0).any())


def test_logits_that_fall_together_in_float32_are_not_certified_in_float64_either():
    model = Blueprint(depth=1, coupling=0.0).build().double()
    model.field.head.weight.zero_()
    model.field.head.bias.copy_(torch.tensor([1.0, 1.0 - 1e-9, 0.0], dtype=torch.float64))
    images, labels = random_images(2, 0), torch.tensor([0, 0])
    assert model(images).dtype is torch.float32
    radii = CERTIFICATES["target-seeking"].certify(model, images, labels, Norm.L2)
    assert [radius.radius for radius in radii] == [0.0, 0.0]


def test_rounding_bounds_of_another_precision_are_refused():
    with (
        pytest.raises(ValueError, match="float32 or float64"),
        arithmetic.computed_in(torch.float16),
    ):
        pass


def test_tubes_are_for_float32_programs_only():
    model = Blueprint().build()
    refusal = CERTIFICATES["contraction"].refusal
    assert refusal(model, Norm.L2) is None
    assert "float32 programs only" in (refusal(model.double(), Norm.L2) or "")


def conv_flow() -> NeuralODEClassifier:
    encoder = conv_flow_encoder()
    field = TargetSeekingField(3, encoder.outputs, gain=10.0, coupling=1.0)
    torch.nn.init.normal_(field.head.weight)
    solver = FixedStepSolver("euler", 5)
    return NeuralODEClassifier(Normalise([0.3], [0.5]), encoder, field, solver, 3).double().eval()


def test_a_certificate_takes_the_centre_that_the_prediction_went_through(monkeypatch) -> None:
    model, images = conv_flow(), torch.rand(16, 1, 8, 8)
    labels = model(images).argmax(dim=1)
    monkeypatch.setattr(bounds, "behind", lambda *_: None)
    anew = target_margins(model, images, labels)
    monkeypatch.undo()
    with shared_work():
        assert torch.equal(deployed_logits(model, images), model(images))
        monkeypatch.setattr(functional, "conv2d", None)  # all convolutions are done
        monkeypatch.setattr(functional, "conv_transpose2d", None)
        found = target_margins(model, images, labels)
    monkeypatch.undo()
    assert bool((found.allowance >= anew.allowance).all())  # for what norms say of hidden states
    assert torch.allclose(found.margins, anew.margins, rtol=1e-6)


def test_a_users_classifier_is_asked_as_a_whole_and_so_are_many_images_at_once() -> None:
    class Own(NeuralODEClassifier):
        def features(self, images: torch.Tensor) -> torch.Tensor:
            return self.encoder(images.double())

    model = conv_flow()
    own = Own(model.normalise, model.encoder, model.field, model.solver, 3)
    own.normalise = torch.nn.Identity()  # so that it has no dtype
    images = torch.rand(257, 1, 8, 8)
    found = deployed(own, images[:4])
    assert torch.equal(found.logits, own(images[:4]))
    assert found.steps == deployed(model, images).steps == {}
    assert len(deployed(model, images[:256]).steps) == 4
    model.features = lambda images: own.features(images)  # no longer what the class does
    found = deployed(model, images[:4])
    assert torch.equal(found.logits, model(images[:4]))
    assert found.steps == {}


def test_a_layer_that_writes_into_its_input_changes_no_centre_before_it() -> None:
    step = next(m for m in conv_flow().modules() if isinstance(m, ConvContractiveStep))
    state = torch.rand(4, 6, 4, 4).double() - 0.5
    with arithmetic.computed_in(torch.float64):
        tube = propagate(step, Tube.around(state, torch.zeros(4)))
        kept = tube.centre.clone()
        propagate(torch.nn.ReLU(inplace=True), tube)
    assert bool((kept < 0).any())
    assert torch.equal(tube.centre, kept)


def test_what_was_computed_of_other_images_is_no_centre() -> None:
    model, (images, others) = conv_flow(), torch.rand(2, 4, 1, 8, 8)
    computed = deployed(model, others).steps
    assert len(computed) == 4
    ball = Tube.around(images, torch.zeros(4))
    with arithmetic.computed_in(torch.float64):
        truth = propagate(model.encoder, propagate(model.normalise, ball))
        with bounds.deployed_as(computed):
            found = propagate(model.encoder, propagate(model.normalise, ball))
            theirs = propagate(
                model.encoder, propagate(model.normalise, Tube.around(others, torch.zeros(4)))
            )
    assert torch.equal(found.centre, truth.centre)
    assert torch.equal(found.error, truth.error)
    assert torch.equal(theirs.centre, model.features(others))


def test_a_float32_program_is_no_centre_of_its_own_certificate() -> None:
    model, images = conv_flow().float(), torch.rand(4, 1, 8, 8)
    assert deployed(model, images).steps == {}
    step = next(m for m in model.modules() if isinstance(m, ConvContractiveStep))
    state = torch.rand(4, 6, 4, 4)
    with bounds.deployed_as({step: bounds.Activations(state, step(state))}):
        assert bounds.behind(step, state) is None
