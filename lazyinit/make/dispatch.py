"""Units and stored leaves -> what dispatches them.

A unit is drawn, compiled or replayed, as ``ways`` decides. Within somebody's trace it is *staged*:
its equations become part of that trace. A stored leaf is *read*, on CPU piece by piece.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit import sharding as shardings
from lazyinit.checkpoint.key_data import KeyData
from lazyinit.keys import RngPath, TracedKey
from lazyinit.make.buffers import Blocks
from lazyinit.make.draw import Drawer, Indices, SheetProgram, Strip
from lazyinit.make.elementwise import Elementwise
from lazyinit.make.executable import Argument, compiler, encode, encode_key
from lazyinit.make.read import pieces
from lazyinit.make.replay import replaying
from lazyinit.make.shards import Bounds, Shards
from lazyinit.make.stacked import Stacked
from lazyinit.make.transfer import Host, Transfer
from lazyinit.make.units import Job, Unit
from lazyinit.make.ways import Compile, Draw
from lazyinit.params import Shape
from lazyinit.program.equations import Value
from lazyinit.program.fingerprint import fingerprint
from lazyinit.program.slices import SmallValues

_ZERO = np.uint32(0)

Finish: TypeAlias = Callable[[], Sequence[Any]]
"""Waits for what is under way, and returns the arrays, one for each job."""

Start: TypeAlias = Callable[[], Finish]
"""Begins the work of some jobs."""


@dataclass(frozen=True, slots=True)
class Filling:
    """A leaf that is made in host buffers, by threads in bounded memory: all may be under way.

    Attributes:
      shards: what becomes the array, once all tasks are done.
      start: begins it, and returns what to wait for.
    """

    shards: Shards
    start: Callable[[], Sequence[Future[Any]]]


@dataclass(frozen=True, slots=True)
class Pools:
    """Threads, and memory for them.

    Attributes:
      compiling: compile programs.
      reading: read files.
      drawer: draws elements.
      blocks: the memory that they fill.
      host: the blocks of host memory on their way to devices that have memory of their own.
    """

    compiling: ThreadPoolExecutor
    reading: ThreadPoolExecutor
    drawer: Drawer
    blocks: Blocks
    host: Host = field(default_factory=Host)


def start_of(unit: Unit, known: dict[Any, SmallValues], pools: Pools) -> Start | Filling:
    """Returns what dispatches a unit; its program, if it needs one, is being compiled meanwhile.

    Args:
      unit: what to make.
      known: keys and scalars that were computed for other units.
      pools: the threads.
    """
    if is_traced(unit):
        return _staging(unit, small_values(unit, known))
    with _settings(unit):
        small = small_values(unit, known)
        match unit.way:
            case Draw(form=Stacked() as rows):
                return _drawing_rows(unit, rows, small, pools)
            case Draw(form=Elementwise() as form):
                return _drawing(unit, form, *_handed_in(unit, small), pools)
            case Compile():
                return _compiling(unit, small, pools)
        return start_replay(unit, small, pools)


def start_replay(unit: Unit, small: SmallValues, pools: Pools) -> Start:
    """Returns what makes a unit equation by equation, as eager JAX does."""

    def inputs() -> Sequence[Any]:
        keys = {value: encode_key(path) for value, path in _own_keys(unit).items()}
        return [keys[v][0].decode(*keys[v][1]) if v in keys else small[v] for v in unit.work.inputs]

    replay = replaying(unit, inputs, pools.blocks)

    return lambda: pools.compiling.submit(replay).result


def _compiling(unit: Unit, small: SmallValues, pools: Pools) -> Start:
    placements = tuple(job.sharding for job in unit.jobs)
    dtypes = tuple(job.dtype for job in unit.jobs)
    arguments, (parts,) = _handed_in(unit, small)
    compiled = compiler.request(pools.compiling, unit.work, arguments, parts, dtypes, placements)

    def start() -> Finish:
        with _settings(unit):
            arrays = compiled.result()(parts)
        placed = [  # Empty arrays stay whole under jit (jax 0.10.2).
            a if s is None or s == a.sharding else jax.device_put(a, s)
            for a, s in zip(arrays, placements, strict=True)
        ]
        return lambda: placed

    return start


def _handed_in(
    unit: Unit, small: SmallValues
) -> tuple[tuple[Argument, ...], Sequence[Sequence[tuple[Any, ...]]]]:
    # What needs no traced value is made at once, whatever trace the caller is in. (Around the
    # compiler, too, this would make JAX compute what it is to compile.)
    with jax.ensure_compile_time_eval():
        arguments, parts = encode(unit.work, _own_keys(unit), small)
    return arguments, [parts]


@contextlib.contextmanager
def _settings(unit: Unit) -> Iterator[None]:
    with compat.enable_x64(unit.work.program.x64), jax.disable_jit(False):
        yield


def start_reading(job: Job, pools: Pools) -> Start | Filling:
    """Returns what reads a stored leaf."""
    source = job.leaf.source
    if isinstance(source, KeyData):

        def start_keys() -> Finish:
            keys = job.moved(source.keys())
            return lambda: [keys]

        return start_keys
    if shardings.platform_of(job.sharding) == "cpu":
        shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, pools.blocks)

        def fill() -> Sequence[Future[Any]]:
            buffers = shards.allocate()
            return [pools.reading.submit(piece.read_into, buffers) for piece in pieces(source)]

        return Filling(shards, fill)
    transfer = Transfer(job, pools.host)

    def start() -> Finish:
        tasks = transfer.start(pools.reading)

        def finish() -> Sequence[Any]:
            for task in tasks:
                task.result()
            return [transfer.array()]

        return finish

    return start


def small_values(unit: Unit, known: dict[Any, SmallValues]) -> SmallValues:
    """Returns the keys and scalars of a unit: those of ``known``, if its root keys are there."""
    roots = dict(unit.jobs[0].leaf.rng_path.roots)
    which = (id(unit.work.program), frozenset(roots.items()))
    if which not in known:
        arrays = {stream: key.array() for stream, key in roots.items()}
        known[which] = SmallValues(unit.work.program, arrays, {})
    return known[which]


def _own_keys(unit: Unit) -> dict[Value, RngPath]:
    jobs = zip(unit.slices, unit.jobs, strict=True)
    return {s.key: job.leaf.rng_path for s, job in jobs if s.key >= 0}


def _drawing(
    unit: Unit, work: Elementwise, arguments: Sequence[Argument], rows: Sequence[Any], pools: Pools
) -> Filling:
    """Draws a leaf: ``rows`` has what to hand in for each of its rows, or once for all of it."""
    (job,) = unit.jobs
    x64 = unit.work.program.x64
    shards = Shards(job.path, job.leaf.shape, job.dtype, job.sharding, pools.blocks)

    one = work.single(rows[0]) if job.dtype == job.leaf.dtype else None
    if one is not None:

        def fill() -> Sequence[Future[Any]]:
            shards.fill(one)
            return ()

        return Filling(shards, fill)

    compiled = compiler.request_sheet(pools.compiling, work, tuple(arguments), rows[0], job.dtype)

    def run(*handed_in: Any) -> jax.Array:
        with compat.enable_x64(x64), jax.disable_jit(False):  # Settings belong to threads.
            return compiled.result()(*handed_in, _ZERO)

    def draw() -> Sequence[Future[Any]]:
        is_key = [a.is_key for a in arguments]
        shared = [p for p, key in zip(rows[0], is_key, strict=True) if not key]
        sheets = SheetProgram(run, is_key, (compiled, fingerprint(shared)))
        strips = _strips(job.leaf.shape, shards.allocate(), rows)
        return pools.drawer.draw(sheets, strips)

    return Filling(shards, draw)


def _strips(
    shape: Shape, buffers: Mapping[Bounds, np.ndarray], rows: Sequence[Any]
) -> Iterator[Strip]:
    for at, buffer in buffers.items():
        if len(rows) == 1:
            yield Strip(buffer.reshape(-1), rows[0], Indices(shape, at))
            continue
        indices = Indices(shape[1:], at[1:])
        # A row of no dimensions would be a copy.
        flat = buffer.reshape(len(buffer), math.prod(buffer.shape[1:]))
        for row, to in zip(range(*at[0]), flat, strict=True):
            yield Strip(to, rows[row], indices)


def _drawing_rows(unit: Unit, rows: Stacked, small: SmallValues, pools: Pools) -> Filling:
    with jax.ensure_compile_time_eval():
        arguments, parts = encode(unit.work, {}, _with_own_keys(unit, small))
    if not parts:  # One value throughout.
        return _drawing(unit, rows.row, (), [[]], pools)
    (words,) = parts[rows.place]
    before, behind = parts[: rows.place], parts[rows.place + 1 :]
    each = [[*before, (key,), *behind] for key in rows.keys(words)]
    return _drawing(unit, rows.row, arguments, each, pools)


def _with_own_keys(unit: Unit, small: SmallValues) -> SmallValues:
    """Returns small values with those that are made of the own key of a unit's leaf, if it has one.

    That may be another key in each tree, so that they are of no use to other units.
    """
    own = {value: path.key() for value, path in _own_keys(unit).items()}
    return SmallValues(unit.work.program, {}, own) if own else small


def is_traced(unit: Unit) -> bool:
    """Tells whether a unit's keys or inputs are those of a trace around."""
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
