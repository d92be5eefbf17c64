"""The keys and scalars of a program, which are computed eagerly and handed to compiled programs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np

from lazyinit import compat
from lazyinit.meshes import on_one_device
from lazyinit.program.equations import Equation, Program, Value, is_key
from lazyinit.program.fingerprint import fingerprint_constant


class SmallValues:
    """Keys and scalars of a program under given root keys, each evaluated eagerly, once.

    Equal computations on equal values are run once: each layer scales by the same
    ``sqrt(1 / fan_in)``.
    """

    def __init__(
        self, program: Program, roots: Mapping[str, Any], given: Mapping[Value, Any]
    ) -> None:
        """Takes root keys by the name of their stream, and arrays of values known already."""
        self._program = program
        self._number: dict[Value, int] = {}  # Equal values have the same number.
        self._arrays: list[Any] = []  # The array of each number.
        self._constants: dict[Any, int] = {}
        self._done: dict[Any, list[int]] = {}
        for value, stream in program.streams.items():
            if stream in roots:
                self._number[value] = self._add(roots[stream])
        for value, array in given.items():
            self._number[value] = self._add(array)

    def _add(self, array: Any) -> int:
        self._arrays.append(array)
        return len(self._arrays) - 1

    def __getitem__(self, value: Value) -> Any:
        """Returns the array of a value, and computes first what it needs."""
        program = self._program
        stack = [value]
        while stack:
            v = stack[-1]
            if v in self._number:
                stack.pop()
            elif v in program.constants:
                constant = program.constants[v]
                same = fingerprint_constant(constant, program.avals[v])
                if same not in self._constants:
                    self._constants[same] = self._add(on_one_device(constant))
                self._number[v] = self._constants[same]
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
        origin = equation.origin
        params = self._program.fingerprint(origin)
        # The context says by which form of threefry a key is split.
        call = (origin.primitive, params, origin.ctx, numbers)
        if call not in self._done:
            arrays = [self._arrays[n] for n in numbers]
            results = _on_host(origin, arrays)
            if results is None:
                results = compat.bind(origin, *arrays)
            self._done[call] = [self._add(array) for array in results]
        self._number.update(zip(equation.outputs, self._done[call], strict=True))


def _on_host(equation: jex.JaxprEqn, arrays: Sequence[Any]) -> Sequence[Any] | None:
    """Indexes an array of keys, or counts, by NumPy; ``None`` for other equations.

    That compiles nothing, and takes microseconds where JAX takes most of a millisecond.
    """
    if any(map(compat.is_tracer, arrays)):
        return None
    index = compat.index_taken(equation)
    if index is None or not is_key(arrays[0]):
        return compat.counted(equation, arrays)
    words = np.asarray(jax.random.key_data(arrays[0]))[index]
    return [jax.random.wrap_key_data(jax.device_put(words), impl=jax.random.key_impl(arrays[0]))]
