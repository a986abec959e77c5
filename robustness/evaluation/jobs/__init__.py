"""The kinds of jobs, each in a file of its own: how it is planned, run, stored and summarised.

This is the one place where those of this package are named; the order is that in which they are
planned, and in which what they found is taken account of.
"""

from robustness.evaluation.jobs import (  # isort: skip
    clean,  # noqa: F401  (each registers itself)
    flow,  # noqa: F401
    decay,  # noqa: F401
    envelope,  # noqa: F401
    certificate,  # noqa: F401
    attack,  # noqa: F401
    worst_case,  # noqa: F401
    audit,  # noqa: F401
    nearest,  # noqa: F401
    flags,  # noqa: F401
)
from robustness.evaluation.jobs.base import (
    KINDS,
    Asked,
    Findings,
    Kind,
    Result,
    Work,
    register_kind,
)
from robustness.evaluation.jobs.rows import Row, SampleRow

__all__ = [
    "KINDS",
    "Asked",
    "Findings",
    "Kind",
    "Result",
    "Row",
    "SampleRow",
    "Work",
    "register_kind",
]
