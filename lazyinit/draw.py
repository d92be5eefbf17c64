"""An elementwise work -> an array in host memory: each device's part, a run of elements at a time.

A run is short enough for its temporaries to stay in cache, and one compiled program makes all
of them. So memory is bounded: the array itself, and for each thread one run of
``RUN`` elements with its temporaries. JAX on CPU takes an aligned host buffer as it is, so this
is how arrays on CPU devices are made. Elsewhere a transfer would cost more than it saves.
"""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from lazyinit.buffers import aligned_empty, aligned_zeros
from lazyinit.executable import Executable
from lazyinit.params import Shape, describe

Bounds: TypeAlias = tuple[tuple[int, int], ...]  # Of a shard: start and stop in each dimension.

RUN = 2**16  # Elements that one call of a program makes: their temporaries fit into a core's cache.
SHORT_RUN = 2**11  # The same for small shards, where it would make too many.
_RUNS_AT_A_TIME = 8  # By one thread, before another leaf gets its turn.


def run_length(shape: Shape, sharding: Sharding | None) -> int:
    """Returns how many elements a program should make at a time for shards of this size."""
    shard = shape if sharding is None else sharding.shard_shape(shape)
    return SHORT_RUN if math.prod(shard) <= 4 * SHORT_RUN else RUN


class Drawing:
    """One leaf while it is made: its shards, in buffers that threads fill."""

    def __init__(self, path: str, shape: Shape, dtype: Any, sharding: Sharding | None) -> None:
        """Takes what the leaf will be; ``path`` is for messages."""
        self._path, self._shape, self._dtype, self._sharding = path, shape, dtype, sharding
        self._places: dict[Any, Bounds] = {None: tuple((0, n) for n in shape)}
        if sharding is not None:
            indices = sharding.addressable_devices_indices_map(shape)
            self._places = {device: _bounds(at, shape) for device, at in indices.items()}
        self._buffers: dict[Bounds, np.ndarray] = {}

    def fill(self, value: np.ndarray) -> None:
        """Makes every element one value (no dimensions, of the leaf's dtype)."""
        is_zero = not any(value.tobytes())
        for at in dict.fromkeys(self._places.values()):
            buffer = self._buffer(at, aligned_zeros if is_zero else aligned_empty)
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
        for at in dict.fromkeys(self._places.values()):
            flat = self._buffer(at, aligned_empty).reshape(-1)
            indices = _Indices(self._shape, at)
            step = run * _RUNS_AT_A_TIME

            def work(
                first: int, flat: Any = flat, indices: Any = indices, step: int = step
            ) -> None:
                made, end = first, min(first + step, flat.size)
                while made < end:
                    base, offsets, count = indices.run(made, min(run, end - made), run)
                    elements = program(parts, base, offsets)
                    flat[made : made + count] = np.asarray(elements)[:count]
                    made += count

            tasks += [pool.submit(work, first) for first in range(0, flat.size, step)]
        return tasks

    def _buffer(self, at: Bounds, make: Callable[[Shape, Any], np.ndarray]) -> np.ndarray:
        shape = tuple(stop - start for start, stop in at)
        try:
            buffer = self._buffers[at] = make(shape, self._dtype)
        except MemoryError as error:
            raise MemoryError(
                f"{self._path}: wanted memory for {describe(shape, self._dtype)}, got none: "
                f"{error}. Cut the leaf over more processes, or give it a smaller dtype."
            ) from error
        return buffer

    def array(self) -> jax.Array:
        """Returns the leaf, once its buffers are full. On the thread whose settings hold."""
        if self._sharding is None:
            return jax.device_put(self._buffers.popitem()[1])
        memory = self._sharding.memory_kind
        pieces = []
        given: set[Bounds] = set()
        for device, at in self._places.items():
            buffer = _copied(self._buffers[at]) if at in given else self._buffers[at]
            given.add(at)  # Each device has memory of its own.
            pieces.append(jax.device_put(buffer, SingleDeviceSharding(device, memory_kind=memory)))
        return jax.make_array_from_single_device_arrays(
            self._shape, self._sharding, pieces, dtype=self._dtype
        )


def _copied(buffer: np.ndarray) -> np.ndarray:
    copy = aligned_empty(buffer.shape, buffer.dtype)
    copy[...] = buffer
    return copy


def _bounds(index: Any, shape: Shape) -> Bounds:
    bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


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
