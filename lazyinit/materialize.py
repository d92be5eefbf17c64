"""Thunks -> arrays: the only place that makes device memory.

Leaves whose works have the same signature, dtype and sharding share one compiled program, so a
deep model compiles as many programs as one of its layers has kinds of parameters. Everything
that can be wrong is found before the first array is made. Programs are dispatched in tree order,
the same on every host. What threads draw or read is all under way at once, a bounded part of it at
a time; of the others only a few leaves are (``limits``): making one needs temporaries beside it.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.garbage import uncollected
from lazyinit.making.buffers import Blocks
from lazyinit.making.dispatch import (
    Dispatched,
    Filling,
    Pools,
    Start,
    start_of,
    start_reading,
)
from lazyinit.making.draw import Drawer
from lazyinit.making.limits import IN_FLIGHT
from lazyinit.making.overlay import overlaid
from lazyinit.making.shards import Shards, arrays
from lazyinit.making.units import Job, check_inputs, units_of
from lazyinit.params import LazyParam, StoredParam, Thunk, cast_dtype
from lazyinit.slices import SmallValues


def materialize(
    tree: Any,
    paths: tree_paths.Paths = None,
    sharding: shardings.ShardingLike = None,
    *,
    dtype: Any = None,
    progress: bool = False,
) -> Any:
    """Makes or reads the selected leaves of a tree, each device its own shard alone.

    A leaf made from a key has the bits of eager ``module.init``, for any subset of leaves, in any
    order, on any mesh (``docs/bits.md`` says how).

    Args:
      tree: any pytree with thunks among its leaves.
      paths: which leaves: ``None`` for all; a glob over ``/``-joined keys, which selects subtrees
        too (``"params/head"``, ``"params/**/kernel"``); several of them; or a predicate
        ``(path, leaf) -> bool``. Others stay as they are, so that calls compose.
      sharding: ``None`` (the default device); a ``jax.sharding.Sharding``; a prefix pytree of
        them; a callable ``(path, leaf) -> Sharding``; or what a ``shard_by_...`` builder returned.
      dtype: a dtype for the selected floating-point leaves. They are made or read in their own and
        cast in the same program, so that no second copy stays.
      progress: whether to show a progress bar in the terminal.

    Returns:
      The tree with arrays in place of the selected thunks: the same containers, keys in the same
      order. A thunk at several places is one array. Selected leaves that are arrays already are
      moved to the sharding, if one is given.

    Raises:
      PathError: a pattern selects nothing.
      ShardingError: a sharding does not fit a leaf.
      AbstractInputError: a leaf's value depends on an input that was given as a shape alone.
      CheckpointError: a file that a leaf lies in is gone or has changed.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> tree = li.lazy(nn.Dense(2)).init(jax.random.key(0), x)
      >>> li.materialize(tree, "params/bias")["params"]["bias"]
      Array([0., 0.], dtype=float32)
    """
    leaves = tree_paths.leaves_with_paths(tree)
    selected = tree_paths.select(paths, leaves)
    placements = shardings.resolve(sharding, tree, leaves, selected)
    jobs: dict[Any, Job] = {}
    for n, ((path, leaf), placement) in enumerate(zip(leaves, placements, strict=True)):
        if selected[n] and isinstance(leaf, Thunk | jax.Array | np.ndarray):
            target = cast_dtype(leaf.dtype, dtype)
            same = (id(leaf), placement, target)
            jobs.setdefault(same, Job(path, leaf, placement, target)).places.append(n)
    made = [leaf for _, leaf in leaves]
    total = sum(job.leaf.nbytes for job in jobs.values())
    with (
        ThreadPoolExecutor(os.cpu_count()) as compiling,  # Goes on: others may wait for it.
        _threads() as drawing,
        _threads() as reading,
        _progress_bar(total, progress) as advance,
    ):
        pools = Pools(compiling, reading, Drawer(drawing), Blocks())
        for job, array in _run(_steps(list(jobs.values()), pools), pools.drawer, advance):
            for source in job.over:
                array = overlaid(array, source, job.sharding)
            for n in job.places:
                made[n] = array
    return tree_paths.replace_leaves(tree, made)


@dataclass(frozen=True, slots=True)
class _Step:
    """One dispatch, which gives the arrays of one or more jobs."""

    jobs: Sequence[Job]
    start: Start | Filling


@dataclass(frozen=True, slots=True)
class _Filled:
    """A leaf that threads fill: what becomes the array, once all tasks are done."""

    job: Job
    shards: Shards
    tasks: Sequence[Future[Any]]


@uncollected()
def _steps(jobs: Sequence[Job], pools: Pools) -> list[_Step]:
    """Turns jobs into steps in tree order. All that can be wrong is raised here."""
    units = units_of([j for j in jobs if isinstance(j.leaf, LazyParam)])
    check_inputs(units)
    stored = [j for j in jobs if isinstance(j.leaf, StoredParam)]
    for source in [job.leaf.source for job in stored] + [s for job in jobs for s in job.over]:
        source.check()
    small: dict[Any, SmallValues] = {}
    steps = [_Step(u.jobs, start_of(u, small, pools)) for u in units]
    steps += [_Step([j], start_reading(j, pools)) for j in stored]
    steps += [_Step([j], _moving(j)) for j in jobs if not isinstance(j.leaf, Thunk)]
    return sorted(steps, key=lambda step: step.jobs[0].places[0])


def _moving(job: Job) -> Start:
    def start() -> Dispatched:
        moved = job.moved(job.leaf)
        return Dispatched(lambda: [moved])

    return start


def _run(
    steps: Sequence[_Step], drawer: Drawer, advance: Callable[[int], None]
) -> Iterator[tuple[Job, Any]]:
    """Dispatches the steps in order and yields each job's array once it is there.

    What threads fill is dispatched first and waited for last: it goes on beside the others.
    """
    filled: list[_Filled] = []
    for step in steps:
        if isinstance(step.start, Filling):
            (job,) = step.jobs
            filled.append(_Filled(job, step.start.shards, step.start.start()))
    drawer.flush()
    in_flight: collections.deque[tuple[Sequence[Job], Dispatched]] = collections.deque()

    def finished(jobs: Sequence[Job], dispatched: Dispatched) -> Iterable[tuple[Job, Any]]:
        for task in dispatched.tasks:
            task.result()
        made = jax.block_until_ready(dispatched.arrays())
        advance(sum(job.leaf.nbytes for job in jobs))
        return zip(jobs, made, strict=True)

    for step in steps:
        if isinstance(step.start, Filling):
            continue
        in_flight.append((step.jobs, step.start()))
        if len(in_flight) == IN_FLIGHT:
            yield from finished(*in_flight.popleft())
    for jobs, dispatched in in_flight:
        yield from finished(jobs, dispatched)
    for some in _batches(filled):
        wait([task for f in some for task in f.tasks], return_when=FIRST_EXCEPTION)
        for one in some:
            for task in one.tasks:
                task.result()
            advance(one.job.leaf.nbytes)
    # Not before all is there: beside other threads, each would wait for Python's lock.
    yield from zip([f.job for f in filled], arrays([f.shards for f in filled]), strict=True)


_BATCH = 64  # Tasks that are waited for at a time.


def _batches(filled: Iterable[_Filled]) -> Iterator[Sequence[_Filled]]:
    """Groups what is waited for: each look takes Python's lock from the threads that fill."""
    batch, tasks = [], 0
    for one in filled:
        batch.append(one)
        tasks += len(one.tasks)
        if tasks >= _BATCH:
            yield batch
            batch, tasks = [], 0
    yield batch


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:  # After an error, what was not begun need not be.
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    if not wanted:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda advanced: bar.advance(task, advanced)
