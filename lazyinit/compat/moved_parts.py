"""Runs equations that move, join or compare elements on the part that a device holds.

There is one function for each kind of primitive: it takes the parts of the inputs, and returns the
parts of the results. The names of parameters are JAX's and not public. A case that a function does
not know raises ``WholeError``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from lazyinit.compat.device_parts import (
    Axes,
    Cut,
    DevicePlace,
    HeldPart,
    WholeError,
    cut_as,
    doubt_smallest,
    held_whole,
    is_float,
    joined_cut,
)
from lazyinit.compat.unplaced import bind


def _broadcast(equation: jex.JaxprEqn, parts: Sequence[HeldPart], _: DevicePlace) -> list[HeldPart]:
    shape = tuple(equation.params["shape"])
    dimensions = tuple(equation.params["broadcast_dimensions"])
    (part,) = parts
    cut: list[Axes | None] = [None] * len(shape)
    local = [1] * len(shape)
    for axis, to in enumerate(dimensions):
        cut[to], local[to] = part.cut[axis], part.array.shape[axis]
    array = jax.lax.broadcast_in_dim(part.array, local, dimensions)
    return [HeldPart(array, shape, tuple(cut))]


def _reshape(
    equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace
) -> list[HeldPart]:
    (part,) = parts
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise WholeError
    result: Any = equation.outvars[0].aval
    shape = tuple(result.shape)
    held = held_whole(part, grid)
    cut = reshaped_cut(part.shape, shape, tuple(axes or () for axes in part.cut), grid)
    array = jnp.reshape(held, grid.local(shape, cut))
    return [HeldPart(array, shape, cut)]


def reshaped_cut(before: Sequence[int], after: Sequence[int], cut: Cut, grid: DevicePlace) -> Cut:
    """Returns how an array is cut after a reshape.

    A reshape turns groups of dimensions into other groups of the same size. A cut survives if it is
    in the outermost dimension of its group: each part is then still a run of elements.

    Raises:
      WholeError: the parts are not boxes of the new shape.
    """
    if 0 in before or 0 in after:
        raise WholeError
    made: list[Axes | None] = [None if n == 1 else () for n in after]
    old = [axis for axis, n in enumerate(before) if n > 1]
    new = [axis for axis, n in enumerate(after) if n > 1]
    while old and new:
        group, others = [old.pop(0)], [new.pop(0)]
        sizes = [before[group[0]], after[others[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                group.append(old.pop(0))
                sizes[0] *= before[group[-1]]
            else:
                others.append(new.pop(0))
                sizes[1] *= after[others[-1]]
        if any(cut[axis] for axis in group[1:]):
            raise WholeError
        axes = cut[group[0]] or ()
        if after[others[0]] % grid.parts(axes):
            raise WholeError
        made[others[0]] = axes
    return tuple(made)


def _transpose(equation: jex.JaxprEqn, parts: Sequence[HeldPart], _: DevicePlace) -> list[HeldPart]:
    (part,) = parts
    order = tuple(equation.params["permutation"])
    shape = tuple(part.shape[axis] for axis in order)
    cut = tuple(part.cut[axis] for axis in order)
    return [HeldPart(jnp.transpose(part.array, order), shape, cut)]


def _slice(equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace) -> list[HeldPart]:
    (part,) = parts
    params = equation.params
    strides = params["strides"] or (1,) * len(part.shape)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    array, index = held_whole(part, grid), []
    for size, axes, (start, stop, step) in zip(part.shape, part.cut, bounds, strict=True):
        if axes and (start, stop, step) != (0, size, 1):
            raise WholeError
        index.append(slice(None) if axes else slice(start, stop, step))
    result: Any = equation.outvars[0].aval
    return [cut_as(array[tuple(index)], result.shape, part.cut)]


def _concatenate(
    equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace
) -> list[HeldPart]:
    axis = equation.params["dimension"]
    if any(part.cut[axis] for part in parts):
        raise WholeError
    cut = tuple(axes or () for axes in joined_cut(parts[0].shape, parts))
    result: Any = equation.outvars[0].aval
    arrays = [p.at(tuple(a if n > 1 else None for n, a in zip(p.shape, cut, strict=True)), grid)
              for p in parts]  # fmt: skip
    return [cut_as(jnp.concatenate(arrays, axis), result.shape, cut)]


def _split(equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace) -> list[HeldPart]:
    (part,) = parts
    axis, sizes = equation.params["axis"], equation.params["sizes"]
    if part.cut[axis]:
        raise WholeError
    pieces = jnp.split(held_whole(part, grid), np.cumsum(sizes)[:-1], axis)
    shapes = [v.aval.shape for v in equation.outvars]  # pyright: ignore (of any array)
    return [cut_as(x, shape, part.cut) for x, shape in zip(pieces, shapes, strict=True)]


def _reduce(equation: jex.JaxprEqn, parts: Sequence[HeldPart], grid: DevicePlace) -> list[HeldPart]:
    (part,) = parts
    axes = equation.params["axes"]
    name = equation.primitive.name
    dtype = part.array.dtype
    if jnp.issubdtype(dtype, jnp.complexfloating) or any(part.cut[axis] for axis in axes):
        raise WholeError
    if is_float(dtype) and name in ("reduce_sum", "reduce_prod"):
        raise WholeError  # It rounds in an order that depends on the shape.
    if part.is_rounded and dtype.itemsize < 4:
        raise WholeError
    array = held_whole(part, grid)
    if is_float(dtype):
        # Of zeros with two signs, and of several NaNs, the result is the one that is met first.
        is_negative_zero = (array == 0) & jnp.signbit(array)
        grid.doubts.append(jnp.any(jnp.isnan(array) | is_negative_zero))
        doubt_smallest(equation, [array], grid)
    (made,) = bind(equation, array)
    left = [axis for axis in range(len(part.shape)) if axis not in axes]
    shape = [part.shape[axis] for axis in left]
    return [cut_as(made, shape, tuple(part.cut[axis] for axis in left))]


def _iota(equation: jex.JaxprEqn, _: Sequence[HeldPart], grid: DevicePlace) -> list[HeldPart]:
    params = equation.params
    shape, dimension = tuple(params["shape"]), params["dimension"]
    cut: Cut = tuple(() if n == dimension and shape[n] > 1 else None for n in range(len(shape)))
    made = jax.lax.broadcasted_iota(params["dtype"], grid.local(shape, cut), dimension)
    return [HeldPart(made, shape, cut)]


_Moved: TypeAlias = Callable[[jex.JaxprEqn, Sequence[HeldPart], DevicePlace], list[HeldPart]]

MOVED: Mapping[str, _Moved] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "concatenate": _concatenate,
    "split": _split,
    "iota": _iota,
}
"""Primitives that only move, repeat or count elements, so that no bits change."""

REDUCED: Mapping[str, _Moved] = {
    **dict.fromkeys(["reduce_max", "reduce_min", "reduce_and", "reduce_or", "reduce_xor"], _reduce),
    **dict.fromkeys(["reduce_sum", "reduce_prod", "argmax", "argmin"], _reduce),
}
"""Primitives that reduce dimensions which are not cut, if the result is exact in any order."""
