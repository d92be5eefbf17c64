"""Derived leaves that each device computes its own part of, from its own parts of the inputs.

Which dimension of the inputs is cut follows from where the leaves go: the first way to cut them in
which every equation of the work can be run by parts (``program.partwise``). So no device has more
than its parts, of the inputs as of the leaves.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lazyinit import compat, meshes
from lazyinit.compat import Axes, Cut
from lazyinit.make.proofs import kinds_by_parts
from lazyinit.make.ways import Job, Replayed
from lazyinit.program.equations import Value, is_key
from lazyinit.program.partwise import Partwise, spec_of

_TRIED = 64  # Ways to cut the inputs.


@dataclass(frozen=True, slots=True)
class ByParts:
    """Jobs of derived leaves that are computed by parts.

    Attributes:
      way: what to compute.
      work: the same by parts.
      mesh: over which the inputs are cut; it may have no devices, for a plan.
      cuts: how each input of the work is cut.
    """

    way: Replayed
    work: Partwise
    mesh: Any
    cuts: Mapping[Value, Cut]

    @classmethod
    def of(cls, way: Replayed, given: Sequence[Value]) -> "ByParts | None":
        """Returns the jobs of a way in this form; ``None`` if they have to be computed whole.

        Args:
          way: what to compute.
          given: the values of its program that are made or read for it.
        """
        jobs, work = way.jobs, way.work
        cut = [job for job in jobs if _is_cut(job)]
        if not cut or compat.is_in_trace() or work.program.is_traced:
            return None
        first = max(cut, key=lambda job: job.leaf.nbytes)
        mesh = first.sharding.mesh  # pyright: ignore (named: _is_cut)
        avals = work.program.avals
        main = max(given, key=lambda v: math.prod(avals[v].shape), default=None)
        if main is None or any(is_key(avals[v]) for v in work.inputs):
            return None
        found: list[ByParts] = []
        for main_cut in itertools.islice(_cuts(avals[main].shape, first.sharding), _TRIED):
            shape = avals[main].shape
            cuts = [
                main_cut if avals[v].shape == shape else ((),) * len(avals[v].shape)
                for v in work.inputs
            ]
            made = Partwise.of(work, cuts, mesh.shape)
            if made is None:
                continue
            parted = cls(way, made, mesh, dict(zip(work.inputs, cuts, strict=True)))
            if parted._arrives(first):
                return parted if parted._arrives_all() else None
            found.append(parted)
        return next((parted for parted in found if parted._arrives_all()), None)

    def kinds(self) -> frozenset[str]:
        """Returns the kinds of steps that have to be proven for this."""
        return kinds_by_parts(self.work.work)

    def _arrives(self, job: Job) -> bool:
        made = self._made(self.way.jobs.index(job))
        return job.sharding is not None and made.is_equivalent_to(job.sharding, job.leaf.ndim)

    def _arrives_all(self) -> bool:
        """Tells whether each array may be brought to where it goes."""
        # Between processes, none is.
        jobs = self.way.jobs
        return not isinstance(self.mesh, Mesh) or all(
            self._arrives(job) or job.sharding.is_fully_addressable  # pyright: ignore
            for job in jobs
        )

    def _made(self, number: int) -> NamedSharding:
        return self._on_mesh(self.work.cuts[number])

    def _on_mesh(self, cut: Cut) -> NamedSharding:
        return NamedSharding(self.mesh, spec_of(cut))

    def placement(self, value: Value) -> NamedSharding:
        """Returns where an input has to be."""
        return self._on_mesh(self.cuts[value])

    def compute(self, inputs: Mapping[Value, Any]) -> list[jax.Array] | None:
        """Computes the leaves, on a thread with no trace and no mesh.

        Args:
          inputs: arrays for the inputs of the work: those that are made or read, cut as
            ``placement`` says, others whole.

        Returns:
          An array for each job; ``None`` if the values are such that the leaves have to be computed
          whole.
        """
        work = self.way.work
        avals = work.program.avals
        # Axes of one type, whatever those are on which the leaves arrive.
        mesh = Mesh(self.mesh.devices, self.mesh.axis_names)
        with self.way.settings(), meshes.under(None):
            arrays = [
                _placed(inputs[v], avals[v].dtype, NamedSharding(mesh, spec_of(self.cuts[v])))
                for v in work.inputs
            ]
            made = self.work.run(mesh, arrays)
        if made is None:
            return None
        with compat.enable_x64(True):
            return [self._moved(n, array) for n, array in enumerate(made)]

    def _moved(self, number: int, array: jax.Array) -> jax.Array:
        job = self.way.jobs[number]
        arrives = self._arrives(job)
        sharding = job.sharding if arrives else self._made(number)
        assert sharding is not None
        parts = [shard.data for shard in array.addressable_shards]
        cast = [x if x.dtype == job.dtype else x.astype(job.dtype) for x in parts]
        array = jax.make_array_from_single_device_arrays(job.leaf.shape, sharding, cast)
        return jax.block_until_ready(array if arrives else jax.device_put(array, job.sharding))


def _is_cut(job: Job) -> bool:
    sharding = job.sharding
    return (
        isinstance(sharding, NamedSharding)
        and sharding.memory_kind in (None, _default_memory(sharding))
        and sharding.shard_shape(job.leaf.shape) != tuple(job.leaf.shape)
    )


def _default_memory(sharding: NamedSharding) -> Any:
    if not isinstance(sharding.mesh, Mesh):
        return None
    return next(iter(sharding.device_set)).default_memory().kind


def _cuts(shape: Sequence[int], like: Any) -> Iterator[Cut]:
    """Yields ways to cut a shape over the axes that cut another: each of them along some axis."""
    sizes = like.mesh.shape
    labels = [tuple([axes] if isinstance(axes, str) else axes) for axes in like.spec if axes]
    ways = [labels]
    if len(labels) > 1:  # All along one dimension, or fewer parts.
        ways += [[tuple(itertools.chain(*labels))], *([label] for label in labels)]
    for axes in ways:
        for order in itertools.permutations(range(len(shape)), len(axes)):
            cut: list[Axes] = [()] * len(shape)
            for axis, label in zip(order, axes, strict=True):
                cut[axis] = label
            parts = [math.prod(sizes[a] for a in label) for label in cut]
            if all(n % p == 0 for n, p in zip(shape, parts, strict=True)) and axes:
                yield tuple(cut)


def _placed(array: Any, dtype: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array in a placement: it is there already, or whole on one device."""
    if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(sharding, array.ndim):
        parts = [shard.data for shard in array.addressable_shards]
    else:
        # Not jax.device_put: for devices of several processes it would compare the whole array.
        whole = array if isinstance(array, jax.Array) else np.asarray(array, dtype)
        places = sharding.addressable_devices_indices_map(whole.shape)
        parts = [jax.device_put(whole[at], device) for device, at in places.items()]
    return jax.make_array_from_single_device_arrays(np.shape(array), sharding, parts)
