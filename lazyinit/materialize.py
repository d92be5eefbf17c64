"""Thunks -> arrays: the only place that makes device memory.

Leaves whose works have the same signature, dtype and sharding share one compiled program, so a
deep model compiles as many programs as one of its layers has kinds of parameters. Everything
that can be wrong is found before the first array is made. Programs are dispatched in tree order,
the same on every host, and only a few leaves are in flight at a time, since random generation
needs temporaries beside each of them.
"""

import collections
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lazyinit import compat, errors, program
from lazyinit import paths as tree_paths
from lazyinit import sharding as shardings
from lazyinit.executable import compiler, computed_on, encode
from lazyinit.overlap import OverlapParam
from lazyinit.overlay import overlaid
from lazyinit.params import (
    Key,
    LazyParam,
    RngPath,
    StoredParam,
    Thunk,
    TracedKey,
    cast_dtype,
    describe,
    label,
)
from lazyinit.read import Reader
from lazyinit.slices import Slice, SmallValues, Work, gather
from lazyinit.tracing import trace

_IN_FLIGHT = 4  # Leaves being made at a time.

Finish: TypeAlias = Callable[[], Sequence[jax.Array]]  # Waits for what was dispatched.
Start: TypeAlias = Callable[[], Finish]  # Dispatches.


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
    order, on any mesh (``docs/architecture.md`` says how).

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
    jobs: dict[Any, _Job] = {}
    for n, ((path, leaf), placement) in enumerate(zip(leaves, placements, strict=True)):
        if selected[n] and isinstance(leaf, Thunk | jax.Array | np.ndarray):
            target = cast_dtype(leaf.dtype, dtype)
            same = (id(leaf), placement, target)
            jobs.setdefault(same, _Job(path, leaf, placement, target)).places.append(n)
    made = [leaf for _, leaf in leaves]
    total = sum(job.leaf.nbytes for job in jobs.values())
    with (
        ThreadPoolExecutor(os.cpu_count()) as compiling,
        ThreadPoolExecutor(_IN_FLIGHT) as reading,
        _progress_bar(total, progress) as advance,
    ):
        for job, array in _run(_steps(list(jobs.values()), compiling, reading)):
            advance(job.leaf.nbytes)
            for source in job.over:
                array = overlaid(array, source, job.sharding)
            for n in job.places:
                made[n] = array
    return tree_paths.replace_leaves(tree, made)


class _Job:
    """One array to make, read or move, and the places in the tree where it goes."""

    __slots__ = ("dtype", "leaf", "over", "path", "places", "sharding")

    def __init__(self, path: str, leaf: Any, sharding: Sharding | None, dtype: Any) -> None:
        self.path, self.sharding, self.dtype = path, sharding, dtype
        # What is read over the array once it is made.
        self.over = [leaf.stored] if isinstance(leaf, OverlapParam) else []
        self.leaf: Any = leaf.rest if isinstance(leaf, OverlapParam) else leaf
        self.places: list[int] = []


@dataclass(frozen=True, slots=True)
class _Step:
    """One dispatch, which gives the arrays of one or more jobs."""

    jobs: Sequence[_Job]
    start: Start


def _steps(
    jobs: Sequence[_Job], compiling: ThreadPoolExecutor, reading: ThreadPoolExecutor
) -> list[_Step]:
    """Turns jobs into steps in tree order. All that can be wrong is raised here."""
    units = _units([j for j in jobs if isinstance(j.leaf, LazyParam)])
    _check_inputs(units)
    stored = [j for j in jobs if isinstance(j.leaf, StoredParam)]
    for source in [job.leaf.source for job in stored] + [s for job in jobs for s in job.over]:
        source.check()
    small: dict[Any, SmallValues] = {}
    steps = [_Step(u.jobs, _making(u, _small_values(u, small), compiling)) for u in units]
    steps += [_Step([j], _reading(j, reading)) for j in stored]
    steps += [_Step([j], _moving(j)) for j in jobs if not isinstance(j.leaf, Thunk)]
    return sorted(steps, key=lambda step: step.jobs[0].places[0])


@dataclass(frozen=True, slots=True)
class _Unit:
    """Jobs that are computed together, since they share equations, and what to run for them."""

    jobs: Sequence[_Job]
    work: Work
    slices: Sequence[Slice]


def _units(jobs: Sequence[_Job]) -> list[_Unit]:
    slices = [_slice_of(job) for job in jobs]
    works = [gather([s]) for s in slices]
    # Union-find over jobs: one group for all that need the same equation, so that it runs once.
    group = list(range(len(jobs)))

    def find(n: int) -> int:
        while group[n] != n:
            group[n] = group[group[n]]
            n = group[n]
        return n

    owner: dict[Any, int] = {}
    for n, (job, work) in enumerate(zip(jobs, works, strict=True)):
        devices = None if job.sharding is None else shardings.devices_in_order(job.sharding)
        rng = job.leaf.rng_path  # Somebody may have replaced it: another key, other values.
        for equation in work.equations:
            first = owner.setdefault((id(equation.origin), equation.index, devices, rng), n)
            group[find(n)] = find(first)
    members: dict[int, list[int]] = {}
    for n in range(len(jobs)):
        members.setdefault(find(n), []).append(n)
    return [
        _Unit(
            [jobs[n] for n in ns],
            works[ns[0]] if len(ns) == 1 else gather([slices[n] for n in ns]),
            [slices[n] for n in ns],
        )
        for ns in members.values()
    ]


def _slice_of(job: _Job) -> Slice:
    leaf: LazyParam = job.leaf
    if isinstance(leaf.init_fn, Slice):
        return leaf.init_fn
    # A thunk that somebody made by hand: trace its initializer now.
    roots = leaf.rng_path.roots
    one = len(roots) == 1
    streams = {"key": Key.of(leaf.rng_path.key())} if one else roots

    def init(keys: Any, _: Any) -> list[Any]:
        return jax.tree.leaves(leaf.init_fn(keys["key"] if one else dict(keys) or None))

    try:
        traced, values = trace(init, streams)
    except Exception as error:
        raise errors.RecordError(
            f"{job.path}: wanted an init_fn that maps a key to an array, got "
            f"{label(leaf.init_fn)}, which failed: {error}. Bind its shape and dtype first."
        ) from error
    found = [describe(traced.avals[v].shape, traced.avals[v].dtype) for v in values]
    if found != [describe(leaf.shape, leaf.dtype)]:
        raise errors.RecordError(
            f"{job.path}: wanted {describe(leaf.shape, leaf.dtype)} from its init_fn, "
            f"got {', '.join(found) or 'nothing'}. Give the LazyParam the shape and dtype that "
            "its init_fn returns."
        )
    return Slice(traced, values[0], next(iter(traced.streams)) if one else -1)


def _small_values(unit: _Unit, known: dict[Any, SmallValues]) -> SmallValues:
    roots = dict(unit.jobs[0].leaf.rng_path.roots)
    which = (id(unit.work.program), frozenset(roots.items()))
    if which not in known:
        arrays = {stream: key.array() for stream, key in roots.items()}
        known[which] = SmallValues(unit.work.program, arrays, {})
    return known[which]


def _own_keys(unit: _Unit) -> dict[program.Value, RngPath]:
    jobs = zip(unit.slices, unit.jobs, strict=True)
    return {s.key: job.leaf.rng_path for s, job in jobs if s.key >= 0}


def _check_inputs(units: Iterable[_Unit]) -> None:
    problems = [
        f"{job.path}: its initial value depends on {unit.work.program.abstract[value]}, which was "
        "given as a shape alone. Pass an array there, fill the leaf from a checkpoint, or leave "
        "it out of paths."
        for unit in units
        for job in unit.jobs
        for value in unit.work.inputs
        if value in unit.work.program.abstract
    ]
    if problems:
        raise errors.AbstractInputError(errors.listing(problems))


def _making(unit: _Unit, small: SmallValues, pool: ThreadPoolExecutor) -> Start:
    if _is_traced(unit):
        return _staging(unit, small)
    wanted = [job.sharding for job in unit.jobs]
    computed = tuple(computed_on(unit.work, s) for s in wanted)
    with compat.enable_x64(unit.work.program.x64), jax.disable_jit(False):
        # What needs no traced value is made at once, whatever trace the caller is in. (Around
        # the compiler, too, this would make JAX compute what it is to compile.)
        with jax.ensure_compile_time_eval():
            arguments, parts = encode(unit.work, _own_keys(unit), small)
        dtypes = tuple(job.dtype for job in unit.jobs)
        compiled = compiler.request(pool, unit.work, arguments, parts, dtypes, computed)

    def start() -> Finish:
        with compat.enable_x64(unit.work.program.x64), jax.disable_jit(False):
            arrays = compiled.result()(parts)
        placed = [
            a if s is None or s == c else jax.device_put(a, s)
            for a, s, c in zip(arrays, wanted, computed, strict=True)
        ]
        return lambda: placed

    return start


def _is_traced(unit: _Unit) -> bool:
    roots = unit.jobs[0].leaf.rng_path.roots.values()
    return unit.work.program.is_traced or any(isinstance(root, TracedKey) for root in roots)


def _staging(unit: _Unit, small: SmallValues) -> Start:
    """Computes leaves of a traced key or input in the trace (of a jit, a vmap) of the caller."""

    def start() -> Finish:
        with compat.enable_x64(unit.work.program.x64):
            keys = {value: path.key() for value, path in _own_keys(unit).items()}
            inputs = [keys[v] if v in keys else small[v] for v in unit.work.inputs]
            arrays = unit.work.run(inputs, barrier=False)
            made = [
                _moved(jnp.asarray(array), job)
                for array, job in zip(arrays, unit.jobs, strict=True)
            ]
        return lambda: made

    return start


def _reading(job: _Job, pool: ThreadPoolExecutor) -> Start:
    read = Reader(job.leaf, job.sharding, job.dtype)

    def start() -> Finish:
        future = pool.submit(read)
        return lambda: [future.result()]

    return start


def _moving(job: _Job) -> Start:
    def start() -> Finish:
        moved = _moved(job.leaf, job)
        return lambda: [moved]

    return start


def _moved(array: Any, job: _Job) -> Any:
    """Returns an array (of jax or numpy) with the dtype and the sharding wanted."""
    cast = array if array.dtype == job.dtype else array.astype(job.dtype)
    return cast if job.sharding is None else jax.device_put(cast, job.sharding)


def _run(steps: Iterable[_Step]) -> Iterator[tuple[_Job, Any]]:
    """Dispatches the steps in order and yields each job's array once it is there."""
    in_flight: collections.deque[tuple[Sequence[_Job], Finish]] = collections.deque()
    for step in steps:
        in_flight.append((step.jobs, step.start()))
        if len(in_flight) == _IN_FLIGHT:
            yield from _finished(*in_flight.popleft())
    while in_flight:
        yield from _finished(*in_flight.popleft())


def _finished(jobs: Sequence[_Job], finish: Finish) -> Iterable[tuple[_Job, Any]]:
    return zip(jobs, jax.block_until_ready(finish()), strict=True)


@contextlib.contextmanager
def _progress_bar(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    if not wanted:
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    with Progress(BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=total)
        yield lambda advanced: bar.advance(task, advanced)
