"""Runs one equation on the part of its arrays that a device holds.

A device holds a box of each array. If each element of the result is exact, or rounded once as
IEEE 754 says, an equation gives the same bits on a box as on the whole. The names of parameters
are JAX's and not public. An equation that is not known here raises ``WholeError``; the caller then
runs it whole.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit.compat.device_parts import (
    Cut,
    DevicePlace,
    HeldPart,
    WholeError,
    doubt_smallest,
    is_float,
    joined_cut,
    whole,
)
from lazyinit.compat.moved_parts import MOVED, REDUCED
from lazyinit.compat.primitives import Fact, bodies, facts, jit_body, transparent_body
from lazyinit.compat.unplaced import bind


def run_on_part(
    equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace
) -> list[HeldPart]:
    """Runs an equation on what a device holds, eagerly or under a trace.

    Args:
      equation: an equation that is compiled alone.
      parts: what the device holds of each input.
      grid: the place of the device in its mesh.

    Returns:
      What the device holds of each result.

    Raises:
      WholeError: the equation is not known to have the same bits on a part.
    """
    parts = [replace(part, is_rounded=False, is_repeated=False) for part in parts]
    return _run(equation, parts, grid)


def floats_computed(equation: jex.JaxprEqn) -> list[str]:
    """Returns the floating-point dtypes that an equation computes with; none if it only moves."""
    if equation.primitive.name in MOVED:
        return []
    dtypes = {getattr(v.aval, "dtype", np.dtype(bool)) for v in _arrays(equation)}
    return sorted(str(dtype) for dtype in dtypes if is_float(dtype))


def _run(equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace) -> list[HeldPart]:
    inner = jit_body(equation) or transparent_body(equation)
    if inner is not None:
        return _run_body(*inner, parts, grid)
    if bodies(equation):
        raise WholeError
    name = equation.primitive.name
    made = MOVED.get(name) or REDUCED.get(name)
    if made is not None:
        results = made(equation, parts, grid)
    elif Fact.ONE_ROUNDING in facts(equation):
        _check_rounding(equation, parts)
        results = _by_element(equation, parts, grid)
    else:
        raise WholeError
    rounded = _rounds(equation) or any(part.is_rounded for part in parts)
    repeated = all(part.is_repeated for part in parts if part.has_alike)
    return [
        replace(
            r,
            is_rounded=rounded and is_float(r.array.dtype),
            is_repeated=repeated and r.has_alike,
        )
        for r in results
    ]


def _run_body(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], parts: Sequence[HeldPart], grid: DevicePlace
) -> list[HeldPart]:
    """Runs the equations of a body, and returns what the device holds of each of its results."""
    env = dict(zip(jaxpr.invars, parts, strict=True))
    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        env[variable] = whole(const)

    def taken(atom: Any) -> HeldPart:
        return _literal(atom) if isinstance(atom, jex.Literal) else env[atom]

    for equation in jaxpr.eqns:
        made = _run(equation, list(map(taken, equation.invars)), grid)
        env.update(zip(equation.outvars, made, strict=True))
    return list(map(taken, jaxpr.outvars))


def _literal(literal: Any) -> HeldPart:
    return whole(np.asarray(literal.val, literal.aval.dtype))


def _check_rounding(equation: jex.JaxprEqn, parts: Sequence[HeldPart]) -> None:
    """Raises ``WholeError`` if one program would round twice, which XLA may do once.

    XLA also computes narrower types in float32, and may leave out the rounding between two steps.
    """
    for part in parts:
        if part.is_rounded and (_rounds(equation) or part.array.dtype.itemsize < 4):
            raise WholeError


def _rounds(equation: jex.JaxprEqn) -> bool:
    if Fact.ONE_ROUNDING not in facts(equation):
        return False
    taken, made = ([v.aval for v in some] for some in (equation.invars, equation.outvars))
    source, result = _dtypes(taken[:1] + made)
    if not is_float(result):
        return False
    if equation.primitive.name == "convert_element_type":
        if not is_float(source):
            return result.itemsize < 4
        old, new = jnp.finfo(source), jnp.finfo(result)
        return not (old.nmant <= new.nmant and old.maxexp <= new.maxexp)
    return equation.primitive.name in _ROUNDING


_ROUNDING = frozenset(
    ["add", "sub", "mul", "div", "sqrt", "square", "integer_pow", "reduce_precision"]
)


def _dtypes(avals: Sequence[Any]) -> list[Any]:
    return [aval.dtype for aval in avals]


def _by_element(
    equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace
) -> list[HeldPart]:
    result: Any = equation.outvars[0].aval
    if any(jnp.issubdtype(v.aval.dtype, jnp.complexfloating) for v in _arrays(equation)):
        raise WholeError
    shape = tuple(result.shape)
    full = [part for part in parts if len(part.shape) == len(shape)]
    if any(part.shape for part in parts if len(part.shape) != len(shape)):
        raise WholeError
    if any(n not in (1, m) for part in full for n, m in zip(part.shape, shape, strict=True)):
        raise WholeError  # A bitcast to fewer bits has more elements.
    cut = joined_cut(shape, full)
    arrays = [p.at(_as_far(p, cut), grid) if p in full else p.array for p in parts]
    local = grid.local(shape, cut)
    if equation.primitive.name == "div" and is_float(result.dtype):
        _check_divisor(parts[1], shape, local)
    doubt_smallest(equation, arrays, grid)
    arrays = [a if np.shape(a) == local else jnp.broadcast_to(a, local) for a in arrays]
    (made,) = bind(equation, *arrays)
    return [HeldPart(made, shape, cut)]


def _check_divisor(divisor: HeldPart, shape: Sequence[int], local: Sequence[int]) -> None:
    """Raises ``WholeError`` if XLA would broadcast the divisor on one of whole and part alone.

    Where XLA broadcasts the divisor itself, it multiplies by the reciprocal, which rounds twice. It
    divides by a divisor that comes in as a full array, or where there is one element.
    """
    sizes = divisor.shape or (1,) * len(shape)
    cut = divisor.cut or (None,) * len(shape)
    alike = [n for n, size in enumerate(shape) if size > 1 and cut[n] is None]
    came_alike = any(sizes[n] > 1 for n in alike) and not divisor.is_repeated
    if came_alike or (alike and all(local[n] == 1 for n in alike)):
        raise WholeError


def _arrays(equation: jex.JaxprEqn) -> list[Any]:
    return [*equation.invars, *equation.outvars]


def _as_far(part: HeldPart, cut: Cut) -> Cut:
    """Returns ``cut``, with ``None`` for dimensions of the part that are broadcast later."""
    return tuple(None if has is None else axes for has, axes in zip(part.cut, cut, strict=True))
