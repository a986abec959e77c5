"""What a model is: what it is made of, and what it computes.

A stored result belongs to one function. Names and weights do not tell it: a factory may read a
scale from the environment, a checkpoint may be rewritten. So a model is described as it was
loaded, part by part, and asked for its logits on fixed images. A function that neither tells
apart from another differs from it only elsewhere, by something that `unidentified` names or by
code outside of the modules that define its classes. Logits are bits of one machine's arithmetic, so
what an entry of the zoo, all of which its parts tell, is filed under has none of them.
"""

import functools
import hashlib
import inspect
import json
import sys
import types
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.errors import is_interruption
from robustness.numerics.devices import beside
from robustness.numerics.reproducible import reproducible_arithmetic

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CALLABLE = (types.BuiltinFunctionType, type, np.ufunc)
_DESCRIPTORS = (types.FunctionType, staticmethod, classmethod, property)
# What every module has, and what of it decides nothing.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_INTERNAL = set(vars(nn.Module()))
# Packages whose classes are told by their names: their versions are in every report.
_KNOWN_PACKAGES = ("torch", "robustness", "builtins", "typing", "abc")
_SOURCE = "source of "


@dataclass(frozen=True)
class Structure:
    """What a model is made of.

    Attributes:
        parts: a description of each part by its path: classes of modules, every tensor, persistent
            or not, every attribute that can be told, and the source of users' classes.
        unidentified: what cannot be told: paths of attributes of unknown kinds, with their kinds.
    """

    parts: dict[str, str]
    unidentified: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all parts."""
        return hashlib.sha256(json.dumps(list(self.parts.items())).encode()).hexdigest()

    @property
    def complete(self) -> bool:
        """Whether the parts tell the function: all are told, and no class is of a user's code."""
        return not self.unidentified and not any(path.startswith(_SOURCE) for path in self.parts)

    def difference(self, other: "Structure") -> str | None:
        """The first part that is not the same in `other`; None where all are."""
        paths = [*self.parts, *other.parts]
        return next((p for p in paths if self.parts.get(p) != other.parts.get(p)), None)


def describe(module: nn.Module) -> Structure:
    """What `module` is made of, as it is now: a forward pass may count itself in an attribute."""
    description = _Description()
    description.add("", module)
    return Structure(description.parts, tuple(description.unidentified))


class _Description:
    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.unidentified: list[str] = []
        # The objects themselves, since the number of one that is gone may be another's.
        self._seen: dict[int, tuple[str, object]] = {}

    def add(self, path: str, value: object) -> None:
        kind = _qualified(type(value))
        if isinstance(value, Enum):
            self.parts[path] = f"{kind} {value.name}"
        elif isinstance(value, _PLAIN) and not isinstance(value, np.generic):
            self.parts[path] = f"{kind} {value!r}"
        elif isinstance(value, Tensor | np.ndarray | np.generic):
            self._add_array(path, value)
        elif isinstance(value, tuple):  # equal ones may or may not be one object
            self.parts[path] = kind
            self._add_items(path, dict(enumerate(value)))
        elif id(value) in self._seen:
            self.parts[path] = f"the same as {self._seen[id(value)][0]}"
        else:
            self._seen[id(value)] = (path, value)
            self._add_compound(path, value)

    def _add_array(self, path: str, value: Tensor | np.ndarray | np.generic) -> None:
        try:
            array = _bytes_of(value) if isinstance(value, Tensor) else np.asarray(value)
            if array.dtype.hasobject:
                raise TypeError("objects in an array are no numbers")
            sha = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            self._give_up(path, value)
        else:
            described = f"{_qualified(type(value))} {value.dtype} {tuple(value.shape)} {sha}"
            self.parts[path] = described

    def _add_compound(self, path: str, value: object) -> None:
        self.parts[path] = _qualified(type(value))
        if isinstance(value, nn.Module):
            self._add_module(path, value)
        elif isinstance(value, _CALLABLE):
            self.parts[path] = _qualified(value)
        elif isinstance(value, types.FunctionType):
            self.parts[path] = _qualified(value)
            cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
            self._add_items(path, {"()": [value.__defaults__, value.__kwdefaults__, cells]})
        elif isinstance(value, types.MethodType):
            self._add_items(path, {"function": value.__func__, "self": value.__self__})
        elif isinstance(value, functools.partial):
            parts = {"function": value.func, "args": value.args, "keywords": value.keywords}
            self._add_items(path, parts)
        elif is_dataclass(value):
            named = {f.name: getattr(value, f.name, None) for f in fields(value)}
            self._add_items(path, named)
        elif isinstance(value, types.SimpleNamespace):
            self._add_items(path, vars(value))
        elif isinstance(value, Mapping):
            self._add_items(path, {repr(key): entry for key, entry in value.items()})
        elif isinstance(value, Set):
            self._add_items(path, dict(enumerate(sorted(value, key=repr))))
        elif isinstance(value, list):
            self._add_items(path, dict(enumerate(value)))
        else:
            self._give_up(path, value)

    def _add_module(self, path: str, module: nn.Module) -> None:
        self.parts[path] += "" if not module.training else " in training mode"
        self._add_items(path, dict(module.named_parameters("", False, False)))
        self._add_items(path, dict(module.named_buffers("", False, False)))
        attributes = {key: vars(module)[key] for key in sorted(vars(module).keys() - _INTERNAL)}
        self._add_items(path, attributes)
        for hooks in _HOOKS:
            self._add_items(path, {hooks: list(vars(module).get(hooks, {}).values())})
        for known in type(module).__mro__:
            if known.__module__.split(".")[0] not in _KNOWN_PACKAGES:
                self._add_class(known)
        self._add_items(path, dict(vars(module)["_modules"].items()))

    def _add_class(self, known: type) -> None:
        self.parts[f"{_SOURCE}{known.__module__}"] = _source(known.__module__)
        for name, value in sorted(vars(known).items()):
            if not name.startswith("__") and not isinstance(value, _DESCRIPTORS):
                self.add(f"{_qualified(known)}.{name}", value)

    def _add_items(self, path: str, items: Mapping[str, object] | Mapping[int, object]) -> None:
        for name, value in items.items():
            self.add(f"{path}.{name}" if path else str(name), value)

    def _give_up(self, path: str, value: object) -> None:
        self.parts[path] = _qualified(type(value))
        self.unidentified.append(f"{path} ({_qualified(type(value))})")


def _qualified(named: object) -> str:
    module, name = getattr(named, "__module__", None), getattr(named, "__qualname__", None)
    return f"{module}.{name or getattr(named, '__name__', '')}"


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (asking is what raises)
    except ValueError:
        return False
    return True


def _source(module: str) -> str:
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[module]).encode()).hexdigest()
    except (KeyError, OSError, TypeError):
        return "no source"


def _bytes_of(tensor: Tensor) -> np.ndarray:
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy()


def probe_images(shape: Iterable[int]) -> Float[Tensor, "n c h w"]:
    """Fixed images of [0, 1]: noise, faint noise around grey, black and white, black, white.

    Args:
        shape: of one image, (c, h, w).
    """
    noise, grey = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    faint, sharp = 0.5 + 0.1 * (grey - 0.5), (grey > 0.5).float()
    return torch.stack([noise, faint, sharp, torch.zeros_like(noise), torch.ones_like(noise)])


def fingerprint(module: nn.Module, shape: Iterable[int]) -> str | None:
    """SHA-256 of the logits of `probe_images`, bit for bit, each image alone in its batch.

    A forward pass that raises gives its error's class in place of logits.

    Args:
        module: pixels to logits.
        shape: of one image, (c, h, w).

    Returns:
        None where two calls of the same image differ: the output is random, or depends on calls
        of before.
    """
    # Five images there and back: an output that changes with the number of calls, and comes back
    # every k of them, k > 1, meets some image in another phase.
    images = probe_images(shape)
    with reproducible_arithmetic(), torch.random.fork_rng(devices=[]), torch.no_grad():
        there = [_answer(module, image) for image in images]
        back = [_answer(module, image) for image in images.flip(0)]
    return hashlib.sha256(json.dumps(there).encode()).hexdigest() if there == back[::-1] else None


def _answer(module: nn.Module, image: Float[Tensor, "c h w"]) -> str:
    try:
        logits = module(*beside(module, image.unsqueeze(0).clone()))
        if not isinstance(logits, Tensor):
            return _qualified(type(logits))
        # Which of its many bit patterns a NaN has is no matter.
        settled = torch.where(logits.isnan(), torch.nan, logits)
        sha = hashlib.sha256(_bytes_of(settled).tobytes()).hexdigest()
        return f"{logits.dtype} {tuple(logits.shape)} {sha}"
    except BaseException as error:  # a user's model may do anything, SystemExit too
        if is_interruption(error):
            raise
        return f"raised {_qualified(type(error))}"


def answers(module: nn.Module, shape: Iterable[int]) -> bool:
    """Whether a model gives logits of `probe_images` rather than raise.

    Args:
        module: pixels to logits.
        shape: of one image, (c, h, w).
    """
    with torch.no_grad():
        return not any(_answer(module, i).startswith("raised ") for i in probe_images(shape))
