"""An initialization as a program: numbered values and the equations between them.

A value is *small* if it is a scalar or a PRNG key (or a short array of keys), and all that it is
computed from is small, too.
"""

import itertools
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit import compat, errors
from lazyinit.compat import Fact
from lazyinit.program.ancestry import holds_for_ancestors, walk_back
from lazyinit.program.fingerprint import fingerprint_params
from lazyinit.program.separable import idle_inputs, is_separable

Value: TypeAlias = int  # The number of a value (an input, a constant, an output) in a program.
Array: TypeAlias = Any  # jax.Array, numpy or a Python scalar: whatever JAX computes with.

_SMALL_WORDS = 1024  # The most elements of an array of keys that is still evaluated eagerly.


@dataclass(frozen=True, slots=True)
class Equation:
    """One top-level equation, over numbered values.

    Attributes:
      origin: what JAX traced: the primitive, its parameters and context.
      inputs: the values that it takes.
      outputs: the values that it computes; ``-1`` for an output that a narrowed equation dropped.
      index: its place in the program.
      idle: the positions of inputs that the wanted outputs do not depend on. The equation still
        runs whole, which keeps the bits of eager JAX, but with zeros in place of these inputs.
    """

    origin: jex.JaxprEqn
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    index: int
    idle: frozenset[int] = frozenset()

    @property
    def needed(self) -> Sequence[Value]:
        """The inputs that are not idle."""
        return [v for n, v in enumerate(self.inputs) if n not in self.idle]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An initialization traced once. Compared by identity.

    Attributes:
      avals: shape, dtype and weak type of each value.
      producers: the equation that gives each value, if one does.
      constants: values known when it was traced (literals, closed-over arrays).
      literals: the constants that were written into equations as scalars.
      streams: the name of the stream of each input that is a root key.
      abstract: a name, for messages, of each input of which only a shape was given.
      x64: whether 64-bit types were on.
      looked_at: the names of the streams behind values that Python code looked at, in an ``if``
        for example: with another key the program might be a different one.
      stable: the digest of the program, once ``stable.digest`` has computed it.
    """

    avals: Mapping[Value, Any]
    producers: Mapping[Value, Equation]
    constants: Mapping[Value, Array]
    literals: frozenset[Value]
    streams: Mapping[Value, str]
    abstract: Mapping[Value, str]
    x64: bool
    looked_at: frozenset[str]
    stable: list[bytes] = field(default_factory=list)  # At most one.
    _small: dict[Value, bool] = field(default_factory=dict)
    _constant: dict[Value, bool] = field(default_factory=dict)  # Counts of keys: one long chain.
    _on_keys: dict[bool, dict[Value, bool]] = field(default_factory=dict)
    _narrowed: dict[tuple[int, frozenset[Value], bool], Equation] = field(default_factory=dict)
    _idled: dict[tuple[int, frozenset[Value]], Equation] = field(default_factory=dict)
    _pickled: list[tuple[bytes, bool]] = field(default_factory=list)  # At most one.
    _traced: list[bool] = field(default_factory=list)  # At most one.
    _fingerprints: dict[Any, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (jax.__version__, self.pickled()[0])

    def pickled(self) -> tuple[bytes, bool]:
        """Pickles the parts of the program that can be; also returns whether those are all."""
        if not self._pickled:
            try:
                whole = self._dumps(self.producers, self.constants)
                self._pickled.append((whole, True))
            except Exception:  # Whatever pickle raises: each part is tried alone, below.
                equations = {e.index: compat.pickling_problem(e) for e in self.producers.values()}
                producers = {v: e for v, e in self.producers.items() if not equations[e.index]}
                constants = {
                    v: c for v, c in self.constants.items() if not compat.pickling_problem(c)
                }
                self._pickled.append((self._dumps(producers, constants), False))
        return self._pickled[0]

    def _dumps(
        self, producers: Mapping[Value, Equation], constants: Mapping[Value, Array]
    ) -> bytes:
        fields = (self.avals, producers, constants, self.literals, self.streams)
        return compat.dumps((*fields, self.abstract, self.x64, self.looked_at))

    @property
    def is_traced(self) -> bool:
        """Whether it was traced within another trace (a jit, a vmap), and uses its values."""
        if not self._traced:  # Kept, as each leaf asks, and there may be many constants.
            self._traced.append(any(map(compat.is_tracer, self.constants.values())))
        return self._traced[0]

    def is_small(self, value: Value) -> bool:
        """Tells whether a value, and each value that it is made of, is a key or a scalar."""

        def verdict(v: Value) -> bool | Sequence[Value]:
            if not _is_small(self.avals[v]) or v in self.abstract:
                return False
            return self.producers[v].inputs if v in self.producers else True

        return holds_for_ancestors(value, verdict, self._small)

    def is_constant(self, value: Value) -> bool:
        """Tells whether a value is computed from constants alone, as a count of ``nnx.Rngs`` is."""

        def verdict(v: Value) -> bool | Sequence[Value]:
            return self.producers[v].inputs if v in self.producers else v in self.constants

        return holds_for_ancestors(value, verdict, self._constant)

    def on_keys_alone(self, value: Value, *, drawn: bool) -> bool:
        """Tells whether a value is computed from root keys, literals and constant integers alone.

        Args:
          value: any value of the program.
          drawn: whether the value is drawn, not replayed (see ``narrowed``).
        """

        def verdict(v: Value) -> bool | Sequence[Value]:
            if v in self.producers:
                return self.narrowed(self.producers[v], frozenset([v]), drawn=drawn).inputs
            # A count of nnx.Rngs is a constant. Integers are exact, whatever they are fused with.
            is_count = v in self.constants and self.is_small(v) and _is_integer(self.avals[v])
            return v in self.literals or v in self.streams or is_count

        return holds_for_ancestors(value, verdict, self._on_keys.setdefault(drawn, {}))

    def streams_of(self, value: Value) -> frozenset[str]:
        """Returns the names of the streams whose root keys a value depends on."""
        met = walk_back(value, self.producers, self.is_constant)
        return frozenset(self.streams[v] for v in met if v in self.streams)

    def made_from(self, value: Value, key: Value) -> bool:
        """Tells whether a value is computed from one given key and from constants alone."""
        inputs = self.ancestors(value, [key])
        return not any(v in self.streams or v in self.abstract for v in inputs if v != key)

    def depends(self, value: Value, key: Value) -> bool:
        """Tells whether a value is computed from another one, which need not be a key."""
        return key in self.ancestors(value, [key])

    def fold_of(self, value: Value) -> tuple[Value, Value, Value] | None:
        """Finds the one key that a value is made from, if that is a root with a number folded in.

        Returns:
          The root key, the number (made of constants alone) and the folded key; ``None`` if the
          value needs anything else that is not constant.
        """
        folds: list[tuple[Value, Value, Value]] = []
        ends = walk_back(value, self.producers, lambda v: self.is_constant(v) or self._is_folded(v))
        for v in itertools.filterfalse(self.is_constant, ends):
            if v in self.streams or v in self.abstract or (folds and v in self.producers):
                return None
            if v in self.producers:
                root, number = self.producers[v].inputs
                folds.append((root, number, v))
        return folds[0] if folds else None

    def _is_folded(self, value: Value) -> bool:
        """Tells whether a value is a root key with a number folded in."""
        producer = self.producers[value]
        if not compat.is_fold(producer.origin):
            return False
        root, number = producer.inputs
        return (
            root in self.streams
            and self.avals[value].shape == ()  # Not split by an nnx.vmap around.
            and self.is_small(number)
            and self.is_constant(number)
        )

    def name_of(self, value: Value) -> str:
        """Returns a name for what makes a value, for people: ``normal``, ``full(0.0)``, ``scan``.

        It is the name of the last equation that has a body and takes a key; if there is none, of
        the last equation with a body; if there is none, of the last equation.
        """
        named = ""
        last = producer = self.producers.get(value)
        while producer is not None:
            if compat.bodies(producer.origin):
                title = compat.title(producer.origin).strip("_")
                if any(is_key(self.avals[v]) for v in producer.inputs):
                    return title
                named = named or title
            widest = max(producer.inputs, key=lambda v: self.avals[v].size, default=-1)
            if widest in self.literals and Fact.BROADCAST in compat.facts(producer.origin):
                return named or f"full({self.constants[widest]})"
            producer = self.producers.get(widest)
        return named or ("constant" if last is None else last.origin.primitive.name)

    def ancestors(self, value: Value, stops: Collection[Value] = ()) -> Iterator[Value]:
        """Yields the inputs and constants that a value is made of; stops count as inputs."""
        return walk_back(value, self.producers, stops.__contains__)

    def narrowed(self, equation: Equation, wanted: frozenset[Value], *, drawn: bool) -> Equation:
        """Drops what only the unwanted outputs of an equation need, where that changes no bit.

        Args:
          equation: an equation of this program.
          wanted: the outputs to keep.
          drawn: whether these outputs are drawn, not replayed.

        Returns:
          The narrowed equation, or the equation as it is where a bit might change.
        """
        unwanted = any(v not in wanted for v in equation.outputs)
        if not unwanted or not compat.bodies(equation.origin):
            return equation
        memo = (equation.index, wanted, drawn)
        if memo not in self._narrowed:
            self._narrowed[memo] = _narrow(equation, wanted, drawn)
        return self._narrowed[memo]

    def idled(self, equation: Equation, wanted: frozenset[Value]) -> Equation:
        """Marks those inputs of an equation as idle that its wanted outputs do not depend on."""
        memo = (equation.index, wanted)
        if memo not in self._idled:
            those = [v in wanted for v in equation.outputs]
            idle = idle_inputs(equation.origin, those)
            self._idled[memo] = replace(equation, idle=idle) if idle else equation
        return self._idled[memo]

    def fingerprint(self, origin: jex.JaxprEqn) -> Any:
        """Returns a hashable stand-in for the parameters of one of its (narrowed) equations."""
        return fingerprint_params(origin.params, self._fingerprints)


def _unpickled(version: str, pickled: bytes) -> Program:
    if version != jax.__version__:
        raise errors.PicklingError(
            f"a pickled lazy tree: wanted one that jax {jax.__version__} recorded, got one of jax "
            f"{version}, whose equations may mean something else. Record the model again."
        )
    return Program(*pickle.loads(pickled))


def _narrow(equation: Equation, wanted: frozenset[Value], drawn: bool) -> Equation:
    those = [v in wanted for v in equation.outputs]
    is_alone = is_separable(equation.origin, those, drawn=drawn)
    origin = compat.narrow(equation.origin, those) if is_alone else None
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


def is_key(x: Any) -> bool:
    """Tells whether ``x``, an array or an abstract value, has typed PRNG keys as elements."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _is_integer(aval: Any) -> bool:
    return not is_key(aval) and jnp.issubdtype(aval.dtype, jnp.integer)


def _is_small(aval: Any) -> bool:
    if is_key(aval) or aval.dtype == np.uint32:
        return aval.size <= _SMALL_WORDS
    return aval.size <= 1
