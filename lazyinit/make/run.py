"""Jobs -> arrays: the only place that makes device memory.

Everything that can be wrong is found before the first array is made. Work is dispatched in tree
order, the same on every host. What threads draw or read is all under way at once, a bounded part
of it at a time; of the others only a few leaves are (``limits``): making one needs temporaries
beside it.
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

from lazyinit import errors, meshes
from lazyinit.make.buffers import Blocks
from lazyinit.make.dispatch import (
    Filling,
    Finish,
    Pools,
    Start,
    is_traced,
    small_values,
    start_of,
    start_reading,
    start_replay,
)
from lazyinit.make.draw import Drawer
from lazyinit.make.limits import IN_FLIGHT
from lazyinit.make.overlay import overlaid
from lazyinit.make.proofs import NOTHING, Proofs
from lazyinit.make.replay import differing
from lazyinit.make.shards import Shards, arrays
from lazyinit.make.units import Job, Unit, check_inputs, units_of
from lazyinit.params import LazyParam, StoredParam, Thunk
from lazyinit.program.slices import SmallValues


def make(
    jobs: Sequence[Job],
    proofs: Callable[[str], Proofs],
    *,
    advance: Callable[[int], None] = lambda _: None,
    check: bool = False,
) -> Iterator[tuple[Job, jax.Array]]:
    """Makes, reads or moves what each job says, and yields its array once it is there.

    Args:
      jobs: in tree order.
      proofs: returns what is proven on a platform (``"cpu"``).
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
        pools = Pools(compiling, reading, Drawer(drawing), Blocks())
        proofs = functools.cache(proofs)
        small: dict[Any, SmallValues] = {}
        lazy = [j for j in jobs if isinstance(j.leaf, LazyParam)]
        units = meshes.outside(lambda: units_of(lazy, proofs))
        unit_of = {id(job): unit for unit in units for job in unit.jobs}

        def start(unit: Unit) -> Start | Filling:
            return start_of(unit, small, pools)

        steps = meshes.outside(lambda: _steps(units, jobs, start, pools))
        for job, array in _run(steps, pools.drawer, advance):
            if check and id(job) in unit_of:
                _check(job, array, unit_of[id(job)], small, pools)
            for source in job.over:
                array = overlaid(array, source, job.sharding)
            yield job, array


def _check(
    job: Job, array: jax.Array, unit: Unit, small: dict[Any, SmallValues], pools: Pools
) -> None:
    if is_traced(unit):  # It has the bits of somebody's jit, and no values to compare.
        return
    alone = Job(job.path, job.leaf, None, job.dtype)
    (only,) = units_of([alone], lambda _: NOTHING)
    (want,) = start_replay(only, small_values(only, small), pools)()()
    if n := differing(array, want):
        raise errors.BitsError(
            f"{job.path}: wanted the bits of its replay, got {n} of {array.size} elements that "
            "differ. Please report it, with what `lazyinit check` prints."
        )


@dataclass(frozen=True, slots=True)
class _Step:
    """One dispatch, which gives the arrays of one or more jobs."""

    jobs: Sequence[Job]
    start: Start | Filling


def _steps(
    units: Sequence[Unit],
    jobs: Sequence[Job],
    start: Callable[[Unit], Start | Filling],
    pools: Pools,
) -> list[_Step]:
    """Turns jobs into steps in tree order. All that can be wrong is raised here."""
    check_inputs(units)
    stored = [j for j in jobs if isinstance(j.leaf, StoredParam)]
    for source in [job.leaf.source for job in stored] + [s for job in jobs for s in job.over]:
        source.check()
    steps = [_Step(u.jobs, start(u)) for u in units]
    steps += [_Step([j], start_reading(j, pools)) for j in stored]
    steps += [_Step([j], _moving(j)) for j in jobs if not isinstance(j.leaf, Thunk)]
    return sorted(steps, key=lambda step: step.jobs[0].places[0])


def _moving(job: Job) -> Start:
    def start() -> Finish:
        moved = job.moved(job.leaf)
        return lambda: [moved]

    return start


def _run(
    steps: Sequence[_Step], drawer: Drawer, advance: Callable[[int], None]
) -> Iterator[tuple[Job, Any]]:
    """Dispatches the steps in order and yields each job's array once it is there.

    What threads fill is dispatched first and waited for last: it goes on beside the others.
    """
    filled: list[tuple[Job, Shards, Sequence[Future[Any]]]] = []
    for step in steps:
        if isinstance(step.start, Filling):
            (job,) = step.jobs
            filled.append((job, step.start.shards, step.start.start()))
    drawer.flush()
    in_flight: collections.deque[tuple[Sequence[Job], Finish]] = collections.deque()

    def finished(jobs: Sequence[Job], finish: Finish) -> Iterable[tuple[Job, Any]]:
        made = jax.block_until_ready(finish())
        advance(sum(job.leaf.nbytes for job in jobs))
        return zip(jobs, made, strict=True)

    for step in steps:
        if isinstance(step.start, Filling):
            continue
        in_flight.append((step.jobs, step.start()))
        if len(in_flight) == IN_FLIGHT:
            yield from finished(*in_flight.popleft())
    for jobs, finish in in_flight:
        yield from finished(jobs, finish)
    for some in _batches((job, tasks) for job, _, tasks in filled):
        wait([task for _, tasks in some for task in tasks], return_when=FIRST_EXCEPTION)
        for job, tasks in some:
            for task in tasks:
                task.result()
            advance(job.leaf.nbytes)
    # Not before all is there: beside other threads, each would wait for Python's lock.
    made = arrays([shards for _, shards, _ in filled])
    yield from zip([job for job, _, _ in filled], made, strict=True)


_BATCH = 64  # Tasks that are waited for at a time.


_Awaited: TypeAlias = tuple[Job, Sequence[Future[Any]]]


def _batches(filled: Iterable[_Awaited]) -> Iterator[Sequence[_Awaited]]:
    """Groups what is waited for: each look takes Python's lock from the threads that fill."""
    batch, count = [], 0
    for job, tasks in filled:
        batch.append((job, tasks))
        count += len(tasks)
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
