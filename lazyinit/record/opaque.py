"""Refuses objects that JAX cannot look into and that hold a traced value.

A tracer that leaves the recording in such an object fails later, in somebody else's code. JAX
refuses every object that is no array; here one without a traced value may pass as it is.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lazyinit import compat, errors

_DEPTH = 4  # Objects, containers and closures within each other that are looked into.
_ARRAYS = (jax.Array, np.ndarray, np.generic)
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type)


def refuse_tracers(objects: Sequence[tuple[str, Any]]) -> None:
    """Raises if an object holds a traced value.

    Attributes, slots, containers and the variables of closures are looked into, four deep.

    Args:
      objects: what is returned beside arrays, with the path or name of each.

    Raises:
      RecordError: an object holds a traced value.
    """
    for path, x in objects:
        where = "" if type(x) in _PLAIN else _find(x, _DEPTH, set())
        if where:
            raise errors.RecordError(
                f"{path}: wanted an array or a pytree of them, got a {type(x).__name__} that "
                f"holds an array in {where}, which JAX cannot look into. Register the class "
                "as a pytree (jax.tree_util.register_dataclass), or return its arrays."
            )


def _find(x: Any, depth: int, seen: set[int]) -> str:
    """Returns where in an object a traced value is, ``""`` if nowhere."""
    if depth == 0 or type(x) in _PLAIN or isinstance(x, _ARRAYS) or id(x) in seen:
        return ""
    seen.add(id(x))
    for name, part in _parts(x):
        if compat.is_tracer(part):
            return name
        inner = _find(part, depth - 1, seen)
        if inner:
            return name + inner
    return ""


def _parts(x: Any) -> Iterator[tuple[str, Any]]:
    match x:
        case Mapping():
            yield from ((f"[{key!r}]", value) for key, value in x.items())
        case list() | tuple() | set() | frozenset():
            yield from ((f"[{n}]", value) for n, value in enumerate(x))
        case functools.partial():
            yield from _parts((*x.args, *x.keywords.values()))
        case _:
            fields = getattr(x, "__dict__", None)
            if isinstance(fields, dict):
                yield from ((f".{name}", value) for name, value in fields.items())
            slots = getattr(type(x), "__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if not name.startswith("__") and hasattr(x, name):
                    yield f".{name}", getattr(x, name)
            code, cells = getattr(x, "__code__", None), getattr(x, "__closure__", None)
            for name, cell in zip(getattr(code, "co_freevars", ()), cells or (), strict=False):
                try:
                    yield f".{name}", cell.cell_contents
                except ValueError:  # A variable that was never set.
                    continue
