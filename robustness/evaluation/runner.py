"""Plans a suite, runs its missing units, here or in worker processes, and stores them.

First all jobs that depend on nothing but their images, then those that start from certified radii.

Every process computes with one thread: the number of threads changes the order of sums and so
the last bits of a result. Workers never touch the store.
"""

import copy
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn

from robustness.certificates import Certificate
from robustness.certificates.sharing import shared_work
from robustness.data import ImageSet, load_images
from robustness.errors import (
    DiedError,
    EndedError,
    Interruption,
    OperationalError,
    UsageError,
    is_exhausted,
    is_interruption,
)
from robustness.evaluation.backlog import Backlog, Task
from robustness.evaluation.environment import environment
from robustness.evaluation.executors import EXECUTORS, Executor, ExecutorKind, executor_kind
from robustness.evaluation.executors.here import NAME as HERE
from robustness.evaluation.executors.processes import NAME as PROCESSES
from robustness.evaluation.executors.processes import (
    Limits,
    Processes,
    begin_turn,
    faulty,
    unusable,
)
from robustness.evaluation.jobs import KINDS, Result, Work
from robustness.evaluation.jobs.base import failed_unit, run_unit, sources_of
from robustness.evaluation.kept import Keeping
from robustness.evaluation.plan import Job, Plan, Unit
from robustness.evaluation.planning import make_plan
from robustness.evaluation.progress import CostModel, Forecast, Watch
from robustness.evaluation.schedule import Schedule
from robustness.evaluation.shares import Share
from robustness.evaluation.suite import Suite
from robustness.identity import Structure, answers, fingerprint
from robustness.numerics.devices import ON_CPU, Placement, arithmetic_on
from robustness.registry import load_plugin
from robustness.terminal import remark
from robustness.zoo import (
    LoadedModel,
    PackedModel,
    absent_model,
    is_factory,
    load_model,
    pack_model,
    unpack_model,
)


@dataclass(frozen=True)
class Workbench:
    """What units are computed with; one per process.

    Attributes:
        plan: of all units.
        images: of its data set.
        models: of the plan, in its order, where they are judged.
        leashed: whether this is a process that is replaced when it has no memory left.
    """

    plan: Plan
    images: ImageSet
    models: list[LoadedModel]
    leashed: bool = False

    def run(self, task: Task) -> list[Result]:
        """Compute some units; what certificates of the same images share is computed once."""
        results: list[Result] = []
        for indices, work in groupby(task.work, key=lambda pair: pair[1].indices):
            chosen = torch.tensor(indices)
            images, labels = self.images.images[chosen], self.images.labels[chosen]
            with shared_work() as ledger:
                for job, unit in work:
                    todo, saved = self._work(job, unit, images, labels), ledger.saved
                    try:
                        result = run_unit(todo)
                    except BaseException as error:  # SystemExit too: it is a user's code that runs
                        if self._is_anothers(error) or self.models[job.model].recipe is not None:
                            raise
                        result = failed_unit(todo, error)
                    # What a job takes when it is run alone, whichever of them came first.
                    alone = result.seconds + ledger.saved - saved
                    results.append(replace(result, seconds=alone))
        for index in {job.model for job, _ in task.work}:
            self._require_unchanged(index)
        return results

    def _is_anothers(self, error: BaseException) -> bool:
        """Whether an error is not the model's, but the keyboard's or a process's to be replaced."""
        if self.leashed:
            return is_exhausted(error)
        return is_interruption(error)

    def identities(self) -> list[tuple[Structure, str | None]]:
        """What the models here are made of, and what they compute."""
        return [(m.structure, fingerprint(m.module, self.images.shape)) for m in self.models]

    def _require_unchanged(self, index: int) -> None:
        """Insist that a model still computes what it did when the run was planned.

        Raises:
            UsageError: it does not, so that nobody knows what the results at hand are of.
        """
        planned, module = self.plan.models[index], self.models[index].module
        known, shape = planned.fingerprint, self.images.shape
        # One that fails by now gives no other logits; its samples are errors.
        if known not in (None, fingerprint(module, shape)) and answers(module, shape):
            raise UsageError(
                f"expected {planned.name} to stay the same function, got other logits of the same "
                "images later in the run; the results at hand were not stored: let its logits "
                "depend on the image alone"
            )

    @cached_property
    def _certificates(self) -> list[dict[str, Certificate]]:
        """By name for each model: the same objects for all jobs, whose work they may share."""
        return [self.plan.suite.build_certificates(model.name) for model in self.models]

    @cached_property
    def _climbed(self) -> list[LoadedModel]:
        """The models on the device that is searched on."""
        device, judge = self.plan.placement.device, self.plan.placement.judge
        if device == judge:
            return self.models
        return [replace(m, module=copy.deepcopy(m.module).to(device)) for m in self.models]

    def _work(self, job: Job, unit: Unit, images: Tensor, labels: Tensor) -> Work:
        return Work(
            job,
            unit,
            self.plan.suite,
            self.models[job.model].module,
            images,
            labels,
            self._certificates[job.model],
            sources_of(self.plan.suite, self._climbed, job.model),
            self._climbed[job.model].module,
        )


def run_plan(
    crew: "Crew", kept: Keeping, batch_size: int, quiet: bool, log_json: Path | None = None
) -> int:
    """Compute every unit of the crew's plan that `kept` lacks, in the plan's two phases.

    Of a plan's share, those that are in it and what they start from.

    Args:
        crew: at work: it has planned.
        kept: where results are read and put.
        batch_size: images per task handed to a worker, in whole units; changes no result.
        quiet: tell nothing of progress.
        log_json: file to continue with an event per unit.

    Returns:
        The number of units computed.

    Raises:
        Interruption: Ctrl-C; it says what is kept.
        OperationalError: a worker died twice, or was too slow twice, at work on a zoo model.
    """
    plan = crew.plan
    schedule = Schedule(plan, kept)
    share = None if plan.share is None else Share(plan)
    early, late = ([job for job in plan.jobs if job.late is late] for late in (False, True))

    def missing(jobs: list[Job]) -> list[tuple[Job, Unit]]:
        work = schedule.missing(jobs)
        return work if share is None else share.wanted(work)

    def measured(job: Job) -> float | None:
        dear = KINDS[job.kind].is_dear(job)
        return costs.of_its_like(job, plan.models[job.model].name, dear)

    costs = CostModel()
    for job, name, units, seconds in kept.costs():
        costs.add(job, name, seconds, units)
    forecast = Forecast(costs, 2, crew.workers)
    work = missing(early)
    # What starts from certified radii is not known before the last of them is.
    expected = _expected(plan, late, share) if work else missing(late)
    for phase, ahead in enumerate((work, expected)):
        forecast.expect(phase, [(job, plan.models[job.model].name) for job, _ in ahead])
    with Watch(plan, forecast, quiet, log_json) as watch:
        try:
            for phase in range(2):
                work = missing(late) if phase else work
                watch.begin(phase, work)
                backlog = Backlog(schedule, work, batch_size, measured)
                for task, results in crew.run(backlog) if work else ():
                    for (job, unit), result in zip(task.work, results, strict=True):
                        kept.add(result, job, plan.models[job.model].name)
                        watch.unit(job, unit, result.seconds)
                        watch.spare(backlog.note(job, unit))
        except KeyboardInterrupt as stop:
            raise Interruption(watch.interruption(kept.path)) from stop
    return forecast.done()


def _expected(plan: Plan, jobs: list[Job], share: Share | None) -> list[tuple[Job, Unit]]:
    """Units of jobs that start from certified radii, in about the number that there will be.

    As if every image had a radius, where that decides which images a unit has.
    """
    found = []
    for job in jobs:
        if job.refusal is None:
            kind = KINDS[job.kind]
            radii = {} if kind.local else dict.fromkeys(plan.order[: plan.samples], 1.0)
            found += [(job, unit) for unit in kind.units(job, plan, radii)]
    return found if share is None else [pair for pair in found if share.owns(*pair)]


class Crew:
    """Plans a suite and does its tasks, in this process or in worker processes.

    No code of a user's runs in this process, unless that is asked for. Worker processes are started
    when they are needed, and replaced when they die.

    Args:
        suite: what is asked for, its models by their own names.
        workers: number of processes; changes no result.
        data_dir: folder with the official image files, for the workers to read again.
        limits: how users' code is held.
        executor: which does the tasks, see `executor_kind`; by default `here` with one worker or
            one task and no user's model, else `processes`.
        placement: the devices that are computed on.

    Attributes:
        plan: of the suite, once the crew is entered.
        images: of its data set, likewise.
    """

    plan: Plan
    images: ImageSet

    def __init__(
        self,
        suite: Suite,
        workers: int,
        data_dir: Path | None,
        limits: Limits,
        executor: object = None,
        placement: Placement = ON_CPU,
    ) -> None:
        self.placement, self._settings = placement, ExitStack()
        self.suite, self.workers, self.data_dir, self.limits = suite, workers, data_dir, limits
        self.kind = None if executor is None else executor_kind(executor)
        if self.kind is not None and self.kind.remote and limits.memory is not None:
            raise UsageError(
                f"expected no memory limit with the executor {self.kind.name}, got one; leave it "
                "out, and limit its workers where they are started"
            )
        users = any(map(is_factory, suite.models))
        self._leashed = not limits.in_process and (users or limits.asked_for)
        self._bench: Workbench | None = None
        self._structures: list[Structure] = []
        self._absent: dict[str, str] = {}
        self._died: set[str] = set()
        self._started: Executor | None = None
        self._asked = 0
        self._slowest = 0.0

    def __enter__(self) -> "Crew":
        """Load the models and plan, before anything is stored.

        Raises:
            UsageError: a model cannot be loaded, or does not fit the data set.
            OperationalError: no model's process lived to say what it is.
        """
        try:
            if self.kind is not None or self.workers > 1 or self._leashed:
                self._kind.open()
            self._settings.enter_context(arithmetic_on(self.placement))
            if self._leashed:
                self.plan, self._structures = self._planned_in_a_process()
                if self._kind.name != PROCESSES:
                    self._stop()
                self.images = load_images(self.suite.data, self.suite.split, self.data_dir)
            else:
                self._bench = _planned(self.suite, self.data_dir, {}, self.placement)
                self.plan, self.images = self._bench.plan, self._bench.images
                self._structures = [model.structure for model in self._bench.models]
        except BaseException:
            self.__exit__()
            raise
        for name, reason in self._absent.items():
            remark(f"{name} could not be loaded, its samples are errors: {reason}")
        return self

    def __exit__(self, *details: object) -> None:
        # On an interruption, units in flight are given up rather than waited for.
        self._stop()
        self._kind.close()
        self._settings.close()

    @property
    def _kind(self) -> ExecutorKind:
        """Of the executor that starts workers."""
        return self.kind or EXECUTORS[PROCESSES]

    def _planned_in_a_process(self) -> tuple[Plan, list[Structure]]:
        while True:
            processes = Processes(1, self.limits.memory)
            self._started, self._asked = processes, 1
            try:
                text, found = processes.call(
                    self.limits.loading,
                    _plan_in_worker,
                    self.suite,
                    self.data_dir,
                    self._absent,
                    self.placement,
                )
                return Plan.from_json(text, self.suite), found
            except DiedError as died:
                self._go_on_without(self.suite.models[processes.turn], died)
            except (UsageError, OperationalError):
                raise
            except Exception as error:
                name = self.suite.models[processes.turn]
                if not is_factory(name):
                    raise
                raise faulty(name, error) from error

    def _go_on_without(self, name: str, died: DiedError) -> None:
        """Take note that a process ended at a model; at the second time its model is left out.

        Raises:
            OperationalError: it is no user's, or there is no other.
        """
        self._stop()
        if isinstance(died, EndedError) and name not in self._died:
            self._died.add(name)
            return
        if not is_factory(name) or len(self._absent) + 1 == len(self.suite.models):
            raise unusable(name, died) from None
        self._absent[name] = str(died)

    def run(self, backlog: Backlog) -> Iterator[tuple[Task, list[Result]]]:
        """Do all tasks and give each back with its results, in the order they are done.

        Tasks that the caller adds at what is given back are done, too.
        """
        few = self.workers == 1 or len(backlog) <= 1
        by_default = self.kind is None and few and self._started is None
        here = by_default or (self.kind is not None and self.kind.name == HERE)
        if self._bench is not None and here:
            executor = EXECUTORS[HERE].start(1, None)
            while (task := backlog.take()) is not None:
                yield task, executor.result(executor.submit(self._bench.run, task))
            return
        pending: dict[Future[list[Result]], Task] = {}
        workers = 1 if few and not self._kind.remote else self.workers
        while len(backlog) or pending:
            try:
                executor = self._start(workers)
                # No more than are at work: if a process dies, one of these was its task.
                while len(pending) < min(workers, executor.count):
                    if (task := backlog.take()) is None:
                        break
                    try:
                        pending[executor.submit(_run_in_worker, task)] = task
                    except DiedError:
                        backlog.put_back(task)
                        raise
                for future in self._finished(executor, pending):
                    try:
                        results = executor.result(future)
                    except DiedError:
                        if not self._kind.isolates:
                            raise
                        task = pending.pop(future)
                        yield task, [self._alone(job, unit) for job, unit in task.work]
                        continue
                    self._slowest = max(self._slowest, *(r.seconds for r in results))
                    yield pending.pop(future), results
            except DiedError as died:
                self._stop()
                suspects = list(pending.values())
                pending.clear()
                if not suspects:
                    raise OperationalError(
                        f"expected worker processes with the models loaded, got: {died}; "
                        "run the same command again, with fewer --workers"
                    ) from None
                for task in suspects:
                    yield task, [self._alone(job, unit) for job, unit in task.work]

    def _finished(
        self, executor: Executor, pending: Mapping[Future[list[Result]], Task]
    ) -> set[Future[list[Result]]]:
        """Wait for a task; end all processes where none is done within the time limit.

        Raises:
            DiedError: none is.
        """
        limit = self.limits.unit(self._slowest)
        units = max(len(task.work) for task in pending.values())
        return executor.first(pending.keys(), limit * units, limit)

    def _alone(self, job: Job, unit: Unit) -> Result:
        """Do again, with no other at work, a unit that was at hand when a process died.

        Raises:
            OperationalError: it dies once more, and no user's code can be the reason.
        """
        try:
            return self._once(job, unit)
        except DiedError as again:
            died = DiedError(f"{again}, twice")
        name = self.suite.models[job.model]
        added = self.suite.added
        users = [m for m in self.suite.models if is_factory(m) and m not in added]
        if not is_factory(name) and job.sources and users:
            # One of these was asked for adversarial images: it has none that can be tried.
            kept, self._absent = self._absent, dict.fromkeys(users, str(died))
            try:
                return self._once(job, unit)
            except DiedError as without:
                died = without
            finally:
                self._stop()
                self._absent = kept
        if not is_factory(name):
            raise OperationalError(
                f"expected {job} of {name} to be computed, got: {died}; allow it more memory or "
                "time, or run the same command again with fewer --workers"
            ) from None
        chosen = torch.tensor(unit.indices)
        images, labels = self.images.images[chosen], self.images.labels[chosen]
        return failed_unit(Work(job, unit, self.suite, nn.Module(), images, labels), died)

    def _once(self, job: Job, unit: Unit) -> Result:
        try:
            workers = self.workers if self._kind.remote else 1
            executor, task = self._start(workers), Task([(job, unit)])
            future = executor.submit(_run_in_worker, task)
            self._finished(executor, {future: task})
            return executor.result(future)[0]
        except DiedError:
            if not self._kind.isolates:
                self._stop()
            raise

    def _start(self, workers: int) -> Executor:
        """So many workers that live, with the models loaded."""
        if self._started is not None and self._asked < workers:
            self._stop()
        if self._started is None:
            self._asked = workers
            self._started = self._kind.start(workers, self.limits.memory)
            self._load(self._started)
        return self._started

    def _stop(self) -> None:
        if self._started is not None:
            self._started.stop()
            self._started = None

    def _load(self, executor: Executor) -> None:
        """Let every worker load the models, and insist that they are those that were planned.

        Raises:
            UsageError: a model is another function there, or cannot be loaded any more.
            DiedError: a process died.
        """
        seconds = self.limits.loading * len(self.suite.models)
        plan = self.plan.to_json()
        if self._kind.remote:
            models = [pack_model(n) for n in self.suite.models if n not in self._absent]
            packed = _Packed(
                plan, self.images.packed(), models, self._absent, self._structures, environment()
            )
            executor.on_all(seconds, _load_packed, packed)
            return
        for found in executor.on_all(seconds, _load_in_worker, plan, self.data_dir, self._absent):
            _require_planned(self.plan, self._structures, found, self._absent)


@dataclass(frozen=True)
class _Packed:
    """What a worker needs that shares no files with this process.

    Attributes:
        plan: as JSON.
        images: of its data set.
        models: of the plan, but for those of `absent`.
        absent: why models could not be loaded.
        structures: what the models are made of here.
        versions: of all that results may depend on, here.
    """

    plan: str
    images: bytes
    models: list[PackedModel]
    absent: Mapping[str, str]
    structures: list[Structure]
    versions: Mapping[str, str]


def _require_planned(
    plan: Plan,
    structures: list[Structure],
    found: list[tuple[Structure, str | None]],
    absent: Mapping[str, str],
) -> None:
    """Insist that the models of a worker are those that were planned."""
    for info, expected, (structure, seen) in zip(plan.models, structures, found, strict=True):
        if info.name in absent:
            continue
        difference = expected.difference(structure)
        if difference is None and seen != info.fingerprint:
            difference = "what it computes"
        if difference is not None:
            raise UsageError(
                f"{info.name}: the model changed between its loading for the plan and in a "
                f"worker process ({difference[:80]} differs); nothing was stored: see to "
                "it that it stays the same during a run"
            )


_bench: Workbench | None = None
# What a worker process computes in until its end.
_arithmetic = ExitStack()


def _planned(
    suite: Suite, data_dir: Path | None, absent: Mapping[str, str], placement: Placement
) -> Workbench:
    # First, so that no model's time is spent on it.
    images = load_images(suite.data, suite.split, data_dir)
    models = _loaded(suite.models, absent, placement)
    return Workbench(make_plan(suite, images, models, placement), images, models)


def _loaded(names: list[str], absent: Mapping[str, str], placement: Placement) -> list[LoadedModel]:
    models = []
    for index, name in enumerate(names):
        begin_turn(index)
        loaded = absent_model(name, absent[name]) if name in absent else load_model(name)
        loaded.module.to(placement.judge)
        models.append(loaded)
    return models


def _plan_in_worker(
    suite: Suite, data_dir: Path | None, absent: Mapping[str, str], placement: Placement
) -> tuple[str, list[Structure]]:
    """Plan, keep what units are computed with, and tell what the models are made of."""
    global _bench
    _arithmetic.enter_context(arithmetic_on(placement))
    _bench = replace(_planned(suite, data_dir, absent, placement), leashed=True)
    return _bench.plan.to_json(), [model.structure for model in _bench.models]


def _load_in_worker(
    plan: str, data_dir: Path | None, absent: Mapping[str, str]
) -> list[tuple[Structure, str | None]]:
    """Load what units are computed with, and tell what it is."""
    global _bench
    parsed = Plan.from_json(plan)
    images = load_images(parsed.suite.data, parsed.suite.split, data_dir)
    _arithmetic.enter_context(arithmetic_on(parsed.placement))
    models = _loaded(parsed.suite.models, absent, parsed.placement)
    _bench = Workbench(parsed, images, models, leashed=True)
    return _bench.identities()


def _load_packed(packed: _Packed) -> None:
    """Load what units are computed with from what was sent, and insist that it is what it was.

    Raises:
        UsageError: the worker has other versions, no plugin, other images or other models.
    """
    global _bench
    require_versions(packed.versions)
    parsed = Plan.from_json(packed.plan)
    images = ImageSet.unpacked(packed.images)
    if images.digest != parsed.data_digest:
        raise UsageError(
            f"{images.name}: expected the images of the plan, got others in a worker; run it again"
        )
    by_name, models = {model.name: model for model in packed.models}, []
    for name in parsed.suite.models:
        if name in packed.absent:
            models.append(absent_model(name, packed.absent[name]))
        else:
            folder = tempfile.TemporaryDirectory(prefix="robustness-")
            _folders.append(folder)
            models.append(unpack_model(by_name[name], Path(folder.name)))
    _arithmetic.enter_context(arithmetic_on(parsed.placement))
    for model in models:
        model.module.to(parsed.placement.judge)
    bench = Workbench(parsed, images, models, leashed=True)
    _require_planned(parsed, packed.structures, bench.identities(), packed.absent)
    _bench = bench


# Of the models of this worker: a user's source is read again when it is described.
_folders: list[tempfile.TemporaryDirectory[str]] = []


def require_versions(expected: Mapping[str, str]) -> None:
    """Insist that results depend here on the versions that they depend on elsewhere.

    Raises:
        UsageError: another version, or a plugin that cannot be imported.
    """
    for name in expected:
        if name.startswith("plugin "):
            load_plugin(name.removeprefix("plugin "), here=False)
    here = environment()
    for name, version in expected.items():
        # A checkout's commit is not known where the package was installed from a wheel.
        if here.get(name, version if name == "commit" else "none") != version:
            raise UsageError(
                f"expected {name} {version[:60]} in a worker, as here, got "
                f"{here.get(name, 'none')[:60]}; install the same versions on both"
            )


def _run_in_worker(task: Task) -> list[Result]:
    assert _bench is not None
    return _bench.run(task)
