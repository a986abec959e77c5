"""Whether a module computes what its class is known to compute.

Proofs, and the trust in predictions of a batch, speak of programs: of the methods of certain
classes as they were when this package was imported, which happens before any user's module is
loaded, and for PyTorch's classes as PyTorch defines them. A subclass, an instance or a process can
make another program of the same names. What is looked at is told in `unaltered` and
`altered_library`; functions of `torch` itself and code in C are taken at their word.
"""

import sys
from collections import OrderedDict
from collections.abc import Set
from inspect import getattr_static
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor, nn
from torch.nn import functional

from robustness.nets import config, flow  # noqa: F401  (they bring every network there is)

_Descriptor = (FunctionType, property, staticmethod, classmethod)
# What a class has of its own without meaning anything by it.
_METADATA = {
    "__module__",
    "__qualname__",
    "__doc__",
    "__dict__",
    "__weakref__",
    "__annotations__",
    "__annotate__",
    "__annotations_cache__",
    "__firstlineno__",
    "__static_attributes__",
    "__abstractmethods__",
    "__slotnames__",  # by the first copy
    "_abc_impl",
}
# What a subclass may define for itself without becoming another function.
_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters", "parametrisation", "settle"}
_INTERNAL = set(vars(nn.Module())) - {"training"}
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)

# Layers of PyTorch that, in evaluation mode, treat every image of a batch for itself.
_SAMPLEWISE = {
    nn.Sequential,
    nn.ModuleList,
    nn.Identity,
    nn.Flatten,
    nn.Linear,
    nn.Conv2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.Dropout,
    nn.Dropout2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardtanh,
}


def _known(package: str) -> list[type]:
    """The classes that the loaded modules of a package define."""
    modules = [m for name, m in list(sys.modules.items()) if f"{name}.".startswith(f"{package}.")]
    values = (value for module in modules for value in vars(module).values())
    return [v for v in values if isinstance(v, type) and f"{v.__module__}.".startswith(package)]


def _functions_of(value: object) -> list[FunctionType]:
    """The functions that a method, a property or a function consists of."""
    if isinstance(value, property):
        parts: list[object] = [value.fget, value.fset]
    else:
        parts = [value.__func__ if isinstance(value, staticmethod | classmethod) else value]
    return [part for part in parts if isinstance(part, FunctionType)]


class _Record:
    """The functions of a class or a module as they were when this module was imported."""

    def __init__(self, owner: type | ModuleType) -> None:
        self.owner, self.names = owner, frozenset(vars(owner))
        self.values = [
            (name, value)
            for name, value in vars(owner).items()
            if isinstance(value, _Descriptor) or callable(value)
        ]
        self.codes = [
            (f, f.__code__, f.__defaults__, f.__kwdefaults__)
            for _, value in self.values
            for f in _functions_of(value)
        ]

    def holds(self) -> bool:
        """Whether they still are, and a class has no attributes that are new.

        A name that is new to a module is read by nobody who does not know of it.
        """
        present = vars(self.owner)
        return (
            all(present.get(name) is value for name, value in self.values)
            and all(
                f.__code__ is code and f.__defaults__ is defaults and f.__kwdefaults__ is named
                for f, code, defaults, named in self.codes
            )
            and not (isinstance(self.owner, type) and self._added(present.keys()))
        )

    def _added(self, present: Set[str]) -> Set[str]:
        added = present - self.names - _METADATA
        if self.owner is Tensor:  # with many friends, whose methods matter where they hide its own
            return {name for name in added if any(name in vars(b) for b in Tensor.__mro__[1:])}
        return added

    def is_of(self, root: Path) -> bool:
        """Whether all code lies in a folder: nobody has replaced any of it before."""
        return all(Path(code.co_filename).is_relative_to(root) for _, code, *_ in self.codes)


_OWN = _known("robustness.nets")
# What computes besides the methods of modules.
_CALLED: list[type | ModuleType] = [
    functional,
    Tensor,
    *{sys.modules[known.__module__] for known in _OWN},
    *(m for name, m in sys.modules.items() if name.split(".")[0] == torchdiffeq.__name__),
    *_known("torchdiffeq"),
]
_LIBRARIES = [_Record(owner) for owner in _CALLED]
_CLASSES = {known: _Record(known) for known in [*_OWN, *_known("torch.nn.modules")]}
# PyTorch's whose methods somebody had replaced before this module was imported.
_TORCH = Path(torch.__file__).parent
_FOREIGN = {
    record.owner
    for record in (*_LIBRARIES[:2], *_CLASSES.values())
    if record.owner not in _OWN and not record.is_of(_TORCH)
}


def altered_library() -> str | None:
    """Which functions that networks call are not those that were imported; None where all are.

    Those of `torch.nn.functional`, `Tensor`, torchdiffeq and of this package's networks.
    """
    for record in _LIBRARIES:
        if record.owner in _FOREIGN or not record.holds():
            return record.owner.__name__
    return None


def _as_imported(known: type) -> bool:
    return known in _CLASSES and known not in _FOREIGN and _CLASSES[known].holds()


def unaltered(thing: object, known: type) -> bool:
    """Whether `thing` computes what the class `known` does, of which a proof or a trust speaks.

    It is another program if

    - the methods of `known` or of a base are not those that were imported, or not PyTorch's own;
    - its class overrides any of them, or has a property or another descriptor of its own;
    - the instance hides a method or a tensor behind an attribute, keeps tensors or modules of kinds
      of their own, or attributes that are neither numbers, strings, containers of these nor this
      package's settings;
    - it has a hook, there is one on every module, or it was compiled.

    Args:
        thing: a module, or the settings of a solver.
        known: the class that is known, one of PyTorch's layers or of `robustness.nets`.
    """
    kind = type(thing)
    return (
        issubclass(kind, known)
        and all(map(_as_imported, known.__mro__[:-1]))
        and all(_adds_nothing(part, known) for part in kind.__mro__ if part not in known.__mro__)
        and _is_plain_instance(thing)
    )


def _adds_nothing(subclass: type, known: type) -> bool:
    """Whether a subclass has only helpers and constants besides what it inherits."""
    return all(
        not hasattr(known, name)
        and (isinstance(value, FunctionType | staticmethod | classmethod) or _is_plain(value))
        for name, value in vars(subclass).items()
        if name not in _METADATA | _HARMLESS
    )


def _is_plain_instance(thing: object) -> bool:
    state = dict(vars(thing))
    tables: list[dict[str, Any]] = []
    if isinstance(thing, nn.Module):
        tables = [state[name] for name in ("_parameters", "_buffers", "_modules")]
        if _is_hooked(thing) or not all(type(t) in (dict, OrderedDict) for t in tables):
            return False
        for name in _INTERNAL:
            state.pop(name, None)
        tensors = [*tables[0].values(), *tables[1].values()]
        if not all(t is None or type(t) in (Tensor, nn.Parameter, nn.Buffer) for t in tensors):
            return False
    names = [name for table in (state, *tables) for name in table]
    registered = [name for table in tables for name in table]
    return (
        len(set(names)) == len(names)
        and not any(isinstance(getattr_static(type(thing), n, None), _Descriptor) for n in names)
        and not any(hasattr(type(thing), name) for name in registered)
        and all(map(_is_plain, state.values()))
    )


def _is_hooked(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        nn.modules.module._global_forward_hooks,
        nn.modules.module._global_forward_pre_hooks,
    )
    return any(hooks) or module._compiled_call_impl is not None


def _is_plain(value: object) -> bool:
    """Whether a value can only be what it is: no object with code of a user's."""
    kind = type(value)
    if kind in _PLAIN or (isinstance(value, np.generic) and kind.__module__ == "numpy"):
        return True
    if kind in (tuple, list, set, frozenset, torch.Size):
        assert isinstance(value, tuple | list | set | frozenset)
        return all(map(_is_plain, value))
    if kind is dict:
        assert isinstance(value, dict)
        return all(map(_is_plain, [*value.keys(), *value.values()]))
    return kind in _OWN and not isinstance(value, nn.Module) and unaltered(value, kind)


def predicts_each_by_itself(model: nn.Module) -> bool:
    """Whether a batched prediction is known to be that of each image alone, up to rounding.

    So it is where every part is in evaluation mode, of exactly the class of one of PyTorch's
    layers that treat each image for itself or of this package's networks, unaltered, and no
    solver takes one step size for the whole batch. Nothing is known of other modules.
    """
    return altered_library() is None and _treats_each_by_itself(model)


def _treats_each_by_itself(part: nn.Module) -> bool:
    kind = type(part)
    if not (kind in _SAMPLEWISE or kind in _OWN) or not unaltered(part, kind) or part.training:
        return False
    if isinstance(part, nn.Flatten) and part.start_dim < 1:
        return False
    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and part.running_var is None:
        return False
    solver, inner = vars(part).get("solver"), vars(part)["_modules"].values()
    return (solver is None or not solver.couples_batch) and all(
        child is None or _treats_each_by_itself(child) for child in inner
    )
