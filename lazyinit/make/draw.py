"""Elementwise works -> elements in host memory, drawn sheet by sheet.

A *sheet* is what one call of a compiled program makes: ``ROWS`` rows of ``COLUMNS`` elements, each
from a key and indices of its own. A large leaf fills sheets by itself, small ones share a sheet,
so that one program makes any number of leaves of any size and wastes little. A sheet's
temporaries stay in a core's cache, and memory is bounded: the arrays themselves, and one sheet
for each thread. JAX on CPU takes an aligned host buffer as it is, so this is how arrays on CPU
devices are made. Elsewhere a transfer would cost more than it saves.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from lazyinit.make.buffers import Blocks
from lazyinit.make.limits import COLUMNS, ROWS
from lazyinit.make.shards import Bounds
from lazyinit.params import Shape

_TASKS = 4  # That a leaf is cut into, so that threads end together,
_SHEETS = 8  # unless it is so large that each has more sheets: what waits takes memory, too.


@dataclass(frozen=True, slots=True)
class Strip:
    """Elements of a shard that one key makes.

    Attributes:
      to: where they go, of one dimension.
      parts: what to hand to the program, in the order of its arguments.
      indices: of the elements in the leaf.
    """

    to: np.ndarray
    parts: Sequence[tuple[Any, ...]]
    indices: "Indices"


@dataclass(frozen=True, slots=True)
class _Span:
    """Some rows of a strip."""

    strip: Strip
    first: int
    last: int


class _Task(Future[None]):
    """Spans that one thread draws, and the promise of it, from before it is handed to one."""

    def __init__(self, *spans: _Span) -> None:
        super().__init__()
        self.spans = list(spans)
        self.rows = 0

    def run(self, program: "SheetProgram") -> None:
        try:
            _draw(program, self.spans)
        except BaseException as error:
            self.set_exception(error)
        else:
            self.set_result(None)


@dataclass(frozen=True, slots=True)
class SheetProgram:
    """What draws the sheets of all strips that differ in their keys alone.

    Attributes:
      run: maps parts, bases uint32[ROWS,2] and offsets uint32[ROWS,COLUMNS] to elements, on any
        thread. Of the parts, keys have ROWS rows.
      is_key: which parts are keys.
      same: equal for equal programs, with equal parts for all that is no key.
    """

    run: Callable[[Sequence[tuple[Any, ...]], np.ndarray, np.ndarray], Any]
    is_key: Sequence[bool]
    same: Hashable


class Drawer:
    """Lays strips out in sheets, and hands the sheets to threads."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        """Takes the threads."""
        self._pool = pool
        self._open: dict[Hashable, tuple[SheetProgram, _Task]] = {}

    def draw(self, program: SheetProgram, strips: Iterable[Strip]) -> Sequence[Future[None]]:
        """Draws strips.

        Returns:
          What to wait for, after a ``flush``.
        """
        tasks: list[_Task] = []
        for strip in strips:
            rows = strip.indices.rows
            done = rows - rows % ROWS
            step = ROWS * max(1, min(_SHEETS, done // ROWS // _TASKS))
            for first in range(0, done, step):
                tasks.append(task := _Task(_Span(strip, first, min(first + step, done))))
                self._pool.submit(task.run, program)
            while done < rows:
                _, task = self._open.setdefault(program.same, (program, _Task()))
                taken = min(rows - done, ROWS - task.rows)
                task.spans.append(_Span(strip, done, done + taken))
                task.rows += taken
                done += taken
                tasks.append(task)
                if task.rows == ROWS:
                    self._close(program.same)
        return tasks

    def flush(self) -> None:
        """Hands over the sheets that are not full."""
        for same in list(self._open):
            self._close(same)

    def _close(self, same: Hashable) -> None:
        program, task = self._open.pop(same)
        self._pool.submit(task.run, program)


def _draw(program: SheetProgram, spans: Sequence[_Span]) -> None:
    if len(spans) > 1:
        _draw_sheet(program, spans)
        return
    (span,) = spans
    for first in range(span.first, span.last, ROWS):
        _draw_sheet(program, [_Span(span.strip, first, min(first + ROWS, span.last))])


def _draw_sheet(program: SheetProgram, spans: Sequence[_Span]) -> None:
    bases, offsets = np.zeros((ROWS, 2), np.uint32), _counting()
    lengths = [span.last - span.first for span in spans]
    starts = [0, *itertools.accumulate(lengths)]
    for span, start, end in zip(spans, starts, starts[1:], strict=False):
        bases[start:end], unlike = span.strip.indices.of_rows(span.first, span.last)
        if unlike is not None:
            offsets = offsets if offsets.flags.writeable else offsets.copy()
            offsets[start:end] = unlike
    lengths[-1] += ROWS - starts[-1]  # The rows to spare are drawn with the last key.

    def stacked(rows: Sequence[Any]) -> np.ndarray:
        return np.repeat(np.stack(rows), lengths, axis=0)

    parts = [
        tuple(map(stacked, zip(*alike, strict=True))) if is_key else alike[0]
        for is_key, *alike in zip(program.is_key, *(s.strip.parts for s in spans), strict=True)
    ]
    elements = np.asarray(program.run(parts, bases, offsets))
    for span, start, end in zip(spans, starts, starts[1:], strict=False):
        width = span.strip.indices.width
        to = span.strip.to[span.first * width : span.last * width]
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
