"""Audits of a few steps only, where they are no matter."""

from collections.abc import Callable

from robustness.attacks import Stage, default_stages
from robustness.evaluation.jobs import audit


def shorten(change: Callable[[object, str, object], None]) -> None:
    """Have audits shortened by `change`, which is `setattr`, or that of what is undone later."""

    def quick(model: object, threat: object) -> list[Stage]:
        return default_stages(model, threat, "quick")  # type: ignore[arg-type]

    change(audit, "default_stages", quick)
    change(audit, "_STEPS", 2)
    change(audit, "_STARTS", 1)
