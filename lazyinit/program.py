"""An initialization, traced once: its equations, slices of them, and signatures of slices.

A traced initialization is one long list of equations, from which each leaf needs a few. The
backward *slice* of a leaf holds just those. It is cut where it meets *small* values, PRNG keys
and scalars: they are evaluated eagerly, once, and handed in. What is left is a function from
keys to an array whose structure repeats from layer to layer. Slices of the same structure
have equal *signatures*, so that one compiled program makes all of their leaves.

The bits are those of eager JAX, which compiles every top-level equation alone. A slice keeps
them by an optimization barrier behind each equation: XLA may not fuse across it, so no multiply
and add become one rounding. For the same reason an equation with a body (a ``jit``, a ``scan``)
stays whole, unless what is wanted of it depends on keys alone: there is no arithmetic on data in
it then whose rounding could change with what is left out.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.fingerprint import fingerprint, fingerprint_constant
from lazyinit.params import Key

Value: TypeAlias = int  # The number of a value (an input, a constant, an output) in a program.
Array: TypeAlias = Any  # jax.Array, numpy or a Python scalar: whatever JAX computes with.

_SMALL_WORDS = 1024  # uint32 words in an array of keys that is still evaluated eagerly.


@dataclass(frozen=True, slots=True)
class Equation:
    """One top-level equation, over numbered values.

    Attributes:
      origin: what JAX traced: the primitive, its parameters and context.
      inputs: the values that it takes.
      outputs: the values that it gives; ``-1`` for what a narrowed equation gives no more.
      index: its place in the program.
    """

    origin: jex.JaxprEqn
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    index: int


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An initialization traced once. Compared by identity.

    Attributes:
      avals: shape, dtype and weak type of each value.
      producers: the equation that gives each value, if one does.
      constants: values known when it was traced (literals, closed-over arrays).
      literals: those of them that stood in the equations as scalars.
      streams: the root keys among the inputs, by the name of the stream.
      abstract: the inputs of which only a shape was given, with a name for messages.
      x64: whether 64-bit types were on.
    """

    avals: Mapping[Value, Any]
    producers: Mapping[Value, Equation]
    constants: Mapping[Value, Array]
    literals: frozenset[Value]
    streams: Mapping[Value, str]
    abstract: Mapping[Value, str]
    x64: bool
    _small: dict[Value, bool] = field(default_factory=dict)
    _on_keys: dict[Value, bool] = field(default_factory=dict)
    _narrowed: dict[tuple[int, frozenset[Value]], Equation] = field(default_factory=dict)

    def is_small(self, value: Value) -> bool:
        """Tells whether a value is a key or a scalar, and so is all that it is made of."""

        def verdict(v: Value) -> bool | Sequence[Value]:
            if not _is_small(self.avals[v]) or v in self.abstract:
                return False
            return self.producers[v].inputs if v in self.producers else True

        return _holds_for_ancestors(value, verdict, self._small)

    def on_keys_alone(self, value: Value) -> bool:
        """Tells whether a value depends on keys and literals alone, on no input data."""

        def verdict(v: Value) -> bool | Sequence[Value]:
            if v in self.producers:
                return self.narrowed(self.producers[v], frozenset([v])).inputs
            return v in self.literals or v in self.streams

        return _holds_for_ancestors(value, verdict, self._on_keys)

    def streams_of(self, value: Value) -> frozenset[str]:
        """Returns the names of the streams whose root keys a value depends on."""
        return frozenset(self.streams[v] for v in self._ancestors(value, -1) if v in self.streams)

    def made_from(self, value: Value, key: Value) -> bool:
        """Tells whether a value is a function of one key, of constants, and of nothing else."""
        inputs = self._ancestors(value, key)
        return not any(v in self.streams or v in self.abstract for v in inputs if v != key)

    def name_of(self, value: Value) -> str:
        """Returns a name for what makes a value: that of its last equation, for people."""
        producer = self.producers.get(value)
        if producer is None:
            return "constant"
        return str(producer.origin.params.get("name", producer.origin.primitive.name))

    def _ancestors(self, value: Value, stop: Value) -> Iterator[Value]:
        """Yields the values that a value is computed from and that nothing computes, or ``stop``."""
        seen = {value}
        stack = [value]
        while stack:
            v = stack.pop()
            producer = self.producers.get(v)
            if producer is None or v == stop:
                yield v
                continue
            fresh = [i for i in producer.inputs if i not in seen]
            seen.update(fresh)
            stack += fresh

    def narrowed(self, equation: Equation, wanted: frozenset[Value]) -> Equation:
        """Returns the equation less what only its unwanted outputs need."""
        unwanted = any(v not in wanted for v in equation.outputs)
        if not unwanted or not compat.bodies(equation.origin):
            return equation
        memo = (equation.index, wanted)
        if memo not in self._narrowed:
            self._narrowed[memo] = _narrow(equation, wanted)
        return self._narrowed[memo]


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a program that makes one value from a key: the ``init_fn`` of a leaf.

    Attributes:
      program: the initialization that it is a part of.
      output: the value that it makes.
      key: the value that is its key, where a parameter's own ``init_fn`` was noted; else ``-1``:
        the slice then starts from the root keys.
      label: what to call it: ``normal(0.02)``.
    """

    program: Program
    output: Value
    key: Value = -1
    label: str = ""

    def __call__(self, key: Any = None) -> Any:
        """Makes the value eagerly, equation by equation.

        Args:
          key: what ``RngPath.key`` returns: a key, or a dict of root keys by stream.

        Returns:
          The array, unsharded.
        """
        work = gather([self])
        values = SmallValues(self.program, *_as_roots(self, key))
        return work.run([values[v] for v in work.inputs], barrier=False)[0]


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
        for equation in self.equations:
            results = compat.bind(equation.origin, *(env[v] for v in equation.inputs))
            if barrier and not any(is_key(x) for x in results):
                results = jax.lax.optimization_barrier(list(results))
            env.update(zip(equation.outputs, results, strict=True))
        return [env[v] for v in self.outputs]

    def signature(self) -> tuple[Any, ...]:
        """Returns a hashable value that two works share just if one program serves both."""
        number = {v: n for n, v in enumerate(self.inputs)}
        steps = []
        for equation in self.equations:
            taken = tuple(number[v] for v in equation.inputs)
            for v in equation.outputs:
                number[v] = len(number)
            origin = equation.origin
            steps.append((origin.primitive, fingerprint(origin.params), origin.ctx, taken))
        avals = tuple(_aval_key(self.program.avals[v]) for v in self.inputs)
        return (self.program.x64, avals, tuple(steps), tuple(number[v] for v in self.outputs))


def gather(slices: Sequence[Slice]) -> Work:
    """Collects the equations that the slices (of one program) need, each once, and their inputs."""
    program = slices[0].program
    outputs = tuple(s.output for s in slices)
    keys = {s.key for s in slices}
    wanted: dict[int, set[Value]] = {}
    queue: list[int] = []  # Indices, negated: every consumer comes before its producer.
    equations: dict[int, Equation] = {}
    inputs: dict[Value, None] = {}

    def want(value: Value) -> None:
        producer = program.producers.get(value)
        if producer is None or value in keys or (value not in outputs and program.is_small(value)):
            inputs[value] = None
            return
        if producer.index not in wanted:
            wanted[producer.index] = set()
            equations[producer.index] = producer
            heapq.heappush(queue, -producer.index)
        wanted[producer.index].add(value)

    for value in outputs:
        want(value)
    while queue:
        index = -heapq.heappop(queue)
        narrowed = program.narrowed(equations[index], frozenset(wanted[index]))
        if all(program.on_keys_alone(v) for v in narrowed.inputs):
            equations[index] = narrowed
        for value in equations[index].inputs:
            want(value)
    ordered = tuple(equations[i] for i in sorted(equations))
    return Work(program, ordered, tuple(inputs), outputs)


class SmallValues:
    """Keys and scalars of a program under given root keys, each evaluated eagerly, once.

    Equal computations on equal values are run once: each layer scales by the same
    ``sqrt(1 / fan_in)``.
    """

    def __init__(self, program: Program, roots: Mapping[str, Any], given: Mapping[Value, Any]):
        """Takes the root keys by stream, and values that are known already."""
        self._program = program
        self._number: dict[Value, Any] = {}  # Equal numbers, equal values.
        self._arrays: dict[Any, Any] = {}
        self._done: dict[Any, list[Any]] = {}
        for value, stream in program.streams.items():
            if stream in roots:
                self._set(value, ("root", value), roots[stream])
        for value, array in given.items():
            self._set(value, ("given", value), array)

    def _set(self, value: Value, number: Any, array: Any) -> None:
        self._number[value] = number
        self._arrays.setdefault(number, array)

    def __getitem__(self, value: Value) -> Any:
        """Returns the array of one value, computing what it needs."""
        program = self._program
        stack = [value]
        while stack:
            v = stack[-1]
            if v in self._number:
                stack.pop()
            elif v in program.constants:
                constant = program.constants[v]
                self._set(v, fingerprint_constant(constant, program.avals[v]), constant)
            else:
                equation = program.producers[v]
                missing = [i for i in equation.inputs if i not in self._number]
                if missing:
                    stack += missing
                else:
                    self._run(equation)
        return self._arrays[self._number[value]]

    def _run(self, equation: Equation) -> None:
        numbers = tuple(self._number[i] for i in equation.inputs)
        call = (equation.origin.primitive, fingerprint(equation.origin.params), numbers)
        if call not in self._done:
            arrays = [self._arrays[n] for n in numbers]
            results = compat.bind(equation.origin, *arrays)
            self._done[call] = [(call, n) for n in range(len(results))]
            self._arrays.update(zip(self._done[call], results, strict=True))
        self._number.update(zip(equation.outputs, self._done[call], strict=True))


def trace(
    fn: Callable[[Mapping[str, Any], Sequence[Any]], Sequence[Any]],
    keys: Mapping[str, Key],
    abstract: Sequence[tuple[str, jax.ShapeDtypeStruct]] = (),
) -> tuple[Program, list[Value]]:
    """Traces an initialization, allocating nothing.

    Args:
      fn: takes root keys by stream and the abstract inputs, and returns arrays.
      keys: the root keys.
      abstract: name and shape of each input that has no value.

    Returns:
      The program, and the value of each array that ``fn`` returned. The program has all the
      equations that these need, and no others.
    """
    roots = {stream: key.array() for stream, key in keys.items()}
    closed = jax.make_jaxpr(fn)(roots, [struct for _, struct in abstract])
    names = [*sorted(roots), *(name for name, _ in abstract)]
    builder = _Builder()
    env = dict(zip(closed.jaxpr.invars, map(builder.value, closed.in_avals), strict=True))
    inputs = dict(zip(env.values(), names, strict=True))
    outputs = builder.inline(closed.jaxpr, closed.consts, env)
    streams = {v: name for v, name in inputs.items() if v < len(roots)}
    return (
        builder.finish(outputs, streams, {v: n for v, n in inputs.items() if v not in streams}),
        outputs,
    )


class _Builder:
    """Numbers the values of a jaxpr, with what eager JAX runs step by step laid out in steps."""

    def __init__(self) -> None:
        self.avals: list[Any] = []
        self.equations: list[Equation] = []
        self.producers: dict[Value, Equation] = {}
        self.constants: dict[Value, Any] = {}
        self.literals: set[Value] = set()

    def value(self, aval: Any) -> Value:
        self.avals.append(aval)
        return len(self.avals) - 1

    def constant(self, aval: Any, array: Any) -> Value:
        value = self.value(aval)
        self.constants[value] = array
        return value

    def atom(self, atom: Any, env: dict[jex.Var, Value]) -> Value:
        if not isinstance(atom, jex.Literal):
            return env[atom]
        value = self.constant(atom.aval, atom.val)
        if np.ndim(atom.val) == 0:
            self.literals.add(value)
        return value

    def inline(
        self, jaxpr: jex.Jaxpr, consts: Iterable[Any], env: dict[jex.Var, Value]
    ) -> list[Value]:
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = self.constant(var.aval, const)
        for eqn in jaxpr.eqns:
            inputs = [self.atom(a, env) for a in eqn.invars]
            if body := compat.transparent_body(eqn):
                inner, inner_consts = body
                results = self.inline(
                    inner, inner_consts, dict(zip(inner.invars, inputs, strict=True))
                )
            else:
                results = [self.value(v.aval) for v in eqn.outvars]
                equation = Equation(eqn, tuple(inputs), tuple(results), len(self.equations))
                self.equations.append(equation)
                self.producers.update(dict.fromkeys(results, equation))
            env.update(zip(eqn.outvars, results, strict=True))
        return [self.atom(a, env) for a in jaxpr.outvars]

    def finish(
        self, outputs: Iterable[Value], streams: Mapping[Value, str], abstract: Mapping[Value, str]
    ) -> Program:
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
        return Program(
            {v: self.avals[v] for v in kept},
            {v: e for v, e in self.producers.items() if v in kept},
            {v: a for v, a in self.constants.items() if v in kept},
            frozenset(self.literals & kept),
            streams,
            abstract,
            bool(jax.config.read("jax_enable_x64")),
        )


def _narrow(equation: Equation, wanted: frozenset[Value]) -> Equation:
    origin = compat.narrow(equation.origin, [v in wanted for v in equation.outputs])
    if origin is None:
        return equation
    number: dict[Any, Value] = {}
    literals = []
    for atom, value in zip(equation.origin.invars, equation.inputs, strict=True):
        if isinstance(atom, jex.Literal):
            literals.append((atom, value))
        else:
            number[atom] = value
    number.update(zip(equation.origin.outvars, equation.outputs, strict=True))
    inputs = tuple(
        next(v for a, v in literals if a is x) if isinstance(x, jex.Literal) else number[x]
        for x in origin.invars
    )
    outputs = tuple(number.get(v, -1) for v in origin.outvars)
    return Equation(origin, inputs, outputs, equation.index)


def _holds_for_ancestors(
    value: Value, verdict: Callable[[Value], bool | Sequence[Value]], memo: dict[Value, bool]
) -> bool:
    """Decides a property that a value has itself (a bool) or from all of its inputs."""
    stack = [value]  # No recursion: the forward pass of a deep model is one long chain.
    while stack:
        v = stack[-1]
        inputs = memo[v] if v in memo else verdict(v)
        if isinstance(inputs, bool):
            memo[v] = inputs
            stack.pop()
        elif unknown := [i for i in inputs if i not in memo]:
            stack += unknown
        else:
            memo[v] = all(memo[i] for i in inputs)
    return memo[value]


def is_key(x: Any) -> bool:
    """Tells whether an array or a value's type is one of typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_small(aval: Any) -> bool:
    if is_key(aval) or aval.dtype == np.uint32:
        return aval.size <= _SMALL_WORDS
    return aval.size == 1


def _aval_key(aval: Any) -> tuple[Any, ...]:
    return aval.shape, aval.dtype, getattr(aval, "weak_type", False)


# Operations that give each element of their output from the same elements of their inputs, or
# move elements, or draw random bits: whatever cuts an array up, its elements stay as they are.
_ORDER_FREE = frozenset(
    """abs add and and_invert atan2 bessel_i0e bessel_i1e bitcast_convert_type broadcast
    broadcast_in_dim cbrt ceil clamp concatenate convert_element_type copy copy_p cos cosh device_put
    digamma div dynamic_slice dynamic_update_slice eq eq_to erf erf_inv erfc exp exp2 expand_dims
    expm1 floor ge gt imag integer_pow iota is_finite le lgamma log log1p logistic lt max min mul
    ne neg nextafter not optimization_barrier or pad population_count pow random_bits random_clone
    random_fold_in random_gamma random_seed random_split random_unwrap random_wrap real
    reduce_and reduce_max reduce_min reduce_or reduce_precision rem reshape rev round rsqrt select_n
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh slice split sqrt square
    squeeze stop_gradient sub tan tanh threefry2x32 transpose xor
    jit pjit cond while scan custom_jvp_call custom_vjp_call closed_call core_call remat2
    checkpoint""".split()
)


def is_order_free(work: Work) -> bool:
    """Tells whether a work has no sum, product or the like whose rounding depends on order."""

    def free(equation: jex.JaxprEqn) -> bool:
        return equation.primitive.name in _ORDER_FREE and all(
            free(inner)
            for body in compat.bodies(equation)
            for inner in (body.jaxpr if isinstance(body, jex.ClosedJaxpr) else body).eqns
        )

    return all(free(equation.origin) for equation in work.equations)
