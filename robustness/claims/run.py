"""All measurements of all seeds, resumable part by part."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from torch import nn

from robustness import inputs
from robustness.claims import protocol
from robustness.claims.cost import step_and_epoch_ratios
from robustness.claims.horizon import TOLERANCES, along_horizon, dopri5_evaluations
from robustness.claims.models import GROUPS, MODELS, Study, study_of, trained_group
from robustness.claims.report import require_report_folder
from robustness.claims.results import SeedResults, keep, stored
from robustness.data import ImageSet, load_images, require_source
from robustness.errors import UsageError
from robustness.inputs import folder_to_write
from robustness.nets.classifiers import NeuralODEClassifier
from robustness.numerics.devices import CPU, arithmetic_on, beside, hardware
from robustness.numerics.reproducible import reproducible_arithmetic
from robustness.results.leaderboard import Proportion
from robustness.terminal import progress_bar

_NFE_IMAGES, _BATCH = 50, 500


def measure_claims(
    out: Path,
    data_dir: Path | None,
    seeds: Sequence[int] | None = None,
    data: str = "mnist",
    quiet: bool = False,
    device: str | None = None,
) -> list[SeedResults]:
    """Train the five models of every seed and measure them; what was done before is kept.

    Args:
        out: receives `seed-<seed>.json`, rewritten after every part, and `work/`, the weights.
        data_dir: folder with the official image files; None downloads them.
        seeds: at least two, each once, since intervals are over seeds; by default the study's.
        data: the data set, one of `STUDIES`.
        quiet: no progress bar.
        device: where models are trained, predict and are attacked; the CPU by default.

    Raises:
        UsageError: the device is not there, there is no study on the data set, its images cannot
            be read, or `out` cannot be written to.
    """
    study = study_of(data)
    seeds = study.seeds if seeds is None else seeds
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise UsageError(f"expected two seeds or more, each once, got {list(seeds)}; name others")
    placement = inputs.placement(device, None)
    require_report_folder(folder_to_write(out))
    require_source(data, data_dir)
    train, test = (load_images(data, split, data_dir) for split in ("train", "test"))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    parts = 2 * len(MODELS) + 2  # trained, attacked, the course, the cost
    with progress_bar(columns, quiet) as progress:
        bar = progress.add_task("claims", total=len(seeds) * parts)

        def note(text: str) -> None:
            progress.update(bar, description=text)
            if not progress.console.is_terminal and not quiet:
                progress.console.print(text)

        def advance() -> None:
            progress.advance(bar)

        with arithmetic_on(placement):
            return [
                _Seed(
                    study, seed, out, data_dir, train, test, note, advance, placement.device
                ).measure()
                for seed in seeds
            ]


class _Seed:
    """The measurements of one seed."""

    def __init__(
        self,
        study: Study,
        seed: int,
        out: Path,
        data_dir: Path | None,
        train: ImageSet,
        test: ImageSet,
        note: Callable[[str], None],
        advance: Callable[[], None],
        device: str,
    ) -> None:
        self.study, self.seed, self.out, self.data_dir = study, seed, out, data_dir
        self.train, self.test, self.note, self.advance = train, test, note, advance
        self.device = device
        # Weights of one device are not continued on another.
        self.work = out / ("work" if device == CPU else f"work-{device.replace(':', '-')}")
        self.results = stored(study, seed, out, hardware(device))

    def measure(self) -> SeedResults:
        models: dict[str, nn.Module] = {}
        if self.results.complete:  # the report needs no weights
            return self.results
        budgets = {}
        for group in GROUPS:
            self.note(f"seed {self.seed}: training {' and '.join(group)}")
            found = trained_group(
                self.study,
                group,
                self.seed,
                self.work,
                self.data_dir,
                quiet=True,
                device=self.device,
            )
            for name, (model, budget) in found.items():
                models[name], budgets[name] = model, budget
                self.advance()
        self._keep("budgets", budgets)
        with reproducible_arithmetic():
            self._part("clean", lambda: {n: _clean(m, self.test) for n, m in models.items()})
            self._part("horizon", lambda: {n: along_horizon(m, self.test) for n, m in odes(models)})
            self._part("nfe", lambda: self._evaluations(models))
            self.advance()
            self._part("cost", self._costs)
            self.advance()
            self._robustness(models)
        return self.results

    def _part(self, name: str, work: Callable[[], Any]) -> None:
        if not getattr(self.results, name):
            self.note(f"seed {self.seed}: measuring {name}")
            self._keep(name, work())

    def _keep(self, name: str, value: Any) -> None:
        self.results = self.results.model_copy(update={name: value})
        keep(self.results, self.out)

    def _costs(self) -> dict[str, float]:
        return step_and_epoch_ratios(self.study, self.seed, self.train, self.device)

    def _evaluations(self, models: dict[str, nn.Module]) -> dict[str, dict[str, float]]:
        few = self.test.take(torch.arange(_NFE_IMAGES))
        return {
            f"{tolerance:g}": {n: dopri5_evaluations(m, few, tolerance) for n, m in odes(models)}
            for tolerance in TOLERANCES
        }

    def _robustness(self, models: dict[str, nn.Module]) -> None:
        images = self.test.take(torch.arange(min(protocol.IMAGES, len(self.test))))
        for name, model in models.items():
            if not any(name in table for table in self.results.robust.values()):
                self.note(f"seed {self.seed}: attacking {name}")
                robust = {key: dict(value) for key, value in self.results.robust.items()}
                for key, value in protocol.protocols(model, images, self.study).items():
                    robust.setdefault(key, {})[name] = value
                self._keep("robust", robust)
            self.advance()


def odes(models: dict[str, nn.Module]) -> list[tuple[str, NeuralODEClassifier]]:
    """The models whose class state moves along a horizon."""
    return [
        (name, model) for name, model in models.items() if isinstance(model, NeuralODEClassifier)
    ]


@torch.no_grad()
def _clean(model: nn.Module, images: ImageSet) -> Proportion:
    correct = sum(
        int((model(*beside(model, pixels)).argmax(dim=1).cpu() == labels).sum())
        for pixels, labels in zip(
            images.images.split(_BATCH), images.labels.split(_BATCH), strict=True
        )
    )
    return Proportion.of(correct, len(images))
