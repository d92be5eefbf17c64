"""Derived leaves, grouped by their inputs, and a job that makes or reads each input.

Leaves that are computed from the same inputs are computed together, so that each input is made or
read once for all of them. If the work can be run by parts (``by_parts``), each device has its part
of the inputs and computes its part of the leaves. If not, one device gets the whole inputs, and the
leaves are cut as those of a replay are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax

from lazyinit import compat
from lazyinit import sharding as shardings
from lazyinit.make.by_parts import ByParts
from lazyinit.make.ways import AskProofs, Job, Replayed
from lazyinit.program.equations import Value
from lazyinit.program.slices import gather
from lazyinit.program.small_values import SmallValues

_Part: TypeAlias = Callable[[Replayed, Sequence[Value]], ByParts | None]


@dataclass(frozen=True, slots=True)
class Derivation:
    """Jobs of derived leaves that are computed together.

    Attributes:
      way: what to compute.
      values: the values of its program that stand for the inputs.
      inputs: for each of these, the job that makes it.
      parted: how to compute them by parts, where that is proven to give the bits of a replay;
        ``None`` if they are computed whole.
    """

    way: Replayed
    values: Sequence[Value]
    inputs: Sequence[Job]
    parted: ByParts | None = None

    @classmethod
    def of(cls, jobs: Sequence[Job], proofs: AskProofs) -> "Derivation":
        """Decides how leaves that have the same inputs are computed.

        Args:
          jobs: one for each of the leaves.
          proofs: tells what is proven.
        """
        made = cls._of(jobs, ByParts.of)
        platform = shardings.platform_of(jobs[0].sharding)
        if made.parted is None or proofs(platform).allow(made.parted.kinds):
            return made
        return made.whole()

    @classmethod
    def _of(cls, jobs: Sequence[Job], part: _Part) -> "Derivation":
        way = Replayed(jobs, gather([job.leaf.init_fn for job in jobs]))
        leaf = jobs[0].leaf
        needed = set(way.work.inputs)
        made = zip(leaf.init_fn.given, leaf.inputs, strict=True)
        parts = {value: part for value, part in made if value in needed}
        parted = part(way, list(parts))
        avals = leaf.init_fn.program.avals
        inputs = [
            Job(part.path, part, parted and parted.placement(v), avals[v].dtype, places=[0])
            for v, part in parts.items()
        ]
        return cls(way, list(parts), inputs, parted)

    def whole(self) -> "Derivation":
        """Returns the same jobs, computed whole on one device, and then cut."""
        return Derivation._of(self.way.jobs, lambda way, given: None)

    def on_one_device(self) -> "Derivation":
        """Returns jobs for the same leaves, computed whole on one device, where they stay."""
        jobs = [replace(job, sharding=None) for job in self.way.jobs]
        return Derivation._of(jobs, lambda way, given: None)

    def small_values(self, made: Mapping[int, Any]) -> SmallValues:
        """Returns keys, scalars and inputs of the way; ``made`` has the inputs by job ``id``."""
        given = {v: made[id(job)] for v, job in zip(self.values, self.inputs, strict=True)}
        keys = {stream: key.array() for stream, key in self.way.roots.items()}
        return SmallValues(self.way.work.program, keys, given | self._moved())

    def _moved(self) -> dict[Value, jax.Array]:
        """Returns the arrays that the function got as arguments, moved to the device."""
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
        """The device of this process on which the leaves are computed, if not by parts."""
        sharding = self.way.jobs[0].sharding
        devices = () if sharding is None else sharding.addressable_devices
        first = min(devices, key=lambda d: d.id, default=None)
        return first or shardings.default_device()


def derivations_of(jobs: Iterable[Job], proofs: AskProofs) -> list[Derivation]:
    """Groups jobs of derived leaves by their inputs, and keeps their order."""
    members: dict[Any, list[Job]] = {}
    for job in jobs:
        made = job.leaf.init_fn
        devices = None if job.sharding is None else shardings.devices_in_order(job.sharding)
        inputs = tuple(zip(made.given, map(id, job.leaf.inputs), strict=True))
        alike = (id(made.program), inputs, job.leaf.rng_path, made.key, devices)
        members.setdefault(alike, []).append(job)
    return [Derivation.of(jobs, proofs) for jobs in members.values()]
