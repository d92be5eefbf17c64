"""Derived leaves of which each device computes its own part, from its own parts of the inputs.

How the leaves are to be cut suggests several ways to cut the inputs. One is taken in which every
equation of the work can be run by parts (``program.partwise``), and if possible one in which the
largest leaf comes out where it goes. So no device holds more than its parts of inputs and leaves.
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

_TRIED = 64  # Ways to cut the inputs, at most.


@dataclass(frozen=True, slots=True)
class ByParts:
    """Jobs of derived leaves that are computed by parts.

    Attributes:
      way: what to compute.
      work: the same work, by parts.
      mesh: the mesh over which the inputs are cut; for a plan, it may have no devices.
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
          given: the values of its program that are other leaves, made or read for it.
        """
        jobs, work = way.jobs, way.work
        cut = [job for job in jobs if _is_cut(job)]
        if not cut or compat.is_in_trace() or work.program.is_traced:
            return None
        first = max(cut, key=lambda job: job.leaf.nbytes)
        mesh = first.sharding.mesh  # pyright: ignore (NamedSharding: _is_cut)
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
        """Returns the kinds of steps that have to be proven before leaves are made like this."""
        return kinds_by_parts(self.work.work)

    def _arrives(self, job: Job) -> bool:
        made = self._made(self.way.jobs.index(job))
        return job.sharding is not None and made.is_equivalent_to(job.sharding, job.leaf.ndim)

    def _arrives_all(self) -> bool:
        """Tells whether each array comes out where it goes, or can be moved there.

        Nothing is moved between processes.
        """
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
          inputs: arrays for the inputs of the work: other leaves cut as ``placement`` says, and
            keys and scalars whole.

        Returns:
          An array for each job; ``None`` if some value does not allow parts, so that the leaves
          have to be computed whole.
        """
        work = self.way.work
        avals = work.program.avals
        # All axes get the default type, whatever types the axes of the job's sharding have.
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
    """Yields ways to cut a shape over the mesh axes that another sharding uses."""
    sizes = like.mesh.shape
    labels = [tuple([axes] if isinstance(axes, str) else axes) for axes in like.spec if axes]
    ways = [labels]
    if len(labels) > 1:  # All mesh axes may cut one dimension, or one of them may cut alone.
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
    """Returns an array, which is placed already or whole on one device, in a placement."""
    if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(sharding, array.ndim):
        parts = [shard.data for shard in array.addressable_shards]
    else:
        # jax.device_put would compare the whole array between processes, if there are several.
        whole = array if isinstance(array, jax.Array) else np.asarray(array, dtype)
        places = sharding.addressable_devices_indices_map(whole.shape)
        parts = [jax.device_put(whole[at], device) for device, at in places.items()]
    return jax.make_array_from_single_device_arrays(np.shape(array), sharding, parts)
