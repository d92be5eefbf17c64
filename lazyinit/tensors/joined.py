"""Sources over several others, which are joined along an axis or required to be equal.

Each reads only those elements of its parts that an index needs.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.as_dtype import AsDtype, cast, told
from lazyinit.tensors.base import Derived, bounds
from lazyinit.tensors.casting import may_overflow
from lazyinit.tensors.tiles import copy


@dataclass(frozen=True, slots=True, repr=False)
class Joined(Derived):
    """A ``Source``: several others, concatenated along an axis or stacked along a new one.

    Attributes:
      parts: the sources to join; at least one.
      axis: the axis, counted from 0. If it is not new, the parts may differ in size along it.
      is_stacked: whether the axis is new; all parts then have one shape.
    """

    parts: tuple[Source, ...]
    axis: int
    is_stacked: bool = False

    @property
    def reads(self) -> tuple[Source, ...]:
        """The parts."""
        return self.parts

    @property
    def shape(self) -> Shape:
        """The shape of one part, with the sizes of all along the axis added up."""
        shape, size = self.parts[0].shape, sum(map(self._size, self.parts))
        return (*shape[: self.axis], size, *shape[self.axis + (not self.is_stacked) :])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that JAX promotes the dtypes of the parts to."""
        return functools.reduce(jnp.promote_types, {part.dtype: None for part in self.parts})

    @property
    def may_refuse(self) -> bool:
        """Whether a part may have a value that the dtype cannot hold: int32 beside float16."""
        return any(may_overflow(part.dtype, self.dtype) for part in self.parts)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; copies none if one part, of this dtype, has them all."""
        ends = bounds(index, self.shape)
        blocks = list(self._blocks(*ends[self.axis]))
        if len(blocks) == 1:
            block = self._block(index, *blocks[0])
            if block.dtype == self.dtype:
                return block
            with told(blocks[0][0]):
                return cast(block, self.dtype)
        values = np.empty([stop - start for start, stop in ends], self.dtype)
        place = 0
        for part, begin, end in blocks:
            there = slice(place, place + end - begin)
            block = self._block(index, part, begin, end)
            with told(part):
                copy(values[(*(slice(None),) * self.axis, there, ...)], block)
            place = there.stop
        return values

    def _size(self, part: Source) -> int:
        return 1 if self.is_stacked else part.shape[self.axis]

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[Source, int, int]]:
        offset = 0
        for part in self.parts:
            size = self._size(part)
            begin, end = max(start - offset, 0), min(stop - offset, size)
            if begin < end:
                yield part, begin, end
            offset += size

    def _block(self, index: Index, part: Source, begin: int, end: int) -> np.ndarray:
        before, after = index[: self.axis], index[self.axis + 1 :]
        if self.is_stacked:
            return np.expand_dims(part.read((*before, *after)), self.axis)
        return part.read((*before, slice(begin, end), *after))

    def __repr__(self) -> str:
        shown = list(map(repr, self.parts))
        listed = ", ".join(shown if len(shown) < 4 else [shown[0], "...", shown[-1]])
        return f"{'stack' if self.is_stacked else 'concat'}([{listed}], axis={self.axis})"


@dataclass(frozen=True, slots=True, repr=False)
class Agreeing(Derived):
    """A ``Source``: one of several that must hold the same values, as leaves tied by rules do.

    Attributes:
      parts: the sources that are read and compared.
      name: the name of the tensor.
    """

    parts: tuple[Source, ...]
    name: str

    @property
    def reads(self) -> tuple[Source, ...]:
        """The parts."""
        return self.parts

    @property
    def shape(self) -> Shape:
        """The shape, which is that of every part."""
        return self.parts[0].shape

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``.

        Raises:
          FillError: the parts differ there.
        """
        parts = (p if p.dtype == self.dtype else AsDtype(p, self.dtype) for p in self.parts)
        first, *others = (part.read(index) for part in parts)
        for part, other in zip(self.parts[1:], others, strict=True):
            if not np.array_equal(_bits(first), _bits(other)):
                raise errors.FillError(
                    f"{self.name}: wanted leaves that are equal, as the rules make them from one "
                    f"tensor, got {self.parts[0]!r} and {part!r}, which differ. Give one of them "
                    "a tensor of its own in rules."
                )
        return first

    def __repr__(self) -> str:
        return repr(self.parts[0])


def _bits(values: np.ndarray) -> np.ndarray:
    # Bits are compared, not values, so that NaN equals itself.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
