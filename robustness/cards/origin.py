"""Of which family the zoo's entries are, and which paper describes it."""

from robustness.cards.measure import MEASURED_FILE, known_measurement
from robustness.errors import UsageError
from robustness.recipe import Recipe, read_recipe
from robustness.results.leaderboard import Leaderboard, ModelEntry, Origin
from robustness.zoo import zoo_folder

_LYANET = "https://arxiv.org/abs/2202.02526"

# By the loss that trained it; where that is cross-entropy, by the kind of network.
_BY_LOSS = {
    "lyapunov-monte-carlo": Origin(family="LyaNet", paper=_LYANET),
    "lyapunov-path-integral": Origin(family="LyaNet, path integral", paper=_LYANET),
    "certified-lyapunov": Origin(family="LyaNet, certified", paper=_LYANET),
    "certified-interval": Origin(family="LyaNet, interval bounds", paper=_LYANET),
    "proved": Origin(family="bounds of the program", paper="https://arxiv.org/abs/1810.12715"),
    "invariance-monte-carlo": Origin(family="FI-ODE", paper="https://arxiv.org/abs/2210.16940"),
    "adversarial": Origin(family="adversarial training", paper="https://arxiv.org/abs/1706.06083"),
    "steady-state": Origin(family="TisODE", paper="https://arxiv.org/abs/1910.05513"),
    "stable-equilibrium": Origin(family="SODEF", paper="https://arxiv.org/abs/2110.12976"),
}
_RESIDUAL = Origin(family="residual network", paper="https://arxiv.org/abs/1512.03385")
_BY_NETWORK = {
    "neural-ode": Origin(family="neural ODE", paper="https://arxiv.org/abs/1806.07366"),
    "continuous-net": Origin(family="ContinuousNet", paper="https://arxiv.org/abs/2008.02389"),
    "residual-conv": _RESIDUAL,
    "residual-mlp": _RESIDUAL,
}
# By where weights of others come from.
_BY_SOURCE = {
    "https://github.com/eth-sri/GAINS": Origin(
        family="GAINS", paper="https://arxiv.org/abs/2303.05246"
    )
}


def origin_of(recipe: Recipe) -> Origin | None:
    """The family of what a recipe makes; None where no paper is known of it."""
    if recipe.training is None:
        assert recipe.weights is not None  # a recipe has one of them
        source = recipe.weights.source or ""
        told = {"published": recipe.published, "weights": f"{source} ({recipe.weights.licence})"}
        known = _BY_SOURCE.get(source)
        return known and known.model_copy(update=told)
    kind = recipe.training.loss.kind
    return _BY_NETWORK.get(recipe.model.kind) if kind == "cross-entropy" else _BY_LOSS.get(kind)


def with_origins(leaderboard: Leaderboard) -> Leaderboard:
    """The leaderboard with the families of those of its models that are the zoo's very entries."""
    models = [_with_origin(entry) for entry in leaderboard.models]
    return leaderboard.model_copy(update={"models": models})


def _with_origin(entry: ModelEntry) -> ModelEntry:
    folder = zoo_folder() / entry.name
    facts = known_measurement(folder / MEASURED_FILE)
    if facts is None or facts.digest != entry.digest:
        return entry
    try:
        origin = origin_of(read_recipe(folder))
    except UsageError:
        return entry
    return entry.model_copy(update={"origin": origin})
