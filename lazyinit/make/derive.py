"""Derived leaves: grouped by what they are computed from, with a job for each of these inputs.

Leaves that are computed from the same inputs are computed together, so that each input is made or
read once for all of them. The inputs are whole on one device; the results are cut, as a replay is.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit import compat
from lazyinit import sharding as shardings
from lazyinit.make.ways import Job, Replayed
from lazyinit.program.equations import Value
from lazyinit.program.slices import SmallValues, gather


@dataclass(frozen=True, slots=True)
class Derivation:
    """Jobs of derived leaves that are computed together.

    Attributes:
      way: what to compute; it is replayed.
      values: the values of its program that the inputs are.
      inputs: a job for each of these, which makes it.
    """

    way: Replayed
    values: Sequence[Value]
    inputs: Sequence[Job]

    def small_values(self, made: Mapping[int, Any]) -> SmallValues:
        """Returns the keys and scalars of the way, and the inputs, by the id of their jobs."""
        given = {v: made[id(job)] for v, job in zip(self.values, self.inputs, strict=True)}
        keys = {stream: key.array() for stream, key in self.way.roots.items()}
        return SmallValues(self.way.work.program, keys, given | self._moved())

    def _moved(self) -> dict[Value, jax.Array]:
        """Returns the arrays that the function was given as such, beside the inputs."""
        constants = self.way.work.program.constants
        return {
            v: jax.device_put(x, self.device)
            for v in self.way.work.inputs
            if isinstance(x := constants.get(v), jax.Array)
            and not compat.is_tracer(x)
            and x.committed
            and x.is_fully_addressable
        }

    @property
    def device(self) -> Any:
        """The device on which it is computed: one of this process's."""
        sharding = self.way.jobs[0].sharding
        devices = () if sharding is None else sharding.addressable_devices
        first = min(devices, key=lambda d: d.id, default=None)
        return first or shardings.default_device()


def derivations_of(jobs: Iterable[Job]) -> list[Derivation]:
    """Groups jobs of derived leaves by their inputs, in order."""
    members: dict[Any, list[Job]] = {}
    for job in jobs:
        made = job.leaf.init_fn
        devices = None if job.sharding is None else shardings.devices_in_order(job.sharding)
        inputs = tuple(zip(made.given, map(id, job.leaf.inputs), strict=True))
        alike = (id(made.program), inputs, job.leaf.rng_path, made.key, devices)
        members.setdefault(alike, []).append(job)
    return [_derivation(jobs) for jobs in members.values()]


def _derivation(jobs: Sequence[Job]) -> Derivation:
    way = Replayed(jobs, gather([job.leaf.init_fn for job in jobs]))
    leaf = jobs[0].leaf
    needed = set(way.work.inputs)
    inputs = {
        value: Job(part.path, part, None, leaf.init_fn.program.avals[value].dtype, places=[0])
        for value, part in zip(leaf.init_fn.given, leaf.inputs, strict=True)
        if value in needed
    }
    return Derivation(way, list(inputs), list(inputs.values()))
