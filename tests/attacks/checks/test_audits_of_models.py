"""Each flag goes up where its fault is built in, and stays down on an honest model."""

import pytest
from toys import (
    IMAGES,
    LABELS,
    NEAR,
    Broken,
    Linear,
    Noisy,
    Raises,
    Wraps,
    make_problem,
    minimal_distance,
)

from robustness.attacks import Flag, audit, nearest_adversarial
from robustness.attacks.checks.gradient_audits import (
    gradient_agreement,
    solver_tolerance,
)
from robustness.attacks.checks.model_audits import (
    batch_invariance,
    input_range,
    logits_check,
    normalisation,
    randomness,
    solver_failures,
)
from robustness.attacks.views import with_solver
from robustness.data import load_images
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.solvers import AdaptiveSolver, FixedStepSolver
from robustness.threat import Norm, ThreatModel
from robustness.zoo import load_model


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "raised"), [(0.1, True), (1e-5, False)])
def test_a_coupled_adaptive_solver_is_caught_at_a_loose_tolerance_only(
    tolerance: float, raised: bool
) -> None:
    node = load_model("digits/node").module
    assert isinstance(node, NeuralODEClassifier)
    solver = AdaptiveSolver("dopri5", tolerance, tolerance, coupled=True)
    images = load_images("digits").images[:8]
    flag = batch_invariance(with_solver(node, solver), images)
    assert flag.raised is raised, flag


def test_randomness_is_seen() -> None:
    assert randomness(Noisy(), IMAGES).raised
    assert not randomness(Linear(), IMAGES).raised


def test_samples_lost_to_the_solver_are_counted() -> None:
    flag = solver_failures(Broken(), IMAGES)
    assert flag.raised
    assert flag.value == int((IMAGES.flatten(1).mean(dim=1) > 0.5).sum())
    assert not solver_failures(Linear(), IMAGES).raised


def test_probabilities_and_their_logarithms_are_told_from_logits() -> None:
    assert "logarithms" in logits_check(Wraps(after=lambda z: z.log_softmax(1)), IMAGES).detail
    assert logits_check(Wraps(after=lambda z: z.softmax(1)), IMAGES).raised
    assert not logits_check(Linear(), IMAGES).raised


def test_a_model_that_wants_other_units_is_told() -> None:
    wants_255 = Wraps(before=lambda x: x / 255)
    assert input_range(wants_255, IMAGES, LABELS).raised
    assert not input_range(Linear(), IMAGES, LABELS).raised
    centre, spread = IMAGES.mean(), IMAGES.std()
    wants_normalised = Wraps(before=lambda x: x * spread + centre)
    dark = (IMAGES - 0.3).clamp(0, 1) * 0.2
    labels = wants_normalised((dark - dark.mean()) / dark.std()).argmax(dim=1)
    assert normalisation(wants_normalised, dark, labels).raised
    assert not normalisation(Linear(), IMAGES, LABELS).raised


def test_gradients_of_a_solved_model_agree_with_float64() -> None:
    model = load_model("digits/node").module
    assert isinstance(model, NeuralODEClassifier)
    digits = load_images("digits")
    images, labels = digits.images[:8], digits.labels[:8]
    fine = gradient_agreement(with_solver(model, FixedStepSolver("rk4", 20)), images, labels)
    assert [flag.name for flag in fine] == ["gradient-agreement", "adjoint-agreement"]
    assert not any(flag.raised for flag in fine), fine

    (honest,) = gradient_agreement(Linear(), IMAGES, LABELS)
    assert not honest.raised


def test_the_tolerance_sweep_stays_down_where_steps_do_not_matter() -> None:
    model = load_model("digits/node").module
    assert isinstance(model, NeuralODEClassifier)
    digits = load_images("digits")
    flag = solver_tolerance(
        model, digits.images[:16], digits.labels[:16], ThreatModel(Norm.LINF, 0.08)
    )
    assert not flag.raised, flag
    assert "finer" in flag.detail


def test_an_audit_that_cannot_be_run_raises_its_flag_and_the_others_are_kept() -> None:
    flags = audit(Raises(above=-1), IMAGES[:4], LABELS[:4], NEAR)
    assert {flag.name for flag in flags} >= {"batch-invariance", "masked-gradients", "logits"}
    assert all(flag.raised and flag.value is None for flag in flags)
    assert all("ArithmeticError" in flag.detail for flag in flags)


def test_all_flags_stay_down_on_an_honest_model() -> None:
    raised: list[Flag] = [flag for flag in audit(Linear(), IMAGES, LABELS, NEAR) if flag.raised]
    assert raised == []


@pytest.mark.parametrize("norm", list(Norm))
def test_the_nearest_adversarial_image_is_close_to_the_closed_form(norm: Norm) -> None:
    model, images, labels = make_problem(2, count=6)
    distance = minimal_distance(model, images, labels, norm)
    for verdict, nearest in zip(
        nearest_adversarial(model, images, labels, norm), distance.tolist(), strict=True
    ):
        found = verdict.linf if norm is Norm.LINF else verdict.l2
        assert found is not None
        assert nearest * (1 - 1e-4) <= found <= nearest * 1.03
