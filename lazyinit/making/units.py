"""Lazy leaves -> what makes them: units that share equations, and how each unit is computed.

There are three ways. A leaf whose elements follow from their indices is *drawn* on CPU, a run of
elements at a time. Any other unit has a program of its own, *compiled*. Within somebody's trace
a unit is *staged*: its equations become part of that trace.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from lazyinit import compat, errors, program
from lazyinit import sharding as shardings
from lazyinit.making.buffers import Blocks
from lazyinit.making.draw import Drawing, run_length
from lazyinit.making.elementwise import Elementwise, elementwise
from lazyinit.making.executable import Argument, Executable, compiler, computed_on, encode
from lazyinit.making.shards import Shards
from lazyinit.making.stacked import Stacked
from lazyinit.overlap import OverlapParam
from lazyinit.params import Key, LazyParam, RngPath, TracedKey, describe, label
from lazyinit.slices import Slice, SmallValues, Work, gather
from lazyinit.tracing import trace

Finish: TypeAlias = Callable[[], Sequence[jax.Array]]  # Waits for what was dispatched.
Start: TypeAlias = Callable[[], Finish]  # Dispatches.


class Job:
    """One array to make, read or move, and the places in the tree where it goes."""

    __slots__ = ("dtype", "leaf", "over", "path", "places", "sharding")

    def __init__(self, path: str, leaf: Any, sharding: Sharding | None, dtype: Any) -> None:
        self.path, self.sharding, self.dtype = path, sharding, dtype
        # What is read over the array once it is made.
        self.over = [leaf.stored] if isinstance(leaf, OverlapParam) else []
        self.leaf: Any = leaf.rest if isinstance(leaf, OverlapParam) else leaf
        self.places: list[int] = []

    def moved(self, array: Any) -> Any:
        """Returns an array (of jax or numpy) with the dtype and the sharding wanted."""
        cast = array if array.dtype == self.dtype else array.astype(self.dtype)
        return cast if self.sharding is None else jax.device_put(cast, self.sharding)


@dataclass(frozen=True, slots=True)
class Unit:
    """Jobs that are computed together, since they share equations, and what to run for them."""

    jobs: Sequence[Job]
    work: Work
    slices: Sequence[Slice]


def units_of(jobs: Sequence[Job]) -> list[Unit]:
    """Groups jobs of lazy leaves: what shares equations runs together, each of them once."""
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
        Unit(
            [jobs[n] for n in ns],
            works[ns[0]] if len(ns) == 1 else gather([slices[n] for n in ns]),
            [slices[n] for n in ns],
        )
        for ns in members.values()
    ]


def _slice_of(job: Job) -> Slice:
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


def _small_values(unit: Unit, known: dict[Any, SmallValues]) -> SmallValues:
    roots = dict(unit.jobs[0].leaf.rng_path.roots)
    which = (id(unit.work.program), frozenset(roots.items()))
    if which not in known:
        arrays = {stream: key.array() for stream, key in roots.items()}
        known[which] = SmallValues(unit.work.program, arrays, {})
    return known[which]


def _own_keys(unit: Unit) -> dict[program.Value, RngPath]:
    jobs = zip(unit.slices, unit.jobs, strict=True)
    return {s.key: job.leaf.rng_path for s, job in jobs if s.key >= 0}


def check_inputs(units: Iterable[Unit]) -> None:
    """Raises ``AbstractInputError`` if a leaf needs an input that was given as a shape alone."""
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


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads, and memory for them.

    Attributes:
      compiling: compile programs.
      drawing: make runs of elements.
      reading: read files.
      blocks: the memory that they fill.
    """

    compiling: ThreadPoolExecutor
    drawing: ThreadPoolExecutor
    reading: ThreadPoolExecutor
    blocks: Blocks


def start_of(unit: Unit, known: dict[Any, SmallValues], pools: Pools) -> Start:
    """Returns what dispatches a unit; its program, if it needs one, is being compiled meanwhile.

    Args:
      unit: what to make.
      known: keys and scalars that were computed for other units.
      pools: the threads.
    """
    small = _small_values(unit, known)
    if _is_traced(unit):
        return _staging(unit, small)
    wanted = [job.sharding for job in unit.jobs]
    work = elementwise(unit.work) if shardings.platform_of(wanted[0]) == "cpu" else None
    with compat.enable_x64(unit.work.program.x64), jax.disable_jit(False):
        # What needs no traced value is made at once, whatever trace the caller is in. (Around
        # the compiler, too, this would make JAX compute what it is to compile.)
        with jax.ensure_compile_time_eval():
            arguments, parts = encode(unit.work, _own_keys(unit), small)
        if work is not None:
            return _drawing(unit, work, arguments, [parts], pools)
        rows = Stacked.of(unit.work) if shardings.platform_of(wanted[0]) == "cpu" else None
        if rows is not None:
            return _drawing_rows(unit, rows, small, pools)
        placed = zip(unit.work.outputs, wanted, strict=True)
        computed = tuple(computed_on(unit.work, value, s) for value, s in placed)
        dtypes = tuple(job.dtype for job in unit.jobs)
        compiled = compiler.request(pools.compiling, unit.work, arguments, parts, dtypes, computed)

    def start() -> Finish:
        with compat.enable_x64(unit.work.program.x64), jax.disable_jit(False):
            arrays = compiled.result()(parts)
        placed = [
            a if s is None or s == c else jax.device_put(a, s)
            for a, s, c in zip(arrays, wanted, computed, strict=True)
        ]
        return lambda: placed

    return start


def _drawing(
    unit: Unit, work: Elementwise, arguments: Any, rows: Sequence[Any], pools: Pools
) -> Start:
    """Draws a leaf: ``rows`` has what to hand in for each of its rows, or once for all of it."""
    (job,) = unit.jobs
    x64 = unit.work.program.x64
    by_rows = len(rows) > 1
    length = run_length(job.leaf.shape, job.sharding, int(by_rows))
    parts = rows[0]
    one = work.single(parts) if job.dtype == job.leaf.dtype else None
    compiled: Future[Executable] | None = None
    if one is None:
        compiled = compiler.request_run(pools.compiling, work, arguments, parts, job.dtype, length)

    def run(*args: Any) -> jax.Array:
        assert compiled is not None
        with compat.enable_x64(x64), jax.disable_jit(False):  # Settings belong to threads.
            return compiled.result()(*args)

    def start() -> Finish:
        shape = job.leaf.shape
        shards = Shards(job.path, shape, job.dtype, job.sharding, pools.blocks)
        drawing = Drawing(shape, shards)
        tasks = []
        if one is not None:
            drawing.fill(one)
        elif by_rows:
            tasks = drawing.draw_rows(run, rows, length, pools.drawing)
        else:
            tasks = drawing.draw(run, parts, length, pools.drawing)

        def finish() -> Sequence[jax.Array]:
            for task in tasks:
                task.result()
            with compat.enable_x64(x64), jax.ensure_compile_time_eval():
                return [drawing.array()]

        return finish

    return start


def _drawing_rows(unit: Unit, rows: Stacked, small: SmallValues, pools: Pools) -> Start:
    if not unit.work.inputs:  # One value throughout.
        return _drawing(unit, rows.row, (), [[]], pools)
    with jax.ensure_compile_time_eval():
        keys = rows.keys(small[unit.work.inputs[0]])
    return _drawing(
        unit, rows.row, (Argument("key", "threefry2x32"),), [[(k,)] for k in keys], pools
    )


def _is_traced(unit: Unit) -> bool:
    roots = unit.jobs[0].leaf.rng_path.roots.values()
    return unit.work.program.is_traced or any(isinstance(root, TracedKey) for root in roots)


def _staging(unit: Unit, small: SmallValues) -> Start:
    """Computes leaves of a traced key or input in the trace (of a jit, a vmap) of the caller."""

    def start() -> Finish:
        with compat.enable_x64(unit.work.program.x64):
            keys = {value: path.key() for value, path in _own_keys(unit).items()}
            inputs = [keys[v] if v in keys else small[v] for v in unit.work.inputs]
            arrays = unit.work.run(inputs, barrier=False)
            made = [
                job.moved(jnp.asarray(array)) for array, job in zip(arrays, unit.jobs, strict=True)
            ]
        return lambda: made

    return start
