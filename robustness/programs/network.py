"""Bounds of a recorded program: boxes forwards, lines backwards, rounding as further unknowns.

Let v_i be the value of node i as the program computes it: v_i = op_i(v_parents) + d_i, with
|d_i| <= rho_i entry by entry (`Operation.rounding`). Boxes of the computed values follow by
induction. A linear function A_m v_m of the output is followed backwards: at each node i its row of
coefficients A_i is replaced by rows of the parents (`Operation.lines`), and the unknown d_i costs
exactly |A_i| rho_i. What is left is linear in the pixels, and its least value over the ball is
known. The bound holds for the program that runs, in whatever order its sums are added. So does the
one that stops where it meets bent operations, at the ends of their boxes; the better one counts.

The float64 arithmetic of the bound itself gets a room: every replacement at node i errs by at most
some 2^-52 times the number of terms of |A_i| times the largest absolute values on either side,
for which `_room` is charged on both. For float64 programs the unit of rounding is counted twice,
once for the program and once for the bound.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from robustness.numerics.arithmetic import computed_in
from robustness.programs.boxes import Box
from robustness.programs.forms import Form, advanced
from robustness.programs.graph import Node, Program, Refusal
from robustness.programs.operations import Operation, affine, operation_of
from robustness.programs.operations.base import LARGEST_WHOLE, Rows, dot, least, unit_rows
from robustness.programs.operations.elementwise import Rectifier
from robustness.programs.operations.products import MatrixProduct
from robustness.threat import Norm

# Operations whose sums are of products with a matrix.
_SUMS = (affine.Convolution, affine.Product, affine.LeftProduct, MatrixProduct)
# Share of |A_i| |v_i| charged at each node for float64: some terms' worth, and one for each term.
_ROOM, _ROOM_PER_TERM = 2.0**-42, 2.0**-51
# Kinds of number whose rounding is known; the last three do not round.
_KNOWN = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
# Largest value that affine forms are carried for.
_SMALL = 256
# Halvings of the multiplier of the l2 ball's constraint.
_MULTIPLIER_ROUNDS = 40
# Share of themselves by which ends must cross for nothing to be between, far above rounding.
_EMPTY = 2.0**-36
# Coefficients that are followed backwards together, which bounds memory.
_TOGETHER = 2**22
# Share of a value that its remainders take where it is called wide.
_WIDE = 0.25
# No choices of lines.
_DEFAULT: Mapping[int, Tensor] = MappingProxyType({})


@dataclass(frozen=True)
class Ball:
    """The images that a bound is about: a ball around each of n images, within [0, 1].

    Attributes:
        images: centres, float64, shape (n, 1, c, h, w).
        radii: shape (n,).
        norm: the ball's norm.
    """

    images: Float[Tensor, "n 1 c h w"]
    radii: Float[Tensor, " n"]
    norm: Norm

    @property
    def box(self) -> Box:
        """The smallest box of pixels around it."""
        return Box.around(self.images, self.radii)

    def lanes(self, part: Tensor | slice) -> "Ball":
        """The balls of some images."""
        return Ball(self.images[part], self.radii[part], self.norm)

    def least(self, rows: Rows) -> Float[Tensor, "n r"]:
        """The least value of linear functions of the pixels over the ball and the box [0, 1].

        For an l2 ball by weak duality: for any multiplier m >= 0 the minimum over the box of
        a x + m (|x - c|^2 - eps^2) is no greater. The best multiplier is sought by bisection, and
        the box around the ball gives another bound.
        """
        box = self.box
        a = rows.flatten(2)
        centre, half = (p.flatten(1).unsqueeze(2) for p in (box.centre, box.half))
        by_box = (a @ centre - a.abs() @ half).squeeze(2)
        if self.norm is Norm.LINF:
            return by_box
        pixels = self.images.flatten(1).unsqueeze(1)
        radii = self.radii.double().view(-1, 1)
        length = torch.linalg.vector_norm(a, dim=2)
        # Without the pixel box the best multiplier is |a| / (2 eps); with it a smaller one.
        high = (length / (2 * radii.clamp_min(1e-30))).clamp_min(1e-30)
        low = high * 1e-6
        best, at = self._dual(a, pixels, radii, high)[0], high
        with torch.no_grad():
            for _ in range(_MULTIPLIER_ROUNDS):
                middle = (low * high).sqrt()
                value, distance = self._dual(a, pixels, radii, middle)
                best, at = torch.maximum(best, value), torch.where(value > best, middle, at)
                outside = distance > radii
                low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
        if a.requires_grad:
            best = self._dual(a, pixels, radii, at.detach())[0]
        return torch.maximum(by_box, best)

    def _dual(self, a: Tensor, pixels: Tensor, radii: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        x = (pixels - a / (2 * m.unsqueeze(2))).clamp(0, 1)
        squares = ((x - pixels) ** 2).sum(dim=2)
        return (a * x).sum(dim=2) + m * (squares - radii**2), squares.sqrt()


@dataclass(frozen=True)
class Step:
    """One node of a network.

    Attributes:
        operation: its rules.
        parents: steps that it takes its operands from.
        behind_bend: whether a bent operation lies between it and the pixels, so that lines may
            give a narrower box than intervals do.
        terms: a bound on the number of terms of any sum of its float64 rules.
    """

    operation: Operation
    parents: tuple[int, ...]
    behind_bend: bool
    terms: int


class Network:
    """A program with the rules of its operations.

    Args:
        program: what was recorded.

    Raises:
        Refusal: an operation has no rule.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        places = {node.index: i for i, node in enumerate(program.nodes)}
        self.steps: list[Step | None] = [None]
        bent = [False]
        for node in program.nodes[1:]:
            if node.dtype not in _KNOWN:
                raise Refusal(f"no rounding is known of {node.dtype}, which {node.name} gives")
            operation = operation_of(node)
            parents = tuple(places[parent.index] for parent in node.parents)
            behind = any(bent[p] or not _is_affine(self.steps[p]) for p in parents)
            bent.append(behind)
            terms = node.size + sum(parent.size for parent in node.parents)
            self.steps.append(Step(operation, parents, behind, terms))
        self.uses: list[list[int]] = [[] for _ in self.steps]
        for i, step in enumerate(self.steps):
            for p in () if step is None else step.parents:
                self.uses[p].append(i)

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def cut(self) -> int | None:
        """The first step that all later ones know the image by, all of them small.

        None where nothing bent stands behind it, or where what stands there is large.
        """
        last_use = [max(uses, default=len(self)) for uses in self.uses]
        reach, found = -1, None
        for i in range(len(self) - 1):
            alone = reach <= i
            reach = max(reach, last_use[i])
            if alone and i > 0 and all(self.node(j).size <= _SMALL for j in range(i, len(self))):
                found = i
                break
        if found is None or all(_is_affine(step) for step in self.steps[found + 1 :]):
            return None
        return found

    @cached_property
    def work(self) -> int:
        """Multiplications and additions of one run of the program, by the sizes of its sums."""
        return self.work_until[-1]

    @cached_property
    def work_until(self) -> list[int]:
        """The same up to each step, with it."""
        found = [0]
        for step in self.steps[1:]:
            assert step is not None
            each = step.terms
            if isinstance(step.operation, _SUMS):
                each += step.operation.node.size * step.operation.terms
            found.append(found[-1] + each)
        return found

    def node(self, i: int) -> Node:
        """The recorded node of a step."""
        return self.program.nodes[i]

    @cached_property
    def rectified(self) -> dict[int, Tensor]:
        """Operands of rectifiers and the thresholds at which they bend.

        Of several rectifiers of one operand it is the first one's.
        """
        found: dict[int, Tensor] = {}
        for step in self.steps:
            if step is not None and isinstance(step.operation, Rectifier):
                found.setdefault(step.parents[0], step.operation.threshold)
        return found

    def is_behind_bend(self, i: int) -> bool:
        """Whether a bent operation lies between a step and the pixels."""
        step = self.steps[i]
        return step is not None and step.behind_bend

    @cached_property
    def bends(self) -> list[int]:
        """Operands of rectifiers in front of the cut whose boxes lines can narrow."""
        if self.cut is None:
            return []
        found = [
            step.parents[0]
            for step in self.steps[: self.cut + 1]
            if step is not None and isinstance(step.operation, Rectifier)
        ]
        return [i for i in found if self.is_behind_bend(i)]

    @cached_property
    def depths(self) -> list[int]:
        """The same of all rectifiers, where nothing is carried as affine forms instead."""
        if self.cut is not None:
            return []
        return [i for i in sorted(self.rectified) if self.is_behind_bend(i)]


def _moves(step: Step) -> bool:
    return bool(getattr(step.operation, "moves_entries", False))


def _is_affine(step: Step | None) -> bool:
    return step is None or step.operation.affine


class Bounds:
    """Boxes of every step of a network over balls, and lines through them.

    Args:
        network: the program.
        ball: the images.
        refine: steps whose boxes are narrowed by lines, where they are undecided.
        forms: whether values behind the cut are carried as affine forms, too.
        traced: whether `widened_at` is sought.

    Attributes:
        widened_at: by image the step of the largest remainder where the remainders of forms first
            outweigh what is linear in the pixels and in rounding up to the cut; -1 where they
            nowhere do. What is behind such a place breaks down soon.
    """

    def __init__(
        self,
        network: Network,
        ball: Ball,
        refine: Sequence[int] = (),
        forms: bool = True,
        traced: bool = False,
    ) -> None:
        self.network, self.ball = network, ball
        self.boxes: list[Box] = []
        self.errors: list[Tensor | float] = []
        # In whose balls a value may be infinite, or no number, and is not only moved about: an
        # operation may make anything of it, and boxes behind it need not hold that.
        self.unbounded = torch.zeros(len(ball.images), dtype=torch.bool)
        self._forms: dict[int, Form] = {}
        self._symbols = 0
        # The step that each symbol behind the cut's own comes from.
        self._origins: list[int] = []
        self._traced = traced
        self.widened_at = torch.full((len(ball.images),), -1)
        # Of halves of the balls, see `imposed`.
        self.pulls: dict[int, Tensor] = {}
        wanted = set(refine)
        for i, step in enumerate(network.steps):
            if step is None:
                self.boxes.append(ball.box)
                self.errors.append(0.0)
                continue
            self._forward(i, step)
            if i in wanted:
                self.narrow(i)
            if forms and i == network.cut:
                self._open_forms(i)
        # They have given their boxes.
        self._forms = {}

    def _forward(self, i: int, step: Step) -> None:
        operands = [self.boxes[p] for p in step.parents]
        with arithmetic_of(step.operation.dtype):
            exact = step.operation.interval(*operands)
            error = step.operation.rounding(exact, *operands)
        if isinstance(error, float) and error > 0:
            error = torch.full_like(exact.low, error)
        box = exact if isinstance(error, float) else exact.widened(error)
        # What is not a number is not bounded.
        low = torch.where(box.low.isnan(), -torch.inf, box.low)
        high = torch.where(box.high.isnan(), torch.inf, box.high)
        box = Box(low, high)
        if self._forms:
            form = advanced(
                step.operation,
                [self._forms[p] for p in step.parents],
                operands,
                exact,
                error,
                self._symbols,
            )
            form = form.within(box)
            if not step.operation.affine:
                form = form.settled(self._symbols)
                self._origins += [i] * (form.generators.shape[1] - self._symbols)
                self._symbols = form.generators.shape[1]
                if self._traced:
                    self._trace(form)
            self._forms[i] = form
            by_form = form.box
            low = torch.where(by_form.low > box.low, by_form.low, box.low)
            high = torch.where(by_form.high < box.high, by_form.high, box.high)
            box = Box(low, high)
        if not _moves(step):
            for part in (*operands, box):
                self.unbounded |= ~part.size.isfinite().flatten(1).all(dim=1)
        elif i == len(self.network) - 1:
            self.unbounded |= ~box.size.isfinite().flatten(1).all(dim=1)
        if not step.operation.dtype.is_floating_point:
            self.unbounded |= (box.size > LARGEST_WHOLE).flatten(1).any(dim=1)
        self.boxes.append(box)
        self.errors.append(error)

    def _trace(self, form: Form) -> None:
        weights = form.generators.abs().flatten(2).sum(dim=2)
        first = self._symbols - len(self._origins)
        by_step = weights.new_zeros(len(weights), len(self.network))
        by_step.index_add_(1, torch.tensor(self._origins, dtype=torch.long), weights[:, first:])
        young, old = by_step.sum(dim=1), weights[:, :first].sum(dim=1)
        wide = young + old > _WIDE * form.centre.abs().flatten(1).sum(dim=1)
        fresh = wide & (young > old) & (self.widened_at < 0)
        self.widened_at = torch.where(fresh, by_step.argmax(dim=1), self.widened_at)

    def _open_forms(self, i: int) -> None:
        """Write a step's value as an affine form of the pixels, by lines on either side."""
        rows = unit_rows(self.boxes[i])
        low, above_low = self._to_pixels(i, rows)
        high, above_high = self._to_pixels(i, -rows)
        high, above_high = -high, -above_high
        pixels = self.ball.box
        slope, gap = (low + high) / 2, (high - low) / 2
        gap = gap.flatten(2)
        middle, half = (p.flatten(1).unsqueeze(2) for p in (pixels.centre, pixels.half))
        rest = (gap @ middle + gap.abs() @ half).squeeze(2) + (above_high - above_low) / 2
        centre = (slope.flatten(2) @ middle).squeeze(2) + (above_high + above_low) / 2
        generators = slope.flatten(2).mT * half
        shape = self.boxes[i].low.shape
        size = (low.abs().flatten(2) @ (middle.abs() + half)).squeeze(2) + rest.abs()
        form = Form(
            centre.view(shape),
            generators.reshape(len(centre), -1, *shape[1:]),
            (rest + _ROOM * size).view(shape),
        )
        form = form.settled(generators.shape[1])
        self._symbols = form.generators.shape[1]
        self._forms[i] = form
        by_form = form.box
        self.boxes[i] = Box(
            torch.where(by_form.low > self.boxes[i].low, by_form.low, self.boxes[i].low),
            torch.where(by_form.high < self.boxes[i].high, by_form.high, self.boxes[i].high),
        )

    def lanes(self, part: Int[Tensor, " m"]) -> "Bounds":
        """The bounds of some images, which may come up more than once."""
        found = copy(self)
        found.ball, found.unbounded = self.ball.lanes(part), self.unbounded[part]
        found.boxes = [box.lanes(part) for box in self.boxes]
        found.errors = [
            error[part] if _is_by_image(error, box) else error  # type: ignore[index]
            for error, box in zip(self.errors, self.boxes, strict=True)
        ]
        found.pulls = {i: pull[part] for i, pull in self.pulls.items()}
        return found

    def replaced(self, part: Int[Tensor, " m"], other: "Bounds") -> "Bounds":
        """These bounds, with others of the same balls in the place of some.

        Args:
            part: which images they are of, each once.
            other: the bounds of these images, in this order.
        """
        found = copy(self)
        found.unbounded = self.unbounded.index_copy(0, part, other.unbounded)
        found.boxes = [
            Box(box.low.index_copy(0, part, new.low), box.high.index_copy(0, part, new.high))
            for box, new in zip(self.boxes, other.boxes, strict=True)
        ]
        found.errors = [
            error.index_copy(0, part, new)  # type: ignore[union-attr, arg-type]
            if _is_by_image(error, box)
            else error
            for error, new, box in zip(self.errors, other.errors, self.boxes, strict=True)
        ]
        return found

    def imposed(
        self, limits: Mapping[int, Box], pulls: Mapping[int, Tensor]
    ) -> tuple["Bounds", Bool[Tensor, " n"]]:
        """Bounds for those images whose values are within limits, with narrower boxes behind them.

        Args:
            limits: boxes by step, infinite where nothing is imposed.
            pulls: by step, an operand of rectifiers, what `lower` may charge for a unit's side of
                the bend: above 0 where a value is not below it, below 0 where it is not above it,
                0 for neither, shape (n, *shape).

        Returns:
            The bounds, and of which balls no image is left.
        """
        found = copy(self)
        found.boxes, found.pulls = list(self.boxes), dict(pulls)
        empty = torch.zeros(len(self.ball.images), dtype=torch.bool)
        for i in range(min(limits), len(self.network)):
            box, step = self.boxes[i], self.network.steps[i]
            if step is not None:
                with arithmetic_of(step.operation.dtype):
                    again = step.operation.interval(*(found.boxes[p] for p in step.parents))
                low, high = again.low - self.errors[i], again.high + self.errors[i]
                # What is not a number says nothing.
                low = torch.where(low > box.low, low, box.low)
                box = Box(low, torch.where(high < box.high, high, box.high))
            if i in limits:
                box = box.within(limits[i])
            crossed = box.low > box.high
            empty |= (box.low - box.high > _EMPTY * box.size).flatten(1).any(dim=1)
            found.boxes[i] = Box(
                torch.where(crossed, box.high, box.low), torch.where(crossed, box.low, box.high)
            )
        return found, empty

    def shares(self, step: int) -> dict[int, Tensor]:
        """The choice of lines that `lower` makes at a step: shares of the free operations' entries.

        Returns:
            Shares in [0, 1] by step, shape (n, 1, *shape).
        """
        return {
            i: given.operation.shares(*(self.boxes[p] for p in given.parents)).unsqueeze(1)
            for i, given in enumerate(self.network.steps[: step + 1])
            if given is not None and given.operation.free
        }

    def lower(self, step: int, rows: Rows) -> Float[Tensor, "n r"]:
        """Lower bounds of linear functions A v of one step's computed value over the balls.

        The better of `by_lines` and `by_boxes`, row by row.

        Args:
            step: the step.
            rows: the functions.
        """
        return torch.maximum(self.by_lines(step, rows), self.by_boxes(step, rows))

    def by_boxes(self, step: int, rows: Rows) -> Float[Tensor, "n r"]:
        """As `lower`: rows through affine operations alone, then the least over boxes.

        What is affine cancels as it does in the program; where a bent operation is met, the row is
        least at an end of its result's box.
        """
        pixels, offset = self._to_pixels(step, rows, bent=False)
        return self._ended(pixels, offset)

    def by_lines(
        self,
        step: int,
        rows: Rows,
        shares: Mapping[int, Tensor] = _DEFAULT,
        multipliers: Mapping[int, Tensor] = _DEFAULT,
        passed: dict[int, Tensor] | None = None,
    ) -> Float[Tensor, "n r"]:
        """As `lower`: rows through lines of every operation, then the least over the balls.

        -inf where any box is without bound.

        Args:
            step: the step.
            rows: the functions.
            shares: choices of lines by step, shape (n, r, *shape), or (n, 1, *shape) for all rows
                alike; those of `Operation.lines` where there are none. Any give a bound that holds.
            multipliers: of `pulls`, by step, shape (n, r, *shape) or (n, 1, *shape). Any that are
                not below 0 give a bound that holds for the images that are left; what is below 0
                is moved there.
            passed: where given, the rows of coefficients of every rectifier's result are put here.
        """
        pixels, offset = self._to_pixels(step, rows, shares, multipliers, passed)
        return self._ended(pixels, offset)

    def _ended(self, pixels: Tensor, offset: Tensor) -> Tensor:
        """The least of linear functions of the pixels; -inf where a box is without bound."""
        room = _ROOM + _ROOM_PER_TERM * pixels[0, 0].numel()
        ends = self.ball.least(pixels) - room * pixels.flatten(2).abs().sum(dim=2)
        bound = offset + ends
        sane = bound.isfinite() & ~self.unbounded.unsqueeze(1)
        return torch.where(sane, bound, -torch.inf)

    def losses(
        self, step: int, rows: Float[Tensor, "n 1 *shape"]
    ) -> tuple[Float[Tensor, "n steps"], Float[Tensor, "n steps"]]:
        """What `by_lines` gives away at every step: by lines, at the centre, and by rounding.

        Args:
            step: the step.
            rows: one function for each image.
        """
        lost: dict[int, tuple[Tensor, Tensor]] = {}
        self._to_pixels(step, rows, lost=lost)
        found = rows.new_zeros(2, len(rows), len(self.network))
        for i, pair in lost.items():
            found[:, :, i] = torch.stack(pair).nan_to_num(torch.inf)
        return found[0], found[1]

    def _gap(self, i: int, a: Tensor) -> Tensor:
        """Half of what is between the lines below and above a row, at the operands' centres."""
        given = self.network.steps[i]
        assert given is not None
        operands = [self.boxes[p] for p in given.parents]
        total = a.new_zeros(len(a))
        for sign in (1.0, -1.0):
            parts, more = given.operation.lines(sign * a, self.boxes[i], *operands)
            total = total - more.squeeze(1)
            for part, box in zip(parts, operands, strict=True):
                if part is not None:
                    total = total - dot(part, box.centre).squeeze(1)
        return total / 2

    def _to_pixels(
        self,
        step: int,
        rows: Rows,
        shares: Mapping[int, Tensor] = _DEFAULT,
        multipliers: Mapping[int, Tensor] = _DEFAULT,
        passed: dict[int, Tensor] | None = None,
        bent: bool = True,
        lost: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Float[Tensor, "n r"]]:
        """Linear functions of the pixels that are nowhere above linear functions of a step.

        Without `bent` the results of operations that are not affine end in their boxes.
        """
        pending: dict[int, Tensor] = {step: rows}
        offset = rows.new_zeros(rows.shape[:2])
        for i in range(step, 0, -1):
            given = self.network.steps[i]
            if i not in pending or given is None:
                continue
            a = pending.pop(i)
            if not bent and not given.operation.affine:
                offset = offset + self._least_of(i, a)
                continue
            if i in multipliers:
                # v >= t is imposed: f >= f - m (v - t) for every m >= 0.
                pull = multipliers[i].clamp_min(0) * self.pulls[i].unsqueeze(1)
                # Rows that cancel have rounded all the same, and the sum of what is added rounds.
                room = _ROOM + _ROOM_PER_TERM * pull[0, 0].numel()
                offset = offset - _charged(a.abs() + pull.abs(), room * self.boxes[i].size)
                a = a - pull
                offset = offset + (pull * self.network.rectified[i]).flatten(2).sum(dim=2)
            if passed is not None and isinstance(given.operation, Rectifier):
                passed[i] = a.detach()
            operands = [self.boxes[p] for p in given.parents]
            if lost is not None:
                lost[i] = self._gap(i, a), self._charge(i, a).squeeze(1)
            if i in shares:
                parts, more = given.operation.chosen_lines(shares[i], a, self.boxes[i], *operands)
            else:
                parts, more = given.operation.lines(a, self.boxes[i], *operands)
            offset = offset + more - self._charge(i, a)
            for p, part in zip(given.parents, parts, strict=True):
                if part is None:
                    continue
                if p in pending:
                    # Rows that cancel have rounded all the same.
                    met = pending[p].abs() + part.abs()
                    offset = offset - _charged(met, _ROOM * self.boxes[p].size)
                    part = pending[p] + part
                pending[p] = part
        if 0 not in pending:
            pending[0] = rows.new_zeros(*rows.shape[:2], *self.boxes[0].low.shape[1:])
        return pending[0], offset

    def _least_of(self, i: int, a: Tensor) -> Tensor:
        """The least of rows over a step's box, with room for float64."""
        box = self.boxes[i]
        room = _ROOM + _ROOM_PER_TERM * a[0, 0].numel()
        return least(a, box) - _charged(a.abs(), room * box.size)

    def _charge(self, i: int, a: Tensor) -> Tensor:
        step, box = self.network.steps[i], self.boxes[i]
        assert step is not None
        cost = self.errors[i] + (_ROOM + _ROOM_PER_TERM * step.terms) * box.size
        return _charged(a.abs(), cost)

    def work_of(self, refine: Sequence[int]) -> Float[Tensor, " n"]:
        """What narrowing the boxes of steps takes of each image, at most, as `Network.work` counts.

        Args:
            refine: the steps.
        """
        found = torch.zeros(len(self.ball.images), dtype=torch.float64)
        for i in refine:
            box = self.boxes[i]
            count = ((box.low < 0) & (box.high > 0)).flatten(1).sum(dim=1)
            found += 2.0 * self.network.work_until[i] * count
        return found

    def narrow(self, i: int) -> None:
        """Narrow a step's box by lines on either side, at entries whose sign is not known.

        Args:
            i: the step.
        """
        box = self.boxes[i]
        low, high = box.low.flatten(1).clone(), box.high.flatten(1).clone()
        size = max(self.network.node(j).size for j in range(i + 1))
        for image in range(len(low)):
            open_ = ((low[image] < 0) & (high[image] > 0)).nonzero().squeeze(1)
            lanes = self.lanes(torch.tensor([image]))
            for part in open_.split(max(1, _TOGETHER // (2 * size))) if len(open_) else ():
                rows = torch.zeros(1, len(part), low.shape[1], dtype=torch.float64)
                rows[0, torch.arange(len(part)), part] = 1.0
                rows = rows.view(1, len(part), *box.low.shape[1:])
                ends = lanes.by_lines(i, torch.cat([rows, -rows], dim=1))[0]
                low[image, part] = torch.maximum(low[image, part], ends[: len(part)])
                high[image, part] = torch.minimum(high[image, part], -ends[len(part) :])
        self.boxes[i] = Box(low.view(box.low.shape), high.view(box.high.shape))


def _is_by_image(error: Tensor | float, box: Box) -> bool:
    """Whether a bound on rounding has an entry for each image."""
    return isinstance(error, Tensor) and error.dim() == box.low.dim() and len(error) == len(box.low)


def _charged(sizes: Tensor, cost: Tensor) -> Tensor:
    """Sum |A| cost, where 0 times infinity is 0."""
    a, c = sizes.flatten(2), cost.flatten(1).unsqueeze(2)
    if bool(c.isfinite().all()):
        return (a @ c).squeeze(2)
    return torch.where(a > 0, a * c.squeeze(2).unsqueeze(1), 0.0).sum(dim=2)


def arithmetic_of(dtype: torch.dtype) -> Any:
    """The arithmetic that an operation rounds in; integers and truth values do not."""
    return computed_in(dtype if dtype.is_floating_point else torch.float32)


def margin_rows(
    classes: int, labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n r 1 k"], Int[Tensor, "n r"]]:
    """Rows e_y - e_j for every j other than the label y, and which j."""
    others = torch.stack([torch.tensor([j for j in range(classes) if j != int(y)]) for y in labels])
    eye = torch.eye(classes, dtype=torch.float64)
    return (eye[labels].unsqueeze(1) - eye[others]).unsqueeze(2), others
