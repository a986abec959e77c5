"""What a gate lets pass, as people write it in TOML; docs/gate.md tells each key."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from robustness.config import Config
from robustness.errors import UsageError
from robustness.reporting.quantities import Metric, Quantity
from robustness.threat import Norm, parse_eps

Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Limits:
    """What holds one number of one model; None where nothing was said.

    Attributes:
        floor: the proportion that it must not be below, whatever the baseline is.
        fall: the largest fall that passes, as a proportion of the samples.
        relative_fall: the same, as a proportion of the baseline's number.
    """

    floor: float | None = None
    fall: float | None = None
    relative_fall: float | None = None


class Limit(Config):
    """A table `[[limits]]`: what it says holds for every number that it matches.

    Attributes:
        model: name, or pattern with `*` and `?`; every model by default.
        metric: clean, finished, certified or attacked; every one by default.
        norm: of the threat.
        eps: radius of the threat, 0.1 or "8/255".
        floor: as in `Limits`.
        fall: as in `Limits`.
        relative_fall: as in `Limits`.
    """

    model: str = "*"
    metric: Metric | None = None
    norm: Annotated[Norm, BeforeValidator(Norm.parse)] | None = None
    eps: Annotated[float, BeforeValidator(parse_eps)] | None = None
    floor: Share | None = None
    fall: Share | None = None
    relative_fall: Share | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "Limit":
        if self.floor is None and self.fall is None and self.relative_fall is None:
            raise ValueError("expected floor, fall or relative_fall, got none of them; add one")
        return self

    def matches(self, model: str, quantity: Quantity) -> bool:
        """Whether it speaks of this number of this model."""
        return (
            fnmatchcase(model, self.model)
            and self.metric in (None, quantity.metric)
            and self.norm in (None, quantity.norm)
            and self.eps in (None, quantity.eps)
        )

    def __str__(self) -> str:
        said = self.model_dump(mode="json", exclude_none=True, exclude={*Limits.__annotations__})
        return ", ".join(f"{key} {value}" for key, value in said.items())


class Thresholds(Config):
    """The file: what holds for the gate as a whole, and limits, of which later ones go first.

    Attributes:
        significance: level of the test that a fall must pass, too, to be a regression, for all
            numbers of the gate together; None where its size alone decides.
        other_seeds: whether a run of another seed, or of another number of samples, is compared.
        limits: in the file's order.
    """

    significance: Annotated[float, Field(gt=0, lt=1)] | None = None
    other_seeds: bool = False
    limits: tuple[Limit, ...] = ()

    @model_validator(mode="after")
    def _no_noise_for_a_fall(self) -> "Thresholds":
        if self.other_seeds and self.significance is None:
            raise ValueError(
                "expected significance beside other_seeds, such as 0.05, since other images fall "
                "by chance, got none; add it"
            )
        return self

    def of(self, model: str, quantity: Quantity, tolerance: float) -> Limits:
        """What holds one number of one model.

        Args:
            model: its name.
            quantity: the number.
            tolerance: the fall that passes where no limit says another.
        """
        said: dict[str, float] = {}
        for limit in self.limits:
            if limit.matches(model, quantity):
                said |= limit.model_dump(exclude_none=True, include={*Limits.__annotations__})
        if "fall" not in said and "relative_fall" not in said:
            said["fall"] = tolerance
        return Limits(**said)

    def require_matches(self, numbers: Iterable[tuple[str, Quantity]]) -> None:
        """Refuse limits that speak of nothing, as a misspelt one does.

        Raises:
            UsageError: one matches none of these numbers of models.
        """
        known = list(numbers)
        for place, limit in enumerate(self.limits, 1):
            if not any(limit.matches(*each) for each in known):
                raise UsageError(
                    f"expected limits that match a number of the runs, got [[limits]] {place} "
                    f"({limit}), which matches none; correct its spelling or remove it"
                )
