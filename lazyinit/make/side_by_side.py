"""Leaves that are made side by side, because none of them is computed from another.

Each leaf is *prepared* (its program begins to be compiled), *started* and *finished*. Leaves are
started in tree order, which is the same on every host.

Drawn and read leaves are filled by threads, in bounded memory, so all of them are started first
and waited for last. Of the others, ``in_flight`` says which may be made at a time.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, TypeAlias

import jax

from lazyinit import meshes
from lazyinit.make.draw import Drawer
from lazyinit.make.in_flight import may_start
from lazyinit.make.makers import Finish, Makers, Start
from lazyinit.make.overlay import overlay
from lazyinit.make.replay import check_equal, prepare_replay
from lazyinit.make.shards import Shards, arrays_of
from lazyinit.make.ways import Compiled, Drawn, Job, Read, Replayed, Way
from lazyinit.params import StoredParam, Thunk
from lazyinit.program.slices import gather
from lazyinit.progress import Action, Tell
from lazyinit.tensors.as_dtype import told


def make_side_by_side(
    ways: Sequence[Way], makers: Makers, tell: Tell, check: bool
) -> Iterator[tuple[Job, Any]]:
    """Makes leaves of any ways, none of them derived, and yields each job's array once it is there.

    Args:
      ways: how they are made.
      makers: what they are made with.
      tell: is called with what was done.
      check: whether every leaf that is made is compared with its replay.
    """
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
    check_equal(job, array, want)


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
        tell(action_of(jobs[0]), jobs[0].path, sum(job.leaf.nbytes for job in jobs))
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
            tell(action_of(job), job.path, nbytes)
    # Arrays are made last, because JAX calls beside the threads that fill wait for Python's lock.
    made = arrays_of([shards for _, shards in filled])
    yield from zip([job for job, _ in filled], made, strict=True)


_BATCH = 64  # Tasks that are waited for at a time, at most.
_BATCH_BYTES = 2**26  # A batch ends earlier if its parts have so many bytes.

_Part: TypeAlias = tuple[Job, "Future[Any] | None", int]
"""A leaf, the task that fills a part of it (``None`` if it is full), and the bytes of that part."""


def _batches(filled: Iterable[tuple[Job, Shards]]) -> Iterator[Sequence[_Part]]:
    """Groups the parts that are waited for, as each wait takes Python's lock from other threads."""
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


def action_of(job: Job) -> Action:
    """Returns the word for what is done to a leaf, as ``progress`` shows it."""
    if isinstance(job.leaf, StoredParam):
        return "read"
    return "make" if isinstance(job.leaf, Thunk) else "move"
