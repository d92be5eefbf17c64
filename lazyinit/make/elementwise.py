"""The elementwise form of a work: a program that makes any elements, and knows no shape.

Most initializers draw random bits and change them element by element. Threefry gives the bits of
an element from its index (under ``jax_threefry_partitionable``). So any run of elements can be
made without the others, and one compiled program serves every shape and every sharding. A model
needs as many programs as it has kinds of initializers.

The steps are the equations of the work, in its order. Eager JAX compiles each equation alone, so
there is a barrier behind each. XLA then fuses what it fuses in eager JAX, and gives the same bits.
"""

import collections
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.make.steps import Builder, NotElementwiseError, Ref, Step, with_fences
from lazyinit.make.threefry import threefry2x32
from lazyinit.program.equations import is_key
from lazyinit.program.fingerprint import fingerprint
from lazyinit.program.slices import Work


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A work that makes one leaf, in a form that makes each element from its index.

    Attributes:
      steps: what to run.
      output: the value that is the leaf. If there are no steps, all elements have the value of
        one input, or of one constant.
      dtype: of the leaf.
      signature: a hashable value, which two forms have in common if one program serves both.
    """

    steps: tuple[Step, ...]
    output: Ref
    dtype: Any
    signature: Any

    @classmethod
    def of(cls, work: Work, *, rows: int = 0) -> "Elementwise | None":
        """Returns a work in this form; ``None`` if some element needs more than its index.

        Args:
          work: what makes the leaf.
          rows: how many keys the work takes in one array, one for each row of the leaf; ``0`` if
            it takes no such array. If there are rows, the form makes one of them, from one key.
        """
        aval = work.program.avals[work.outputs[0]]
        if len(work.outputs) != 1 or not _is_plain(aval):
            return None
        builder = Builder(aval.shape, [work.program.avals[v] for v in work.inputs], rows=rows)
        env = {v: Ref(n) for n, v in enumerate(work.inputs)}
        try:
            for equation in work.equations:
                made = builder.add(equation.origin, [env[v] for v in equation.inputs])
                env.update(zip(equation.outputs, made, strict=True))
        except NotElementwiseError:
            return None
        output = env[work.outputs[0]]
        if not output.is_elements:
            return None
        steps = with_fences(builder.steps, len(work.inputs))
        return cls.with_signature(steps, output, aval.dtype)

    @classmethod
    def with_signature(cls, steps: tuple[Step, ...], output: Ref, dtype: Any) -> "Elementwise":
        """Returns the form that has these steps."""
        return cls(steps, output, dtype, (tuple(map(_sign, steps)), _sign_ref(output)))

    def single(self, parts: Sequence[tuple[Any, ...]]) -> np.ndarray | None:
        """Returns the one value that all elements have; ``None`` if they have to be computed.

        Args:
          parts: host values for the inputs of the work.

        Returns:
          An array of no dimensions, in the leaf's dtype.
        """
        if self.steps:
            return None
        output = self.output
        return np.asarray(
            parts[output.number][0] if output.constant is None else output.constant, self.dtype
        ).reshape(())

    def run(
        self, inputs: Sequence[Any], by_row: Sequence[bool], high: Any, low: Any, zero: Any
    ) -> Any:
        """Makes rows of elements, under a trace.

        Args:
          inputs: arrays for the inputs of the work.
          by_row: for each input, whether it has one value for each row, along a first axis.
          high: the upper word of each element's flat index in the leaf, uint32[rows,columns].
          low: the lower word of the same.
          zero: uint32[], a zero, which is an argument so that XLA does not know its value.
        """
        values = list(map(_Value, inputs, by_row))

        def taken(ref: Ref) -> _Value:
            return values[ref.number] if ref.constant is None else _Value(ref.constant, False)

        for step in self.steps:
            values += _run_step(step, list(map(taken, step.inputs)), high, low, zero)
        return _alike([taken(self.output), _Value(low, True)], low.shape)[0]


class _Value(NamedTuple):
    """A value that a step takes or gives, in a program that makes rows of elements.

    Attributes:
      array: one of three things: all elements of the rows; one key or small array; or a key or
        small array for each row, stacked along a first axis.
      by_row: whether the value is, or is computed from, a key or small array for each row.
    """

    array: Any
    by_row: bool


_KEPT = 1024  # Works whose form is remembered, as many layers have equal works.
_known: collections.OrderedDict[Any, Elementwise | None] = collections.OrderedDict()
_lock = threading.Lock()


def elementwise_of(work: Work, *, rows: int = 0) -> Elementwise | None:
    """Returns what ``Elementwise.of`` returns, and remembers it."""
    wanted = work.signature(), rows
    with _lock:
        if wanted not in _known:
            _known[wanted] = Elementwise.of(work, rows=rows)
            if len(_known) > _KEPT:
                _known.popitem(last=False)
        _known.move_to_end(wanted)
        return _known[wanted]


def form_of_body(body: Any, *, rows: int = 0) -> Elementwise | None:
    """Returns the body of an equation in elementwise form; ``None`` if it has no such form.

    XLA compiles a body as one, so there are no barriers in it.

    Args:
      body: a jaxpr with its constants, and the avals of its inputs and its output.
      rows: as for ``Elementwise.of``.
    """
    (aval,) = body.out_avals
    if not _is_plain(aval):
        return None
    builder = Builder(aval.shape, body.in_avals, rows=rows)
    inputs = [Ref(n) for n in range(len(body.in_avals))]
    try:
        (output,) = builder.add_body(body.jaxpr, body.consts, inputs)
    except NotElementwiseError:
        return None
    if not output.is_elements:
        return None
    return Elementwise.with_signature(tuple(builder.steps), output, aval.dtype)


def _is_plain(aval: Any) -> bool:
    return bool(hasattr(aval, "shape") and aval.size and not aval.weak_type and not is_key(aval))


def _run_step(step: Step, args: Sequence[_Value], high: Any, low: Any, zero: Any) -> list[_Value]:
    arrays = [a.array for a in args]
    match step.kind:
        case "whole":
            made = _whole(step.equation, args)
        case "elements":
            made = compat.bind(step.equation, *_alike(args, low.shape))
        case "bits":
            bits = _bits(arrays[0], compat.bit_width(step.equation), high, low)
            # The bits get a loop of their own. One loop for them and for what follows would run out
            # of registers, and take 1.7 times as long. Bits are exact, however they are compiled.
            made = [jax.lax.optimization_barrier(bits)]
        case "fence":
            return [_Value(_fenced(a.array, zero), a.by_row) for a in args]
        case _:
            return list(map(_Value, jax.lax.optimization_barrier(arrays), [a.by_row for a in args]))
    by_row = any(a.by_row for a in args)
    return [_Value(array, by_row) for array in made]


def _fenced(x: Any, zero: Any) -> Any:
    """Returns ``x`` behind a fence.

    The operations on both sides may share a loop. But XLA can neither rewrite them together nor
    merge their roundings, because it does not know that the bits in between are combined with zero.
    """
    if x.ndim < 2 or x.dtype != np.float32:
        return jax.lax.optimization_barrier(x)
    bits = jax.lax.bitcast_convert_type(x, np.uint32)
    bits = jax.lax.bitwise_xor(bits, jax.lax.broadcast(zero, x.shape))
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _whole(equation: Any, args: Sequence[_Value]) -> Sequence[Any]:
    """Runs an equation on keys and small arrays, once for each row if an argument is by row."""

    def run(*arrays: Any) -> Sequence[Any]:
        shapes = [v.aval.shape for v in equation.invars]
        return compat.bind(equation, *map(jnp.reshape, arrays, shapes))

    axes = [0 if a.by_row else None for a in args]
    # Only these steps are under jax.vmap: with all of them, tracing took twice the time.
    return (jax.vmap(run, axes) if 0 in axes else run)(*(a.array for a in args))


def _alike(args: Sequence[_Value], shape: tuple[int, int]) -> list[Any]:
    """Broadcasts arguments to a common shape.

    That is the shape of all elements, if an argument has it. If not, it is one value for each row,
    if an argument is by row, and a single value otherwise.
    """
    has_all = [jnp.shape(a.array) == shape for a in args]
    to = shape if any(has_all) else shape[: any(a.by_row for a in args)]

    def spread(value: _Value) -> Any:
        own = shape[: value.by_row]
        return jax.lax.broadcast_in_dim(jnp.reshape(value.array, own), to, range(len(own)))

    return [a.array if whole else spread(a) for a, whole in zip(args, has_all, strict=True)]


def _bits(key: Any, width: int, high: Any, low: Any) -> Any:
    """Returns what ``jax.random.bits`` returns at these indices."""
    words = jax.random.key_data(key)
    first, second = threefry2x32((words[..., 0], words[..., 1]), high, low)
    if width == 64:
        upper, lower = (jax.lax.convert_element_type(x, np.uint64) for x in (first, second))
        return (upper << np.uint64(32)) | lower
    mixed = first ^ second
    return mixed if width == 32 else jax.lax.convert_element_type(mixed, f"uint{width}")


def _sign(step: Step) -> Any:
    equation = step.equation
    if equation is None:
        what = None
    elif step.kind == "bits":  # The shape in the equation is the leaf's, which does not matter.
        what = compat.bit_width(equation)
    else:
        shapes = [v.aval.shape for v in equation.invars] if step.kind == "whole" else ()
        what = (equation.primitive, fingerprint(equation.params), equation.ctx, tuple(shapes))
    return step.kind, what, tuple(map(_sign_ref, step.inputs))


def _sign_ref(ref: Ref) -> Any:
    constant = None if ref.constant is None else (ref.constant.dtype, ref.constant.tobytes())
    return ref.number, constant, ref.is_elements
