"""Hashable values that are equal only if two equations compute the same.

Identity is not enough: each ``normal(0.02)`` is a new closure and traces to a jaxpr of its own.
So jaxprs are compared by their structure, with their variables numbered in order.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import jax.extend.core as jex
import numpy as np

from lazyinit import compat


class _Structure:
    """Stands for one structure of jaxprs or parameters: equal structures are the same object."""

    __slots__ = ("__weakref__",)


# Most parameters have one of these types, so they are checked first, and by their type alone.
_PLAIN = frozenset([type(None), bool, int, str, type])

_of_jaxprs: weakref.WeakKeyDictionary[jex.Jaxpr, _Structure] = weakref.WeakKeyDictionary()
_structures: weakref.WeakValueDictionary[Any, _Structure] = weakref.WeakValueDictionary()


def fingerprint(param: Any) -> Any:
    """Returns a hashable stand-in for a parameter of an equation, of any type.

    A value of a type that is not known here is compared by ``==``, or by identity if it cannot be
    hashed. So two equations that compute the same may get different fingerprints, but two that
    compute something different never get equal ones.
    """
    if type(param) in _PLAIN:  # 1, 1.0 and True are equal in Python, not in a program.
        return (type(param), param)
    match param:
        case tuple() | list():
            return (type(param), tuple(map(fingerprint, param)))
        case compat.ClosedJaxpr():
            consts = tuple(
                fingerprint_constant(c, v.aval)
                for c, v in zip(param.consts, param.jaxpr.constvars, strict=True)
            )
            return (_of_jaxpr(param.jaxpr), consts)
        case jex.Jaxpr():
            return _of_jaxpr(param)
        case dict() | Mapping():  # Most are a dict, which is faster to check.
            return tuple((k, fingerprint(v)) for k, v in sorted(param.items()))
        case np.ndarray() | np.generic():
            return (type(param), param.dtype, param.shape, param.tobytes())
        case float() | complex():  # Zeros of two signs are equal in Python.
            return (type(param), np.array(param).tobytes())
    try:
        hash(param)
    except TypeError:
        return _ByIdentity(param)
    return (type(param), param)


def fingerprint_params(params: Mapping[str, Any], known: dict[Any, Any]) -> Any:
    """Returns a hashable stand-in for all parameters of an equation.

    Args:
      params: the parameters by name.
      known: stand-ins found before, by the identities of the parameters, which equal layers share.
        Whoever keeps this dict must keep the equations alive, too: Python may use the identity of
        a freed object again.
    """
    same = (*params, *map(id, params.values()))
    if same not in known:
        known[same] = _structures.setdefault(fingerprint(params), _Structure())
    return known[same]


def fingerprint_constant(constant: Any, aval: Any) -> Any:
    """Returns a hashable stand-in for a constant array: by value if small, else by identity."""
    # NumPy cannot hold a typed key or a traced value.
    is_plain = compat.is_array(aval) and not compat.is_tracer(constant)
    if np.size(constant) > 64 or not is_plain:
        return _ByIdentity(constant)
    array = np.asarray(constant)
    return (aval.dtype, array.dtype, array.shape, aval.weak_type, array.tobytes())


class _ByIdentity:
    """Equal to itself alone; keeps its object alive, so that the identity is not reused."""

    __slots__ = ("_of",)

    def __init__(self, of: Any) -> None:
        self._of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByIdentity) and self._of is other._of

    def __hash__(self) -> int:
        return id(self._of)


def _of_jaxpr(jaxpr: jex.Jaxpr) -> _Structure:
    """Returns the one object for all jaxprs that are equal but for the names of variables."""
    known = _of_jaxprs.get(jaxpr)
    if known is not None:
        return known
    number: dict[Any, int] = {v: n for n, v in enumerate((*jaxpr.constvars, *jaxpr.invars))}

    def atom(a: Any) -> Any:
        return fingerprint_constant(a.val, a.aval) if isinstance(a, jex.Literal) else number[a]

    steps = []
    for eqn in jaxpr.eqns:
        taken = tuple(map(atom, eqn.invars))
        for v in eqn.outvars:
            number[v] = len(number)
        steps.append((eqn.primitive, fingerprint(eqn.params), eqn.ctx, taken, len(eqn.outvars)))
    avals = tuple(str(v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
    found = (tuple(steps), avals, len(number), tuple(map(atom, jaxpr.outvars)))
    structure = _structures.setdefault(found, _Structure())
    _of_jaxprs[jaxpr] = structure
    return structure
