"""Work that is shared is done once, and only within the block and for the same objects."""

import pytest
import torch
from small_models import Blueprint, random_images
from torch import nn

from robustness.certificates import CERTIFICATES
from robustness.certificates.limits import Limit
from robustness.certificates.sharing import shared, shared_work
from robustness.data import load_images
from robustness.threat import Norm
from robustness.zoo import load_model

calls: list[object] = []


@shared
def largest(module: nn.Linear, scale: float) -> float:
    calls.append(module)
    return scale * float(module.weight.detach().abs().max())


def test_within_a_block_the_same_question_is_answered_once() -> None:
    calls.clear()
    module, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with shared_work() as ledger:
        assert largest(module, 1.0) == largest(module, 1.0)
        assert largest(other, 1.0) != largest(module, 1.0)
        assert len(calls) == 2
        assert ledger.saved > 0
    largest(module, 1.0)
    assert len(calls) == 3


def test_outside_of_a_block_altered_weights_are_seen() -> None:
    module = nn.Linear(2, 2)
    before = largest(module, 1.0)
    with shared_work():
        largest(module, 1.0)
    with torch.no_grad():
        module.weight.mul_(2)
    assert largest(module, 1.0) == 2 * before
    with shared_work():
        assert largest(module, 1.0) == 2 * before


@pytest.mark.slow
def test_certificates_give_the_same_radii_with_and_without_sharing() -> None:
    model, pixels = Blueprint(coupling=1.0).build(), random_images(2, 0)
    labels = model(pixels).argmax(dim=1)

    def everything() -> list[object]:
        return [
            claim
            for certificate in CERTIFICATES.values()
            for norm in Norm
            if certificate.refusal(model, norm) is None
            for claim in certificate.certify(model, pixels, labels, norm)
        ]

    alone = everything()
    assert {claim.certificate for claim in alone} >= {"lyapunov", "target-seeking", "contraction"}
    with shared_work() as ledger:
        assert everything() == alone
    assert ledger.saved > 0


def test_the_comparison_certificates_say_what_takes_most_of_the_room() -> None:
    model, images = (
        load_model("digits/lyanet-certified").module,
        load_images("digits", "test", None),
    )
    claims = CERTIFICATES["lyapunov"].certify(
        model, images.images[:16], images.labels[:16], Norm.L2
    )
    right = [claim for claim in claims if claim.limit is not Limit.PREDICTION]
    assert len(right) > 12
    for claim in right:
        assert claim.limit in (Limit.ENCODER, Limit.FIELD, Limit.HORIZON)
        assert claim.radius > 0 or claim.limit is not Limit.ENCODER
