"""Works that give each element from its index alone, as programs that know no shape.

Most initializers draw random bits and change them element by element. Threefry gives the bits of
an element from its index (under ``jax_threefry_partitionable``), so any run of elements can be
made by itself, and one compiled program serves every shape and every sharding: a model needs as
many programs as it has kinds of initializer.

The steps are those of the work, in its order, with a barrier wherever the work has one: XLA fuses
in each stretch just what it fuses in eager JAX, so that the bits are the same.
"""

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.fingerprint import fingerprint
from lazyinit.making.limits import SHORT
from lazyinit.making.threefry import threefry2x32
from lazyinit.program import is_key
from lazyinit.slices import Work

_SMALL = 1024  # Elements of a value that is made whole beside the elements: keys, scalars.

# Every element of the output is made of the elements of the inputs at its place.
_BY_ELEMENT = frozenset(
    """
abs add and atan2 bitcast_convert_type cbrt ceil clamp convert_element_type copy copy_p cos cosh
div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt
max min mul ne neg nextafter not or population_count pow reduce_precision rem round rsqrt select_n
shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub
tan tanh xor
""".split()  # noqa: SIM905 (a list of fifty strings is harder to read)
)
# XLA's CPU compiler has them in two forms, for vectors and for single elements, whose last bits
# differ; which elements of an array of fewer than ``limits.SHORT`` get which depends on its size.
_IN_TWO_FORMS = frozenset(["exp", "exp2", "expm1", "log", "log1p", "logistic", "pow", "tanh"])
# The output has the elements of the input in the same order, if it has as many.
_RESHAPING = frozenset(["reshape", "squeeze", "broadcast_in_dim"])


@dataclass(frozen=True, slots=True)
class Ref:
    """A value that a step takes.

    Attributes:
      number: which value, counted from the inputs of the work on; ``-1`` for a constant.
      constant: a NumPy array of no dimensions, if it is one.
      is_elements: whether it stands for all elements of the leaf.
    """

    number: int
    constant: Any = None  # Any: NumPy's arrays are not compared by ==.
    is_elements: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One operation.

    Attributes:
      kind: ``"whole"`` (an equation on keys and scalars), ``"elements"`` (one on a run of
        elements), ``"bits"`` (random ones for a run of elements) or ``"barrier"``.
      equation: what to run; ``None`` for a barrier.
      inputs: what it takes.
    """

    kind: str
    equation: Any
    inputs: tuple[Ref, ...]


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A work that makes one leaf, each element from its index.

    Attributes:
      steps: what to run.
      output: the value that is the leaf. Without steps, an input: all elements are that value.
      dtype: of the leaf.
      signature: a hashable value that two of these share just if one program serves both.
    """

    steps: tuple[Step, ...]
    output: Ref
    dtype: Any
    signature: Any

    @classmethod
    def of(cls, work: Work) -> "Elementwise | None":
        """Returns a work in this form, ``None`` if it has no such."""
        aval = work.program.avals[work.outputs[0]]
        if len(work.outputs) != 1 or not _is_plain(aval):
            return None
        builder = _Builder(aval.size, [work.program.avals[v] for v in work.inputs])
        env = {v: Ref(n) for n, v in enumerate(work.inputs)}
        try:
            for equation in work.equations:
                made = builder.top(equation.origin, [env[v] for v in equation.inputs])
                env.update(zip(equation.outputs, made, strict=True))
        except _NotElementwiseError:
            return None
        output = env[work.outputs[0]]
        if not output.is_elements:
            return None
        return cls.with_signature(tuple(builder.steps), output, aval.dtype)

    @classmethod
    def with_signature(cls, steps: tuple[Step, ...], output: Ref, dtype: Any) -> "Elementwise":
        """Returns the form with these steps."""
        return cls(steps, output, dtype, (tuple(map(_sign, steps)), _sign_ref(output)))

    def single(self, parts: Sequence[tuple[Any, ...]]) -> np.ndarray | None:
        """Returns the value of all elements, if that is one that is handed in.

        Args:
          parts: host values for the inputs of the work.
        """
        if self.steps:
            return None
        output = self.output
        return np.asarray(
            parts[output.number][0] if output.constant is None else output.constant, self.dtype
        ).reshape(())

    def run(self, inputs: Sequence[Any], high: Any, low: Any) -> Any:
        """Makes a run of elements, under a trace.

        Args:
          inputs: arrays for the inputs of the work.
          high: the upper word of each element's flat index in the leaf, uint32[n] with n > 1.
          low: the lower word.
        """
        values = list(inputs)
        for step in self.steps:
            args = [values[r.number] if r.constant is None else r.constant for r in step.inputs]
            match step.kind:
                case "whole":
                    values += compat.bind(step.equation, *map(_shaped, args, step.equation.invars))
                case "elements":
                    values += compat.bind(step.equation, *_alike(args, low.shape))
                case "bits":
                    made = _bits(args[0], step.equation.params["bit_width"], high, low)
                    # In a loop of its own: with what follows it runs out of registers, and takes
                    # 1.7 times as long. Bits are exact, whatever they are compiled with.
                    values.append(jax.lax.optimization_barrier(made))
                case _:
                    values += jax.lax.optimization_barrier(args)
        made = values[self.output.number] if self.output.constant is None else self.output.constant
        return _alike([made, low], low.shape)[0]


_KEPT = 1024  # Works whose form is remembered: those of equal layers are looked at once.
_known: collections.OrderedDict[Any, Elementwise | None] = collections.OrderedDict()
_lock = threading.Lock()


def elementwise(work: Work) -> Elementwise | None:
    """Returns a work in elementwise form, ``None`` if it has no such."""
    wanted = work.signature()
    with _lock:
        if wanted not in _known:
            _known[wanted] = Elementwise.of(work)
            if len(_known) > _KEPT:
                _known.popitem(last=False)
        _known.move_to_end(wanted)
        return _known[wanted]


def form_of_body(body: jex.ClosedJaxpr) -> Elementwise | None:
    """Returns the body of an equation, which XLA compiles as one, in this form, if it has it."""
    (aval,) = body.out_avals
    if not _is_plain(aval):
        return None
    builder = _Builder(aval.size, body.in_avals)
    inputs = [Ref(n) for n in range(len(body.in_avals))]
    try:
        (output,) = builder.body(body.jaxpr, body.consts, inputs)
    except _NotElementwiseError:
        return None
    if not output.is_elements:
        return None
    return Elementwise.with_signature(tuple(builder.steps), output, aval.dtype)


def _is_plain(aval: Any) -> bool:
    return bool(hasattr(aval, "shape") and aval.size and not aval.weak_type and not is_key(aval))


def _alike(args: Sequence[Any], shape: tuple[int, ...]) -> list[Any]:
    """Spreads single values over all elements, where some argument has them all."""
    has_all = [jnp.shape(x) == shape for x in args]
    return [
        x if whole else jnp.broadcast_to(jnp.reshape(x, ()), shape if any(has_all) else ())
        for x, whole in zip(args, has_all, strict=True)
    ]


def _shaped(x: Any, var: Any) -> Any:
    return x if jnp.shape(x) == var.aval.shape else jnp.reshape(x, var.aval.shape)


def _bits(key: Any, width: int, high: Any, low: Any) -> Any:
    """Returns what ``jax.random.bits`` has at these indices."""
    words = jax.random.key_data(key)
    first, second = threefry2x32((words[0], words[1]), high, low)
    if width == 64:
        upper, lower = (jax.lax.convert_element_type(x, np.uint64) for x in (first, second))
        return (upper << np.uint64(32)) | lower
    mixed = first ^ second
    return mixed if width == 32 else jax.lax.convert_element_type(mixed, f"uint{width}")


def _sign(step: Step) -> Any:
    equation = step.equation
    if equation is None:
        what = None
    elif step.kind == "bits":  # Its shape is the leaf's, and does not matter.
        what = equation.params["bit_width"]
    else:
        shapes = [v.aval.shape for v in equation.invars] if step.kind == "whole" else ()
        what = (equation.primitive, fingerprint(equation.params), equation.ctx, tuple(shapes))
    return step.kind, what, tuple(map(_sign_ref, step.inputs))


def _sign_ref(ref: Ref) -> Any:
    constant = None if ref.constant is None else (ref.constant.dtype, ref.constant.tobytes())
    return ref.number, constant, ref.is_elements


class _NotElementwiseError(Exception):
    pass


class _Builder:
    """Lays equations out in steps, with what is inside of a jit in its place."""

    def __init__(self, size: int, inputs: Sequence[Any]) -> None:
        """Takes how many elements the leaf has, and the avals of what is handed in."""
        self._size = size
        self._values = len(inputs)
        # Single values that differ from row to row of a sheet: what is, or may be, made of a key.
        self._by_row = {n for n, aval in enumerate(inputs) if not _is_single(aval)}
        self.steps: list[Step] = []

    def top(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        """Adds a top-level equation, with a barrier behind it if it has taken a step."""
        before = len(self.steps)
        made = self._equation(equation, inputs)
        if len(self.steps) == before or any(is_key(v.aval) for v in equation.outvars):
            return made
        fenced = [r for r in made if r.constant is None]
        numbered = iter(self._step("barrier", None, fenced, [r.is_elements for r in fenced]))
        return [next(numbered) if r.constant is None else r for r in made]

    def _step(
        self, kind: str, equation: Any, inputs: Sequence[Ref], gives: Sequence[bool]
    ) -> list[Ref]:
        self.steps.append(Step(kind, equation, tuple(inputs)))
        first, self._values = self._values, self._values + len(gives)
        if any(r.number in self._by_row for r in inputs):
            # One for each row is an array, of which XLA may compute an element in another form.
            if equation is not None and any(map(_is_rounded, gives, equation.outvars)):
                raise _NotElementwiseError
            self._by_row.update(range(first, self._values))
        return [Ref(first + n, None, is_elements) for n, is_elements in enumerate(gives)]

    def _equation(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        name = equation.primitive.name
        if not compat.is_anywhere(equation):
            raise _NotElementwiseError
        if name == "jit":
            body = equation.params["jaxpr"]
            return self.body(body.jaxpr, body.consts, inputs)
        if (inner := compat.transparent_body(equation)) is not None:
            return self.body(*inner, inputs)
        if any(r.is_elements for r in inputs):
            return self._on_elements(equation, inputs)
        if name == "random_bits" and self._covers(equation):
            if not compat.counts_by_index(equation):
                raise _NotElementwiseError
            return self._step("bits", equation, inputs, [True])
        if (
            name == "broadcast_in_dim"
            and self._covers(equation)
            and _size(equation.invars[0].aval) == 1
        ):
            return [replace(inputs[0], is_elements=True)]
        if all(_is_single(v.aval) for v in (*equation.invars, *equation.outvars)):
            # How many dimensions of 1 it has follows from the leaf's, and does not matter.
            if name in _RESHAPING:
                return [inputs[0]]
            if name in _BY_ELEMENT:
                return self._step("elements", equation, inputs, [False])
        if any(_size(v.aval) > _SMALL for v in (*equation.invars, *equation.outvars)):
            raise _NotElementwiseError
        return self._step("whole", equation, inputs, [False] * len(equation.outvars))

    def _on_elements(self, equation: jex.JaxprEqn, inputs: Sequence[Ref]) -> Sequence[Ref]:
        name, params = equation.primitive.name, equation.params
        pairs = zip(equation.invars, inputs, strict=True)
        is_single = all(r.is_elements or _size(a.aval) == 1 for a, r in pairs)
        if not self._covers(equation) or not is_single or params.get("sharding") is not None:
            raise _NotElementwiseError
        if name in _RESHAPING and (name != "reshape" or params["dimensions"] is None):
            return [inputs[0]]
        if name not in _BY_ELEMENT or (self._size < SHORT and name in _IN_TWO_FORMS):
            raise _NotElementwiseError
        return self._step("elements", equation, inputs, [True])

    def _covers(self, equation: jex.JaxprEqn) -> bool:
        return len(equation.outvars) == 1 and _size(equation.outvars[0].aval) == self._size

    def body(self, jaxpr: jex.Jaxpr, consts: Sequence[Any], inputs: Sequence[Ref]) -> list[Ref]:
        """Adds the equations of a body, with no barrier."""
        env: dict[Any, Ref] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            env[var] = _constant(const, var.aval)

        def taken(atom: Any) -> Ref:
            is_literal = isinstance(atom, jex.Literal)
            return _constant(atom.val, atom.aval) if is_literal else env[atom]

        for equation in jaxpr.eqns:
            made = self._equation(equation, [taken(a) for a in equation.invars])
            env.update(zip(equation.outvars, made, strict=True))
        return [taken(a) for a in jaxpr.outvars]


def _constant(value: Any, aval: Any) -> Ref:
    if is_key(aval) or aval.size != 1 or compat.is_tracer(value):
        raise _NotElementwiseError
    return Ref(-1, np.asarray(value, aval.dtype).reshape(()))


def _size(aval: Any) -> int:
    return getattr(aval, "size", _SMALL + 1)  # A mutable array, a token: nothing for us.


def _is_rounded(is_elements: bool, var: Any) -> bool:
    exact = is_key(var.aval) or not jnp.issubdtype(var.aval.dtype, jnp.inexact)
    return not (is_elements or exact)


def _is_single(aval: Any) -> bool:
    return _size(aval) == 1 and not is_key(aval)
