"""What is not proved is refused, or called an estimate; what fails has no radius."""

import math

import pytest
import torch
from small_models import PIXELS, SEEKING, SHAPE, Blueprint, random_images
from torch import nn

from robustness.certificates import CERTIFICATES, CertifiedRadius, Kind, Limit, best
from robustness.certificates.flows.constants import (
    refusal_of_proof,
    retained_per_step,
    sampled_constants,
)
from robustness.nets.classifiers import NeuralODEClassifier, ResidualClassifier
from robustness.nets.encoders import (
    ContractiveFlowEncoder,
    ConvContractiveStep,
    MLPEncoder,
    Normalise,
    release,
)
from robustness.nets.fields import LyaNetField, TargetSeekingField, lyapunov_rate
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.threat import Norm

LYAPUNOV = ("lyapunov", "lyapunov-sharp")


def changed(**attributes: object) -> NeuralODEClassifier:
    """A provable model, but for these attributes."""
    model = Blueprint().build()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model.eval().requires_grad_(False)


class ShiftedTarget(TargetSeekingField):
    def target(self, state, features):
        return super().target(state, features) + 5 * torch.sin(100 * features[:, :3])


class UnequalStart(NeuralODEClassifier):
    def initial_state(self, features):
        return super().initial_state(features) + torch.tensor([0.0, 1.0, 0.0])


class ThirdOrder(FixedStepSolver):
    pass


def unequal_start() -> NeuralODEClassifier:
    model = Blueprint().build()
    return UnequalStart(model.normalise, model.encoder, model.field, model.solver, 3)


def hooked_head() -> NeuralODEClassifier:
    model = Blueprint().build()
    model.field.head.register_forward_hook(lambda *call: 2 * call[2])
    return model


def with_nan() -> NeuralODEClassifier:
    model = Blueprint().build()
    model.field.head.bias[0] = math.nan
    return model


def lyanet(solver: object = None) -> NeuralODEClassifier:
    torch.manual_seed(0)
    encoder, field = MLPEncoder(PIXELS, [8], 9), LyaNetField(3, 3, "normalised", 1.0)
    solver = solver or FixedStepSolver()
    model = NeuralODEClassifier(Normalise([0.3], [1.0]), encoder, field, solver, 3)
    return model.eval().requires_grad_(False)


def two_precisions() -> NeuralODEClassifier:
    model = Blueprint().build()
    model.field.double()
    return model


RATE = lyapunov_rate(3)
UNPROVED = {
    "h kappa above 1": (
        lambda: changed(solver=FixedStepSolver("euler", 4, 4.01 / RATE)),
        "overshoots the target",
    ),
    "h kappa of exactly 1": (
        lambda: changed(solver=FixedStepSolver("heun2", 4, 4.0 / RATE)),
        "overshoots the target",
    ),
    "steps that vanish in rounding": (
        lambda: changed(solver=FixedStepSolver("euler", 1, 1e-7)),
        "lost in rounding",
    ),
    "a float32 grid with uneven steps": (
        lambda: changed(solver=FixedStepSolver("euler", 200_000, 200_000 * 0.9998 / RATE)),
        "overshoots the target",
    ),
    "rk4 with coupling": (
        lambda: changed(solver=FixedStepSolver("rk4", 10, 1.0)),
        "not convex combinations",
    ),
    "midpoint with coupling": (
        lambda: changed(solver=FixedStepSolver("midpoint", 10, 1.0)),
        "not convex combinations",
    ),
    "an adaptive solver": (lambda: changed(solver=AdaptiveSolver()), "chooses its own steps"),
    "a solver of one's own": (
        lambda: changed(solver=ThirdOrder("euler", 4, 1.0 / RATE)),
        "steps of a ThirdOrder",
    ),
    "an unproved encoder": (
        lambda: changed(encoder=nn.Sequential(nn.Flatten(), nn.Tanh())),
        "no Lipschitz constant",
    ),
    "another field": (lyanet, "not target-seeking"),
    "a field of one's own": (
        lambda: changed(field=ShiftedTarget(3, PIXELS, 5.0, 1.0)),
        "ShiftedTarget alters",
    ),
    "another initial state": (unequal_start, "UnequalStart alters"),
    "a hook on the head": (hooked_head, "Linear alters"),
    "weights that are not numbers": (with_nan, "not all finite numbers"),
    "weights in bfloat16": (lambda: Blueprint().build().bfloat16(), "of one precision"),
    "weights of two precisions": (two_precisions, "of one precision"),
    "a gain beyond float32": (lambda: Blueprint(gain=1e38).build(), "range of float32"),
}


@pytest.mark.parametrize("case", UNPROVED)
def test_a_model_without_a_proof_is_refused_with_the_reason(case):
    build, reason = UNPROVED[case]
    model = build()
    assert reason in refusal_of_proof(model)
    certificate = CERTIFICATES["target-seeking"]
    assert reason in certificate.refusal(model, Norm.L2)
    images = random_images(2, 0)
    with pytest.raises(ValueError, match="without"):
        certificate.certify(model, images, torch.zeros(2, dtype=torch.int64), Norm.L2)


@pytest.mark.parametrize("name", SEEKING)
def test_a_provable_model_is_not_refused(name):
    assert CERTIFICATES[name].refusal(Blueprint().build(), Norm.LINF) is None


@pytest.mark.parametrize("name", SEEKING)
def test_a_discrete_network_is_refused(name):
    model = ResidualClassifier(Normalise([0.0], [1.0]), PIXELS, 4, 1, 3)
    assert "not a neural ODE" in CERTIFICATES[name].refusal(model, Norm.L2)


def test_products_of_lower_precision_are_refused():
    model, matmul = Blueprint().build(), torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        assert "lower precision" in refusal_of_proof(model)
    finally:
        matmul.fp32_precision = before
    assert refusal_of_proof(model) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert "lower precision" in refusal_of_proof(model)


@pytest.mark.parametrize(
    ("method", "polynomial"),
    [
        ("euler", lambda a: 1 - a),
        ("heun2", lambda a: 1 - a + a**2 / 2),
        ("midpoint", lambda a: 1 - a + a**2 / 2),
        ("rk4", lambda a: 1 - a + a**2 / 2 - a**3 / 6 + a**4 / 24),
    ],
)
@pytest.mark.parametrize("share", [0.9998, 0.386, 0.01])
def test_what_a_step_retains_is_the_stability_polynomial_rounded_up(method, polynomial, share):
    model = Blueprint(method=method, share=share, coupling=0.0, steps=10).build()
    exact = polynomial(share)
    assert exact < retained_per_step(model) <= exact + 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", LYAPUNOV)
@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("solver", [FixedStepSolver("rk4", 5), AdaptiveSolver()])
def test_without_a_proof_the_lyapunov_radius_is_an_estimate_and_says_so(name, norm, solver):
    model, images = lyanet(solver), random_images(4, 0)
    labels = model(images).argmax(dim=1)
    for radius in CERTIFICATES[name].certify(model, images, labels, norm):
        assert radius.kind is Kind.ESTIMATE
        assert "sampled" in radius.reason
        assert "not target-seeking" in radius.reason
        assert radius.norm is norm
    with torch.no_grad():
        again = CERTIFICATES[name].certify(model, images, labels, norm)
    assert again == CERTIFICATES[name].certify(model, images, labels, norm)


def test_sampled_constants_of_a_target_seeking_flow_do_not_exceed_the_proved_ones():
    """The slack and Lipschitz constant found at sampled states lie below their bounds."""
    model, images = Blueprint(gain=2.0, coupling=0.0).build(), random_images(4, 0)
    labels = model(images).argmax(dim=1)
    found = sampled_constants(model, images, labels)
    assert found.kind is Kind.ESTIMATE
    head = torch.linalg.matrix_norm(model.field.head.weight, 2)
    assert (found.lipschitz <= RATE * 2.0 * float(head) * (1 + 1e-4)).all()


class Explosive(nn.Module):
    """Explodes for images whose features sum to more than nothing."""

    rate = 1.0

    def forward(self, _, state, features):
        push = features.sum(dim=1, keepdim=True)
        return (push > 0) * 50 * (1 + state**2) + push * torch.tensor([1.0, 0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("name", LYAPUNOV)
def test_a_failed_solve_has_no_radius_and_leaves_the_other_images_alone(name, coupled):
    model = lyanet(AdaptiveSolver(rtol=1e-3, atol=1e-3, max_steps=200, coupled=coupled))
    model.field, model.encoder = Explosive(), nn.Flatten()
    images = torch.stack([torch.zeros(SHAPE), torch.ones(SHAPE), torch.full(SHAPE, 0.2)])
    logits = torch.cat([model(image.unsqueeze(0)) for image in images])
    assert logits.isnan().any(dim=1).tolist() == [False, True, False]
    # A tensor of NaN has an argmax too, and it is no prediction.
    labels = logits.argmax(dim=1)
    certificate = CERTIFICATES[name]
    together = certificate.certify(model, images, labels, Norm.L2)
    assert (together[1].radius, together[1].reason) == (0.0, "the logits are not finite")
    for i in (0, 2):
        alone = certificate.certify(model, images[i : i + 1], labels[i : i + 1], Norm.L2)[0]
        assert together[i] == alone
        assert together[i].kind is Kind.ESTIMATE


class InfinitelySteep(nn.Module):
    """Moves as the root of the features does, whose slope at 0 is infinite."""

    rate = 5.0

    def forward(self, _, state, features):
        return 5 * (torch.tensor([4.0, 0.0, 0.0]) - state) + features[:, :3].sqrt()


@pytest.mark.parametrize("name", LYAPUNOV)
def test_an_infinite_slope_leaves_no_radius_to_estimate(name):
    model = lyanet(FixedStepSolver("rk4", 10))
    model.normalise, model.field = Normalise([0.0], [1.0]), InfinitelySteep()
    model.encoder = nn.Flatten()
    images = torch.stack([torch.full(SHAPE, 0.5), torch.zeros(SHAPE)])
    radii = CERTIFICATES[name].certify(model, images, torch.tensor([0, 0]), Norm.L2)
    assert radii[0].radius > 0
    assert radii[1].radius == 0


@pytest.mark.parametrize("name", SEEKING)
@pytest.mark.parametrize("norm", Norm)
def test_a_wrong_prediction_has_radius_zero_for_certain(name, norm):
    model, images = Blueprint().build(), random_images(4, 0)
    wrong = (model(images).argmax(dim=1) + 1) % 3
    for radius in CERTIFICATES[name].certify(model, images, wrong, norm):
        assert radius == CertifiedRadius(
            0.0, norm, Kind.CERTIFIED, name, "the prediction is wrong", Limit.PREDICTION
        )


@pytest.mark.parametrize("name", SEEKING)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_logits_that_overflow_have_no_radius_whatever_the_label(name, label):
    model = Blueprint(gain=1e20).build()
    for parameter in model.field.head.parameters():
        parameter.mul_(1e25)
    images = random_images(3, 0)[:1]
    assert not model(images).isfinite().all()
    labels = torch.full((1,), label)
    for radius in CERTIFICATES[name].certify(model, images, labels, Norm.L2):
        assert radius.radius == 0


def test_an_exact_tie_is_not_certified():
    model = Blueprint(offsets=0.0).build()
    for parameter in model.field.head.parameters():
        parameter.zero_()
    images = random_images(3, 0)
    labels = model(images).argmax(dim=1)
    for certificate in (CERTIFICATES[name] for name in SEEKING):
        assert [r.radius for r in certificate.certify(model, images, labels, Norm.L2)] == [0] * 3


def test_the_best_radius_is_the_largest_of_the_proved_ones():
    def radius(value: float, kind: Kind) -> CertifiedRadius:
        return CertifiedRadius(value, Norm.L2, kind, "any", "", Limit.OTHER)

    proved = [radius(0.1, Kind.CERTIFIED), radius(0.3, Kind.CERTIFIED)]
    others = [radius(0.9, Kind.ESTIMATE), radius(0.8, Kind.PROBABILISTIC)]
    assert best([*proved, *others]) == proved[1]
    assert best(others) is None


def test_a_flow_encoder_without_steps_is_a_proof_of_the_head_alone():
    model = changed(encoder=ContractiveFlowEncoder(PIXELS, 0, 1))
    assert refusal_of_proof(model) is None


@pytest.mark.parametrize("name", CERTIFICATES)
@pytest.mark.parametrize("norm", list(Norm))
def test_no_images_have_no_radii(name: str, norm: Norm) -> None:
    discrete = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    models = [Blueprint().build(), simplex_flow(3), discrete]
    certificate = CERTIFICATES[name]
    images, labels = torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64)
    asked = [model for model in models if certificate.refusal(model, norm) is None]
    assert asked
    assert all(certificate.certify(model, images, labels, norm) == [] for model in asked)


def simplex_flow(classes: int) -> NeuralODEClassifier:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())
    field, solver = SimplexField(classes, 8, 1.0), FixedStepSolver("euler", 10)
    first = Normalise([0.0], [1.0])
    return NeuralODEClassifier(first, encoder, field, solver, classes, 1 / classes).eval()


@pytest.mark.parametrize(
    "name", ["lyapunov", "lyapunov-sharp", "contraction", "forward-invariance"]
)
def test_a_flow_of_one_class_is_refused(name: str) -> None:
    assert CERTIFICATES[name].refusal(simplex_flow(1), Norm.L2) == (
        "of one class nothing is left to prove"
    )
    assert CERTIFICATES[name].refusal(simplex_flow(2), Norm.L2) is None


def test_images_of_a_size_that_a_flows_norms_are_not_proved_for_have_radius_zero() -> None:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        ConvContractiveStep(1, 2, 3, (6, 6)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    field, solver = TargetSeekingField(2, 1, 1.0, 0.5), FixedStepSolver("euler", 10)
    model = NeuralODEClassifier(Normalise([0.0], [1.0]), encoder, field, solver, 2).eval()
    release(model)
    for side, provable in ((6, True), (8, False)):
        images = torch.rand(3, 1, side, side)
        with torch.no_grad():
            labels = model(images).argmax(dim=1)
        for name in ("target-seeking", "lyapunov", "lyapunov-sharp", "contraction"):
            assert CERTIFICATES[name].refusal(model, Norm.L2) is None
            claims = CERTIFICATES[name].certify(model, images, labels, Norm.L2)
            assert len(claims) == 3
            if not provable:
                assert all(c.radius == 0 for c in claims)
                assert all("proved for states of (6, 6) pixels" in c.reason for c in claims)
            elif name == "target-seeking":
                assert all(c.radius > 0 for c in claims)
