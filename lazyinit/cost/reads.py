"""Counts the bytes that a host reads of each file, for the part of a leaf that it needs."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, Sharding

from lazyinit.sources import Source


def of_files(source: Source, part: float = 1.0) -> Mapping[str, int]:
    """Returns the bytes that are read of each file, to read a source.

    Args:
      source: what is read.
      part: how much of it is read, from 0 to 1. If several tensors make the source, the same part
        of each is counted.
    """
    found: Counter[str] = Counter()
    for tensor, share in _tensors(source, part):
        if tensor.extents:
            for extent in tensor.extents:
                found[extent.file] += round((extent.stop - extent.start) * share)
        else:  # The tensor lies in chunks, is compressed, or is in memory.
            found[tensor.origin] += round(math.prod(tensor.shape) * tensor.dtype.itemsize * share)
    return found


def _tensors(source: Any, part: float) -> Iterator[tuple[Source, float]]:
    """Yields the tensors that a source is made of, and how much of each is read, from 0 to 1."""
    reads = getattr(source, "reads", None)
    if reads is None:
        yield source, part
        return
    size = math.prod(source.shape)
    for inner in reads:
        whole = math.prod(inner.shape)
        yield from _tensors(inner, part * min(1.0, size / whole) if whole else 0.0)


def parts_by_host(
    placement: Sharding | None, shape: Sequence[int], devices: Sequence[Any]
) -> Mapping[int, float]:
    """Returns how much of an array each host needs for its devices: from 0 to 1, by process index.

    Args:
      placement: where the array goes; ``None`` is the default device.
      shape: the shape of the array.
      devices: the devices of the placement, or what stands for them in a mesh without devices, in
        the order of the mesh.
    """
    if len({device.process_index for device in devices}) == 1:
        return {devices[0].process_index: 1.0}
    if isinstance(placement, NamedSharding):
        axes = [(a,) if isinstance(a, str) else a or () for a in placement.spec]
        used = frozenset(name for names in axes for name in names)
        return _parts_of_mesh(placement.mesh, used, tuple(devices))
    assert placement is not None  # The default device is on one host, and these are on several.
    blocks: dict[int, set[str]] = {}
    for device, index in placement.devices_indices_map(tuple(shape)).items():
        blocks.setdefault(device.process_index, set()).add(str(index))
    count = len(set().union(*blocks.values()))
    return {host: len(own) / count for host, own in blocks.items()}


@cache
def _parts_of_mesh(mesh: Any, used: frozenset[str], devices: Sequence[Any]) -> Mapping[int, float]:
    """Returns how much each host needs of an array that some axes of a mesh cut into blocks.

    Args:
      mesh: the mesh.
      used: the names of the axes that cut the array; along the others it is copied.
      devices: the devices of the mesh, in its order; they count only if the mesh has none itself.
    """
    grid = mesh.devices if isinstance(mesh, Mesh) else np.array(devices).reshape(mesh.axis_sizes)
    places = [n for n, name in enumerate(mesh.axis_names) if name in used]
    blocks: dict[int, set[tuple[int, ...]]] = {}
    for at, device in np.ndenumerate(grid):
        blocks.setdefault(device.process_index, set()).add(tuple(at[n] for n in places))
    count = math.prod(grid.shape[n] for n in places)
    return {host: len(own) / count for host, own in blocks.items()}
