"""Equations as bytes: jaxprs hold objects that pickle does not take as they are.

A primitive is written as the place where its module holds it, a PRNG implementation by its
name, a context of settings by its fields. Where an equation stood in somebody's source, and the
functions that derivatives alone call, are left out. What is written is for the same version of
JAX. Drop when jaxprs can be pickled.
"""

import functools
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
from jax._src import core, linear_util, literals, named_sharding, source_info_util
from jax._src.random import prng

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]

# What pickles of a `jax.Array` name. Such files stay, whatever JAX does; it is never looked up.
PICKLED_ARRAY = ("jax._src.array", "_reconstruct_array")


def dumps(value: Any) -> bytes:
    """Returns a value (any, with equations in it) as bytes.

    Raises:
      Exception: whatever pickle raises for what cannot be written: a function without a name.
    """
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def pickling_problem(value: Any) -> str:
    """Returns why a value (an equation, a constant) cannot be written as bytes, or ``""``."""
    try:
        dumps(value)
    except Exception as error:  # Whatever pickle raises.
        return str(error) or type(error).__name__
    return ""


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        match obj:
            case core.Primitive():
                return _primitive, _place_of(obj)
            case prng.PRNGImpl():
                return _prng, (obj.name,)
            case core.JaxprEqnContext():
                return _context, tuple(getattr(obj, name) for name in _context_fields())
            case source_info_util.SourceInfo():
                return source_info_util.new_source_info, ()
            case core.DebugInfo():
                return core.DebugInfo, ("lazyinit", "", None, None)
            case literals.TypedNdArray():  # Its own way passes a flag for a type (jax 0.10.2).
                return literals.TypedNdArray, (np.array(obj), obj.aval)
            case named_sharding.UnspecifiedValue():
                return _unspecified, ()
            case linear_util.WrappedFun():
                return _derivative, ()
        return NotImplemented


def _place_of(primitive: core.Primitive) -> tuple[str, str]:
    """Returns the module that holds a primitive, and under which name.

    Raises:
      pickle.PicklingError: no module does.
    """
    if id(primitive) not in _places():
        _places.cache_clear()  # Its module may have been imported since.
    place = _places().get(id(primitive))
    if place is None:
        raise pickle.PicklingError(f"no module holds the primitive {primitive.name!r}")
    return place


@functools.cache
def _places() -> dict[int, tuple[str, str]]:
    return {
        id(value): (module_name, name)
        for module_name, module in sorted(sys.modules.items(), reverse=True)
        for name, value in list(getattr(module, "__dict__", {}).items())
        # Not isinstance, which asks the value: some of other libraries warn when they are asked.
        if issubclass(type(value), core.Primitive)
    }


def _primitive(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)


def _prng(name: str) -> Any:
    return prng.prngs[name]


@functools.cache
def _context_fields() -> tuple[str, ...]:
    """Returns what a context consists of: in the order in which it is made, the metadata last."""
    others = {"configs", "__weakref__"}
    return tuple(name for name in core.JaxprEqnContext.__slots__ if name not in others)


def _context(*fields: Any) -> Any:
    *others, metadata = fields
    pairs = None if metadata is None else tuple(sorted(metadata.items()))
    create: Any = core.JaxprEqnContext._create
    return create(*others, pairs)


def _unspecified() -> Any:
    return named_sharding.UNSPECIFIED  # JAX compares it by identity.


def _derivative() -> Any:
    # As JAX wraps one: since 0.12 it asks for the description when it drops what is not needed.
    description = core.DebugInfo("lazyinit", "", None, None)
    return linear_util.wrap_init(_never_called, debug_info=description)


def _never_called(*_: Any) -> NoReturn:
    # Stands where JAX wants a derivative; to make a leaf, none is ever called.
    raise NotImplementedError("a pickled leaf keeps no derivatives")
