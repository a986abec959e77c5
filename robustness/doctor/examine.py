"""All checks in their order: those that find no logits end the examination."""

from collections.abc import Callable, Iterator

import torch

from robustness.data import ImageSet
from robustness.doctor import checks
from robustness.doctor.answers import Unanswered, answering
from robustness.doctor.base import Diagnosis, Finding, Patient
from robustness.doctor.cost import measure_cost
from robustness.errors import in_words, is_exhausted, is_interruption, one_line
from robustness.evaluation.suite import Suite
from robustness.numerics.devices import CPU
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.zoo import LoadedModel

_DEBUG = "model(images)   # in a debugger, on all images that the doctor was given"

Check = Callable[[Patient], Iterator[Finding]]

CHECKS: dict[str, Check] = {
    "data scale": checks.data_scale,
    "train mode": checks.train_mode,
    "dropout": checks.dropout,
    "determinism": checks.determinism,
    "batch coupling": checks.batch_coupling,
    "finite logits": checks.finite_logits,
    "probabilities": checks.probabilities,
    "input range": checks.input_range,
    "normalised twice": checks.normalised_twice,
    "accuracy": checks.accuracy,
    "gradients": checks.gradients,
    "adaptive tolerance": checks.adaptive_tolerance,
    "device": checks.device,
}
"""Of a model that gives logits, in the order in which they are made."""

# They are made first, in this order, and end the examination where they find no logits.
FIRST = ("channels and size", "output", "classes")


def examine(
    loaded: LoadedModel, images: ImageSet, suite: Suite, samples: int = 64, device: str = CPU
) -> Diagnosis:
    """Look for what goes wrong between a model and its images.

    Args:
        loaded: the model, in evaluation mode.
        images: its data set.
        suite: of which the cost is told.
        samples: how many images are looked at; drawn at random, always the same.
        device: where the images are given to it.

    Returns:
        What was found, with the line that mends each. What a user's code raises is a finding.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    some = images.take(order[:samples])
    pixels, labels = some.images.to(device), some.labels.to(device)
    patient = Patient(loaded.module, pixels, labels, images.classes)
    with reproducible_arithmetic(), torch.random.fork_rng(devices=[]):
        return _examined(loaded.name, patient, images, suite)


def _examined(name: str, patient: Patient, images: ImageSet, suite: Suite) -> Diagnosis:
    count = len(patient.images)
    findings: list[Finding] = []
    try:
        patient, findings = answering(patient)
    except Unanswered as ended:
        before = FIRST[: FIRST.index(ended.finding.check)]
        skipped = [*FIRST[len(before) + 1 :], *CHECKS]
        return Diagnosis(name, images.name, count, [ended.finding], list(before), skipped)
    passed = [check for check in FIRST if check not in {f.check for f in findings}]
    for check, function in CHECKS.items():
        try:
            found = list(function(patient))
        except checks.Unknown as reason:
            found = [Finding(check, True, str(reason), reason.remedy)]
        except BaseException as error:  # SystemExit too: it is a user's code that runs
            if is_interruption(error) or is_exhausted(error):
                raise
            said = one_line(in_words(error), 150)
            found = [Finding(check, True, f"the model raised {said}", _DEBUG)]
        findings += found
        passed += [] if found else [check]
    # What images in other units explain is not said twice.
    seen = {finding.check for finding in findings}
    explained = {"accuracy"} if seen & {"input range", "normalised twice"} else set()
    if "data scale" in seen:
        explained = {"accuracy", "input range", "normalised twice"}
    findings = [finding for finding in findings if finding.check not in explained]
    findings.sort(key=lambda finding: not finding.serious)
    accuracy, cost = None, None
    if not any(finding.remedy == _DEBUG for finding in findings):
        accuracy = float(patient.correct(patient.images).double().mean())
        cost = measure_cost(patient.module, patient.images, suite, len(images), images.classes)
    return Diagnosis(name, images.name, count, findings, passed, [], accuracy, cost)
