"""Suites: what to evaluate, as a strict TOML file or a bundled name."""

import functools
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from robustness.attacks import ATTACKS, Attack
from robustness.certificates import (
    CERTIFICATES,
    SEED,
    Certificate,
    last_resorts,
    routine,
    settings_fields,
)
from robustness.config import Config, table_of
from robustness.data import require_known
from robustness.errors import UsageError
from robustness.evaluation.worst_case import WorstCase
from robustness.files import read_toml
from robustness.inputs import Count, Name, Seed
from robustness.threat import Norm, ThreatModel, parse_eps
from robustness.zoo import expanded

Samples = Count | Literal["all"]


class ThreatsConfig(Config):
    """A norm and the radii at which it is attacked and certified."""

    norm: Norm
    eps: list[float] = Field(min_length=1)

    @field_validator("norm", mode="before")
    @classmethod
    def _norm(cls, value: object) -> Norm:
        return Norm.parse(str(value))

    @field_validator("eps", mode="before")
    @classmethod
    def _eps(cls, values: object) -> list[float]:
        if not isinstance(values, list):
            raise UsageError(f"expected a list of radii, got {values!r}")
        return sorted({parse_eps(value) for value in values})

    @property
    def threats(self) -> list[ThreatModel]:
        """One threat model per radius, smallest first."""
        return [ThreatModel(self.norm, eps) for eps in self.eps]


class AttackTable(Config):
    """What every attack can be restricted to; the table of each has its settings besides.

    `samples` takes the first of the suite's order; `threats` replaces the suite's.
    """

    samples: Samples = "all"
    threats: list[ThreatsConfig] | None = None
    kind: str

    def build(self) -> Attack | WorstCase:
        """The attack; its settings have the names of those of the table."""
        made = dict(self)
        settings = {name: made[name] for name in made if name not in AttackTable.model_fields}
        return ATTACKS[self.kind].make(**settings)


class CertificateTable(Config):
    """A certificate that has settings, which its own table has besides.

    `models` are patterns of the names of the models that it is asked of.
    """

    name: str
    models: list[str] = Field(default=["*"], min_length=1)

    def build(self, seed: int) -> Certificate:
        """The certificate; one that draws random numbers draws them with `seed`."""
        made = dict(self)
        settings = {name: made[name] for name in made if name not in CertificateTable.model_fields}
        kind = type(CERTIFICATES[self.name])
        return kind(**settings | ({SEED: seed} if SEED in settings_fields(kind) else {}))

    def speaks_of(self, model: str) -> bool:
        """Whether it is asked of a model of this name."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@functools.cache
def attack_table(make: Callable[..., Any]) -> type[AttackTable]:
    """The table of an attack, from its settings."""
    return table_of(make, AttackTable)


@functools.cache
def _certificate_table(kind: type) -> type[CertificateTable]:
    return table_of(kind, CertificateTable, without=(SEED, "name"))


def _in_its_table(value: object) -> object:
    """An attack as its own kind of table."""
    if not isinstance(value, Mapping):
        return value
    if "kind" not in value:
        raise ValueError("expected the kind of an attack, got none; add `kind = ...`")
    return attack_table(ATTACKS.require(str(value["kind"])).make).model_validate(value)


def _named(value: object) -> object:
    """A certificate by name, or as its own kind of table."""
    name = value.get("name", "") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        raise ValueError(f"expected a certificate's name or table, got {value!r}; correct it")
    certificate = CERTIFICATES.require(name)
    if not isinstance(value, Mapping):
        return value
    return _certificate_table(type(certificate)).model_validate(value)


class AuditConfig(Config):
    """How many certified images of each model and norm are attacked inside their radii.

    There is always an audit: a run that certifies without one would be trusted for nothing.

    Attributes:
        samples: drawn at random.
        largest: those with the largest radii.
    """

    samples: Count = 32
    largest: Count = 8


class EnvelopeConfig(Config):
    """The proved envelope of V(t), for the first samples of the suite's order, at every threat.

    `threats` replaces the suite's: envelopes of fields that are not made to be proved are of use
    at radii far below those that are attacked.
    """

    samples: Samples = 8
    threats: list[ThreatsConfig] | None = None


class FlagsConfig(Config):
    """The checks of `attacks.checks`, on the first samples of the suite's order."""

    samples: Count = 32


class NearestConfig(Config):
    """The nearest adversarial image of the first samples of the suite's order, however far."""

    samples: Samples = "all"


class Changes(Config):
    """What a caller asks for in place of what a suite says; None leaves it; see `Suite`."""

    samples: Samples | None = None
    models: list[Name] | None = Field(default=None, min_length=1, max_length=1000)
    added: list[Name] | None = Field(default=None, max_length=1000)
    data: Annotated[Name, AfterValidator(require_known)] | None = None
    seed: Seed | None = None

    @field_validator("models", "added")
    @classmethod
    def _distinct(cls, names: list[str] | None) -> list[str] | None:
        _require_distinct("models", names or [])
        return names


class Suite(Config):
    """What one run evaluates.

    Attributes:
        name: names the report folder.
        data: a data set's name or an `.npz` file.
        split: which split.
        samples: how many images, the first of a fixed order drawn with `seed`.
        seed: decides that order and every random draw of the attacks.
        models: zoo names, folders or factories; `mnist/*` stands for every MNIST entry of the zoo
            whose weights are included.
        added: models besides these: evaluated alike, and images that fool the others are tried on
            them, but theirs on none. So nothing that is stored of the others is computed again.
        threats: norms and radii.
        attacks: run on every model.
        certificates: run on every model they apply to; by name, or as a table of a name and
            settings where a certificate has any; `"all"`, alone or in the list, stands for all that
            have none.
        decay: whether to record V(t) along the trajectories of neural ODEs.
        envelope: of how many images V(t) is bounded over every threat's ball; None bounds none.
        flow: whether to predict without the flow of neural ODEs too.
        audit: how many certified images are attacked inside their radii.
        flags: checks of whether the attacks on a model can be believed; None runs none.
        nearest: bounds on the robust radius from above, in every norm; None looks for none.
        jobs: kinds of jobs of other packages that are done too.
    """

    name: str = Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    data: Annotated[Name, AfterValidator(require_known)]
    split: Literal["test", "train"] = "test"
    samples: Samples = "all"
    seed: Seed = 0
    models: list[Name] = Field(min_length=1, max_length=1000)
    added: list[Name] = Field(default_factory=list, max_length=1000)
    threats: list[ThreatsConfig] = Field(min_length=1)
    attacks: list[Annotated[SerializeAsAny[AttackTable], BeforeValidator(_in_its_table)]] = Field(
        default_factory=list
    )
    certificates: list[
        Annotated[Name | SerializeAsAny[CertificateTable], BeforeValidator(_named)]
    ] = Field(default_factory=list)
    decay: bool = True
    envelope: EnvelopeConfig | None = None
    flow: bool = True
    audit: AuditConfig = Field(default_factory=AuditConfig)
    flags: FlagsConfig | None = None
    nearest: NearestConfig | None = None
    jobs: list[Name] = Field(default_factory=list)

    @field_validator("certificates", mode="before")
    @classmethod
    def _all_certificates(cls, value: object) -> object:
        every = routine()
        if isinstance(value, list) and "all" in value:
            return [name for entry in value for name in (every if entry == "all" else [entry])]
        return every if value == "all" else value

    @property
    def last_resorts(self) -> list[str]:
        """Certificates for models that every other one refuses, where all routine ones are asked.

        None that is asked for by its name, which runs in any case.
        """
        return last_resorts({c if isinstance(c, str) else c.name for c in self.certificates})

    def build_certificates(self, model: str) -> dict[str, Certificate]:
        """The certificates of a model by name, in their order, drawn with the suite's seed.

        Those of `last_resorts` are the last.
        """
        built: dict[str, Certificate] = {}
        for entry in [*self.certificates, *self.last_resorts]:
            if isinstance(entry, CertificateTable):
                if entry.speaks_of(model):
                    built[entry.name] = entry.build(self.seed)
            elif settings_fields(type(CERTIFICATES[entry])):
                built[entry] = CertificateTable(name=entry).build(self.seed)
            else:
                built[entry] = CERTIFICATES[entry]
        return built

    @model_validator(mode="after")
    def _distinct(self) -> "Suite":
        for what, names in (
            ("models", self.models),
            ("added models", self.added),
            ("norms in threats", [t.norm for t in self.threats]),
            ("certificates", self._asked()),
            ("kinds of attacks at each radius", self._runs()),
        ):
            _require_distinct(what, names)
        return self

    def named(self) -> "Suite":
        """With every model in `models` by its name, those of `added` behind the others.

        Raises:
            UsageError: a star stands for no entry.
        """
        added = _entries(self.added)
        listed = [name for name in _entries(self.models) if name not in added]
        return self.changed(Changes(models=[*listed, *added], added=added))

    def changed(self, changes: Changes) -> "Suite":
        """With what a caller asks for instead; nothing is validated again."""
        given = {name: value for name, value in changes if value is not None}
        return self.model_copy(update=given)

    def __reduce__(self) -> tuple[Callable[[str], "Suite"], tuple[str]]:
        # To worker processes as text, since the tables of attacks are classes made when asked for.
        return Suite.model_validate_json, (self.model_dump_json(),)

    def _asked(self) -> list[str]:
        """Every certificate; one may come twice, with other settings for models of other names."""
        asked = [
            (c, ["*"]) if isinstance(c, str) else (c.name, c.models) for c in self.certificates
        ]
        wide = {name for name, models in asked if any(set("*?[") & set(m) for m in models)}
        return [name for name, _ in asked if name in wide] + [
            f"{name} of {model}" for name, models in asked if name not in wide for model in models
        ]

    def _runs(self) -> list[str]:
        """Every kind of attack with every threat: one may come twice, with other settings."""
        return [
            f"{attack.kind} at {threat.norm} {threat.eps}"
            for attack in self.attacks
            for group in attack.threats or self.threats
            for threat in group.threats
        ]


def _entries(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(entry for name in names for entry in expanded(name)))


def _require_distinct(what: str, names: Sequence[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"expected distinct {what}, got {twice} twice; remove one")


def bundled_suites() -> list[str]:
    """Names of the suites that come with the package."""
    folder = resources.files("robustness") / "suites"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_suite(name: str) -> Suite:
    """Read a suite from a TOML file, or a bundled one by name.

    Raises:
        UsageError: there is no such suite, or the file does not fit; one line says where.
    """
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return read_toml(path, Suite)
    names = bundled_suites()
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "correct it"
        raise UsageError(
            f"expected a suite, a .toml file or one of {', '.join(names)}, got {name!r}; {hint}"
        )
    with resources.as_file(resources.files("robustness") / "suites" / f"{name}.toml") as file:
        return read_toml(file, Suite)
