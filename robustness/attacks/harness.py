"""The harness: the worst case of each sample over all attacks and views.

Stages run one after the other, cheap ones first. Every candidate is judged by `judge`, on the
deployed model alone in its batch, inside ball and box. A broken sample leaves the queue at once.
What a stage finds for one sample depends on that sample, the threat and the seed, so the order
of stages and the samples that were skipped change the time and never a status.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustness.attacks.base import Attack, Guided, modes_kept
from robustness.attacks.judge import Status, Verdict, judge_within
from robustness.attacks.lanes import Meter, Metered
from robustness.attacks.views import View
from robustness.errors import in_words, is_exhausted
from robustness.numerics.devices import beside
from robustness.threat import Norm, ThreatModel

CLEAN = "clean"


@dataclass(frozen=True)
class Stage:
    """One attack through one view.

    Attributes:
        attack: what proposes images.
        view: what it takes gradients through.
        copies: for an attack that is not `Guided`, copies of a sample that make up its batch,
            each with random draws of its own.
    """

    attack: Attack
    view: View
    copies: int = 1

    @property
    def name(self) -> str:
        """`attack@view`."""
        return f"{self.attack.name}@{self.view.name}"

    @property
    def version(self) -> str:
        """The attack's version and the view: what a reader needs to repeat it."""
        copies = "" if isinstance(self.attack, Guided) else f", {self.copies} at once"
        whose = f" of {self.view.release}" if self.view.release else ""
        return f"{self.attack.version} through {self.view.name}{whose}{copies}"

    def propose(
        self,
        deployed: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
        meter: Meter,
    ) -> Float[Tensor, "k n c h w"]:
        """Candidates for each image, found through the view, on whose device all tensors are."""
        view = replace(self.view, module=Metered(self.view.module, meter))
        seed = (seed + zlib.crc32(self.name.encode())) % 2**63
        if isinstance(self.attack, Guided):
            watched = Metered(deployed, meter)
            return self.attack.pursue(view, watched, images, labels, norm, radii, seed).detach()
        with modes_kept(deployed, view.module):
            each = [
                self.attack.propose(
                    view.module,
                    image.expand(self.copies, -1, -1, -1).clone(),
                    label.expand(self.copies).clone(),
                    ThreatModel(norm, radius),
                    seed,
                )
                for image, label, radius in zip(images, labels, radii.tolist(), strict=True)
            ]
        # (k, copies, c, h, w) of each image become k * copies candidates.
        return torch.stack([part.detach().flatten(0, 1) for part in each], dim=1)


@dataclass(frozen=True)
class Outcome:
    """The worst case of one sample.

    Attributes:
        status: `adversarial` if anything fooled the deployed model in ball and box, at distance
            0 where it is wrong on the image itself; `error` if the model failed on some image of
            the ball, or if no stage could be run; `robust` otherwise.
        certified: the sample was not attacked, its certified radius being larger than eps.
        prediction: class of the nearest adversarial image.
        linf: its l-infinity distance in pixel units.
        l2: its l2 distance.
        attack: name of the attack that found it; `clean` for a misclassified image.
        view: name of the view that it was found through.
        queries: images passed forward through any model on behalf of this sample.
        gradients: images passed forward and backward.
        rejected: candidates that were not finite or lay outside the ball.
        errors: what went wrong, as `stage: reason`; each cost one stage, not the others.
        image: the adversarial image, shape (c, h, w).
    """

    status: Status
    certified: bool = False
    prediction: int | None = None
    linf: float | None = None
    l2: float | None = None
    attack: str | None = None
    view: str | None = None
    queries: int = 0
    gradients: int = 0
    rejected: int = 0
    errors: tuple[str, ...] = ()
    image: Tensor | None = field(default=None, compare=False, repr=False)


def worst_case(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    threat: ThreatModel,
    stages: Sequence[Stage],
    certified: Float[Tensor, " n"] | None = None,
    seed: int = 0,
    climbed: nn.Module | None = None,
) -> list[Outcome]:
    """Attack every sample at one threat; see `worst_case_within`."""
    radii, norm = threat.radii(len(images)), threat.norm
    return worst_case_within(model, images, labels, norm, radii, stages, certified, seed, climbed)


def worst_case_within(
    model: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, " n"],
    norm: Norm,
    radii: Float[Tensor, " n"],
    stages: Sequence[Stage],
    certified: Float[Tensor, " n"] | None = None,
    seed: int = 0,
    climbed: nn.Module | None = None,
) -> list[Outcome]:
    """Attack every sample until it breaks or all stages have failed.

    Args:
        model: the deployed model.
        images: originals in [0, 1], shape (n, c, h, w).
        labels: true classes, shape (n,).
        norm: what distance is measured in.
        radii: of each sample's ball, above 0, in float64, shape (n,).
        stages: attacks and views, in the order in which they run; see
            `stages.default_stages`.
        certified: certified radii in the same norm, shape (n,); samples with more than their
            ball's are not attacked. None attacks all.
        seed: decides every random draw.
        climbed: the model on the device of the stages' views, where that is not the deployed
            one's; what is found there is judged on `model`.

    Returns:
        One outcome per sample.
    """
    watched = model if climbed is None else climbed
    queue = _Queue(model, images.cpu(), labels.cpu(), norm, radii.cpu(), seed, watched)
    queue.start(certified)
    for stage in stages:
        queue.run(stage)
    return queue.outcomes(len(stages))


class _Queue:
    """Samples that still stand, and what is known of all."""

    def __init__(
        self,
        model: nn.Module,
        images: Float[Tensor, "n c h w"],
        labels: Int[Tensor, " n"],
        norm: Norm,
        radii: Float[Tensor, " n"],
        seed: int,
        watched: nn.Module,
    ) -> None:
        self.watched = watched
        self.model, self.images, self.labels = model, images, labels
        self.norm, self.radii, self.seed = norm, radii, seed
        self.known = [Outcome(Status.ROBUST) for _ in labels]
        self.failures = [0 for _ in labels]

    def start(self, certified: Float[Tensor, " n"] | None) -> None:
        """Judge the originals, and set aside what is certified."""
        everything = list(range(len(self.labels)))
        self._judge(everything, self.images.unsqueeze(0), CLEAN, None)
        if certified is None:
            return
        for i in torch.nonzero(certified.cpu() > self.radii).squeeze(1).tolist():
            if self.known[i].status is Status.ROBUST:
                self.known[i] = replace(self.known[i], certified=True)

    def run(self, stage: Stage) -> None:
        """Attack what still stands; a stage that raises is tried on each sample by itself."""
        standing = [
            i
            for i, outcome in enumerate(self.known)
            if outcome.status is not Status.ADVERSARIAL and not outcome.certified
        ]
        if not standing:
            return
        reason = self._attempt(stage, standing)
        if reason and len(standing) > 1:
            alone = [(i, self._attempt(stage, [i])) for i in standing]
        else:
            alone = [(i, reason) for i in standing]
        for i, failure in alone:
            if failure:
                self.failures[i] += 1
                self._note_error(i, stage.name, failure)

    def _attempt(self, stage: Stage, samples: list[int]) -> str:
        """Run a stage on some samples; why it failed, or nothing."""
        meter = Meter()
        images, labels, radii = (v[samples] for v in (self.images, self.labels, self.radii))
        try:
            there, known = beside(self.watched, images, labels)
            candidates = stage.propose(
                self.watched, there, known, self.norm, radii, self.seed, meter
            )
        except Exception as error:  # a third party's code on a user's model: any failure is data
            if is_exhausted(error):  # but for the machine's
                raise
            return " ".join(in_words(error).split())[:300]
        finally:
            for i in samples:
                self.known[i] = replace(
                    self.known[i],
                    queries=self.known[i].queries + -(-meter.queries // len(samples)),
                    gradients=self.known[i].gradients + -(-meter.gradients // len(samples)),
                )
        alone = bool(getattr(stage.attack, "alone", False))
        self._judge(samples, candidates, stage.attack.name, stage.view.name, alone)
        return ""

    def _judge(
        self,
        samples: list[int],
        candidates: Tensor,
        attack: str,
        view: str | None,
        alone: bool = False,
    ) -> None:
        try:
            images, labels, radii = (v[samples] for v in (self.images, self.labels, self.radii))
            verdicts = judge_within(self.model, images, labels, candidates, self.norm, radii, alone)
        except Exception as error:  # the deployed model raises: by itself, where it can be told
            if is_exhausted(error):
                raise
            if len(samples) > 1:
                for row, i in enumerate(samples):
                    self._judge([i], candidates[:, row : row + 1], attack, view, alone)
                return
            detail = " ".join(in_words(error).split())[:300]
            verdicts = [Verdict(Status.ERROR, detail=detail)]
        for i, verdict in zip(samples, verdicts, strict=True):
            self._take(i, verdict, attack, view)

    def _take(self, i: int, verdict: Verdict, attack: str, view: str | None) -> None:
        outcome = self.known[i]
        self.known[i] = outcome = replace(outcome, rejected=outcome.rejected + verdict.rejected)
        if verdict.status is Status.ERROR:
            self.known[i] = replace(outcome, status=Status.ERROR)
            self._note_error(i, f"{attack}@{view}" if view else attack, verdict.detail)
        elif verdict.status is Status.ADVERSARIAL:
            self.known[i] = replace(
                outcome,
                status=Status.ADVERSARIAL,
                prediction=verdict.prediction,
                linf=verdict.linf,
                l2=verdict.l2,
                attack=attack,
                view=view,
                image=verdict.image,
            )

    def _note_error(self, i: int, stage: str, reason: str) -> None:
        known = self.known[i]
        self.known[i] = replace(known, errors=(*known.errors, f"{stage}: {reason}"))

    def outcomes(self, stages: int) -> list[Outcome]:
        """All outcomes; a sample that every stage failed on is an error, not robust."""
        return [
            replace(outcome, status=Status.ERROR)
            if outcome.status is Status.ROBUST and stages and failed == stages
            else outcome
            for outcome, failed in zip(self.known, self.failures, strict=True)
        ]
