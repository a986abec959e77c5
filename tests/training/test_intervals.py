"""The interval loss: bounds that hold what is sampled, values worked out by hand, its ramp."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from robustness.errors import UsageError
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.convolutions import ConvReLUEncoder
from robustness.nets.encoders import Normalise
from robustness.nets.fields import TargetSeekingField
from robustness.nets.solvers import FixedStepSolver
from robustness.recipe import CertifiedIntervalConfig
from robustness.training.intervals import (
    Band,
    balance,
    certified_by_intervals,
    certified_interval,
    propagate,
    tightness,
    worst_scores,
)


def linear_model(rows: list[list[float]], std: float = 1.0, gain: float = 1.0):
    """Features are the normalised pixels; the target is linear in them."""
    field = TargetSeekingField(len(rows), len(rows[0]), gain=gain, coupling=0.0)
    with torch.no_grad():
        field.head.weight.copy_(torch.tensor(rows))
        field.head.bias.zero_()
    solver = FixedStepSolver("euler", 10)
    return NeuralODEClassifier(Normalise([0.0], [std]), nn.Flatten(), field, solver, len(rows))


def conv_model(seed: int = 0) -> NeuralODEClassifier:
    torch.manual_seed(seed)
    encoder = ConvReLUEncoder((1, 6, 6), [4, 5], [2, 1], 7, 4)
    field = TargetSeekingField(3, 7, gain=2.0, coupling=1.0)
    solver = FixedStepSolver("euler", 10)
    return NeuralODEClassifier(Normalise([0.1], [0.5]), encoder, field, solver, 3)


def test_a_band_holds_the_activations_of_every_sampled_image():
    model, images = conv_model(), torch.rand(3, 1, 6, 6)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    start, _ = propagate(model.normalise, Band.around(images, 0.1))
    features, entered = propagate(model.encoder, start)
    assert len(entered) == 3
    worst = worst_scores(model.field, features, torch.tensor([0, 1, 2]))
    for draw in range(200):
        noise = 2 * torch.rand(images.shape) - 1
        moved = (images + 0.1 * (noise.sign() if draw % 2 else noise)).clamp(0, 1)
        found = model.features(moved)
        assert ((found - features.centre).abs() <= features.radius + 1e-5).all()
        scores = 2.0 * model.field.head(found)
        assert (scores - scores.diag().unsqueeze(1) <= worst + 1e-5).all()


def test_the_box_is_cut_at_black_and_white():
    band = Band.around(torch.tensor([[0.0, 0.5, 1.0]]), 0.2)
    torch.testing.assert_close(band.centre, torch.tensor([[0.1, 0.5, 0.9]]))
    torch.testing.assert_close(band.radius, torch.tensor([[0.1, 0.2, 0.1]]))


def test_the_loss_of_a_linear_target_is_exact_because_the_head_is_merged():
    # Both scores hold 5 x_1, which cancels in their difference and not in their two bounds.
    model = linear_model([[5.0, 1.0], [5.0, 0.0]], std=0.5, gain=3.0)
    images, label = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([0])
    loss = certified_interval(model, images, label, eps=0.1)
    # The margin is 3 x_2 / 0.5 with x_2 >= 0.4.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2.4)), rel=1e-5)
    assert certified_by_intervals(model, images, label, 0.49).item()
    assert not certified_by_intervals(model, images, label, 0.51).item()


def test_clean_cross_entropy_enters_with_its_share():
    model = linear_model([[1.0, 0.0], [0.0, 1.0]], gain=2.0)
    images, label = torch.tensor([[[[0.9, 0.4]]]]), torch.tensor([0])
    mixed = certified_interval(model, images, label, eps=0.1, clean=0.25)
    worst, clean = (math.log(1 + math.exp(-margin)) for margin in (2 * 0.3, 2 * 0.5))
    assert mixed.item() == pytest.approx(0.75 * worst + 0.25 * clean, rel=1e-5)


def test_at_radius_zero_the_loss_is_the_cross_entropy_of_the_target():
    model, images, labels = conv_model(), torch.rand(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
    loss = certified_interval(model, images, labels, eps=0.0)
    plain = functional.cross_entropy(2.0 * model.field.head(model.features(images)), labels)
    torch.testing.assert_close(loss, plain)


def test_the_encoder_starts_with_boxes_that_keep_their_mean_length():
    torch.manual_seed(0)
    encoder = ConvReLUEncoder((1, 28, 28), [32, 64], [2, 2], 256, 4)
    band = Band(torch.zeros(1, 1, 28, 28), torch.full((1, 1, 28, 28), 0.1))
    _, entered = propagate(encoder, band)
    for reached in entered:
        # Every layer doubles a side, and ReLU halves it again; borders lose a little.
        assert 0.7 < reached.radius.mean().item() / 0.2 < 1.1


def test_the_regularisers_have_their_hand_computed_values():
    inputs, wide = (
        Band(torch.zeros(1, 2), torch.full((1, 2), 0.1)),
        Band(torch.tensor([[3.0, 1.0, -1.0, 0.1]]), torch.full((1, 4), 0.5)),
    )
    # The box has grown fivefold: 1/5 falls short of 1/2 by 0.3, of 0.5.
    assert tightness(inputs, wide).item() == pytest.approx(0.6)
    # Active centres sum to 4 and inactive ones to 1: 1/4 falls short of 1/2. Of the squares
    # around the mean 0.775, active ones make 4.951 + 0.051 and inactive ones 3.151: 0.63 suffices.
    assert balance(wide).item() == pytest.approx(0.5)
    assert balance(Band(torch.ones(1, 3), torch.zeros(1, 3))).item() == 0


def test_the_regularisers_tighten_boxes_and_fade():
    model, images = conv_model(), torch.rand(4, 1, 6, 6)
    for layer in model.encoder:
        if hasattr(layer, "weight"):
            layer.weight.data.mul_(10)
    labels = torch.tensor([0, 1, 2, 0])
    with_them = certified_interval(model, images, labels, 0.1, regularisation=0.5)
    without = certified_interval(model, images, labels, 0.1)
    assert with_them > without
    settings = {"kind": "certified-interval", "eps": 0.2, "test_eps": 0.1}
    config = CertifiedIntervalConfig(warm_up=0.25, ramp=0.75, **settings)
    grown = [config.grown(progress) for progress in (0.0, 0.25, 0.5, 0.7499, 0.75, 1.0)]
    assert grown == pytest.approx([0, 0, 0.5, 0.9998, 1, 1])
    at_once = CertifiedIntervalConfig(warm_up=0.0, ramp=0.0, **settings)
    assert at_once.grown(0.0) == 1
    with pytest.raises(ValidationError, match="ramp >= warm_up"):
        CertifiedIntervalConfig(warm_up=0.5, ramp=0.4, **settings)


def test_an_encoder_that_intervals_do_not_pass_is_a_usage_error():
    model = linear_model([[1.0, 0.0], [0.0, 1.0]])
    model.encoder = nn.Sequential(nn.Flatten(), nn.Tanh())
    with pytest.raises(UsageError, match="got Tanh"):
        certified_interval(model, torch.rand(1, 1, 1, 2), torch.tensor([0]), 0.1)
