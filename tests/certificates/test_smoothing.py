"""Randomised smoothing against closed forms, exact coverage, and its own promises."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from scipy.stats import norm as normal
from torch import Tensor, nn

from robustness.certificates import Kind, SmoothingCertificate
from robustness.certificates.smoothing import lower_confidence
from robustness.errors import UsageError
from robustness.threat import Norm

SHAPE = (1, 3, 3)


class Halfspace(nn.Module):
    """Class 1 where w.x > b, class 0 elsewhere."""

    def __init__(self, weight: float = 2.0, threshold: float = 8.0) -> None:
        super().__init__()
        self.weight, self.threshold = weight, threshold

    def forward(self, images: Tensor) -> Tensor:
        score = self.weight * images.flatten(1).sum(dim=1) - self.threshold
        return torch.stack([-score, score], dim=1)


def at_distance(distance: float) -> Tensor:
    """One image on the side of class 1 of the default half-space, of slope 2 sqrt(9) = 6."""
    return torch.full((1, *SHAPE), (8.0 + 6 * distance) / 2 / 9)


ONE, ZERO = torch.tensor([1]), torch.tensor([0])


@pytest.mark.parametrize("sigma", [0.25, 0.5])
@pytest.mark.parametrize("distance", [0.05, 0.2, 0.5])
def test_the_radius_of_a_linear_model_is_its_distance_within_the_binomial_interval(distance, sigma):
    """g has the boundary of f, and p = Phi(distance / sigma), so sigma Phi^-1(p) is exact."""
    certificate = SmoothingCertificate(sigma=sigma, samples=4000, selection=50)
    radius = certificate.certify(Halfspace(), at_distance(distance), ONE, Norm.L2)[0].radius
    p = normal.cdf(distance / sigma)
    low, high = (binom.ppf(q, 4000, p) for q in (1e-6, 1 - 1e-6))
    bounds = [sigma * normal.ppf(lower_confidence(int(k), 4000, 0.001)) for k in (low, high)]
    assert bounds[0] * (1 - 1e-6) <= radius <= bounds[1]
    assert 0 < radius < distance


def test_the_lower_bound_covers_the_probability_with_its_confidence_and_hardly_more():
    for draws, alpha in ((20, 0.05), (100, 0.01)):
        lows = [lower_confidence(hits, draws, alpha) for hits in range(draws + 1)]
        assert lows == sorted(lows)
        failures = []
        for p in torch.linspace(0.02, 0.98, 49).tolist():
            chances = binom.pmf(range(draws + 1), draws, p)
            failures.append(sum(c for c, low in zip(chances, lows, strict=True) if low > p))
        assert alpha / 2 < max(failures) <= alpha


def test_the_lower_bound_of_unanimous_draws_is_the_root_of_alpha():
    assert lower_confidence(1000, 1000, 0.001) == pytest.approx(0.001 ** (1 / 1000), rel=1e-9)
    assert lower_confidence(0, 1000, 0.001) == 0


def test_unanimous_votes_are_limited_by_their_number():
    certificate = SmoothingCertificate(samples=200, selection=20)
    found = certificate.certify(Halfspace(), at_distance(50.0), ONE, Norm.L2)[0]
    assert found.radius == pytest.approx(0.25 * normal.ppf(0.001 ** (1 / 200)), rel=1e-8)
    assert found.reason.startswith("number of 200 noisy copies")


def test_a_tie_is_abstained_from():
    certificate = SmoothingCertificate(samples=200, selection=20)
    for label in (ZERO, ONE):
        found = certificate.certify(Halfspace(), at_distance(0.0), label, Norm.L2)[0]
        assert found.radius == 0
        assert found.reason.startswith("abstained")
        assert found.kind is Kind.PROBABILISTIC


def test_a_wrong_smoothed_prediction_has_radius_zero():
    certificate = SmoothingCertificate(samples=200, selection=20)
    found = certificate.certify(Halfspace(), at_distance(1.0), ZERO, Norm.L2)[0]
    assert (found.radius, found.kind) == (0.0, Kind.PROBABILISTIC)
    assert "prediction is wrong" in found.reason


def test_the_radius_says_that_it_is_not_of_the_model_and_with_which_confidence():
    certificate = SmoothingCertificate(samples=200, selection=20, alpha=0.01)
    found = certificate.certify(Halfspace(), at_distance(0.2), ONE, Norm.L2)[0]
    assert found.kind is Kind.PROBABILISTIC
    for words in ("confidence 0.99 per image", "sigma 0.25", "not the model itself", "share"):
        assert words in found.reason


def test_the_l_infinity_radius_goes_through_the_l2_ball():
    certificate = SmoothingCertificate(samples=200, selection=20)
    l2, linf = (
        certificate.certify(Halfspace(), at_distance(0.2), ONE, norm)[0]
        for norm in (Norm.L2, Norm.LINF)
    )
    assert linf.radius == pytest.approx(l2.radius / 3, rel=1e-9)
    assert "l2 ball" in linf.reason


def test_an_image_has_the_same_radius_in_every_batch_order_and_run():
    certificate = SmoothingCertificate(samples=300, selection=30)
    images = torch.cat([at_distance(d) for d in (0.1, 0.2, 0.3)])
    labels = torch.ones(3, dtype=torch.int64)
    together = certificate.certify(Halfspace(), images, labels, Norm.L2)
    assert together == certificate.certify(Halfspace(), images, labels, Norm.L2)
    backwards = certificate.certify(Halfspace(), images.flip(0), labels, Norm.L2)
    assert together == backwards[::-1]
    torch.rand(7)  # the global generator plays no part
    for i in range(3):
        alone = certificate.certify(Halfspace(), images[i : i + 1], labels[:1], Norm.L2)
        assert alone == together[i : i + 1]


def test_another_seed_and_another_image_have_other_noise():
    class Recorded(nn.Module):
        def forward(self, copies: Tensor) -> Tensor:
            noise.append(copies - images)
            return torch.stack([copies.flatten(1)[:, 0], copies.flatten(1)[:, 1]], dim=1)

    seen = []
    for seed, value in ((0, 0.5), (0, 0.5), (1, 0.5), (0, 0.25)):
        noise, images = [], torch.full((1, *SHAPE), value)
        certificate = SmoothingCertificate(samples=20, selection=20, seed=seed)
        certificate.certify(Recorded(), images, ONE, Norm.L2)
        seen.append(torch.cat(noise))
    assert torch.equal(seen[0], seen[1])
    assert len(seen[0]) == 40
    # The copies that choose the class are not those that are counted.
    assert not torch.allclose(seen[0][:20], seen[0][20:], atol=0.1)
    for other in seen[2:]:
        assert not torch.allclose(seen[0], other, atol=0.1)
    assert float(seen[0].std()) == pytest.approx(0.25, rel=0.2)


def test_a_copy_that_the_model_fails_on_votes_for_no_class():
    class Failing(Halfspace):
        """Fails on the copies of class 1 whose first pixel is above its mean."""

        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            broken = images[:, 0, 0, 0] > at_distance(9.0)[0, 0, 0, 0]
            return logits.masked_fill(broken.unsqueeze(1), math.nan)

    certificate = SmoothingCertificate(samples=200, selection=20)
    found = certificate.certify(Failing(), at_distance(9.0), ONE, Norm.L2)[0]
    assert found.reason.startswith("abstained")


def test_a_model_that_looks_at_its_batch_sees_one_copy_at_a_time():
    sizes = set()

    class Coupled(Halfspace):
        def forward(self, images: Tensor) -> Tensor:
            sizes.add(len(images))
            return super().forward(images)

    SmoothingCertificate(samples=30, selection=10).certify(
        Coupled(), at_distance(1.0), ONE, Norm.L2
    )
    assert sizes == {1}


def test_every_model_can_be_smoothed():
    assert SmoothingCertificate().refusal(Halfspace(), Norm.LINF) is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [("sigma", 0.0), ("sigma", math.nan), ("samples", 0), ("selection", -1), ("alpha", 1.0)],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(setting, value):
    with pytest.raises(UsageError, match=f"smoothing: expected {setting}"):
        replace(SmoothingCertificate(), **{setting: value})
