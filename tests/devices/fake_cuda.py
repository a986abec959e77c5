"""A CUDA device that is none: tensors that say they are on `cuda`, and compute on the CPU.

FakeTensorMode of torch knows shapes alone, and an attack decides by values. Here every tensor that
is moved to `cuda`, or made there, or computed from such a one, wraps its value. What raises on a
machine with a GPU raises here: an operation on tensors of both devices (numbers without axes
aside), an array of a tensor of `cuda`, a generator of the CPU that draws there. More is asked
than torch asks: nothing draws random numbers on `cuda` at all, and no tensor of the CPU is an
index of one there, which torch would move in silence.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from robustness.programs import trust

DEVICE = torch.device("cuda:0")
# What torch, which may have no CUDA, is told instead; shapes alone are computed on plain `meta`.
_INSTEAD = torch.device("meta:1")
NAME = "NVIDIA Fake"
_aten = torch.ops.aten
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class MixedError(RuntimeError):
    """What torch says of tensors on different devices, as this module says it."""


class OnCuda(torch.Tensor):
    """A tensor of the fake device.

    To torch's own code it is one of `meta`, of which it expects nothing, and so leaves all to
    `dispatch`; to Python it is one of `cuda`.
    """

    actual: Tensor

    @staticmethod
    def __new__(cls, actual: Tensor) -> "OnCuda":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            actual.size(),
            strides=actual.stride(),
            storage_offset=actual.storage_offset(),
            dtype=actual.dtype,
            layout=actual.layout,
            device=_INSTEAD,
        )

    def __init__(self, actual: Tensor) -> None:
        self.actual = actual

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.actual.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = OnCuda(self.actual.clone()).requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            twin._is_param = True
        memo[id(self)] = twin
        return twin

    def __format__(self, spec: str) -> str:
        return format(self.actual, spec)

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({self.actual!r})"

    __hash__ = torch.Tensor.__hash__


class _Named(TorchFunctionMode):
    """Calls the fake device by the name that torch is told."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCuda):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            # Of a list torch makes a tensor on the device that it was told of.
            index = tuple(OnCuda(torch.tensor(i)) if isinstance(i, list) else i for i in index)
            args = (args[0], index, *args[2:])
            here = (isinstance(i, Tensor) and not isinstance(i, OnCuda) and i.dim() for i in index)
            if any(here) and _is_asked_by_us():
                raise MixedError("an index on cpu of a tensor on cuda:0")
        kwargs = kwargs or {}
        if func is torch.tensor and _renamed(kwargs.get("device")) is _INSTEAD:
            return OnCuda(func(*args, **(kwargs | {"device": "cpu"})))
        if func is not torch.device:
            args = tuple(map(_renamed, args))
            kwargs = {name: _renamed(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _is_asked_by_us() -> bool:
    """Whether the code at work is of this package, and not of a library."""
    frame = sys._getframe(2)
    while frame.f_back is not None and Path(frame.f_code.co_filename).name == "devices.py":
        frame = frame.f_back
    return frame.f_globals.get("__name__", "").startswith("robustness.")


def _renamed(value: Any) -> Any:
    is_cuda = isinstance(value, torch.device) and value.type == "cuda"
    return (
        _INSTEAD if is_cuda or (isinstance(value, str) and value in ("cuda", "cuda:0")) else value
    )


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute one operation on the values, and insist that they are all on one device."""
    leaves = list(_tensors([*args, *kwargs.values()]))
    there = [leaf for leaf in leaves if isinstance(leaf, OnCuda)]
    indices = args[1] if func in _INDEXED else ()  # which torch takes from the CPU, too
    here = [t for t in leaves if not isinstance(t, OnCuda) and not any(t is i for i in indices)]
    asked = kwargs.get("device")
    onto = bool(there) if asked is None else torch.device(asked) == _INSTEAD
    moves = func in (_aten._to_copy.default, _aten.copy_.default)
    assert not any(t.device == _INSTEAD for t in here), "a tensor without a value"
    if there and not moves:
        first = max(dim for dim in (t.dim() for t in there))
        if any(t.dim() > 0 for t in here) or (here and first == 0 and func._schema.is_mutable):
            raise MixedError(
                f"expected all tensors to be on the same device, found cuda:0 and cpu: {func}"
            )
    if onto and torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs):
        raise MixedError(f"a random draw on cuda:0: {func}")
    if onto and asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if not there and not onto:
        return func(*args, **kwargs)
    out = func(*map(_actual, args), **{name: _actual(value) for name, value in kwargs.items()})
    if func._schema.is_mutable:
        return args[0] if isinstance(out, Tensor) else out
    if not onto:
        return out
    if isinstance(out, list | tuple):
        return type(out)(OnCuda(t) if isinstance(t, Tensor) else t for t in out)
    return OnCuda(out) if isinstance(out, Tensor) else out


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors of an operation's operands, in lists too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _actual(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_actual, value))
    return value.actual if isinstance(value, OnCuda) else value


def _draws(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it does: dropout of a model in evaluation mode has the tag, and does not."""
    return "dropout" not in func.__name__ or bool(args[2] if len(args) > 2 else True)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> Iterator[None]:
    """A machine with so many GPUs, as far as torch's Python can tell."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _=None: NAME)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _=None: None)
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    # Trust is in tensors of torch's own type alone, which a fake is not.
    trusts = trust.predicts_each_by_itself
    for name, module in list(sys.modules.items()):
        if name.startswith("robustness.") and hasattr(module, "predicts_each_by_itself"):
            monkeypatch.setattr(
                module, "predicts_each_by_itself", lambda model: trusts(copy.deepcopy(model).cpu())
            )
    with _Named(), _Mode():
        yield
