"""Changes of a single tensor: another order of axes, another dtype.

Each change is a plain value that makes one source from another. Rules hold such values, print
them, and read them backwards.
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

    A tensor that does not have as many axes as are named (or more, with ``...``) is not changed: if
    that is wrong, its shape will not fit the leaf.

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
        """Returns the wanted shape with its axes in the tensor's order."""
        return tuple(wanted[axis] for axis in np.argsort(self.axes(len(wanted))))

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source with its axes reordered, or the source itself if nothing moves."""
        return transposed(source, self.axes(len(source.shape)))

    def restored(self, source: Source) -> Source:
        """Returns the source with its axes in the order before the change."""
        axes = np.argsort(self.axes(len(source.shape)))
        return transposed(source, tuple(int(axis) for axis in axes))

    def __call__(self, source: Source) -> Source:
        """Returns the source with its axes reordered, or the source itself if nothing moves."""
        return self.changed(source, None)

    def __repr__(self) -> str:
        return f"Transpose({self.order!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Cast(OneByOne):
    """Casts values to another dtype, also from one kind of number to another: ``Cast("float32")``.

    ``fill`` casts within one kind (float to float) by itself; other casts need this change.

    Attributes:
      dtype: the dtype of the leaf.
      back: the dtype of the tensor, to read rules backwards; ``""`` keeps the leaf's dtype.
      overflow: whether a value that the new dtype cannot hold wraps or becomes infinite, in both
        directions. If not, such a value is an error when it is read.

    Raises:
      FillError: ``dtype`` or ``back`` is no dtype.

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
        """Returns the source, cast to ``dtype``."""
        return self._as_dtype(source, self.dtype)

    def restored(self, source: Source) -> Source:
        """Returns the source, cast to ``back``, or unchanged if there is no ``back``."""
        return self._as_dtype(source, self.back) if self.back else source

    def _as_dtype(self, source: Source, dtype: str) -> Source:
        wanted = jnp.dtype(dtype)
        return source if source.dtype == wanted else AsDtype(source, wanted, self.overflow)

    def __repr__(self) -> str:
        back = f", back={self.back!r}" if self.back else ""
        return f"Cast({self.dtype!r}{back}{', overflow=True' * self.overflow})"


def _dtype_name(given: Any) -> str | None:  # Any: whatever jnp.dtype takes.
    """Returns the name of a dtype, or ``None`` if it is none."""
    try:
        dtype = jnp.dtype(given)
    except TypeError:
        return None
    # NumPy reads None as float64.
    return str(dtype) if given is not None and dtype.itemsize else None
