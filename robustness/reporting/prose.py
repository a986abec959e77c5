"""The report's fixed sentences, shared by the page and the Markdown file."""

from robustness.certificates.limits import MEANINGS
from robustness.reporting import words
from robustness.results.leaderboard import Flag, Leaderboard, ModelEntry
from robustness.results.severity import Severity, severity

# Why samples failed: as many reasons are named.
_REASONS = 5

CAPTIONS = {
    "brackets": (
        "Robust accuracy against the radius of the perturbation. The true value lies in the "
        "shaded bracket: at least the solid line, which is proved, and at most the dashed line, "
        "where attacks succeeded. Marks are the radii that were attacked, by what the legend "
        "says: those of weaker attacks are hollow and do not compare with the others. Between two "
        "of them the dashed line is held at the smaller one's value, since robust accuracy never "
        "rises with the radius. A wide band means that neither proof nor attack settles the "
        "matter, not that the model is weak. A diamond, if any, is AutoAttack alone with its 95% "
        "interval; on fewer samples than the dashed line, it may lie on either side of it."
    ),
    "certificates": (
        "Accuracy that each certificate alone gives, against the radius. Solid lines are proved; "
        "dash-dotted ones hold with a stated probability and speak of the smoothed classifier; "
        "dotted ones are estimates, which prove nothing wherever they lie. Between two radii of "
        "its grid a line is held at the value of the larger one, so that it is nowhere above what "
        "its certificate gives. Models of which no certificate gives any radius are left out."
    ),
    "distances": (
        "A point per sample: how far it is proved to keep its class, and the distance of the "
        "nearest adversarial image that the run found. The true radius lies between the two, so "
        "a sample is settled where its point touches the diagonal; a point below it would refute "
        "the certificate. Triangles are samples of which no adversarial image was found up to "
        "the largest radius attacked. Misclassified samples are left out."
    ),
    "decay": (
        "The potential V(t) = −log p(t), with p(t) the probability that the state at time t "
        "gives the true class, on unperturbed samples. Lines are medians, bands hold the middle "
        "80% of the samples. A straight fall on this logarithmic scale is exponential decay, "
        "which is what a Lyapunov condition asks for. Below ln 2 the true class has more than "
        "half of the probability, so the prediction is right; above, it need not be wrong. "
        "Values under 10⁻⁶ are drawn there; those that overflowed are left out."
    ),
    "envelope": (
        "Between which numbers V(t) is proved to lie at every step of the solver, for every image "
        "within the stated radius, rounding included: medians of the lower and the upper ends "
        "over the samples, and of the measured V(t) of the same samples, unperturbed. Of each "
        "model the largest radius is drawn at which V is proved to have fallen by the horizon "
        "for half of the samples, else the smallest. Where a band widens, the bound has lost hold "
        "of the trajectories; it does not say that they part."
    ),
    "horizon": (
        "Accuracy if the state were read at time t instead of at the horizon T, on unperturbed "
        "samples. A curve that is flat well before the end has converged; one that still moves "
        "at the end owes its accuracy to where integration happens to stop."
    ),
}

TITLES = {
    "brackets": "Brackets over the radius",
    "certificates": "Certified accuracy over the radius",
    "distances": "Certified radius and adversarial distance",
    "decay": "Decay of the potential",
    "envelope": "Proved envelope of the potential",
    "horizon": "Accuracy along the horizon",
}

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


FLOW_HEADING = (
    "model",
    "images",
    "class is another without the flow",
    "95%",
    "clean",
    "clean without the flow",
)


ENVELOPE = (
    "For every image within the radius, at every step of the solver and rounding included, V(t) is "
    "proved to lie between two numbers. V falls where its upper end at the horizon is below its "
    "lower end at the start; the label leads where no image of the ball is misread. Ends are "
    "medians over the images."
)


ENVELOPE_HEADING = (
    "model",
    "threat",
    "images",
    "V proved to fall",
    "label proved to lead",
    "V(0), at least",
    "V(T), at least",
    "V(T), measured",
    "V(T), at most",
)


def limit_meanings(leaderboard: Leaderboard) -> dict[str, str]:
    """What the limits that occur in a leaderboard mean."""
    rows = [row for entry in leaderboard.models for row in entry.certificates]
    found = {limit for row in rows for limit in row.limits}
    return {limit.value: meaning for limit, meaning in MEANINGS.items() if limit in found}


def flag_page(name: str, root: str = "../..") -> str:
    """Where a flag is explained: a link from a report in reports/<suite>/ of a checkout.

    Args:
        name: of the flag.
        root: the checkout, as seen from where the link stands.
    """
    return f"{root}/docs/attacks.md#{name}"


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


def sentence(words_given: str) -> str:
    """A description with one full stop at its end."""
    return words_given.rstrip(". ") + "."
