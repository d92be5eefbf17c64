"""Slices of a traced initialization: what each leaf needs of it, and what slices have in common.

A traced initialization is one long list of equations, from which each leaf needs a few. The
backward *slice* of a leaf holds just those. It is cut where it meets *small* values, PRNG keys
and scalars: they are evaluated eagerly, once, and handed in. What is left is a function from
keys to an array whose structure repeats from layer to layer. Slices of the same structure
have equal *signatures*, so that one compiled program makes all of their leaves.

The bits are those of eager JAX, which compiles every top-level equation alone. A slice keeps
them by an optimization barrier behind each equation: XLA may not fuse across it, so no multiply
and add become one rounding. For the same reason an equation with a body (a ``jit``, a ``scan``)
stays whole, unless its wanted outputs depend on keys alone: the body then does no arithmetic on
data, whose rounding could change once the other outputs are left out.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from lazyinit import compat
from lazyinit.program.equations import Array, Equation, Program, Value, is_key
from lazyinit.program.meaning import meaning
from lazyinit.program.small_values import SmallValues


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The part of a program that makes one value from a key: the ``init_fn`` of a leaf.

    Two slices are equal if they have equal labels and equal steps, even from two recordings.

    Attributes:
      program: the initialization that it is a part of.
      output: the value that it makes.
      key: the value that the slice takes as its key, where a parameter's own ``init_fn`` was
        recorded; ``-1`` if the slice starts from the root keys.
      label: its name, for people: ``normal(0.02)``.
      given: values that are other leaves. Their arrays are handed in, not computed.
    """

    program: Program
    output: Value
    key: Value = -1
    label: str = ""
    given: tuple[Value, ...] = ()

    def __call__(self, key: Any = None, *given: Any) -> Any:
        """Makes the value eagerly, equation by equation.

        Args:
          key: what ``RngPath.key`` returns: a key, or a dict of root keys by stream.
          *given: the arrays of the leaves that are handed in.

        Returns:
          The array, unsharded.
        """
        work = gather([self])
        with compat.enable_x64(self.program.x64):
            roots, known = _as_roots(self, key)
            known = {**known, **dict(zip(self.given, given, strict=True))}
            values = SmallValues(self.program, roots, known)
            made = work.run([values[v] for v in work.inputs], barrier=False)[0]
            return jnp.asarray(made)  # A constant may be NumPy's.

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slice) or self.label != other.label:
            return False
        if self.program is other.program:
            parts = [(s.output, s.key, s.given) for s in (self, other)]
            return parts[0] == parts[1]
        first, second = (meaning(s.program, s.output, s.key, s.given) for s in (self, other))
        return first == second

    def __hash__(self) -> int:
        return hash(self.label)

    def pickling_problem(self) -> str:
        """Returns why the leaf cannot be pickled, or ``""`` if it can."""
        if self.program.pickled()[1]:
            return ""
        work = gather([self])
        constants = [self.program.constants[v] for v in work.inputs if v in self.program.constants]
        return next(filter(None, map(compat.pickling_problem, (*work.equations, *constants))), "")


def _as_roots(made: Slice, key: Any) -> tuple[Mapping[str, Any], Mapping[Value, Any]]:
    if made.key >= 0:
        return {}, {made.key: key}
    if isinstance(key, Mapping):
        return key, {}
    return dict.fromkeys(made.program.streams.values(), key), {}


@dataclass(frozen=True, slots=True)
class Work:
    """Equations that make one or more leaves together, in program order.

    Attributes:
      program: where they come from.
      equations: what to run; equations with a body may be narrowed.
      inputs: the values to hand in: keys, small values, constants, abstract inputs.
      outputs: the leaves' values.
    """

    program: Program
    equations: tuple[Equation, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def run(self, inputs: Sequence[Array], *, barrier: bool) -> list[Array]:
        """Computes the outputs, eagerly or under a trace.

        Args:
          inputs: arrays for ``self.inputs``; keys typed, or raw if the program has them raw.
          barrier: whether to keep XLA from fusing across equations.
        """
        env = dict(zip(self.inputs, inputs, strict=True))
        last = {v: e.index for e in self.equations for v in (*e.needed, *e.outputs)}
        for equation in self.equations:
            taken = [
                jnp.zeros_like(self.program.avals[v]) if n in equation.idle else env[v]
                for n, v in enumerate(equation.inputs)
            ]
            results = compat.bind(equation.origin, *taken)
            if barrier and not any(is_key(x) for x in results):
                if len(results) > 1:  # XLA aborts where a whole top_k goes into one (jax 0.10.2).
                    results = [jax.lax.optimization_barrier(x) for x in results]
                results = jax.lax.optimization_barrier(list(results))
            env.update(zip(equation.outputs, results, strict=True))
            del results, taken
            # An array is freed once nothing needs it any more, as in eager JAX.
            for v in (*equation.needed, *equation.outputs):
                if last[v] == equation.index and v not in self.outputs:
                    env.pop(v, None)
        return [env[v] for v in self.outputs]

    @property
    def origins(self) -> Sequence[jex.JaxprEqn]:
        """The equations, as JAX traced them."""
        return [equation.origin for equation in self.equations]

    def keeps_all(self) -> bool:
        """Tells whether every result of its equations is used; a compiler drops unused ones."""
        needed = {v for e in self.equations for v in e.needed} | set(self.outputs)
        return all(v in needed for e in self.equations for v in e.outputs)

    def signature(self) -> tuple[Any, ...]:
        """Returns a hashable value; it is equal for two works that one compiled program serves."""
        number = {v: n for n, v in enumerate(self.inputs)}
        steps = []
        for equation in self.equations:
            taken = tuple(
                -1 if n in equation.idle else number[v] for n, v in enumerate(equation.inputs)
            )
            for v in equation.outputs:
                number[v] = len(number)
            origin = equation.origin
            params = self.program.fingerprint(origin)
            steps.append((origin.primitive, params, origin.ctx, taken))
        avals = tuple(_aval_key(self.program.avals[v]) for v in self.inputs)
        return (self.program.x64, avals, tuple(steps), tuple(number[v] for v in self.outputs))


def gather(slices: Sequence[Slice], *, drawn: bool = False, keys_apart: bool = False) -> Work:
    """Collects the equations that the slices need, each once, and their inputs.

    Args:
      slices: slices of one program.
      drawn: whether the work will be drawn: more can then be left out of it (see ``separable``).
      keys_apart: whether even the keys that are computed from a leaf's own key are handed in.
    """
    program = slices[0].program
    outputs = tuple(s.output for s in slices)
    keys = {s.key for s in slices if s.key >= 0}
    given = {value for s in slices for value in s.given}
    wanted: dict[int, set[Value]] = {}
    queue: list[int] = []  # Indices, negated: every consumer comes before its producer.
    equations: dict[int, Equation] = {}
    inputs: dict[Value, None] = {}

    def is_handed_in(value: Value) -> bool:
        if value not in program.producers or value in keys or value in given:
            return True
        if value in outputs or not program.is_small(value):
            return False
        if any(program.depends(value, leaf) for leaf in given):
            return False
        # A value made of a leaf's own key is computed here, as the leaf may get another key later.
        is_apart = keys_apart and is_key(program.avals[value])
        return is_apart or not any(program.depends(value, key) for key in keys)

    def want(value: Value) -> None:
        if is_handed_in(value):
            inputs[value] = None
            return
        producer = program.producers[value]
        if producer.index not in wanted:
            wanted[producer.index] = set()
            equations[producer.index] = producer
            heapq.heappush(queue, -producer.index)
        wanted[producer.index].add(value)

    for value in outputs:
        want(value)
    while queue:
        index = -heapq.heappop(queue)
        narrowed = program.narrowed(equations[index], frozenset(wanted[index]), drawn=drawn)
        # A given array may hold any data, even if it was computed from keys alone when recorded.
        is_narrow = not given and all(
            program.on_keys_alone(v, drawn=drawn) for v in narrowed.inputs
        )
        if is_narrow:
            equations[index] = narrowed
        elif not drawn:
            equations[index] = program.idled(equations[index], frozenset(wanted[index]))
        for value in equations[index].needed:
            want(value)
    ordered = tuple(equations[i] for i in sorted(equations))
    return Work(program, ordered, tuple(inputs), outputs)


def _aval_key(aval: Any) -> tuple[Any, ...]:
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


def is_order_free(work: Work) -> bool:
    """Tells whether a work has no sum, product or the like whose rounding depends on order."""
    return all(map(compat.is_order_free, work.origins))
