"""The verb ``materialize``: thunks -> arrays, for any part of a tree, under any sharding."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from lazyinit import agree, casts, compat, errors
from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.make.run import make
from lazyinit.make.selfcheck import proofs_on
from lazyinit.make.ways import Job
from lazyinit.params import Thunk


@agree.telling
def materialize(
    tree: Any,
    paths: tree_paths.Paths = None,
    sharding: shardings.ShardingLike = None,
    *,
    dtype: casts.DtypeLike = None,
    progress: bool = False,
    check: bool = False,
) -> Any:
    """Makes or reads the selected leaves of a tree, each device its own shard alone.

    A leaf made from a key has the bits of eager ``module.init``, for any subset of leaves, in any
    order, on any mesh (``docs/bits.md`` says how).

    Args:
      tree: any pytree with thunks among its leaves.
      paths: which leaves: ``None`` for all; a glob over ``/``-joined keys, which selects subtrees
        too (``"params/head"``, ``"params/**/kernel"``); a filter of Flax NNX (``nnx.Param``);
        several of these; or a predicate ``(path, leaf) -> bool``. Others stay as they are, so
        that calls compose.
      sharding: ``None`` (where eager ``init`` would have put each leaf: as its metadata and the
        mesh that was set around the recording say, else on the default device); a
        ``jax.sharding.Sharding``; a prefix pytree of them; a callable
        ``(path, leaf) -> Sharding``; what a ``shard_by_...`` builder returned; or a
        ``jax.sharding.Mesh``: on it, where the recording under a mesh or the metadata says, else
        replicated.
      dtype: a dtype for the selected floating-point leaves, but for a BatchNorm's statistics;
        ``"file"``, the dtype in which a checkpoint has a leaf; or a mapping from globs and filters
        of NNX to these, for all that they select. Leaves are made or read in their own dtype and
        cast in the same program, so that no second copy stays.
      progress: whether to show a progress bar in the terminal.
      check: whether every leaf that is made is compared with eager JAX's own steps, one at a
        time: as slow as eager ``init``, and sure.

    Returns:
      The tree with arrays in place of the selected thunks: the same containers, keys in the same
      order. A thunk at several places is one array. Selected leaves that are arrays already are
      moved to the sharding, if one is given.

    Raises:
      PathError: a pattern selects nothing.
      WordError: ``dtype`` is none.
      ShardingError: a sharding does not fit a leaf.
      AbstractInputError: a leaf's value depends on an input that was given as a shape alone, or is
        itself a shape alone, a ``jax.ShapeDtypeStruct``.
      CheckpointError: a file that a leaf lies in is gone or has changed.
      BitsError: with ``check``, a leaf has other bits than eager JAX gives it.
      HostsError: processes that make it together are about to make different things.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> tree = li.lazy(nn.Dense(2)).init(jax.random.key(0), x)
      >>> li.materialize(tree, "params/bias")["params"]["bias"]
      Array([0., 0.], dtype=float32)
    """
    leaves = tree_paths.leaves_with_paths(tree)
    selected = tree_paths.select(paths, tree)
    placements = shardings.resolve(sharding, tree, leaves, selected)
    targets = casts.resolve(dtype, tree, leaves, selected)
    _check_made(leaf for leaf, s in zip(leaves, selected, strict=True) if s)
    agree.before_making(leaves, selected, placements, targets)
    jobs: dict[Any, Job] = {}
    for n, ((path, leaf), placement) in enumerate(zip(leaves, placements, strict=True)):
        if selected[n] and isinstance(leaf, Thunk | jax.Array | np.ndarray):
            same = (id(leaf), placement, targets[n])
            jobs.setdefault(same, Job(path, leaf, placement, targets[n])).places.append(n)
    made = [leaf for _, leaf in leaves]
    total = sum(job.leaf.nbytes for job in jobs.values())
    with _progress_bar(total, progress) as advance:
        for job, array in make(list(jobs.values()), proofs_on, advance=advance, check=check):
            if sharding is not None and compat.is_in_trace():
                array = shardings.constrained(array, job.sharding)
            for n in job.places:
                made[n] = array
    return tree_paths.replace_leaves(tree, made)


def _check_made(leaves: Iterable[tuple[str, Any]]) -> None:
    problems = [
        f"{path}: wanted a leaf that something makes, got a jax.ShapeDtypeStruct, which says a "
        "shape alone. Fill it from a checkpoint, record the model with lazyinit.lazy, or leave it "
        "out of paths."
        for path, leaf in leaves
        if isinstance(leaf, jax.ShapeDtypeStruct)
    ]
    if problems:
        raise errors.AbstractInputError(errors.listing(problems))


@contextlib.contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    if not wanted:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda advanced: bar.advance(task, advanced)
