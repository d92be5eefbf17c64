"""Draws leaves: their elements are made in host memory, sheet by sheet.

A *sheet* is what one call of a compiled program makes: ``ROWS`` rows of ``COLUMNS`` elements. Each
row has a key and indices of its own. A large leaf fills sheets by itself, and small leaves share
one, so that one program makes any number of leaves of any size and wastes little.

The temporaries of a sheet stay in a core's cache. Memory is bounded by the arrays themselves and
one sheet for each thread. JAX on CPU takes an aligned host buffer as an array without a copy, so
arrays on CPU devices are drawn. For other devices, the transfer would cost more than drawing saves.
"""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import numpy as np

from lazyinit.make import executable
from lazyinit.make.elementwise import Elementwise
from lazyinit.make.executable import Argument, encode
from lazyinit.make.limits import COLUMNS, ROWS
from lazyinit.make.moved import Indices, Order
from lazyinit.make.shards import Blocks, Bounds, Shards
from lazyinit.make.ways import Drawn
from lazyinit.program.fingerprint import fingerprint
from lazyinit.program.small_values import SmallValues

_TASKS = 4  # A leaf is cut into so many tasks, so that threads end at about the same time.
_SHEETS = 8  # Sheets in a task, at most. With fewer, more tasks would wait and take memory.

_ZERO = np.uint32(0)

Part: TypeAlias = tuple[Any, ...]
"""The host values that are handed to a program for one of its arguments (``Argument``)."""

Program: TypeAlias = Callable[[Sequence[Part], np.ndarray, np.ndarray], Any]
"""Makes a sheet of elements, on any thread. It takes the parts of the rows' keys, and the indices
as bases uint32[ROWS,2] and offsets uint32[ROWS,COLUMNS]."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Elements of a shard that are drawn with one key, or some rows of them.

    Attributes:
      to: where the elements of all rows go, with its axes in the order in which they are drawn.
      keys: the parts of the keys, which may differ from row to row of a sheet.
      indices: the indices of the elements of all rows.
      first: the first row to draw.
      last: the row after the last one to draw.
    """

    to: np.ndarray
    keys: Sequence[Part]
    indices: Indices
    first: int
    last: int


class _Task(Future[None]):
    """Strips that one thread draws. Others may wait for them before a thread has got them."""

    def __init__(self, program: Program, *strips: Strip) -> None:
        super().__init__()
        self.program, self.strips = program, list(strips)
        self.rows = 0

    def run(self) -> None:
        try:
            _draw(self.program, self.strips)
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(None)


class Drawer:
    """Lays out leaves in sheets, and hands the sheets to threads."""

    def __init__(
        self, drawing: ThreadPoolExecutor, compiling: ThreadPoolExecutor, blocks: Blocks
    ) -> None:
        """Takes threads that draw, threads that compile, and the memory to fill."""
        self._drawing, self._compiling, self._blocks = drawing, compiling, blocks
        self._open: dict[Hashable, _Task] = {}  # Sheets that are not full yet, by their program.

    def prepare(self, way: Drawn, small: SmallValues) -> Callable[[], Shards]:
        """Returns a function that begins to fill the shards of a leaf, and begins to compile.

        Call this under the settings of the way. After the last leaf was begun, call ``flush``.

        Args:
          way: how it is drawn.
          small: its keys and scalars.
        """
        form, own = way.form, way.own_keys
        with jax.ensure_compile_time_eval():
            if isinstance(form, Elementwise):
                arguments, parts = encode(way.work, own, small)
                return self._prepare(way, form, arguments, [parts])
            if own:  # These values are not kept for other leaves, whose own keys differ.
                small = SmallValues(way.work.program, {}, {v: p.key() for v, p in own.items()})
            arguments, parts = encode(way.work, {}, small)
            if form.keys is not None:
                arguments, parts = _with_keys(form.keys, arguments, parts)
        return self._prepare(way, form.row, arguments, form.rows(parts))

    def _prepare(
        self,
        way: Drawn,
        form: Elementwise,
        arguments: Sequence[Argument],
        rows: Sequence[Sequence[Part]],
    ) -> Callable[[], Shards]:
        """Prepares a leaf, given the parts of each of its rows, or once for all of its elements."""
        (job,) = way.jobs
        shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, self._blocks)
        one = form.single(rows[0]) if job.dtype == job.leaf.dtype else None
        if one is not None:
            return functools.partial(_fill, shards, one)

        compiled = executable.compiler.request_sheet(
            self._compiling, form, tuple(arguments), rows[0], job.dtype
        )
        is_key = [argument.is_key for argument in arguments]

        def program(keys: Sequence[Part], bases: np.ndarray, offsets: np.ndarray) -> Any:
            each = iter(keys)
            parts = [next(each) if k else p for k, p in zip(is_key, rows[0], strict=True)]
            with way.settings():
                return compiled.result()(parts, bases, offsets, _ZERO)

        def draw() -> Shards:
            shared = [p for p, k in zip(rows[0], is_key, strict=True) if not k]
            keys = [[p for p, k in zip(row, is_key, strict=True) if k] for row in rows]
            strips = _strips(way.order, shards.allocate(), keys)
            shards.tasks = self._draw(program, (compiled, fingerprint(shared)), strips)
            return shards

        return draw

    def _draw(
        self, program: Program, same: Hashable, strips: Iterable[Strip]
    ) -> Sequence[Future[None]]:
        """Begins to draw strips, which share sheets with others whose ``same`` is equal."""
        tasks: list[_Task] = []
        for strip in strips:
            rows = strip.last
            done = rows - rows % ROWS
            step = ROWS * max(1, min(_SHEETS, done // ROWS // _TASKS))
            for first in range(0, done, step):
                cut = replace(strip, first=first, last=min(first + step, done))
                tasks.append(task := _Task(program, cut))
                self._drawing.submit(task.run)
            while done < rows:
                task = self._open.setdefault(same, _Task(program))
                taken = min(rows - done, ROWS - task.rows)
                task.strips.append(replace(strip, first=done, last=done + taken))
                task.rows += taken
                done += taken
                tasks.append(task)
                if task.rows == ROWS:
                    self._hand_over(same)
        return tasks

    def flush(self) -> None:
        """Hands the sheets that are not full to threads."""
        for same in list(self._open):
            self._hand_over(same)

    def _hand_over(self, same: Hashable) -> None:
        self._drawing.submit(self._open.pop(same).run)


def _with_keys(
    keys: Callable[..., Any], arguments: Sequence[Argument], parts: Sequence[Part]
) -> tuple[Sequence[Argument], Sequence[Part]]:
    """Computes the array of keys from the inputs, and hands it in instead of them."""
    made = keys(*(a.decode(*p) for a, p in zip(arguments, parts, strict=True)))
    argument = Argument("key", str(jax.random.key_impl(made)))
    return [argument], [(np.asarray(jax.random.key_data(made)),)]


def _fill(shards: Shards, value: np.ndarray) -> Shards:
    shards.fill(value)
    return shards


def _strips(
    order: Order, buffers: Mapping[Bounds, np.ndarray], rows: Sequence[Sequence[Part]]
) -> Iterator[Strip]:
    size = order.size // len(rows)
    for at, buffer in buffers.items():
        view, strides, start = order.view_of_shard(at, buffer)
        outer = sum(stride >= size for stride in strides)
        for place in np.ndindex(view.shape[:outer]):
            row, first = divmod(start + sum(map(operator.mul, place, strides)), size)
            to = view[(*place, ...)]
            indices = Indices(to.shape, strides[outer:], first, size)
            yield Strip(to, rows[row], indices, 0, indices.rows)


def _draw(program: Program, strips: Sequence[Strip]) -> None:
    if len(strips) > 1:
        _draw_sheet(program, strips)
        return
    (strip,) = strips
    for first in range(strip.first, strip.last, ROWS):
        _draw_sheet(program, [replace(strip, first=first, last=min(first + ROWS, strip.last))])


def _draw_sheet(program: Program, strips: Sequence[Strip]) -> None:
    bases, offsets = np.zeros((ROWS, 2), np.uint32), _counting()
    lengths = [strip.last - strip.first for strip in strips]
    starts = [0, *itertools.accumulate(lengths)]
    for strip, start, end in zip(strips, starts, starts[1:], strict=False):
        bases[start:end], unlike = strip.indices.of_rows(strip.first, strip.last)
        if unlike is not None:
            offsets = offsets if offsets.flags.writeable else offsets.copy()
            offsets[start:end] = unlike
    lengths[-1] += ROWS - starts[-1]  # Rows that are left over are drawn with the last key.

    def stacked(rows: Sequence[Any]) -> np.ndarray:
        return np.repeat(np.stack(rows), lengths, axis=0)

    keys = [
        tuple(map(stacked, zip(*alike, strict=True)))
        for alike in zip(*(strip.keys for strip in strips), strict=True)
    ]
    elements = np.asarray(program(keys, bases, offsets))
    for strip, start, end in zip(strips, starts, starts[1:], strict=False):
        width = strip.indices.width
        first = strip.first * width
        drawn = elements[start:end, :width].reshape(-1)
        _write(strip.to, first, drawn[: strip.to.size - first])


def _write(to: np.ndarray, first: int, elements: np.ndarray) -> None:
    """Writes elements to an array, beginning at the flat index ``first``."""
    if to.flags.c_contiguous:
        to.reshape(-1)[first : first + elements.size] = elements
        return
    width = math.prod(to.shape[1:])
    while elements.size:
        row, begin = divmod(first, width)
        if begin or elements.size < width:
            count = min(width - begin, elements.size)
            _write(to[row], begin, elements[:count])
        else:
            rows = elements.size // width
            count = rows * width
            to[row : row + rows] = elements[:count].reshape(rows, *to.shape[1:])
        first, elements = first + count, elements[count:]


@functools.cache
def _counting() -> np.ndarray:
    """Returns the offsets of a sheet in whose rows the indices count up by one."""
    counting = Blocks().empty((ROWS, COLUMNS), np.uint32)  # Aligned, so that JAX does not copy it.
    counting[...] = np.arange(COLUMNS, dtype=np.uint32)
    counting.flags.writeable = False
    return counting
