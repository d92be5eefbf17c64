"""Changes of the length of an axis: repeated, padded, or trimmed.

They need no kinds of sources of their own: a repeated source is stacked with itself, a padded one
is joined with a constant.
"""

from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.rules.change import OneByOne, Wanted, axis_of, resized, size_along
from lazyinit.sources import Shape, Source
from lazyinit.tensors.as_dtype import cast
from lazyinit.tensors.casting import Overflow
from lazyinit.tensors.joined import Agreeing, Joined
from lazyinit.tensors.memory import Filled
from lazyinit.tensors.views import cut, reshaped, selected


@dataclass(frozen=True, slots=True)
class Repeat(OneByOne):
    """Repeats each index along an axis, as ``numpy.repeat`` does: heads that queries share.

    Backwards, the repeated parts are compared when they are read: they must be equal.

    Attributes:
      axis: the axis; negative to count from the end.
      times: how often the leaf has each part, 1 or more.

    Raises:
      FillError: ``times`` is below 1.

    Example:
      >>> Repeat(axis=1, times=4)
      Repeat(axis=1, times=4)
    """

    axis: int
    times: int

    def __post_init__(self) -> None:
        if self.times < 1:
            raise errors.FillError(f"{self}: wanted times=1 or more.")

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape with its size along the axis divided by ``times``."""
        size = size_along(wanted, self.axis)
        known = size >= 0 and size % self.times == 0
        return resized(wanted, self.axis, size // self.times if known else -1)

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source with each index along the axis repeated."""
        axis = axis_of(self.axis, len(source.shape), self)
        stacked = Joined((source,) * self.times, axis + 1, is_stacked=True)
        size = source.shape[axis] * self.times
        return reshaped(stacked, (*source.shape[:axis], size, *source.shape[axis + 1 :]))

    def restored(self, source: Source) -> Source:
        """Returns the source with one of each set of equal parts."""
        axis = axis_of(self.axis, len(source.shape), self)
        count, rest = divmod(source.shape[axis], self.times)
        if rest:
            raise errors.FillError(
                f"{self}: wanted a multiple of {self.times} along axis {axis}, got a leaf of shape "
                f"{list(source.shape)}."
            )
        apart = (*source.shape[:axis], count, self.times, *source.shape[axis + 1 :])
        places = [selected(reshaped(source, apart), axis + 1, n) for n in range(self.times)]
        name = ", ".join(source.names)
        return places[0] if len(places) == 1 else Agreeing(tuple(places), name)


@dataclass(frozen=True, slots=True, repr=False)
class _Resized(OneByOne):
    """The base of ``Pad`` and ``Trim``, which make an axis longer or shorter at its end.

    Attributes:
      axis: the axis; negative to count from the end.
      size: the leaf's size along it; -1 to take it from the leaf's shape.
      back: the tensor's size along it, to read rules backwards; -1 if it is not known.
      value: the value that fills the longer axis.
    """

    axis: int
    size: int = -1
    back: int = -1
    value: float = 0

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape with ``back`` as its size along the axis."""
        return resized(wanted, self.axis, self.back)

    def _size_of_leaf(self, wanted: Wanted) -> int:
        """Returns the size along the axis after the change, or raises a ``FillError``."""
        size = self.size if self.size >= 0 else size_along(wanted, self.axis)
        if size < 0:
            raise errors.FillError(
                f"{self}: wanted the size of the leaf, which nothing tells here. Pass it as size=."
            )
        return size

    def _size_of_tensor(self) -> int:
        """Returns the size along the axis before the change, or raises a ``FillError``."""
        if self.back < 0:
            raise errors.FillError(
                f"{self}: wanted the size that the tensor had, which the leaf does not tell. Pass "
                "it as back=."
            )
        return self.back

    def _padded(self, source: Source, size: int) -> Source:
        """Returns the source with its axis filled up to a size."""
        axis = axis_of(self.axis, len(source.shape), self)
        more = size - source.shape[axis]
        if more < 0:
            raise errors.FillError(
                f"{self}: wanted at most {size} along axis {axis}, got shape {list(source.shape)}."
            )
        shape = (*source.shape[:axis], more, *source.shape[axis + 1 :])
        try:
            padding = Filled(cast(np.asarray(self.value), source.dtype), shape)
        except Overflow as error:
            raise errors.FillError(
                f"{self}: wanted a value that {source.dtype} holds, got {error.value}, which would "
                f"become {error.made}. Pad with another value=, or Cast before it."
            ) from None
        return Joined((source, padding), axis) if more else source

    def _trimmed(self, source: Source, size: int) -> Source:
        """Returns the source with its axis cut to a size."""
        axis = axis_of(self.axis, len(source.shape), self)
        if size > source.shape[axis]:
            raise errors.FillError(
                f"{self}: wanted at least {size} along axis {axis}, got shape {list(source.shape)}."
            )
        return cut(source, {axis: (0, size)}) if size < source.shape[axis] else source

    def __repr__(self) -> str:
        said = [f"axis={self.axis}"]
        said += [f"{n}={v}" for n in ("size", "back") if (v := getattr(self, n)) >= 0]
        said += [f"value={self.value}"] * (self.value != 0)
        return f"{type(self).__name__}({', '.join(said)})"


@dataclass(frozen=True, slots=True, repr=False)
class Pad(_Resized):
    """Pads an axis at its end: for a vocabulary or heads whose number is rounded up.

    Attributes:
      axis: the axis; negative to count from the end.
      size: the leaf's size along it; -1 to take it from the leaf's shape.
      back: the tensor's size along it; rules that are read backwards trim to it. -1 if it is not
        known.
      value: the value of the padding.

    Example:
      >>> Pad(axis=0, back=50257)
      Pad(axis=0, back=50257)
    """

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the padded source."""
        return self._padded(source, self._size_of_leaf(wanted))

    def restored(self, source: Source) -> Source:
        """Returns the source without the padding."""
        return self._trimmed(source, self._size_of_tensor())


@dataclass(frozen=True, slots=True, repr=False)
class Trim(_Resized):
    """Drops the end of an axis: for a checkpoint whose vocabulary is padded.

    Attributes:
      axis: the axis; negative to count from the end.
      size: the leaf's size along it; -1 to take it from the leaf's shape.
      back: the tensor's size along it; rules that are read backwards pad to it. -1 if it is not
        known.
      value: the value of that padding.

    Example:
      >>> Trim(axis=0, back=50304)
      Trim(axis=0, back=50304)
    """

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source without the end of the axis."""
        return self._trimmed(source, self._size_of_leaf(wanted))

    def restored(self, source: Source) -> Source:
        """Returns the padded source."""
        return self._padded(source, self._size_of_tensor())
