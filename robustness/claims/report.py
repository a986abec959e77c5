"""The claims report: report.md, index.html, figures and claims.json, all from the results alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustness.claims.models import BATCH, DROPOUT, GAIN, HELD_OUT, MODELS, RATE, STATES
from robustness.claims.protocol import WIDE_STEPS
from robustness.claims.results import SeedResults
from robustness.claims.verdicts import (
    PROTOCOLS,
    Claim,
    Comparison,
    Interval,
    Outcome,
    claims,
    threat,
)
from robustness.errors import os_failure
from robustness.files import replace_file, require_own_folder
from robustness.numerics.devices import CPU
from robustness.reporting.images import data_uri
from robustness.reporting.markdown import table, text
from robustness.results.leaderboard import Summary

CAPTIONS = {
    "horizon": (
        "Median of the potential V(t) = −log p(t) of the true class, and accuracy of the state, "
        "along the horizon; every seed is a line. Both models are solved by rk4 with the same "
        "fine steps. Below ln 2 the prediction is right. Marks show from which time on the "
        "accuracy stays above 90% and 99% of its final value; times are resolved to 0.02."
    ),
    "robustness": (
        "Robust accuracy under each protocol: dots are seeds, bars their 95% Student interval "
        "(cut to 0 to 100%). Figures of different protocols do not compare."
    ),
}
RULE = (
    "A comparison is decided by the 95% Student interval of the paired difference over seeds: "
    "better if it lies wholly on the better side of zero, worse if wholly on the other, equal if "
    "both are the same in every seed, else open. Where less than one per cent of the images stand "
    "of both, neither stands, and there is nothing to compare. A claim holds if all its "
    "comparisons are better, and only under the condition that its verdict names if some are; it "
    "does not hold if none is and one is worse or equal; else it cannot be told. That a claim has "
    "several comparisons is not corrected for: were there no difference, some one of four would "
    "come out better in one report of ten. In brackets behind an open one is how many seeds would "
    "decide it, were mean and spread what they are by now. Where the worst case over views was "
    "measured, it alone decides on robustness: what an attack leaves that may be fooled is shown, "
    "as beside it."
)


_PAPER_UNITS = (
    "Paper's protocol: images are normalised first, and radius, step (2/255, ten steps) and the "
    "clip to [0, 1] are in normalised units. The clip squeezes every image between the mean and "
    "one standard deviation above it, whatever the attack does, whose steps cannot reach the edge "
    "of the l2 ball."
)

# Of results that do not say how long the models were trained.
_EPOCHS = 2

# How robust accuracy was measured by the first edition of the protocols.
_FIRST_EDITION = (
    f"{_PAPER_UNITS} An image counts as robust if it is classified rightly before that clip "
    "and after the attack.",
    "Pixel units: the same numbers on true pixels.",
    f"l-infinity 0.1: {WIDE_STEPS} steps in pixel units on the deployed model. Shorter "
    "horizon, for class-state ODEs: the same attack as well through the model read at a "
    "quarter of the horizon with rescaled logits; an image is robust if neither attack fools "
    "the deployed model.",
    "All of these figures are by projected gradient descent on the cross-entropy in a loop "
    "of the claims' own (edition 1). The worst case over views did not run: stronger attacks "
    "may leave less, and no comparison of these figures tells which model is more robust.",
)


class ClaimsSummary(Summary):
    """What `claims.json` holds: verdicts, and the results that they are computed from."""

    claims: list[Claim]
    verdicts: dict[str, str]
    sentences: dict[str, str]
    seeds: list[SeedResults]


@dataclass(frozen=True)
class Section:
    """A part of the report: a heading, sentences, a table and the name of a figure."""

    heading: str
    sentences: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    figure: str | None = None


def require_report_folder(folder: Path) -> None:
    """Refuse a folder where a report would be written over files of another origin.

    Raises:
        UsageError: it is refused.
    """
    names = ("claims.json", "report.md", "index.html", "figures")
    marks = {file.name: '"recipes"' for file in folder.glob("seed-*.json")}
    require_own_folder(folder, names, marks | {"claims.json": '"claims"'})


def write_claims(seeds: Sequence[SeedResults], folder: Path) -> list[Path]:
    """Write the report of complete results; equal results give equal bytes.

    Raises:
        UsageError: the folder cannot be written to.
    """
    from robustness.claims.figures import drawings

    found = claims(seeds)
    drawn = drawings(seeds)
    sections = list(_sections(seeds, found))
    summary = ClaimsSummary(
        claims=found,
        verdicts={c.statement: c.verdict for c in found},
        sentences={c.statement: c.sentence for c in found},
        seeds=list(seeds),
    )
    files = {
        "claims.json": (summary.model_dump_json(indent=1) + "\n").encode(),
        "report.md": _markdown(sections).encode(),
        "index.html": _html(sections, drawn).encode(),
    } | {f"figures/{name}.svg": content for name, content in drawn.items()}
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            replace_file(folder / name, content)
    except OSError as error:
        raise os_failure(
            error, f"a folder to write the report to at {folder}", "give another with --out"
        ) from None
    return [folder / name for name in files]


def _sections(seeds: Sequence[SeedResults], found: Sequence[Claim]) -> Iterator[Section]:
    yield Section(
        f"LyaNet's claims, measured on {seeds[0].study.title}",
        (
            "The paper (arXiv 2202.02526) claims better prediction, faster convergence of "
            "inference and better adversarial robustness than the same model trained through its "
            "solver, and training without back-propagation through a solver.",
            *_what_was_trained(seeds),
        ),
    )
    yield Section(
        "Verdicts", (), ("claim", "verdict"), tuple((c.statement, c.verdict) for c in found)
    )
    if seeds[0].budgets:
        yield Section(
            "To quote",
            tuple(f"{_circumstances(seeds)}: {c.statement}: {c.sentence}." for c in found),
        )
    yield Section("How a comparison is decided", (RULE,))
    if seeds[0].budgets:
        yield _budgets(seeds)
    yield Section(
        "Prediction",
        ("Test error in percent, on 10,000 images.",)
        if seeds[0].clean["node"].total == 10_000
        else ("Test error in percent.",),
        ("model", "mean", "95% over seeds", *(f"seed {s.seed}" for s in seeds)),
        tuple(_row(name, [100 * (1 - s.clean[name].value) for s in seeds], 2) for name in MODELS),
    )
    yield _compared("Prediction, by pairs", found[0])
    yield Section("Convergence", figure="horizon")
    yield _compared(
        "Convergence, LyaNet against the same field trained through its solver", found[1]
    )
    yield Section(
        "Adversarial robustness",
        _how_attacked(seeds[0]),
        ("protocol", "model", "mean", "95% over seeds", *(f"seed {s.seed}" for s in seeds)),
        tuple(
            (
                _protocol(protocol),
                *_row(name, [100 * s.robust[protocol][name].value for s in seeds]),
            )
            for protocol in seeds[0].robust
            for name in MODELS
            if name in seeds[0].robust[protocol]
        ),
        "robustness",
    )
    yield _compared("Robustness, by pairs", found[2])
    yield _compared(
        "Cost of training",
        found[3],
        "A Monte Carlo LyaNet step or epoch, encoder included, as a multiple of the same network "
        "trained through its solver at equal batch size; processor time on one core, interleaved. "
        "An epoch is measured on blocks of batches with augmentation, optimiser and averaging.",
    )


def _what_was_trained(seeds: Sequence[SeedResults]) -> tuple[str, ...]:
    first = seeds[0]
    attacked = next(iter(first.robust.values()))["node"].total
    where = f" Trained and measured on {first.device}." if first.device != CPU else ""
    if commits := sorted({s.commit[:12] for s in seeds if s.commit}):
        where += f" Begun with the code of commit {' and '.join(commits)}."
    named = ", ".join(str(s.seed) for s in seeds)
    if not first.budgets:
        return (
            f"Five small models, {_EPOCHS} epochs each, seeds {named}; accuracies on all test "
            f"images, robustness on the first {attacked}. What follows is true of these "
            "models and this training budget, and need not be of longer trainings. The gain of "
            f"lyanet is 1 here, as of the zoo's mnist/lyanet-gain-1.{where}",
        )
    kept = [s.budgets["lyanet"].gain for s in seeds]
    gains = [f"{gain:.3g}" for gain in kept if gain is not None]
    # Results of before the gain moved are of before rates were tuned, too.
    rates = first.study.tuned if gains else {}
    own = [f"{name}, tuned by validation to {rate:g}" for name, rate in rates.items()]
    tuned = f" but {' and '.join(own)}" if own else ", tuned for none"
    moved, how = (
        f"a gain of {GAIN:g}",
        "the gain stays what it is, where their training loop moves it",
    )
    if gains:
        moved += f" that moves (averaged as the weights are, it ends as {', '.join(gains)})"
        how = "the gain moves by such a factor a step as leads down to 1 in half of the training"
    return (
        f"Five small models, seeds {named}; accuracies on all test images, robustness on the "
        f"first {attacked}. Both of a pair are the same network, trained for as many epochs. "
        "LyaNet is trained as published: Monte Carlo loss with states from the whole ball, "
        f"{DROPOUT:.0%} of the field's hidden units left out in a step, {moved}, the "
        f"learning rate a tenth from halfway on, averaged weights, {HELD_OUT:.0%} of the images "
        "held out. lyanet-continuousnet is trained through its solver, as its rival is: its loss "
        "is the violation of the Lyapunov condition from one solved state to the next, with the "
        "cross-entropy of what the rest of the network makes of a state as V and a rate of "
        f"{RATE:g}, a discrete form of this package.{where}",
        "What differs from its authors' code: the networks are small, and the same for both of a "
        f"pair; Adam in place of Nero; batches of {BATCH} images in place of 64 for both models "
        "with a Lyapunov loss; ReLU in place of PReLU; rk4 in place of dopri5 where LyaNet "
        f"predicts; {STATES} states a batch in place of 512; the augmentation of the zoo; fewer "
        f"epochs, see below; a learning rate of {first.study.rate:g} for all models{tuned}; an "
        "exponential average of the weights over some 500 steps from the start, in "
        f"place of one from halfway; {how}. The model that is trained through its solver has a "
        f"gain of 1, as in the zoo: with {GAIN:g} states grow by orders of magnitude in every "
        "step.",
    )


def _how_attacked(first: SeedResults) -> tuple[str, ...]:
    if first.edition == 1:
        return _FIRST_EDITION
    worst = " and ".join(
        f"{threat(protocol)} of the first {table['node'].total} images"
        for protocol, table in first.robust.items()
        if protocol.startswith("worst ")
    )
    return (
        f"{_PAPER_UNITS} As its script counts, by the accuracy on the images that it ends with, "
        "in the ball or not.",
        "Pixel units: PGD with the same numbers on true pixels.",
        f"PGD with {WIDE_STEPS} steps on the deployed model, and the worst case over views, at "
        f"{worst}: the worst case alone is by the attacks of a suite. In pixel units a sample is "
        "robust if it is classified rightly and no image that was found in ball and box is "
        f"classified otherwise, alone in its batch (edition {first.edition}). Elsewhere the worst "
        "case did not run, and what PGD says decides nothing.",
    )


def _circumstances(seeds: Sequence[SeedResults]) -> str:
    epochs = sorted({b.epochs for s in seeds for b in s.budgets.values()})
    long = f"{epochs[0]} to {epochs[-1]}" if len(epochs) > 1 else f"{epochs[0]}"
    every = [b for s in seeds for b in s.budgets.values()]
    rising = sum(not b.settled for b in every)
    return (
        f"On {seeds[0].study.title}, {len(seeds)} seeds of small models, {long} epochs, of which "
        f"the last were the best in {rising} of {len(every)} trainings"
    )


def _budgets(seeds: Sequence[SeedResults]) -> Section:
    budgets = seeds[0].study.budgets
    longer = (
        f"A group of models is trained for {budgets[0]} epochs, and for twice as many as long as "
        f"one of them has its best in the last fifth of them, until {budgets[-1]}."
        if len(budgets) > 1
        else f"Every model has {budgets[0]}."
    )
    return Section(
        "Budgets",
        (
            f"Epochs of training, and in brackets the one with the highest validation accuracy. "
            f"{longer} A star marks what had its best in the last fifth of its epochs: longer "
            "training may have made it better.",
        ),
        ("model", *(f"seed {s.seed}" for s in seeds)),
        tuple(
            (
                name,
                *(
                    f"{b.epochs} ({b.best_epoch}){'' if b.settled else ' *'}"
                    for b in (s.budgets[name] for s in seeds)
                ),
            )
            for name in MODELS
        ),
    )


def _compared(heading: str, claim: Claim, *sentences: str) -> Section:
    return Section(
        heading,
        (*sentences, f"{claim.statement}: {claim.verdict}."),
        ("quantity", "trained with", "against", "ours", "rival", "difference, 95%", "outcome"),
        tuple(_comparison(c) for c in claim.comparisons),
    )


def _comparison(c: Comparison) -> tuple[str, ...]:
    digits = {"percent": 2, "t/T": 3, "evaluations": 1, "ratio": 3}[c.unit]
    ours, rival = Interval.of(c.our_values), Interval.of(c.rival_values)
    difference = c.difference
    return (
        c.quantity,
        c.ours,
        c.rival,
        f"{ours.mean:.{digits}f}",
        f"{rival.mean:.{digits}f}",
        f"{difference.mean:+.{digits}f} [{difference.low:+.{digits}f}, "
        f"{difference.high:+.{digits}f}]",
        _outcome(c),
    )


def _outcome(c: Comparison) -> str:
    beside = "" if c.decides else ", beside"
    if c.outcome is not Outcome.OPEN:
        return c.outcome.value + beside
    seeds = c.seeds_to_decide
    return f"open ({'more than 1000' if seeds is None else seeds} seeds){beside}"


def _row(name: str, values: list[float], digits: int = 1) -> tuple[str, ...]:
    """A model's percentages: the mean, the interval cut to what a percentage can be, each seed."""
    interval = Interval.of(values)
    low, high = max(interval.low, 0.0), min(interval.high, 100.0)
    return (
        name,
        f"{interval.mean:.{digits}f}",
        f"{low:.{digits}f} to {high:.{digits}f}",
        *(f"{value:.{digits}f}" for value in values),
    )


def _protocol(protocol: str) -> str:
    return f"{PROTOCOLS[protocol.split()[0]]}, {threat(protocol)}"


def _markdown(sections: Sequence[Section]) -> str:
    blocks = []
    for index, section in enumerate(sections):
        blocks.append(f"{'##' if index else '#'} {section.heading}")
        blocks += [text(sentence) for sentence in section.sentences]
        if section.columns:
            rows = [[text(cell) for cell in row] for row in section.rows]
            blocks.append(table(section.columns, rows, texts=len(section.columns)))
        if section.figure:
            blocks.append(f"![{section.heading}](figures/{section.figure}.svg)")
            blocks.append(f"*{CAPTIONS[section.figure]}*")
    return "\n\n".join(blocks) + "\n"


def _html(sections: Sequence[Section], drawn: dict[str, bytes]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("robustness.claims", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    uris = {name: data_uri(content, "svg+xml") for name, content in drawn.items()}
    page = environment.get_template("page.html.j2")
    return page.render(sections=sections, figures=uris, captions=CAPTIONS)
