"""On a linear classifier the smallest adversarial distance has a closed form."""

import sys

import pytest
import torch
from torch import Tensor
from toys import CLASSES, SIDE, Linear, make_problem, minimal_distance

from robustness.attacks import FGSM, PGD, Attack, AutoAttack, Status, judge
from robustness.threat import Norm, ThreatModel


@pytest.fixture(scope="module")
def problem() -> tuple[Linear, Tensor, Tensor]:
    return make_problem(CLASSES)


# Cross-entropy pulls towards a mixture of classes, so plain PGD is exact with two classes;
# AutoAttack's targeted parts are exact with any number.
CASES = [
    pytest.param(PGD(steps=100), 2, Norm.L2, id="pgd-l2"),
    pytest.param(PGD(steps=100), 2, Norm.LINF, id="pgd-linf"),
    pytest.param(AutoAttack(), 5, Norm.L2, id="autoattack-l2", marks=pytest.mark.slow),
    pytest.param(AutoAttack(), 5, Norm.LINF, id="autoattack-linf", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "classes", "norm"), CASES)
def test_attacks_succeed_just_beyond_the_closed_form_distance_and_never_within_it(
    attack: Attack, classes: int, norm: Norm
) -> None:
    model, images, labels = make_problem(classes)
    distance = minimal_distance(model, images, labels, norm)
    for i in range(1 if attack.name == "autoattack" else 3):
        one, label = images[i : i + 1], labels[i : i + 1]
        for factor, expected in ((1.02, Status.ADVERSARIAL), (0.999, Status.ROBUST)):
            threat = ThreatModel(norm, float(distance[i]) * factor)
            candidates = attack.propose(model, one, label, threat, seed=0)
            (verdict,) = judge(model, one, label, candidates, threat)
            assert verdict.status is expected, (i, factor, distance[i], verdict)


def test_fgsm_is_exact_on_a_binary_linear_model() -> None:
    model = Linear(2)
    images = torch.full((1, 1, SIDE, SIDE), 0.5) + 0.02 * model.weight[0].view(1, 1, SIDE, SIDE)
    labels = model(images).argmax(dim=1)
    distance = float(minimal_distance(model, images, labels, Norm.LINF)[0])
    for factor, expected in ((1.001, Status.ADVERSARIAL), (0.999, Status.ROBUST)):
        threat = ThreatModel(Norm.LINF, distance * factor)
        candidates = FGSM().propose(model, images, labels, threat, seed=0)
        assert judge(model, images, labels, candidates, threat)[0].status is expected


def test_robust_accuracy_of_a_linear_model_equals_the_closed_form() -> None:
    model, images, labels = make_problem(2)
    distance = minimal_distance(model, images, labels, Norm.L2)
    order = distance.sort().values
    threat = ThreatModel(Norm.L2, float((order[5] + order[6]) / 2))
    candidates = PGD(steps=100).propose(model, images, labels, threat, 0)
    verdicts = judge(model, images, labels, candidates, threat)
    stands = [v.status is Status.ROBUST for v in verdicts]
    assert stands == (distance > threat.eps).tolist()
    assert sum(stands) == 6


def test_an_attack_leaves_global_random_state_and_the_trace_function_alone(
    problem: tuple[Linear, Tensor, Tensor],
) -> None:
    model, images, labels = problem

    def tracer(frame: object, event: str, argument: object) -> None:
        return None

    before, former = torch.random.get_rng_state(), sys.gettrace()
    sys.settrace(tracer)
    try:
        AutoAttack().propose(model, images[:1], labels[:1], ThreatModel(Norm.LINF, 0.5), seed=0)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(former)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_same_seed_proposes_the_same_images(
    problem: tuple[Linear, Tensor, Tensor],
) -> None:
    model, images, labels = problem
    threat = ThreatModel(Norm.L2, 0.05)
    first, again, other = (
        PGD(steps=2).propose(model, images, labels, threat, seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_autoattack_refuses_fewer_than_four_classes_and_targets_all_others_of_five(
    problem: tuple[Linear, Tensor, Tensor],
) -> None:
    model, images, labels = problem
    threat = ThreatModel(Norm.LINF, 0.2)
    assert "four" in str(AutoAttack().refusal(threat, 3)) or "4" in str(
        AutoAttack().refusal(threat, 3)
    )
    assert AutoAttack().refusal(threat, 4) is None
    assert AutoAttack().propose(model, images[:1], labels[:1], threat, 0).shape == (
        1,
        1,
        1,
        SIDE,
        SIDE,
    )
