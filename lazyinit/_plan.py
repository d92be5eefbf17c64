"""The verb ``plan``: tells what ``materialize`` will do, and the bytes on each device.

A tree and a sharding come in; a ``Plan`` goes out, and nothing is allocated. ``plan`` asks the same
functions as ``materialize`` how each leaf is made, so that the two agree.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jax.sharding import Sharding

from lazyinit import casts
from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.abstract_meshes import is_abstract
from lazyinit.cost import reads
from lazyinit.cost.planned import Action, LeafPlan, Plan
from lazyinit.cost.tally import Beside, Tally, shard_nbytes
from lazyinit.cost.training import Dtype, Trained
from lazyinit.derived import DerivedParam, origins
from lazyinit.make import limits
from lazyinit.make.derive import Derivation
from lazyinit.make.in_flight import made_alone
from lazyinit.make.proofs import TRUSTED, Proofs
from lazyinit.make.read import decoded_bytes
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.spread import spread_of
from lazyinit.make.ways import Compiled, Drawn, Job, Read, Replayed, way_of
from lazyinit.params import LazyParam, Thunk
from lazyinit.program.slices import Slice
from lazyinit.shard_by import ShardByRules
from lazyinit.view.facts import State, is_array_like, state

_ACTIONS: Mapping[State, Action] = {
    "lazy": "initialize",
    "stored": "load",
    "overlap": "overlap",
    "derived": "derive",
}


def plan(
    tree: Any,
    sharding: shardings.ShardingLike = None,
    *,
    paths: tree_paths.Paths = None,
    dtype: casts.DtypeLike = None,
    optimizer: Any = None,
    gradients: Dtype | bool = False,
    copy: Dtype | None = None,
    trainable: tree_paths.Paths = None,
    hosts: int = 1,
    broadcast: bool = False,
) -> Plan:
    """Tells what ``materialize`` with the same arguments will do, and allocates nothing.

    Args:
      tree: any pytree with thunks among its leaves.
      sharding: as for ``materialize``, but this process need not have the devices. A builder and a
        sharding may be on an ``AbstractMesh``, or this may be a mesh itself: a ``Mesh``, an
        ``AbstractMesh`` or text such as ``"data=4,model=8"``. On it each leaf is placed as its
        recording under a mesh or its metadata says, and is replicated if they say nothing.
      paths: as for ``materialize``.
      dtype: as for ``materialize``.
      optimizer: the optimizer that will train the leaves, such as ``optax.adamw(1e-3)``: anything
        with an ``init`` that maps them to a state. The state is counted: parts that mirror a leaf
        are sharded as the leaf is, and the rest is replicated.
      gradients: whether gradients of the trained leaves are counted, or the dtype that they have.
      copy: the dtype of a copy of the trained leaves, which is then counted; ``None`` for no copy.
      trainable: which leaves are trained, as for ``paths``. ``None`` selects those in variables of
        type ``nnx.Param`` or in the collection ``params``, and all leaves if the tree has neither.
        Only floating-point leaves are trained.
      hosts: the number of hosts of a mesh without devices, all with the same number of devices.
      broadcast: as for ``materialize``; it changes how many bytes each host reads.

    Returns:
      For each leaf what will be done with it; the bytes that arrive on each device; and the bytes
      that each host reads from each file. ``plan(...).fits("16GiB")`` says whether each device has
      room for them.

    Raises:
      PathError: a pattern selects nothing.
      ShardingError: a sharding does not fit a leaf.
      PlanError: ``optimizer``, ``gradients``, ``copy`` or ``hosts`` is not valid.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 512), "float32")
      >>> tree = li.lazy(nn.Dense(1024)).init(jax.random.key(0), x)
      >>> li.plan(tree).bytes_of("initialize")
      2101248
      >>> shard = li.shard_fsdp("data=64", "data")
      >>> set(li.plan(tree, shard).bytes_per_device.values())
      {32832}
    """
    leaves = tree_paths.leaves_with_paths(tree)
    selected = tree_paths.select(paths, tree)
    placements = shardings.resolve(sharding, tree, leaves, selected, needs_devices=False)
    targets = casts.resolve(dtype, tree, leaves, selected)
    seen: set[Any] = set()
    planned, tally = [], Tally(hosts)
    read: dict[int, Counter[str]] = {}
    everything = zip(leaves, selected, placements, targets, strict=True)
    for (path, leaf), chosen, placement, target in everything:
        if not is_array_like(leaf):
            continue
        action = _action(leaf, chosen, placement, target)
        if action != "keep":
            action = "share" if (id(leaf), placement, target) in seen else action
            seen.add((id(leaf), placement, target))
        shard = 0
        if action not in ("keep", "share"):
            shard = shard_nbytes(leaf, placement, target)
            job, devices = Job(path, leaf, placement, target), tally.devices(placement)
            beside, reader, spread = _beside(job, shard), job, None
            if broadcast:
                spread = spread_of(job, devices if is_abstract(placement) else None)
            if spread is not None:  # One leaf is gathered at a time, and may be transposed then.
                part = shard_nbytes(spread.leaf, spread.sharding, target)
                beside, reader = replace(beside, each=part + shard), spread
            tally.add(placement, shard, beside)
            for source in origins(leaf)[0]:
                parts = reads.parts_by_host(reader.sharding, reader.leaf.shape, devices)
                for host, part in parts.items():
                    read.setdefault(host, Counter()).update(reads.of_files(source, part))
        done = {"action": action, "bytes_per_device": shard, "sharding": placement}
        planned.append(LeafPlan.of(path, leaf, dtype=target, **done))
    in_flight = (limits.TEMPORARIES + 1) * limits.BYTES_IN_FLIGHT
    peak, training = tally.peak(limits.IN_FLIGHT, in_flight), []
    if optimizer is not None or gradients is not False or copy is not None:
        trained = Trained.of(tree, trainable, selected, placements, targets)
        for held in trained.held(optimizer, gradients, copy):
            shard = shard_nbytes(held.struct, held.placement, held.struct.dtype)
            tally.add(held.placement, shard)
            done = {"action": held.action, "bytes_per_device": shard, "sharding": held.placement}
            training.append(LeafPlan.of(f"{held.action}/{held.path}", held.struct, **done))
    arriving = tally.steady()
    return Plan(
        tuple(planned),
        arriving,
        {device: max(count, peak.get(device, 0)) for device, count in arriving.items()},
        tuple(_unused(sharding, [path for path, _ in leaves])),
        tuple(training),
        {host: dict(files) for host, files in sorted(read.items())},
    )


def _unused(sharding: Any, known: list[str]) -> list[str]:
    return sharding.unused(known) if isinstance(sharding, ShardByRules) else []


def _proofs(platform: str) -> Proofs:
    """Returns what is proven on a platform; everything, if this machine has no such device."""
    try:
        return proofs_on(platform)
    except RuntimeError:
        return TRUSTED


def _beside(job: Job, shard: int) -> Beside:
    """Returns the memory that making a leaf takes beside its shard of ``shard`` bytes."""
    threads = os.cpu_count() or 1
    leaf = job.leaf
    if job.over:
        rest = _beside(replace(job, over=()), shard)
        if rest.shared:
            return replace(rest, shared={**rest.shared, "pieces": threads * limits.READ_BYTES})
        return replace(rest, each=max(limits.READ_BYTES, rest.each))
    if isinstance(leaf, DerivedParam):
        group = Derivation.of([job], _proofs)
        if group.parted is not None:  # Each device has its parts of the inputs.
            parts = [shard_nbytes(x.leaf, x.sharding, x.dtype) for x in group.inputs]
            made = map(_beside, group.inputs, parts)
            shared = {name: count for one in made for name, count in one.shared.items()}
            return Beside(shared, each=sum(parts) + limits.TEMPORARIES * max([shard, *parts]))
        # One device holds all inputs whole, and what it takes to make them.
        inputs = [Job(part.path, part, None, part.dtype) for part in leaf.inputs]
        needed = [_beside(one, one.leaf.nbytes) for one in inputs]
        shared = {name: count for one in needed for name, count in one.shared.items()}
        makes = max((one.each + one.first for one in needed), default=0)
        whole = sum(part.nbytes for part in leaf.inputs)
        return Beside(shared, first=whole + max(makes, (limits.TEMPORARIES + 1) * leaf.nbytes))
    if isinstance(leaf, LazyParam) and not isinstance(leaf.init_fn, Slice):
        # A plan does not run a user's own function: it counts the bytes of the costliest way,
        # which is to make the leaf whole and then cut it.
        return Beside(first=(limits.TEMPORARIES + 1) * leaf.nbytes)
    match way := way_of([job], _proofs):
        case Drawn():
            return Beside(shared={"sheets": threads * limits.SHEET_BYTES})
        case Compiled():
            return Beside(each=limits.TEMPORARIES * shard)
        case Replayed():
            is_cut = shard < leaf.nbytes
            return Beside(first=(limits.TEMPORARIES + is_cut) * leaf.nbytes, alone=made_alone(way))
        case Read():
            chunks = decoded_bytes(leaf.source)
            return Beside(shared={"pieces": threads * limits.READ_BYTES, "chunks": chunks})
        case _:  # Transferred, which takes memory of the host alone.
            return Beside()


def _action(leaf: Any, chosen: bool, placement: Sharding | None, target: Any) -> Action:
    """Returns what ``materialize`` will do with a leaf."""
    if isinstance(leaf, Thunk):
        return _ACTIONS[state(leaf)] if chosen else "keep"
    moved = chosen and (target != leaf.dtype or placement not in (None, _placement(leaf)))
    return "move" if moved else "keep"


def _placement(leaf: Any) -> Sharding | None:
    return getattr(leaf, "sharding", None)
