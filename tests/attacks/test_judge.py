"""The harness judges; an attack's word counts for nothing."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustness.attacks import Status, judge, predict_alone
from robustness.threat import Norm, ThreatModel


class Threshold(nn.Module):
    """Class 1 where the mean pixel exceeds one half."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1)
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


class BatchCoupled(nn.Module):
    """Class 1 where an image is brighter than its batch; alone it never is."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1)
        return torch.stack([torch.full_like(mean, 1e-4), mean - mean.mean()], dim=1)


class FoolsAlone(nn.Module):
    """Right in company, wrong alone: a defence that lives on the batch."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.tensor([[1.0, 0.0]]) if len(images) > 1 else torch.tensor([[0.0, 1.0]])
        return logits.expand(len(images), 2)


class FailsWhenBright(nn.Module):
    """A model that gives NaN on bright images, as a solver that underflowed would."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.flatten(1).mean(dim=1)
        logits = torch.stack([1 - mean, mean], dim=1)
        return torch.where(mean.unsqueeze(1) > 0.55, torch.nan, logits)


IMAGES = torch.full((2, 1, 2, 2), 0.48)
LABELS = torch.zeros(2, dtype=torch.int64)
LINF = ThreatModel(Norm.LINF, 0.05)


def test_an_image_beyond_the_ball_is_rejected_however_well_it_fools() -> None:
    candidates = (IMAGES + 0.06).unsqueeze(0)
    for verdict in judge(Threshold(), IMAGES, LABELS, candidates, LINF):
        assert verdict.status is Status.ROBUST
        assert verdict.rejected == 1


def test_an_image_outside_the_box_is_clipped_before_it_is_judged() -> None:
    images = torch.full((1, 1, 1, 1), 0.98)
    labels = torch.ones(1, dtype=torch.int64)
    candidates = torch.full((1, 1, 1, 1, 1), 1.02)
    (verdict,) = judge(Threshold(), images, labels, candidates, LINF)
    assert verdict.status is Status.ROBUST


def test_overshoot_by_rounding_is_projected_and_still_counts() -> None:
    candidates = (IMAGES + 0.05 + 1e-7).unsqueeze(0)
    for verdict in judge(Threshold(), IMAGES, LABELS, candidates, LINF):
        assert verdict.status is Status.ADVERSARIAL
        assert verdict.linf is not None
        assert verdict.linf <= 0.05


def test_nan_candidates_are_rejected_and_do_not_spoil_their_neighbours() -> None:
    candidates = (IMAGES + 0.04).unsqueeze(0).clone()
    candidates[0, 0] = torch.nan
    spoilt, fine = judge(Threshold(), IMAGES, LABELS, candidates, LINF)
    assert (spoilt.status, spoilt.rejected) == (Status.ROBUST, 1)
    assert (fine.status, fine.prediction) == (Status.ADVERSARIAL, 1)


def test_an_image_that_fools_only_in_company_is_not_adversarial() -> None:
    images = torch.tensor([0.5, 0.4]).view(2, 1, 1, 1)
    logits = BatchCoupled()(images)
    assert logits.argmax(dim=1).tolist() == [1, 0]  # in its batch the first is misclassified
    for verdict in judge(BatchCoupled(), images, LABELS, images.unsqueeze(0), LINF):
        assert verdict.status is Status.ROBUST


def test_an_image_that_is_right_in_company_only_is_adversarial() -> None:
    for verdict in judge(FoolsAlone(), IMAGES, LABELS, IMAGES.unsqueeze(0), LINF):
        assert verdict.status is Status.ADVERSARIAL


def test_a_model_that_fails_inside_the_ball_is_an_error_not_robust() -> None:
    images = torch.full((1, 1, 1, 1), 0.49)
    labels = torch.zeros(1, dtype=torch.int64)
    threat = ThreatModel(Norm.LINF, 0.1)
    (verdict,) = judge(FailsWhenBright(), images, labels, (images + 0.09).unsqueeze(0), threat)
    assert verdict.status is Status.ERROR
    _, finite = predict_alone(FailsWhenBright(), images + 0.09)
    assert finite.tolist() == [False]


def test_the_nearest_of_several_adversarial_images_is_kept() -> None:
    candidates = torch.stack([IMAGES + 0.045, IMAGES + 0.03, IMAGES + 0.04])
    for verdict in judge(Threshold(), IMAGES, LABELS, candidates, LINF):
        assert verdict.linf is not None
        assert abs(verdict.linf - 0.03) < 1e-6
        assert verdict.l2 is not None
        assert abs(verdict.l2 - 0.06) < 1e-6  # sqrt(4 pixels) * 0.03


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.floats(1e-4, 2.0), st.sampled_from(list(Norm)))
def test_whatever_is_proposed_a_verdict_lies_in_ball_and_box(
    seed: int, eps: float, norm: Norm
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 1, 3, 3, generator=generator)
    labels = Threshold()(images).argmax(dim=1)
    scale = 3 * eps * float(torch.rand((), generator=generator))
    candidates = images + scale * torch.randn(2, 4, 1, 3, 3, generator=generator)
    for verdict in judge(Threshold(), images, labels, candidates, ThreatModel(norm, eps)):
        if verdict.status is Status.ADVERSARIAL:
            distance = verdict.linf if norm is Norm.LINF else verdict.l2
            assert distance is not None
            assert distance <= eps
