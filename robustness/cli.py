"""The command line: parses, calls, prints.

What a command raises becomes an exit code and one line in `boundary.run`.
"""

import tomllib
from collections import Counter
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from robustness import api, doors, inputs
from robustness.boundary import log_beside, say_of_interruption
from robustness.boundary import run as run
from robustness.certificates import Kind
from robustness.claims.models import STUDIES
from robustness.claims.report import write_claims
from robustness.claims.run import measure_claims
from robustness.claims.verdicts import claims as decide
from robustness.errors import ExitCode, Interruption, UsageError
from robustness.evaluation.suite import load_suite
from robustness.files import require_own, write_file
from robustness.recipe import Recipe
from robustness.reporting import gate, history
from robustness.reporting.compare import compare, render, told
from robustness.reporting.comparison_page import comparison_page
from robustness.reporting.history_page import history_page
from robustness.reporting.html import require_page
from robustness.reporting.regression import Verdict
from robustness.reporting.spreadsheet import csv_of
from robustness.reporting.tables import summary_table
from robustness.reporting.words import percent, plural
from robustness.reproduction.run import Outcome, reproduce
from robustness.results.leaderboard import STORE_FILE, Leaderboard, read_leaderboard
from robustness.starting import Template, start
from robustness.terminal import answers, remark, remarks
from robustness.threat import Norm, ThreatModel
from robustness.training.loop import train
from robustness.zoo import (
    WEIGHTS_FILE,
    find_entry,
    has_weights,
    training_data,
    zoo_names,
    zoo_recipe,
)

_EXIT_CODES = (
    "Exit codes: 0 done; 1 the answer is no (a regression, a certificate that was broken, findings "
    "of `doctor`); "
    "2 bad input or usage; 3 the machine failed (disk, memory, lock, damaged store, dead worker, "
    "time limit); 70 a defect of this package; 130 interrupted. What failed is said in one line; "
    "--debug, anywhere on the command line, prints the traceback too."
)


class _Group(TyperGroup):
    """All commands: no word of a command line is empty, endless or holds control characters.

    Plugins that it names are imported first, and all commands know the option that does so.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for command in (self, *self.commands.values()):
            command.params.append(doors.plugin_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse what no option or argument can be, then parse."""
        place = ""
        for word in args:
            name, is_given, value = word.partition("=")
            option = word.startswith("--")
            try:
                inputs.text(value if option and is_given else word)
            except UsageError as error:
                place = name if option else place
                raise UsageError(f"{place}: {error}" if place else str(error)) from None
            place = word if option else ""
        doors.load_named(args)
        if "--help" in args:
            self._say_what_there_is()
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; keep the words of an interruption, which typer leaves out."""
        try:
            return super().invoke(ctx)
        except Interruption as stop:
            say_of_interruption(str(stop))
            raise

    def _say_what_there_is(self) -> None:
        for name, command in self.commands.items():
            for option in command.params:
                if (said := doors.named(name, option.name or "")) is not None:
                    vars(option)["help"] = said
            command.epilog = "\n\n".join(doors.listing(name)) or command.epilog


app = typer.Typer(
    cls=_Group,
    name="robustness",
    help="Adversarial robustness of neural ODEs: attack, certify, and report the bracket.",
    epilog=_EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_RADII = ("index", "label", "prediction", "radius", "kind", "certificate")
# Of the radii that `certify` prints accuracies at.
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Folder with the official files (mnist/, fashion-mnist/, cifar-10-batches-bin/, "
        "cifar-100-binary/). Downloaded to the user's cache by default.",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", help="Number of images.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of image order and attacks.")]
Workers = Annotated[
    int | None, typer.Option("--workers", help="Processes; one per core by default.")
]
UnitTimeout = Annotated[
    float | None,
    typer.Option(
        "--unit-timeout",
        help="Seconds for one unit of work, and to load a model; a user's model that takes longer "
        "twice has its samples counted as errors. An hour or more, and ten minutes, by default.",
    ),
]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        help="Such as 8GiB, for each worker process besides what it starts with; a user's model "
        "that needs more has its samples counted as errors.",
    ),
]
InProcess = Annotated[
    bool,
    typer.Option(
        "--in-process",
        help="For debugging: a user's model runs in this very process, without limits, and can "
        "end or hang it.",
    ),
]
ExecutorName = Annotated[
    str | None,
    typer.Option("--executor", help="What does the work; as --workers says by default."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Tell nothing of progress.")]
LogJson = Annotated[
    Path | None,
    typer.Option(
        "--log-json", metavar="FILE", help="Continue FILE with a line of JSON per unit of work."
    ),
]
PageFile = Annotated[
    Path | None, typer.Option("--html", help="Write it as a page, too, with all that there is.")
]
Thresholds = Annotated[
    Path | None,
    typer.Option("--thresholds", help="TOML file of limits per model, metric and threat."),
]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance", help="Largest harmless fall, as a proportion, where no limit says another."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:N or mps: where attacks climb and models predict; cpu by default.",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(
        "--judge",
        help="The device of the deployed program, which is judged and certified; that of "
        "--device by default.",
    ),
]
ModelName = Annotated[
    str, typer.Argument(help="Zoo name, recipe folder, module:factory, FILE.onnx or timm:NAME.")
]


@app.command()
def evaluate(
    suite: Annotated[str, typer.Argument(help="TOML file or bundled suite.")] = "digits",
    samples: Samples = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Models instead of the suite's, A,B,...")
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(
            "--add",
            help="Models besides the suite's, A,B,...; what is stored of the others stays.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Data set instead of the suite's, whatever models are of."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Report folder; reports/<suite> by default.")
    ] = None,
    workers: Workers = None,
    seed: Seed = None,
    batch_size: Annotated[
        int,
        typer.Option("--batch-size", help="Images per task of a worker; changes no result."),
    ] = 64,
    data_dir: DataDir = None,
    unit_timeout: UnitTimeout = None,
    memory_limit: MemoryLimit = None,
    in_process: InProcess = False,
    executor: ExecutorName = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
    shard: Annotated[
        str | None,
        typer.Option(
            "--shard",
            metavar="I/N",
            help="Compute only share I of N, into reports/<suite>-shard-I-of-N by default; "
            "`robustness merge` unites them.",
        ),
    ] = None,
    device: Device = None,
    judge: Judge = None,
) -> None:
    """Attack and certify every model of a suite, and write its reports."""
    share = None if shard is None else inputs.share(shard)
    folder = out or api.report_folder(load_suite(suite).name, share)
    log_beside(folder)
    leaderboard = api.evaluate(
        suite,
        samples=samples,
        models=_listed(models),
        add=_listed(add),
        data=data,
        out=out,
        workers=workers,
        seed=seed,
        batch_size=batch_size,
        data_dir=data_dir,
        quiet=quiet,
        unit_timeout=unit_timeout,
        memory_limit=memory_limit,
        in_process=in_process,
        executor=executor,
        log_json=log_json,
        shard=share,
        device=device,
        judge=judge,
    )
    if leaderboard is None:
        _print_whole(f"share {shard}: {folder / STORE_FILE}; unite all with `robustness merge`")
        return
    for entry in leaderboard.models:
        _note_foreign(entry.name, data)
    _show(leaderboard, folder)


def _listed(names: str | None) -> list[str] | None:
    return [name.strip() for name in names.split(",")] if names else None


@app.command()
def merge(
    stores: Annotated[
        list[Path],
        typer.Argument(metavar="STORE...", help="Folders of all shares, or their stores."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the whole and its reports.")],
) -> None:
    """Unite the shares of a run (`evaluate --shard`), and write its reports."""
    log_beside(out)
    _show(api.merge(stores, out), out)


@app.command()
def report(
    results: Annotated[
        Path,
        typer.Argument(help="Report folder of a run, its store, or a folder of such folders."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    rows: Annotated[
        bool, typer.Option("--rows", help="Write every row of the store too, as rows/<kind>.csv.")
    ] = False,
    pack: Annotated[
        bool,
        typer.Option(
            "--pack",
            help="Write the store too, as results.sqlite.xz: what this report is made of, small "
            "enough to be committed; `report` and `evaluate` read it where there is no other.",
        ),
    ] = False,
) -> None:
    """Render the reports of a run again from its store; of several reports, the page of all."""
    log_beside(out)
    if api.is_of_reports(results):
        answers.print(escape(f"index: {api.render_index(results, out)}"))
        return
    _show(api.render(results, out, rows=rows, pack=pack), out)


@app.command()
def attack(
    model: ModelName,
    eps: Annotated[str, typer.Option("--eps", help="Radius in pixel units: 0.1 or 8/255.")],
    norm: Annotated[str, typer.Option("--norm", help="Linf or L2.")] = "Linf",
    attack: Annotated[
        str,
        typer.Option("--attack", help="Its name; pgd by default."),
    ] = "pgd",
    effort: Annotated[
        str | None,
        typer.Option("--effort", help="Of the worst case: quick, standard or thorough."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the attack, as a suite would write it; more than once for several.",
        ),
    ] = None,
    samples: Samples = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Data set; the model's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of image order and attack.")] = 0,
    workers: Workers = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Name all stages, and which broke how many images.")
    ] = False,
    data_dir: DataDir = None,
    unit_timeout: UnitTimeout = None,
    memory_limit: MemoryLimit = None,
    in_process: InProcess = False,
    executor: ExecutorName = None,
    device: Device = None,
    judge: Judge = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Attack one model at one threat and print its robust accuracy."""
    row = api.attack(
        model,
        norm,
        eps,
        attack,
        settings=_settings_of(attack, effort, settings or []),
        samples=samples,
        data=data,
        seed=seed,
        workers=workers,
        data_dir=data_dir,
        quiet=quiet,
        unit_timeout=unit_timeout,
        memory_limit=memory_limit,
        in_process=in_process,
        executor=executor,
        device=device,
        judge=judge,
        log_json=log_json,
    )
    table = Table(title=escape(f"{model} under {ThreatModel(row.norm, row.eps)}, {row.attack}"))
    for column in ("robust accuracy", "95% interval", "images", "errors", "rejected"):
        table.add_column(column, no_wrap=True)
    table.add_row(
        f"{row.robust.value:.1%}",
        f"{row.robust.low:.1%} to {row.robust.high:.1%}",
        str(row.subset),
        str(row.errors),
        str(row.rejected),
    )
    answers.print(table)
    for reason, count in row.reasons.items():
        _print_whole(f"{plural(count, 'image')} failed: {reason}")
    _note_foreign(model, data)
    if verbose:
        _print_whole(row.version)
        for stage, broken in row.found_by.items():
            _print_whole(f"{broken} broken by {stage}")
    else:
        _print_whole(shorten(row.version, 76, placeholder=" … (all with --verbose)"))


def _settings_of(attack: str, effort: str | None, words: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {} if effort is None else {"effort": effort}
    for word in words:
        name, is_given, value = word.partition("=")
        if not (name and is_given):
            raise UsageError(f"--set: expected NAME=VALUE, such as steps=50, got {word!r}")
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value  # words without quotes
    doors.require_settings(attack, settings)
    return settings


@app.command()
def certify(
    model: ModelName,
    norm: Annotated[str, typer.Option("--norm", help="Linf or L2.")] = "L2",
    certificate: Annotated[
        str | None,
        typer.Option(
            "--certificate", help="Run only this one; by default all cheap ones, else program."
        ),
    ] = None,
    samples: Samples = None,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", help="Write index,label,prediction,radius,kind,certificate."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Data set; the model's own by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the image order.")] = 0,
    workers: Workers = None,
    audit: Annotated[
        int,
        typer.Option(
            "--audit",
            help="Certified images that are attacked inside their radii: so many at random, and "
            "as many with the largest radii.",
        ),
    ] = 4,
    data_dir: DataDir = None,
    unit_timeout: UnitTimeout = None,
    memory_limit: MemoryLimit = None,
    in_process: InProcess = False,
    executor: ExecutorName = None,
    device: Device = None,
    judge: Judge = None,
    quiet: Quiet = False,
    log_json: LogJson = None,
) -> None:
    """Certify one model; print its certified accuracy, write a radius for every image."""
    if csv_file is not None:
        require_own(inputs.file_to_write(csv_file), ",".join(_RADII))
    rows = api.certify(
        model,
        norm,
        certificate,
        samples=samples,
        data=data,
        seed=seed,
        workers=workers,
        audit=audit,
        data_dir=data_dir,
        quiet=quiet,
        unit_timeout=unit_timeout,
        memory_limit=memory_limit,
        in_process=in_process,
        executor=executor,
        device=device,
        judge=judge,
        log_json=log_json,
    )
    if csv_file is not None:
        write_file(csv_file, _radii(rows).encode())
    table = Table(title=escape(f"{model}, {Norm.parse(norm)}, {len(rows)} images"))
    smoothed = all(row.kind is Kind.PROBABILISTIC for row in rows)
    claimed = Kind.PROBABILISTIC if smoothed else Kind.CERTIFIED
    for column in ("eps", f"{claimed} accuracy", "95% interval"):
        table.add_column(column)
    proved = sorted(row.radius for row in rows if row.kind is claimed and row.radius > 0)
    quantiles = [proved[int(q * (len(proved) - 1))] for q in _QUANTILES] if proved else []
    # Few images may share a quantile.
    for eps in dict.fromkeys([0.0, *(float(f"{value:.2g}") for value in quantiles)]):
        share = api.certified_accuracy(rows, eps, claimed)
        table.add_row(f"{eps:g}", f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}")
    answers.print(table)
    _note_foreign(model, data)
    estimates = sum(row.kind is Kind.ESTIMATE for row in rows)
    if estimates:
        answers.print(
            f"Of {plural(estimates, 'image')} there is an estimate only, which proves nothing."
        )
    if smoothed:
        answers.print("Radii of the smoothed classifier, each with a stated confidence.")
    if not proved:
        reason, _ = Counter(row.reason for row in rows).most_common(1)[0]
        _print_whole(f"No image is certified, most often because of this: {reason}.")
        if not estimates:
            _print_whole(f"`robustness inspect {model}` says what each certificate says of it.")


@app.command()
def inspect(
    model: ModelName,
    data: Annotated[
        str | None, typer.Option("--data", help="Data set; the model's own by default.")
    ] = None,
    data_dir: DataDir = None,
    unit_timeout: UnitTimeout = None,
    memory_limit: MemoryLimit = None,
    in_process: InProcess = False,
    device: Device = None,
) -> None:
    """Print the program that predicts with a model, and what each certificate says of it."""
    found = api.inspect(
        model,
        data=data,
        data_dir=data_dir,
        unit_timeout=unit_timeout,
        memory_limit=memory_limit,
        in_process=in_process,
        device=device,
    )
    if found.operations:
        table = Table(title=escape(f"{model}: {sum(found.operations.values())} operations"))
        table.add_column("operation")
        table.add_column("times", justify="right")
        for name, count in found.operations.items():
            table.add_row(name, str(count))
        answers.print(table)
    if found.cut is not None:
        name, size = found.cut
        _print_whole(f"narrowest place: {plural(size, 'number')} given by {name}")
    if found.refusal is not None:
        _print_whole(f"the program is not bounded: {found.refusal}")
    for certificate, answers_of in found.certificates.items():
        for norm, refusal in answers_of.items():
            _print_whole(f"{certificate}, {norm}: {refusal or 'applies'}")


@app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Where; it is made if need be.")] = Path("."),
    template: Annotated[
        str, typer.Option("--template", help=f"One of {', '.join(Template)}.")
    ] = Template.TORCHDIFFEQ.value,
) -> None:
    """Write a suite and a commented factory or recipe to begin with; no file is written over."""
    files, command = start(folder, template)
    for file in files:
        answers.print(escape(str(file)), soft_wrap=True, highlight=False)
    where = "" if folder == Path(".") else f"cd {folder} && "
    _print_whole(f"next: {where}{command}")


@app.command()
def doctor(
    model: ModelName,
    data: Annotated[
        str | None, typer.Option("--data", help="Data set; the model's own by default.")
    ] = None,
    suite: Annotated[
        str, typer.Option("--suite", help="Whose cost is told: TOML file or bundled suite.")
    ] = "digits-quick",
    samples: Annotated[int, typer.Option("--samples", help="Images to look at, at most.")] = 64,
    data_dir: DataDir = None,
    unit_timeout: UnitTimeout = None,
    memory_limit: MemoryLimit = None,
    in_process: InProcess = False,
    device: Device = None,
) -> None:
    """Look for what goes wrong between a model and its images: exit code 1 if something does."""
    found = api.doctor(
        model,
        data=data,
        suite=suite,
        samples=samples,
        data_dir=data_dir,
        unit_timeout=unit_timeout,
        memory_limit=memory_limit,
        in_process=in_process,
        device=device,
    )
    for line in found.lines():
        _print_whole(line)
    if not found.healthy:
        raise typer.Exit(ExitCode.NO)


@app.command()
def export(
    model: ModelName,
    sample: Annotated[int, typer.Option("--sample", help="Index of the image in the data set.")],
    eps: Annotated[str, typer.Option("--eps", help="Radius in l-inf, in pixels: 0.1 or 8/255.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    certificate: Annotated[
        str | None,
        typer.Option("--certificate", help="That is to prove it; all cheap ones by default."),
    ] = None,
    seconds: Annotated[
        int, typer.Option("--seconds", help="That instances.csv gives a verifier.")
    ] = 300,
    data: Annotated[
        str | None, typer.Option("--data", help="Data set; the model's own by default.")
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Write a model as ONNX and an image's robustness as VNN-LIB, for other verifiers."""
    written = api.export(
        model,
        sample,
        eps,
        out,
        data=data,
        data_dir=data_dir,
        certificate=certificate,
        seconds=seconds,
        device=device,
    )
    for file in written.files:
        _print_whole(str(file))
    claim = f"proved here by {written.certificate}" if written.certificate else "not proved here"
    _print_whole(
        f"class {written.prediction} (true class {written.label}), {claim}, where the largest "
        f"radius is {written.radius:.4g}"
    )


def _radii(rows: list[api.CertifiedSample]) -> str:
    return csv_of(
        _RADII,
        (
            (row.index, row.label, row.prediction, row.radius, row.kind or "", row.certificate)
            for row in rows
        ),
    )


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="A recipe's folder or zoo name.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last epoch of an interrupted run.")
    ] = False,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Train a recipe; write its weights and their SHA-256."""
    folder = find_entry(recipe)
    measured = train(folder, resume, data_dir, device=device)
    answers.print(
        f"{folder / WEIGHTS_FILE}: validation accuracy {measured.validation_accuracy:.1%} "
        f"(epoch {measured.epoch}), {measured.seconds:.0f} s"
    )


@app.command()
def models(
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Only this data set's models.")
    ] = None,
) -> None:
    """List what the zoo holds."""
    names = _names_of(dataset)
    table = Table(show_lines=False)
    for column in ("model", "weights", "description"):
        table.add_column(column, overflow="fold")
    for name in names:
        recipe = zoo_recipe(name)
        table.add_row(name, escape(_weights_of(recipe)), escape(recipe.description))
    answers.print(table)


def _weights_of(recipe: Recipe) -> str:
    if recipe.weights is None:
        return "none yet"
    here = has_weights(recipe)
    if recipe.weights.source is None:
        return "yes"
    return f"{'given' if here else 'not here'}: {recipe.weights.source} ({recipe.weights.licence})"


@app.command()
def card(
    model: Annotated[
        str | None, typer.Argument(help="Zoo name or recipe folder; or --dataset or --all.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Every entry of this data set with weights.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every entry with weights.")] = False,
    remeasure: Annotated[
        bool, typer.Option("--remeasure", help="Measure again what is already measured.")
    ] = False,
    prove: Annotated[
        bool, typer.Option("--prove", help="Certify the whole test set too, and audit it.")
    ] = False,
    audit: Annotated[
        int,
        typer.Option("--audit", help="Certified images to attack, in each norm."),
    ] = 100,
    data_dir: DataDir = None,
    device: Device = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Measure zoo entries on their whole test sets, and write their cards."""
    for name in _cards_asked_for(model, dataset, every):
        file, facts = api.card(
            name,
            data_dir=data_dir,
            remeasure=remeasure,
            proving=prove,
            audited=audit,
            device=device,
            workers=workers,
            quiet=quiet,
        )
        clean = facts.clean
        answers.print(
            escape(
                f"{file}: {clean.value:.2%} of {clean.total} images, "
                f"{facts.non_finite} with a logit that is not finite"
            ),
            soft_wrap=True,
        )


def _cards_asked_for(model: str | None, dataset: str | None, every: bool) -> list[str]:
    if (model is not None) + (dataset is not None) + every != 1:
        raise UsageError(
            "expected a model, --dataset or --all, and one of them only, got "
            f"{'none' if not (model or dataset or every) else 'several'}; name what to measure"
        )
    if model is not None:
        return [model]
    names = _names_of(dataset)
    trained = [name for name in names if has_weights(zoo_recipe(name))]
    for name in sorted(set(names) - set(trained)):
        answers.print(escape(f"{name}: no weights {_absence(zoo_recipe(name))}, no card"))
    return trained


def _absence(recipe: Recipe) -> str:
    return "yet" if recipe.weights is None else "here"


def _names_of(dataset: str | None) -> list[str]:
    names = zoo_names(dataset)
    if not names:
        sets = sorted({name.split("/")[0] for name in zoo_names()})
        raise UsageError(
            f"expected a data set with models, one of {', '.join(sets)}, got {dataset!r}; "
            "correct --dataset"
        )
    return names


@app.command()
def claims(
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Report folder; a killed run goes on in it. reports/lyanet-claims by default, "
            "followed by -DATA for another data set than mnist.",
        ),
    ] = None,
    data: Annotated[str, typer.Option("--data", help=f"Data set: {', '.join(STUDIES)}.")] = "mnist",
    seeds: Annotated[
        int | None,
        typer.Option(
            "--seeds",
            help="Trainings of each model, two or more; by default those of the committed report.",
            min=2,
        ),
    ] = None,
    data_dir: DataDir = None,
    device: Device = None,
) -> None:
    """Measure the claims of the LyaNet paper over several seeds (hours; resumable)."""
    if out is None:
        out = Path("reports/lyanet-claims" if data == "mnist" else f"reports/lyanet-claims-{data}")
    log_beside(out)
    chosen = None if seeds is None else range(1, seeds + 1)
    results = measure_claims(out, data_dir, chosen, data=data, device=device)
    write_claims(results, out)
    for claim in decide(results):
        answers.print(escape(f"{claim.statement}: {claim.verdict}"), soft_wrap=True)
    answers.print(escape(f"report: {out / 'index.html'}"))


@app.command()
def recompute(
    results: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="Report folders, or their stores.")
    ],
    units: Annotated[int, typer.Option("--units", help="How many units of each report.")] = 100,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Decides which units are drawn; by default one that nobody can know beforehand.",
        ),
    ] = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Compute random units of a report again: exit code 1 if any gives other results."""
    agree = True
    for report in results:  # each is told at once: the next may take long, or fail
        found = api.recompute(
            report, units=units, seed=seed, data_dir=data_dir, workers=workers, quiet=quiet
        )
        same, agree = found.same, agree and found.agrees
        _print_whole(
            f"{report}: {same.count:,} of {same.total:,} units drawn from {found.units:,} gave the "
            f"same (95% of all: {percent(same.low)}-{percent(same.high)}), "
            f"{found.to_the_bit:,} to the bit; seed {found.seed}, {found.seconds:,.0f} s"
        )
        for what in found.different:
            _print_whole(f"{report}: differs: {what}")
    if not agree:
        raise typer.Exit(ExitCode.NO)


@app.command("reproduce")
def reproduce_command(
    plan: Annotated[Path, typer.Argument(help="TOML file of parts; see docs/scale.md.")] = Path(
        "reports/plan.toml"
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make nothing: tell what is stale, why, and its cost.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="PART", help="Of these parts alone.")
    ] = None,
    anew: Annotated[
        bool,
        typer.Option(
            "--anew",
            help="Make what is not stale, too, so that all names this commit; what is stored is "
            "not computed again.",
        ),
    ] = False,
    recompute: Annotated[
        int | None,
        typer.Option(
            "--recompute",
            metavar="UNITS",
            help="Compute so many random units of every report again that is not stale, and note "
            "what came of it; a report of which any differs is stale until its store is taken "
            "away. Not with --dry-run.",
        ),
    ] = None,
    data_dir: DataDir = None,
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Make again whatever of reports, cards and pages the code at hand would make otherwise."""
    outcomes = reproduce(
        plan,
        only=only or (),
        dry_run=dry_run,
        anew=anew,
        recompute=recompute,
        data_dir=data_dir,
        workers=workers,
        quiet=quiet,
        note=None if quiet else remark,
    )
    _show_parts(outcomes)
    if any(outcome.state.stale for outcome in outcomes):
        raise typer.Exit(ExitCode.NO)


def _show_parts(outcomes: list[Outcome]) -> None:
    table = Table(title=f"{plural(sum(o.state.stale for o in outcomes), 'part')} stale")
    again = any(outcome.recomputed is not None for outcome in outcomes)
    for column in ("part", "state", "of commit", "seconds", *(["units again"] if again else [])):
        table.add_column(column, no_wrap=column != "state", overflow="fold")
    for outcome in outcomes:
        state = _standing_of(outcome)
        cost = "" if outcome.seconds is None else f"{outcome.seconds:,.0f}"
        cells = [outcome.name, state, (outcome.commit or "")[:12], cost]
        if outcome.recomputed is not None:
            same = outcome.recomputed.same
            cells.append(f"{same.count} of {same.total} same")
        table.add_row(*map(escape, cells))
    answers.print(table)
    for outcome in outcomes:
        for reason in outcome.state.reasons:
            _print_whole(f"{outcome.name}: {reason}")
        if needed := outcome.state.needs:
            _print_whole(
                f"{outcome.name}: its results can neither be compared nor made without {needed}, "
                "the folder of weights that are not included; `robustness models` says where "
                "they come from"
            )


def _standing_of(outcome: Outcome) -> str:
    if outcome.state.stale:
        return "stale"
    if outcome.state.needs:
        return f"needs {outcome.state.needs}"
    return "made" if outcome.made else "as it would be"


@app.command("compare")
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="A", help="Leaderboard or its folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Leaderboard or its folder.")],
    html: PageFile = None,
) -> None:
    """Put two leaderboards side by side."""
    require_page(html)
    comparison = compare(read_leaderboard(first), read_leaderboard(second))
    answers.print(render(comparison, str(first), str(second)))
    for line in told(comparison):
        _print_whole(line)
    if html is not None:
        write_file(html, comparison_page(comparison, str(first), str(second)).encode())


@app.command("history")
def history_command(
    path: Annotated[Path, typer.Argument(help="Leaderboard, or its folder, in a git repository.")],
    last: Annotated[int, typer.Option("--last", help="Commits, from the newest on.")] = 20,
    html: PageFile = None,
) -> None:
    """How the numbers of a leaderboard went, commit by commit."""
    require_page(html)
    found = history.read_history(path, last)
    for table in history.render(found):
        answers.print(table)
    for line in history.told(found):
        _print_whole(line)
    if html is not None:
        write_file(html, history_page(found).encode())


@app.command("check")
def check_command(
    results: Annotated[Path, typer.Argument(help="Leaderboard of the run, or its folder.")],
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            help="What to hold it to: leaderboard, its folder, or a folder of <suite>.json.",
        ),
    ] = None,
    baseline_rev: Annotated[
        str | None,
        typer.Option(
            "--baseline-rev",
            metavar="REV[:PATH]",
            help="The same in git: main:reports/x/leaderboard.json, or main for the "
            "place of RESULTS.",
        ),
    ] = None,
    thresholds: Thresholds = None,
    tolerance: Tolerance = 0.01,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML.")] = None,
    code_quality: Annotated[
        Path | None, typer.Option("--code-quality", help="Write GitLab's code quality report.")
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="Write GitLab's metrics report (OpenMetrics).")
    ] = None,
    bigger_is_better: Annotated[
        Path | None,
        typer.Option("--bigger-is-better", help="Write accuracies for github-action-benchmark."),
    ] = None,
    smaller_is_better: Annotated[
        Path | None,
        typer.Option("--smaller-is-better", help="Write widths, failures and costs for it."),
    ] = None,
) -> None:
    """Regression gate: exit code 0 pass, 1 regression, 2 cannot tell, 3 or 70 no answer."""
    outputs = gate.Outputs(junit, code_quality, metrics, bigger_is_better, smaller_is_better)
    outputs.require_writable()
    held = gate.hold(results, baseline, baseline_rev, thresholds, tolerance)
    outputs.write(held)
    _print_verdict(held.verdict)
    for line in gate.tell_github(held):
        _print_whole(line)
    raise typer.Exit(held.verdict.exit_code)


@app.command("update-baseline")
def update_baseline_command(
    results: Annotated[Path, typer.Argument(help="Leaderboard of the run, or its folder.")],
    baseline: Annotated[
        Path, typer.Argument(help="Leaderboard, report folder or folder of <suite>.json.")
    ],
    thresholds: Thresholds = None,
    tolerance: Tolerance = 0.01,
    accept: Annotated[
        bool, typer.Option("--accept", help="Also if it falls behind, or cannot be compared.")
    ] = False,
) -> None:
    """Make a run the baseline that `check` holds others to; exit codes as those of `check`."""
    file, verdict = gate.update_baseline(results, baseline, thresholds, tolerance, accept)
    if verdict is not None:
        _print_verdict(verdict)
        if verdict.exit_code and not accept:
            _print_whole(f"{file} stays as it was; --accept makes this run the baseline")
            raise typer.Exit(verdict.exit_code)
    _print_whole(f"baseline: {file}")


def _print_verdict(verdict: Verdict) -> None:
    for finding in verdict.findings:
        answers.print(escape(finding), soft_wrap=True)
    answers.print(str(verdict.outcome))


def _note_foreign(model: str, data: str | None) -> None:
    """Say that a model was measured on other images than it was trained on."""
    trained_on = training_data(model)
    if data is not None and trained_on not in (None, data):
        _print_whole(f"{model} was trained on {trained_on} and measured on {data}.")


def _print_whole(text: str) -> None:
    """Print words of others, which are neither markup nor cut at the terminal's width."""
    answers.print(escape(text), soft_wrap=True, highlight=False)


def _show(leaderboard: Leaderboard, folder: Path) -> None:
    answers.print(summary_table(leaderboard))
    answers.print(escape(f"reports: {folder / 'index.html'}"))
    if leaderboard.soundness.violations:
        for violation in leaderboard.soundness.violations:
            remarks.print(escape(f"soundness failure: {violation}"))
        raise typer.Exit(ExitCode.NO)
