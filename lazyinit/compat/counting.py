"""Counts on the host: ``nnx.Rngs`` adds 1 to an array whenever it hands out a key.

A model of a few hundred layers does so a few hundred times, and JAX takes most of a millisecond to
run one such ``jit``. NumPy takes microseconds, and whole numbers wrap around as they do in XLA.
"""

from collections.abc import Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np
from jax.core import ShapedArray

from lazyinit.compat.primitives import jit_body


def counted(equation: jex.JaxprEqn, values: Sequence[Any]) -> Sequence[Any] | None:
    """Adds or converts single whole numbers; ``None`` for any other equation.

    Args:
      equation: one equation, or a ``jit`` of such equations.
      values: its inputs, none of them traced.
    """
    takes: list[Any] = [v.aval for v in equation.invars]
    gives: list[Any] = [v.aval for v in equation.outvars]
    if not all(map(_is_count, takes)) or not all(_is_count(x) and not x.weak_type for x in gives):
        return None
    taken = [np.asarray(x, aval.dtype) for x, aval in zip(values, takes, strict=True)]
    match equation.primitive.name:
        case "add":
            return [np.add(*taken)]
        case "convert_element_type":
            return [taken[0].astype(equation.params["new_dtype"])]
    body = jit_body(equation)
    return None if body is None else _counted_body(*body, taken)


def _counted_body(
    jaxpr: jex.Jaxpr, consts: Sequence[Any], values: Sequence[Any]
) -> Sequence[Any] | None:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def taken(atom: Any) -> Any:
        return atom.val if isinstance(atom, jex.Literal) else env[atom]

    for equation in jaxpr.eqns:
        made = counted(equation, list(map(taken, equation.invars)))
        if made is None:
            return None
        env.update(zip(equation.outvars, made, strict=True))
    return list(map(taken, jaxpr.outvars))


def _is_count(aval: Any) -> bool:
    if not isinstance(aval, ShapedArray) or aval.shape:
        return False
    return isinstance(aval.dtype, np.dtype) and np.issubdtype(aval.dtype, np.integer)
