"""Traces an initialization once, abstractly, in the steps that eager JAX takes.

Where an array is placed does not change its elements, so placements are not part of the program.
Each result carries the placement that eager JAX would have given it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lazyinit import compat, errors
from lazyinit.compat import Placement
from lazyinit.keys import AnyKey
from lazyinit.program.equations import Equation, Program, Value


@dataclass(frozen=True, slots=True)
class Result:
    """An array that a traced function returned.

    Attributes:
      value: its number in the program.
      placement: where eager JAX would have put it; ``None`` is the default device.
    """

    value: Value
    placement: Placement


def trace(
    fn: Callable[[Mapping[str, Any], Sequence[Any]], Sequence[Any]],
    keys: Mapping[str, AnyKey],
    abstract: Sequence[tuple[str, jax.ShapeDtypeStruct]] = (),
    *,
    where: str = "trace",
) -> tuple[Program, list[Result]]:
    """Traces an initialization without allocating its arrays.

    A value is computed where the model's code asks for one. If JAX's own code cannot go on without
    a value, for a size perhaps, ``fn`` is called again, and JAX gets every value that it asks for.

    Args:
      fn: takes root keys by stream and the abstract inputs, and returns arrays.
      keys: the root keys.
      abstract: the name and shape of each input that has no value, with its future sharding.
      where: what is being traced, for messages.

    Returns:
      The program, which has just the equations that the results need, and a ``Result`` for each
      array that ``fn`` returned.

    Raises:
      RecordError: ``fn`` needs a value that is not known while tracing.
    """
    try:
        return _trace(fn, keys, abstract, answers_all=False)
    except _NO_VALUE:
        pass  # The second trace is outside of this block, so that its error drops this one.
    try:
        return _trace(fn, keys, abstract, answers_all=True)
    except _NO_VALUE as error:
        raise errors.RecordError(
            f"{where}: the model's Python code wants the value of an array that has none. "
            "Pass an array in place of a shape, or a Python value for a size or a flag. Inside of "
            "jax.jit, scan and the like, do not branch on the value of a computed array."
            f"\n{error}"
        ) from error


_NO_VALUE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def _trace(
    fn: Callable[[Mapping[str, Any], Sequence[Any]], Sequence[Any]],
    keys: Mapping[str, AnyKey],
    abstract: Sequence[tuple[str, jax.ShapeDtypeStruct]],
    *,
    answers_all: bool,
) -> tuple[Program, list[Result]]:
    """Traces once; ``answers_all`` says whether JAX's own code gets every value it asks for."""
    roots = {stream: key.array() for stream, key in keys.items()}

    looked_at: set[str] = set()

    def in_steps(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> Sequence[Any]:
        steps = compat.eager_steps(answers_all=answers_all)
        known = {stream: steps.known(stream, key, roots[stream]) for stream, key in keys.items()}
        unknown = [steps.unknown(n, x) for (n, _), x in zip(abstract, stand_ins, strict=True)]
        with steps.current():
            made = fn(known, unknown)
        looked_at.update(steps.looked_at)
        return [steps.unwrap(x) for x in made]

    # Their shardings are left out, as they would be part of the types.
    structs = [jax.ShapeDtypeStruct(s.shape, s.dtype, weak_type=s.weak_type) for _, s in abstract]
    closed = jax.make_jaxpr(in_steps)(roots, structs)
    names = [*sorted(roots), *(name for name, _ in abstract)]
    # Within another trace, the compiler places the results that nobody places.
    is_inside = any(map(compat.is_tracer, roots.values()))
    builder = _Builder(None if is_inside else compat.mesh_around())
    places = [*[None] * len(roots), *(struct.sharding for _, struct in abstract)]
    env = {
        v: Result(builder.value(v.aval), place)
        for v, place in zip(closed.jaxpr.invars, places, strict=True)
    }
    inputs = {r.value: name for r, name in zip(env.values(), names, strict=True)}
    results = builder.inline(closed.jaxpr, closed.consts, env)
    streams = {v: name for v, name in inputs.items() if v < len(roots)}
    program = builder.finish(
        [r.value for r in results],
        streams=streams,
        abstract={v: n for v, n in inputs.items() if v not in streams},
        looked_at=frozenset(looked_at),
    )
    return program, [r if r.value in inputs else builder.placed(r) for r in results]


class _Builder:
    """Turns a jaxpr into a program, with the bodies inlined that eager JAX runs step by step."""

    def __init__(self, mesh: Mesh | None) -> None:
        """Starts an empty program; ``mesh`` is the mesh of devices that is set, if any."""
        self.avals: list[Any] = []
        self.equations: list[Equation] = []
        self.producers: dict[Value, Equation] = {}
        self.constants: dict[Value, Any] = {}
        self.literals: set[Value] = set()
        self._mesh = mesh
        # Values that several devices add up in eager JAX, and the name of the equation.
        self._by_order: dict[Value, str] = {}
        self._unplaced = compat.Unplaced()
        self._placements = compat.Placements()

    def value(self, aval: Any) -> Value:
        self.avals.append(self._unplaced.aval(aval))
        return len(self.avals) - 1

    def constant(self, aval: Any, array: Any) -> Value:
        value = self.value(aval)
        self.constants[value] = array
        return value

    def atom(self, atom: Any, env: Mapping[jex.Var, Result]) -> Result:
        if not isinstance(atom, jex.Literal):
            return env[atom]
        value = self.constant(atom.aval, atom.val)
        if np.ndim(atom.val) == 0:
            self.literals.add(value)
        return Result(value, None)

    def inline(
        self, jaxpr: jex.Jaxpr, consts: Iterable[Any], env: dict[jex.Var, Result]
    ) -> list[Result]:
        """Adds the equations of a jaxpr to the program, and returns its results.

        An equation whose body eager JAX runs step by step is replaced by the equations of that
        body. One that only moves arrays between devices is left out: its results are the same
        values as its inputs, with other placements.

        Args:
          jaxpr: what was traced.
          consts: the values of its constants.
          env: the program's value for each input; this adds those of all other variables.
        """
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = Result(self.constant(var.aval, const), None)
        for eqn in jaxpr.eqns:
            inputs = [self.atom(a, env) for a in eqn.invars]
            if body := compat.transparent_body(eqn):
                inner, inner_consts = body
                results = self.inline(
                    inner, inner_consts, dict(zip(inner.invars, inputs, strict=True))
                )
            else:
                places = [r.placement for r in inputs]
                values = [r.value for r in inputs]
                if not compat.moves(eqn):
                    values = self._equation(eqn, values)
                    if any(map(compat.is_cut, places)) and compat.differs_where_cut(eqn):
                        self._by_order.update(dict.fromkeys(values, compat.title(eqn)))
                places = self._placements.of(eqn, places)
                results = list(map(Result, values, places))
            env.update(zip(eqn.outvars, results, strict=True))
        return [self.atom(a, env) for a in jaxpr.outvars]

    def _equation(self, eqn: jex.JaxprEqn, inputs: Sequence[Value]) -> list[Value]:
        results = [self.value(v.aval) for v in eqn.outvars]
        equation = Equation(eqn, tuple(inputs), tuple(results), len(self.equations))
        self.equations.append(equation)
        self.producers.update(dict.fromkeys(results, equation))
        return results

    def placed(self, result: Result) -> Result:
        """Returns a result whose placement names the devices of the mesh that is set, if any."""
        mesh, placement = self._mesh, result.placement
        if mesh is None:
            return result
        if placement is None:  # Under a mesh, eager JAX replicates what nobody places.
            return Result(result.value, NamedSharding(mesh, PartitionSpec()))
        if isinstance(placement, NamedSharding) and placement.mesh == mesh.abstract_mesh:
            kind = placement.memory_kind
            placement = NamedSharding(mesh, placement.spec, memory_kind=kind)
        return Result(result.value, placement)

    def finish(
        self,
        outputs: Iterable[Value],
        *,
        streams: Mapping[Value, str],
        abstract: Mapping[Value, str],
        looked_at: frozenset[str],
    ) -> Program:
        """Returns the program, without the equations that no output needs.

        Warns if the bits of an output in eager JAX depend on how an array is cut over a mesh.
        """
        kept: set[Value] = set()
        stack = list(outputs)
        while stack:
            value = stack.pop()
            if value in kept:
                continue
            kept.add(value)
            if equation := self.producers.get(value):
                kept.update(equation.outputs)
                stack += equation.inputs
        if by_order := sorted({self._by_order[v] for v in kept & self._by_order.keys()}):
            errors.warn(
                f"lazyinit: {', '.join(by_order)} of an array that is cut over a mesh: the bits "
                "that eager JAX gives depend on how the array is cut. lazyinit gives the bits that "
                "eager JAX gives on one device, on whatever devices a leaf is made."
            )
        equations = {id(e): self._anywhere(e) for v, e in self.producers.items() if v in kept}
        return Program(
            {v: self.avals[v] for v in kept},
            {v: equations[id(e)] for v, e in self.producers.items() if v in kept},
            {v: a for v, a in self.constants.items() if v in kept},
            frozenset(self.literals & kept),
            streams,
            abstract,
            bool(compat.setting("jax_enable_x64")),
            looked_at,
        )

    def _anywhere(self, equation: Equation) -> Equation:
        """Returns an equation as it would have been traced if no mesh had been set."""
        origin = self._unplaced.equation(equation.origin)
        return equation if origin is equation.origin else replace(equation, origin=origin)
