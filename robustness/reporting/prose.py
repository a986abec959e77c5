"""The report's fixed sentences, shared by the page and the Markdown file."""

from importlib.resources import files

from robustness.certificates.limits import MEANINGS
from robustness.recipe import Published
from robustness.reporting import words
from robustness.results.leaderboard import Flag, Leaderboard, ModelEntry
from robustness.results.severity import Severity, severity
from robustness.zoo import WEIGHTS_DIR

# Why samples failed: as many reasons are named.
_REASONS = 5


def root(depth: int = 1) -> str:
    """The checkout, as seen from the folder of a report.

    Args:
        depth: of the report's folder in `reports/`: 1 for reports/<suite>/.
    """
    return "/".join([".."] * (depth + 1))


GLOSSARY = {
    "Threat model": (
        "All images within a radius ε of the original, in the norm ℓ∞ (no pixel changes by more "
        "than ε) or ℓ2 (the Euclidean length of the change is at most ε), and inside the pixel "
        "box [0, 1]. The attacker knows the model."
    ),
    "Pixel units": (
        "Every ε and every radius is measured on pixels that run from 0, black, to 1, white, "
        "before any normalisation. 8/255 is eight grey levels of an 8-bit image."
    ),
    "Clean accuracy": "Accuracy on unperturbed images; the ceiling of everything else.",
    "Certified": (
        "The share of samples for which it is proved that no image within ε changes the right "
        "prediction, for the solver and steps that really run. A lower bound on robust accuracy."
    ),
    "Attacked": (
        "The share of samples that no attack of this run could break within ε, counting the "
        "worst case per sample over all attacks. An upper bound on robust accuracy, and only as "
        "good as the attacks: a stronger attack can lower it, and nothing can raise it. What "
        "attacked at a radius stands beside it; figures of different attacks do not compare."
    ),
    "Bracket": (
        "From certified to attacked: where the true robust accuracy lies. Its width, in "
        "percentage points, is what is not known. A narrow bracket is a reliable answer, not "
        "necessarily a good one: a model that every attack breaks has width 0."
    ),
    "Estimate": (
        "A radius computed from quantities that were sampled rather than bounded. It is not a "
        "proof and is never counted as certified."
    ),
    "Probabilistic": (
        "A radius that holds except with a stated small probability, as in randomised smoothing. "
        "It speaks of the smoothed classifier, not of the model itself; it has a column of its "
        "own and is never counted as certified."
    ),
    "95% interval": (
        "The exact interval of Clopper and Pearson for a count out of a total: how far the "
        "figure could move on other images of the same kind."
    ),
    "NFE": "How often the vector field is evaluated for one prediction; none without an ODE.",
    "Error": (
        "A sample on which the model or an attack failed numerically. It counts neither as "
        "robust nor as certified."
    ),
    "Flag": (
        "A check of whether the numbers of attacks can be believed, each with a definition and a "
        "threshold. Its verdict is one of five. No problem found: the best it can say. Serious "
        "problem: the model's attacked accuracy may be far too high, and the model bears a flag. "
        "Caution: attacks of one kind are weak on the model; the others of the run need not be. "
        "Note: it says nothing of attacked accuracy, being about a mode that is not deployed. "
        "Could not be checked: the check failed. What each means and what to do is in "
        "docs/attacks.md."
    ),
    "Worst case": (
        "An attack that runs many attacks through several views of a model, cheap ones first, on "
        "the samples that still stand. Samples certified at the radius are not attacked, since "
        "nothing could be found; the audit is what attacks those."
    ),
    "Nearest": (
        "The smallest distance of an adversarial image that anything in the run found, and at "
        "least by a search for the nearest one, however far. It bounds a sample's robust radius "
        "from above as the certified radius does from below; medians are over the samples that "
        "were searched and are predicted right."
    ),
    "Rejected": (
        "Images proposed by an attack that lay outside the ball or the pixel box, or were not "
        "finite. They do not count."
    ),
}

VERDICTS = {
    Severity.SERIOUS: "serious problem",
    Severity.CAUTION: "caution",
    Severity.NOTE: "note",
}

DIGEST = "digest of weights and architecture"

DOUBTED = "⚑"
DOUBTED_MEANS = (
    f"{DOUBTED} A check found a serious problem with attacks on this model: wherever its attacked "
    "accuracy is above the certified one, it may be far too high."
)

SOUNDNESS = (
    "The audit attacks certified images at a millionth below their own radii with every attack "
    "there is: a random sample of each model and norm, and those with the largest radii. Besides, "
    "every certified radius is confronted with all adversarial images of the run. One that is "
    "closer than the certified radius refutes the certificate and ends the run with exit code 1."
)


FLOW = (
    "A neural ODE without its flow predicts by its initial velocity f(η(0), z), which for a field "
    "that seeks a target is by the target alone, and a ContinuousNet by its initial states. Where "
    "the class is another on no image, the flow decided nothing: what is measured here is the "
    "network in front of it."
)


ENVELOPE = (
    "For every image within the radius, at every step of the solver and rounding included, V(t) is "
    "proved to lie between two numbers. V falls where its upper end at the horizon is below its "
    "lower end at the start; the label leads where no image of the ball is misread. Ends are "
    "medians over the images."
)


def limit_meanings(leaderboard: Leaderboard) -> dict[str, str]:
    """What the limits that occur in a leaderboard mean."""
    rows = [row for entry in leaderboard.models for row in entry.certificates]
    found = {limit for row in rows for limit in row.limits}
    return {limit.value: meaning for limit, meaning in MEANINGS.items() if limit in found}


def flag_page(name: str, checkout: str) -> str:
    """Where a flag is explained: a link from a page in a checkout.

    Args:
        name: of the flag.
        checkout: its folder, as seen from where the link stands.
    """
    return f"{checkout}/docs/attacks.md#{name}"


def verdict(flag: Flag) -> str:
    """The answer of a check in words that stand for themselves."""
    if not flag.raised:
        return "no problem found"
    if flag.value is None:
        return "could not be checked"
    return VERDICTS[severity(flag.name)]


def title(leaderboard: Leaderboard) -> str:
    """What the report is about."""
    models = words.plural(len(leaderboard.models), "model")
    return f"Adversarial robustness of {models} on {leaderboard.suite.data}"


def ran_on(leaderboard: Leaderboard) -> str:
    """Data, split, number of samples and seed."""
    suite = leaderboard.suite
    samples = words.plural(suite.samples, "sample")
    return f"{samples} of the {suite.split} split of {suite.data}, seed {suite.seed}"


def command(leaderboard: Leaderboard) -> str:
    """What runs the suite again on the same images."""
    suite = leaderboard.suite
    bundled = files("robustness").joinpath(f"suites/{suite.name}.toml").is_file()
    name = suite.name if bundled else f"{suite.name}.toml"
    given = any(entry.origin and entry.origin.weights for entry in leaderboard.models)
    weights = f"{WEIGHTS_DIR}=DIR " if given else ""
    return f"{weights}robustness evaluate {name} --samples {suite.samples} --seed {suite.seed}"


def subset_line(attack: str, leaderboard: Leaderboard, sizes: str) -> str:
    """On which samples a costly attack was run."""
    return (
        f"{attack} was run on the first {sizes} of the {leaderboard.suite.samples:,} samples, "
        "in the suite's order."
    )


def unidentified(entry: ModelEntry) -> str:
    """What of a model cannot be told, and so is not guarded; empty where all can be."""
    if not entry.unidentified:
        return ""
    return (
        f"Not identifiable: {'; '.join(entry.unidentified)}. Nothing would show that it is another "
        "than it was when a result was stored."
    )


def failed(entry: ModelEntry) -> str:
    """Why samples failed; empty where none did, and in leaderboards from before it was kept."""
    if not entry.failures:
        return ""
    reasons = [f"{count:,} × {reason}" for reason, count in entry.failures.items()]
    more = f"; and {len(reasons) - _REASONS} other reasons" if len(reasons) > _REASONS else ""
    return f"Samples failed: {'; '.join(reasons[:_REASONS])}{more}."


def published(said: Published) -> str:
    """What others say of weights of theirs, with its basis."""
    return (
        f"certified {words.percent(said.certified)} %, clean {words.percent(said.clean)} %: "
        f"{said.basis}; not measured here"
    )


def sentence(words_given: str) -> str:
    """A description with one full stop at its end."""
    return words_given.rstrip(". ") + "."
