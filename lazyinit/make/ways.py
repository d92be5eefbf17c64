"""The decision: in which way each array is made, and which arrays are made together.

*Jobs* come in, one for each array. *Ways* go out. A way is a value of one of a few classes: it
names its jobs, and says what is to be run or read for them. ``way_of`` decides for one leaf, and
``plan`` asks it. ``ways_of`` decides for all leaves of a call, and ``run`` follows it.

*Replay* is right by construction, because it does what eager ``init`` does. The fast ways rest on
what XLA happens to do, so each of them is taken only where it is proven (``proofs``).
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
from jax.sharding import Sharding

from lazyinit import compat, errors
from lazyinit import sharding as shardings
from lazyinit.keys import Key, RngPath, TracedKey
from lazyinit.make.by_hand import with_slice
from lazyinit.make.elementwise import Elementwise
from lazyinit.make.moved import Order, form_of
from lazyinit.make.proofs import Proofs, kinds_of
from lazyinit.make.stacked import Stacked
from lazyinit.params import LazyParam, OverlapParam, StoredParam
from lazyinit.program.equations import Value, is_key
from lazyinit.program.slices import Slice, Work, gather, is_order_free
from lazyinit.sources import Source
from lazyinit.tensors.key_data import KeyData


@dataclass(slots=True, eq=False)
class Job:
    """One array to make, read or move.

    Attributes:
      path: of the leaf, for messages.
      leaf: a ``LazyParam``, a ``StoredParam``, a ``DerivedParam`` or an array. If an
        ``OverlapParam`` is given, this becomes its ``rest``, and ``over`` its ``stored``.
      sharding: where the array goes; ``None`` is the default device.
      dtype: of the array.
      over: what is read over the first elements of the array, once it is made.
      places: where the array goes in the tree, as positions among its leaves.
      thunk: the leaf as it was given.
    """

    path: str
    leaf: Any
    sharding: Sharding | None
    dtype: Any
    over: Sequence[Source] = ()
    places: list[int] = field(default_factory=list)
    thunk: Any = None

    def __post_init__(self) -> None:
        self.thunk = self.leaf
        if isinstance(self.leaf, OverlapParam):
            self.over, self.leaf = [self.leaf.stored], self.leaf.rest

    def move(self, array: Any) -> Any:
        """Returns an array (JAX's or NumPy's, or a tracer) in the job's dtype and sharding."""
        cast = array if array.dtype == self.dtype else array.astype(self.dtype)
        if self.sharding is None:
            return cast
        if compat.is_tracer(cast):
            return shardings.constrained(cast, self.sharding)
        if self.sharding.is_fully_addressable or not is_key(cast):
            return jax.device_put(cast, self.sharding)
        # jax.device_put refuses to put keys on devices of several processes.
        places = self.sharding.addressable_devices_indices_map(cast.shape)
        parts = [jax.device_put(cast[at], device) for device, at in places.items()]
        return jax.make_array_from_single_device_arrays(cast.shape, self.sharding, parts)


@dataclass(frozen=True, slots=True)
class Read:
    """A stored leaf for CPU devices: threads read the file, piece by piece, into the shards."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class Transferred:
    """A stored leaf for other devices: read into host memory, and copied from there."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class Moved:
    """A leaf that need only be moved: an array of the tree, or the PRNG keys of a checkpoint."""

    jobs: Sequence[Job]


@dataclass(frozen=True, slots=True)
class Computed:
    """Leaves that are computed together, by equations; each subclass is one way to run these.

    Attributes:
      jobs: the arrays to make. Each leaf has a ``Slice`` as its ``init_fn``.
      work: the equations to run for all of them.
    """

    jobs: Sequence[Job]
    work: Work

    @property
    def roots(self) -> Mapping[str, Key | TracedKey]:
        """The root keys by stream, which are the same for all of the leaves."""
        return dict(self.jobs[0].leaf.rng_path.roots)

    @property
    def own_keys(self) -> dict[Value, RngPath]:
        """The inputs of the work that are a leaf's own key, and how to derive each."""
        leaves = [job.leaf for job in self.jobs]
        return {x.init_fn.key: x.rng_path for x in leaves if x.init_fn.key >= 0}

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Applies the settings that the initialization was recorded under, on this thread."""
        with compat.enable_x64(self.work.program.x64), jax.disable_jit(False):
            yield


@dataclass(frozen=True, slots=True)
class Drawn(Computed):
    """A leaf whose elements are drawn by index, in host memory, by a program that knows no shape.

    Attributes:
      form: how an element, or a row, follows from its key and its index.
      order: where the elements of the leaf are among those that can be drawn.
    """

    form: Elementwise | Stacked
    order: Order


@dataclass(frozen=True, slots=True)
class Compiled(Computed):
    """Leaves that one compiled program makes; each device makes its own shard."""


@dataclass(frozen=True, slots=True)
class Replayed(Computed):
    """Leaves whose equations are run one by one, as in eager ``init``, on one device; then cut."""


@dataclass(frozen=True, slots=True)
class Inlined(Computed):
    """Leaves whose keys are traced, which become part of the caller's trace (a ``jit``, say)."""


Way: TypeAlias = Drawn | Compiled | Replayed | Inlined | Read | Transferred | Moved

AskProofs: TypeAlias = Callable[[str], Proofs]
"""Returns what is proven on a platform, such as ``"cpu"``."""


def way_of(jobs: Sequence[Job], proofs: AskProofs) -> Way:
    """Returns the way in which one leaf is made, or several together, from keys that have a value.

    Args:
      jobs: one; or several whose leaves share equations, none of which is drawn.
      proofs: tells what is proven.
    """
    match jobs[0].leaf:
        case LazyParam():
            drawn = _drawn(jobs, proofs) if len(jobs) == 1 else None
            return drawn or _as_a_whole(jobs, proofs)
        case StoredParam(source=source) if not isinstance(source, KeyData):
            is_cpu = shardings.platform_of(jobs[0].sharding) == "cpu"
            return Read(jobs) if is_cpu else Transferred(jobs)
    return Moved(jobs)


def _drawn(jobs: Sequence[Job], proofs: AskProofs) -> Drawn | None:
    (job,) = jobs
    platform = shardings.platform_of(job.sharding)
    if platform != "cpu":
        return None
    work = gather([job.leaf.init_fn], drawn=True)
    found = form_of(work)
    if found is None:  # It may have one once the keys of its rows are computed beforehand.
        work = gather([job.leaf.init_fn], drawn=True, keys_apart=True)
        found = form_of(work)
    if found is None or not proofs(platform).allow(lambda: kinds_of(work, found[0])):
        return None
    return Drawn(jobs, work, *found)


def _as_a_whole(jobs: Sequence[Job], proofs: AskProofs) -> Compiled | Replayed:
    platform = shardings.platform_of(jobs[0].sharding)
    work = gather([job.leaf.init_fn for job in jobs])
    # No rounding may depend on an order, which sharding changes, and no result may be dropped.
    is_plain = platform != "cpu" and is_order_free(work) and work.keeps_all()
    is_proven = is_plain and proofs(platform).allow(lambda: kinds_of(work, None))
    return Compiled(jobs, work) if is_proven else Replayed(jobs, work)


def ways_of(jobs: Iterable[Job], proofs: AskProofs) -> list[Way]:
    """Returns the ways in which all leaves are made.

    Leaves that share equations are made together, so that each equation runs once. Drawn leaves are
    not: to draw the same numbers twice takes less time than to wait for another leaf.

    Args:
      jobs: in tree order.
      proofs: tells what is proven.

    Raises:
      RecordError: somebody's own ``init_fn`` fails, or returns another shape or dtype.
      AbstractInputError: a leaf needs an input that was given as a shape alone.
    """
    alone: list[Way] = []
    whole: list[Compiled | Replayed] = []
    for job in jobs:
        if isinstance(job.leaf, LazyParam) and not isinstance(job.leaf.init_fn, Slice):
            job.leaf = with_slice(job.leaf, job.path)  # A derived leaf looks this very job up.
        way = way_of([job], proofs)
        if isinstance(way, Compiled | Replayed):
            whole.append(way)
        else:
            alone.append(way)
    together = [
        group[0] if len(group) == 1 else way_of([w.jobs[0] for w in group], proofs)
        for group in _sharing(whole)
    ]
    ways = [*alone, *together]
    check_inputs(ways)
    return [_inlined(way) for way in ways]


def _sharing(ways: Sequence[Compiled | Replayed]) -> Iterable[Sequence[Compiled | Replayed]]:
    """Groups leaves by union-find: those that need the same equation are in one group."""
    group = list(range(len(ways)))

    def find(n: int) -> int:
        while group[n] != n:
            group[n] = group[group[n]]
            n = group[n]
        return n

    owner: dict[Any, int] = {}
    for n, way in enumerate(ways):
        (job,) = way.jobs
        devices = None if job.sharding is None else shardings.devices_in_order(job.sharding)
        rng = job.leaf.rng_path  # If it was replaced, the same equations give other values.
        for equation in way.work.equations:
            first = owner.setdefault((id(equation.origin), equation.index, devices, rng), n)
            group[find(n)] = find(first)
    members: dict[int, list[Compiled | Replayed]] = {}
    for n, way in enumerate(ways):
        members.setdefault(find(n), []).append(way)
    return members.values()


def _inlined(way: Way) -> Way:
    if not isinstance(way, Computed):
        return way
    is_traced = any(isinstance(root, TracedKey) for root in way.roots.values())
    return Inlined(way.jobs, way.work) if is_traced or way.work.program.is_traced else way


def check_inputs(ways: Iterable[Way]) -> None:
    """Raises ``AbstractInputError`` if a leaf needs an input that was given as a shape alone."""
    problems = [
        f"{job.path}: its initial value depends on {way.work.program.abstract[value]}, which was "
        "given as a shape alone. Pass an array there, fill the leaf from a checkpoint, or leave "
        "it out of paths."
        for way in ways
        if isinstance(way, Computed)
        for job in way.jobs
        for value in way.work.inputs
        if value in way.work.program.abstract and value not in job.leaf.init_fn.given
    ]
    if problems:
        raise errors.AbstractInputError(errors.listing(problems))
