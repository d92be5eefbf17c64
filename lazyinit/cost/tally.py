"""Adds up the bytes on each device, for all devices of a mesh at once."""

import heapq
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
from jax.sharding import NamedSharding, Sharding

from lazyinit import abstract_meshes, compat

Device: TypeAlias = Any  # A jax.Device, which type checkers take for a variable; or a MeshDevice.


@dataclass(frozen=True, slots=True)
class Beside:
    """The bytes that are needed, beside the arrays, while a leaf is made or read.

    Attributes:
      shared: bytes of buffers that all leaves of one kind use in turn, by the name of the buffer;
        the largest that a leaf names counts.
      each: bytes on each device that gets a shard.
      first: further bytes on one device, where the whole leaf is made before it is cut.
      alone: ``None`` if the leaf may be made while others are. If not, a name for the leaves that
        are made together with it, while no others are made.
    """

    shared: Mapping[str, int] = field(default_factory=dict)
    each: int = 0
    first: int = 0
    alone: Hashable | None = None


@dataclass(slots=True)
class _Needs:
    """Bytes that leaves need on a device while they are made.

    Attributes:
      beside_others: the bytes of each leaf that may be made while others are.
      alone: the bytes of all leaves that are made together while no others are, by their name in
        ``Beside.alone``.
    """

    beside_others: list[int] = field(default_factory=list)
    alone: Counter[Hashable] = field(default_factory=Counter)

    def add(self, nbytes: int, alone: Hashable | None) -> None:
        if alone is None:
            self.beside_others.append(nbytes)
        else:
            self.alone[alone] += nbytes

    def largest(self, in_flight: int) -> "_Needs":
        """Returns the largest needs; the others cannot decide a peak, whatever the device gets."""
        alone = Counter(dict(self.alone.most_common(1)))
        return _Needs(heapq.nlargest(in_flight, self.beside_others), alone)

    def most(self, in_flight: int, at_most: int) -> int:
        """Returns the most bytes that are needed at a time; see ``Tally.peak``."""
        sizes = heapq.nlargest(in_flight, self.beside_others)
        return max(min(sum(sizes), at_most), *sizes, *self.alone.values(), 0)


@dataclass(slots=True)
class _Group:
    """Devices that get shards of the same leaves.

    Attributes:
      devices: the devices in order; whole leaves are made on the first.
      arriving: bytes that each device gets, and keeps.
      each: what leaves need on every device but the first, while they are made.
      on_first: what leaves need on the first device, while they are made.
      shared: bytes of buffers that leaves use in turn, as in ``Beside.shared``.
    """

    devices: Sequence[Device]
    arriving: int = 0
    each: _Needs = field(default_factory=_Needs)
    on_first: _Needs = field(default_factory=_Needs)
    shared: dict[str, int] = field(default_factory=dict)


def shard_nbytes(leaf: Any, placement: Sharding | None, dtype: Any) -> int:
    """Returns the bytes of one shard of a leaf, in a dtype, which may be that of PRNG keys.

    Args:
      leaf: anything with a shape.
      placement: where the leaf goes; ``None`` is the default device, which gets all of it.
      dtype: the dtype of the array.
    """
    shape = leaf.shape if placement is None else placement.shard_shape(leaf.shape)
    return math.prod(shape) * dtype.itemsize


class Tally:
    """Adds up the bytes that arrive on each device, and those that are needed there meanwhile."""

    def __init__(self, hosts: int = 1) -> None:
        """Starts with nothing.

        Args:
          hosts: the number of hosts of a mesh without devices; each has as many places in it.
        """
        self._hosts = hosts
        self._groups: dict[Any, _Group] = {}

    def devices(self, placement: Sharding | None) -> Sequence[Device]:
        """Returns the devices of a placement; ``None`` is the default device."""
        return self._group(placement).devices

    def add(self, placement: Sharding | None, nbytes: int, beside: Beside | None = None) -> None:
        """Counts a leaf on each device of a placement.

        Args:
          placement: where the leaf goes; ``None`` is the default device.
          nbytes: bytes of one shard.
          beside: what is needed while the leaf is made or read; ``None`` if nothing is.
        """
        group = self._group(placement)
        group.arriving += nbytes
        if beside is not None:
            group.each.add(beside.each, beside.alone)
            group.on_first.add(beside.each + beside.first, beside.alone)
            _keep_largest(group.shared, beside.shared)

    def steady(self) -> dict[Device, int]:
        """Returns the bytes that are on each device at the end."""
        found: Counter[Device] = Counter()
        for group in self._groups.values():
            for device in group.devices:
                found[device] += group.arriving
        return dict(found)

    def peak(self, in_flight: int, at_most: int) -> dict[Device, int]:
        """Returns the most bytes that are on each device at a time.

        Args:
          in_flight: how many leaves are made at a time.
          at_most: the most bytes that these leaves need together, beside the shared buffers; a
            leaf that needs more is made alone.
        """
        needs: dict[Device, tuple[dict[str, int], _Needs]] = {}
        for group in self._groups.values():
            each, on_first = (kind.largest(in_flight) for kind in (group.each, group.on_first))
            for n, device in enumerate(group.devices):
                shared, together = needs.setdefault(device, ({}, _Needs()))
                _keep_largest(shared, group.shared)
                found = each if n else on_first
                together.beside_others += found.beside_others
                together.alone |= found.alone
        peaks = self.steady()
        for device, (shared, together) in needs.items():
            peaks[device] += sum(shared.values()) + together.most(in_flight, at_most)
        return peaks

    def _group(self, placement: Sharding | None) -> _Group:
        # It is quick to compare meshes, and slow to compare sets of devices.
        named = isinstance(placement, NamedSharding)
        key = placement.mesh if named else placement and frozenset(placement.device_set)
        if key not in self._groups:
            self._groups[key] = _Group(self._devices_of(placement))
        return self._groups[key]

    def _devices_of(self, placement: Sharding | None) -> Sequence[Device]:
        if placement is None:
            return (_default_device(),)
        if abstract_meshes.is_abstract(placement):
            return abstract_meshes.devices_of(placement, self._hosts)
        return _by_id(placement.device_set)


def _keep_largest(counts: dict[str, int], others: Mapping[str, int]) -> None:
    for name, count in others.items():
        counts[name] = max(count, counts.get(name, 0))


def _by_id(devices: Iterable[Device]) -> Sequence[Device]:
    return tuple(sorted(devices, key=lambda device: device.id))


def _default_device() -> Device:
    device = compat.setting("jax_default_device")
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]
