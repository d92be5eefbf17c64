"""The order of work: jobs come in, and each job's array goes out once it is there.

All that can be wrong is found before the first array is made. Each leaf is then *prepared* (its
program begins to be compiled), *started* and *finished*. Leaves are started in tree order, which is
the same on every host.

Drawn and read leaves are filled by threads, in bounded memory, so all of them are started first
and waited for last. Other leaves need temporaries beside them, so that only a few of them are in
flight at a time (``limits.IN_FLIGHT``), and large ones one by one (``BYTES_IN_FLIGHT``).
"""

import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from lazyinit import compat, errors, meshes
from lazyinit.derived import DerivedParam
from lazyinit.make.derive import Derivation, derivations_of
from lazyinit.make.draw import Drawer
from lazyinit.make.limits import BYTES_IN_FLIGHT, IN_FLIGHT
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
from lazyinit.params import StoredParam
from lazyinit.program.equations import is_key
from lazyinit.program.slices import gather


def make(
    jobs: Sequence[Job],
    proofs: AskProofs,
    *,
    advance: Callable[[int], None] = lambda _: None,
    check: bool = False,
) -> Iterator[tuple[Job, jax.Array]]:
    """Makes, reads or moves what each job says, and yields its array once it is there.

    Args:
      jobs: in tree order.
      proofs: tells what is proven on a platform.
      advance: told the bytes of each array that is done.
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
        yield from _make(batch, makers, advance, check)


@dataclass(frozen=True, slots=True)
class _Round:
    """Ways of leaves that are made together, and the leaves that are derived from others.

    Attributes:
      ways: how the leaves are made that are not derived.
      derived: groups of those that are, each with the round of its inputs.
    """

    ways: Sequence[Way]
    derived: Sequence[tuple[Derivation, "_Round"]]


def _round(jobs: Sequence[Job], proofs: AskProofs) -> _Round:
    groups = derivations_of(job for job in jobs if isinstance(job.leaf, DerivedParam))
    ways = ways_of([job for job in jobs if not isinstance(job.leaf, DerivedParam)], proofs)
    return _Round(ways, [(group, _round(group.inputs, proofs)) for group in groups])


def _check_round(batch: _Round) -> None:
    check_inputs([group.way for group, _ in batch.derived])
    for way in batch.ways:
        _check_sources(way.jobs)
    for _, inputs in batch.derived:
        _check_round(inputs)


def _make(
    batch: _Round, makers: Makers, advance: Callable[[int], None], check: bool
) -> Iterator[tuple[Job, Any]]:
    """Makes a round: first what is not derived, then one group of derived leaves at a time."""
    # What is needed here and stays anyway need not be made again.
    shared = {id(job.thunk) for group, _ in batch.derived for job in group.inputs}
    there: dict[int, jax.Array] = {}
    for job, array in _make_ways(batch.ways, makers, advance, check):
        if id(job.thunk) in shared and _can_serve(job, array):
            there[id(job.thunk)] = array
        yield job, array
    for group, needed in batch.derived:
        if all(id(job.thunk) in there for job in group.inputs):
            made = {id(j): jax.device_put(there[id(j.thunk)], group.device) for j in group.inputs}
        else:
            with jax.default_device(group.device):
                inputs = _make(needed, makers, lambda _: None, check)
                made = {id(job): array for job, array in inputs}
        for job, array in zip(group.way.jobs, _derive(group, made, makers), strict=True):
            advance(job.leaf.nbytes)
            yield job, array
        del made


def _derive(group: Derivation, made: dict[int, Any], makers: Makers) -> Sequence[Any]:
    way, small = group.way, group.small_values(made)
    keys = [key.array() for key in way.roots.values()]
    if way.work.program.is_traced or any(map(compat.is_tracer, (*made.values(), *keys))):
        return inline(Inlined(way.jobs, way.work), small)
    replay = prepare_replay(way, small, makers.blocks)
    return makers.compiling.submit(replay).result()


def _can_serve(job: Job, array: jax.Array) -> bool:
    """Tells whether an array that was made is what a derived leaf needs, on any one device."""
    if compat.is_in_trace() or compat.is_tracer(array) or is_key(array):
        return False
    return job.dtype == job.leaf.dtype and array.is_fully_addressable


def _make_ways(
    ways: Sequence[Way], makers: Makers, advance: Callable[[int], None], check: bool
) -> Iterator[tuple[Job, Any]]:
    made = [way for way in ways if isinstance(way, Drawn | Compiled | Replayed)]
    to_check = {id(job) for way in made for job in way.jobs} if check else set[int]()
    filling, others = meshes.outside(lambda: _prepare(ways, makers))
    for job, array in _run(filling, others, makers.drawer, advance):
        if id(job) in to_check:
            _check(job, array, makers)
        for source in job.over:
            array = overlay(array, source, job.sharding)
        yield job, array


def _check(job: Job, array: jax.Array, makers: Makers) -> None:
    alone = Job(job.path, job.leaf, None, job.dtype)
    way = Replayed([alone], gather([job.leaf.init_fn]))
    replay = prepare_replay(way, makers.small_values(way), makers.blocks)
    (want,) = makers.compiling.submit(replay).result()
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
_Others: TypeAlias = Sequence[tuple[Sequence[Job], Start]]


def _prepare(ways: Sequence[Way], makers: Makers) -> tuple[_Filling, _Others]:
    """Prepares all leaves and returns what starts them, in tree order."""
    filling: list[tuple[Job, Callable[[], Shards]]] = []
    others: list[tuple[Sequence[Job], Start]] = []
    for way in ways:
        if isinstance(way, Drawn | Read):
            filling.append((way.jobs[0], makers.prepare_filling(way)))
        else:
            others.append((way.jobs, makers.prepare(way)))
    filling.sort(key=lambda f: f[0].places[0])
    others.sort(key=lambda o: o[0][0].places[0])
    return filling, others


def _run(
    filling: _Filling, others: _Others, drawer: Drawer, advance: Callable[[int], None]
) -> Iterator[tuple[Job, Any]]:
    """Starts the leaves in order, and yields each job's array once it is there."""
    filled = [(job, start()) for job, start in filling]
    drawer.flush()
    in_flight: collections.deque[tuple[Sequence[Job], Finish]] = collections.deque()

    def finished(jobs: Sequence[Job], finish: Finish) -> Iterable[tuple[Job, Any]]:
        made = jax.block_until_ready(finish())
        advance(sum(job.leaf.nbytes for job in jobs))
        return zip(jobs, made, strict=True)

    for jobs, start in others:
        while in_flight and not _may_start(jobs, [some for some, _ in in_flight]):
            yield from finished(*in_flight.popleft())
        in_flight.append((jobs, start()))
    for jobs, finish in in_flight:
        yield from finished(jobs, finish)
    for some in _batches(filled):
        wait([task for _, shards in some for task in shards.tasks], return_when=FIRST_EXCEPTION)
        for job, shards in some:
            for task in shards.tasks:
                task.result()
            advance(job.leaf.nbytes)
    # Not before all is there: beside other threads, each would wait for Python's lock.
    made = arrays_of([shards for _, shards in filled])
    yield from zip([job for job, _ in filled], made, strict=True)


def _may_start(jobs: Sequence[Job], in_flight: Sequence[Sequence[Job]]) -> bool:
    """Tells whether leaves may be made beside those that are in flight."""
    nbytes = sum(_temporary(some) for some in (jobs, *in_flight))
    return len(in_flight) < IN_FLIGHT and nbytes <= BYTES_IN_FLIGHT


def _temporary(jobs: Sequence[Job]) -> int:
    """Returns the bytes of leaves that need temporaries beside them: not of what is read."""
    return sum(job.leaf.nbytes for job in jobs if not isinstance(job.leaf, StoredParam))


_BATCH = 64  # Tasks that are waited for at a time.


def _batches(filled: Iterable[tuple[Job, Shards]]) -> Iterator[Sequence[tuple[Job, Shards]]]:
    """Groups what is waited for: each look takes Python's lock from the threads that fill."""
    batch, count = [], 0
    for job, shards in filled:
        batch.append((job, shards))
        count += len(shards.tasks)
        if count >= _BATCH:
            yield batch
            batch, count = [], 0
    yield batch


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:  # After an error, what was not begun need not be.
        pool.shutdown(cancel_futures=True)
