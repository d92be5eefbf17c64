"""Leaves of a tree as sources: arrays on devices, and thunks that are made when they are read.

An array is read a piece at a time, from whichever devices hold it.

An array that is spread over several processes is read by all of them together: each copies what its
own devices hold of a piece into zeros, and these are added up over all processes. So no host, and
no device, holds more of the array than before, but for one piece.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyinit import compat
from lazyinit.meshes import under
from lazyinit.params import Thunk
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.held import Ranges, ranges, shards_of, within


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class DeviceArray(Tensor):
    """A ``Source``: an array on devices, under the path of its leaf.

    Attributes:
      name: the path of the leaf.
      array: an array on any mesh, also one of several processes.
      told: by name, whether each array is spread, as the first process found and told the others.
        A process that holds all of an array cannot know whether the first one holds it, too.
    """

    name: str
    array: jax.Array
    told: Mapping[str, bool] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """The array's shape."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The array's dtype."""
        return self.array.dtype

    @property
    def origin(self) -> str:
        """The word ``the tree``, for messages."""
        return "the tree"

    @property
    def is_spread(self) -> bool:
        """Whether the first process does not hold all of it, so that all must read it together."""
        if self.name in self.told:
            return self.told[self.name]
        if self.array.is_fully_addressable:
            return False
        indices = self.array.sharding.devices_indices_map(self.shape)
        first = {ranges(i, self.shape) for d, i in indices.items() if d.process_index == 0}
        return sum(math.prod(map(len, r)) for r in first) < self.array.size

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; if the array is spread, every process must call this."""
        wanted, is_spread = ranges(index, self.shape), self.is_spread
        parts: dict[Ranges, np.ndarray] = {}
        for part, held, shard in shards_of(self.array, wanted):
            if part not in parts and (shard.replica_id == 0 or not is_spread):
                parts[part] = on_host(shard.data, part, held)
        if wanted in parts and not is_spread:
            return parts[wanted]
        values = np.zeros([len(r) for r in wanted], self.dtype)
        for part, data in parts.items():
            values[within(part, wanted)] = data
        return added_up(values) if is_spread else values

    def check(self) -> None:
        """Does nothing, as an array of a tree cannot be gone."""

    def __eq__(self, other: object) -> bool:  # The same array at two paths.
        return isinstance(other, DeviceArray) and other.array is self.array

    def __hash__(self) -> int:
        return id(self.array)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OnDemand(Tensor):
    """A ``Source``: a leaf that is made when it is read.

    Attributes:
      name: the path of the leaf.
      leaf: a thunk of any kind.
      make: makes a leaf; leaves that are read one after the other share this function.
    """

    name: str
    leaf: Thunk
    make: Callable[[str, Thunk], DeviceArray]

    @property
    def shape(self) -> Shape:
        """The leaf's shape."""
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        """The leaf's dtype."""
        return self.leaf.dtype

    @property
    def origin(self) -> str:
        """The word ``the tree``, for messages."""
        return "the tree"

    def read(self, index: Index) -> np.ndarray:
        """Makes the leaf, and returns its values at ``index``."""
        return self.make(self.name, self.leaf).read(index)

    def check(self) -> None:
        """Does nothing, as what is wrong shows when the leaf is made."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnDemand) and other.leaf is self.leaf

    def __hash__(self) -> int:
        return id(self.leaf)


def on_host(data: jax.Array, part: Ranges, held: Ranges) -> np.ndarray:
    """Returns a block of what one device holds: a view on CPU, else a copy of the block alone.

    Args:
      data: an array on one device, which is a block of a larger array.
      part: the block to return.
      held: the block that ``data`` is.
    """
    local = within(part, held)
    (device,) = data.devices()
    if device.platform == "cpu":
        return np.asarray(data)[local]  # A view.
    # Cut on the device, as JAX would keep a host copy of the whole array beside it.
    starts = [np.int32(cut.start) for cut in local]
    with under(None):
        return np.asarray(_cut(data, starts, tuple(map(len, part))))


@functools.partial(jax.jit, static_argnums=2)
def _cut(data: jax.Array, starts: Sequence[Any], sizes: tuple[int, ...]) -> jax.Array:
    return jax.lax.dynamic_slice(data, starts, sizes)


def added_up(values: np.ndarray) -> np.ndarray:
    """Returns the sum over all processes, each of which has zeros where another has values.

    Every process must call this, with the same shape and dtype.
    """
    raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    mesh = _one_device_each()
    each = NamedSharding(mesh, PartitionSpec("process"))
    with compat.enable_x64(False), under(None):
        spread = jax.make_array_from_process_local_data(each, raw[None], (mesh.size, raw.size))
        whole = _total(mesh)(spread)
    return np.asarray(whole.addressable_data(0)).view(values.dtype).reshape(values.shape)


@functools.cache
def _one_device_each() -> Mesh:
    first = {d.process_index: d for d in reversed(jax.devices())}
    return Mesh(np.array([first[n] for n in sorted(first)]), ("process",))


@functools.cache
def _total(mesh: Mesh) -> Any:
    def lazyinit_total(parts: jax.Array) -> jax.Array:
        return parts.sum(0, dtype=parts.dtype)

    return jax.jit(lazyinit_total, out_shardings=NamedSharding(mesh, PartitionSpec()))
