"""What a layout change is: a plain value that is read in both directions, over grids of sources.

A change never reads. It maps sources to sources, each of which maps an index back onto what it
reads, so that a shard of a changed tensor reads only its own part.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

from lazyinit import errors
from lazyinit.sources import Shape, Source

Wanted: TypeAlias = Shape | None
"""The shape that is wanted: -1 for a size that is not known, ``None`` if no size is known."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Sources on their way through a layout: a row for each pattern, a column for each number.

    Attributes:
      rows: one for each pattern of a rule; each holds one source, or one for each number.
      numbered: whether the columns are numbered, even if there is only one.
    """

    rows: tuple[tuple[Source, ...], ...]
    numbered: bool = False

    def map(self, change: Callable[[Source], Source]) -> "Grid":
        """Returns the grid with every source changed."""
        return Grid(tuple(tuple(map(change, row)) for row in self.rows), self.numbered)


@dataclass(frozen=True, slots=True)
class Frame:
    """How many rows a grid has, and whether its columns are numbered; known before any source.

    Attributes:
      rows: how many.
      numbered: whether the columns are numbered.
    """

    rows: int
    numbered: bool

    def __str__(self) -> str:
        return f"{self.rows} pattern{'s' * (self.rows != 1)}{', numbered' * self.numbered}"


@runtime_checkable
class Change(Protocol):
    """A step between the layout of tensors and that of leaves.

    Laws: ``backward(forward(grid))`` holds the values of ``grid``, and ``forward(backward(grid))``
    those of ``grid``, as long as the sizes that ``backward`` needs are equal or given.
    """

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns the frame of a grid after the change, on the way to these leaves.

        Raises:
          FillError: the change does not apply to such a grid.
        """
        ...

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the shape wanted of each row before the change, from those wanted after it."""
        ...

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid, changed; ``wanted`` are the shapes of its rows after the change.

        Raises:
          FillError: the shapes do not go together.
        """
        ...

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid as it was before the change.

        Raises:
          FillError: the grid does not tell what it was before.
        """
        ...


@runtime_checkable
class Decoding(Change, Protocol):
    """A change of values, which a leaf that has the dtype of the tensor does without."""

    def kept(self) -> Change:
        """Returns the change for such a leaf."""
        ...


@dataclass(frozen=True, slots=True)
class Layout:
    """Changes in order, between tensors and leaves of which the number is known.

    Attributes:
      changes: in the order in which they lead from tensors to leaves.
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
        """Whether a change makes other values of those that are stored."""
        return any(isinstance(change, Decoding) for change in self.changes)

    def kept(self) -> "Layout":
        """Returns the layout for leaves that keep values as they are stored."""
        changes = (c.kept() if isinstance(c, Decoding) else c for c in self.changes)
        return replace(self, changes=tuple(changes))

    def _frames(self) -> list[Frame]:
        frames = [self.tensors]
        for change in self.changes:
            frames.append(change.after(frames[-1], self.leaves))
        return frames

    def forward(self, grid: Grid, leaves: tuple[Wanted, ...]) -> Grid:
        """Returns what tensors become; ``leaves`` are the shapes wanted of its rows.

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
        """Returns the tensors that make these leaves.

        Raises:
          FillError: the shapes do not go together, or the leaves do not tell what a tensor was.
        """
        for change, frame in zip(self.changes[::-1], self._frames()[-2::-1], strict=True):
            grid = change.backward(grid, frame)
        return grid


class OneByOne:
    """A change of each source alone; a base for those that are."""

    __slots__ = ()

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the shape that a source must have for the change to give it the wanted one."""
        raise NotImplementedError  # Each change has its own.

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source, changed."""
        raise NotImplementedError  # Each change has its own.

    def restored(self, source: Source) -> Source:
        """Returns the source as it was before the change."""
        raise NotImplementedError  # Each change has its own.

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns the same frame: a change of each source alone keeps rows and columns."""
        return before

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the shape wanted of each row before the change."""
        return tuple(None if shape is None else self.wanted_before(shape) for shape in wanted)

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with each source changed."""
        rows = zip(grid.rows, wanted, strict=True)
        changed = (tuple(self.changed(source, shape) for source in row) for row, shape in rows)
        return Grid(tuple(changed), grid.numbered)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with each source as it was."""
        return grid.map(self.restored)


def axis_of(axis: int, ndim: int, change: Change) -> int:
    """Returns an axis counted from 0.

    Raises:
      FillError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise errors.FillError(
            f"{change}: wanted an axis of the leaf or tensor, which has {ndim} in all."
        )
    return axis % ndim


def size_along(shape: Wanted, axis: int) -> int:
    """Returns the size that is wanted along an axis, or -1."""
    return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else -1


def resized(shape: Wanted, axis: int, size: int) -> Wanted:
    """Returns a shape with another size along an axis."""
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return (*shape[:axis], size, *shape[axis + 1 :])
