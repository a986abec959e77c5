"""Boxes of a recorded program in the precision it computes in, differentiable in its weights.

What `network` proves is bounds of the program as it is deployed, in float64 and with its rounding.
Training asks for less and for more: exact arithmetic will do, but bounds must be fast and have
gradients. The program is recorded once, with the parameters as inputs beside the image, so that it
follows every training step; its operations' intervals are evaluated on batches of images, and the
margins are taken back through the affine operations at its end, which cancel there what the solver
adds and takes away.

Source of the bounds: Gowal et al., arXiv 1810.12715; of the merged end, the same, section 3.
"""

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from robustness.programs.boxes import Box
from robustness.programs.graph import Node
from robustness.programs.operations import Operation, operation_of
from robustness.programs.operations.base import live_constants
from robustness.programs.operations.elementwise import Rectifier
from robustness.programs.operations.reductions import Softmax
from robustness.programs.record import record, record_with_parameters


@dataclass(frozen=True)
class Reach:
    """What the margins of a batch cannot fall below, and the boxes on the way.

    Attributes:
        margins: lower bounds of the label's lead over every other class, shape (n, classes - 1).
        steered: the same of what every softmax over the classes is taken of, in order: what a field
            steers to that relaxes towards a point of the class simplex.
        start: the box of pixels.
        entered: boxes of what enters rectifiers.
    """

    margins: Float[Tensor, "n r"]
    steered: list[Float[Tensor, "n r"]]
    start: Box
    entered: list[Box]


class LiveProgram:
    """A model's program on boxes of images, with the model's parameters as they are now.

    Args:
        model: pixels to logits, whose forward pass is the same in training and evaluation.
        shape: channels, height and width of an image.

    Raises:
        Refusal: the model cannot be recorded, or an operation has no rule.
    """

    def __init__(self, model: nn.Module, shape: tuple[int, int, int]) -> None:
        training = model.training
        model.eval()
        try:
            record(model, shape)
            twin = copy.deepcopy(model)
            image = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0))
            self.program, names = record_with_parameters(twin, image)
        finally:
            model.train(training)
        named = dict(model.named_parameters())
        self._parameters = {i: named[name] for i, name in names.items()}
        # Nodes that the image reaches; all others are functions of parameters alone.
        reached = {self.program.image.index}
        for node in self.program.nodes[1:]:
            if any(parent.index in reached for parent in node.parents):
                reached.add(node.index)
        self._weights = [node for node in self.program.nodes if node.index not in reached]
        self._nodes = [node for node in self.program.nodes if node.index in reached]
        self._places = {node.index: i for i, node in enumerate(self._nodes)}
        values = self._values()
        self._fixed: dict[int, Operation] = {}
        for node in self._nodes[1:]:
            operation = _operation(node, values)
            if all(parent.index in reached for parent in node.parents):
                self._fixed[node.index] = operation

    def _values(self) -> dict[int, Tensor]:
        """What is computed of the parameters alone, with gradients."""
        values: dict[int, Tensor] = {}
        for node in self._weights:
            parameter = self._parameters.get(node.index)
            if parameter is None:
                values[node.index] = node.run(*(values[parent.index] for parent in node.parents))
            else:
                values[node.index] = parameter
        return values

    def reach(
        self, images: Float[Tensor, "n c h w"], labels: Int[Tensor, " n"], eps: float
    ) -> Reach:
        """Bounds over the images of the pixel box within `eps`, in l-infinity, of `images`.

        Args:
            images: pixels.
            labels: the class y of each image.
            eps: half the side of the box, in pixel units.
        """
        pixels = images.unsqueeze(1)
        start = Box((pixels - eps).clamp_min(0), (pixels + eps).clamp_max(1))
        boxes, entered = [start], []
        values = self._values()
        operations = []
        for node in self._nodes[1:]:
            operation = self._fixed.get(node.index) or _operation(node, values)
            operations.append(operation)
            operands = [boxes[i] for i in self._operands(node)]
            if isinstance(operation, Rectifier):
                entered.append(operands[0])
            box = operation.interval(*operands)
            boxes.append(Box(box.low.to(images.dtype), box.high.to(images.dtype)))
        steered = [
            self._margins(self._operands(node)[0], labels, boxes, operations)
            for node, operation in zip(self._nodes[1:], operations, strict=True)
            if isinstance(operation, Softmax) and node.shape == self.program.output.shape
        ]
        margins = self._margins(len(boxes) - 1, labels, boxes, operations)
        return Reach(margins, steered, start, entered)

    def _operands(self, node: Node) -> list[int]:
        return [self._places[p.index] for p in node.parents if p.index in self._places]

    def _margins(
        self, at: int, labels: Tensor, boxes: list[Box], operations: list[Operation]
    ) -> Tensor:
        """The leads within a value taken back through affine operations, then the least over boxes.

        What comes before a value of the classes by affine operations alone is the same function of
        it for every image, so that each class is taken back once for the whole batch.
        """
        values = boxes[at].low
        classes = values.shape[2]
        eye = torch.eye(classes, dtype=values.dtype, device=values.device)
        rivals = torch.arange(classes - 1, device=labels.device)
        others = rivals + (rivals >= labels.unsqueeze(1))
        shown, which = labels.unique(return_inverse=True)
        pending: dict[int, Tensor] = {at: eye.view(1, classes, 1, classes)}
        offsets = values.new_zeros(1, classes)
        found = values.new_zeros(others.shape)
        for i in range(at, -1, -1):
            if i not in pending:
                continue
            a = pending.pop(i)
            if i == 0 or not operations[i - 1].affine:
                rows = a[0].flatten(1)
                # Of the labels there are over every class, shape (labels * classes, entries).
                leads = (rows[shown].unsqueeze(1) - rows).flatten(0, 1)
                centre, half = boxes[i].centre.flatten(1), boxes[i].half.flatten(1)
                ends = centre @ leads.T - half @ leads.abs().T
                of_label = ends.view(len(ends), len(shown), classes)[range(len(ends)), which]
                found = found + of_label.gather(1, others)
                continue
            operands = self._operands(self._nodes[i])
            parts, more = operations[i - 1].lines(a, boxes[i], *(boxes[p] for p in operands))
            offsets = offsets + more
            for p, part in zip(operands, parts, strict=True):
                if part is not None:
                    pending[p] = pending[p] + part if p in pending else part
        return found + offsets[0, labels].unsqueeze(1) - offsets[0, others]


def _operation(node: Node, values: dict[int, Tensor]) -> Operation:
    """The rules of a node, with values that do not depend on the image as constants."""

    def given(leaf: Node) -> Node | Tensor:
        return values.get(leaf.index, leaf)

    args, kwargs = pytree.tree_map_only(Node, given, (node.args, node.kwargs))
    filled = Node(node.index, node.func, args, kwargs, node.shape, node.dtype, node.output)
    with live_constants():
        operation = operation_of(filled)
    for name, value in vars(operation).items():
        # Numbers alone take the precision of what they meet.
        if isinstance(value, Tensor) and value.dtype is torch.float64 and value.dim():
            setattr(operation, name, value.to(node.dtype))
    return operation
