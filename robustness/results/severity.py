"""How much the raised flag of a check weighs in what a report says of a model."""

from enum import StrEnum


class Severity(StrEnum):
    """What a raised flag says of the attacked accuracy of its model, worst first.

    - `SERIOUS`: it may be far too high. Something else than the decision held attacks off, or
      they were made on another function than the one that is deployed.
    - `CAUTION`: attacks of one kind are weak on this model; the others of a run need not be.
    - `NOTE`: nothing. It is about a mode of the model that is not deployed.
    """

    SERIOUS = "serious"
    CAUTION = "caution"
    NOTE = "note"


# Of every other check a raised flag is serious, so that a new one is not taken too lightly.
_LIGHTER = {
    "gradient-agreement": Severity.CAUTION,
    "logits": Severity.CAUTION,
    "silent-success": Severity.CAUTION,
    "incomplete-optimisation": Severity.CAUTION,
    "adjoint-agreement": Severity.NOTE,
    "backprop-agreement": Severity.NOTE,
}


def severity(name: str) -> Severity:
    """How much a raised flag of this name weighs."""
    return _LIGHTER.get(name, Severity.SERIOUS)
