"""Each flag goes up where its fault is built in, and stays down on an honest model."""

import pytest
import torch
from torch import Tensor, nn
from toys import (
    IMAGES,
    LABELS,
    NEAR,
    BrighterThanItsBatch,
    Linear,
    Perceptron,
    Wraps,
)

from robustness.attacks.checks.flag import Pairs
from robustness.attacks.checks.gradient_audits import (
    gradient_health,
    larger_eps,
    masked_gradients,
    more_steps,
    unbounded_attack,
)
from robustness.attacks.checks.model_audits import (
    batch_invariance,
)
from robustness.threat import Norm, ThreatModel


def test_saturated_logits_raise_the_masked_gradient_flag_and_honest_ones_do_not() -> None:
    reach = ThreatModel(Norm.LINF, 2 * NEAR.eps)
    saturated = masked_gradients(Linear(scale=1e4), IMAGES, LABELS, reach)
    assert saturated.raised, saturated
    assert "rescaled" in saturated.detail
    assert saturated.value is not None
    assert saturated.value < 0.01
    assert not masked_gradients(Linear(), IMAGES, LABELS, reach).raised


def test_a_perceptron_with_kinks_keeps_the_masked_gradient_flag_down() -> None:
    model = Perceptron()
    flag = masked_gradients(model, IMAGES, model(IMAGES).argmax(dim=1), NEAR)
    assert not flag.raised, flag


def test_mcnemar_counts_only_discordant_pairs() -> None:
    pairs = Pairs.of([True, False, False, False], [False, True, True, False])
    assert (pairs.gained, pairs.lost) == (2, 1)
    assert Pairs(5, 0).probability == pytest.approx(2**-5)
    assert Pairs(0, 0).probability == 1.0
    assert Pairs(1, 4).probability > 0.5


@pytest.mark.parametrize(("scale", "raised"), [(1.0, False), (1e4, True), (1e30, True)])
def test_gradients_that_vanish_or_explode_raise_a_flag(scale: float, raised: bool) -> None:
    flag = gradient_health(Linear(scale=scale), IMAGES, LABELS)
    assert flag.raised is raised, flag


def test_an_unbounded_attack_that_fails_raises_its_flag() -> None:
    assert not unbounded_attack(Linear(), IMAGES[:8], LABELS[:8], Norm.L2).raised
    quantised = Wraps(after=lambda logits: (logits / 50).round())
    labels = quantised(IMAGES).argmax(dim=1)
    assert unbounded_attack(quantised, IMAGES[:8], labels[:8], Norm.LINF, seed=1).raised


def test_more_steps_and_a_larger_radius_help_on_an_honest_model() -> None:
    assert not more_steps(Linear(), IMAGES, LABELS, NEAR).raised
    assert not larger_eps(Linear(), IMAGES, LABELS, NEAR).raised


def test_a_model_whose_gradients_die_far_out_breaks_less_at_a_larger_radius() -> None:
    class Shelters(nn.Module):
        """Away from mid-grey by more than the small radius, the true class is out of reach."""

        def forward(self, images: Tensor) -> Tensor:
            far = (images - IMAGES.mean()).abs().flatten(1).amax(dim=1, keepdim=True) > 0.245
            logits = Linear()(images)
            return torch.where(far, torch.eye(5)[_nearest(images)] * 1e3, logits)

    def _nearest(images: Tensor) -> Tensor:
        distances = torch.cdist(images.flatten(1), IMAGES.flatten(1))
        return LABELS[distances.argmin(dim=1)]

    small = ThreatModel(Norm.LINF, 0.04)
    flag = larger_eps(Shelters(), IMAGES, LABELS, small)
    assert flag.raised, flag


def test_batch_coupling_raises_its_flag_and_a_linear_model_does_not() -> None:
    assert batch_invariance(BrighterThanItsBatch(), IMAGES).raised
    assert not batch_invariance(Linear(), IMAGES).raised
