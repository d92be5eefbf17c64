"""Elements that are drawn and then only moved: transposed, reshaped, flipped, cut.

Eager JAX compiles each equation alone, so an equation that only moves elements changes no bits.
What counts is the shape in which the elements are computed. So the moves at the end of a work are
taken off, and become an ``Order``, which says where the leaf's elements are among the drawn ones.
"""

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.extend.core as jex
import numpy as np

from lazyinit import compat
from lazyinit.make.elementwise import Elementwise, elementwise_of
from lazyinit.make.limits import COLUMNS
from lazyinit.make.shards import Bounds
from lazyinit.make.stacked import Stacked
from lazyinit.program.slices import Work
from lazyinit.sources import Shape
from lazyinit.tensors.views import groups


@dataclass(frozen=True, slots=True)
class Order:
    """Where each element of a leaf is, as a flat index, among the elements that can be drawn.

    Attributes:
      shape: of the leaf.
      strides: for each axis, how far apart the indices of neighbors are; negative if it is flipped.
      start: the index of the leaf's first element.
      size: how many elements can be drawn.
    """

    shape: Shape
    strides: tuple[int, ...]
    start: int
    size: int

    @classmethod
    def of(cls, shape: Shape) -> "Order":
        """Returns the order of elements that are drawn in this shape and not moved."""
        return cls(shape, _strides(shape), 0, math.prod(shape))

    def keeps_rows(self, rows: int) -> bool:
        """Tells whether each axis of the leaf runs across rows or within one, of so many rows."""
        row = self.size // rows
        axes = [(n, s) for n, s in zip(self.shape, self.strides, strict=True) if n > 1]
        first = self.start + sum((n - 1) * s for n, s in axes if s < 0)
        within = sum((n - 1) * abs(s) for n, s in axes if abs(s) < row)
        return first % row + within < row and all(s % row == 0 for _, s in axes if abs(s) >= row)

    def view_of_shard(
        self, at: Bounds, buffer: np.ndarray
    ) -> tuple[np.ndarray, tuple[int, ...], int]:
        """Returns a shard's buffer as a view in the order in which its elements are drawn.

        Args:
          at: the part of the leaf that the shard holds.
          buffer: the memory of the shard.

        Returns:
          The view, in which flipped axes are flipped back and the axis of the longest stride comes
          first; the stride of each of its axes among the elements that can be drawn; and the flat
          index, among those, of its first element.
        """
        # Along a flipped axis, the last element of the shard has the lowest index.
        ends = [
            begin if s >= 0 else end - 1 for (begin, end), s in zip(at, self.strides, strict=True)
        ]
        first = self.start + sum(map(operator.mul, ends, self.strides))
        flipped = buffer[tuple(slice(None, None, -1 if s < 0 else 1) for s in self.strides)]
        axes = sorted(range(len(at)), key=lambda axis: -abs(self.strides[axis]))
        return flipped.transpose(axes), tuple(abs(self.strides[a]) for a in axes), first


class Indices:
    """The flat indices of a shard's elements, among all that can be drawn.

    Attributes:
      width: how many elements to draw in each row of a sheet.
      rows: how many rows the shard takes.
    """

    def __init__(self, shape: Shape, strides: Sequence[int], start: int, size: int) -> None:
        """Takes the shape of a shard, its strides, its first index, and how many can be drawn."""
        # The shard consists of runs, in which the indices count up by one.
        axes = _merged(shape, strides)
        self._run = axes.pop()[0] if axes and axes[-1][1] == 1 else 1
        self._outer, self._strides = tuple(n for n, _ in axes), tuple(s for _, s in axes)
        self._start = start
        self._size = math.prod(shape)
        # Each index in a row is stored as its distance from the first, in 32 bits. Where these may
        # not do, no row is longer than a run, nor does it end in another one.
        is_near = size <= 2**32 or (self._run >= COLUMNS and max(self._strides, default=0) < 2**31)
        fits = (n for n in range(min(COLUMNS, self._run), 0, -1) if self._run % n == 0)
        self.width = COLUMNS if is_near else next(fits)
        self.rows = -(-self._size // self.width)

    def of_rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the indices of some rows, as bases and offsets.

        Returns:
          The index of the first element of each row, in two words, uint32[last-first,2]; and the
          distance of each element from it, uint32[last-first,COLUMNS], of which ``width`` columns
          count, or ``None`` if the indices of all rows count up by one.
        """
        begin, end = first * self.width, min(last * self.width, self._size)
        if len(self._outer) == 0 or self._run % self.width == 0:
            places = np.arange(begin, end, self.width)
            runs = places // self._run
            return _words(self._starts(runs) + places - runs * self._run), None
        if len(self._outer) == 1 and self._run < 2**31:
            return self._in_equal_steps(first, last)
        runs = np.arange(begin // self._run, -(-end // self._run))
        counts = np.full(runs.size, self._run)
        counts[-1] -= (runs[-1] + 1) * self._run - end
        counts[0] -= begin - runs[0] * self._run
        indices = np.arange(begin, end) + np.repeat(self._starts(runs) - runs * self._run, counts)
        indices = np.pad(indices, (0, (last - first) * self.width - indices.size), "edge")
        indices = indices.reshape(last - first, self.width)
        offsets = np.zeros((last - first, COLUMNS), np.uint32)
        offsets[:, : self.width] = indices - indices[:, :1]
        return _words(indices[:, 0]), offsets

    def _in_equal_steps(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the indices of some rows, where each run begins as far behind the one before.

        That is the case of a matrix of which a shard has some columns, and of most other shards.
        """
        (step,) = self._strides
        runs, within = np.divmod(np.arange(first, last) * self.width, self._run)
        columns = np.arange(COLUMNS, dtype=np.uint32)
        offsets = within.astype(np.uint32)[:, None] + columns
        offsets //= np.uint32(self._run)  # How many runs have ended before each element.
        offsets *= np.uint32((step - self._run) % 2**32)  # Distances have 32 bits, and so wrap.
        offsets += columns
        return _words(self._start + runs * step + within), offsets

    def _starts(self, runs: np.ndarray) -> np.ndarray:
        places = np.unravel_index(runs, self._outer) if self._outer else ()
        return self._start + sum(
            (p * stride for p, stride in zip(places, self._strides, strict=True)),
            start=np.zeros(runs.size, np.int64),
        )


def _merged(shape: Shape, strides: Sequence[int]) -> list[tuple[int, int]]:
    """Returns the axes of a shard, each as a size and a stride, with neighbors merged if possible.

    Axes of size 1 are left out.
    """
    axes: list[tuple[int, int]] = []
    for size, stride in zip(shape, strides, strict=True):
        if axes and axes[-1][1] == size * stride:
            axes[-1] = axes[-1][0] * size, stride
        elif size > 1:
            axes.append((size, stride))
    return axes


def _words(indices: np.ndarray) -> np.ndarray:
    return np.stack([indices >> 32, indices & 0xFFFFFFFF], axis=-1).astype(np.uint32)


def form_of(work: Work) -> tuple[Elementwise | Stacked, Order] | None:
    """Returns how the elements of a leaf are drawn, and in which order; ``None`` if they are not.

    Args:
      work: what makes the leaf.
    """
    # If a result were dropped, XLA would fuse the others in another way than eager JAX does.
    form = (elementwise_of(work) or Stacked.of(work)) if work.keeps_all() else None
    form = form or Stacked.of_steps(work)
    if form is not None:
        order = _within_steps(form, work.program.avals[work.outputs[0]].shape)
    else:
        taken = _taken_off(work)
        found = None if taken is None else form_of(taken[0])
        if taken is None or found is None:
            return None
        form, order = found[0], _after(taken[1], found[1])
    is_kept = isinstance(form, Elementwise) or (order and order.keeps_rows(form.count))
    return (form, order) if order and is_kept else None


def _within_steps(form: Elementwise | Stacked, shape: Shape) -> Order | None:
    """Returns the order of a leaf, the steps of which may end with moves, or ``None``."""
    if isinstance(form, Elementwise) or not form.moves:
        return Order.of(shape)
    of_step: Any = form.moves[0].invars[0].aval
    order: Order | None = Order.of(of_step.shape)
    for equation in form.moves:
        moves = _moves(equation)
        order = None if moves is None else _after(moves, order)
    return order and Order(shape, (order.size, *order.strides), order.start, shape[0] * order.size)


def _after(moves: Sequence[jex.JaxprEqn], order: Order | None) -> Order | None:
    for move in moves:
        order = order and _moved(move, order)
    return order


def _taken_off(work: Work) -> tuple[Work, Sequence[jex.JaxprEqn]] | None:
    """Returns a work without the moves at its end, and these; ``None`` if it ends with none.

    Args:
      work: what makes one leaf.
    """
    equations, (value,) = list(work.equations), work.outputs
    moves: list[jex.JaxprEqn] = []
    while equations and equations[-1].outputs == (value,) and len(equations[-1].inputs) == 1:
        found = _moves(equations[-1].origin)
        if found is None:
            break
        moves = [*found, *moves]
        (value,) = equations.pop().inputs
    if len(equations) == len(work.equations) or value in work.inputs:
        return None
    return replace(work, equations=tuple(equations), outputs=(value,)), moves


_MOVES = compat.Same | compat.Permuted | compat.Shaped | compat.Flipped | compat.Box


def _moves(equation: jex.JaxprEqn) -> Sequence[jex.JaxprEqn] | None:
    """Returns the moves that an equation consists of; ``None`` if it does more than move."""
    body = compat.jit_body(equation)
    if body is None:
        return [equation] if isinstance(compat.layout_of(equation), _MOVES) else None
    jaxpr, moves, value = body[0], [], body[0].invars[0]
    for inner in jaxpr.eqns:
        found = _moves(inner)
        if found is None or list(inner.invars) != [value]:
            return None
        moves += found
        (value,) = inner.outvars
    return moves if list(jaxpr.outvars) == [value] else None


def _moved(equation: jex.JaxprEqn, order: Order) -> Order | None:
    result: Any = equation.outvars[0].aval
    match compat.layout_of(equation):
        case compat.Permuted(axes):
            strides = tuple(order.strides[axis] for axis in axes)
            return replace(order, shape=result.shape, strides=strides)
        case compat.Flipped(axes):
            flips = [-1 if axis in axes else 1 for axis in range(len(order.shape))]
            first = sum((order.shape[axis] - 1) * order.strides[axis] for axis in axes)
            strides = tuple(map(operator.mul, order.strides, flips))
            return replace(order, strides=strides, start=order.start + first)
        case compat.Box(box, steps):
            first = sum(begin * s for (begin, _), s in zip(box, order.strides, strict=True))
            strides = tuple(map(operator.mul, order.strides, steps))
            return Order(result.shape, strides, order.start + first, order.size)
        case compat.Shaped():
            strides = _reshaped(order, result.shape)
            if strides is None:
                return None
            return replace(order, shape=result.shape, strides=strides)
    return order


def _reshaped(order: Order, shape: Shape) -> tuple[int, ...] | None:
    """Returns the strides after a reshape; ``None`` if neighbors would not be evenly apart."""
    old = [(n, s) for n, s in zip(order.shape, order.strides, strict=True) if n > 1]
    new = [n for n in shape if n > 1]
    made: list[int] = []
    for here, there in groups(tuple(new), tuple(n for n, _ in old)):
        group = [old[axis] for axis in there]
        if any(s != n * inner for (_, s), (n, inner) in itertools.pairwise(group)):
            return None
        made += [group[-1][1] * s for s in _strides([new[axis] for axis in here])]
    strides = iter(made)
    return tuple(0 if n == 1 else next(strides) for n in shape)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
