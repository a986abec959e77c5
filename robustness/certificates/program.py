"""Bounds of the program that predicts, whoever wrote it: any fixed-step model, solver included.

The program is recorded (`programs.record`) and the margins of the label over every other class are
bounded from below over the ball by lines through the whole program or by its boxes, whichever say
more, its rounding included (`programs.network`); where that is not enough, the lines are chosen for
the image (`programs.slopes`) and, where asked for, its ball is split (`programs.splitting`). The
radius is the largest one that was itself verified.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustness.certificates.base import (
    SHRINK,
    WITHIN_ROUNDING,
    BaseCertificate,
    CertifiedRadius,
    Kind,
    register_certificate,
    require_pixels,
    with_rival,
)
from robustness.certificates.layers import bounds
from robustness.certificates.limits import Limit
from robustness.certificates.search import RadiusSearch
from robustness.certificates.sharing import shared
from robustness.errors import UsageError
from robustness.programs.graph import Refusal
from robustness.programs.network import Ball, Bounds, Network, margin_rows
from robustness.programs.record import record
from robustness.programs.slopes import climbed, narrowed
from robustness.programs.splitting import split
from robustness.threat import Norm

# Images that are bounded together.
_TOGETHER = 16
# Where the search for a radius starts in each norm, the relative width at which it ends, the
# number of radii tried, and the smallest one given.
_FIRST = {Norm.LINF: 0.004, Norm.L2: 0.05}
_TOLERANCE, _MOST_ROUNDS, _SMALLEST = 2**-5, 16, 1e-6
# By how much more is verified of a radius that is asked for, so that it is left when it is cut.
_BEYOND = 1 + 2e-9
# A bound that is so many times further below 0 than the margin is above it is left as it is.
_REACH = 4.0
# The same for splitting, and the steps of the ascent on each half.
_REACH_OF_NARROWING = 0.15
_REACH_OF_SPLITS, _STEPS_OF_A_LEAF = 0.1, 8
# Runs of the program that the boxes of a ball and their rounding are worth, and for each step and
# row those of an ascent.
_BOXES, _ASCENT = 3, 3
# What is said where `work` ended a search.
_CRAMPED = "; narrower boxes would take more work than an image may"
_CUT_SHORT = "; more radii would take more work than an image may"
# Share of a margin from which rounding is named as what limits a radius.
_MUCH_ROUNDING = 0.1


@shared
def network_of(model: nn.Module, shape: tuple[int, int, int]) -> Network:
    """The recorded program of a model, with the rules of its operations.

    Raises:
        Refusal: it cannot be recorded, or an operation has no rule.
    """
    return Network(record(model, shape))


def _is_compiled(part: nn.Module) -> bool:
    """Whether kernels of its own stand for the operations of a module."""
    wrapped = type(part).__module__.startswith("torch._dynamo")
    compiled = getattr(part, "_compiled_call_impl", None) is not None
    return wrapped or compiled or isinstance(part, torch.jit.ScriptModule)


def _near(found: Tensor, least: Tensor) -> Tensor:
    """Which images have no margin below its own `least`, and one that is not above 0."""
    within = (found > least).all(dim=1) & ~(found > 0).all(dim=1)
    return within.nonzero().squeeze(1)


@register_certificate
@dataclass(frozen=True)
class ProgramCertificate(BaseCertificate):
    """Lines through the recorded program (CROWN, arXiv 1811.00866, on general graphs).

    Attributes:
        slopes: steps of the ascent on the choice of lines (alpha-CROWN, arXiv 2011.13824), for
            each radius that is tried and not verified without; 0 for none.
        splits: of the ball, for each rival that a bound is not above 0 for but near it, by the
            signs of undecided rectifiers (beta-CROWN, arXiv 2103.06624); 0 for none.
        narrow: steps of the ascent on each end of the boxes in front of every rectifier behind
            another, where a bound is still not above 0 but near it; 0 for none.
        work: thousand millions of multiplications that the bounds of one image may take, as
            `Network.work` counts them; what does not fit is left out. Narrowing and splits are
            not counted. 0 for no limit.
        at: radii that are tried, and no others, for those who ask for these alone: a radius is then
            the largest of them that is verified before one is not. Empty for a search.
    """

    slopes: int = 10
    splits: int = 0
    narrow: int = 0
    work: int = 50
    at: tuple[float, ...] = ()

    name: ClassVar[str] = "program"
    bounds_programs: ClassVar[bool] = True
    # Of the bounds that `programs` gives, in the keys of stored results.
    revision: ClassVar[str] = "bounds 2"
    last_resort: ClassVar[bool] = True
    strict: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for setting in ("slopes", "splits", "narrow", "work"):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise UsageError(
                    f"program: expected {setting} to be a whole number from 0, got {value!r}; "
                    "correct it"
                )

        for radius in self.at:
            if not 0 < radius < math.inf:
                raise UsageError(
                    f"program: expected at to be radii above 0, got {radius!r}; correct it"
                )
        object.__setattr__(self, "at", tuple(sorted(self.at)))

    def refusal(self, model: nn.Module, norm: Norm) -> str | None:
        """Why rounding is not bounded; what recording refuses is said of each image."""
        del norm
        if model.training:
            return "the model is in training mode; call eval() first"
        if any(map(_is_compiled, model.modules())):
            return "the model is compiled, and what runs is not what is recorded; give it as it was"
        dtype = getattr(model, "dtype", torch.float32)
        return bounds.refusal_of_arithmetic(model, dtype)

    @torch.no_grad()
    def radii(
        self, model: nn.Module, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        """The radius of each image; see `Certificate.certify`.

        Raises:
            ValueError: the arithmetic is one that no bound holds for.
        """
        require_pixels(model, images)
        lacking = self.refusal(model, norm)
        if lacking is not None:
            raise ValueError(f"expected a model with a proof, got one without: {lacking}")
        channels, height, width = images.shape[1:]
        try:
            network = network_of(model, (channels, height, width))
        except Refusal as refused:
            none = CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, str(refused), Limit.OTHER)
            return [none] * len(images)
        found: list[CertifiedRadius] = []
        for start in range(0, len(images), _TOGETHER):
            part = slice(start, start + _TOGETHER)
            found += self._certify(network, images[part], labels[part], norm)
        return found

    def _certify(
        self, network: Network, images: Tensor, labels: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        logits = torch.cat([network.program.run(image.unsqueeze(0)) for image in images])
        if logits.shape[1] < 2:
            return [self._none(norm, "there is one class alone")] * len(images)
        finite = logits.isfinite().all(dim=1)
        boxed = ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)
        right = finite & boxed & (logits.argmax(dim=1) == labels)
        reasons = [
            "the logits are not finite"
            if not sane
            else "the prediction is wrong"
            if inside
            else "the image is not in the pixel box"
            for sane, inside in zip(finite.tolist(), boxed.tolist(), strict=True)
        ]
        results = [self._none(norm, reason) for reason in reasons]
        chosen = right.nonzero().squeeze(1)
        if len(chosen):
            claims = self._radii(network, images[chosen], labels[chosen], logits[chosen], norm)
            for place, claim in zip(chosen.tolist(), claims, strict=True):
                results[place] = claim
        return results

    def _none(self, norm: Norm, reason: str) -> CertifiedRadius:
        return CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, reason, Limit.PREDICTION)

    def _radii(
        self, network: Network, images: Tensor, labels: Tensor, logits: Tensor, norm: Norm
    ) -> list[CertifiedRadius]:
        rows, rivals = margin_rows(logits.shape[1], labels)
        if self.work and network.work * (_BOXES + rows.shape[1]) > 1e9 * self.work:
            words = f"one ball takes more than {self.work} thousand millions of multiplications"
            claim = CertifiedRadius(0.0, norm, Kind.CERTIFIED, self.name, words, Limit.BUDGET)
            return [claim] * len(images)
        exact = (rows.squeeze(2) @ logits.double().unsqueeze(2)).squeeze(2)
        # Boxes, their rounding, and a row for each rival on the way back.
        count, limit = rows.shape[1], 1e9 * self.work if self.work else math.inf
        of_boxes, of_ball = network.work * _BOXES, network.work * (_BOXES + count)
        of_ascent = network.work * _ASCENT * self.slopes * count
        spent = torch.zeros(len(images), dtype=torch.float64)
        # Of the smallest ball that is not verified: where most is lost, and whether narrowing its
        # boxes was left out.
        lost_at = torch.full((len(images),), -1)
        cramped = torch.zeros(len(images), dtype=torch.bool)

        def margins(part: Tensor, radii: Tensor) -> Tensor:
            """Of radii that are asked for plain boxes decide most; else lines tell where to go."""
            if not self.at:
                return bounded(part, radii)
            spent[part] += of_boxes
            ball = Ball(images[part].double().unsqueeze(1), radii, norm)
            plain = Bounds(network, ball, forms=False)
            found = plain.by_boxes(len(network) - 1, rows[part])
            open_ = (~(found > 0).all(dim=1)).nonzero().squeeze(1)
            if len(open_):
                more = bounded(part[open_], radii[open_])
                found[open_] = torch.maximum(found[open_], more)
            return found

        def bounded(part: Tensor, radii: Tensor) -> Tensor:
            spent[part] += of_ball
            ball = Ball(images[part].double().unsqueeze(1), radii, norm)
            bounds = Bounds(network, ball, network.bends, traced=True)
            last = len(network) - 1
            found = bounds.lower(last, rows[part])
            of_depths = bounds.work_of(network.depths)
            fits = spent[part] + of_depths <= limit
            undecided = (fits & ~(found > 0).all(dim=1)).nonzero().squeeze(1)
            if network.depths and len(undecided):
                spent[part[undecided]] += of_depths[undecided]
                deep = Bounds(network, ball.lanes(undecided), network.depths)
                by_lines = deep.by_lines(last, rows[part][undecided])
                found[undecided] = torch.maximum(found[undecided], by_lines)
                bounds = bounds.replaced(undecided, deep)
            within = (found > -_REACH * exact[part]).all(dim=1) & ~(found > 0).all(dim=1)
            near = (within & (spent[part] + of_ascent <= limit)).nonzero().squeeze(1)
            if self.slopes and len(near):
                spent[part[near]] += of_ascent
                lanes, of = bounds.lanes(near), rows[part][near]
                found[near] = climbed(lanes, last, of, found[near], self.slopes)
            near = _near(found, -_REACH_OF_NARROWING * exact[part])
            if self.narrow and len(near):
                lanes, of = narrowed(bounds.lanes(near), self.narrow), rows[part][near]
                found[near] = torch.maximum(found[near], lanes.lower(last, of))
                found[near] = climbed(lanes, last, of, found[near], 2 * self.slopes)
                bounds = bounds.replaced(near, lanes)
            near = _near(found, -_REACH_OF_SPLITS * exact[part])
            if self.splits and len(near):
                lanes, of = bounds.lanes(near), rows[part][near]
                found[near] = split(lanes, last, of, found[near], self.splits, _STEPS_OF_A_LEAF)
            open_ = (~(found > 0).all(dim=1)).nonzero().squeeze(1)
            if len(open_):
                worst = rows[part][open_, found[open_].argmin(dim=1)].unsqueeze(1)
                lost_at[part[open_]] = _lost_at(bounds, open_, worst)
                cramped[part[open_]] = ~fits[open_] & bool(network.depths)
            return found

        every = torch.arange(len(images))
        at_centre = margins(every, torch.zeros(len(images), dtype=torch.float64))
        rival = at_centre.argmin(dim=1)

        def verify(part: Tensor, radii: Tensor) -> Tensor:
            """The worst margins; those that are not positive name the nearest class."""
            found = margins(part, radii)
            failed = ~(found.amin(dim=1) > 0)
            rival[part[failed]] = found.argmin(dim=1)[failed]
            return found.amin(dim=1)

        def affordable(open_: Tensor) -> Tensor:
            return (open_ & (spent + of_ball <= limit)).nonzero().squeeze(1)

        cut_short = torch.zeros(len(images), dtype=torch.bool)
        if self.at:
            verified = torch.zeros(len(images), dtype=torch.float64)
            open_ = at_centre.amin(dim=1) > 0
            for radius in self.at:
                part = affordable(open_)
                cut_short[open_] = True
                cut_short[part] = False
                if len(part) == 0:
                    break
                beyond = torch.full((len(part),), radius * _BEYOND, dtype=torch.float64)
                part = part[verify(part, beyond) > 0]
                verified[part] = radius * _BEYOND
                open_ = torch.zeros_like(open_).index_fill(0, part, True)
        else:
            largest = 1.0 if norm is Norm.LINF else float(images[0].numel()) ** 0.5
            search = RadiusSearch(
                at_centre.amin(dim=1), _FIRST[norm], _TOLERANCE, largest, breaks_down=True
            )
            for _ in range(_MOST_ROUNDS):
                part = affordable(search.open & (search.failed > _SMALLEST))
                if len(part) == 0:
                    break
                search.record(part, verify(part, search.guess[part]))
            verified = search.verified
            cut_short = search.open & (search.failed > _SMALLEST) & (spent + of_ball > limit)
        told = [
            _told(network, place, narrow, short)
            for place, narrow, short in zip(
                lost_at.tolist(), cramped.tolist(), cut_short.tolist(), strict=True
            )
        ]
        radii = torch.where(verified >= _SMALLEST, verified, 0.0) * SHRINK
        taken = ((exact - at_centre) / exact).gather(1, rival.unsqueeze(1)).squeeze(1)
        against = rivals.gather(1, rival.unsqueeze(1)).squeeze(1)
        return [
            self._claim(norm, radius, share, int(j), *words)
            for radius, share, j, words in zip(
                radii.tolist(), taken.tolist(), against, told, strict=True
            )
        ]

    def _claim(
        self, norm: Norm, radius: float, share: float, rival: int, lost: str, short: bool
    ) -> CertifiedRadius:
        if radius <= 0 and not share < 1:
            words, limit = WITHIN_ROUNDING, Limit.ROUNDING
        else:
            words = "lines through the program bound the margin over {}"
            limit = Limit.ENCODER
            if share > _MUCH_ROUNDING:
                words += f", of which rounding takes {share:.0%}"
                limit = Limit.ROUNDING
        if short:
            limit = Limit.BUDGET
        reason, general = with_rival(words + lost, rival)
        return CertifiedRadius(radius, norm, Kind.CERTIFIED, self.name, reason, limit, general)


def _lost_at(bounds: Bounds, part: Tensor, rows: Tensor) -> Tensor:
    """The step at which most of a margin is lost, for some images and a row of each.

    That is the step whose remainder is largest where the remainders of affine forms first outweigh
    what is linear; elsewhere the one at which lines and rounding give most away.
    """
    by_lines, by_rounding = bounds.lanes(part).losses(len(bounds.network) - 1, rows)
    widened = bounds.widened_at[part]
    return torch.where(widened < 0, (by_lines + by_rounding).argmax(dim=1), widened)


def _told(network: Network, place: int, cramped: bool, cut_short: bool) -> tuple[str, bool]:
    """What a reason says of where most is lost and of work that did not fit, and whether any."""
    words = ""
    if place >= 0:
        node, count = network.node(place), len(network) - 1
        words += f"; most is lost at {node.name}, operation {place} of {count}"
    words += _CRAMPED if cramped else ""
    words += _CUT_SHORT if cut_short else ""
    return words, cramped or cut_short
