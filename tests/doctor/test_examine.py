"""Each check catches a model with its fault, and lets a healthy one pass."""

import pytest
from patients import Fault, Healthy, Solved, images, toys

from robustness.data import load_images
from robustness.doctor import CHECKS, Diagnosis, examine
from robustness.doctor.cost import count_passes
from robustness.doctor.examine import FIRST
from robustness.evaluation.suite import Suite
from robustness.identity import describe
from robustness.zoo import LoadedModel, load_model

TEMPLATE = {
    "name": "small",
    "data": "digits",
    "samples": 40,
    "models": ["digits/resnet"],
    "threats": [{"norm": "Linf", "eps": [0.1, 0.2]}],
    "attacks": [{"kind": "fgsm"}],
}
SUITE = Suite.model_validate(TEMPLATE)
TOYS = toys()
# Faults that are not serious alone.
NOTES = ("adaptive", "attribute")


def examined(module) -> Diagnosis:
    module.eval()
    samples = 8 if isinstance(module, Solved) else 64  # which solve an ODE for each image
    loaded = LoadedModel("toy", module, describe(module).digest, None)
    return examine(loaded, images(), SUITE, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOYS)
def test_each_fault_is_found_by_its_check_with_the_line_that_mends_it(name: str) -> None:
    module, check, remedy = TOYS[name]
    diagnosis = examined(module)
    found = next(finding for finding in diagnosis.findings if finding.check == check)
    assert remedy in found.remedy
    assert found.serious is (name not in NOTES)
    assert diagnosis.healthy is (name in NOTES)
    every = {*diagnosis.passed, *diagnosis.skipped, *(f.check for f in diagnosis.findings)}
    assert every | {"accuracy"} == {*FIRST, *CHECKS}


def test_every_check_has_a_toy() -> None:
    data_scale = {"data scale"}  # of the images, below
    assert {check for _, check, _ in TOYS.values()} | data_scale == {*FIRST, *CHECKS}


@pytest.mark.parametrize("module", [Healthy(), Solved(method="rk4")])
def test_a_healthy_model_passes_every_check(module) -> None:
    diagnosis = examined(module)
    assert diagnosis.findings == []
    assert diagnosis.passed == [*FIRST, *CHECKS]
    assert diagnosis.accuracy is not None
    assert diagnosis.accuracy > 0.8
    assert "nothing serious" in list(diagnosis.lines())


def test_images_that_were_divided_twice_are_found() -> None:
    given = images()
    small = type(given)("small", "test", given.images / 255, given.labels, 3)
    loaded = LoadedModel("toy", Healthy().eval(), "", None)
    (finding,) = examine(loaded, small, SUITE).findings
    assert (finding.check, finding.serious) == ("data scale", True)
    assert "images * 255" in finding.remedy


@pytest.mark.parametrize("name", ["digits/resnet", "digits/lyanet-certified"])
def test_entries_of_the_zoo_are_healthy(name: str) -> None:
    assert examine(load_model(name), load_images("digits"), SUITE).findings == []


def test_passes_of_a_suite_are_those_of_its_attacks() -> None:
    """PGD of three steps: at least three gradients an image and radius; FGSM: one."""
    attacks = [{"kind": "pgd", "steps": 3}, {"kind": "fgsm", "samples": 10}]
    suite = Suite.model_validate(TEMPLATE | {"attacks": attacks})
    passes = count_passes(suite, (1, 8, 8), 40, 10)
    assert passes.backward == 2 * (40 * 3 + 10 * 1)
    assert passes.forward >= passes.backward
    assert count_passes(suite, (1, 8, 8), 20, 10).backward == 2 * (20 * 3 + 10 * 1)


def test_what_a_model_raises_later_is_no_defect_of_the_doctor() -> None:
    def late(x):
        if len(x) > 2:
            raise RuntimeError("no more")
        return x

    diagnosis = examined(Fault(late))
    assert not diagnosis.healthy
    assert any("no more" in finding.found for finding in diagnosis.findings)
