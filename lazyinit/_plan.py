"""``plan``: what ``materialize`` will do with each leaf, and the bytes on each device.

A tree and a sharding come in; a ``Plan`` goes out, and nothing is allocated. It asks the same
functions as ``materialize`` how each leaf is made, so that the two agree.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import jax
from jax.sharding import Sharding

from lazyinit import casts, compat, errors
from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.make import limits
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Compiled, Drawn, Job, Read, Replayed, way_of
from lazyinit.params import LazyParam, Thunk
from lazyinit.program.slices import Slice
from lazyinit.shard_by import ShardByRules
from lazyinit.view import table
from lazyinit.view.facts import Facts, State, is_array_like, state

Device: TypeAlias = Any  # jax.Device, which type checkers take for a variable.


Action: TypeAlias = Literal["initialize", "load", "overlap", "move", "share", "keep"]

_ACTIONS: Mapping[State, Action] = {"lazy": "initialize", "stored": "load", "overlap": "overlap"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafPlan(Facts):
    """What will be done with one leaf: its facts, with the dtype that it will have, and these.

    Attributes:
      action: ``"initialize"``, ``"load"``, ``"overlap"`` (initialize, then load a part over it),
        ``"move"`` (an array that gets another sharding or dtype), ``"share"`` (the same array as
        at an earlier path) or ``"keep"``.
      bytes_per_device: of the shard that each device of ``sharding`` gets; 0 for ``"share"`` and
        ``"keep"``, which bring nothing new.
      sharding: where the array will lie; ``None`` is the default device.
    """

    action: Action
    bytes_per_device: int
    sharding: Sharding | None

    @property
    def loaded_nbytes(self) -> int:
        """Bytes of the part that is loaded: all of it, none, or the part that overlaps."""
        return self.stored_nbytes if self.action in ("load", "overlap") else 0


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What ``materialize`` will do; prints as a table.

    Attributes:
      leaves: one entry for each array or thunk of the tree, in its order.
      bytes_per_device: bytes that arrive on each device, by device.
      peak_bytes_per_device: the same, plus what is needed while the leaves are made. This is a
        bound for leaves that are drawn or read, and an estimate for leaves that have a program of
        their own (``docs/performance.md``).
      unused_rules: patterns of ``shard_by_rules`` that match no leaf.
    """

    leaves: tuple[LeafPlan, ...]
    bytes_per_device: Mapping[Device, int]
    peak_bytes_per_device: Mapping[Device, int]
    unused_rules: tuple[str, ...] = ()

    def bytes_of(self, action: Action) -> int:
        """Returns the bytes, over all devices' distinct shards, of the leaves with this action.

        An ``"overlap"`` is counted under ``"initialize"`` as well, whole, and under ``"load"`` with
        the part that is loaded.

        Raises:
          WordError: no leaf can have this action.
        """
        errors.check_word("action", action, get_args(Action))
        if action == "load":
            return sum(leaf.loaded_nbytes for leaf in self.leaves)
        actions = (action, "overlap") if action == "initialize" else (action,)
        return sum(leaf.nbytes for leaf in self.leaves if leaf.action in actions)

    def __str__(self) -> str:
        counts, sizes = Counter[str](), Counter[str]()
        for leaf in self.leaves:
            counts[leaf.action] += 1
            sizes[leaf.action] += leaf.nbytes
        parts = [f"{n} {a} ({table.format_bytes(sizes[a])})" for a, n in counts.items()]
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
        title = f"{len(self.leaves)} leaves: {', '.join(parts)}"
        text = table.render(title, columns, cells, right=("leaves", "bytes per device"))
        return "\n".join([text, *self._per_device(), *self._unused()])

    def _per_device(self) -> list[str]:
        sizes: dict[int, list[Device]] = {}
        for device, size in self.bytes_per_device.items():
            sizes.setdefault(size, []).append(device)
        return [
            f"{table.format_bytes(size)} on {'each of ' if len(devices) > 1 else ''}"
            f"{', '.join(map(str, devices[:8]))}{', ...' if len(devices) > 8 else ''}"
            for size, devices in sizes.items()
        ]

    def _unused(self) -> list[str]:
        return [f"sharding rule {pattern!r} matches no leaf" for pattern in self.unused_rules]

    def __repr__(self) -> str:
        return str(self)


def plan(
    tree: Any,
    sharding: shardings.ShardingLike = None,
    *,
    paths: tree_paths.Paths = None,
    dtype: casts.DtypeLike = None,
) -> Plan:
    """Says what ``materialize`` with the same arguments will do, and allocates nothing.

    Args:
      tree: any pytree with thunks among its leaves.
      sharding: as for ``materialize``.
      paths: as for ``materialize``.
      dtype: as for ``materialize``.

    Returns:
      What is done with each leaf, and the bytes that arrive on each device.

    Raises:
      PathError: a pattern selects nothing.
      ShardingError: a sharding does not fit a leaf.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 512), "float32")
      >>> tree = li.lazy(nn.Dense(1024)).init(jax.random.key(0), x)
      >>> li.plan(tree).bytes_of("initialize")
      2101248
    """
    leaves = tree_paths.leaves_with_paths(tree)
    selected = tree_paths.select(paths, tree)
    placements = shardings.resolve(sharding, tree, leaves, selected)
    targets = casts.resolve(dtype, tree, leaves, selected)
    seen: set[Any] = set()
    planned = []
    arriving: Counter[Device] = Counter()
    beside: dict[Device, list[int]] = {}
    in_threads: dict[Device, dict[str, int]] = {}
    everything = zip(leaves, selected, placements, targets, strict=True)
    for (path, leaf), chosen, placement, target in everything:
        if not is_array_like(leaf):
            continue
        action = _action(leaf, chosen, placement, target)
        if action != "keep" and (id(leaf), placement, target) in seen:
            action = "share"
        seen.add((id(leaf), placement, target))
        shard = 0
        if action not in ("keep", "share"):
            shape = leaf.shape if placement is None else placement.shard_shape(leaf.shape)
            shard = math.prod(shape) * target.itemsize
            devices = {_default_device()} if placement is None else placement.device_set
            needed = _beside(Job(path, leaf, placement, target), shard)
            for n, device in enumerate(sorted(devices, key=lambda d: d.id)):
                arriving[device] += shard
                beside.setdefault(device, []).append(needed.each + (needed.first if n == 0 else 0))
                in_threads.setdefault(device, {}).update(needed.shared)
        done = {"action": action, "bytes_per_device": shard, "sharding": placement}
        planned.append(LeafPlan.of(path, leaf, dtype=target, **done))
    unused = (
        sharding.unused([path for path, _ in leaves]) if isinstance(sharding, ShardByRules) else []
    )
    peak = {
        d: n + sum(in_threads[d].values()) + sum(sorted(beside[d])[-limits.IN_FLIGHT :])
        for d, n in arriving.items()
    }
    return Plan(tuple(planned), dict(arriving), peak, tuple(unused))


@dataclass(frozen=True, slots=True)
class _Beside:
    """The bytes that are needed, beside the arrays, while a leaf is made or read.

    Attributes:
      shared: buffers that all leaves of a sort use in turn, by what they are for.
      each: bytes on each device that gets a shard.
      first: further bytes on one device, where the whole leaf is made before it is cut.
    """

    shared: Mapping[str, int] = field(default_factory=dict)
    each: int = 0
    first: int = 0


def _beside(job: Job, shard: int) -> _Beside:
    threads = os.cpu_count() or 1
    leaf = job.leaf
    if job.over:
        rest = _beside(replace(job, over=()), shard)
        if rest.shared:
            return replace(rest, shared={**rest.shared, "pieces": threads * limits.PIECE})
        return replace(rest, each=max(limits.PIECE, rest.each))
    if isinstance(leaf, LazyParam) and not isinstance(leaf.init_fn, Slice):
        # Somebody's own function, which is not run for a plan: at worst it is replayed, and cut.
        return _Beside(first=(limits.TEMPORARIES + 1) * leaf.nbytes)
    match way_of([job], proofs_on):
        case Drawn():
            return _Beside(shared={"sheets": threads * limits.SHEET_BYTES})
        case Compiled():
            return _Beside(each=limits.TEMPORARIES * shard)
        case Replayed():
            is_cut = shard < leaf.nbytes
            return _Beside(first=(limits.TEMPORARIES + is_cut) * leaf.nbytes)
        case Read():
            return _Beside(shared={"pieces": threads * limits.PIECE})
        case _:  # Transferred: what is beside it is the host's.
            return _Beside()


def _action(leaf: Any, chosen: bool, placement: Sharding | None, target: Any) -> Action:
    if isinstance(leaf, Thunk):
        return _ACTIONS[state(leaf)] if chosen else "keep"
    moved = chosen and (target != leaf.dtype or placement not in (None, _placement(leaf)))
    return "move" if moved else "keep"


def _placement(leaf: Any) -> Sharding | None:
    return getattr(leaf, "sharding", None)


def _default_device() -> Device:
    device = compat.setting("jax_default_device")
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]
