"""The default pipelines of the cascade: which attack, through which view, in which order."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

from torch import nn

from robustness.attacks.ascent import Ascent
from robustness.attacks.harness import Stage
from robustness.attacks.iterated import IteratedAscent
from robustness.attacks.lanes import LANE
from robustness.attacks.libraries.autoattack_adapter import FAB, Square
from robustness.attacks.roundings import RoundingSearch
from robustness.attacks.transfer import Transfer
from robustness.attacks.views import Smooth, View, views_of
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.nets.continuous import StagedODE
from robustness.nets.fields import LyaNetField, TargetSeekingField
from robustness.nets.simplex import SimplexField
from robustness.nets.solvers import AdaptiveSolver
from robustness.threat import ThreatModel

Effort = Literal["quick", "standard", "thorough"]

# The order of a sweep; what is registered besides comes behind.
_ORDER = (
    "smooth-backward",
    "rescaled",
    "horizon/2",
    "horizon/4",
    "one-step",
    "initial-velocity",
    "euler",
    "rk4",
    "smooth",
)


def default_stages(
    model: nn.Module,
    threat: ThreatModel,
    effort: Effort = "standard",
    sources: Mapping[str, nn.Module] | None = None,
) -> list[Stage]:
    """The stages of a verdict, cheap ones first.

    Short ascents break what breaks easily; then the likeliest targets are climbed on the deployed
    model, each view is swept once, other models' adversarial images are tried, and what is left
    is climbed for longer. A model whose structure is not known is searched without gradients as
    well, as its gradients may be worth nothing and it has few views.

    Args:
        model: the deployed model.
        threat: the ball; every stage applies in both norms.
        effort: `quick` ends after the targets, `thorough` adds starts, steps, FAB and Square.
        sources: other models of the data set by name, whose adversarial images are tried.
    """
    del threat
    stages = _stages(model, effort, sources or {})
    # Most samples of a model made to be certified are, and so few rows are left to climb.
    if isinstance(getattr(model, "field", None), TargetSeekingField):
        return [shortened(stage) for stage in stages]
    return stages


def shortened(stage: Stage, lane: int = LANE) -> Stage:
    """A stage in short lanes, for few samples."""
    if not isinstance(stage.attack, Ascent | IteratedAscent | RoundingSearch):
        return stage
    return replace(stage, attack=replace(stage.attack, lane=lane))


def _stages(model: nn.Module, effort: Effort, sources: Mapping[str, nn.Module]) -> list[Stage]:
    views = {view.name: view for view in views_of(model)}
    stages = list(_first(views, _base(model, views)))
    if effort != "quick":
        stages += _sweep(model, views)
        stages += [
            Stage(Transfer(name, source), views["deployed"]) for name, source in sources.items()
        ]
        stages += _deep(model, views)
    if effort == "thorough":
        stages += _exhaustive(model, views)
    return stages


def climbed_view(model: nn.Module) -> View:
    """Where long ascents against a model run: itself, or a cheaper twin of it."""
    return _base(model, {view.name: view for view in views_of(model)})


def _base(model: nn.Module, views: Mapping[str, View]) -> View:
    """Where the long ascents run: the deployed model, or a cheaper twin of it.

    An adaptive solve takes each sample by itself, and so tens of times as long; float64 takes
    twice as long as float32.
    """
    adaptive = isinstance(getattr(model, "solver", None), AdaptiveSolver)
    if adaptive and "rk4" in views:
        return views["rk4"]
    return views.get("float32", views["deployed"])


def _first(views: Mapping[str, View], base: View) -> Iterator[Stage]:
    yield Stage(Ascent("ce", 10), base)
    if base is not views["deployed"]:
        yield Stage(Ascent("margin", 10), views["deployed"])
    yield Stage(Ascent("targeted", 20, targets=4), base)


def _swept(views: Mapping[str, View]) -> list[View]:
    """The views that a sweep takes once each."""
    order = {name: place for place, name in enumerate(_ORDER)}
    chosen = [view for view in views.values() if view.sweep]
    return sorted(chosen, key=lambda view: order.get(view.name, len(order)))


def _sweep(model: nn.Module, views: Mapping[str, View]) -> Iterator[Stage]:
    for view in _swept(views):
        yield Stage(Ascent("margin", 20), view)
    yield Stage(Ascent("ce", 20, starts=2), views["rescaled"])
    if not isinstance(model, NeuralODEClassifier | StagedODE):
        yield Stage(Square(300), views["deployed"], copies=8)


def _deep(model: nn.Module, views: Mapping[str, View]) -> Iterator[Stage]:
    base = _base(model, views)
    yield Stage(Ascent("targeted", 100, targets=5), base)
    # Projections onto the simplex leave many gradients at zero: of 32 images that stood until here,
    # this broke one.
    if isinstance(getattr(model, "field", None), SimplexField):
        yield Stage(Ascent("targeted", 200, starts=2), base)
    # LyaNet's field can be a rugged climb, where another start helps more than more steps: of 189
    # images of `digits/lyanet` that stood until here, five starts broke 37.
    if isinstance(getattr(model, "field", None), LyaNetField) and "smooth-backward" in views:
        yield Stage(Ascent("margin", 100, starts=8), views["smooth-backward"])
        climbed = _climbed_in_turn(views)
        yield Stage(IteratedAscent(climbed, turn=len(climbed) // 3), views["deployed"])


def _climbed_in_turn(views: Mapping[str, View]) -> tuple[View, ...]:
    """Shorter horizons, where a field settles early, and Euler, mostly through softplus backward.

    Each takes less than half the time of a deployed gradient. A field that does not settle has
    no shorter horizons, and few steps: then the deployed gradient itself, and that of one step.
    One round's four are followed by the same four with softer and with sharper softplus: what
    one smoothing never finds, another may.
    """
    exact = views.get("horizon/2", views["deployed"])
    cheap = "horizon/4" if "horizon/4" in views else "one-step"
    names = [name for name in (exact.name, "euler", cheap) if name in views]
    climbed = []
    for sharpness in (10.0, 4.0, 30.0):
        climbed.append(exact)
        climbed += [
            View(
                f"{name}-smooth-backward-{sharpness:g}",
                Smooth(views[name].module, backward_only=True, sharpness=sharpness),
            )
            for name in names
        ]
    return tuple(climbed)


def _exhaustive(model: nn.Module, views: Mapping[str, View]) -> Iterator[Stage]:
    base = _base(model, views)
    yield Stage(Ascent("targeted", 200, starts=3), base)
    yield Stage(Ascent("dlr", 60, starts=4), base)
    for view in _swept(views):
        yield Stage(Ascent("targeted", 50), view)
    yield Stage(FAB(), base)
    yield Stage(Square(2000), views["deployed"], copies=4)
