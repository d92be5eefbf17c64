"""The order of work: jobs come in, and each job's array goes out once it is there.

All that can be wrong is found before the first array is made. Each leaf is then *prepared* (its
program begins to be compiled), *started* and *finished*. Leaves are started in tree order, which is
the same on every host.

Drawn and read leaves are filled by threads, in bounded memory, so all of them are started first
and waited for last. Of the others, ``in_flight`` says which may be made at a time.
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from lazyinit import compat, errors, meshes
from lazyinit.derived import DerivedParam
from lazyinit.make.derive import Derivation, derivations_of
from lazyinit.make.draw import Drawer
from lazyinit.make.in_flight import may_start
from lazyinit.make.makers import Finish, Makers, Start
from lazyinit.make.overlay import overlay
from lazyinit.make.replay import count_unequal, inline, prepare_replay
from lazyinit.make.shards import Blocks, Shards, arrays_of
from lazyinit.make.ways import (
    AskProofs,
    Compiled,
    Drawn,
    Inlined,
    Job,
    Read,
    Replayed,
    Way,
    check_inputs,
    ways_of,
)
from lazyinit.params import StoredParam, Thunk
from lazyinit.program.equations import is_key
from lazyinit.program.slices import gather
from lazyinit.progress import Action, Tell, silent
from lazyinit.tensors.as_dtype import told


def make(
    jobs: Sequence[Job],
    proofs: AskProofs,
    *,
    tell: Tell = silent,
    check: bool = False,
) -> Iterator[tuple[Job, jax.Array]]:
    """Makes, reads or moves what each job says, and yields its array once it is there.

    Args:
      jobs: in tree order.
      proofs: tells what is proven on a platform.
      tell: is told what is done, in bytes of arrays, and what is compiled.
      check: whether every leaf that is made is compared with its replay.

    Raises:
      BitsError: with ``check``, a leaf has other bits than its replay.
    """
    with (
        ThreadPoolExecutor(os.cpu_count()) as compiling,  # Goes on: others may wait for it.
        _threads() as drawing,
        _threads() as reading,
    ):
        blocks = Blocks()
        makers = Makers(compiling, reading, Drawer(drawing, compiling, blocks), blocks)
        batch = meshes.outside(lambda: _round(jobs, functools.cache(proofs)))
        _check_round(batch)
        yield from _make(batch, makers, tell, check)


@dataclass(frozen=True, slots=True)
class _Round:
    """Ways of leaves that are made together, and the leaves that are derived from others.

    Attributes:
      ways: how the leaves are made that are not derived.
      derived: groups of those that are, each with the round of its inputs.
      proofs: tells what is proven.
    """

    ways: Sequence[Way]
    derived: Sequence[tuple[Derivation, "_Round"]]
    proofs: AskProofs


def _round(jobs: Sequence[Job], proofs: AskProofs) -> _Round:
    derived = [job for job in jobs if isinstance(job.leaf, DerivedParam)]
    groups = derivations_of(derived, proofs)
    ways = ways_of([job for job in jobs if not isinstance(job.leaf, DerivedParam)], proofs)
    return _Round(ways, [(group, _round(group.inputs, proofs)) for group in groups], proofs)


def _check_round(batch: _Round) -> None:
    check_inputs([group.way for group, _ in batch.derived])
    for way in batch.ways:
        _check_sources(way.jobs)
    for _, inputs in batch.derived:
        _check_round(inputs)


def _make(batch: _Round, makers: Makers, tell: Tell, check: bool) -> Iterator[tuple[Job, Any]]:
    """Makes the arrays of a round: leaves computed from no other first, then the derived ones.

    Of the derived ones, one group at a time is made, and its inputs are let go behind it.
    """
    # What is needed here and stays anyway need not be made again.
    shared = {id(job.thunk) for group, _ in batch.derived for job in group.inputs}
    there: dict[int, jax.Array] = {}
    for job, array in _make_ways(batch.ways, makers, tell, check):
        if id(job.thunk) in shared and _can_serve(job, array):
            there[id(job.thunk)] = array
        yield job, array
    for group, needed in batch.derived:
        arrays = _derive(group, _inputs(group, needed, there, makers, check), makers)
        if arrays is None:  # Not by parts, after all.
            arrays = _derive_whole(group.whole(), batch.proofs, there, makers, check)
        elif check and group.parted is not None:
            wanted = _derive_whole(group.on_one_device(), batch.proofs, there, makers, check)
            for job, array, want in zip(group.way.jobs, arrays, wanted, strict=True):
                _check_equal(job, array, want)
            del wanted
        for job, array in zip(group.way.jobs, arrays, strict=True):
            tell(_action(job), job.path, job.leaf.nbytes)
            yield job, array
        del arrays


def _inputs(
    group: Derivation, needed: _Round, there: dict[int, jax.Array], makers: Makers, check: bool
) -> dict[int, Any]:
    """Returns the arrays that a group is computed from, by the id of their jobs."""
    if all(id(job.thunk) in there for job in group.inputs):
        places = [job.sharding or group.device for job in group.inputs]
        found = [there[id(job.thunk)] for job in group.inputs]
        moved = map(jax.device_put, found, places)
        return {id(job): array for job, array in zip(group.inputs, moved, strict=True)}
    with jax.default_device(group.device):
        return {id(job): array for job, array in _make(needed, makers, silent, check)}


def _derive(group: Derivation, made: dict[int, Any], makers: Makers) -> Sequence[Any] | None:
    """Computes a group; ``None`` if that has to be done whole, and the group is one by parts."""
    way, small = group.way, group.small_values(made)
    if group.parted is not None:
        values = {v: small[v] for v in way.work.inputs}
        del made, small
        return makers.compiling.submit(group.parted.compute, values).result()
    keys = [key.array() for key in way.roots.values()]
    if way.work.program.is_traced or any(map(compat.is_tracer, (*made.values(), *keys))):
        return inline(Inlined(way.jobs, way.work), small)
    replay = prepare_replay(way, small, makers.blocks)
    return makers.compiling.submit(replay).result()


def _derive_whole(
    group: Derivation,
    proofs: AskProofs,
    there: dict[int, jax.Array],
    makers: Makers,
    check: bool,
) -> Sequence[Any]:
    needed = meshes.outside(lambda: _round(group.inputs, proofs))
    arrays = _derive(group, _inputs(group, needed, there, makers, check), makers)
    assert arrays is not None
    return arrays


def _can_serve(job: Job, array: jax.Array) -> bool:
    """Tells whether an array that was made is what a derived leaf needs, on any one device."""
    if compat.is_in_trace() or compat.is_tracer(array) or is_key(array):
        return False
    return job.dtype == job.leaf.dtype and array.is_fully_addressable


def _make_ways(
    ways: Sequence[Way], makers: Makers, tell: Tell, check: bool
) -> Iterator[tuple[Job, Any]]:
    made = [way for way in ways if isinstance(way, Drawn | Compiled | Replayed)]
    to_check = {id(job) for way in made for job in way.jobs} if check else set[int]()
    filling, others = meshes.outside(lambda: _prepare(ways, makers, tell))
    for job, array in _run(filling, others, makers.drawer, tell):
        if id(job) in to_check:
            _check(job, array, makers)
        for source in job.over:
            with told(source, job.path):
                array = overlay(array, source, job.sharding)
        yield job, array


def _check(job: Job, array: jax.Array, makers: Makers) -> None:
    alone = Job(job.path, job.leaf, None, job.dtype)
    way = Replayed([alone], gather([job.leaf.init_fn]))
    replay = prepare_replay(way, makers.small_values(way), makers.blocks)
    (want,) = makers.compiling.submit(replay).result()
    _check_equal(job, array, want)


def _check_equal(job: Job, array: jax.Array, want: jax.Array) -> None:
    if n := count_unequal(array, want):
        raise errors.BitsError(
            f"{job.path}: wanted the bits of its replay, got {n} of {array.size} elements that "
            "differ. Please report it, with what `lazyinit check` prints."
        )


def _check_sources(jobs: Sequence[Job]) -> None:
    for job in jobs:
        stored = [job.leaf.source] if isinstance(job.leaf, StoredParam) else []
        for source in (*stored, *job.over):
            source.check()


_Filling: TypeAlias = Sequence[tuple[Job, Callable[[], Shards]]]
_Others: TypeAlias = Sequence[tuple[Way, Start]]


def _prepare(ways: Sequence[Way], makers: Makers, tell: Tell) -> tuple[_Filling, _Others]:
    """Prepares all leaves and returns what starts them, in tree order."""
    filling: list[tuple[Job, Callable[[], Shards]]] = []
    others: list[tuple[Way, Start]] = []
    for way in ways:
        if isinstance(way, Drawn | Compiled):  # Its program begins to be compiled.
            tell("compile", way.jobs[0].path, 0)
        if isinstance(way, Drawn | Read):
            filling.append((way.jobs[0], makers.prepare_filling(way)))
        else:
            others.append((way, makers.prepare(way)))
    filling.sort(key=lambda f: f[0].places[0])
    others.sort(key=lambda o: o[0].jobs[0].places[0])
    return filling, others


def _run(
    filling: _Filling, others: _Others, drawer: Drawer, tell: Tell
) -> Iterator[tuple[Job, Any]]:
    """Starts the leaves in order, and yields each job's array once it is there."""
    filled = [(job, start()) for job, start in filling]
    drawer.flush()
    in_flight: collections.deque[tuple[Way, Finish]] = collections.deque()

    def finished(way: Way, finish: Finish) -> Iterable[tuple[Job, Any]]:
        jobs = way.jobs
        made = jax.block_until_ready(finish())
        tell(_action(jobs[0]), jobs[0].path, sum(job.leaf.nbytes for job in jobs))
        return zip(jobs, made, strict=True)

    for way, start in others:
        while not may_start(way, [other for other, _ in in_flight]):
            yield from finished(*in_flight.popleft())
        in_flight.append((way, start()))
    for way, finish in in_flight:
        yield from finished(way, finish)
    for some in _batches(filled):
        tasks = [task for _, task, _ in some if task is not None]
        wait(tasks, return_when=FIRST_EXCEPTION)
        for task in tasks:
            task.result()
        for job, _, nbytes in some:
            tell(_action(job), job.path, nbytes)
    # Not before all is there: beside other threads, each would wait for Python's lock.
    made = arrays_of([shards for _, shards in filled])
    yield from zip([job for job, _ in filled], made, strict=True)


_BATCH = 64  # Tasks that are waited for at a time,
_BATCH_BYTES = 2**26  # or fewer, of so many bytes.

_Part: TypeAlias = tuple[Job, "Future[Any] | None", int]
"""A leaf, what fills a part of it (``None``: that is done), and the bytes of the part."""


def _batches(filled: Iterable[tuple[Job, Shards]]) -> Iterator[Sequence[_Part]]:
    """Groups what is waited for: each look takes Python's lock from the threads that fill."""
    batch: list[_Part] = []
    size = 0
    for part in _parts(filled):
        batch.append(part)
        size += part[2]
        if len(batch) >= _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parts(filled: Iterable[tuple[Job, Shards]]) -> Iterator[_Part]:
    for job, shards in filled:
        tasks, size = shards.tasks or [None], job.leaf.nbytes
        for n, task in enumerate(tasks):
            yield job, task, size * (n + 1) // len(tasks) - size * n // len(tasks)


def _action(job: Job) -> Action:
    if isinstance(job.leaf, StoredParam):
        return "read"
    return "make" if isinstance(job.leaf, Thunk) else "move"


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:  # After an error, what was not begun need not be.
        pool.shutdown(cancel_futures=True)
