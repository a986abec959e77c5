"""What the commands do, in Python: evaluate, attack, certify."""

import contextlib
import copy
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError

from robustness import inputs
from robustness.cards.measure import (
    MEASURED_FILE,
    Measurement,
    known_measurement,
    measure,
    whole_test_set,
)
from robustness.cards.origin import with_origins
from robustness.cards.page import CARD_FILE, card_text
from robustness.cards.proofs import PROVED_FILE, forget_units, prove, read_proofs
from robustness.certificates import (
    CERTIFICATES,
    CertifiedRadius,
    Kind,
    Limit,
    ProgramCertificate,
    routine,
)
from robustness.config import Config
from robustness.data import DATASETS, load_images, require_known, require_source
from robustness.doctor import Diagnosis, examine
from robustness.errors import OperationalError, SoundnessError, UsageError, os_failure
from robustness.evaluation.environment import environment
from robustness.evaluation.executors.here import NAME as HERE
from robustness.evaluation.executors.processes import Limits, call_alone
from robustness.evaluation.kept import InMemory
from robustness.evaluation.merging import merge_stores
from robustness.evaluation.packing import (
    PACKED_FILE,
    keys_of,
    packed,
    require_units,
    store_of,
    unpack,
)
from robustness.evaluation.plan import Plan
from robustness.evaluation.progress import event_file
from robustness.evaluation.reader import Reader
from robustness.evaluation.recomputation import (
    Recomputation,
    recomputation,
    require_same_plan,
)
from robustness.evaluation.records import NOT_FINITE, SampleRecord, failures
from robustness.evaluation.runner import Crew, run_plan
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.soundness import confront
from robustness.evaluation.store import Store
from robustness.evaluation.suite import AuditConfig, Changes, Suite, load_suite
from robustness.evaluation.summarise import summarise
from robustness.exchange import PRODUCER, onnx_bytes, vnnlib
from robustness.files import describe_validation, replace_file, require_own, write_file
from robustness.numerics.devices import Placement, arithmetic_on, beside
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.objects import takes_objects
from robustness.programs.graph import Refusal
from robustness.programs.network import Network
from robustness.programs.record import record
from robustness.recipe import read_recipe
from robustness.reporting.report import require_report_folder, write_index, write_report
from robustness.reporting.spreadsheet import csv_of
from robustness.results.leaderboard import (
    LEADERBOARD_FILE,
    STORE_FILE,
    AttackRow,
    Leaderboard,
    Proportion,
    read_leaderboard,
    reports_in,
)
from robustness.results.shown import Shown, axes_to_draw_on, steps
from robustness.terminal import remark
from robustness.threat import Norm, ThreatModel
from robustness.zoo import (
    entry_name,
    find_entry,
    is_factory,
    load_model,
    training_data,
    zoo_folder,
)

_DEFAULT_BATCH = 64
# Folder of the rows of a run in its report.
_ROWS = "rows"
# What tells the files of a card from others of these names.
_OF_A_CARD = {
    MEASURED_FILE: '"weights_sha256"',
    PROVED_FILE: '"weights_sha256"',
    CARD_FILE: "\n## What it is\n",
}


@takes_objects
def evaluate(
    suite: str | Suite = "digits",
    *,
    samples: int | None = None,
    models: Sequence[str] | None = None,
    add: Sequence[str] | None = None,
    data: str | None = None,
    out: Path | None = None,
    workers: int | None = None,
    seed: int | None = None,
    batch_size: int = _DEFAULT_BATCH,
    data_dir: Path | None = None,
    quiet: bool = True,
    unit_timeout: float | None = None,
    memory_limit: str | None = None,
    in_process: bool = False,
    executor: object = None,
    shard: tuple[int, int] | None = None,
    device: str | None = None,
    judge: str | None = None,
    log_json: Path | None = None,
) -> Leaderboard | Any:
    """Evaluate a suite: attack and certify every model, store every sample, write the reports.

    The same call again continues after an interruption; what is stored is not computed again.

    Args:
        suite: a bundled suite's name, a TOML file, or a `Suite`.
        samples: fewer images than the suite asks for.
        models: other models than the suite's, by name or as `torch.nn.Module`s.
        add: models besides these, alike: images that fool the others are tried on them, but theirs
            on none, so that nothing that `out` holds of the others is computed again.
        data: another data set than the suite's, whatever the models were trained on; by default
            models of another one are refused. Or images themselves: `(images, labels)`, a
            `torch.utils.data.Dataset` or an `ImageSet`.
        out: the report folder, `reports/<suite>` by default.
        workers: processes, by default one per core; changes no result.
        seed: another seed than the suite's.
        batch_size: images per task handed to a worker; changes no result.
        data_dir: folder with the official image files; by default they are downloaded.
        quiet: tell nothing of progress on standard error: no bar, no lines.
        unit_timeout: seconds that one unit of work may take, by default an hour, or fifty times the
            slowest unit so far if that is longer; and that a model may take to be loaded, by
            default ten minutes. Kept by worker processes.
        memory_limit: such as `8GiB`, what a worker process may take besides what it starts with.
        in_process: run a user's code in this process, for debugging: it can then end or hang it.
        executor: what does the work: `here`, `processes`, `dask` (a local cluster),
            `dask://HOST:PORT` or another that is registered, by name; or a
            `concurrent.futures.Executor` or `distributed.Client`. By default as `workers` says;
            changes no result. `here` is `in_process` for all code.
        shard: compute only this share of the work, such as `(2, 3)` for the second of three, into
            a store in `out`, by default `reports/<suite>-shard-2-of-3`; no report is written. Let
            other machines compute the others, and `merge` them.
        device: where attacks climb, and where the deployed program predicts unless `judge` says
            otherwise: `cpu`, `cuda`, `cuda:N` or `mps`. Part of the key of results, as `judge` is.
        judge: where the deployed program predicts: what is judged and certified is the program that
            runs there.
        log_json: file to continue with one JSON event per unit of work, see docs/scale.md.

    Returns:
        The leaderboard, which is also written to `out`; None of a share. Its
        `soundness.violations` are empty unless a certificate was broken, which is a defect of this
        package.

    Raises:
        UsageError: the suite, a model, the data or the folder is not usable; nothing is stored.

    Example:
        >>> from robustness.evaluation.suite import Suite
        >>> suite = Suite(
        ...     name="small",
        ...     data="digits",
        ...     samples=8,
        ...     models=["digits/resnet"],
        ...     threats=[{"norm": "Linf", "eps": [0.05]}],
        ...     attacks=[{"kind": "fgsm"}],
        ... )
        >>> leaderboard = evaluate(suite, workers=1)
        >>> leaderboard
        <Leaderboard small on 8 samples: digits/resnet>
        >>> [(bracket.eps, bracket.certified.value) for bracket in leaderboard.models[0].brackets]
        [(0.05, 0.0)]
    """
    parsed = load_suite(suite) if isinstance(suite, str) else suite
    parsed = _override(parsed, samples=samples, models=models, add=add, data=data, seed=seed)
    in_process = in_process or executor == HERE
    placement = inputs.placement(device, judge)
    limits = Limits.of(unit_timeout, memory_limit, in_process)
    workers = _processes(workers, in_process, executor, placement, memory_limit)
    batch_size, log_json = inputs.count("a batch size", batch_size), event_file(log_json)
    if shard is not None:
        inputs.require_share(shard)
    folder = inputs.folder_to_write(out or report_folder(parsed.name, shard))
    require_report_folder(folder)
    parsed = _ready(parsed, data_dir, data is not None)
    with Crew(parsed, workers, data_dir, limits, executor, placement) as crew:
        crew.plan = replace(crew.plan, share=shard)
        _make(folder)
        if (folder / PACKED_FILE).exists() and not (folder / STORE_FILE).exists():
            unpack(folder / PACKED_FILE, folder / STORE_FILE)
        with Store(folder / STORE_FILE) as store:
            started = time.perf_counter()
            versions = environment(placement)
            _remark_other_logits(crew.plan, store)
            run = store.begin_run(crew.plan, versions)
            run_plan(crew, store, batch_size, quiet, log_json)
            wall = time.perf_counter() - started
            store.end_run(run, wall)
            if shard is not None:
                return None
            schedule = Schedule(crew.plan, store)
            leaderboard = _with_history(summarise(schedule, versions), wall, store, schedule)
    leaderboard = with_origins(whole_test_set(leaderboard))
    write_report(leaderboard, folder)
    return leaderboard


def _remark_other_logits(plan: Plan, store: Store) -> None:
    """Say which models computed other bits when what is stored of them was computed."""
    now = {(model.name, model.identity): model.fingerprint for model in plan.models}
    other = {
        name
        for name, identity, logits in store.fingerprints()
        if now.get((name, identity), logits) != logits
    }
    if other:
        remark(
            f"{', '.join(sorted(other))}: what is stored was computed where logits differ from "
            "those here, as another processor's do in their last bits, and is taken as it is; use "
            "another --out to compute it here"
        )


def report_folder(suite: str, shard: tuple[int, int] | None = None) -> Path:
    """Where the results of a suite, or of a share of it, go by default.

    Example:
        >>> report_folder("digits").as_posix(), report_folder("digits", (2, 3)).as_posix()
        ('reports/digits', 'reports/digits-shard-2-of-3')
    """
    share = "" if shard is None else f"-shard-{shard[0]}-of-{shard[1]}"
    return Path("reports") / f"{suite}{share}"


def merge(stores: Sequence[Path], out: Path) -> Leaderboard:
    """Unite the results of the shares of one run, and write its reports.

    They are those of one run of everything, bit for bit, but for times. Every unit and the note of
    every start is taken over; the stores themselves stay as they are.

    Args:
        stores: report folders, or the stores in them.
        out: folder for the store of the whole and its reports, which has no store yet.

    Raises:
        UsageError: the stores are of different suites, images, models or versions, contradict each
            other, or are not the whole; nothing is written.
        DamagedError: one of them is damaged; nothing is written.

    Example:
        >>> merge([], Path("whole"))
        Traceback (most recent call last):
        robustness.errors.UsageError: expected stores to merge, got none; ...
    """
    if not stores:
        raise UsageError("expected stores to merge, got none; name the folders of all shares")
    folder = inputs.folder_to_write(out)
    require_report_folder(folder)
    if (folder / STORE_FILE).exists():
        raise UsageError(
            f"expected a folder without results for the merged ones, got {folder}; choose another "
            "--out"
        )
    files = [path / STORE_FILE if path.is_dir() else path for path in stores]
    distinct = list({file.resolve(): file for file in files}.values())
    with contextlib.ExitStack() as opened:
        whole = [opened.enter_context(Store(file, must_exist=True)) for file in distinct]
        merge_stores(whole, lambda: _made(folder) / STORE_FILE)
    return render(folder, folder)


def render(results: Path, out: Path, *, rows: bool = False, pack: bool = False) -> Leaderboard:
    """Write the reports of the last complete run in `results` again.

    From its store, packed or not; from `leaderboard.json` where a folder holds that alone: what a
    store was not asked then is shown as not measured.

    Args:
        results: folder of a report, or its store.
        out: folder to write to.
        rows: write the rows of every kind of job too, as `rows/<kind>.csv`.
        pack: write what of the store the report is made of, too, as `results.sqlite.xz`: from it
            the report can be rendered again, and `evaluate` goes on.

    Raises:
        UsageError: there is neither, no complete run, or `out` cannot be written.
        DamagedError: units of the run are missing or damaged; nothing is written.

    Example:
        >>> render(Path("none"), Path("again"))
        Traceback (most recent call last):
        robustness.errors.UsageError: ...
    """
    require_report_folder(inputs.folder_to_write(out), *([_ROWS] if rows else []))
    summary = results / LEADERBOARD_FILE
    tables: dict[str, str] = {}
    content: bytes | None = None
    with store_of(results) as file:
        if summary.is_file() and not file.is_file() and not rows and not pack:
            leaderboard = read_leaderboard(summary)
        else:
            leaderboard = _summarised(file, tables if rows else None)
        if pack:
            with Store(file, must_exist=True) as store:
                content = packed(store)
    leaderboard = with_origins(whole_test_set(leaderboard))
    _make(out)
    write_report(leaderboard, out)
    if content is not None:
        write_file(out / PACKED_FILE, content)
    for name, text in tables.items():
        _make(out / _ROWS)
        write_file(out / _ROWS / f"{name}.csv", text.encode())
    return leaderboard


def recompute(
    results: Path,
    *,
    units: int = 100,
    seed: int | None = None,
    data_dir: Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Recomputation:
    """Compute units of a report again, drawn at random, and hold them against its store.

    Whoever doubts a report need not make all of it: of n units that were drawn and agree, the
    interval tells how many of the whole report can be otherwise. What its pages say is told from
    its store by `render`; whether `leaderboard.json` is what the store gives, is looked at here.
    Bits are the same on the same kind of processor; on another, last bits may differ.

    Args:
        results: folder of a report, or its store, packed or not; nothing of it is changed.
        units: how many; of a report that has fewer, all.
        seed: decides which. By default one that nobody can know beforehand, since who made the
            report could have seen to the units that another draws; it is in what is returned.
        data_dir: folder with the official image files; by default they are downloaded.
        workers: processes, by default one per core; changes no result.
        quiet: tell nothing of progress on standard error.

    Raises:
        UsageError: there is no store, no complete run in it, or it is of other code, weights or
            images than those at hand.
        DamagedError: the store is damaged.

    Example:
        >>> recompute(Path("none"))
        Traceback (most recent call last):
        robustness.errors.UsageError: expected results at none, got no such file; ...
    """
    number = inputs.count("a number of units", units)
    seed = secrets.randbelow(2**32) if seed is None else seed
    with store_of(results) as file, Store(file, must_exist=True) as store:
        run, different, report = store.last_run(), list[str](), ""
        summary = (results if results.is_dir() else results.parent) / LEADERBOARD_FILE
        if summary.is_file():  # first, since it is told at once
            board = read_leaderboard(summary)
            report = board.digest()
            if not _alike(board, _summarised(file, None)):
                different.append(f"{summary.name} is not what the store gives")
        placement = run.plan.placement
        workers = _processes(workers, False, None, placement, None)
        suite = _ready(run.plan.suite, data_dir, True)
        limits = Limits.of(None, None, False)
        with Crew(suite, workers, data_dir, limits, None, placement) as crew:
            require_same_plan(run.plan, crew.plan, file)
            commit = environment().get("commit")
            found = recomputation(crew, store, number, seed, commit, quiet)
    different += found.different
    return found.model_copy(update={"different": different, "report": report})


def _alike(board: Leaderboard, summary: Leaderboard) -> bool:
    """Whether a leaderboard is a store's, whenever it was summed up."""
    now = with_origins(whole_test_set(summary))
    return board.model_copy(update={"created": now.created}) == now


def render_index(folder: Path, out: Path) -> Path:
    """Write the page that leads to the reports in the folders of `folder`.

    Args:
        folder: holds folders with a `leaderboard.json` each, or folders of such.
        out: folder to write `index.html` to; links lead to the reports as if they lay there.

    Raises:
        UsageError: there are none, or the page cannot be written.

    Example:
        >>> from robustness.errors import UsageError
        >>> try:
        ...     render_index(Path("reports-of-nobody"), Path("out"))
        ... except UsageError as error:
        ...     print(str(error)[:40])
        reports-of-nobody: expected the folder o
    """
    found = reports_in(folder)
    if not found:
        raise UsageError(
            f"{folder}: expected the folder of a report, or one of several, got neither; run "
            "`robustness evaluate` first"
        )
    return write_index({name: read_leaderboard(file) for name, file in found.items()}, out)


def is_of_reports(folder: Path) -> bool:
    """Whether a folder holds no report itself, but folders of reports.

    Example:
        >>> is_of_reports(Path("reports-of-nobody"))
        False
    """
    own = (folder / STORE_FILE, folder / LEADERBOARD_FILE)
    return not any(map(Path.exists, own)) and bool(reports_in(folder))


def _summarised(file: Path, tables: dict[str, str] | None) -> Leaderboard:
    """The leaderboard of a store's last run; its rows, kind by kind, go into `tables`."""
    with Store(file, must_exist=True) as store:
        run = store.last_run()
        plan = run.plan
        schedule = Schedule(plan, store)
        require_units(schedule, file)
        if tables is not None:
            reader = Reader(schedule)
            for kind in dict.fromkeys(job.kind for job in plan.jobs):
                tables[kind] = csv_of(*reader.table(kind))
        summary = summarise(schedule, run.environment)
        return _with_history(summary, run.wall_seconds, store, schedule)


@takes_objects
def attack(
    model: str,
    norm: str,
    eps: str | float,
    attack: str = "pgd",
    *,
    settings: Mapping[str, Any] | None = None,
    samples: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    quiet: bool = True,
    unit_timeout: float | None = None,
    memory_limit: str | None = None,
    in_process: bool = False,
    executor: object = None,
    device: str | None = None,
    judge: str | None = None,
    log_json: Path | None = None,
) -> AttackRow:
    """Attack one model at one threat; nothing is stored.

    Args:
        model: zoo name, folder, `package.module:factory`, or a `torch.nn.Module`.
        norm: `Linf` or `L2`.
        eps: radius in pixel units, a number or a fraction such as `8/255`.
        attack: `fgsm`, `mi-fgsm`, `pgd`, `apgd`, `fab`, `cw`, `deepfool`, `square`, `autoattack`,
            `worst-case` or another that is registered.
        settings: of the attack, by name, such as `{"effort": "thorough"}` of the worst case.
        samples: how many images, all by default.
        data: data set, by default the one the model was trained on; or images themselves:
            `(images, labels)`, a `torch.utils.data.Dataset` or an `ImageSet`.
        data_dir: folder with the official image files.
        seed: of the order of the images and of every random draw.
        workers: processes, by default one per core.
        quiet: tell nothing of progress on standard error: no bar, no lines.
        unit_timeout: seconds that one unit of work may take, by default an hour, or fifty times the
            slowest unit so far if that is longer; and that a model may take to be loaded, by
            default ten minutes. Kept by worker processes.
        memory_limit: such as `8GiB`, what a worker process may take besides what it starts with.
        in_process: run a user's code in this process, for debugging: it can then end or hang it.
        executor: what does the work: `here`, `processes`, `dask` (a local cluster),
            `dask://HOST:PORT` or another that is registered, by name; or a
            `concurrent.futures.Executor` or `distributed.Client`. By default as `workers` says;
            changes no result. `here` is `in_process` for all code.
        device: where attacks climb, and where the deployed program predicts unless `judge` says
            otherwise: `cpu`, `cuda`, `cuda:N` or `mps`. Part of the key of results, as `judge` is.
        judge: where the deployed program predicts: what is judged and certified is the program that
            runs there.
        log_json: file to continue with one JSON event per unit of work, see docs/scale.md.

    Returns:
        The attack's row: robust accuracy with its interval, errors, rejected proposals.

    Raises:
        UsageError: an argument is not usable, the attack does not apply, or the model fails on
            every image.
        OperationalError: the model's process ends, takes too long or too much memory on every
            image.

    Example:
        >>> attack("digits/resnet", "Linf", "1/255", "fgsm", samples=8, workers=1)
        <fgsm at ℓ∞ 1/255: 100.0% left (63.1% to 100.0%) of 8 images>

        A module and images of one's own:

        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        >>> images, labels = torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)
        >>> attack(module, "Linf", 0.1, "fgsm", data=(images, labels)).subset
        8
    """
    threat, log_json = ThreatModel.parse(norm, eps), event_file(log_json)
    in_process = in_process or executor == HERE
    placement = inputs.placement(device, judge)
    limits = Limits.of(unit_timeout, memory_limit, in_process)
    workers = _processes(workers, in_process, executor, placement, memory_limit)
    suite = _single(
        model,
        data,
        samples,
        seed,
        threats=[{"norm": threat.norm, "eps": [threat.eps]}],
        attacks=[{**(settings or {}), "kind": attack}],
    )
    suite = _ready(suite, data_dir, data is not None)
    with Crew(suite, workers, data_dir, limits, executor, placement) as crew:
        kept = InMemory()
        refusals = [job.refusal for job in crew.plan.jobs if job.refusal is not None]
        if refusals:
            raise UsageError(f"expected an attack for {threat}, got {attack}: {refusals[0]}")
        run_plan(crew, kept, _DEFAULT_BATCH, quiet, log_json)
        entry = summarise(Schedule(crew.plan, kept), environment(placement)).models[0]
    _require_answers(model, entry.failures, entry.clean.total, kept.ended)
    return entry.attacks[0]


# The name of what gave a radius of 0 where nothing applies.
NO_CERTIFICATE = "none"


@dataclass(frozen=True)
class CertifiedSample:
    """The best radius of one image.

    Attributes:
        index: of the image in its data set.
        label: true class.
        prediction: of the deployed model.
        radius: the largest radius of kind `certified`, else of kind `probabilistic`, else of kind
            `estimate`; 0 where nothing applies.
        kind: what the radius claims; None where nothing applies.
        certificate: which certificate gave it, `none` where nothing applies.
        reason: what limits it.

    Example:
        >>> CertifiedSample(0, 3, 3, 0.5, Kind.CERTIFIED, "program", "").radius
        0.5
    """

    index: int
    label: int
    prediction: int
    radius: float
    kind: Kind | None
    certificate: str
    reason: str


class CertifiedSamples(Shown, list[CertifiedSample]):
    """The best radius of each image, in the order drawn with the seed; a list that shows itself.

    Example:
        >>> CertifiedSamples([CertifiedSample(0, 3, 3, 0.5, Kind.CERTIFIED, "program", "")])
        <CertifiedSamples of 1 images: 1 certified, largest radius 0.5>
    """

    def in_short(self) -> str:
        """See `Shown`."""
        proved = [row.radius for row in self if row.kind is Kind.CERTIFIED and row.radius > 0]
        largest = f", largest radius {max(proved):.4g}" if proved else ""
        return f"CertifiedSamples of {len(self)} images: {len(proved)} certified{largest}"

    def rows_shown(self) -> list[dict[str, object]]:
        """See `Shown`: a row per image."""
        return [vars(row) | {"kind": row.kind and str(row.kind)} for row in self]

    def plot(self, axes: Any = None) -> Any:
        """Draw certified accuracy over eps; `axes` are matplotlib's, of a new figure by default."""
        drawn = axes_to_draw_on(axes)
        right = [row for row in self if row.kind is Kind.CERTIFIED and row.label == row.prediction]
        drawn.plot(*steps([row.radius for row in right], len(self)))
        drawn.set(xlabel="eps", ylabel="certified accuracy", ylim=(-0.02, 1.02))
        return drawn


@takes_objects
def certify(
    model: str,
    norm: str = "L2",
    certificate: str | None = None,
    *,
    samples: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    audit: int = 4,
    quiet: bool = True,
    unit_timeout: float | None = None,
    memory_limit: str | None = None,
    in_process: bool = False,
    executor: object = None,
    device: str | None = None,
    judge: str | None = None,
    log_json: Path | None = None,
) -> CertifiedSamples:
    """Certify one model, by default with all that apply, and keep the best radius per image.

    Args:
        model: zoo name, folder, `package.module:factory`, or a `torch.nn.Module`.
        norm: `Linf` or `L2`.
        certificate: the one to run; by default every one that draws no random numbers.
        samples: how many images, all by default.
        data: data set, by default the one the model was trained on; or images themselves:
            `(images, labels)`, a `torch.utils.data.Dataset` or an `ImageSet`.
        data_dir: folder with the official image files.
        seed: of the order of the images, and of the noise of `smoothing`.
        workers: processes, by default one per core; changes no result.
        audit: how many of the certified images are attacked inside their radii, twice: drawn at
            random, and those with the largest radii.
        quiet: tell nothing of progress on standard error: no bar, no lines.
        unit_timeout: seconds that one unit of work may take, by default an hour, or fifty times the
            slowest unit so far if that is longer; and that a model may take to be loaded, by
            default ten minutes. Kept by worker processes.
        memory_limit: such as `8GiB`, what a worker process may take besides what it starts with.
        in_process: run a user's code in this process, for debugging: it can then end or hang it.
        executor: what does the work: `here`, `processes`, `dask` (a local cluster),
            `dask://HOST:PORT` or another that is registered, by name; or a
            `concurrent.futures.Executor` or `distributed.Client`. By default as `workers` says;
            changes no result. `here` is `in_process` for all code.
        device: where attacks climb, and where the deployed program predicts unless `judge` says
            otherwise: `cpu`, `cuda`, `cuda:N` or `mps`. Part of the key of results, as `judge` is.
        judge: where the deployed program predicts: what is judged and certified is the program that
            runs there.
        log_json: file to continue with one JSON event per unit of work, see docs/scale.md.

    Returns:
        One row per image, in the order drawn with `seed`.

    Raises:
        UsageError: an argument is not usable, the named certificate refuses the model, or the
            model fails on every image.
        OperationalError: the model's process ends, takes too long or too much memory on every
            image.
        SoundnessError: the audit broke a certificate, which is a defect of this package.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2, bias=False))
        >>> module[1].weight.data = torch.eye(2).repeat(1, 2)
        >>> images = torch.tensor([0.75, 0.25, 0.75, 0.25]).view(1, 1, 2, 2)
        >>> rows = certify(module, "L2", "lipschitz-margin", data=(images, torch.tensor([0])))
        >>> rows
        <CertifiedSamples of 1 images: 1 certified, largest radius 0.5>
        >>> rows[0].certificate
        'lipschitz-margin'
    """
    parsed = Norm.parse(norm)
    count = inputs.count("a number of audited images", audit)
    log_json = event_file(log_json)
    in_process = in_process or executor == HERE
    placement = inputs.placement(device, judge)
    limits = Limits.of(unit_timeout, memory_limit, in_process)
    workers = _processes(workers, in_process, executor, placement, memory_limit)
    suite = _single(
        model,
        data,
        samples,
        seed,
        threats=[{"norm": parsed, "eps": [1.0]}],
        certificates=routine() if certificate is None else [certificate],
        audit=AuditConfig(samples=count, largest=count),
    )
    suite = _ready(suite, data_dir, data is not None)
    with Crew(suite, workers, data_dir, limits, executor, placement) as crew:
        kept = InMemory()
        refusals = [job.refusal for job in crew.plan.jobs if job.refusal is not None]
        if certificate is not None and refusals:
            raise UsageError(
                f"expected a certificate for {model}, got {certificate}: {refusals[0]}; choose "
                "another"
            )
        run_plan(crew, kept, _DEFAULT_BATCH, quiet, log_json)
        reader = Reader(Schedule(crew.plan, kept))
        records = reader.records(0)
        violations = confront(reader, [records]).violations
    _require_answers(model, failures(records), len(records), kept.ended)
    if violations:
        raise SoundnessError("; ".join(map(str, violations)))
    return CertifiedSamples(_certified_sample(record, parsed) for record in records)


def certified_accuracy(
    rows: Sequence[CertifiedSample], eps: float, kind: Kind = Kind.CERTIFIED
) -> Proportion:
    """Share of images whose radius exceeds eps; radii of other kinds do not count.

    Example:
        >>> rows = [CertifiedSample(0, 3, 3, 0.5, Kind.CERTIFIED, "program", "")]
        >>> certified_accuracy(rows, 0.25).value, certified_accuracy(rows, 0.5).value
        (1.0, 0.0)
    """
    proved = sum(row.kind is kind and row.radius > eps for row in rows)
    return Proportion.of(proved, len(rows))


@dataclass(frozen=True)
class Inspection:
    """What is known of the program that predicts with a model.

    Attributes:
        operations: how many there are of each name; empty where it cannot be recorded.
        refusal: why it cannot be recorded or bounded; None where it can.
        cut: name and size of the narrowest value that all later ones know the image by, if any.
        certificates: why each certificate refuses it, in each norm; None where it applies.

    Example:
        >>> Inspection({"mm": 1}, None, None, {}).operations
        {'mm': 1}
    """

    operations: dict[str, int]
    refusal: str | None
    cut: tuple[str, int] | None
    certificates: dict[str, dict[Norm, str | None]]


@takes_objects
def inspect(
    model: str,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    unit_timeout: float | None = None,
    memory_limit: str | None = None,
    in_process: bool = False,
    device: str | None = None,
) -> Inspection:
    """Record the program that predicts with a model, and ask each certificate what it says of it.

    Args:
        model: zoo name, folder, `package.module:factory`, or a `torch.nn.Module`.
        data: data set whose images it takes, by default the one the model was trained on.
        data_dir: folder with the official image files.
        unit_timeout: seconds that this may take in a process of its own, ten minutes by default.
        memory_limit: such as `8GiB`, what that process may take besides what it starts with.
        in_process: run a user's code in this process, for debugging: it can then end or hang it.
        device: where the program would predict, of which certificates speak; the CPU by default.

    Raises:
        UsageError: the model or the data are not usable.
        OperationalError: the model ends its process, or takes too long or too much memory.

    Example:
        >>> inspect("digits/resnet").operations["relu"]
        5
    """
    limits = Limits.of(unit_timeout, memory_limit, in_process)
    placement = inputs.placement(device, None)
    if data is not None:
        require_source(data, data_dir)
    if in_process or not (is_factory(model) or limits.asked_for):
        return _inspect(model, data, data_dir, placement)
    return call_alone(model, limits, _inspect, model, data, data_dir, placement)


@takes_objects
def doctor(
    model: str,
    *,
    data: str | None = None,
    suite: str | Suite = "digits-quick",
    samples: int = 64,
    data_dir: Path | None = None,
    unit_timeout: float | None = None,
    memory_limit: str | None = None,
    in_process: bool = False,
    device: str | None = None,
) -> Diagnosis:
    """Look for what goes wrong in practice between a model and its images.

    Args:
        model: zoo name, folder, `package.module:factory`, or a `torch.nn.Module`.
        data: data set whose images it takes, by default the one the model was trained on.
        suite: a bundled suite's name, a TOML file, or a `Suite`, of which the cost is told.
        samples: how many images are looked at, at most.
        data_dir: folder with the official image files.
        unit_timeout: seconds that this may take in a process of its own, ten minutes by default.
        memory_limit: such as `8GiB`, what that process may take besides what it starts with.
        in_process: run a user's code in this process, for debugging: it can then end or hang it.
        device: where the model is looked at, the CPU by default.

    Returns:
        What was found, each with the line of code that mends it, and the cost of the suite.

    Raises:
        UsageError: the model or the data cannot be loaded.
        OperationalError: the model ends its process, or takes too long or too much memory.

    Example:
        >>> diagnosis = doctor("digits/resnet", samples=16)
        >>> diagnosis.healthy, diagnosis.findings
        (True, [])
    """
    limits = Limits.of(unit_timeout, memory_limit, in_process)
    inputs.count("samples", samples)
    parsed = load_suite(suite) if isinstance(suite, str) else suite
    placement = inputs.placement(device, None)
    source = require_known(data) if data is not None else _data_of(model)
    require_source(source, data_dir)
    what = (model, source, parsed, samples, data_dir, placement)
    if in_process or not (is_factory(model) or limits.asked_for):
        return _examine(*what)
    return call_alone(model, limits, _examine, *what)


def _examine(
    model: str, data: str, suite: Suite, samples: int, data_dir: Path | None, placement: Placement
) -> Diagnosis:
    images, loaded = load_images(data, "test", data_dir), load_model(model)
    loaded.module.to(placement.device)
    with arithmetic_on(placement):
        return examine(loaded, images, suite, samples, placement.device)


def _inspect(
    model: str, data: str | None, data_dir: Path | None, placement: Placement
) -> Inspection:
    loaded = load_model(model)
    shape = (
        loaded.recipe.data.shape
        if loaded.recipe is not None and data is None
        else load_images(data or _data_of(model), "test", data_dir).shape
    )
    operations: dict[str, int] = {}
    refusal, cut = None, None
    try:
        program = record(loaded.module, shape)
        operations = dict(program.kinds.most_common())
        network = Network(program)
        if network.cut is not None:
            node = network.node(network.cut)
            cut = node.name, node.size
    except Refusal as refused:
        refusal = str(refused)
    module = loaded.module.to(placement.judge)
    with arithmetic_on(placement):
        certificates = {
            name: {norm: certificate.refusal(module, norm) for norm in Norm}
            for name, certificate in CERTIFICATES.items()
        }
    if refusal is not None:
        certificates[ProgramCertificate.name] = dict.fromkeys(Norm, refusal)
    return Inspection(operations, refusal, cut, certificates)


@dataclass(frozen=True)
class Exported:
    """A model and a property of it as files for other verifiers.

    Attributes:
        files: `model.onnx`, `sample-I.vnnlib` and `instances.csv`, which names both.
        label: true class of the image.
        prediction: class of the deployed model, of which the property speaks.
        certificate: which certificate of this package proves the property; None where none that
            is tried does.
        radius: the largest radius that it proves; 0 where none does.

    Example:
        >>> Exported([Path("model.onnx")], 3, 3, "program", 0.1).radius
        0.1
    """

    files: list[Path]
    label: int
    prediction: int
    certificate: str | None
    radius: float


@takes_objects
def export(
    model: str,
    sample: int,
    eps: str | float,
    out: Path,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    certificate: str | None = None,
    seconds: int = 300,
    device: str | None = None,
) -> Exported:
    """Write a model as ONNX and the property that an image keeps its class within eps, in l-inf.

    The ONNX file is the program that certificates bound, solver steps unrolled and normalisation
    inside; the property is in VNN-LIB, where *unsat* is the proof.

    Args:
        model: zoo name, folder, `package.module:factory` or an ONNX file.
        sample: index of the image in the data set.
        eps: radius in pixel units, a number or a fraction such as `8/255`.
        out: folder to write to; nothing is written over that is not such a file.
        data: data set, by default the one the model was trained on; or images themselves:
            `(images, labels)`, a `torch.utils.data.Dataset` or an `ImageSet`.
        data_dir: folder with the official image files.
        certificate: that is to prove the property; by default all that draw no random numbers.
        seconds: that `instances.csv` gives a verifier.
        device: where the deployed program predicts and is certified, the CPU by default; the ONNX
            file is the same.

    Raises:
        UsageError: an argument is not usable, the program cannot be recorded or exported, or the
            optional packages are missing.

    Example:
        >>> export("digits/resnet", 1000, 0.1, Path("out"))
        Traceback (most recent call last):
        robustness.errors.UsageError: expected a sample from 0 to 598 of digits, got 1000
    """
    threat = ThreatModel.parse("Linf", eps)
    source = data if data is not None else _data_of(model)
    names = routine() if certificate is None else [CERTIFICATES.require(certificate).name]
    inputs.count("seconds", seconds)
    placement = inputs.placement(device, None)
    folder = inputs.folder_to_write(out)
    for name, mark in _EXPORTED.items():
        require_own(folder / name.format(sample=sample), mark)
    require_source(source, data_dir)
    images = load_images(source, "test", data_dir)
    if not 0 <= sample < len(images):
        raise UsageError(
            f"expected a sample from 0 to {len(images) - 1} of {images.name}, got {sample}"
        )
    loaded = load_model(model)
    image, label = images.images[sample : sample + 1], images.labels[sample : sample + 1]
    try:
        program = record(loaded.module, images.shape)
    except Refusal as refused:
        raise UsageError(
            f"expected a model whose program can be recorded, got {model}: {refused}"
        ) from None
    # The recorded program keeps the weights that it has.
    deployed = copy.deepcopy(loaded.module).to(placement.device)
    with reproducible_arithmetic(), arithmetic_on(placement), torch.no_grad():
        prediction = int(deployed(*beside(deployed, image)).argmax())
        proved = {
            name: found[0].radius
            for name in names
            if CERTIFICATES[name].refusal(deployed, threat.norm) is None
            for found in [CERTIFICATES[name].certify(deployed, image, label, threat.norm)]
            if found[0].kind is Kind.CERTIFIED
        }
    best = max(proved, key=proved.__getitem__, default=None)
    radius = proved[best] if best is not None else 0.0
    by = best if radius > threat.eps else None
    claim = f"{by} proves radius {radius:.6g}" if by else "no certificate that was tried proves it"
    words = [
        f"{loaded.name}, SHA-256 {loaded.digest}, on image {sample} of {images.name} (test)",
        f"class {prediction} (true class {int(label)}) at every image within {threat}",
        f"{PRODUCER}: {claim}",
    ]
    text = vnnlib(image[0], prediction, images.classes, threat.eps, words)
    content = onnx_bytes(program)
    _make(folder)
    files = [folder / name.format(sample=sample) for name in _EXPORTED]
    model_file, property_file, instances = files
    write_file(model_file, content)
    write_file(property_file, text.encode())
    write_file(instances, f"{model_file.name},{property_file.name},{seconds}\n".encode())
    return Exported(files, int(label), prediction, by, radius)


# What is written by `export`, and what tells it from other files of these names.
_EXPORTED = {
    "model.onnx": PRODUCER,
    "sample-{sample}.vnnlib": PRODUCER,
    "instances.csv": "model.onnx,sample-",
}


def _certified_sample(sample: SampleRecord, norm: Norm) -> CertifiedSample:
    claims = sample.claims.get(norm, [])
    nothing = CertifiedRadius(
        0.0, norm, Kind.CERTIFIED, NO_CERTIFICATE, "no certificate applies", Limit.OTHER
    )
    # The strongest kind of claim that says anything; where none does, what was tried first.
    best = next((c for c in (sample.best(norm, kind) for kind in Kind) if c is not None), None)
    chosen = best or next(iter(claims), nothing)
    return CertifiedSample(
        sample.index,
        sample.label,
        -1 if sample.prediction is None else sample.prediction,
        chosen.radius,
        chosen.kind if claims else None,
        chosen.certificate,
        chosen.reason,
    )


def _single(model: str, data: str | None, samples: int | None, seed: int, **parts: Any) -> Suite:
    """A suite of one model, on the data set it was trained on unless another is named."""
    count: int | Literal["all"] = "all" if samples is None else inputs.count("samples", samples)
    suite = _validated(
        Suite,
        {
            "name": "single",
            "data": data or "digits",  # until the rest is known to be in order
            "samples": count,
            "seed": seed,
            "models": [model],
            "decay": False,
            "flow": False,
        }
        | parts,
    )
    return suite if data else suite.changed(Changes(data=_data_of(model)))


def _data_of(model: str) -> str:
    trained_on = training_data(model)
    if trained_on is None:
        raise UsageError(
            f"expected --data NAME for the user's model {model}, got none; "
            "name a data set or an .npz file"
        )
    return trained_on


def _override(
    suite: Suite,
    *,
    samples: int | None,
    models: Sequence[str] | None,
    add: Sequence[str] | None,
    data: str | None,
    seed: int | None,
) -> Suite:
    if samples is not None:
        inputs.count("samples", samples)
    asked: dict[str, Any] = {"samples": samples, "data": data, "seed": seed}
    if models is not None:
        asked |= {"models": list(models), "added": []}  # instead of all that the suite names
    suite = suite.changed(_validated(Changes, asked))
    if add is None:
        return suite
    extended = suite.changed(_validated(Changes, {"added": [*suite.added, *add]}))
    known = suite.named()
    for name in extended.named().added:
        if name in known.models and name not in known.added:
            raise UsageError(
                f"expected models besides the suite's to add, got {name}, which is one of them; "
                "leave it out"
            )
    return extended


_Settings = TypeVar("_Settings", bound=Config)


def _validated(kind: type[_Settings], content: Mapping[str, Any]) -> _Settings:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UsageError(describe_validation(error)) from None


def _processes(
    workers: int | None,
    in_process: bool,
    executor: object,
    placement: Placement,
    memory_limit: str | None,
) -> int:
    if not placement.on_cpu:
        return _one_process(workers, memory_limit)
    elsewhere = executor is not None and (not isinstance(executor, str) or "://" in executor)
    if not in_process and elsewhere:  # as many as there are
        return inputs.MOST_WORKERS if workers is None else inputs.count("workers", workers)
    if not in_process:
        return inputs.cores() if workers is None else inputs.workers(workers)
    if workers not in (None, 1):
        raise UsageError(f"expected one worker with --in-process, got {workers}; leave one out")
    return 1


def _one_process(workers: int | None, memory_limit: str | None) -> int:
    """One for a GPU, where several would share its memory and wait for each other.

    Raises:
        UsageError: more are asked for, or a limit of the address space, of which CUDA takes more
            than there is memory.
    """
    if workers not in (None, 1):
        raise UsageError(
            f"expected one worker with a --device or --judge that is not cpu, got {workers}; leave "
            "it out, and start one run for each GPU with --device cuda:N"
        )
    if memory_limit is not None:
        raise UsageError(
            "expected no memory limit with a --device or --judge that is not cpu, got "
            f"{memory_limit}; leave it out"
        )
    return 1


def _require_answers(model: str, failures: dict[str, int], samples: int, ended: bool) -> None:
    """Insist that something was measured: that a model did not fail on every image.

    Raises:
        UsageError: it did, by what its code raises.
        OperationalError: it did, by ending its process, or by taking too long or too much memory.
    """
    reason = next(iter(failures), NOT_FINITE)
    if sum(failures.values()) < samples or NOT_FINITE in reason:  # logits that are data
        return
    raise (OperationalError if ended else UsageError)(
        f"expected {model} to answer, got a failure on each of {samples} images, most often: "
        f"{reason}; mend it, or debug it with --in-process"
    )


def _ready(suite: Suite, data_dir: Path | None, any_data: bool) -> Suite:
    """A suite with its models by name; `any_data` lets models of another data set pass."""
    require_source(suite.data, data_dir)
    suite = suite.named()
    for name in suite.models:
        trained_on = training_data(name)
        if not any_data and suite.data in DATASETS and trained_on not in (None, suite.data):
            raise UsageError(
                f"expected a model of {suite.data}, got {name}, which was trained on "
                f"{trained_on}; give --data {suite.data} if that is meant"
            )
    return suite


def _made(folder: Path) -> Path:
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise os_failure(
            error, f"a folder that can be written to at {folder}", "choose another --out"
        ) from None


def _with_history(
    leaderboard: Leaderboard, wall: float, store: Store, schedule: Schedule
) -> Leaderboard:
    """With what its store tells of the starts that computed its units."""
    keys = keys_of(schedule)
    timings = leaderboard.timings | {"wall seconds of this run": round(wall, 2)}
    starts = store.wall_seconds(leaderboard.suite.name, keys)
    if len(starts) > 1:
        what = f"wall seconds of all {len(starts)} starts on these results"
        timings |= {what: round(sum(starts), 2)}
    by = store.commits(keys)
    return leaderboard.model_copy(update={"timings": timings, "computed_by": by})


def card(
    model: str,
    *,
    data_dir: Path | None = None,
    remeasure: bool = False,
    proving: bool = False,
    audited: int = 100,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> tuple[Path, Measurement]:
    """Measure a zoo entry on its whole test set and write its card beside its recipe.

    What is known of its robustness is read from the leaderboards in `reports/` next to the zoo.

    Args:
        model: a zoo name, or a folder with a recipe and its weights.
        data_dir: folder with the official image files; None downloads them.
        remeasure: measure again even if the stored facts are of these very weights.
        proving: certify the whole test set too, where a certificate applies, and audit it.
        audited: certified images that are attacked inside their radii, in each norm.
        device: where the entry predicts and is attacked; the CPU by default.
        workers: processes that certify, by default one per core; changes no result.
        quiet: tell nothing of progress on standard error.

    Returns:
        The card's file, and the facts.

    Raises:
        UsageError: there is no such entry, it has no weights, or its images cannot be read.
        SoundnessError: the audit broke a certificate, which is a defect of this package.

    Example:
        >>> import shutil
        >>> folder = shutil.copytree(find_entry("digits/resnet"), "resnet")
        >>> file, facts = card("resnet")
        >>> file.as_posix(), facts.clean.total
        ('resnet/CARD.md', 599)
    """
    count = inputs.count("a number of audited images", audited)
    placement = inputs.placement(device, None)
    workers = _processes(workers, False, None, placement, None)
    folder = inputs.folder_to_write(find_entry(model))
    require_source(read_recipe(folder).data.name, data_dir)
    for name, mark in _OF_A_CARD.items():
        require_own(folder / name, mark)
    loaded = load_model(str(folder))
    assert loaded.recipe is not None  # since it was found by its folder
    loaded.module.to(placement.judge)
    file = folder / MEASURED_FILE
    facts = None if remeasure else known_measurement(file)
    if facts is None or facts.digest != loaded.digest:
        with reproducible_arithmetic(), arithmetic_on(placement):
            facts = measure(loaded, load_images(loaded.recipe.data.name, "test", data_dir))
    # Each file as soon as it is known: what took minutes is not lost to what comes after it.
    _write(file, facts.model_dump_json(indent=1) + "\n")
    name = entry_name(folder)
    if proving:
        data = loaded.recipe.data.name
        found = prove(
            replace(loaded, name=name),
            load_suite(data).threats,
            count,
            model=str(folder),
            data=data,
            data_dir=data_dir,
            workers=workers,
            placement=placement,
            quiet=quiet,
        )
        if found is not None:
            _write(folder / PROVED_FILE, found.model_dump_json(indent=1) + "\n")
            forget_units(folder)
    proofs = read_proofs(folder / PROVED_FILE)
    _write(
        folder / CARD_FILE,
        card_text(name, loaded.recipe, facts, committed_leaderboards(), proofs),
    )
    return folder / CARD_FILE, facts


def _write(file: Path, text: str) -> None:
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise os_failure(
            error,
            f"a folder to write the card to at {file.parent}",
            "copy the entry to where you may write",
        ) from None


def committed_leaderboards() -> dict[str, Leaderboard]:
    """The leaderboards in `reports/` next to the zoo, by the folder they lie in.

    Example:
        >>> committed_leaderboards()["reports/digits"].suite.name
        'digits'
    """
    found = reports_in(zoo_folder().parent / "reports")
    return {f"reports/{name}": read_leaderboard(file) for name, file in found.items()}
