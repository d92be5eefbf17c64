"""Tracing in the steps of eager JAX, with values that Python code may look at.

``jax.make_jaxpr`` differs from eager JAX in two ways that change what is computed. It inlines
``jit(inline=True)``, which eager JAX compiles as one. And it gives no values, so that Python
code cannot branch on one. ``EagerSteps`` is a trace that stands before the one of
``make_jaxpr`` and hands everything on to it: a jit as one equation, always; a function with a
derivative of its own as the call that eager JAX makes. Its values know what they are computed
from, so one that Python code looks at (``if``, ``int``, ``np.asarray``) is computed then and
there, eagerly, and let go.

This rests on names of JAX that are not public. Drop it when ``jax.make_jaxpr`` can be told not
to inline, and gives values on demand.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax._src import core, source_info_util

from lazyinit.compat.primitives import not_inlined

Array: TypeAlias = Any  # Whatever JAX computes with: arrays, numpy, Python scalars, tracers.


@dataclass(frozen=True, slots=True, eq=False)
class Origins:
    """What a value is computed from, by name: inputs with a value, and inputs without.

    Attributes:
      known: root keys.
      unknown: inputs of which only the shape is known.
    """

    known: frozenset[str] = frozenset()
    unknown: frozenset[str] = frozenset()

    @staticmethod
    def union(several: Iterable["Origins"]) -> "Origins":
        """Returns the origins of what is computed from several values."""
        distinct = set(several)
        if len(distinct) == 1:
            return distinct.pop()
        distinct = {o for o in distinct if o.known or o.unknown} or {_CONSTANTS}
        if len(distinct) == 1:
            return distinct.pop()
        known = frozenset[str]().union(*(o.known for o in distinct))
        return Origins(known, frozenset[str]().union(*(o.unknown for o in distinct)))


_SCALARS = Origins()  # Constants of one element, and nothing else.
_CONSTANTS = Origins()
_ELSEWHERE = Origins(unknown=frozenset(["a trace around this one"]))


class TracedValue(core.Tracer):
    """A traced value that knows what it is computed from."""

    __slots__ = ("inner", "made_by", "origins")

    def __init__(self, trace: "EagerSteps", inner: Any, made_by: Any, origins: Origins) -> None:
        """Takes the tracer that it stands for, and what gives its value.

        That is an array, or a call and which of its results, or ``None`` if nothing does.
        """
        super().__init__(trace, inner.aval)
        self.inner, self.made_by, self.origins = inner, made_by, origins

    def to_concrete_value(self) -> Any:
        """Returns the value, or ``None`` where JAX can go on without."""
        # JAX asks for this in passing, for any value. It gets what it picks its way by in eager
        # mode, the signed integers that are made of scalar constants (``x ** jnp.int32(2)``) and
        # the constants themselves; more only if it could not go on without.
        if self._trace.answers_all:
            return None if self.origins.unknown else self.computed()
        if self.origins is not _SCALARS or self.size > 1:
            return None
        is_cheap = self.dtype.kind == "i" or not _calls(self)
        return self.computed() if is_cheap else None

    def is_current(self) -> bool:
        """Tells whether it belongs to the trace that is current, not to one around it."""
        return self._trace is core.trace_ctx.trace

    def is_constant(self) -> bool:
        """Tells whether it depends on no key and on nothing without a value."""
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
    """One call of a primitive: how its results are made."""

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
      looked_at: the root keys that values which Python code looked at were computed from.
      answers_all: whether JAX's own questions for a concrete value are answered for any value.
      tapes: what calls of initializers did (see ``again``).
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
        """Yields a list that gets every call that is traced within, and what it gives."""
        before, self._heard = self._heard, []
        try:
            yield self._heard
        finally:
            self._heard = before

    def current(self) -> AbstractContextManager[Any]:
        """Returns the context in which what is traced goes through this trace."""
        return core.set_current_trace(self)

    def known(self, name: str, tracer: Any, array: Array) -> Any:
        """Wraps an input whose value is known, unless that is itself traced."""
        if isinstance(array, core.Tracer):
            return TracedValue(self, tracer, None, _ELSEWHERE)
        return TracedValue(self, tracer, array, Origins(known=frozenset([name])))

    def unknown(self, name: str, tracer: Any) -> Any:
        """Wraps an input of which only the shape is known."""
        return TracedValue(self, tracer, None, Origins(unknown=frozenset([name])))

    def unwrap(self, x: Any) -> Any:
        """Returns what is traced around this trace, for a value of this one; else ``x``."""
        return x.inner if isinstance(x, TracedValue) and x._trace is self else x

    def value_of(self, value: TracedValue) -> Array:
        """Computes a value eagerly, and lets go of what it needed on the way."""
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
        with jax.ensure_compile_time_eval():  # Staged, a number would ask for its value again.
            return found if isinstance(found, jax.Array) else jax.numpy.asarray(found)

    def _needed_by(self, value: TracedValue) -> tuple[list[_Call], Counter[int]]:
        """Returns the calls that make a value, in order, and how often each is used, by its id."""
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
        if self._is_mine(x):
            return x.origins
        if isinstance(x, core.Tracer):
            return _ELSEWHERE
        return _SCALARS if np.size(x) <= 1 else _CONSTANTS

    def process_primitive(self, primitive: Any, args: Any, params: Any, /) -> Any:
        """Traces one operation, and notes how its results are made."""
        params = not_inlined(params)
        inner, origins = [], _CONSTANTS
        several: set[Origins] = set()
        for x in args:
            is_mine = type(x) is TracedValue and x._trace is self
            inner.append(x.inner if is_mine else x)
            origins = x.origins if is_mine else self._origins(x)
            several.add(origins)
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
        """Makes an array a traced value."""
        staged = self._around.stage_value(self.unwrap(val))
        if self._is_mine(val):
            return val
        is_traced = isinstance(staged, core.Tracer)
        return TracedValue(self, staged, val, self._origins(val)) if is_traced else staged

    def cur_qdd(self, x: Any) -> Any:
        """Returns what JAX tracks of a mutable value."""
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
    """Returns a trace to stand before the current one."""
    return EagerSteps(core.trace_ctx.trace, answers_all=answers_all)
