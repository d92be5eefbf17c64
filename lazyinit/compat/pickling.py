"""Pickles equations, which hold objects that pickle does not take as they are.

A primitive is written as the place where its module holds it, a PRNG implementation by its
name, a context of settings by its fields. Source locations, and functions that only derivatives
call, are left out. Only the same version of JAX can read the bytes. Drop when jaxprs can be
pickled.
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

# The function that pickles of a `jax.Array` name. It is compared, never imported, so that old files
# can be read whatever JAX renames.
PICKLED_ARRAY = ("jax._src.array", "_reconstruct_array")


def dumps(value: Any) -> bytes:
    """Pickles a value of any type, also one with equations in it.

    Raises:
      Exception: whatever pickle raises for what cannot be written, as a function without a name.
    """
    stream = io.BytesIO()
    _Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def pickling_problem(value: Any) -> str:
    """Returns why a value (an equation, a constant) cannot be pickled; ``""`` if it can."""
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
    """Returns the module that holds a primitive, and its name there.

    Raises:
      pickle.PicklingError: no module holds it.
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
        # Not isinstance, which asks a value for its class: some of other libraries warn then.
        if issubclass(type(value), core.Primitive)
    }


def _primitive(module: str, name: str) -> Any:
    __import__(module)
    return getattr(sys.modules[module], name)


def _prng(name: str) -> Any:
    return prng.prngs[name]


@functools.cache
def _context_fields() -> tuple[str, ...]:
    """Returns the names of a context's fields in the order of its constructor, metadata last."""
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
    # JAX, since 0.12, reads the description when it drops equations that are not needed.
    description = core.DebugInfo("lazyinit", "", None, None)
    return linear_util.wrap_init(_never_called, debug_info=description)


def _never_called(*_: Any) -> NoReturn:
    # JAX wants a derivative in this place, but none is called to make a leaf.
    raise NotImplementedError("a pickled leaf keeps no derivatives")
