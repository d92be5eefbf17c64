"""Repeats calls of JAX's own initializers without their Python code.

A deep model calls the same initializer with the same shape once for each layer, and most of the
time goes into Python code above the primitives. What an initializer of ``jax.nn.initializers`` does
depends on its closure, its arguments and JAX's settings alone. So the first call is kept as a tape
of primitives, and an equal call under the same trace binds the same primitives to another key.
Functions of anybody else are called each time: they may count their calls, or read a file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax._src import config, core
from jax._src.nn import initializers

from lazyinit.compat.eager import EagerSteps

_PLAIN = (int, str, bool, type(None), type)


@dataclass(frozen=True, slots=True)
class _Tape:
    """The primitives that one call bound. Values are numbered: the key is 0, then all results.

    Attributes:
      calls: each primitive, its parameters, and its inputs. An input is the number of a value and
        ``None``, or ``-1`` and a constant.
      result: the number of what the initializer returned.
    """

    calls: Sequence[tuple[Any, Mapping[str, Any], Sequence[tuple[int, Any]]]]
    result: int


def call(init_fn: Callable[..., Any], key: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns ``init_fn(key, *args, **kwargs)``, from a tape if an equal call was made before."""
    trace = core.trace_ctx.trace
    token = _token(init_fn, args, kwargs) if isinstance(trace, EagerSteps) else None
    if token is None:
        return init_fn(key, *args, **kwargs)
    token = (token, key.aval, config.trace_context())
    if token not in trace.tapes:
        with trace.listening() as heard:
            made = init_fn(key, *args, **kwargs)
        trace.tapes[token] = _tape(key, heard, made)
        return made
    tape = trace.tapes[token]
    return init_fn(key, *args, **kwargs) if tape is None else _again(trace, tape, key)


def _token(init_fn: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns a hashable value that equal calls share; ``None`` if a call is not to be kept."""
    if getattr(init_fn, "__globals__", None) is not vars(initializers):
        return None
    cells = [cell.cell_contents for cell in init_fn.__closure__ or ()]
    parts = (init_fn.__code__, *map(_plain, (cells, init_fn.__defaults__, args, kwargs)))
    return None if any(part is None for part in parts) else parts


def _plain(x: Any) -> Any:
    """Returns a hashable stand-in for a value that cannot change, ``None`` for any other.

    Stand-ins are equal only if an initializer computes the same with one value as with the other.
    Python's own ``==`` would not do: it takes zeros of two signs, and 1 and ``True``, for equal.
    """
    if type(x) in (float, complex):
        return (type(x), np.array(x).tobytes())
    if isinstance(x, list | tuple):
        parts = tuple(map(_plain, x))
        return None if None in parts else (type(x), parts)
    if isinstance(x, dict):
        return _plain(sorted(x.items()))
    is_plain = type(x) in _PLAIN or isinstance(x, type) or type(x).__module__ == "numpy.dtypes"
    return (type(x), x) if is_plain else None


def _tape(key: Any, heard: Sequence[tuple[Any, Any]], made: Any) -> _Tape | None:
    """Returns a call as a tape; ``None`` if it used anything but its key and constants.

    Args:
      key: the key that the call was given.
      heard: each primitive that the call bound, with its results.
      made: what the call returned.
    """
    number = {id(key): 0}
    shared = set()  # Scalars made of constants alone, which are the same in each call.
    calls = []
    for done, results in heard:
        if any(not isinstance(x, core.Tracer) or (x is made and x.size <= 1) for x in results):
            return None
        own = [x for x in done.args if isinstance(x, core.Tracer) and id(x) not in shared]
        if not own and all(x.size <= 1 for x in results):
            shared.update(map(id, results))
            continue
        if any(id(x) not in number for x in own):
            return None
        taken = [(number.get(id(x), -1), None if id(x) in number else x) for x in done.args]
        calls.append((done.primitive, done.params, taken))
        number.update({id(x): len(number) + n for n, x in enumerate(results)})
    return _Tape(calls, number[id(made)]) if id(made) in number else None


def _again(trace: EagerSteps, tape: _Tape, key: Any) -> Any:
    """Returns what the taped call would return for another key."""
    values = [key]
    for primitive, params, taken in tape.calls:
        args = [constant if n < 0 else values[n] for n, constant in taken]
        out = trace.process_primitive(primitive, args, params)
        values += out if primitive.multiple_results else [out]
    return values[tape.result]
