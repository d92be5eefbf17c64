"""Changes of how many tensors there are: stacked, concatenated, and the same undone.

Each source here reads of its parts only what an index wants of them.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.params import Extent, Index, Shape, Source
from lazyinit.sources.changed import Changed, bounds, slices


def _common_dtype(parts: Sequence[Source]) -> np.dtype:
    return functools.reduce(jnp.promote_types, {part.dtype: None for part in parts})


def _shown(parts: Sequence[Source]) -> str:
    shown = list(map(repr, parts))
    return ", ".join(shown if len(shown) < 4 else [shown[0], "...", shown[-1]])


@dataclass(frozen=True, slots=True, repr=False)
class Stacked(Changed):
    """A ``Source``: others of one shape, along a new axis.

    Attributes:
      parts: what is read; at least one.
      axis: the new one, counted from 0.
    """

    parts: tuple[Source, ...]
    axis: int

    @property
    def reads(self) -> tuple[Source, ...]:
        """What it reads."""
        return self.parts

    @property
    def shape(self) -> Shape:
        """The shape of one, with the number of them put in."""
        shape = self.parts[0].shape
        return (*shape[: self.axis], len(self.parts), *shape[self.axis :])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the values of all."""
        return _common_dtype(self.parts)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; a view if it is in one part."""
        ends = bounds(index, self.shape)
        (first, last), rest = ends[self.axis], (*index[: self.axis], *index[self.axis + 1 :])
        if last - first == 1:
            return np.expand_dims(self.parts[first].read(rest), self.axis).astype(
                self.dtype, copy=False
            )
        values = np.empty([stop - start for start, stop in ends], self.dtype)
        for place, part in enumerate(self.parts[first:last]):
            values[(slice(None),) * self.axis + (place, ...)] = part.read(rest)
        return values

    def __repr__(self) -> str:
        return f"stack([{_shown(self.parts)}], axis={self.axis})"


@dataclass(frozen=True, slots=True, repr=False)
class Concatenated(Changed):
    """A ``Source``: others, one behind the other along an axis that they have.

    Attributes:
      parts: what is read; at least one.
      axis: the one along which their sizes may differ, counted from 0.
    """

    parts: tuple[Source, ...]
    axis: int

    @property
    def reads(self) -> tuple[Source, ...]:
        """What it reads."""
        return self.parts

    @property
    def shape(self) -> Shape:
        """The shape of one, with the sizes along the axis added up."""
        shape, size = self.parts[0].shape, sum(part.shape[self.axis] for part in self.parts)
        return (*shape[: self.axis], size, *shape[self.axis + 1 :])

    @property
    def dtype(self) -> np.dtype:
        """The dtype that holds the values of all."""
        return _common_dtype(self.parts)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``; a view if it is in one part."""
        ends = bounds(index, self.shape)
        blocks = list(self._blocks(*ends[self.axis]))
        if len(blocks) == 1:
            ((part, begin, end),) = blocks
            return part.read(self._at(index, begin, end)).astype(self.dtype, copy=False)
        values = np.empty([stop - start for start, stop in ends], self.dtype)
        place = 0
        for part, begin, end in blocks:
            values[self._at((slice(None),) * len(ends), place, place + end - begin)] = part.read(
                self._at(index, begin, end)
            )
            place += end - begin
        return values

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[Source, int, int]]:
        offset = 0
        for part in self.parts:
            size = part.shape[self.axis]
            begin, end = max(start - offset, 0), min(stop - offset, size)
            if begin < end:
                yield part, begin, end
            offset += size

    def _at(self, index: Index, start: int, stop: int) -> Index:
        return (*index[: self.axis], slice(start, stop), *index[self.axis + 1 :])

    def __repr__(self) -> str:
        return f"concat([{_shown(self.parts)}], axis={self.axis})"


@dataclass(frozen=True, slots=True, repr=False)
class Sliced(Changed):
    """A ``Source``: a range of another along one axis; reading gives a view of the same bytes.

    Attributes:
      source: what is read.
      axis: counted from 0.
      start: the first place along it.
      stop: the place after the last.
    """

    source: Source
    axis: int
    start: int
    stop: int

    @property
    def reads(self) -> tuple[Source]:
        """What it reads."""
        return (self.source,)

    @property
    def shape(self) -> Shape:
        """The shape, cut along the axis."""
        shape = self.source.shape
        return (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, counted from ``start``."""
        ends = list(bounds(index, self.shape))
        start, stop = ends[self.axis]
        ends[self.axis] = (start + self.start, stop + self.start)
        return self.source.read(slices(ends))

    def __repr__(self) -> str:
        return f"{self.source!r}[{':, ' * self.axis}{self.start}:{self.stop}]"


@dataclass(frozen=True, slots=True, repr=False)
class Selected(Changed):
    """A ``Source``: another at one place along an axis, which is gone.

    Attributes:
      source: what is read.
      axis: counted from 0.
      place: along it.
    """

    source: Source
    axis: int
    place: int

    @property
    def reads(self) -> tuple[Source]:
        """What it reads."""
        return (self.source,)

    @property
    def shape(self) -> Shape:
        """The shape without the axis."""
        return (*self.source.shape[: self.axis], *self.source.shape[self.axis + 1 :])

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view of the same bytes."""
        here = slice(self.place, self.place + 1)
        block = self.source.read((*index[: self.axis], here, *index[self.axis :]))
        return block.squeeze(self.axis)

    def __repr__(self) -> str:
        return f"{self.source!r}[{':, ' * self.axis}{self.place}]"


@dataclass(frozen=True, slots=True, repr=False)
class Agreeing(Changed):
    """A ``Source``: one of several that must hold the same values, as leaves tied by rules do.

    Attributes:
      parts: what is read and compared.
      name: what the tensor is called.
    """

    parts: tuple[Source, ...]
    name: str

    @property
    def reads(self) -> tuple[Source, ...]:
        """What it reads."""
        return self.parts

    @property
    def shape(self) -> Shape:
        """The shape, which is that of each."""
        return self.parts[0].shape

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``.

        Raises:
          FillError: they differ.
        """
        first, *others = (part.read(index) for part in self.parts)
        for part, other in zip(self.parts[1:], others, strict=True):
            if not np.array_equal(_bits(first), _bits(other.astype(first.dtype, copy=False))):
                raise errors.FillError(
                    f"{self.name}: wanted leaves that are equal, as the rules make them from one "
                    f"tensor, got {self.parts[0]!r} and {part!r}, which differ. Give one of them "
                    "a tensor of its own in rules."
                )
        return first

    def __repr__(self) -> str:
        return repr(self.parts[0])


def _bits(values: np.ndarray) -> np.ndarray:
    # Not the values: NaN is equal to itself here.
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Filled:
    """A ``Source``: one value everywhere, or an array that is repeated; it lies in no file.

    Attributes:
      value: numpy; its shape goes by the rules of broadcasting.
      shape: of the leaf.
    """

    value: np.ndarray
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the value."""
        return self.value.dtype

    @property
    def names(self) -> tuple[str, ...]:
        """None: it is made from no tensor."""
        return ()

    @property
    def origin(self) -> str:
        """A word for the rule that says it."""
        return "a constant"

    @property
    def extents(self) -> tuple[Extent, ...]:
        """None: it lies in no file."""
        return ()

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``: a view of the one value."""
        return np.broadcast_to(self.value, self.shape)[(*index, ...)]

    def check(self) -> None:
        """Does nothing: a value cannot be gone."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filled) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[Any, ...]:  # Any: bytes, shapes, a dtype.
        return self.value.tobytes(), self.value.shape, self.value.dtype, self.shape

    def __repr__(self) -> str:
        return f"constant {self.value.tolist()!r:.40}"
