"""The parts of one array, in buffers that JAX on CPU takes over: one for each distinct shard."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from lazyinit import compat
from lazyinit.making.buffers import Blocks
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
            self._places = {device: _bounds(at, shape) for device, at in indices.items()}
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
        if len(self._buffers) == len(self._places):
            return jax.make_array_from_callback(
                self._shape, self._sharding, self._at, dtype=self._dtype
            )
        # Each device has memory of its own, and JAX would give two of them one buffer.
        pieces = []
        given: set[Bounds] = set()
        for device, at in self._places.items():
            buffer = self._copied(at) if at in given else self._buffers[at]
            given.add(at)
            place = SingleDeviceSharding(device, memory_kind=self._sharding.memory_kind)
            pieces.append(jax.device_put(buffer, place))
        return jax.make_array_from_single_device_arrays(
            self._shape, self._sharding, pieces, dtype=self._dtype
        )

    def _at(self, index: Any) -> np.ndarray:
        return self._buffers[_bounds(index, self._shape)]

    def _copied(self, at: Bounds) -> np.ndarray:
        copy = self._blocks.empty(self._buffers[at].shape, self._dtype)
        copy[...] = self._buffers[at]
        return copy


def arrays(filled: Sequence[Shards]) -> list[jax.Array]:
    """Returns the array of each, in less time than one by one, under no setting and no trace."""
    on_default = [n for n, shards in enumerate(filled) if shards.is_whole]
    with compat.enable_x64(True), jax.ensure_compile_time_eval():
        # One call for all: JAX takes half the time.
        whole = jax.device_put([filled[n].whole() for n in on_default])
        made = dict(zip(on_default, whole, strict=True))
        return [made[n] if n in made else shards.array() for n, shards in enumerate(filled)]


def _bounds(index: Any, shape: Shape) -> Bounds:
    bounds = (s.indices(n) for s, n in zip(index, shape, strict=True))
    return tuple((start, stop) for start, stop, _ in bounds)
