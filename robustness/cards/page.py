"""The one-page card of a zoo entry: a pure function of recipe, measurement and leaderboards."""

import math
from collections.abc import Iterable, Iterator, Mapping

from robustness.cards.measure import Measurement
from robustness.cards.proofs import Proofs
from robustness.nets.config import (
    ContinuousNetConfig,
    ConvODEConfig,
    FixedStepConfig,
    LyaNetFieldConfig,
    NeuralODEConfig,
    SimplexFieldConfig,
    SolverConfig,
    TargetSeekingFieldConfig,
)
from robustness.nets.fields import CORNER, lyapunov_rate
from robustness.nets.runge_kutta import CONVEX
from robustness.recipe import Recipe, TrainingConfig
from robustness.reporting import prose, selection, words
from robustness.reporting.markdown import code, finding_lines, table, text
from robustness.results.leaderboard import Leaderboard, ModelEntry
from robustness.zoo import WEIGHTS_DIR

CARD_FILE = "CARD.md"

LOSSES = {
    "cross-entropy": "cross-entropy of the logits",
    "lyapunov-monte-carlo": "Monte Carlo Lyapunov loss (arXiv 2202.02526), no solver in the step",
    "lyapunov-path-integral": "path integral Lyapunov loss (arXiv 2202.02526)",
    "certified-lyapunov": "Lyapunov loss at its worst over an l2 ball, by Lipschitz margins",
    "certified-interval": "Lyapunov loss at its worst over an l-infinity box, by interval bounds",
    "proved": "V at the horizon at its worst over an l-infinity box, by bounds of the program",
    "invariance-monte-carlo": "forward invariance at sampled states, after FI-ODE (2210.16940)",
    "adversarial": "cross-entropy at images found by projected gradient descent (1706.06083)",
    "steady-state": "cross-entropy and the distance travelled after the horizon, after TisODE",
    "stable-equilibrium": "cross-entropy and a stable equilibrium at the horizon, after SODEF",
}


def card_text(
    name: str,
    recipe: Recipe,
    measured: Measurement,
    leaderboards: Mapping[str, Leaderboard],
    proofs: Proofs | None = None,
) -> str:
    """The whole card as Markdown.

    Args:
        name: the entry's zoo name.
        recipe: with the weights' SHA-256 and what training measured.
        measured: facts of these very weights.
        leaderboards: by the folder they lie in; those that measured these weights are quoted.
        proofs: of the whole test set; quoted where they are of these weights.
    """
    blocks = [
        f"# {text(name)}",
        text(prose.sentence(recipe.description)),
        "## What it is",
        _facts(_architecture(recipe, measured)),
        "## How it was trained",
        _facts(_training(recipe)),
        f"## Measured on the {measured.clean.total:,} test images",
        _facts(_measured(measured)),
        f"**What bounds the state here**: {_bound(recipe)}",
        "## Robustness",
        *_proved(measured, proofs),
        *_robustness(name, measured, leaderboards),
        *_published(recipe),
        "## Again",
        f"{code(f'robustness train {name}')} trains it again from the recipe, and "
        f"{code(f'robustness card {name}')} measures it and writes this page."
        if recipe.training
        else f"{code(f'{WEIGHTS_DIR}=DIR robustness card {name}')} measures it and writes this "
        "page, where DIR holds its weights.",
    ]
    return "\n\n".join(blocks) + "\n"


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    return table(["", ""], [[key, value] for key, value in rows], texts=2)


def _architecture(recipe: Recipe, measured: Measurement) -> Iterator[tuple[str, str]]:
    data, model = recipe.data, recipe.model
    shape = "×".join(map(str, data.shape))
    yield "data", f"{code(data.name)}, {shape} pixels in [0, 1], {data.classes} classes"
    yield (
        "network",
        _settings(model.model_dump(exclude={"normalise", "encoder", "field", "solver"})),
    )
    if isinstance(model, NeuralODEConfig):
        yield "encoder", _settings(model.encoder.model_dump())
        yield "vector field", _settings(model.field.model_dump())
    if isinstance(model, NeuralODEConfig | ContinuousNetConfig | ConvODEConfig):
        yield "solver", _solver(model.solver)
    yield "parameters", f"{measured.parameters:,}"
    yield "weights", f"SHA-256 {code(measured.weights_sha256)}"
    yield prose.DIGEST, f"{code(measured.digest)}, by which reports name the entry"


def _settings(values: dict[str, object]) -> str:
    kind = values.get("kind", "")
    rest = [f"{key} {_value(value)}" for key, value in values.items() if key != "kind"]
    return text(", ".join([str(kind), *rest]))


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "(" + ", ".join(f"{k} {_value(v)}" for k, v in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _solver(solver: SolverConfig) -> str:
    if isinstance(solver, FixedStepConfig):
        return (
            f"{solver.method}, {words.plural(solver.steps, 'fixed step')} to T = {solver.horizon:g}"
        )
    return (
        f"{solver.method}, adaptive, rtol {solver.rtol:g}, atol {solver.atol:g}, "
        f"to T = {solver.horizon:g}"
    )


def _training(recipe: Recipe) -> Iterator[tuple[str, str]]:
    if recipe.training is None:
        assert recipe.weights is not None  # a recipe has one of them
        weights = recipe.weights
        yield "weights", text(f"others', from {weights.source} ({weights.licence})")
        yield (
            "not included",
            f"what is told below was measured from {code(str(weights.file))}, which commands read "
            f"in the folder that {code(WEIGHTS_DIR)} names",
        )
        return
    training = recipe.training
    settings = training.loss.model_dump(exclude={"kind"}, exclude_none=True)
    yield "loss", _with(LOSSES[training.loss.kind], settings)
    yield "optimiser", text(_optimiser(training))
    augmentation = training.augmentation.model_dump(exclude_defaults=True)
    yield "augmentation", _settings(augmentation).lstrip(", ") if augmentation else "none"
    yield (
        "length",
        f"{words.plural(training.epochs, 'epoch')} in batches of {training.batch_size}, "
        f"seed {training.seed}, {training.precision}",
    )
    if recipe.measured:
        run = recipe.measured
        yield (
            "cost",
            f"{words.duration(run.seconds)} on {text(run.device)}, "
            f"{words.plural(training.threads, 'thread')}, torch {text(run.torch)}",
        )
        yield (
            "chosen",
            f"epoch {run.epoch}, by {words.percent(run.validation_accuracy)}% accuracy on "
            f"{100 * training.validation:g}% of the training images, held out",
        )


def _with(words_: str, settings: dict[str, object]) -> str:
    listed = ", ".join(f"{key} {_value(value)}" for key, value in settings.items())
    return text(f"{words_}; {listed}" if listed else words_)


def _optimiser(training: TrainingConfig) -> str:
    cycles = f" in {training.cycles} cycles" if training.cycles > 1 else ""
    rate = f"learning rate {training.learning_rate:g}"
    parts = [f"{training.optimiser}, {training.schedule}{cycles}, {rate}"]
    if training.weight_decay:
        parts.append(f"weight decay {training.weight_decay:g}")
    if training.averaging:
        parts.append(f"weights averaged with decay {training.averaging:g} per step")
    return ", ".join(parts)


def _measured(measured: Measurement) -> Iterator[tuple[str, str]]:
    clean = measured.clean
    yield (
        "clean accuracy",
        f"**{100 * clean.value:.2f}%**, 95% interval {100 * clean.low:.2f}–{100 * clean.high:.2f}%",
    )
    nfe = "no ODE" if measured.nfe is None else f"{measured.nfe} per prediction"
    yield "evaluations of the vector field", nfe
    if measured.without_flow is not None:
        flow = measured.without_flow
        yield (
            "images whose class is another without the flow",
            f"**{flow.other.count:,} of {flow.other.total:,}**, "
            f"95% interval {100 * flow.other.low:.2f}–{100 * flow.other.high:.2f}%",
        )
        yield "clean accuracy without the flow", f"{100 * flow.clean.value:.2f}%"
    yield "largest absolute logit", f"{measured.largest_logit:.4g}"
    if measured.largest_state is not None:
        yield "largest absolute entry of a state", f"{measured.largest_state:.4g}"
    yield (
        "images with a logit that is not finite",
        f"{measured.non_finite:,}" if measured.non_finite else "none",
    )


def _bound(recipe: Recipe) -> str:
    model, classes = recipe.model, recipe.data.classes
    if isinstance(model, ContinuousNetConfig) and model.norms:
        return (
            "inside a block the velocity is bounded whatever the state, since the second group "
            "norm feeds the last convolution with entries of bounded size; over a finite horizon "
            "the state therefore grows at most linearly."
        )
    if isinstance(model, ConvODEConfig | ContinuousNetConfig):
        return (
            "nothing but the finite horizon: the velocity is a composition of convolutions and "
            "ReLUs and grows linearly with the state, which may therefore grow exponentially."
        )
    if not isinstance(model, NeuralODEConfig):
        return "there is no state; the network is a composition of finitely many layers."
    field, solver = model.field, model.solver
    if isinstance(field, TargetSeekingFieldConfig):
        return _convex(solver, lyapunov_rate(classes), "initial state and the targets g(η, z)")
    if isinstance(field, SimplexFieldConfig):
        points = "initial state and points of the probability simplex, of entries in [0, 1]"
        return f"the projection. With it {_convex(solver, lyapunov_rate(classes), points)}"
    return _lyanet_bound(field, solver, classes, model.initial)


def _lyanet_bound(
    field: LyaNetFieldConfig, solver: SolverConfig, classes: int, initial: float
) -> str:
    rate = lyapunov_rate(classes) * field.gain / classes
    if field.variant == "simplex":
        return _convex(solver, rate, f"initial state and the class corners, of entries ±{CORNER:g}")
    # |eta|' <= rate * max_i |c_i - eta| <= rate * (|eta| + reach), by Gronwall's lemma.
    reach = CORNER * math.sqrt(classes)
    start = abs(initial) * math.sqrt(classes)
    radius = (start + reach) * math.exp(rate * solver.horizon) - reach
    return (
        "nothing but the finite horizon. The published field moves at a speed proportional to the "
        "distance from the class corners, so its state can grow without bound in time; with "
        f"|η|' ≤ (κ·gain/n)(|η| + {CORNER:g}√n) the exact flow obeys |η(T)| ≤ {radius:.3g} at "
        f"T = {solver.horizon:g}, where κ·gain/n = {rate:.3g}. A longer horizon has no such bound."
    )


def _convex(solver: SolverConfig, rate: float, points: str) -> str:
    flow = f"the exact flow stays in the convex hull of its {points}"
    if not isinstance(solver, FixedStepConfig):
        return f"{flow}; the adaptive steps follow it up to their tolerance."
    step = rate * solver.horizon / solver.steps
    if solver.method in CONVEX:
        holds = "so does every step" if step <= 1 else "the steps need not"
        return f"{flow}, and {holds}: step size times rate is {step:.3g}, at most 1 is needed."
    return (
        f"{flow}; {solver.method} follows it up to its error, with step size times rate {step:.3g}."
    )


def _robustness(
    name: str, measured: Measurement, leaderboards: Mapping[str, Leaderboard]
) -> Iterator[str]:
    found = [
        (folder, board, entry)
        for folder, board in sorted(leaderboards.items())
        for entry in board.models
        if entry.name == name and entry.digest == measured.digest
    ]
    if not found:
        yield "Not yet measured: no committed report evaluates these weights."
        return
    for folder, board, entry in found:
        yield (
            f"From {code(folder)}, {words.plural(board.suite.samples, 'test image')}, pixel units, "
            "in percent. The true robust accuracy lies between certified, which is proved, and "
            "attacked, which is only as low as the attacks beside it are good: figures of "
            "different attacks do not compare."
        )
        yield _checked(entry)
        yield _brackets(entry)


def _published(recipe: Recipe) -> Iterator[str]:
    """What the authors of the weights published of them."""
    for said in recipe.published:
        yield text(
            f"Their paper, {words.threat_symbol(said.norm, said.eps)}: {prose.published(said)}."
        )


def _proved(measured: Measurement, proofs: Proofs | None) -> Iterator[str]:
    if proofs is None or proofs.weights_sha256 != measured.weights_sha256:
        return
    yield (
        f"Proved on all {measured.clean.total:,} test images, for the program that runs, rounding "
        f"included, in percent{_flow_of(measured)}:"
    )
    rows = [
        [
            words.threat_symbol(part.norm, at.eps),
            f"{100 * at.certified.value:.2f}",
            f"{100 * at.certified.low:.2f}–{100 * at.certified.high:.2f}",
        ]
        for part in proofs.norms
        for at in part.at
    ]
    yield table(["threat", "certified", "95%"], rows)
    for part in proofs.norms:
        won = ", ".join(f"{code(name)} {count:,}" for name, count in part.won.items())
        if part.asked:
            tried = " or ".join(f"{eps:g}" for eps in part.asked)
            radii = f"no larger radius than {tried} was tried; by certificate: {won or 'none'}"
        else:
            radii = (
                f"median radius {part.median:.3g}, largest {part.largest:.3g}; largest radius by "
                f"certificate: {won or 'none'}"
            )
        yield (
            f"{words.SYMBOLS[part.norm]}: {radii}. "
            f"{words.plural(part.audited, 'certified image')} attacked just inside "
            f"their radii by the stages of the worst case, longer climbs and PGD: none broken."
        )
    # Norms share work, so that only their sum is what a proof costs.
    total = sum(part.milliseconds for part in proofs.norms)
    yield f"All of it takes {total:.3g} ms of processor time per image, the audit left out."


def _flow_of(measured: Measurement) -> str:
    flow = measured.without_flow
    if flow is None:
        return ""
    return f", of a model whose flow changes the class of {flow.other.count:,} of these images"


def _checked(entry: ModelEntry) -> str:
    """What the report's checks say of the attacked figures, which stand below."""
    if not entry.flags:
        return "That report did not check whether attacks on this model can be believed."
    said = (
        "Can the attacked figures be believed? The report's checks say:"
        if selection.doubts(entry)
        else "None of the report's checks found a problem with attacks on this model. That is the "
        "best that they can say, and no proof."
    )
    means = f" {prose.DOUBTED_MEANS}" if selection.doubted(entry) else ""
    lines = finding_lines(entry, "../../..")
    return f"{said}{means}\n\n{lines}" if lines else said


def _brackets(entry: ModelEntry) -> str:
    doubted = selection.doubted(entry)
    rows = [
        [
            words.threat_symbol(b.norm, b.eps),
            words.percent(b.certified.value),
            words.interval(b.certified),
            words.percent(b.attacked.value) + (f" {prose.DOUBTED}" if doubted and b.width else ""),
            words.interval(b.attacked),
            selection.strength(entry, b.norm, b.eps),
        ]
        for b in entry.brackets
    ]
    return table(["threat", "certified", "95%", "attacked", "95%", "attacked by"], rows)
