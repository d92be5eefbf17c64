"""What a layout change is: a plain value that maps a grid of sources to another, and back.

A change never reads a value. Each source that it makes translates an index into an index of the
source behind it, so that a shard of a changed tensor reads only its own part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

from lazyinit import errors
from lazyinit.sources import Shape, Source

Wanted: TypeAlias = Shape | None
"""The shape that a source has to have: -1 for an unknown size, ``None`` if nothing is known."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The sources that a change takes or makes: a row for each pattern, a column for each number.

    Attributes:
      rows: one row for each pattern of a rule; it has one source, or one for each number.
      numbered: whether the columns are numbered, even if there is only one.
    """

    rows: tuple[tuple[Source, ...], ...]
    numbered: bool = False

    def map(self, change: Callable[[Source], Source]) -> "Grid":
        """Returns the grid with every source changed."""
        return Grid(tuple(tuple(map(change, row)) for row in self.rows), self.numbered)


@dataclass(frozen=True, slots=True)
class Frame:
    """The form of a grid, which is known before there are sources.

    Attributes:
      rows: how many rows the grid has.
      numbered: whether the columns are numbered.
    """

    rows: int
    numbered: bool

    def __str__(self) -> str:
        return f"{self.rows} pattern{'s' * (self.rows != 1)}{', numbered' * self.numbered}"


@runtime_checkable
class Change(Protocol):
    """A step between the layout of tensors and that of leaves.

    Laws: ``backward(forward(grid))`` has the values of ``grid``, and so has
    ``forward(backward(grid))``, if the sizes that ``backward`` needs are given, or are equal.
    """

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns the frame of a grid after the change; ``leaves`` is the frame after the last one.

        Raises:
          FillError: the change does not apply to a grid of the frame ``before``.
        """
        ...

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shapes of the rows of ``grid``, from those after the change."""
        ...

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the changed grid; ``wanted`` are the wanted shapes of its rows.

        Raises:
          FillError: the shapes do not go together.
        """
        ...

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid as it was before the change, in the frame ``before``.

        Raises:
          FillError: the grid does not tell what it was before.
        """
        ...


@runtime_checkable
class Decoding(Change, Protocol):
    """A change that decodes stored values; a leaf of the stored dtype keeps them encoded."""

    def kept(self) -> Change:
        """Returns the change for a leaf that keeps the values as they are stored."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Changes in order, which are known to lead from these tensors to these leaves.

    Attributes:
      changes: the changes, in the order from tensors to leaves.
      tensors: the frame of the tensors.
      leaves: the frame of the leaves.

    Raises:
      FillError: the changes do not lead from the tensors to the leaves.
    """

    changes: tuple[Change, ...]
    tensors: Frame
    leaves: Frame

    def __post_init__(self) -> None:
        last = self._frames()[-1]
        if last != self.leaves:
            raise errors.FillError(
                f"wanted changes that lead to {self.leaves}, got {last}. Several tensors make one "
                "leaf with Stack or Concat, one tensor several leaves with Unstack or Split."
            )

    @property
    def is_decoding(self) -> bool:
        """Whether one of the changes decodes stored values."""
        return any(isinstance(change, Decoding) for change in self.changes)

    def kept(self) -> "Layout":
        """Returns the layout for leaves that keep values as they are stored."""
        changes = (c.kept() if isinstance(c, Decoding) else c for c in self.changes)
        return replace(self, changes=tuple(changes))

    def _frames(self) -> list[Frame]:
        """Returns the frame of the tensors, and the frame after each change."""
        frames = [self.tensors]
        for change in self.changes:
            frames.append(change.after(frames[-1], self.leaves))
        return frames

    def forward(self, grid: Grid, leaves: tuple[Wanted, ...]) -> Grid:
        """Returns the grid of leaves for one of tensors; ``leaves`` are the leaves' shapes.

        Raises:
          FillError: the shapes do not go together.
        """
        wanted = [leaves]
        for change, frame in zip(self.changes[::-1], self._frames()[-2::-1], strict=True):
            wanted.append(change.before(wanted[-1], frame))
        for change, shapes in zip(self.changes, wanted[-2::-1], strict=True):
            grid = change.forward(grid, shapes)
        return grid

    def backward(self, grid: Grid) -> Grid:
        """Returns the grid of the tensors that make a grid of leaves.

        Raises:
          FillError: the shapes do not go together, or the leaves do not tell what a tensor was.
        """
        for change, frame in zip(self.changes[::-1], self._frames()[-2::-1], strict=True):
            grid = change.backward(grid, frame)
        return grid


class OneByOne:
    """The base of changes that map each source by itself."""

    __slots__ = ()

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the shape that a source must have, so that the change makes the wanted one."""
        raise NotImplementedError  # Each change has its own.

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the changed source."""
        raise NotImplementedError  # Each change has its own.

    def restored(self, source: Source) -> Source:
        """Returns the source as it was before the change."""
        raise NotImplementedError  # Each change has its own.

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns the same frame: rows and columns are kept."""
        return before

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shape of each row before the change."""
        return tuple(None if shape is None else self.wanted_before(shape) for shape in wanted)

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with each source changed."""
        rows = zip(grid.rows, wanted, strict=True)
        changed = (tuple(self.changed(source, shape) for source in row) for row, shape in rows)
        return Grid(tuple(changed), grid.numbered)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with each source as it was before the change."""
        return grid.map(self.restored)


def axis_of(axis: int, ndim: int, change: Change) -> int:
    """Returns an axis counted from 0.

    Raises:
      FillError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise errors.FillError(
            f"{change}: wanted an axis of the leaf or tensor, which has {ndim} in all, got {axis}."
        )
    return axis % ndim


def size_along(shape: Wanted, axis: int) -> int:
    """Returns the wanted size along an axis, or -1 if it is not known."""
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else -1


def resized(shape: Wanted, axis: int, size: int) -> Wanted:
    """Returns a shape with another size along an axis; ``None`` if the shape has no such axis."""
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return (*shape[:axis], size, *shape[axis + 1 :])
