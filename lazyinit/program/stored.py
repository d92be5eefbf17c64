"""Turns a leaf that only moves and casts stored arrays into a stored leaf.

``lambda w: w.T`` of a stored leaf is a stored leaf again: each shard reads its own bytes of the
file. Of all casts, only those between bfloat16 and float32 qualify, as NumPy and XLA agree on
their bits. In a cast to or from float16, XLA on a CPU keeps other bits of a NaN than NumPy does.
"""

import math
from collections.abc import Sequence

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit import compat
from lazyinit.derived import DerivedParam
from lazyinit.params import StoredParam
from lazyinit.program.equations import is_key
from lazyinit.program.slices import Slice, gather
from lazyinit.sources import Shape, Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.casting import may_overflow
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.views import cut, reshaped, transposed

_FLOATS = tuple(map(jnp.dtype, ("bfloat16", "float32")))


def as_stored(leaf: DerivedParam) -> DerivedParam | StoredParam:
    """Returns a derived leaf as a stored one if it only moves and casts; else as it is."""
    stored = [part for part in leaf.inputs if isinstance(part, StoredParam)]
    made = leaf.init_fn
    if len(stored) < len(leaf.inputs) or leaf.weak_type or not isinstance(made, Slice):
        return leaf
    if any(map(is_key, stored)):
        return leaf
    known = dict(zip(made.given, map(_source, stored), strict=True))
    work = gather([made])
    for equation in work.equations:
        if any(v not in known for v in equation.needed) or equation.idle:
            return leaf
        found = _moved(equation.origin, [known[v] for v in equation.inputs])
        if found is None:
            return leaf
        known.update(zip(equation.outputs, found, strict=True))
    source = known[made.output]
    # A stored leaf casts by itself, but it refuses an overflow, which the program lets pass.
    if isinstance(source, AsDtype) and not source.overflow:
        source = source.source
    return StoredParam(leaf.shape, leaf.dtype, source, sharding=leaf.sharding, path=leaf.path)


def _source(stored: StoredParam) -> Source:
    same = stored.source.dtype == stored.dtype
    return stored.source if same else AsDtype(stored.source, stored.dtype)


def _moved(equation: jex.JaxprEqn, sources: Sequence[Source]) -> Sequence[Source] | None:
    """Returns a source for each result of an equation; ``None`` if it computes anything."""
    if body := compat.jit_body(equation):
        return _moved_by_body(body[0], sources)
    shape: Shape = equation.outvars[0].aval.shape  # pyright: ignore (of any array)
    dtype: np.dtype = equation.outvars[0].aval.dtype  # pyright: ignore
    first = sources[0] if sources else None
    if first is None or not math.prod(shape):
        return None
    match compat.layout_of(equation):
        case compat.Same():
            return [first]
        case compat.Permuted(axes):
            return [transposed(first, axes)]
        case compat.Shaped():
            return [reshaped(first, shape)]
        case compat.Box(box, steps) if set(steps) <= {1}:
            return [cut(first, dict(enumerate(box)))]
        case compat.InLine(axis, is_stacked):
            alike = all(source.dtype == first.dtype for source in sources)
            return [Joined(tuple(sources), axis, is_stacked)] if alike else None
        case compat.Recast() if first.dtype in _FLOATS and dtype in _FLOATS:
            return [_cast(first, dtype)]
        case compat.Recast() if first.dtype == dtype:
            return [first]
    return None


def _cast(source: Source, dtype: np.dtype) -> Source:
    if source.dtype == dtype:
        return source
    # A safe cast loses nothing, so the values before it can be cast to the last dtype directly.
    if isinstance(source, AsDtype) and np.can_cast(source.source.dtype, source.dtype, "safe"):
        source = source.source
    if source.dtype == dtype:
        return source
    return AsDtype(source, dtype, overflow=may_overflow(source.dtype, dtype))


def _moved_by_body(jaxpr: jex.Jaxpr, sources: Sequence[Source]) -> Sequence[Source] | None:
    known = dict(zip(jaxpr.invars, sources, strict=True))
    for equation in jaxpr.eqns:
        inputs = [known[v] for v in equation.invars if isinstance(v, jex.Var) and v in known]
        found = _moved(equation, inputs) if len(inputs) == len(equation.invars) else None
        if found is None:
            return None
        known.update(zip(equation.outvars, found, strict=True))
    results = [known[v] for v in jaxpr.outvars if isinstance(v, jex.Var) and v in known]
    return results if len(results) == len(jaxpr.outvars) else None
