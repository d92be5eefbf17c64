"""The parts of one array, in buffers that JAX on CPU takes over: one for each distinct shard.

CPU devices that hold the same have one buffer in common, as after ``jax.device_put`` of a host
array: nothing writes to such a buffer, a donated one is left as it is.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat
from lazyinit.make.buffers import Blocks
from lazyinit.params import Shape, describe

Bounds: TypeAlias = tuple[tuple[int, int], ...]  # Of a shard: start and stop in each dimension.


class Shards:
    """The shards of one array that this process's devices hold."""

    def __init__(
        self, path: str, shape: Shape, dtype: Any, sharding: Sharding | None, blocks: Blocks
    ) -> None:
        """Takes what the array will be, and memory for it; ``path`` is for messages."""
        self._blocks = blocks
        self._path, self._shape, self._dtype, self._sharding = path, shape, dtype, sharding
        self._places: dict[Any, Bounds] = {None: tuple((0, n) for n in shape)}
        if sharding is not None:
            indices = sharding.addressable_devices_indices_map(shape)
            self._places = {device: bounds_of(at, shape) for device, at in indices.items()}
        self._buffers: dict[Bounds, np.ndarray] = {}

    def allocate(self, *, zeros: bool = False) -> dict[Bounds, np.ndarray]:
        """Returns a buffer to fill for each distinct shard.

        Args:
          zeros: whether they start as zeros, which take memory only when they are read.

        Raises:
          MemoryError: there is too little of it.
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
        """Allocates, and makes every element one value (no dimensions, of the array's dtype)."""
        is_zero = not any(value.tobytes())
        for buffer in self.allocate(zeros=is_zero).values():
            if not is_zero:
                buffer[...] = value

    @property
    def is_whole(self) -> bool:
        """Whether it is one buffer for the default device."""
        return self._sharding is None

    def whole(self) -> np.ndarray:
        """Returns that buffer."""
        (buffer,) = self._buffers.values()
        return buffer

    def array(self) -> jax.Array:
        """Returns the array, once its buffers are full. On the thread whose settings hold."""
        if self._sharding is None:
            return jax.device_put(self.whole())
        return jax.make_array_from_callback(
            self._shape, self._sharding, self._at, dtype=self._dtype
        )

    def _at(self, index: Any) -> np.ndarray:
        return self._buffers[bounds_of(index, self._shape)]


def arrays(filled: Sequence[Shards]) -> list[jax.Array]:
    """Returns the array of each, in less time than one by one, under no setting and no trace."""
    on_default = [n for n, shards in enumerate(filled) if shards.is_whole]
    with compat.enable_x64(True), jax.ensure_compile_time_eval():
        # One call for all: JAX takes half the time.
        whole = jax.device_put([filled[n].whole() for n in on_default])
        made = dict(zip(on_default, whole, strict=True))
        return [made[n] if n in made else shards.array() for n, shards in enumerate(filled)]


def bounds_of(index: Any, shape: Shape) -> Bounds:
    """Returns the bounds that an index of slices has in an array of this shape."""
    bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)
