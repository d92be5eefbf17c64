"""The order of work: jobs come in, and each job's array goes out once it is there.

All that can be wrong is found before the first array is made. The leaves then form *rounds*: leaves
that are computed from no other leaf are made first, side by side (``side_by_side``). Each group of
derived leaves comes after them, together with a round of its own in which its inputs are made.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import compat, meshes
from lazyinit.derived import DerivedParam
from lazyinit.make.derive import Derivation, derivations_of
from lazyinit.make.draw import Drawer
from lazyinit.make.makers import Makers
from lazyinit.make.replay import check_equal, inline, prepare_replay
from lazyinit.make.shards import Blocks
from lazyinit.make.side_by_side import action_of, make_side_by_side
from lazyinit.make.ways import AskProofs, Inlined, Job, Way, check_inputs, ways_of
from lazyinit.params import StoredParam
from lazyinit.program.equations import is_key
from lazyinit.progress import Tell, silent


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
      tell: is called with what was done, in bytes of arrays, and with what is compiled.
      check: whether every leaf that is made is compared with its replay.

    Raises:
      BitsError: with ``check``, a leaf has other bits than its replay.
    """
    with (
        ThreadPoolExecutor(os.cpu_count()) as compiling,  # Never canceled: others may wait for it.
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
    """Leaves that are made together: first those that are not derived, then those that are.

    Attributes:
      ways: how the leaves that are not derived are made.
      derived: the groups of derived leaves, each with the round that makes its inputs.
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

    The derived leaves are made one group at a time, and the inputs of a group are freed after it.
    """
    # An input that is itself a leaf of this round is not made a second time.
    shared = {id(job.thunk) for group, _ in batch.derived for job in group.inputs}
    available: dict[int, jax.Array] = {}
    for job, array in make_side_by_side(batch.ways, makers, tell, check):
        if id(job.thunk) in shared and _can_serve(job, array):
            available[id(job.thunk)] = array
        yield job, array
    for group, round_of_inputs in batch.derived:
        arrays = _derive(group, _inputs(group, round_of_inputs, available, makers, check), makers)
        if arrays is None:  # Its values do not allow parts.
            arrays = _derive_whole(group.whole(), batch.proofs, available, makers, check)
        elif check and group.parted is not None:
            wanted = _derive_whole(group.on_one_device(), batch.proofs, available, makers, check)
            for job, array, want in zip(group.way.jobs, arrays, wanted, strict=True):
                check_equal(job, array, want)
            del wanted
        for job, array in zip(group.way.jobs, arrays, strict=True):
            tell(action_of(job), job.path, job.leaf.nbytes)
            yield job, array
        del arrays


def _inputs(
    group: Derivation,
    round_of_inputs: _Round,
    available: dict[int, jax.Array],
    makers: Makers,
    check: bool,
) -> dict[int, Any]:
    """Returns the arrays that a group is computed from, by the ``id`` of their jobs.

    Args:
      group: the derived leaves that are to be computed.
      round_of_inputs: the round that makes these arrays.
      available: arrays that were made already, by the ``id`` of their thunks. They are used if they
        are all that the group needs; if one is missing, all are made anew.
      makers: what the ways of this call share.
      check: as for ``make``.
    """
    if all(id(job.thunk) in available for job in group.inputs):
        places = [job.sharding or group.device for job in group.inputs]
        found = [available[id(job.thunk)] for job in group.inputs]
        moved = map(jax.device_put, found, places)
        return {id(job): array for job, array in zip(group.inputs, moved, strict=True)}
    with jax.default_device(group.device):
        return {id(job): array for job, array in _make(round_of_inputs, makers, silent, check)}


def _derive(group: Derivation, made: dict[int, Any], makers: Makers) -> Sequence[Any] | None:
    """Returns the arrays of a group of derived leaves, one for each job.

    Returns ``None`` if the group was to be computed by parts, but the values of its inputs do not
    allow that; it has to be computed whole then. In a trace, the arrays are tracers.

    Args:
      group: the group.
      made: the arrays of its inputs, by the ``id`` of their jobs.
      makers: what the ways of this call share.
    """
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
    available: dict[int, jax.Array],
    makers: Makers,
    check: bool,
) -> Sequence[Any]:
    round_of_inputs = meshes.outside(lambda: _round(group.inputs, proofs))
    arrays = _derive(group, _inputs(group, round_of_inputs, available, makers, check), makers)
    assert arrays is not None
    return arrays


def _can_serve(job: Job, array: jax.Array) -> bool:
    """Tells whether an array can be copied to any device as the input of a derived leaf."""
    if compat.is_in_trace() or compat.is_tracer(array) or is_key(array):
        return False
    return job.dtype == job.leaf.dtype and array.is_fully_addressable


def _check_sources(jobs: Sequence[Job]) -> None:
    for job in jobs:
        stored = [job.leaf.source] if isinstance(job.leaf, StoredParam) else []
        for source in (*stored, *job.over):
            source.check()


@contextlib.contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield pool
    finally:  # After an error, tasks that have not begun are canceled.
        pool.shutdown(cancel_futures=True)
