"""Describes what a device holds of arrays that are cut over a mesh.

A device holds a box of each array; along a dimension whose elements are all alike it holds one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

Axes: TypeAlias = tuple[str, ...]
"""Axes of a mesh that cut a dimension, the first of them into the largest pieces."""

Cut: TypeAlias = tuple[Axes | None, ...]
"""The axes that cut each dimension: ``()`` if none does; ``None`` if all elements along it are
alike, so that a device holds one of them."""


class WholeError(Exception):
    """An equation is not known to have the same bits on a part of its arrays."""


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """Where a device stands in a mesh.

    Attributes:
      sizes: the size of each axis of the mesh.
      index: returns the index of the device along an axis, traced or not.
      doubts: booleans, traced or not: if one is true, bits may depend on the shape after all.
    """

    sizes: Mapping[str, int]
    index: Callable[[str], Any]
    doubts: list[Any] = field(default_factory=list)

    def parts(self, axes: Axes) -> int:
        """Returns the number of parts that these axes cut a dimension into."""
        return math.prod(self.sizes[axis] for axis in axes)

    def number(self, axes: Axes) -> Any:
        """Returns which part of a dimension that these axes cut the device holds, from 0."""
        number: Any = 0
        for axis in axes:
            number = number * self.sizes[axis] + self.index(axis)
        return number

    def local(self, shape: Sequence[int], cut: Cut) -> tuple[int, ...]:
        """Returns the shape of the part that a device holds of an array of this shape."""
        sizes = zip(shape, cut, strict=True)
        return tuple(1 if axes is None else n // self.parts(axes) for n, axes in sizes)


@dataclass(frozen=True, slots=True, eq=False)
class HeldPart:
    """The part of a value that a device holds.

    Attributes:
      array: the part.
      shape: the shape of the whole.
      cut: how the whole is cut. A dimension of size 1 has ``None``.
      is_rounded: whether the current program has rounded on the way to this value.
      is_repeated: whether its elements are alike because the current program repeated them.
    """

    array: Any
    shape: tuple[int, ...]
    cut: Cut
    is_rounded: bool = False
    is_repeated: bool = False

    @property
    def has_alike(self) -> bool:
        """Whether all elements along some dimension of size 2 or more are alike."""
        return any(n > 1 and axes is None for n, axes in zip(self.shape, self.cut, strict=True))

    def at(self, cut: Cut, grid: DevicePlace) -> Any:
        """Returns the device's part under another cut; ``WholeError`` if it does not hold it."""
        array = self.array
        for axis, (size, has, wanted) in enumerate(zip(self.shape, self.cut, cut, strict=True)):
            if has == wanted:
                continue
            if has is None:
                shape = list(array.shape)
                shape[axis] = size // grid.parts(wanted or ())
                array = jax.lax.broadcast_in_dim(array, shape, range(len(shape)))
            elif has == () and wanted:
                step = size // grid.parts(wanted)
                start = grid.number(wanted) * step
                array = jax.lax.dynamic_slice_in_dim(array, start, step, axis)
            else:
                raise WholeError
        return array


def whole(array: Any) -> HeldPart:
    """Wraps an array that each device holds whole."""
    shape = tuple(np.shape(array))
    return HeldPart(array, shape, tuple(None if n == 1 else () for n in shape))


def spread(part: HeldPart, grid: DevicePlace) -> HeldPart:
    """Returns the part with its alike elements repeated, so that none stands for others."""
    return cut_as(held_whole(part, grid), part.shape, part.cut)


def held_whole(part: HeldPart, grid: DevicePlace) -> Any:
    """Returns the array of a part, with alike elements repeated."""
    pairs = zip(part.shape, part.cut, strict=True)
    return part.at(tuple(() if axes is None and n > 1 else axes for n, axes in pairs), grid)


def cut_as(array: Any, shape: Sequence[int], cut: Cut) -> HeldPart:
    """Wraps an array that has all elements of a part of a whole of this shape and cut."""
    cut = tuple(None if n == 1 else axes or () for n, axes in zip(shape, cut, strict=True))
    return HeldPart(array, tuple(shape), cut)


def joined_cut(shape: Sequence[int], parts: Sequence[HeldPart]) -> Cut:
    """Returns the cut of a result that is computed from several parts, element by element.

    Raises:
      WholeError: the cuts of the parts do not agree.
    """
    joined: list[Axes | None] = []
    for axis in range(len(shape)):
        found = {part.cut[axis] for part in parts} - {None}
        if len(found - {()}) > 1:
            raise WholeError
        joined.append(max(found, key=lambda axes: len(axes or ()), default=None))
    cuts = [axes for axes in joined if axes]
    if len({axis for axes in cuts for axis in axes}) < sum(map(len, cuts)):
        raise WholeError  # One axis of a mesh cannot cut two dimensions.
    return tuple(joined)


def is_float(dtype: Any) -> bool:
    """Tells whether a dtype is one of floating-point numbers."""
    return jnp.issubdtype(dtype, jnp.floating)


def doubt_smallest(equation: jex.JaxprEqn, arrays: Sequence[Any], grid: DevicePlace) -> None:
    """Adds a doubt if an equation compares bfloat16 that is subnormal or NaN.

    A loop over one element takes subnormal bfloat16 for zero.

    Raises:
      WholeError: the equation compares floats of one byte.
    """
    if equation.primitive.name not in _COMPARING:
        return
    for array in arrays:
        if array.dtype == jnp.bfloat16:
            bits = jax.lax.bitcast_convert_type(array, np.uint16)
            is_subnormal = ((bits & 0x7F80) == 0) & ((bits & 0x7F) != 0)
            grid.doubts.append(jnp.any(is_subnormal | jnp.isnan(array)))
        elif is_float(array.dtype) and array.dtype.itemsize < 2:
            raise WholeError


_COMPARING = frozenset(["max", "min", "clamp", "reduce_max", "reduce_min", "argmax", "argmin"])
