"""What a device holds of arrays that are cut over a mesh, while equations are run on it.

A device holds a box of each array. Along a dimension in which all elements are alike it holds one.
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
"""For each dimension what cuts it: ``()`` is nothing. ``None`` says that all elements along it are
alike, so that one of them is held."""


class WholeError(Exception):
    """An equation is not known to have the same bits on a part of its arrays."""


@dataclass(frozen=True, slots=True)
class DevicePlace:
    """Where a device stands in a mesh.

    Attributes:
      sizes: of the axes of the mesh.
      index: returns the place of the device along an axis; traced or not.
      doubts: booleans, traced or not: if one is true, bits may depend on the shape after all.
    """

    sizes: Mapping[str, int]
    index: Callable[[str], Any]
    doubts: list[Any] = field(default_factory=list)

    def parts(self, axes: Axes) -> int:
        """Returns into how many parts some axes cut."""
        return math.prod(self.sizes[axis] for axis in axes)

    def number(self, axes: Axes) -> Any:
        """Returns which of these parts the device holds."""
        number: Any = 0
        for axis in axes:
            number = number * self.sizes[axis] + self.index(axis)
        return number

    def local(self, shape: Sequence[int], cut: Cut) -> tuple[int, ...]:
        """Returns the shape of what a device holds."""
        sizes = zip(shape, cut, strict=True)
        return tuple(1 if axes is None else n // self.parts(axes) for n, axes in sizes)


@dataclass(frozen=True, slots=True, eq=False)
class HeldPart:
    """What a device holds of a value.

    Attributes:
      array: the part.
      shape: of the whole.
      cut: how it is cut. A dimension of size 1 has ``None``.
      is_rounded: whether the program that it is made in rounds on the way to it.
      is_repeated: whether elements are alike because that program repeats them.
    """

    array: Any
    shape: tuple[int, ...]
    cut: Cut
    is_rounded: bool = False
    is_repeated: bool = False

    @property
    def has_alike(self) -> bool:
        """Whether there is a dimension of several elements that are alike."""
        return any(n > 1 and axes is None for n, axes in zip(self.shape, self.cut, strict=True))

    def at(self, cut: Cut, grid: DevicePlace) -> Any:
        """Returns the part that another cut gives the device, if it holds that."""
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
    """Returns an array that a device holds whole."""
    shape = tuple(np.shape(array))
    return HeldPart(array, shape, tuple(None if n == 1 else () for n in shape))


def spread(part: HeldPart, grid: DevicePlace) -> HeldPart:
    """Returns a part that has all elements of the dimensions along which they are alike."""
    return cut_as(held_whole(part, grid), part.shape, part.cut)


def held_whole(part: HeldPart, grid: DevicePlace) -> Any:
    """Returns a part with all elements of dimensions along which they are alike."""
    pairs = zip(part.shape, part.cut, strict=True)
    return part.at(tuple(() if axes is None and n > 1 else axes for n, axes in pairs), grid)


def cut_as(array: Any, shape: Sequence[int], cut: Cut) -> HeldPart:
    """Returns an array that has all elements of its part, of a whole of this shape, so cut."""
    cut = tuple(None if n == 1 else axes or () for n, axes in zip(shape, cut, strict=True))
    return HeldPart(array, tuple(shape), cut)


def joined_cut(shape: Sequence[int], parts: Sequence[HeldPart]) -> Cut:
    """Returns the one cut of what is computed of several parts, element by element."""
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
    """Doubts a comparison of subnormal bfloat16, which a loop over one element takes for zeros."""
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
