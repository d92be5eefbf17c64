"""The shards of one array, in host memory that JAX on CPU takes over without a copy.

There is one buffer for each distinct shard. CPU devices that hold the same part share its buffer,
as they do after ``jax.device_put`` of a host array. JAX never writes to such a buffer, even if the
array is donated.

The first touch of a page costs as much as copying a page of data there, but far less where pages
are large. NumPy asks for large pages from 4 MiB on, so small buffers are cut out of *blocks*. The
memory of a block goes back to the system when the last array in it is gone.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat
from lazyinit.sources import Index, Shape, describe

Bounds: TypeAlias = tuple[tuple[int, int], ...]  # Start and stop of a part in each dimension.

ALIGNMENT = 64  # Bytes, as XLA wants it.
_LARGE_PAGE = 2**21  # Bytes, on x86-64 and on most ARM64 systems.
BLOCK = 2**24  # Bytes. A small array that outlives its neighbors keeps this much at most.
_OPEN = 4  # Blocks that are kept open for more buffers. The layers of a decoder need three.


class Shards:
    """The shards of one array that this process's devices hold.

    Attributes:
      tasks: the tasks that fill the buffers, which have to be waited for.
    """

    def __init__(
        self, path: str, shape: Shape, dtype: Any, sharding: Sharding | None, blocks: "Blocks"
    ) -> None:
        """Takes the array's shape, dtype and sharding, and memory; ``path`` is for messages."""
        self._blocks = blocks
        self._path, self._shape, self._dtype, self._sharding = path, shape, dtype, sharding
        self._places = places_of(shape, sharding)
        self._buffers: dict[Bounds, np.ndarray] = {}
        self.tasks: Sequence[Future[Any]] = ()

    def allocate(self, *, zeros: bool = False) -> dict[Bounds, np.ndarray]:
        """Returns a buffer to fill for each distinct shard.

        Args:
          zeros: whether they start as zeros, which take memory only once they are read or written.

        Raises:
          MemoryError: there is too little memory.
        """
        make = self._blocks.zeros if zeros else self._blocks.empty
        for at in dict.fromkeys(self._places.values()):
            shape = tuple(stop - start for start, stop in at)
            try:
                self._buffers[at] = make(shape, self._dtype)
            except MemoryError as error:
                raise MemoryError(
                    f"{self._path}: wanted memory for {describe(shape, self._dtype)}, got none: "
                    f"{error}. Cut the leaf over more processes, or give it a smaller dtype."
                ) from error
        return self._buffers

    def fill(self, value: np.ndarray) -> None:
        """Allocates the buffers, and sets every element to a value of the array's dtype."""
        is_zero = not any(value.tobytes())
        for buffer in self.allocate(zeros=is_zero).values():
            if not is_zero:
                buffer[...] = value

    @property
    def is_whole(self) -> bool:
        """Whether there is just one buffer, which goes to the default device."""
        return self._sharding is None

    def whole(self) -> np.ndarray:
        """Returns the buffer of an array that is whole."""
        (buffer,) = self._buffers.values()
        return buffer

    def array(self) -> jax.Array:
        """Returns the array, once its buffers are full.

        Call it outside of any trace. If the dtype has 64 bits, call it with ``jax_enable_x64`` set.
        ``arrays_of`` sees to both.
        """
        if self._sharding is None:
            return jax.device_put(self.whole())
        return jax.make_array_from_callback(
            self._shape, self._sharding, self._at, dtype=self._dtype
        )

    def _at(self, index: Any) -> np.ndarray:
        return self._buffers[_bounds_of(index, self._shape)]


def arrays_of(filled: Sequence[Shards]) -> list[jax.Array]:
    """Returns the array of each, in any trace and under any settings of the caller."""
    on_default = [n for n, shards in enumerate(filled) if shards.is_whole]
    with compat.enable_x64(True), jax.ensure_compile_time_eval():
        # One call for all takes half the time of a call for each.
        whole = jax.device_put([filled[n].whole() for n in on_default])
        made = dict(zip(on_default, whole, strict=True))
        return [made[n] if n in made else shards.array() for n, shards in enumerate(filled)]


def is_elsewhere(sharding: Sharding | None) -> bool:
    """Tells whether all devices of a sharding belong to other processes."""
    return sharding is not None and not sharding.addressable_devices


def empty(shape: Shape, sharding: Any, dtype: Any) -> jax.Array:
    """Returns an array of which this process holds nothing, because other processes make it."""
    with compat.enable_x64(True), jax.ensure_compile_time_eval():
        return jax.make_array_from_single_device_arrays(shape, sharding, [], dtype=dtype)


def places_of(shape: Shape, sharding: Sharding | None) -> Mapping[Any, Bounds]:
    """Returns the part of an array that each device of this process holds, by device.

    Without a sharding, ``None`` stands for the default device, which holds the whole array.
    """
    if sharding is None:
        return {None: tuple((0, n) for n in shape)}
    indices = sharding.addressable_devices_indices_map(shape)
    return {device: _bounds_of(index, shape) for device, index in indices.items()}


def _bounds_of(index: Any, shape: Shape) -> Bounds:
    bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)


def index_of(bounds: Bounds) -> Index:
    """Returns the index that selects a part."""
    return tuple(slice(start, stop) for start, stop in bounds)


def size_of(bounds: Bounds) -> int:
    """Returns how many elements a part has."""
    return math.prod(stop - start for start, stop in bounds)


class Blocks:
    """Cuts buffers out of blocks, on any thread."""

    def __init__(self) -> None:
        """Starts with no block."""
        self._lock = threading.Lock()
        self._rests: list[np.ndarray] = []  # What is left of the last blocks, smallest first.

    def empty(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Returns an array whose values are not set yet."""
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        taken = -(-size // ALIGNMENT) * ALIGNMENT
        if taken > BLOCK // 2:
            return aligned(size).view(dtype).reshape(shape)
        with self._lock:
            # The smallest rest that fits is taken, because a rest that is never used up still has
            # all of its first large page in memory, if a part of that page is in use.
            fits = (n for n, rest in enumerate(self._rests) if taken <= rest.size)
            chosen = next(fits, None)
            rest = aligned(BLOCK) if chosen is None else self._rests.pop(chosen)
            space = rest[:taken]
            self._rests = sorted([*self._rests, rest[taken:]], key=len)[-_OPEN:]
        return space[:size].view(dtype).reshape(shape)

    def zeros(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Returns an array of zeros, which takes memory only once it is read or written to."""
        size = math.prod(shape) * jnp.dtype(dtype).itemsize
        return aligned(size, np.zeros).view(dtype).reshape(shape)


def aligned(size: int, make: Any = np.empty) -> np.ndarray:
    """Returns host memory uint8[size] that starts where XLA wants arrays to start.

    If the size is a multiple of a large page, the memory starts with a page and has no small ones.

    Args:
      size: in bytes.
      make: ``numpy.empty`` or ``numpy.zeros``.
    """
    step = ALIGNMENT if size % _LARGE_PAGE else _LARGE_PAGE
    space = make(size + step, np.uint8)
    return space[-space.ctypes.data % step :][:size]
