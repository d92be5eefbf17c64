"""An elementwise work -> an array in host memory: each device's part, a run of elements at a time.

A run is short enough for its temporaries to stay in cache, and one compiled program makes all
of them. So memory is bounded: the array itself, and for each thread one run of
``RUN`` elements with its temporaries. JAX on CPU takes an aligned host buffer as it is, so this
is how arrays on CPU devices are made. Elsewhere a transfer would cost more than it saves.
"""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from lazyinit.making.executable import Executable
from lazyinit.making.limits import RUN, SHORT_RUN
from lazyinit.making.shards import Bounds, Shards
from lazyinit.params import Shape

_RUNS_AT_A_TIME = 8  # By one thread, before another leaf gets its turn.


def run_length(shape: Shape, sharding: Sharding | None, first: int = 0) -> int:
    """Returns how many elements a program should make at a time for shards of this size.

    Args:
      shape: of the leaf.
      sharding: where it goes.
      first: the first axis that counts: 1 for leaves that are made by rows.
    """
    shard = shape if sharding is None else sharding.shard_shape(shape)
    return SHORT_RUN if math.prod(shard[first:]) <= 4 * SHORT_RUN else RUN


class Drawing:
    """One leaf while it is made: threads fill its shards."""

    def __init__(self, shape: Shape, shards: Shards) -> None:
        """Takes the shape of the leaf, and what will be its shards."""
        self._shape, self._shards = shape, shards

    def fill(self, value: np.ndarray) -> None:
        """Makes every element one value (no dimensions, of the leaf's dtype)."""
        is_zero = not any(value.tobytes())
        for buffer in self._shards.allocate(zeros=is_zero).values():
            if not is_zero:
                buffer[...] = value

    def draw(
        self, program: Executable, parts: Any, run: int, pool: ThreadPoolExecutor
    ) -> list[Future[None]]:
        """Starts threads that fill the buffers.

        Args:
          program: maps ``(parts, base uint32[2], offsets uint32[run])`` to elements, on any thread.
          parts: what else to hand in.
          run: how many elements it makes at a time.
          pool: the threads.
        """
        tasks = []
        for at, buffer in self._shards.allocate().items():
            tasks += _draw(program, parts, run, pool, buffer, _Indices(self._shape, at))
        return tasks

    def draw_rows(
        self, program: Executable, parts: Sequence[Any], run: int, pool: ThreadPoolExecutor
    ) -> list[Future[None]]:
        """As ``draw``, but each row along the first axis has its own parts, and its own indices."""
        tasks = []
        for at, buffer in self._shards.allocate().items():
            indices = _Indices(self._shape[1:], at[1:])
            # A row of no dimensions would be a copy.
            rows = buffer.reshape(len(buffer), math.prod(buffer.shape[1:]))
            for row, to in zip(range(*at[0]), rows, strict=True):
                tasks += _draw(program, parts[row], run, pool, to, indices)
        return tasks

    def array(self) -> jax.Array:
        """Returns the leaf, once its buffers are full. On the thread whose settings hold."""
        return self._shards.array()


def _draw(
    program: Executable,
    parts: Any,
    run: int,
    pool: ThreadPoolExecutor,
    buffer: np.ndarray,
    indices: "_Indices",
) -> list[Future[None]]:
    flat = buffer.reshape(-1)
    step = run * _RUNS_AT_A_TIME

    def work(first: int) -> None:
        made, end = first, min(first + step, flat.size)
        while made < end:
            base, offsets, count = indices.run(made, min(run, end - made), run)
            elements = program(parts, base, offsets)
            flat[made : made + count] = np.asarray(elements)[:count]
            made += count

    return [pool.submit(work, first) for first in range(0, flat.size, step)]


class _Indices:
    """The flat indices, in the whole leaf, of a shard's elements in their order."""

    def __init__(self, shape: Shape, at: Bounds) -> None:
        strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
        # The shard is made of rows that lie in one piece: those of its last axis that is cut.
        cut = [d for d, (start, stop) in enumerate(at) if stop - start < shape[d]]
        last = cut[-1] if cut else 0
        self._row = math.prod(stop - start for start, stop in at[last:])
        self._outer = tuple(stop - start for start, stop in at[:last])
        self._strides = strides[:last]
        self._start = sum(start * stride for (start, _), stride in zip(at, strides, strict=True))
        self._plain: dict[int, np.ndarray] = {}

    def run(self, first: int, count: int, run: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Returns the indices of some elements: one as two words, and the others less that one.

        Args:
          first: the place in the shard of the first.
          count: how many.
          run: how many to give; those beyond ``count`` do not matter.

        Returns:
          uint32[2], uint32[run], and how many count: fewer, if 32 bits do not hold the others.
        """
        row, within = divmod(first, self._row)
        if within + count <= self._row:
            if run not in self._plain:
                self._plain[run] = np.arange(run, dtype=np.uint32)
            return _words(self._starts(np.array([row]))[0] + within), self._plain[run], count
        places = np.arange(first, first + count)
        rows = places // self._row
        starts = self._starts(np.arange(row, rows[-1] + 1))
        indices = starts[rows - row] + (places - rows * self._row)
        count = int(np.searchsorted(indices, indices[0] + 2**32))
        offsets = np.zeros(run, np.uint32)
        offsets[:count] = indices[:count] - indices[0]
        return _words(indices[0]), offsets, count

    def _starts(self, rows: np.ndarray) -> np.ndarray:
        places = np.unravel_index(rows, self._outer) if self._outer else ()
        return self._start + sum(
            (p * stride for p, stride in zip(places, self._strides, strict=True)),
            start=np.zeros(rows.size, np.int64),
        )


def _words(index: Any) -> np.ndarray:
    return np.array([int(index) >> 32, int(index) & 0xFFFFFFFF], np.uint32)
