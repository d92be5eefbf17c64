"""What ``plan`` returns: what will be done with each leaf, and bytes for each device and file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from jax.sharding import Sharding

from lazyinit import errors, sizes
from lazyinit import sharding as shardings
from lazyinit.abstract_meshes import MeshDevice
from lazyinit.cost.tally import Device
from lazyinit.view import table
from lazyinit.view.facts import Facts, file_name
from lazyinit.view.shown import Shown

Action: TypeAlias = Literal[
    "initialize",
    "load",
    "overlap",
    "derive",
    "move",
    "share",
    "keep",
    "optimizer",
    "gradients",
    "copy",
]

_FILES = 3  # The most files that are named in one line.


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPlan(Facts):
    """What will be done with one leaf: the facts about it, and the attributes below.

    Among the facts, ``dtype`` and ``nbytes`` are those of the array that will be there.

    Attributes:
      action: ``"initialize"``, ``"load"``, ``"overlap"`` (initialize, then load a part over it),
        ``"derive"`` (compute from other leaves), ``"move"`` (give an array another sharding or
        dtype), ``"share"`` (the same array as at an earlier path) or ``"keep"``. For an array that
        training holds beside the tree, it says what that is: ``"optimizer"`` (part of its state),
        ``"gradients"`` or ``"copy"``.
      bytes_per_device: bytes of the shard that each device of ``sharding`` gets; 0 for ``"share"``
        and ``"keep"``, which bring nothing new.
      sharding: where the array will lie; ``None`` is the default device.
    """

    action: Action
    bytes_per_device: int
    sharding: Sharding | None

    @property
    def loaded_nbytes(self) -> int:
        """Bytes that come from a checkpoint: all, those of the part that overlaps, or none."""
        return self.stored_nbytes if self.action in ("load", "overlap") else 0

    @property
    def repeated_nbytes(self) -> int:
        """Bytes of copies: what all devices hold together, without one copy of the array."""
        devices = 1 if self.sharding is None else self.sharding.num_devices
        return max(0, devices * self.bytes_per_device - self.nbytes)


@dataclass(frozen=True, slots=True, repr=False)
class Headroom:
    """Whether a plan fits into the memory of each device; true if it does.

    Attributes:
      limit: bytes that each device has.
      spare: bytes that are left at the peak of the fullest device; negative if it has too few.
      device: the fullest device.
      lacking: how many devices have too little.
    """

    limit: int
    spare: int
    device: Device
    lacking: int

    def __bool__(self) -> bool:
        return self.spare >= 0

    def __str__(self) -> str:
        limit, spare = (table.format_bytes(abs(n)) for n in (self.limit, self.spare))
        if self:
            return f"fits into {limit}: {spare} to spare on {self.device}, the fullest"
        others = f", and too much on {self.lacking - 1} more" * (self.lacking > 1)
        return f"does not fit into {limit}: {spare} too much on {self.device}, the fullest{others}"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True, repr=False)
class Plan(Shown):
    """What ``materialize`` will do; prints as a table.

    A device is a ``jax.Device``. For a mesh without devices it is a ``MeshDevice``, which stands
    for one place in the mesh.

    Attributes:
      leaves: one entry for each array or thunk of the tree, in its order.
      bytes_per_device: bytes that arrive on each device, by device; those of ``training`` too.
      peak_bytes_per_device: the most bytes that are on each device at a time, by device. The peak
        is either the end, when all of ``bytes_per_device`` is there, or earlier, when the leaves
        of the tree are made in temporary memory and training has not begun. It is a bound for
        leaves that are drawn or read, and an estimate for leaves that have a program of their own
        (``docs/performance.md``). What a step of training computes is not counted.
      unused_rules: patterns of ``shard_by_rules`` that match no leaf.
      training: what training holds beside the tree, one entry for each array.
      reads: bytes that each host reads, by host and file. If tensors of several files make a leaf,
        a host that needs half of the leaf is taken to read half of each tensor.
    """

    leaves: tuple[LeafPlan, ...]
    bytes_per_device: Mapping[Device, int]
    peak_bytes_per_device: Mapping[Device, int]
    unused_rules: tuple[str, ...] = ()
    training: tuple[LeafPlan, ...] = ()
    reads: Mapping[int, Mapping[str, int]] = field(default_factory=dict)

    def bytes_of(self, action: Action) -> int:
        """Returns the bytes of the leaves with this action; copies on several devices count once.

        A leaf with the action ``"overlap"`` counts under ``"initialize"``, too, with all its bytes,
        and under ``"load"`` with the bytes of the part that is loaded.

        Raises:
          WordError: no leaf can have this action.
        """
        errors.check_word("action", action, get_args(Action))
        if action == "load":
            return sum(leaf.loaded_nbytes for leaf in self.leaves)
        actions = (action, "overlap") if action == "initialize" else (action,)
        return sum(leaf.nbytes for leaf in self._all() if leaf.action in actions)

    def fits(self, memory: int | str) -> Headroom:
        """Tells whether the peak of every device fits into its memory, and how much is to spare.

        Args:
          memory: the memory of each device, in bytes, or as text such as ``"16GiB"`` or ``"80GB"``.

        Returns:
          A value that is true if it fits, and prints how much is to spare or is lacking.

        Raises:
          PlanError: ``memory`` is no such size.
        """
        limit = sizes.bytes_of(memory, "memory", errors.PlanError)
        peaks: Mapping[Device, int] = self.peak_bytes_per_device or {"none": 0}
        fullest = max(peaks, key=lambda device: peaks[device])
        lacking = sum(count > limit for count in peaks.values())
        return Headroom(limit, limit - peaks[fullest], fullest, lacking)

    def _table(self) -> table.Table:
        rows = table.fold(
            (
                leaf.path,
                leaf.action,
                leaf.array,
                leaf.origin,
                shardings.describe(leaf.sharding),
                table.format_bytes(leaf.bytes_per_device),
            )
            for leaf in self.leaves
        )
        columns = ("path", "leaves", "action", "array", "from", "sharding", "bytes per device")
        cells = [(row.label, str(row.count), *row.cells) for row in rows]
        title = f"{len(self.leaves)} leaves: {_counted(self.leaves)}"
        if self.training:
            title += f"; for training: {_counted(self.training)}"
        notes = [*self._reads(), *self._repeated(), *self._peaks()]
        notes += [*_by_device(self.bytes_per_device), *self._unused()]
        right = ("leaves", "bytes per device")
        return table.Table(title, columns, cells, right=right, notes=notes)

    def _all(self) -> Sequence[LeafPlan]:
        return (*self.leaves, *self.training)

    def _reads(self) -> list[str]:
        """Returns what each host reads; hosts that read the same share a line."""
        alike: dict[str, list[int]] = {}
        for host, files in self.reads.items():
            names = [file_name(file) for file in files]
            more = len(names) - _FILES
            listed = ", ".join(names[:_FILES]) + (f" and {more} more" if more > 0 else "")
            what = f"{table.format_bytes(sum(files.values()))} of {listed}"
            alike.setdefault(what, []).append(host)
        return [f"to read, by {_named('host', hosts)}: {what}" for what, hosts in alike.items()]

    def _repeated(self) -> list[str]:
        """Returns a line about copies on several devices, or none if there are no copies."""
        repeated = [leaf for leaf in self._all() if leaf.repeated_nbytes]
        if not repeated:
            return []
        whole = [leaf for leaf in repeated if leaf.bytes_per_device == leaf.nbytes]
        wasted = sum(leaf.repeated_nbytes for leaf in repeated)
        each = sum(leaf.nbytes for leaf in whole)
        most = max(repeated, key=lambda leaf: leaf.repeated_nbytes)
        return [
            f"{len(whole)} of these are on each of their devices whole, "
            f"{table.format_bytes(each)}; copies take {table.format_bytes(wasted)} over all "
            f"devices, most for {most.path} ({table.format_bytes(most.repeated_nbytes)})"
        ]

    def _peaks(self) -> list[str]:
        if self.peak_bytes_per_device == self.bytes_per_device:
            return []
        return [f"at most {line}" for line in _by_device(self.peak_bytes_per_device)]

    def _unused(self) -> list[str]:
        return [f"sharding rule {pattern!r} matches no leaf" for pattern in self.unused_rules]


def _counted(leaves: Sequence[LeafPlan]) -> str:
    counts, nbytes = Counter[str](), Counter[str]()
    for leaf in leaves:
        counts[leaf.action] += 1
        nbytes[leaf.action] += leaf.nbytes
    return ", ".join(f"{n} {a} ({table.format_bytes(nbytes[a])})" for a, n in counts.items())


def _by_device(counts: Mapping[Device, int]) -> list[str]:
    return [f"{table.format_bytes(count)} on {name}" for name, count in by_device(counts)]


def by_device(counts: Mapping[Device, int]) -> list[tuple[str, int]]:
    """Returns names of devices, each with bytes; devices with the same bytes share an entry.

    >>> by_device({MeshDevice(0): 8, MeshDevice(1): 8, MeshDevice(2): 4})
    [('each of devices 0 to 1', 8), ('device 2', 4)]
    """
    alike: dict[int, list[Device]] = {}
    for device, count in counts.items():
        alike.setdefault(count, []).append(device)
    return [(_listed(devices), count) for count, devices in alike.items()]


def _listed(devices: Sequence[Device]) -> str:
    if len(devices) > 1 and all(isinstance(device, MeshDevice) for device in devices):
        return f"each of {_named('device', [device.id for device in devices])}"
    shown = ", ".join(map(str, devices[:8])) + ", ..." * (len(devices) > 8)
    return f"each of {shown}" if len(devices) > 1 else shown


def _named(word: str, numbers: Sequence[int]) -> str:
    """Returns numbered things as text: ``host 3``, ``devices 0 to 31``, or else ``5 devices``."""
    if len(numbers) == 1:
        return f"{word} {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{word}s {numbers[0]} to {numbers[-1]}"
    return f"{len(numbers)} {word}s"
