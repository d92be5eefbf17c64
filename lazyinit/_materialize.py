"""The verb ``materialize``: thunks -> arrays, for any part of a tree, under any sharding."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from lazyinit import agree, casts, compat, errors
from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.make.run import make
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.shards import empty, is_elsewhere
from lazyinit.make.spread import check_network, gathered, network, spreads_of
from lazyinit.make.ways import Job
from lazyinit.params import Thunk
from lazyinit.progress import ProgressLike, check_progress, reporting


@agree.telling
def materialize(
    tree: Any,
    paths: tree_paths.Paths = None,
    sharding: shardings.ShardingLike = None,
    *,
    dtype: casts.DtypeLike = None,
    progress: ProgressLike = False,
    check: bool = False,
    broadcast: bool = False,
) -> Any:
    """Makes or reads the selected leaves of a tree; each device gets only its own shard.

    A leaf made from a key has the bits of eager ``module.init``, for any subset of leaves, in any
    order, on any mesh (``docs/bits.md`` says how).

    Args:
      tree: any pytree with thunks among its leaves.
      paths: which leaves: ``None`` for all; a glob over ``/``-joined keys, which selects subtrees
        too (``"params/head"``, ``"params/**/kernel"``); a filter of Flax NNX (``nnx.Param``);
        several of these; or a predicate ``(path, leaf) -> bool``. Others stay as they are, so
        that calls compose.
      sharding: where each leaf goes. ``None`` puts it where eager ``init`` would have: as its
        metadata and the mesh that was set around the recording say, or else on the default device.
        A ``jax.sharding.Mesh`` puts each leaf on that mesh, as its recording under a mesh or its
        metadata says, and replicates it if they say nothing. It may also be a
        ``jax.sharding.Sharding``, a prefix pytree of them, a callable
        ``(path, leaf) -> Sharding``, or what a ``shard_by_...`` builder returned.
      dtype: a dtype for the selected floating-point leaves, except for a BatchNorm's statistics;
        ``"file"`` for the dtype that a leaf has in its checkpoint; or a mapping from globs and
        filters of NNX to these, for all leaves that they select. Leaves are made or read in their
        own dtype and cast in the same program, so that no second copy is kept. A stored value that
        the dtype cannot hold is an error.
      progress: whether to show a bar, with bytes, rate and time left, in the terminal or the
        notebook, if this runs in one; or a function, which is called with a ``Progress`` at most
        ten times a second.
      check: whether each leaf that is made is compared with what eager JAX makes, operation by
        operation. This takes as long as eager ``init``, and finds any difference.
      broadcast: whether processes that hold the same stored leaf each read only a part of it from
        the file, and send it to the others over the network between the devices. It must be the
        same in every process. With ``False``, each process reads everything that its devices hold.
        With one process it makes no difference.

    Returns:
      The tree with arrays in place of the selected thunks: the same containers, keys in the same
      order. A thunk at several paths becomes one array. A thunk that goes only to devices of other
      processes becomes an array without shards here. Selected leaves that are arrays already are
      moved to the sharding, if one is given.

    Raises:
      PathError: a pattern selects nothing.
      WordError: ``dtype`` is no dtype, or ``progress`` or ``broadcast`` is of the wrong kind.
      ShardingError: a sharding does not fit a leaf.
      AbstractInputError: a leaf's value depends on an input that was given as a shape alone, or the
        leaf itself is a ``jax.ShapeDtypeStruct``, which has no initializer.
      CheckpointError: a file that holds a leaf is gone or has changed.
      CastError: a file has a value that the dtype of its leaf cannot hold, and ``on_cast`` of
        ``fill`` did not allow that. No array is made.
      BitsError: with ``check``, a leaf has other bits than eager JAX gives it.
      HostsError: processes that make the tree together are about to make different things; or, with
        ``broadcast``, one of them failed to read, or its devices cannot reach the others.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> tree = li.lazy(nn.Dense(2)).init(jax.random.key(0), x)
      >>> li.materialize(tree, "params/bias")["params"]["bias"]
      Array([0., 0.], dtype=float32)
    """
    check_progress(progress)
    if not isinstance(broadcast, bool):
        raise errors.WordError(f"broadcast: wanted True or False, got {broadcast!r:.80}.")
    leaves = tree_paths.leaves_with_paths(tree)
    selected = tree_paths.select(paths, tree)
    placements = shardings.resolve(sharding, tree, leaves, selected)
    targets = casts.resolve(dtype, tree, leaves, selected)
    _check_made(leaf for leaf, s in zip(leaves, selected, strict=True) if s)
    jobs: dict[Any, Job] = {}
    for n, ((path, leaf), placement) in enumerate(zip(leaves, placements, strict=True)):
        if selected[n] and isinstance(leaf, Thunk | jax.Array | np.ndarray):
            same = (id(leaf), placement, targets[n])
            jobs.setdefault(same, Job(path, leaf, placement, targets[n])).places.append(n)
    asked = list(jobs.values())
    spreads = spreads_of(asked) if broadcast and not compat.is_in_trace() else []
    also = f"broadcast by {network()}" if broadcast else "no broadcast"
    agree.before_making(leaves, selected, placements, targets, also=also)
    check_network(spreads)
    as_spread = {id(job): read for job, read in spreads}
    here = [job for job in asked if not is_elsewhere(job.sharding)]
    read = [as_spread.get(id(job), job) for job in here]
    made = [leaf for _, leaf in leaves]
    for job in (job for job in asked if is_elsewhere(job.sharding)):
        for n in job.places:
            made[n] = empty(job.leaf.shape, job.sharding, job.dtype)
    with reporting(progress, sum(job.leaf.nbytes for job in read)) as tell:
        arrays = make(read, proofs_on, tell=tell, check=check)
        if spreads:
            arrays = gathered(arrays, spreads, lambda: agree.meet(placements))
        for job, array in arrays:
            if sharding is not None and compat.is_in_trace():
                array = shardings.constrained(array, job.sharding)
            for n in job.places:
                made[n] = array
    return tree_paths.replace_leaves(tree, made)


def _check_made(leaves: Iterable[tuple[str, Any]]) -> None:
    problems = [
        f"{path}: wanted a leaf that can be made or read, got a jax.ShapeDtypeStruct, which has a "
        "shape and no values. Fill it from a checkpoint, record the model with lazyinit.lazy, or "
        "leave it out of paths."
        for path, leaf in leaves
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if problems:
        raise errors.AbstractInputError(errors.listing(problems))
