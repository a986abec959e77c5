"""One of everything that can be added to `robustness`, for `--plugin robustness_example`.

Installed, it is found by its entry points (see pyproject.toml), and needs no `--plugin`.
"""

from robustness_example import (
    attack,
    certificate,
    column,
    dataset,
    executor,
    job,
    operation,
    view,
)

__all__ = ["attack", "certificate", "column", "dataset", "executor", "job", "operation", "view"]
