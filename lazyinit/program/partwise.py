"""Runs a work by parts: each device computes its own part of every value, and no more.

As in eager JAX, each equation is compiled alone, but for the shape of the part. The bits are the
same if every element of every result is exact, or rounded once: they do not depend on the shape
then. A work with any other equation is run whole.
"""

import collections
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lazyinit import compat
from lazyinit.compat import Cut, DevicePlace, HeldPart, WholeError
from lazyinit.program.equations import Equation, is_key
from lazyinit.program.slices import Work


@dataclass(frozen=True, slots=True, eq=False)
class PartStep:
    """One equation of a work, made ready to run on the parts of its inputs.

    Attributes:
      part: computes the parts of the results, under a trace. It takes the parts of the inputs, and
        a function from a mesh axis to the device's index along it. It returns the parts of the
        results, and an array of one boolean: whether bits may differ from those of the whole.
      taken: how each input is cut.
      cuts: how each result is cut.
      structs: the shape and dtype of each result's part.
      compiled: the compiled program for each mesh; under ``None`` the one for a single device,
        which takes the device's indices as an input.
    """

    part: Callable[[Sequence[Any], Callable[[str], Any]], tuple[list[Any], Any]]
    taken: Sequence[Cut]
    cuts: Sequence[Cut]
    structs: Sequence[jax.ShapeDtypeStruct]
    compiled: dict[Mesh | None, Callable[..., Any]] = field(default_factory=dict)

    def run(self, mesh: Mesh, arrays: Sequence[Any]) -> tuple[list[Any], Any]:
        """Computes the parts on all devices of a mesh, which exchange no values."""
        if mesh not in self.compiled:
            # One program for all devices: with a program each, it would be compiled for each.
            self.compiled[mesh] = jax.jit(
                jax.shard_map(
                    lambda *arrays: self.part(arrays, jax.lax.axis_index),
                    mesh=mesh,
                    in_specs=tuple(map(spec_of, self.taken)),
                    out_specs=(list(map(spec_of, self.cuts)), PartitionSpec(mesh.axis_names)),
                    check_vma=False,
                )
            )
        return self.compiled[mesh](*arrays)

    def run_at(self, place: Mapping[str, int], arrays: Sequence[Any]) -> tuple[list[Any], Any]:
        """Computes, on the default device, the parts of the device at one place of a mesh."""
        if None not in self.compiled:
            self.compiled[None] = jax.jit(lambda at, arrays: self.part(arrays, at.__getitem__))
        return self.compiled[None](dict(place), list(arrays))


def spec_of(cut: Cut) -> PartitionSpec:
    """Returns a cut as a ``PartitionSpec``."""
    return PartitionSpec(*(axes or None for axes in cut))


@dataclass(frozen=True, slots=True)
class Partwise:
    """A work made ready to run by parts: parts of its inputs give parts of its outputs.

    Attributes:
      work: the work.
      steps: a step for each equation of the work.
      cuts: how each output is cut.
    """

    work: Work
    steps: Sequence[PartStep]
    cuts: Sequence[Cut]

    @classmethod
    def of(cls, work: Work, cuts: Sequence[Cut], sizes: Mapping[str, int]) -> "Partwise | None":
        """Makes a work ready to run by parts; returns ``None`` if it has to be run whole.

        Args:
          work: what to run; none of its equations may be narrowed.
          cuts: how each input is cut, with ``()`` for a dimension that is not cut.
          sizes: the size of each axis of the mesh.
        """
        avals = work.program.avals
        if any(is_key(avals[v]) or avals[v].weak_type for v in work.outputs):
            return None
        structs: dict[int, jax.ShapeDtypeStruct] = {}
        held: dict[int, Cut] = {}
        grid = DevicePlace(sizes, lambda _: 0)
        for v, cut in zip(work.inputs, cuts, strict=True):
            aval = avals[v]
            held[v] = tuple(
                None if n == 1 else axes for n, axes in zip(aval.shape, cut, strict=True)
            )
            if not is_key(aval):
                structs[v] = jax.ShapeDtypeStruct(grid.local(aval.shape, held[v]), aval.dtype)
        steps = []
        for equation in work.equations:
            if equation.idle or any(v not in structs for v in equation.inputs):
                return None
            step = _step(
                work, equation, [held[v] for v in equation.inputs],
                [structs[v] for v in equation.inputs], sizes,
            )  # fmt: skip
            if step is None:
                return None
            steps.append(step)
            held.update(zip(equation.outputs, step.cuts, strict=True))
            structs.update(zip(equation.outputs, step.structs, strict=True))
        if any(v not in structs for v in work.outputs):
            return None
        return cls(work, steps, [_plain(held[v]) for v in work.outputs])

    def run(self, mesh: Mesh, inputs: Sequence[Any]) -> list[Any] | None:
        """Computes the outputs, each device its own part.

        Args:
          mesh: the mesh whose devices compute.
          inputs: arrays on this mesh, cut as ``of`` was told.

        Returns:
          The outputs; ``None`` if values turn out to be such that the work has to be run whole.
        """
        return self._run(inputs, lambda step, arrays: step.run(mesh, arrays))

    def run_at(self, place: Mapping[str, int], inputs: Sequence[Any]) -> list[Any] | None:
        """Computes, on the default device, the parts of the device at one place of a mesh.

        Args:
          place: the index of that device along each axis of the mesh.
          inputs: the parts of the inputs that it holds.

        Returns:
          The parts of the outputs; ``None`` where ``run`` returns ``None``.
        """
        return self._run(inputs, lambda step, arrays: step.run_at(place, arrays))

    def _run(
        self, inputs: Sequence[Any], run: Callable[[PartStep, list[Any]], tuple[list[Any], Any]]
    ) -> list[Any] | None:
        env = dict(zip(self.work.inputs, inputs, strict=True))
        last = {v: e.index for e in self.work.equations for v in (*e.inputs, *e.outputs)}
        doubts = []
        for equation, step in zip(self.work.equations, self.steps, strict=True):
            made, doubt = run(step, [env[v] for v in equation.inputs])
            env.update(zip(equation.outputs, made, strict=True))
            doubts.append(doubt)
            for v in (*equation.inputs, *equation.outputs):
                if last[v] == equation.index and v not in self.work.outputs:
                    env.pop(v, None)
        shards = [shard for doubt in doubts for shard in doubt.addressable_shards]
        in_doubt = any(np.asarray(shard.data).any() for shard in shards)
        return None if in_doubt else [env[v] for v in self.work.outputs]


def _avals(equation: Equation) -> list[Any]:
    return [v.aval for v in equation.origin.invars]


def _plain(cut: Cut) -> Cut:
    return tuple(axes or () for axes in cut)


_KEPT = 4096  # The most steps that are kept; equal layers share theirs.
_known: collections.OrderedDict[Any, PartStep | None] = collections.OrderedDict()
_lock = threading.Lock()


def _step(
    work: Work,
    equation: Equation,
    cuts: Sequence[Cut],
    structs: Sequence[jax.ShapeDtypeStruct],
    sizes: Mapping[str, int],
) -> PartStep | None:
    origin = equation.origin
    avals = tuple((aval.shape, aval.dtype) for aval in _avals(equation))
    params = work.program.fingerprint(origin)
    is_last = tuple(v in work.outputs for v in equation.outputs)
    same = (
        work.program.x64, origin.primitive, params, origin.ctx, avals, tuple(cuts), is_last,
        tuple(sizes.items()),
    )  # fmt: skip
    with _lock:
        if same in _known:
            _known.move_to_end(same)
            return _known[same]
    made = _made(work, equation, cuts, structs, sizes, is_last)
    with _lock:
        _known[same] = made
        if len(_known) > _KEPT:
            _known.popitem(last=False)
    return made


def _made(
    work: Work,
    equation: Equation,
    cuts: Sequence[Cut],
    structs: Sequence[jax.ShapeDtypeStruct],
    sizes: Mapping[str, int],
    is_last: Sequence[bool],
) -> PartStep | None:
    origin = equation.origin
    shapes = [tuple(aval.shape) for aval in _avals(equation)]
    given: list[Cut] = []

    def part(arrays: Sequence[Any], index: Callable[[str], Any]) -> tuple[list[Any], Any]:
        grid = DevicePlace(sizes, index)
        made = compat.run_on_part(origin, list(map(HeldPart, arrays, shapes, cuts)), grid)
        # A leaf gets all of its elements; of other values one of those that are alike is enough.
        made = [
            compat.spread(x, grid) if last else x for x, last in zip(made, is_last, strict=True)
        ]
        given[:] = [x.cut for x in made]
        return [x.array for x in made], jnp.any(jnp.array([*grid.doubts, False]), keepdims=True)

    with compat.enable_x64(work.program.x64):
        try:
            made, _ = jax.eval_shape(lambda arrays: part(arrays, lambda _: 0), list(structs))
        except WholeError:
            return None
    return PartStep(part, cuts, list(given), made)
