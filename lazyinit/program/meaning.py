"""Describes the steps that compute a value, alike for all recordings of the same model."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from lazyinit import compat
from lazyinit.program.equations import Equation, Program, Value, is_key


def meaning(
    program: Program,
    output: Value,
    key: Value,
    inputs: Sequence[Value] = (),
    *,
    told: Callable[[jex.JaxprEqn], Any] | None = None,
) -> Any:
    """Returns a hashable value that is equal exactly if two values are computed by the same steps.

    Args:
      program: the initialization.
      output: the value.
      key: the key that the steps start at; ``-1`` if they start at the root keys.
      inputs: other values that they start at; these are told apart by their order.
      told: returns a stand-in for an equation's parameters; by default a fingerprint, which
        means nothing in another process.
    """
    told = told or (lambda origin: (program.fingerprint(origin), origin.ctx))
    equations: dict[int, Equation] = {}
    number: dict[Value, int] = {}
    given = []
    stack = [output]
    seen = {output}
    while stack:
        value = stack.pop()
        is_handed_in = value == key or value in inputs
        equation = None if is_handed_in else program.producers.get(value)
        if equation is None:
            number[value] = len(given)
            place = inputs.index(value) if value in inputs else -1
            given.append(_of_given(program, value, key) if place < 0 else ("input", place))
            continue
        equations[equation.index] = equation
        fresh = [v for v in equation.inputs if v not in seen]
        seen.update(fresh)
        stack += fresh
    steps = []
    for _, equation in sorted(equations.items()):
        taken = tuple(number[v] for v in equation.inputs)
        number.update({v: len(number) + n for n, v in enumerate(equation.outputs)})
        origin = equation.origin
        steps.append((origin.primitive.name, told(origin), taken))
    return program.x64, tuple(given), tuple(steps), number[output]


def _of_given(program: Program, value: Value, key: Value) -> Any:
    if value == key:
        return "key"
    if value in program.streams:
        return "stream", program.streams[value]
    if value in program.abstract:
        return "shape", program.abstract[value]
    constant, aval = program.constants[value], program.avals[value]
    if compat.is_tracer(constant):
        return "traced", id(constant)
    with jax.ensure_compile_time_eval():
        array = np.asarray(jax.random.key_data(constant) if is_key(aval) else constant)
    shown = "" if array.ndim else str(array)  # For people.
    return str(aval), str(array.dtype), hashlib.sha256(array.tobytes()).digest(), shown
