"""Adversarial robustness evaluation for neural ODEs: attacks, certificates, and the bracket."""

from importlib import import_module
from typing import TYPE_CHECKING

from robustness.errors import OperationalError, SoundnessError, UsageError

if TYPE_CHECKING:
    from robustness.api import attack, certify, evaluate, merge
    from robustness.registry import load_plugin
    from robustness.zoo import load_model

__all__ = [
    "OperationalError",
    "SoundnessError",
    "UsageError",
    "attack",
    "certify",
    "evaluate",
    "load_model",
    "load_plugin",
    "merge",
]

_HOMES = dict.fromkeys(("attack", "certify", "evaluate", "merge"), "robustness.api")
_HOMES |= {"load_model": "robustness.zoo", "load_plugin": "robustness.registry"}


def __getattr__(name: str) -> object:
    # When first asked for: a command that cannot import torch is to say so in one line.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
