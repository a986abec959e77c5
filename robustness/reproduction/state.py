"""Whether an artefact is what the code at hand would make, and if not, why."""

import filecmp
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from robustness.api import committed_leaderboards
from robustness.cards.measure import MEASURED_FILE, known_measurement, whole_test_set
from robustness.cards.origin import with_origins
from robustness.cards.page import CARD_FILE, card_text
from robustness.cards.proofs import PROVED_FILE, applying, read_proofs
from robustness.claims.models import study_of
from robustness.claims.report import write_claims
from robustness.claims.results import stored
from robustness.data import require_source
from robustness.errors import OperationalError, UsageError, one_line
from robustness.evaluation.environment import environment
from robustness.evaluation.executors.processes import Limits
from robustness.evaluation.packing import store_of
from robustness.evaluation.plan import Plan
from robustness.evaluation.runner import Crew
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.store import Store
from robustness.evaluation.suite import Changes, Suite, load_suite
from robustness.evaluation.summarise import suite_summary
from robustness.numerics.devices import release_on
from robustness.reporting.index import claims_in, index_page
from robustness.reporting.pages import SUITE_PAGE
from robustness.reporting.report import depth_of, render
from robustness.reproduction.plan import (
    CardsPart,
    ClaimsPart,
    IndexPart,
    Part,
    ScriptPart,
    SuitePart,
)
from robustness.results.leaderboard import (
    LEADERBOARD_FILE,
    Leaderboard,
    read_leaderboard,
    reports_in,
)
from robustness.zoo import (
    WEIGHTS_DIR,
    entry_name,
    expanded,
    find_entry,
    has_weights,
    load_model,
    zoo_entry,
    zoo_recipe,
)

# Of the environment, what changes with every commit and not with what is computed.
_PASSING = {"commit", "lyanet-robustness"}


@dataclass(frozen=True)
class State:
    """How an artefact stands.

    Attributes:
        reasons: why it is stale, each in a few words; none where it is as it would be made now.
        seconds: of compute time that making it takes, by what is on record; None if nothing is.
        commit: that the artefact names; None where it names none.
        pages_alone: whether its results hold, and only what is shown of them differs.
        entries: of a part of several artefacts, which of them are stale: folders of zoo entries.
        needs: what is not here and without which the part can neither be compared nor made, such as
            weights that are not included; empty where nothing is.
    """

    reasons: tuple[str, ...] = ()
    seconds: float | None = None
    commit: str | None = None
    pages_alone: bool = False
    entries: dict[Path, "EntryState"] = field(default_factory=dict)
    needs: str = ""

    @property
    def stale(self) -> bool:
        """Whether there is anything to make."""
        return bool(self.reasons)


@dataclass(frozen=True)
class EntryState:
    """What of a zoo entry's card is stale, in words; None or empty for what is not."""

    measured: str | None
    proved: str | None
    page: str | None

    @property
    def reasons(self) -> list[str]:
        """All that is."""
        return [reason for reason in (self.measured, self.proved, self.page) if reason]


def state_of(part: Part, data_dir: Path | None) -> State:
    """How a part stands; nothing is attacked, certified, trained or written.

    Args:
        part: of a plan.
        data_dir: folder with the official image files.

    Raises:
        UsageError: what the part names is not there.
    """
    if isinstance(part, SuitePart):
        return _suite(part, data_dir)
    if isinstance(part, CardsPart):
        return _cards(part)
    if isinstance(part, ClaimsPart):
        return _claims(part)
    if isinstance(part, IndexPart):
        return _index(part)
    return _script(part)


def _suite(part: SuitePart, data_dir: Path | None) -> State:
    folder = Path(part.out)
    needs = _needs(load_suite(part.suite))
    if not (folder / LEADERBOARD_FILE).is_file():
        return State(needs=needs) if needs else State(("there is no report",))
    board = read_leaderboard(folder)
    if needs:  # what is shown of its results can be told without
        pages, commit = _of_pages(board, folder), board.environment.get("commit")
        return State(tuple(pages), None, commit, bool(pages), needs=needs)
    try:
        plan = _plan(part, data_dir)
    except (UsageError, OperationalError) as error:  # its images, for one, are not here
        return State((f"it cannot be compared: {one_line(str(error), 200)}",))
    differences = [*_of_suite(board, plan), *_of_models(board, plan), *_of_attacks(board, plan)]
    differences += _of_environment(board)
    units = Counter(job.kind for job in plan.jobs for _ in plan.shards(job))
    again: Counter[str] = Counter()
    with store_of(folder) as file:
        if file.is_file():
            try:
                again = _missing(plan, file)
                differences += [_counted(again)] if again else []
            except UsageError as error:  # it is of an older version
                differences.append(one_line(str(error), 100))
                again = units
        else:
            differences += ["its store is not with it"] if part.store else []
            again = units if differences else again
    seconds = sum(
        board.timings.get(f"compute seconds, {kind}", 0.0) * min(1.0, count / max(1, units[kind]))
        for kind, count in again.items()
    )
    pages = [] if differences else _of_pages(board, folder)
    reasons = (*differences, *pages)
    return State(reasons, round(float(seconds), 1), board.environment.get("commit"), bool(pages))


def _needs(suite: Suite) -> str:
    """What is not here of the models that a suite names: weights of others."""
    recipes = [zoo_recipe(name) for name in suite.models if zoo_entry(name) is not None]
    given = [recipe for recipe in recipes if recipe.training is None]
    return "" if all(map(has_weights, given)) else WEIGHTS_DIR


def _plan(part: SuitePart, data_dir: Path | None) -> Plan:
    """What the suite would do now; its models are loaded and predict a few images."""
    suite = load_suite(part.suite)
    require_source(suite.data, data_dir)
    suite = suite.named().changed(Changes(samples=part.samples))
    with Crew(suite, 1, data_dir, Limits.of(None, None, False)) as crew:
        return crew.plan


def _of_suite(board: Leaderboard, plan: Plan) -> list[str]:
    now, then = suite_summary(plan).model_dump(mode="json"), board.suite.model_dump(mode="json")
    settings, former = now.pop("settings"), then.pop("settings")
    different = [name for name in now if now[name] != then[name]]
    different += [name for name in settings if settings[name] != former.get(name)]
    different += [name for name in former if name not in settings]
    return [f"the suite has another {name}" for name in different if name != "models"]


def _of_models(board: Leaderboard, plan: Plan) -> list[str]:
    then = {entry.name: entry.digest for entry in board.models}
    now = {model.name: model.digest for model in plan.models}
    return [
        *(f"{name} is not in it" for name in now if name not in then),
        *(f"{name} is no longer asked for" for name in then if name not in now),
        *(f"{n} has other weights" for n in now if n in then and now[n] != then[n]),
    ]


def _of_attacks(board: Leaderboard, plan: Plan) -> list[str]:
    then: dict[tuple[object, ...], str] = {
        (entry.name, row.attack, row.norm, row.eps): row.version
        for entry in board.models
        for row in entry.attacks
    }
    now: dict[tuple[object, ...], str] = {
        (plan.models[job.model].name, job.name, job.norm, job.eps): job.version
        for job in plan.jobs
        if job.kind in ("attack", "worst-case")
    }
    changed = {str(key[1]) for key, version in now.items() if then.get(key, version) != version}
    return [f"the attack {name} is of another version" for name in sorted(changed)]


def _of_environment(board: Leaderboard) -> list[str]:
    now, then = environment(), board.environment
    return [
        f"{name} was {then.get(name, 'not there')}, is {now.get(name, 'not there')}"
        for name in dict.fromkeys([*now, *then])
        if name not in _PASSING and then.get(name) != now.get(name)
    ]


def _of_pages(board: Leaderboard, folder: Path) -> list[str]:
    if board != with_origins(whole_test_set(board)):
        return ["facts on whole test sets, or origins, are others"]
    files = render(board, depth_of(folder)).items()
    wrong = [n for n, c in files if not (folder / n).is_file() or (folder / n).read_bytes() != c]
    return [f"{wrong[0]} is not what its results give"] if wrong else []


def _missing(plan: Plan, file: Path) -> Counter[str]:
    """How many units of each kind are not in a store; what follows from missing ones included."""
    with Store(file, must_exist=True) as store:
        schedule = Schedule(plan, store)
        found = schedule.missing(job for job in plan.jobs if not job.late)
        # What the second phase is of a model follows from a whole first one of the same.
        unknown = {job.model for job, _ in found}
        late = [job for job in plan.jobs if job.late]
        found += schedule.missing(job for job in late if job.model not in unknown)
        missing = Counter(job.kind for job, _ in found)
        return missing + Counter(
            job.kind for job in late if job.model in unknown for _ in plan.shards(job)
        )


def _counted(missing: Counter[str]) -> str:
    kinds = ", ".join(f"{count} of {kind}" for kind, count in missing.most_common())
    return f"units to be computed: {kinds}"


def _cards(part: CardsPart) -> State:
    boards = committed_leaderboards()
    every = (entry for name in part.models for entry in expanded(name, others=True))
    names = list(dict.fromkeys(every))
    entries = {find_entry(name): _entry(find_entry(name), part.proofs, boards) for name in names}
    stale = {folder: entry for folder, entry in entries.items() if entry.reasons}
    reasons = [f"{entry_name(f)}: {', '.join(entry.reasons)}" for f, entry in stale.items()]
    proofs = [read_proofs(f / PROVED_FILE) for f, entry in stale.items() if entry.proved]
    known = [norm for found in proofs if found is not None for norm in found.norms]
    seconds = [norm.milliseconds * norm.at[0].certified.total / 1000 for norm in known]
    return State(tuple(reasons), round(float(sum(seconds)), 1) if known else None, entries=stale)


def _entry(folder: Path, proofs: bool, boards: dict[str, Leaderboard]) -> EntryState:
    loaded = load_model(str(folder))
    recipe = loaded.recipe
    if recipe is None or recipe.weights is None:
        raise UsageError(f"{folder}: expected an entry with weights, got none; train it first")
    facts, measured, proved = known_measurement(folder / MEASURED_FILE), None, None
    if facts is None:
        measured = "never measured"
    elif facts.digest != loaded.digest:
        measured = "measured with other weights"
    elif facts.torch != release_on(loaded.module):
        measured = f"measured with torch {facts.torch}"
    found = read_proofs(folder / PROVED_FILE)
    threats = load_suite(recipe.data.name).threats if proofs else []
    if any(applying(loaded.module, threats, recipe).values()):
        if found is None:
            proved = "never certified"
        elif found.weights_sha256 != recipe.weights.sha256:
            proved = "certified with other weights"
        elif found.torch != release_on(loaded.module):
            proved = f"certified with torch {found.torch}"
    page = None
    if facts is not None and measured is None and proved is None:
        text = card_text(entry_name(folder), recipe, facts, boards, found)
        file = folder / CARD_FILE
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            page = "its card is not what is known of it"
    return EntryState(measured, proved, page)


def _claims(part: ClaimsPart) -> State:
    folder = Path(part.out)
    study = study_of(part.data)
    seeds = [stored(study, seed, folder) for seed in study.seeds]
    if lacking := [str(results.seed) for results in seeds if not results.complete]:
        return State(
            (f"recipes or protocols are others, or not done, of seed {', '.join(lacking)}",)
        )
    with TemporaryDirectory() as again:
        files = write_claims(seeds, Path(again))
        for file in files:
            name = file.relative_to(again)
            there = folder / name
            if not there.is_file() or not filecmp.cmp(file, there, shallow=False):
                return State((f"{name} is not what its results give",), 0.0, pages_alone=True)
    return State()


def _index(part: IndexPart) -> State:
    folder = Path(part.folder)
    files = reports_in(folder)
    boards = {name: read_leaderboard(file) for name, file in files.items()}
    text = index_page(boards, claims_in(folder))
    page = folder / SUITE_PAGE
    if page.is_file() and page.read_text(encoding="utf-8") == text:
        return State()
    return State(("it is not what the reports give",), 0.0)


def _script(part: ScriptPart) -> State:
    done = run_python(part.check)
    if done.returncode == 0:
        return State()
    said = (done.stdout + done.stderr).strip().splitlines()
    return State((one_line(said[-1] if said else "its check says so", 100),))


def run_python(words: Iterable[str]) -> "subprocess.CompletedProcess[str]":
    """Run a script with the interpreter of this process.

    Raises:
        OperationalError: it cannot be started.
    """
    try:
        return subprocess.run(
            [sys.executable, *words],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise OperationalError(f"expected Python to start, got: {said}; run it again") from None
