"""A reason names the nearest class of its image; in general it names none, and is counted so."""

import re
from dataclasses import replace

import pytest

from robustness.certificates import CERTIFICATES, CertifiedRadius, Kind, Limit
from robustness.data import load_images
from robustness.threat import Norm
from robustness.zoo import load_model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("target-seeking", "digits/lyanet-certified"),
        ("lipschitz-margin", "digits/resnet"),
        ("program", "digits/resnet"),
    ],
)
def test_a_certificate_gives_its_reason_with_the_class_and_without(name: str, model: str) -> None:
    images = load_images("digits", "test", None)
    module = load_model(model).module
    claims = CERTIFICATES[name].certify(module, images.images[:2], images.labels[:2], Norm.LINF)
    assert any("class " in claim.reason for claim in claims)
    for claim in claims:
        assert not re.search(r"class \d", claim.general)
        assert claim.general == re.sub(r"class \d+", "another class", claim.reason)


def test_a_reason_without_a_class_is_its_own_general_form() -> None:
    claim = CertifiedRadius(0.5, Norm.L2, Kind.CERTIFIED, "toy", "none", Limit.OTHER)
    assert claim.general == "none"
    assert replace(claim, radius=1.0).general == "none"
