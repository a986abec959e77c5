"""Every operation's rules against samples: boxes hold, lines lie below, float32 within rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree  # noqa: PLC2701
from torch.utils._python_dispatch import _disable_current_modes  # noqa: PLC2701

from robustness.numerics.arithmetic import computed_in
from robustness.programs.boxes import Box
from robustness.programs.forms import Form, advanced
from robustness.programs.graph import Node, Refusal
from robustness.programs.network import Network
from robustness.programs.operations.base import REGISTRY
from robustness.programs.record import record

SHAPE = (2, 4, 4)
LANES, POINTS = 4, 18


class Calls(nn.Module):
    """A model that is one function of its image, flattened to logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images).reshape(1, -1).float()


@cache
def _weights(*shape: int) -> Tensor:
    with _disable_current_modes():
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)) / 2


def _moments(channels: int) -> tuple[Tensor, Tensor]:
    return _weights(channels), _variances(channels)


@cache
def _variances(channels: int) -> Tensor:
    with _disable_current_modes():
        return _weights(channels).abs() + 0.1


@dataclass(frozen=True)
class Row:
    """One function that is recorded, and the names of operations that it must exercise."""

    function: Callable[[Tensor], Tensor]
    names: tuple[str, ...]
    shift: float = 0.0


def _sorted(x: Tensor) -> Tensor:
    return x.flatten(1)[:, :6].sort(dim=1, descending=True).values


def _gathered(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat.gather(1, (flat[:, :3] > 0).long().sum(dim=1, keepdim=True))


def _written(x: Tensor) -> Tensor:
    buffer = torch.zeros(2, *x.shape[1:])
    buffer[0] = x[0]
    buffer[1] = 2 * x[0].flip(0)
    return buffer.sum(dim=0, keepdim=True)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, 0].flatten(1), x[:, 1].flatten(1)


TABLE = {
    "view": Row(lambda x: x.view(1, 32) + 0, ("view",)),
    "permute": Row(lambda x: x.permute(0, 2, 3, 1) * 2, ("permute",)),
    "slices": Row(lambda x: torch.cat([x[:, :, 1:3], x[:, :, :1]], dim=2), ("slice", "cat")),
    "padding": Row(lambda x: functional.pad(x, (1, 1, 0, 2), value=0.3), ("constant_pad_nd",)),
    "pixel shuffles": Row(lambda x: functional.pixel_unshuffle(x, 2), ("pixel_unshuffle",)),
    "expansion": Row(lambda x: x[:, :1].expand(1, 3, 4, 4) * 1.5, ("expand",)),
    "writes": Row(_written, ("place", "select")),
    "sum": Row(lambda x: x.sum(dim=(1, 2)), ("sum",)),
    "mean": Row(lambda x: x.mean(dim=(2, 3)), ("mean",)),
    "running sums": Row(lambda x: x.flatten(1).cumsum(dim=1), ("cumsum",)),
    "linear": Row(
        lambda x: functional.linear(x.flatten(1), _weights(5, 32), _weights(5)), ("addmm",)
    ),
    "matrix on the left": Row(lambda x: _weights(3, 4) @ x[0, 0], ("mm",)),
    "convolution": Row(
        lambda x: functional.conv2d(x, _weights(3, 2, 3, 3), _weights(3), 2, 1), ("convolution",)
    ),
    "transposed convolution": Row(
        lambda x: functional.conv_transpose2d(x, _weights(2, 3, 3, 3), _weights(3), 2, 1),
        ("convolution",),
    ),
    "grouped convolution": Row(
        lambda x: functional.conv2d(x, _weights(4, 1, 3, 3), None, 1, 1, 1, 2), ("convolution",)
    ),
    "average pooling": Row(lambda x: functional.avg_pool2d(x, 2), ("avg_pool2d",)),
    "adaptive pooling": Row(
        lambda x: functional.adaptive_avg_pool2d(x, 2), ("_adaptive_avg_pool2d",)
    ),
    "batch norm": Row(
        lambda x: functional.batch_norm(x, *_moments(2), _weights(2), _weights(2)),
        ("native_batch_norm",),
    ),
    "addition": Row(lambda x: x + 0.5 * x[:, :1] - 1.25, ("add", "sub")),
    "difference": Row(lambda x: torch.sub(x, x.flip(2), alpha=0.3), ("sub",)),
    "negative": Row(lambda x: -x, ("neg",)),
    "scaling": Row(lambda x: x * _weights(2, 1, 1), ("mul",)),
    "quotient by a constant": Row(lambda x: x / 3, ("div",)),
    "conversion": Row(lambda x: (x.double() * 1.7).float(), ("_to_copy",)),
    "product": Row(lambda x: x[:, 0] * x[:, 1], ("mul",)),
    "square": Row(lambda x: x * x, ("mul",)),
    "power": Row(lambda x: x**2, ("pow",)),
    "quotient": Row(lambda x: x[:, :1] / (x[:, 1:] + 2), ("div",)),
    "constant over": Row(lambda x: _weights(4) / (x + 2), ("div",)),
    "direction": Row(
        lambda x: functional.normalize(x.flatten(1)[:, :5], dim=1),
        ("linalg_vector_norm", "clamp_min", "div"),
    ),
    "matrix product": Row(lambda x: x[:, 0] @ x[:, 1], ("bmm",)),
    "relu": Row(lambda x: x.relu(), ("relu",)),
    "floor": Row(lambda x: x.clamp_min(0.2), ("clamp_min",)),
    "ceiling": Row(lambda x: x.clamp_max(0.2), ("clamp_max",)),
    "clamp": Row(lambda x: x.clamp(-0.1, 0.3), ("clamp",)),
    "hard tanh": Row(lambda x: functional.hardtanh(x, -0.2, 0.4), ("hardtanh",)),
    "leaky relu": Row(lambda x: functional.leaky_relu(x, 0.1), ("leaky_relu",)),
    "absolute value": Row(lambda x: x.abs(), ("abs",)),
    "maximum": Row(lambda x: torch.maximum(*_pairs(x)), ("maximum",)),
    "minimum": Row(lambda x: torch.minimum(*_pairs(x)), ("minimum",)),
    "maximum over axes": Row(lambda x: x.amax(dim=(2, 3)), ("amax",)),
    "maximum over an axis": Row(lambda x: x.max(dim=2).values, ("max",)),
    "max pooling": Row(lambda x: functional.max_pool2d(x, 3, 2, 1), ("max_pool2d_with_indices",)),
    "choice": Row(lambda x: torch.where(x > 0, x, 0.5 * x), ("where", "gt")),
    "sorting": Row(_sorted, ("sort",)),
    "gathering": Row(_gathered, ("gather",)),
    "exp": Row(lambda x: x.exp(), ("exp",)),
    "tanh": Row(lambda x: x.tanh(), ("tanh",)),
    "sigmoid": Row(lambda x: x.sigmoid(), ("sigmoid",)),
    "softplus": Row(functional.softplus, ("softplus",)),
    "gelu": Row(functional.gelu, ("gelu",)),
    "silu": Row(functional.silu, ("silu",)),
    "elu": Row(functional.elu, ("elu",)),
    "sine": Row(lambda x: (3 * x).sin(), ("sin",)),
    "cosine": Row(lambda x: (3 * x).cos(), ("cos",)),
    "log": Row(lambda x: (x + 2).log(), ("log",)),
    "sqrt": Row(lambda x: (x + 2).sqrt(), ("sqrt",)),
    "reciprocal": Row(lambda x: (x + 2).reciprocal(), ("reciprocal",)),
    "norm": Row(lambda x: torch.linalg.vector_norm(x, dim=(1, 2)), ("linalg_vector_norm",)),
    "softmax": Row(lambda x: (4 * x.flatten(1)[:, :6]).softmax(dim=1), ("_softmax",)),
    "softmax of axes": Row(lambda x: x.softmax(dim=1), ("_softmax",)),
    "log softmax": Row(lambda x: x.flatten(1).log_softmax(dim=1), ("_log_softmax",)),
    "group norm": Row(
        lambda x: functional.group_norm(x, 1, _weights(2), _weights(2)), ("native_group_norm",)
    ),
    "layer norm": Row(
        lambda x: functional.layer_norm(x, (4, 4), _weights(4, 4), _weights(4, 4)),
        ("native_layer_norm",),
    ),
}


def _boxes(count: int, width: float, generator: torch.Generator) -> Box:
    centre = torch.rand((count, 1, *SHAPE), generator=generator, dtype=torch.float64)
    half = width * torch.rand((count, 1, *SHAPE), generator=generator, dtype=torch.float64)
    # Half of the images lie around 0, where most operations bend.
    centre[::2] -= 0.5
    return Box((centre - half).float().double(), (centre + half).float().double())


def _points(box: Box, count: int, generator: torch.Generator) -> Tensor:
    """Inner points, corners and points on edges of each box, float64, shape (k, n, ...)."""
    share = torch.rand((count, *box.low.shape), generator=generator, dtype=torch.float64)
    share[: count // 3] = share[: count // 3].round()
    share[count // 3 : count // 2] = (3 * share[count // 3 : count // 2] - 1).clamp(0, 1)
    return (box.low + share * (box.high - box.low)).clamp(box.low, box.high).float().double()


def _network(row: Row) -> Network:
    return Network(record(Calls(row.function).eval(), SHAPE))


def test_every_operation_that_has_a_rule_is_in_the_table_or_moves_entries_only() -> None:
    named = {name for row in TABLE.values() for name in row.names}
    moving = {
        name for name, rule in REGISTRY.items() if getattr(rule.of, "__name__", "") == "Selection"
    }
    alike = {
        "_native_batch_norm_legit_no_training",
        "cudnn_batch_norm",
        "_batch_norm_with_update",
        "matmul",
        "rsub",
        "max_pool2d",
        "ge",
        "lt",
        "le",
    }
    assert set(REGISTRY) - named - moving - alike == set()
    assert moving & named


@pytest.mark.parametrize("name", TABLE)
def test_sampled_results_lie_in_boxes_and_above_lines(name: str) -> None:
    row = TABLE[name]
    network = _network(row)
    assert set(row.names) <= {node.name for node in network.program.nodes}
    generator = torch.Generator().manual_seed(2)
    start = _boxes(LANES, 0.4, generator)
    points = _points(start, POINTS, generator)
    boxes, values = [start], [points]
    for i, step in enumerate(network.steps[1:], 1):
        operation, node = step.operation, network.node(i)
        operands = [boxes[p] for p in step.parents]
        given = [values[p] for p in step.parents]
        with computed_in(torch.float32):
            exact = operation.interval(*operands)
            error = operation.rounding(exact, *operands) + torch.zeros_like(exact.low)
        truth = _computed(_in_float64(node), given, torch.float64)
        # What float64 itself rounds away.
        slack = 1e-11 * (1 + truth.abs())
        assert (truth >= exact.low - slack).all(), (name, node.name)
        assert (truth <= exact.high + slack).all(), (name, node.name)
        size = exact.low[0].numel()
        rows = torch.randn(
            (LANES, 6, *exact.low.shape[1:]), generator=generator, dtype=torch.float64
        )
        eye = torch.eye(size, dtype=torch.float64).view(1, size, *exact.low.shape[1:])
        rows = torch.cat(
            [rows, eye.expand(LANES, *eye.shape[1:]), -eye.expand(LANES, *eye.shape[1:])], 1
        )
        left = torch.einsum("nrs,kns->knr", rows.flatten(2), truth.flatten(2))
        lines = operation.lines(rows, exact, *operands)
        _require_below(lines, given, left, (name, node.name))
        if operation.free:
            shares = torch.rand(rows.shape, generator=generator, dtype=torch.float64) * 1.5 - 0.25
            chosen = operation.chosen_lines(shares, rows, exact, *operands)
            _require_below(chosen, given, left, (name, node.name))
            first = operation.shares(*operands).unsqueeze(1)
            same = operation.chosen_lines(first, rows, exact, *operands)
            assert torch.allclose(same[1], lines[1], rtol=1e-9), (name, node.name)
            assert same[0][0] is not None
            assert lines[0][0] is not None
            assert torch.allclose(same[0][0], lines[0][0], rtol=1e-9), (name, node.name)
        computed = _computed(node, given)
        assert ((computed - truth).abs() <= error + 1e-13).all(), (name, node.name)
        boxes.append(exact.widened(error))
        # Later operations get what the program hands them.
        values.append(_computed(node, given))


@pytest.mark.parametrize("name", TABLE)
def test_affine_forms_hold_what_their_symbols_span(name: str) -> None:
    network = _network(TABLE[name])
    generator = torch.Generator().manual_seed(3)
    start = _boxes(LANES, 0.05, generator)
    count = start.low[0].numel()
    spread = torch.diag_embed(start.half.flatten(1)).view(LANES, count, *start.low.shape[1:])
    forms = [Form(start.centre, spread, torch.zeros_like(start.low))]
    boxes, symbols = [start], count
    points = _points(start, POINTS, generator)
    values = [points]
    for i, step in enumerate(network.steps[1:], 1):
        operation, node = step.operation, network.node(i)
        operands = [boxes[p] for p in step.parents]
        given = [values[p] for p in step.parents]
        with computed_in(torch.float32):
            exact = operation.interval(*operands)
            error = operation.rounding(exact, *operands)
        form = advanced(
            operation, [forms[p] for p in step.parents], operands, exact, error, symbols
        )
        if not operation.affine:
            form = form.settled(symbols)
            symbols = form.generators.shape[1]
        values.append(_computed(node, given))
        found = form.box
        assert (values[-1] >= found.low).all(), (name, node.name)
        assert (values[-1] <= found.high).all(), (name, node.name)
        # A linear function of operand and result is bounded by what they share.
        forms.append(form)
        boxes.append(exact.widened(error + torch.zeros_like(exact.low)).within(found))
    share = (values[0] - start.centre) / start.half.clamp_min(1e-30)
    last = forms[-1]
    known = torch.einsum("kns,nsd->knd", share.flatten(2), last.generators.flatten(2)[:, :count])
    young = last.generators.flatten(2)[:, count:].abs().sum(dim=1) + last.rest.flatten(1)
    apart = values[-1].flatten(2) - last.centre.flatten(1) - known
    assert (apart.abs() <= young + 1e-9).all()


def _computed(node: Node, given: list[Tensor], dtype: torch.dtype | None = None) -> Tensor:
    """The operation on each point of each image, shape (k, n, ...)."""
    operands = [
        g.to(dtype if dtype and p.dtype.is_floating_point else p.dtype)
        for g, p in zip(given, node.parents, strict=True)
    ]
    results = [
        node.run(*(operand[k, n] for operand in operands)).double()
        for k in range(POINTS)
        for n in range(LANES)
    ]
    return torch.stack(results).view(POINTS, LANES, *node.shape)


def _require_below(
    lines: tuple[list[Tensor | None], Tensor],
    given: list[Tensor],
    left: Tensor,
    what: tuple[str, str],
) -> None:
    """Lines of the operands' points lie nowhere above the values of rows at the results."""
    parts, offset = lines
    right = offset.expand(len(left), -1, -1).clone()
    for part, value in zip(parts, given, strict=True):
        if part is not None:
            right += torch.einsum("nrs,kns->knr", part.flatten(2), value.flatten(2))
    assert (left - right >= -1e-9 * (1 + left.abs() + right.abs())).all(), what


def test_bent_and_curved_operations_have_lines_to_choose_from() -> None:
    free = {
        step.operation.node.name
        for name in TABLE
        for step in _network(TABLE[name]).steps[1:]
        if step is not None and step.operation.free
    }
    curved = {"exp", "softplus", "log", "sqrt", "reciprocal", "pow", "mul"}
    assert curved | {"relu", "leaky_relu", "abs", "clamp_max"} <= free
    assert not free & {"tanh", "gelu", "addmm", "convolution"}


def _in_float64(node: Node) -> Node:
    def wide(value: object) -> object:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.double()
        if isinstance(value, float) and node.dtype is torch.float32:
            return float(torch.tensor(value))
        return torch.float64 if value is torch.float32 else value

    args, kwargs = pytree.tree_map(
        wide, (node.args, node.kwargs), is_leaf=lambda v: isinstance(v, Node)
    )
    return Node(node.index, node.func, args, kwargs, node.shape, node.dtype, node.output)


def _by_anothers_length(x: Tensor) -> Tensor:
    rows = x[:, 0]
    return rows / torch.linalg.vector_norm(rows, dim=2).clamp_min(1e-12).unsqueeze(1)


def test_only_an_entry_over_the_length_of_its_own_vector_is_known_to_be_small() -> None:
    own = _network(Row(lambda x: functional.normalize(x[:, 0], dim=2), ()))
    anothers = _network(Row(_by_anothers_length, ()))
    unbounded = _network(Row(lambda x: x / torch.linalg.vector_norm(x, dim=3, keepdim=True), ()))
    limits = [
        next(s.operation.limit for s in network.steps[1:] if hasattr(s.operation, "limit"))
        for network in (own, anothers, unbounded)
    ]
    assert 1 <= limits[0] < 1.01
    assert limits[1:] == [torch.inf, torch.inf]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.softplus(x, 2.0),
        lambda x: functional.softplus(x.double()),
        lambda x: torch.selu(x),
        lambda x: torch.ops.aten.elu(x, 1, 20),
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda x: functional.avg_pool2d(x, 2, divisor_override=-1),
        lambda x: torch.maximum(x[:, :1, :1, :1], torch.ones(1, 1, 4, 4)),
        lambda x: x.half() * 2,
        lambda x: torch.as_strided(x, (1, 4), (1, 2)),
    ],
)
def test_settings_that_a_rule_is_not_about_are_refused(function) -> None:
    with pytest.raises(Refusal):
        _network(Row(function, ()))
