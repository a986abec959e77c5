"""Recording a program: what one image's logits are computed by, operation by operation.

A certificate that is written against a class of models covers that class. What predicts is a
sequence of tensor operations on one image, whoever wrote the loop that calls them: an unrolled
solver, a library's, a user's. `record` runs the deployed model once, alone in its batch, on a
tensor type that has no storage, so that nothing can be read from it unseen: every access is an
operation that is noted, or an error. Operations that do not depend on the image are carried out
and become constants.

The record speaks for other images only where the path does not depend on the image. It is refused
where a scalar is read from a dependent value (adaptive solvers do), where an operation draws random
numbers, has no rule, or leaves torch, and where a second recording at another image differs in an
operation or in one bit of a constant.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from robustness.programs.graph import Node, Program, Refusal, bits, place, source, take

_aten = torch.ops.aten

# Reads of a value by the program's control flow: `item`, `bool`, `int`, `if`.
_READS = (_aten._local_scalar_dense.default, _aten.is_nonzero.default, _aten.equal.default)
# Share of the largest logit by which sums that are added in another order may differ.
_OTHER_ORDER = 1e-4
# What makes a buffer whose entries are not yet written; its garbage must not become a constant.
_UNWRITTEN = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
# What takes its shape from a tensor, and not a value.
_OF_SHAPE = (
    *("empty_like", "new_empty", "new_empty_strided", "zeros_like", "new_zeros"),
    *("ones_like", "new_ones", "full_like", "new_full"),
)


def record(model: nn.Module, shape: tuple[int, int, int]) -> Program:
    """The program that computes one image's logits.

    Args:
        model: the deployed model, pixels to logits, in evaluation mode.
        shape: channels, height and width of an image.

    Raises:
        Refusal: the model's path depends on the image, or part of it cannot be recorded.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand((2, *shape), generator=generator).split(1)
    # A copy: a model that keeps what it computed would keep recorded tensors. The same one twice:
    # what it counts or keeps of one image must not change what it computes of the next.
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise Refusal(f"the model cannot be copied: {_in_a_line(error)}") from error
    program = _record_once(twin, first)
    difference = program.difference(_record_once(twin, second))
    if difference is not None:
        raise Refusal(f"the path depends on the image: two recordings differ in {difference}")
    for image in (first, second):
        _require_faithful(program, model, image)
    return program


def _require_faithful(program: Program, model: nn.Module, image: Tensor) -> None:
    """Compare the record with the model, whose weights may lie in memory that was mapped.

    Sums over such are added in another order than over a copy's, which no bound minds: a copy gives
    the same bits then, and the model the same numbers but for rounding.
    """
    with torch.no_grad():
        deployed, replayed = model(image), program.run(image)
        if _same_bits(deployed, replayed):
            return
        copied = copy.deepcopy(model)(image)
    near = deployed.shape == replayed.shape and bool(
        ((deployed - replayed).abs() <= _OTHER_ORDER * replayed.abs().max()).all()
    )
    if not near or not _same_bits(copied, replayed):
        raise Refusal("the recorded program does not give the deployed logits bit for bit")


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(bits(first), bits(second))


def _record_once(twin: nn.Module, image: Float[Tensor, "1 c h w"]) -> Program:
    recorder = _Recorder()
    source = recorder.source(image)
    return _recorded(recorder, lambda: twin(source))


def record_with_parameters(
    model: nn.Module, image: Float[Tensor, "1 c h w"]
) -> tuple[Program, dict[int, str]]:
    """A recording that follows the model's parameters as it follows the image.

    It is one recording at one image, and no check that the program speaks for others; see `record`.

    Args:
        model: may keep what it computes.
        image: where it is recorded.

    Returns:
        The program, and the names of the parameters by the indices of the nodes they enter at.

    Raises:
        Refusal: see `record`; a path that depends on a parameter's value is refused too.
    """
    recorder = _Recorder()
    source = recorder.source(image)
    given: dict[str, Tensor] = {
        name: recorder.source(p.detach()) for name, p in model.named_parameters()
    }
    names = dict(enumerate(given, start=1))
    call = torch.func.functional_call
    return _recorded(recorder, lambda: call(model, given, (source,))), names


def _recorded(recorder: "_Recorder", call: Callable[[], Any]) -> Program:
    try:
        with torch.no_grad(), recorder:
            logits = call()
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(f"the model cannot be recorded: {_in_a_line(error)}") from error
    if not isinstance(logits, Recorded) or logits.node is None:
        kind = type(logits).__name__
        raise Refusal(f"expected logits that depend on the image, got {kind} that does not")
    if logits.dim() != 2 or len(logits) != 1:
        raise Refusal(f"expected logits of shape (1, classes), got {tuple(logits.shape)}")
    return Program.of(recorder.nodes, logits.node)


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


class _Cell:
    """A piece of memory and the node that says what now stands in it, None for a constant."""

    def __init__(self, base: Tensor, node: Node | None = None) -> None:
        self.base, self.node, self.version = base, node, 0


class Recorded(torch.Tensor):
    """A tensor without storage that stands for a value of the recorded program.

    Attributes:
        actual: the value at the recorded image, a view of other values as in the program.
        cell: the memory it lies in.
        places: which entries of the cell it shows, in flat indices; None for all, in order.
    """

    actual: Tensor
    cell: _Cell
    places: Tensor | None
    recorder: "_Recorder"
    _known: tuple[int, Node | None]

    @staticmethod
    def __new__(cls, real: Tensor, *details: Any) -> "Recorded":  # noqa: D102
        del details
        return torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            layout=real.layout,
            device=real.device,
        )

    def __init__(
        self,
        real: Tensor,
        cell: _Cell,
        places: Tensor | None,
        recorder: "_Recorder",
        node: Node | None = None,
    ) -> None:
        self.actual, self.cell, self.places, self.recorder = real, cell, places, recorder
        self._known = (cell.version, cell.node if places is None else node)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        leaves = pytree.tree_leaves((args, kwargs or {}))
        recorder = next(leaf.recorder for leaf in leaves if isinstance(leaf, Recorded))
        return recorder.dispatch(func, tuple(args), kwargs or {})

    @property
    def node(self) -> Node | None:
        """What computes the value as it stands now; None for a constant."""
        if self._known[0] != self.cell.version:
            # The memory was written to since: what this view shows is read from it anew.
            if self.places is None or self.cell.node is None:
                node = self.cell.node
            else:
                node = self.recorder.note(
                    take, (self.places, self.cell.node), self.places.shape, self.cell.node.dtype
                )
            self._known = (self.cell.version, node)
        return self._known[1]

    def stands_for(self, node: Node | None) -> None:
        """Note what computes the value since the last write."""
        self._known = (self.cell.version, node)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Recorded({tuple(self.shape)}, {self.dtype})"

    def numpy(self, **options: Any) -> Any:
        """The value of a constant as an array.

        Raises:
            Refusal: the value depends on the image.
        """
        return self._constant("numpy").numpy(**options)

    def __array__(self, *details: Any, **options: Any) -> Any:
        return self._constant("numpy").__array__(*details, **options)

    def tolist(self) -> Any:
        """The value of a constant as a list.

        Raises:
            Refusal: the value depends on the image.
        """
        return self._constant("a list").tolist()

    def apply_(self, *_: Any) -> Any:
        """Refused: Python's functions of entries are no operations.

        Raises:
            Refusal: always.
        """
        raise Refusal("the program leaves torch: a function of Python is applied to entries")

    map_ = map2_ = apply_  # type: ignore[assignment]

    def _constant(self, where: str) -> Tensor:
        if self.node is not None:
            raise Refusal(f"the program leaves torch: a value of the image is turned into {where}")
        return self.actual


class _Recorder(TorchDispatchMode):
    """Notes every operation on recorded tensors, and wraps what else is computed meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []

    def source(self, image: Tensor) -> Recorded:
        """The image, as the first node."""
        node = self.note(source, (), image.shape, image.dtype)
        actual = image.clone()
        return Recorded(actual, _Cell(actual, node), None, self)

    def note(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        shape: Sequence[int],
        dtype: torch.dtype,
        kwargs: dict[str, Any] | None = None,
        output: int | None = None,
    ) -> Node:
        """Append one operation."""
        # A value without axes is one entry, which broadcasts alike.
        axes = tuple(shape) or (1,)
        node = Node(len(self.nodes), func, args, kwargs or {}, axes, dtype, output)
        self.nodes.append(node)
        return node

    def note_call(
        self, func: Any, operands: tuple[Any, Any], out: Tensor, output: int | None = None
    ) -> Node:
        """Append an operation of torch that gave `out`."""
        args, kwargs = operands
        return self.note(func, args, out.shape, out.dtype, kwargs, output)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        return self.dispatch(func, tuple(args), kwargs or {})

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Carry out one operation on the real values, and note it where it depends on the image."""
        leaves = pytree.tree_leaves((args, kwargs))
        recorded = [leaf for leaf in leaves if isinstance(leaf, Recorded)]
        depends = [leaf for leaf in recorded if leaf.node is not None]
        if any(leaf.recorder is not self for leaf in depends):
            raise Refusal("the model keeps values of one image for the next")
        if _name(func) in _OF_SHAPE:
            depends = []
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refusal(f"{_name(func)} draws random numbers")
        if depends and (func in _READS or torch.Tag.data_dependent_output in func.tags):
            raise Refusal(
                f"the path depends on the image: {_name(func)} reads a value of it, as adaptive "
                "solvers and branches on values do"
            )
        if _name(func) == "index":
            chosen = pytree.tree_leaves(args[1])
            shapes_depend = any(leaf is other for leaf in depends for other in chosen)
        else:
            shapes_depend = bool(depends) and torch.Tag.dynamic_output_shape in func.tags
        if shapes_depend:
            raise Refusal(f"the path depends on the image: the shape of {_name(func)} does")
        real_args, real_kwargs = pytree.tree_map_only(Recorded, lambda t: t.actual, (args, kwargs))
        if func._schema.is_mutable:
            return self._write(func, args, kwargs, real_args, real_kwargs, bool(depends))
        # Values that will be overwritten in place are kept as they are read.
        call_args = pytree.tree_map_only(Tensor, _Operand.of, (args, kwargs)) if depends else None
        out = func(*real_args, **real_kwargs)
        if _name(func) in _UNWRITTEN:
            out.fill_(torch.nan if out.is_floating_point() else out.dtype is not torch.bool)
        if any(ret.alias_info is not None for ret in func._schema.returns):
            return self._view(func, args, kwargs, out, call_args)
        if call_args is None:
            return pytree.tree_map_only(Tensor, lambda t: Recorded(t, _Cell(t), None, self), out)
        return self._noted(func, call_args, out)

    def _noted(self, func: Any, operands: Any, out: Any) -> Any:
        parts, structure = pytree.tree_flatten(out)
        found = []
        for number, part in enumerate(parts):
            if not isinstance(part, Tensor):
                raise Refusal(f"the path depends on the image: {_name(func)} gives {part!r}")
            node = self.note_call(func, operands, part, number if len(parts) > 1 else None)
            found.append(Recorded(part, _Cell(part, node), None, self))
        return pytree.tree_unflatten(found, structure)

    def _view(self, func: Any, args: Any, kwargs: Any, out: Any, operands: Any) -> Any:
        base = args[0]
        if not isinstance(base, Recorded):
            return out
        whole = base.places
        if whole is None:
            whole = torch.arange(base.actual.numel()).view(base.actual.shape)
        places = func(whole, *args[1:], **kwargs)
        parts, structure = pytree.tree_flatten(out)
        shown = pytree.tree_leaves(places)
        found = []
        for number, (part, entries) in enumerate(zip(parts, shown, strict=True)):
            node = None
            if operands is not None:
                node = self.note_call(func, operands, part, number if len(parts) > 1 else None)
            found.append(Recorded(part, base.cell, entries, self, node))
        return pytree.tree_unflatten(found, structure)

    def _write(
        self, func: Any, args: Any, kwargs: Any, real_args: Any, real_kwargs: Any, depends: bool
    ) -> Any:
        written = [
            _argument(parameter, position, args, kwargs)
            for position, parameter in enumerate(func._schema.arguments)
            if parameter.alias_info is not None and parameter.alias_info.is_write
        ]
        targets = [target for target in written if isinstance(target, Tensor)]
        if not depends:
            func(*real_args, **real_kwargs)
            return targets[0] if len(targets) == 1 else tuple(targets)
        target = targets[0] if len(targets) == 1 else None
        if not isinstance(target, Recorded):
            raise Refusal(f"{_name(func)} writes into a tensor from outside the program")
        functional, operands = self._functional(func, args, kwargs, target)
        before = target.cell.base.clone() if target.cell.node is None else target.cell.node
        func(*real_args, **real_kwargs)
        node: Node | None = None
        if any(isinstance(leaf, Node) for leaf in pytree.tree_leaves(operands)):
            node = self.note_call(functional, operands, target.actual)
        cell = target.cell
        if target.places is None:
            cell.node = node
        else:
            written_now = target.actual.clone() if node is None else node
            parts = (target.places, before, written_now)
            cell.node = self.note(place, parts, cell.base.shape, cell.base.dtype)
        cell.version += 1
        target.stands_for(node)
        return target

    def _functional(
        self, func: Any, args: Any, kwargs: Any, target: Recorded
    ) -> tuple[Any, tuple[Any, Any]]:
        """The operation without a write that gives what is written, and its operands."""
        name = _name(func)
        if name == "zero_" or (name == "fill_" and not isinstance(args[1], Tensor)):
            value = args[1] if name == "fill_" else 0
            return _aten.full.default, ((list(target.shape), value), {"dtype": target.dtype})
        if name in ("copy_", "fill_"):
            source = args[1]
            if source.dtype is not target.dtype:
                source = self.dispatch(_aten._to_copy.default, (source,), {"dtype": target.dtype})
            return _aten.expand.default, ((_Operand.of(source), list(target.shape)), {})
        packet = getattr(_aten, name.removesuffix("_"), None)
        overload = getattr(packet, func._overloadname, None) if name.endswith("_") else None
        if overload is None or overload._schema.is_mutable:
            raise Refusal(f"{_name(func)} writes in place, and no form of it without is known")
        return overload, pytree.tree_map_only(Tensor, _Operand.of, (args, kwargs))


def _argument(parameter: Any, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[position] if position < len(args) else kwargs.get(parameter.name)


class _Operand:
    """How a tensor enters a call: the node that it stands for, or a copy of its value."""

    @staticmethod
    def of(tensor: Tensor) -> Node | Tensor:
        if isinstance(tensor, Recorded):
            return tensor.actual.clone() if tensor.node is None else tensor.node
        return tensor.detach()


def _name(func: Any) -> str:
    name: str = func._schema.name
    return name.removeprefix("aten::")
