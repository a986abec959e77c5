"""What can go wrong, by whose answer it is.

A `UsageError` is the caller's to mend and becomes exit code 2; a `SoundnessError`
is the suite's own defect and becomes exit code 1. Numerical failure of a solver is
neither: it is data (a non-finite prediction), reported per sample.
"""


class UsageError(ValueError):
    """Bad input. The message is one line: what was expected, what came, what to do."""


class SoundnessError(RuntimeError):
    """A certified image was broken inside its certified radius."""
