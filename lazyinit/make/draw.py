"""Leaves that are drawn: their elements are made in host memory, sheet by sheet.

A *sheet* is what one call of a compiled program makes: ``ROWS`` rows of ``COLUMNS`` elements. Each
row has a key and indices of its own. A large leaf fills sheets by itself, and small leaves share
one, so that one program makes any number of leaves of any size and wastes little.

What a sheet needs beside it stays in a core's cache. Memory is bounded by the arrays themselves and
one sheet for each thread. JAX on CPU takes an aligned host buffer as it is, so this is how arrays
on CPU devices are made. For other devices the transfer would cost more than drawing saves.
"""

import functools
import itertools
import math
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
from lazyinit.make.shards import Blocks, Bounds, Shards
from lazyinit.make.ways import Drawn
from lazyinit.params import Shape
from lazyinit.program.fingerprint import fingerprint
from lazyinit.program.slices import SmallValues

_TASKS = 4  # That a leaf is cut into, so that threads end together,
_SHEETS = 8  # unless it is so large that each has more sheets: what waits takes memory, too.

_ZERO = np.uint32(0)

Part: TypeAlias = tuple[Any, ...]
"""The host values that are handed to a program for one of its arguments (``Argument``)."""

Program: TypeAlias = Callable[[Sequence[Part], np.ndarray, np.ndarray], Any]
"""Maps the parts of the rows' keys, bases uint32[ROWS,2] and offsets uint32[ROWS,COLUMNS] to a
sheet of elements, on any thread."""


@dataclass(frozen=True, slots=True)
class Strip:
    """Elements of a shard that one key makes, or some rows of them.

    Attributes:
      to: where all of the elements go, of one dimension.
      keys: the parts of what differs from row to row of a sheet, the keys.
      indices: the places of all of the elements in the leaf.
      first: the first row to draw.
      last: the row after the last.
    """

    to: np.ndarray
    keys: Sequence[Part]
    indices: "Indices"
    first: int
    last: int


class _Task(Future[None]):
    """Strips that one thread draws. It can be waited for before it is handed to a thread."""

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
    """Lays leaves out in sheets, and hands the sheets to threads."""

    def __init__(
        self, drawing: ThreadPoolExecutor, compiling: ThreadPoolExecutor, blocks: Blocks
    ) -> None:
        """Takes threads that draw, threads that compile, and the memory to fill."""
        self._drawing, self._compiling, self._blocks = drawing, compiling, blocks
        self._open: dict[Hashable, _Task] = {}  # Sheets that are not full, by what draws them.

    def prepare(self, way: Drawn, small: SmallValues) -> Callable[[], Shards]:
        """Returns what begins to fill the shards of a leaf; its program is compiled meanwhile.

        After the last leaf was begun, ``flush``. Call both under the settings of the way.

        Args:
          way: how it is drawn.
          small: its keys and scalars.
        """
        form, own = way.form, way.own_keys
        with jax.ensure_compile_time_eval():
            if isinstance(form, Elementwise):
                arguments, parts = encode(way.work, own, small)
                return self._prepare(way, form, arguments, [parts])
            if own:  # What is made of it is of no use to other leaves: it may be another one there.
                small = SmallValues(way.work.program, {}, {v: p.key() for v, p in own.items()})
            arguments, parts = encode(way.work, {}, small)
        return self._prepare(way, form.row, arguments, form.rows(parts))

    def _prepare(
        self,
        way: Drawn,
        form: Elementwise,
        arguments: Sequence[Argument],
        rows: Sequence[Sequence[Part]],
    ) -> Callable[[], Shards]:
        """Prepares a leaf: ``rows`` has the parts of each of its rows, or once for all of it."""
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
            strips = _strips(job.leaf.shape, shards.allocate(), keys)
            shards.tasks = self._draw(program, (compiled, fingerprint(shared)), strips)
            return shards

        return draw

    def _draw(
        self, program: Program, same: Hashable, strips: Iterable[Strip]
    ) -> Sequence[Future[None]]:
        """Begins to draw strips. ``same`` is equal for programs that may draw one sheet."""
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
        """Hands over the sheets that are not full."""
        for same in list(self._open):
            self._hand_over(same)

    def _hand_over(self, same: Hashable) -> None:
        self._drawing.submit(self._open.pop(same).run)


def _fill(shards: Shards, value: np.ndarray) -> Shards:
    shards.fill(value)
    return shards


def _strips(
    shape: Shape, buffers: Mapping[Bounds, np.ndarray], rows: Sequence[Sequence[Part]]
) -> Iterator[Strip]:
    for at, buffer in buffers.items():
        if len(rows) == 1:
            indices = Indices(shape, at)
            yield Strip(buffer.reshape(-1), rows[0], indices, 0, indices.rows)
            continue
        indices = Indices(shape[1:], at[1:])
        # A row of no dimensions would be a copy.
        flat = buffer.reshape(len(buffer), math.prod(buffer.shape[1:]))
        for row, to in zip(range(*at[0]), flat, strict=True):
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
    lengths[-1] += ROWS - starts[-1]  # The rows to spare are drawn with the last key.

    def stacked(rows: Sequence[Any]) -> np.ndarray:
        return np.repeat(np.stack(rows), lengths, axis=0)

    keys = [
        tuple(map(stacked, zip(*alike, strict=True)))
        for alike in zip(*(strip.keys for strip in strips), strict=True)
    ]
    elements = np.asarray(program(keys, bases, offsets))
    for strip, start, end in zip(strips, starts, starts[1:], strict=False):
        width = strip.indices.width
        to = strip.to[strip.first * width : strip.last * width]
        to[...] = elements[start:end, :width].reshape(-1)[: to.size]


@functools.cache
def _counting() -> np.ndarray:
    """Returns the offsets of rows whose indices count up by one."""
    counting = Blocks().empty((ROWS, COLUMNS), np.uint32)  # Aligned: JAX need not copy it.
    counting[...] = np.arange(COLUMNS, dtype=np.uint32)
    counting.flags.writeable = False
    return counting


class Indices:
    """The flat indices, in the whole leaf, of a shard's elements in their order.

    Attributes:
      width: how many elements to draw in each row of a sheet.
      rows: how many rows that takes.
    """

    def __init__(self, shape: Shape, at: Bounds) -> None:
        """Takes the shape of the leaf, and the bounds of the shard."""
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        # The shard is made of runs that lie in one piece: those of its last axis that is cut.
        cut = [d for d, (start, stop) in enumerate(at) if stop - start < shape[d]]
        last = cut[-1] if cut else 0
        self._run = math.prod(stop - start for start, stop in at[last:])
        self._outer = tuple(stop - start for start, stop in at[:last])
        self._strides = strides[:last]
        self._start = sum(start * stride for (start, _), stride in zip(at, strides, strict=True))
        self._size = math.prod(self._outer) * self._run
        # The indices in a row are told from its first by 32 bits.
        self.width = COLUMNS if math.prod(shape) <= 2**32 else max(1, min(COLUMNS, self._run))
        self.rows = -(-self._size // self.width)

    def of_rows(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns the indices of some rows: of their first elements, and of the others less that.

        Returns:
          uint32[last-first,2], two words for each; and uint32[last-first,COLUMNS], of which
          ``width`` count, or ``None`` where all rows count up by one.
        """
        begin, end = first * self.width, min(last * self.width, self._size)
        if len(self._outer) == 0 or self._run % self.width == 0:
            places = np.arange(begin, end, self.width)
            runs = places // self._run
            return _words(self._starts(runs) + places - runs * self._run), None
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

    def _starts(self, runs: np.ndarray) -> np.ndarray:
        places = np.unravel_index(runs, self._outer) if self._outer else ()
        return self._start + sum(
            (p * stride for p, stride in zip(places, self._strides, strict=True)),
            start=np.zeros(runs.size, np.int64),
        )


def _words(indices: np.ndarray) -> np.ndarray:
    return np.stack([indices >> 32, indices & 0xFFFFFFFF], axis=-1).astype(np.uint32)
