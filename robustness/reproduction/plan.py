"""The plan file: which artefacts there are, of which kind, and in which order they are made."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from robustness.config import Config
from robustness.evaluation.suite import Samples
from robustness.files import read_toml

Words = Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class _Part(Config):
    """One artefact, or several of a kind; paths are seen from the working folder."""

    name: str = Field(min_length=1, max_length=60, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")


class SuitePart(_Part):
    """The report of a suite.

    `store` says whether its store travels with it, packed; then units that are stored there are
    not computed again.
    """

    kind: Literal["suite"]
    suite: str
    out: str
    samples: Samples | None = None
    store: bool = True


class CardsPart(_Part):
    """Facts and cards of zoo entries; `data/*` stands for all of a data set that have weights.

    With `proofs` their whole test sets are certified, too, where a certificate applies.
    """

    kind: Literal["cards"]
    models: Words
    proofs: bool = False


class ClaimsPart(_Part):
    """The report of the claims of the LyaNet paper on one data set."""

    kind: Literal["claims"]
    out: str
    data: str = "mnist"


class IndexPart(_Part):
    """The page that leads to the reports in a folder."""

    kind: Literal["index"]
    folder: str


class ScriptPart(_Part):
    """What a Python script makes; `check` ends with 0 where nothing is to be made.

    Both are the words behind `python`.
    """

    kind: Literal["script"]
    make: Words
    check: Words


Part = Annotated[
    SuitePart | CardsPart | ClaimsPart | IndexPart | ScriptPart, Field(discriminator="kind")
]


class ReproductionPlan(Config):
    """All parts, in the order in which they are made: what is shown in another comes before it."""

    part: list[Part] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> "ReproductionPlan":
        names = [part.name for part in self.part]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected parts of different names, got {twice[0]} twice")
        return self


def read_plan(path: Path) -> ReproductionPlan:
    """Read a plan file.

    Raises:
        UsageError: it is missing, or does not fit; the first fault is named.
    """
    return read_toml(path, ReproductionPlan)
