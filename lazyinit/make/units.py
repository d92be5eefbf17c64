"""Jobs, one for each array to make, -> units: jobs of lazy leaves that share equations.

What shares equations is made together, in one way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Sharding

from lazyinit import compat, errors
from lazyinit import sharding as shardings
from lazyinit.keys import Key
from lazyinit.make.proofs import Proofs
from lazyinit.make.ways import Way, draw_of, whole_of
from lazyinit.params import LazyParam, OverlapParam, describe, label
from lazyinit.program.equations import is_key
from lazyinit.program.slices import Slice, Work, gather
from lazyinit.program.tracing import trace


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
        """Returns an array (of jax or numpy; traced) with the dtype and the sharding wanted."""
        cast = array if array.dtype == self.dtype else array.astype(self.dtype)
        if self.sharding is None:
            return cast
        if compat.is_tracer(cast):
            return shardings.constrained(cast, self.sharding)
        if self.sharding.is_fully_addressable or not is_key(cast):
            return jax.device_put(cast, self.sharding)
        # JAX puts no keys on devices of several processes.
        places = self.sharding.addressable_devices_indices_map(cast.shape)
        parts = [jax.device_put(cast[at], device) for device, at in places.items()]
        return jax.make_array_from_single_device_arrays(cast.shape, self.sharding, parts)


@dataclass(frozen=True, slots=True)
class Unit:
    """Jobs that are computed together, since they share equations, and how.

    Attributes:
      jobs: the arrays to make.
      work: what to run for them.
      slices: the part of it that each needs.
      way: how it is made.
    """

    jobs: Sequence[Job]
    work: Work
    slices: Sequence[Slice]
    way: Way


def units_of(jobs: Sequence[Job], proofs: Callable[[str], Proofs]) -> list[Unit]:
    """Decides how lazy leaves are made, and which together: each equation runs once.

    What is drawn is drawn by itself: to draw the same numbers twice takes less than to wait.
    """
    units, rest, slices = [], [], []
    for job in jobs:
        made = _slice_of(job)
        drawn = draw_of(made, job.sharding, proofs)
        if drawn is None:
            rest.append(job)
            slices.append(made)
        else:
            units.append(Unit([job], drawn[0], [made], drawn[1]))
    for ns in _sharing(rest, [gather([made]) for made in slices]):
        parts = [slices[n] for n in ns]
        work, way = whole_of(parts, rest[ns[0]].sharding, proofs)
        units.append(Unit([rest[n] for n in ns], work, parts, way))
    return units


def _sharing(jobs: Sequence[Job], works: Sequence[Work]) -> Iterable[Sequence[int]]:
    """Groups jobs by union-find: one group for all that need the same equation, to run it once."""
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
    return members.values()


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
        traced, results = trace(init, streams)
    except Exception as error:
        raise errors.RecordError(
            f"{job.path}: wanted an init_fn that maps a key to an array, got "
            f"{label(leaf.init_fn)}, which failed: {error}. Bind its shape and dtype first."
        ) from error
    avals = [traced.avals[r.value] for r in results]
    found = [describe(aval.shape, aval.dtype) for aval in avals]
    if found != [describe(leaf.shape, leaf.dtype)]:
        raise errors.RecordError(
            f"{job.path}: wanted {describe(leaf.shape, leaf.dtype)} from its init_fn, "
            f"got {', '.join(found) or 'nothing'}. Give the LazyParam the shape and dtype that "
            "its init_fn returns."
        )
    return Slice(traced, results[0].value, next(iter(traced.streams)) if one else -1)


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
