"""Which of a leaderboard's numbers a table shows, and in which order."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from robustness.recipe import Published
from robustness.reporting import words
from robustness.results.leaderboard import (
    WORST_CASE,
    AttackRow,
    Bracket,
    CertificateRow,
    Cost,
    Envelope,
    Flag,
    Leaderboard,
    ModelEntry,
    Proportion,
    WholeTestSet,
    WithoutFlow,
)
from robustness.results.severity import Severity, severity
from robustness.threat import Norm

# What attacked accuracy is called by the efforts of the worst case that do not end early.
WORST = "worst case"
FULL = {"standard": WORST, "thorough": f"thorough {WORST}"}


@dataclass(frozen=True)
class AttackLine:
    """One attack on one model at every threat: a line of a table.

    Attributes:
        attack: its name.
        versions: distinct descriptions of library, release and settings.
        rows: one per threat, None where it was not run.
    """

    attack: str
    versions: tuple[str, ...]
    rows: tuple[AttackRow | None, ...]

    @property
    def run(self) -> list[AttackRow]:
        """The rows of threats at which it was run."""
        return [row for row in self.rows if row is not None]

    @property
    def errors(self) -> int:
        """Samples that failed, over all threats."""
        return sum(row.errors for row in self.run)

    @property
    def rejected(self) -> int:
        """Proposed images that did not count, over all threats."""
        return sum(row.rejected for row in self.run)

    @property
    def found_by(self) -> dict[str, int]:
        """Which of its stages broke how many samples over all threats, most first."""
        total: Counter[str] = Counter()
        for row in self.run:
            total.update(row.found_by)
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    @property
    def skipped(self) -> int:
        """Samples left out as certified, over all threats."""
        return sum(row.skipped for row in self.run)


def norms(leaderboard: Leaderboard) -> list[Norm]:
    """Norms with a bracket, in the suite's order."""
    return list(dict.fromkeys(b.norm for m in leaderboard.models for b in m.brackets))


def radii(leaderboard: Leaderboard, norm: Norm) -> list[float]:
    """Radii with a bracket in `norm`, smallest first."""
    return sorted({b.eps for m in leaderboard.models for b in m.brackets if b.norm is norm})


def threats(leaderboard: Leaderboard) -> list[tuple[Norm, float]]:
    """Every norm and radius with a bracket."""
    return [(n, e) for n in norms(leaderboard) for e in radii(leaderboard, n)]


def published_at(entry: ModelEntry, norm: Norm, eps: float) -> Published | None:
    """What the authors of a model's weights published of it at a threat; None where nothing is."""
    every = entry.origin.published if entry.origin else []
    return next((said for said in every if (said.norm, said.eps) == (norm, eps)), None)


def find_bracket(entry: ModelEntry, norm: Norm, eps: float) -> Bracket | None:
    """The model's bracket at a threat, if it has one."""
    return next((b for b in entry.brackets if b.norm is norm and b.eps == eps), None)


def is_autoattack(name: str) -> bool:
    """Whether an attack's name is AutoAttack's, however it is spelt."""
    return name.lower().replace("-", "").replace("_", "").startswith("autoattack")


def autoattack_rows(entry: ModelEntry, norm: Norm) -> list[AttackRow]:
    """AutoAttack's rows of one model in one norm, smallest radius first."""
    rows = [r for r in entry.attacks if r.norm is norm and is_autoattack(r.attack)]
    return sorted(rows, key=lambda row: row.eps)


def autoattack_row(entry: ModelEntry, norm: Norm, eps: float) -> AttackRow | None:
    """AutoAttack's row of one model at a threat, if it ran."""
    return next((row for row in autoattack_rows(entry, norm) if row.eps == eps), None)


def autoattack_sizes(leaderboard: Leaderboard, norm: Norm, eps: float) -> list[int]:
    """On how many samples AutoAttack ran at a threat; empty where it ran on no model."""
    rows = [autoattack_row(entry, norm, eps) for entry in leaderboard.models]
    return sorted({row.subset for row in rows if row is not None})


def headline(leaderboard: Leaderboard) -> list[tuple[Norm, float]]:
    """One representative threat per norm.

    The middle one of the radii that the worst case over views ran at, the strongest evidence
    there is; where it did not run, of those of AutoAttack, and failing that of all. Where authors
    published figures at some of them, of these.
    """
    return [(norm, _middle(leaderboard, norm)) for norm in norms(leaderboard)]


def _middle(leaderboard: Leaderboard, norm: Norm) -> float:
    every = radii(leaderboard, norm)
    rows = [row for m in leaderboard.models for row in m.attacks if row.norm is norm]
    worst = {row.eps for row in rows if row.attack == WORST_CASE}
    attacked = {r.eps for m in leaderboard.models for r in autoattack_rows(m, norm)}
    chosen = [eps for eps in every if eps in (worst or attacked)] or every
    models = leaderboard.models
    chosen = [eps for eps in chosen if any(published_at(m, norm, eps) for m in models)] or chosen
    return chosen[(len(chosen) - 1) // 2 if worst else len(chosen) // 2]


def attack_lines(entry: ModelEntry, columns: Sequence[tuple[Norm, float]]) -> list[AttackLine]:
    """The model's attacks as lines of a table with a column per threat."""
    names = dict.fromkeys(row.attack for row in entry.attacks)
    return [_line(name, [r for r in entry.attacks if r.attack == name], columns) for name in names]


def _line(
    name: str, rows: Iterable[AttackRow], columns: Sequence[tuple[Norm, float]]
) -> AttackLine:
    at = {(row.norm, row.eps): row for row in rows}
    versions = tuple(dict.fromkeys(row.version for row in at.values()))
    return AttackLine(name, versions, tuple(at.get(column) for column in columns))


def partial_attacks(leaderboard: Leaderboard) -> dict[str, list[int]]:
    """Attacks that were run on fewer samples than the suite has, and on how many."""
    partial: dict[str, list[int]] = {}
    for row in (row for entry in leaderboard.models for row in entry.attacks):
        if row.subset < leaderboard.suite.samples:
            partial.setdefault(row.attack, []).append(row.subset)
    return partial


def certificate_rows(entry: ModelEntry, norm: Norm) -> list[CertificateRow]:
    """The model's certificates in one norm."""
    return [row for row in entry.certificates if row.norm is norm]


def costs(leaderboard: Leaderboard, model: str) -> dict[tuple[Norm, str], Cost]:
    """What each certificate of a model takes, by norm and name."""
    return {(c.norm, c.certificate): c for c in leaderboard.costs if c.model == model}


def raised(entry: ModelEntry) -> list[Flag]:
    """The flags of a model whose checks found something, the gravest first."""
    order = list(Severity)
    found = [flag for flag in entry.flags if flag.raised]
    return sorted(found, key=lambda flag: order.index(severity(flag.name)))


def doubts(entry: ModelEntry) -> list[Flag]:
    """Those of them that say something of the model's attacked accuracy, the gravest first."""
    return [flag for flag in raised(entry) if severity(flag.name) is not Severity.NOTE]


def serious(entry: ModelEntry) -> list[Flag]:
    """Those of them by which the model's attacked accuracy may be far too high."""
    return [flag for flag in raised(entry) if severity(flag.name) is Severity.SERIOUS]


def doubted(entry: ModelEntry) -> bool:
    """Whether there are any such."""
    return bool(serious(entry))


def strength(entry: ModelEntry, norm: Norm, eps: float) -> str:
    """What attacked a model at a threat: its attacked accuracy is as good as that.

    `worst case` where that ran on every sample and did not end early, which the other attacks
    add little to; else all that ran, with the number of samples where they saw fewer than all.
    """
    rows = [row for row in entry.attacks if row.norm is norm and row.eps == eps]
    names = [_strength(row, entry.clean.total) for row in rows]
    full = next((name for name in names if name in FULL.values()), None)
    return full or (f"{', '.join(names)} only" if names else "no attack")


def _strength(row: AttackRow, samples: int) -> str:
    name = row.attack.upper()
    if row.effort is not None:
        name = FULL.get(row.effort, f"{row.effort} {WORST}")
    elif is_autoattack(row.attack):
        name = "AutoAttack"
    return name if row.subset == samples else f"{name} on {row.subset}"


def strengths(leaderboard: Leaderboard, norm: Norm, eps: float) -> str:
    """What attacked the models at a threat; all of it where models differ."""
    return " / ".join(dict.fromkeys(strength(m, norm, eps) for m in leaderboard.models))


def beyond(entry: ModelEntry) -> WholeTestSet | None:
    """What is known of the model on the whole test set, where the suite saw a part of it."""
    whole = entry.whole
    return whole if whole is not None and whole.clean.total > entry.clean.total else None


def flow_rows(leaderboard: Leaderboard) -> list[list[str]]:
    """What is predicted without the flow, a row for each neural ODE and set of images.

    The model, and what `flow_rows_of` says.
    """
    return [[entry.name, *cells] for entry in leaderboard.models for cells in flow_rows_of(entry)]


def flow_rows_of(entry: ModelEntry) -> list[list[str]]:
    """What is predicted without the flow, on the suite's samples and on the whole test set.

    How many images, of how many of them the class is another, its 95% interval, and accuracy with
    and without the flow, in percent; nothing for a model without an ODE.
    """
    if entry.nfe is None:
        return []
    whole = beyond(entry)
    sets = [] if whole and entry.without_flow is None else [(entry.clean, entry.without_flow)]
    if whole is not None:
        sets.append((whole.clean, whole.without_flow))
    return [[f"{clean.total:,}", *_flow_cells(clean, flow)] for clean, flow in sets]


def envelope_rows(entry: ModelEntry) -> list[list[str]]:
    """The proved envelope of V(t) of a model at each threat; see `model_sections.envelope`.

    Where nothing is proved the row has the reason.
    """
    rows = []
    for of in entry.envelopes:
        named = words.threat_symbol(of.norm, of.eps)
        if of.decays is None or of.leads is None or not of.time:
            images = str(sum(of.refusals.values()))
            rows.append([named, images, next(iter(of.refusals), ""), *[words.ABSENT] * 5])
            continue
        ends = (of.low[0], of.low[-1], of.potential[-1], of.high[-1])
        counts = [f"{share.count:,}" for share in (of.decays, of.leads)]
        shown = [f"{end:.3g}" if math.isfinite(end) else "no bound" for end in ends]
        rows.append([named, f"{of.decays.total:,}", *counts, *shown])
    return rows


def drawn_envelope(entry: ModelEntry) -> Envelope | None:
    """The envelope that is drawn; None where nothing is proved.

    The largest radius at which V is proved to fall for half of the samples, or else the smallest.
    """
    known = [of for of in entry.envelopes if of.time and of.decays is not None]
    norms = [norm for norm in Norm if any(of.norm is norm for of in known)]
    known = sorted((of for of in known if of.norm is norms[0]), key=lambda of: of.eps)
    falling = [of for of in known if of.decays is not None and of.decays.value >= 0.5]
    return next(iter(falling[-1:] or known), None)


def _flow_cells(clean: Proportion, flow: WithoutFlow | None) -> list[str]:
    if flow is None:
        return ["not measured", words.ABSENT, words.percent(clean.value), words.ABSENT]
    other = f"{flow.other.count:,} ({words.percent(flow.other.value)})"
    shares = [words.percent(share.value) for share in (clean, flow.clean)]
    return [other, words.interval(flow.other), *shares]


def smoothed(leaderboard: Leaderboard) -> bool:
    """Whether any model has a probabilistic certificate."""
    return any(b.probabilistic is not None for m in leaderboard.models for b in m.brackets)


def failures(leaderboard: Leaderboard) -> list[ModelEntry]:
    """Models on which some samples failed."""
    return [entry for entry in leaderboard.models if entry.errors]
