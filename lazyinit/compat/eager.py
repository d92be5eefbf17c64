"""Tracing in the steps of eager JAX, with values that Python code may look at.

``jax.make_jaxpr`` differs from eager JAX in two ways that change what is computed. It inlines
``jit(inline=True)``, which eager JAX compiles as one. And it gives no values, so that Python
code cannot branch on one. ``EagerSteps`` is a trace that stands before the one of
``make_jaxpr`` and hands everything on to it: a jit as one equation, always; a function with a
derivative of its own as the call that eager JAX makes. Its values know what they are computed
from, so one that Python code looks at (``if``, ``int``, ``np.asarray``) is computed then and
there, eagerly, and is not kept.

This rests on names of JAX that are not public. Drop it when ``jax.make_jaxpr`` can be told not
to inline, and gives values on demand.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax._src import core, source_info_util

from lazyinit.compat.origins import CONSTANTS, ELSEWHERE, SCALARS, Origins
from lazyinit.compat.primitives import not_inlined
from lazyinit.compat.scalars import cast_by_xla

Array: TypeAlias = Any  # Whatever JAX computes with: arrays, numpy, Python scalars, tracers.


class TracedValue(core.Tracer):
    """A traced value that knows what it is computed from."""

    __slots__ = ("inner", "made_by", "origins")

    def __init__(self, trace: "EagerSteps", inner: Any, made_by: Any, origins: Origins) -> None:
        """Wraps a tracer.

        ``made_by`` says how its value is found: it is the value itself, or a call and the number of
        one of its results, or ``None`` if there is no value.
        """
        super().__init__(trace, inner.aval)
        self.inner, self.made_by, self.origins = inner, made_by, origins

    def to_concrete_value(self) -> Any:
        """Returns the value, or ``None`` where JAX can go on without."""
        # JAX asks this of any value, in passing, and could mostly go on without an answer. Eager
        # JAX chooses its path by constants, and by signed integers that are made of scalar ones
        # (``x ** jnp.int32(2)``), so it gets those; it gets all others only if it has to.
        if self._trace.answers_all:
            return None if self.origins.unknown else self.computed()
        if self.origins is not SCALARS or self.size > 1:
            return None
        is_cheap = self.dtype.kind == "i" or not _calls(self)
        return self.computed() if is_cheap else None

    def is_current(self) -> bool:
        """Tells whether it belongs to the trace that is current, not to one around it."""
        return self._trace is core.trace_ctx.trace

    def is_constant(self) -> bool:
        """Tells whether it depends on no key, and on no input without a value."""
        return not self.origins.known and not self.origins.unknown

    def computed(self) -> Any:
        """Returns the array that it stands for, computed now."""
        return self._trace.value_of(self)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        if self.origins.unknown:
            return super().__array__(*args, **kwargs)
        return np.asarray(self.computed(), *args, **kwargs)

    def __bool__(self) -> bool:
        return super().__bool__() if self.origins.unknown else bool(self.computed())

    def __int__(self) -> int:
        return super().__int__() if self.origins.unknown else int(self.computed())

    def __float__(self) -> float:
        return super().__float__() if self.origins.unknown else float(self.computed())

    def __complex__(self) -> complex:
        return super().__complex__() if self.origins.unknown else complex(self.computed())

    def __index__(self) -> int:
        return super().__index__() if self.origins.unknown else self.computed().__index__()

    def tolist(self) -> Any:
        """Returns the value as nested lists of Python numbers."""
        return super().tolist() if self.origins.unknown else self.computed().tolist()

    def item(self, *args: Any) -> Any:
        """Returns one element as a Python number."""
        if self.origins.unknown:
            return core.concrete_or_error(None, self, "The item() method was called.")
        return self.computed().item(*args)

    def _origin_msg(self) -> str:
        inputs = ", ".join(sorted(self.origins.unknown))
        where = str(source_info_util.current_name_stack())
        return f" It is computed from {inputs}{f', in {where}' if where else ''}."


@dataclass(slots=True, eq=False)
class _Call:
    """One call of a primitive, kept so that its results can be computed."""

    primitive: Any
    args: Sequence[Array]
    params: Mapping[str, Any]

    def run(self, args: Sequence[Array]) -> Sequence[Array]:
        """Runs it eagerly, whatever trace is current."""
        params = self.primitive.get_bind_params(self.params)
        with jax.ensure_compile_time_eval():
            out = self.primitive.bind(*args, **params)
        return out if self.primitive.multiple_results else [out]


class EagerSteps(core.Trace):
    """Hands everything on to the trace around it, in the steps that eager JAX takes.

    Attributes:
      looked_at: names of the root keys behind the values that Python code has looked at.
      answers_all: whether JAX's own code gets any value that it asks for.
      tapes: the recorded calls of initializers (see ``again``).
    """

    def __init__(self, around: Any, *, answers_all: bool) -> None:
        super().__init__()
        self._around = around
        self.requires_low = around.requires_low
        self.answers_all = answers_all
        self.looked_at: set[str] = set()
        self.tapes: dict[Any, Any] = {}
        self._heard: list[tuple[_Call, Sequence[Any]]] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[tuple[Any, Sequence[Any]]]]:
        """Yields a list that collects each call traced within the block, with its results."""
        before, self._heard = self._heard, []
        try:
            yield self._heard
        finally:
            self._heard = before

    def current(self) -> AbstractContextManager[Any]:
        """Returns a context in which this trace is the current one."""
        return core.set_current_trace(self)

    def known(self, name: str, tracer: Any, array: Array) -> Any:
        """Wraps an input whose value is known, unless that is itself traced."""
        if isinstance(array, core.Tracer):
            return TracedValue(self, tracer, None, ELSEWHERE)
        return TracedValue(self, tracer, array, Origins(known=frozenset([name])))

    def unknown(self, name: str, tracer: Any) -> Any:
        """Wraps an input of which only the shape is known."""
        return TracedValue(self, tracer, None, Origins(unknown=frozenset([name])))

    def unwrap(self, x: Any) -> Any:
        """Returns the outer tracer that a value of this trace stands for; else ``x`` itself."""
        return x.inner if isinstance(x, TracedValue) and x._trace is self else x

    def value_of(self, value: TracedValue) -> Array:
        """Computes a value eagerly, and frees each array on the way after its last use."""
        self.looked_at |= value.origins.known
        calls, uses = self._needed_by(value)
        results: dict[int, Sequence[Array]] = {}
        for call in calls:
            args = [_result(x.made_by, results) if self._is_mine(x) else x for x in call.args]
            for below in self._calls_below(call):
                uses[id(below)] -= 1
                if not uses[id(below)]:
                    del results[id(below)]
            results[id(call)] = call.run(args)
        found = _result(value.made_by, results)
        with jax.ensure_compile_time_eval():  # Else JAX would trace a number, and ask again.
            return found if isinstance(found, jax.Array) else jax.numpy.asarray(found)

    def _needed_by(self, value: TracedValue) -> tuple[list[_Call], Counter[int]]:
        """Returns the calls that make a value, in order, and by ``id`` how often each is used."""
        ordered: list[_Call] = []
        uses: Counter[int] = Counter()
        seen: set[int] = set()
        stack = [(call, False) for call in _calls(value)]
        while stack:
            call, is_ready = stack.pop()
            if is_ready:
                ordered.append(call)
            elif id(call) not in seen:
                seen.add(id(call))
                below = self._calls_below(call)
                uses.update(map(id, below))
                stack += [(call, True), *((other, False) for other in below)]
        return ordered, uses

    def _calls_below(self, call: _Call) -> list[_Call]:
        return [below for x in call.args if self._is_mine(x) for below in _calls(x)]

    def _is_mine(self, x: Any) -> bool:
        return isinstance(x, TracedValue) and x._trace is self

    def _origins(self, x: Any) -> Origins:
        """Returns what an input of an operation, of this trace or not, is computed from."""
        if self._is_mine(x):
            return x.origins
        if isinstance(x, core.Tracer):
            return ELSEWHERE
        return SCALARS if np.size(x) <= 1 else CONSTANTS

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        """Traces one operation, and notes how its results are made."""
        params = not_inlined(params)
        inner, origins, several = [], CONSTANTS, set[Origins]()
        for x in args:
            is_mine = type(x) is TracedValue and x._trace is self
            inner.append(x.inner if is_mine else x)
            origins = x.origins if is_mine else self._origins(x)
            several.add(origins)
        if primitive.name == "convert_element_type":
            inner = [cast_by_xla(inner[0], params["new_dtype"])]
        with core.set_current_trace(self._around):
            out = self._around.process_primitive(primitive, inner, params)
        call = _Call(primitive, args, params)
        if len(several) > 1:
            origins = Origins.union(several)
        results = [
            TracedValue(self, x, (call, n), origins) if isinstance(x, core.Tracer) else x
            for n, x in enumerate(out if primitive.multiple_results else (out,))
        ]
        if self._heard is not None:
            self._heard.append((call, results))
        return results if primitive.multiple_results else results[0]

    def process_custom_jvp_call(
        self, primitive: Any, fun: Any, jvp: Any, args: Any, /, **_: Any
    ) -> Any:
        """Calls the function: its own derivative means nothing to eager JAX."""
        with core.set_current_trace(self):
            return fun.call_wrapped(*args)

    def process_custom_vjp_call(
        self, primitive: Any, fun: Any, fwd: Any, bwd: Any, args: Any, /, **_: Any
    ) -> Any:
        """Calls the function: its own derivative means nothing to eager JAX."""
        with core.set_current_trace(self):
            return fun.call_wrapped(*args)

    def process_call(self, primitive: Any, f: Any, args: Any, params: Any, /) -> Any:
        """Calls the function: the call itself means nothing to eager JAX."""
        with core.set_current_trace(self):
            return f.call_wrapped(*args)

    def stage_value(self, val: Any) -> Any:
        """Returns an array as a traced value."""
        staged = self._around.stage_value(self.unwrap(val))
        if self._is_mine(val):
            return val
        is_traced = isinstance(staged, core.Tracer)
        return TracedValue(self, staged, val, self._origins(val)) if is_traced else staged

    def cur_qdd(self, x: Any) -> Any:
        """Returns the type state ("quasi-dynamic data") that JAX tracks of a mutable value."""
        return self._around.cur_qdd(self.unwrap(x))

    def __getattr__(self, name: str) -> Any:
        found = getattr(object.__getattribute__(self, "_around"), name)
        if not name.startswith("process_"):
            return found

        def process(*args: Any, **params: Any) -> Any:
            with core.set_current_trace(self._around):
                out = found(*jax.tree.map(self.unwrap, args), **params)
            origins = Origins(unknown=frozenset([name.removeprefix("process_")]))
            return jax.tree.map(
                lambda x: TracedValue(self, x, None, origins) if isinstance(x, core.Tracer) else x,
                out,
            )

        return process


def _calls(value: TracedValue) -> list[_Call]:
    return [value.made_by[0]] if isinstance(value.made_by, tuple) else []


def _result(made_by: Any, results: Mapping[int, Sequence[Array]]) -> Array:
    if not isinstance(made_by, tuple):
        return made_by
    call, n = made_by
    return results[id(call)][n]


def eager_steps(*, answers_all: bool = False) -> EagerSteps:
    """Returns a trace that hands everything on to the current one, in the steps of eager JAX."""
    return EagerSteps(core.trace_ctx.trace, answers_all=answers_all)
