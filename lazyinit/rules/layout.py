"""Changes of one tensor alone: its axes in another order, its values in another dtype.

Each is a plain value that makes a source of another; rules hold such values, print them, and read
them backwards.
"""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.rules.change import OneByOne, Wanted
from lazyinit.sources import Shape, Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.views import transposed


@dataclass(frozen=True, slots=True, repr=False)
class Transpose(OneByOne):
    """Reorders axes by name: ``Transpose("o i ... -> ... i o")`` for tensors of any rank.

    A tensor with fewer axes than are named, or with more where there is no ``...``, stays as
    it is: if that is wrong, its shape will not fit the leaf.

    Attributes:
      order: axis names before and after ``->``; ``...`` stands for the axes that are not named.

    Raises:
      FillError: the two sides do not name the same axes once each.

    Example:
      >>> Transpose("o i ... -> ... i o").axes(4)
      (2, 3, 1, 0)
    """

    order: str

    def __post_init__(self) -> None:
        before, arrow, after = (side.split() for side in self.order.partition("->"))
        if not arrow or sorted(before) != sorted(after) or len(set(before)) != len(before):
            raise errors.FillError(
                f"Transpose({self.order!r}): wanted the same axes once each before and after '->', "
                "as in 'o i ... -> ... i o'."
            )

    def axes(self, ndim: int) -> tuple[int, ...]:
        """Returns the axes, as ``numpy.transpose`` takes them, for a tensor of ``ndim`` axes."""
        before, _, after = (side.split() for side in self.order.partition("->"))
        unnamed = ndim - len(before) + before.count("...")
        if unnamed < 0 or (unnamed > 0 and "..." not in before):
            return tuple(range(ndim))
        place: dict[str, range] = {}
        axis = 0
        for name in before:
            width = unnamed if name == "..." else 1
            place[name] = range(axis, axis + width)
            axis += width
        return tuple(axis for name in after for axis in place[name])

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape with its axes in the order in which the tensor has them."""
        return tuple(wanted[axis] for axis in np.argsort(self.axes(len(wanted))))

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source with its axes reordered; itself if that changes nothing."""
        return transposed(source, self.axes(len(source.shape)))

    def restored(self, source: Source) -> Source:
        """Returns the source with its axes in their old order."""
        axes = np.argsort(self.axes(len(source.shape)))
        return transposed(source, tuple(int(axis) for axis in axes))

    def __call__(self, source: Source) -> Source:
        """Returns the source with its axes reordered; itself if that changes nothing."""
        return self.changed(source, None)

    def __repr__(self) -> str:
        return f"Transpose({self.order!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Cast(OneByOne):
    """Casts values, to another kind of number too: ``Cast("float32")``.

    ``fill`` casts within a kind (float to float) by itself, so this is for the rest.

    Attributes:
      dtype: of the leaf.
      back: of the tensor, if rules are read backwards; ``""`` leaves it that of the leaf.
      overflow: whether a value that the dtype cannot hold wraps or becomes infinite, in both
        directions; without it such a value is an error when it is read.

    Raises:
      FillError: one of them is no dtype.

    Example:
      >>> Cast("float32", back="int8")
      Cast('float32', back='int8')
    """

    dtype: Any  # Whatever jnp.dtype takes.
    back: Any = ""
    overflow: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("dtype", "back"):
            given = getattr(self, name)
            dtype = "" if name == "back" and given == "" else _dtype_name(given)
            if dtype is None:
                raise errors.FillError(
                    f"Cast: wanted a dtype for {name}, got {given!r}. Write it as Cast('float32')."
                )
            object.__setattr__(self, name, dtype)

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape: the change keeps every shape."""
        return wanted

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source, cast."""
        return self._as_dtype(source, self.dtype)

    def restored(self, source: Source) -> Source:
        """Returns the source, cast to ``back``, if that is said."""
        return self._as_dtype(source, self.back) if self.back else source

    def _as_dtype(self, source: Source, dtype: str) -> Source:
        wanted = jnp.dtype(dtype)
        return source if source.dtype == wanted else AsDtype(source, wanted, self.overflow)

    def __repr__(self) -> str:
        back = f", back={self.back!r}" if self.back else ""
        return f"Cast({self.dtype!r}{back}{', overflow=True' * self.overflow})"


def _dtype_name(given: Any) -> str | None:  # Any: whatever jnp.dtype takes.
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        return None
    return str(dtype) if given is not None and dtype.itemsize else None  # None is float64 to numpy.
