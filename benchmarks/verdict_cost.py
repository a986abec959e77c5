"""The suite's verdict against AutoAttack standard on all images, side by side in one run.

Run as `python benchmarks/verdict_cost.py mnist/lyanet Linf 0.1 --data-dir DIR`. Both attack the
same images of the same model on one thread; what is printed is the ratio of their processor
times, which a busy machine disturbs less than a clock's, and both robust accuracies. The cost of
certifying is part of the verdict.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from robustness.attacks import AutoAttack, Status, default_stages, judge, worst_case
from robustness.certificates import CERTIFICATES, routine
from robustness.certificates.base import Kind
from robustness.data import load_images
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.threat import ThreatModel
from robustness.zoo import load_model

Result = TypeVar("Result")


@reproducible_arithmetic()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("norm")
    parser.add_argument("eps")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    model = load_model(arguments.model).module
    data = load_images(arguments.model.split("/")[0], "test", arguments.data_dir)
    images, labels = data.images[: arguments.samples], data.labels[: arguments.samples]
    threat = ThreatModel.parse(arguments.norm, arguments.eps)

    def verdict() -> tuple[int, int]:
        radii = certified_radii(model, images, labels, threat)
        stages = default_stages(model, threat)
        outcomes = worst_case(model, images, labels, threat, stages, radii)
        standing = sum(outcome.status is Status.ROBUST for outcome in outcomes)
        return standing, sum(outcome.certified for outcome in outcomes)

    def autoattack() -> int:
        candidates = AutoAttack().propose(model, images, labels, threat, seed=0)
        verdicts = judge(model, images, labels, candidates, threat)
        return sum(v.status is Status.ROBUST for v in verdicts)

    (ours, certified), own_cost = timed(verdict)
    theirs, their_cost = timed(autoattack)
    print(
        f"{arguments.model} at {threat}, {len(images)} images: the verdict leaves {ours} standing "
        f"({certified} of them certified), AutoAttack standard {theirs}; "
        f"cost of the verdict / cost of AutoAttack: {own_cost / their_cost:.3f}"
    )


def certified_radii(
    model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, threat: ThreatModel
) -> torch.Tensor:
    best = torch.zeros(len(images), dtype=torch.float64)
    for certificate in (CERTIFICATES[name] for name in routine()):
        if certificate.refusal(model, threat.norm) is not None:
            continue
        for i, found in enumerate(certificate.certify(model, images, labels, threat.norm)):
            if found.kind is Kind.CERTIFIED:
                best[i] = max(float(best[i]), found.radius)
    return best


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    started = time.process_time()
    result = run()
    return result, time.process_time() - started


if __name__ == "__main__":
    main()
