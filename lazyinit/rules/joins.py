"""Changes that join tensors to one leaf, or cut one tensor into leaves.

``Stack`` and ``Concat`` join. ``Unstack`` and ``Split`` are their inverses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyinit import errors
from lazyinit.rules.change import Change, Frame, Grid, Wanted, axis_of, resized, size_along
from lazyinit.sources import Source
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.views import cut, selected


@dataclass(frozen=True, slots=True)
class Stack:
    """Stacks tensors along a new axis: those that ``{n}`` counts, or those of several patterns.

    The numbers have to start at 0 and leave none out.

    Attributes:
      axis: the new axis of the leaf; negative to count from the end.

    Example:
      >>> from lazyinit.rules.torch import Rule
      >>> Rule("layers/up/kernel", "h.{n}.up.weight", [Stack(axis=0)])
      Rule('layers/up/kernel', 'h.{n}.up.weight', [Stack(axis=0)])
    """

    axis: int = 0

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns one column per row if the tensors are numbered, otherwise one row for all."""
        if before.numbered:
            return Frame(before.rows, False)
        if before.rows > 1:
            return Frame(1, False)
        raise errors.FillError(
            f"{self}: wanted several tensors, got one. Number them in the rule, 'h.{{n}}.weight', "
            "or list their patterns."
        )

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shapes without the new axis."""
        less = tuple(_without(shape, self.axis) for shape in wanted)
        return less if grid.numbered else less * grid.rows

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with its numbered columns stacked, or else its rows."""
        return _gathered(grid, lambda sources: _stacked(sources, self.axis, self))

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with one source for each index along the axis."""
        return _scattered(grid, before, self.axis, self)


@dataclass(frozen=True, slots=True)
class Unstack:
    """Makes a leaf of each index along an axis: ``{n}`` counts the leaves, or patterns list them.

    Attributes:
      axis: the axis of the tensor that the leaves lack; negative to count from the end.

    Example:
      >>> from lazyinit.rules.torch import Rule
      >>> Rule("h/{n}/up/kernel", "layers.up.kernel", [Unstack(axis=0)])
      Rule('h/{n}/up/kernel', 'layers.up.kernel', [Unstack(axis=0)])
    """

    axis: int = 0

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns numbered columns if the leaves are numbered, otherwise a row for each."""
        if leaves.numbered and not before.numbered:
            return Frame(before.rows, True)
        if before.rows == 1 and leaves.rows > 1:
            return Frame(leaves.rows, before.numbered)
        raise errors.FillError(
            f"{self}: wanted several leaves, got one. Number them in the rule, 'h/{{n}}/kernel', "
            "or list their patterns."
        )

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shapes with the axis inserted."""
        if len(wanted) == grid.rows:
            return tuple(_inserted(shape, self.axis, -1) for shape in wanted)
        return (_inserted(wanted[0], self.axis, len(wanted)),)

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with one source for each index along the axis."""
        rows = len(wanted)
        return _scattered(grid, Frame(rows, rows == len(grid.rows)), self.axis, self)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with its sources stacked again."""
        return _gathered(grid, lambda sources: _stacked(sources, self.axis, self))


def _gathered(grid: Grid, join: Callable[[Sequence[Source]], Source]) -> Grid:
    """Returns the grid with the numbered columns of each row joined, or else its rows."""
    if grid.numbered:
        return Grid(tuple((join(row),) for row in grid.rows))
    return Grid(((join([source for (source,) in grid.rows]),),))


def _scattered(grid: Grid, target: Frame, axis: int, change: Change) -> Grid:
    """Returns the grid with each source cut into columns, or else into rows, along an axis."""
    rows = tuple(_unstacked(source, axis, change) for (source,) in grid.rows)
    if target.numbered:
        return Grid(rows, True)
    if len(rows[0]) != target.rows:
        raise errors.FillError(
            f"{change}: wanted an axis of size {target.rows}, got {list(grid.rows[0][0].shape)}."
        )
    return Grid(tuple((source,) for source in rows[0]))


def _stacked(sources: Sequence[Source], axis: int, change: Change) -> Source:
    first = sources[0]
    for source in sources[1:]:
        if source.shape != first.shape:
            raise errors.FillError(
                f"{change}: wanted tensors of one shape, got {list(first.shape)} in {first!r} and "
                f"{list(source.shape)} in {source!r}."
            )
    return Joined(tuple(sources), axis_of(axis, len(first.shape) + 1, change), is_stacked=True)


def _unstacked(source: Source, axis: int, change: Change) -> tuple[Source, ...]:
    axis = axis_of(axis, len(source.shape), change)
    return tuple(selected(source, axis, place) for place in range(source.shape[axis]))


@dataclass(frozen=True, slots=True, repr=False)
class Concat:
    """Concatenates tensors: ``Concat(axis=1)`` fuses q, k and v into one kernel.

    Attributes:
      axis: the axis of the leaf along which the tensors lie; negative to count from the end.
      parts: the tensors' sizes along it, or their proportions, to read rules backwards; ``()`` for
        equal parts.

    Example:
      >>> Concat(axis=1, parts=(4, 1, 1))
      Concat(axis=1, parts=(4, 1, 1))
    """

    axis: int
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns a frame with one row."""
        _check_parts(self, self.parts, before.rows, "tensors")
        return Frame(1, before.numbered)

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shape for each tensor, with an unknown size along the axis."""
        return (resized(wanted[0], self.axis, -1),) * grid.rows

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with its rows concatenated."""
        return _concatenated(grid, self.axis, self)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with its one row cut into several."""
        return _cut(grid, self.axis, (-1,) * before.rows, self.parts, self)

    def __repr__(self) -> str:
        return f"Concat(axis={self.axis}{_shown(self.parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class Split:
    """Cuts a tensor into several leaves: ``Split(axis=1)`` takes a fused kernel apart.

    The shapes of the leaves give the sizes; if they are not known, ``parts`` does.

    Attributes:
      axis: the axis of the tensor along which the leaves lie; negative to count from the end.
      parts: the leaves' sizes along it, or their proportions; ``()`` for equal parts.

    Example:
      >>> Split(axis=1)
      Split(axis=1)
    """

    axis: int
    parts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns a frame with a row for each pattern of leaves."""
        if before.rows > 1:
            raise errors.FillError(
                f"{self}: wanted one tensor to split, got {before.rows}. Write a rule for each."
            )
        _check_parts(self, self.parts, leaves.rows, "leaves")
        return Frame(leaves.rows, before.numbered)

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns the wanted shape of the one tensor, from those of the leaves.

        Its size along the axis is the sum of the leaves' sizes, or -1 if one of these is not known.
        """
        sizes = [size_along(shape, self.axis) for shape in wanted]
        known = next((shape for shape in wanted if shape is not None), None)
        return (resized(known, self.axis, -1 if -1 in sizes else sum(sizes)),)

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with its one row cut into several."""
        sizes = tuple(size_along(shape, self.axis) for shape in wanted)
        return _cut(grid, self.axis, sizes, self.parts, self)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Returns the grid with its rows concatenated."""
        return _concatenated(grid, self.axis, self)

    def __repr__(self) -> str:
        return f"Split(axis={self.axis}{_shown(self.parts)})"


def _shown(parts: tuple[int, ...]) -> str:
    return f", parts={parts}" if parts else ""


def _check_parts(change: Change, parts: tuple[int, ...], count: int, what: str) -> None:
    if count < 2:
        raise errors.FillError(
            f"{change}: wanted several {what}, got {count}. List their patterns in the rule."
        )
    if (parts and len(parts) != count) or any(part < 1 for part in parts):
        raise errors.FillError(
            f"{change}: wanted a part of 1 or more for each of {count} {what}, got {len(parts)}."
        )


def _concatenated(grid: Grid, axis: int, change: Change) -> Grid:
    return Grid(
        (tuple(_joined(c, axis, change) for c in zip(*grid.rows, strict=True)),), grid.numbered
    )


def _joined(sources: Sequence[Source], axis: int, change: Change) -> Source:
    first = sources[0]
    axis = axis_of(axis, len(first.shape), change)
    for source in sources[1:]:
        if resized(source.shape, axis, 0) != resized(first.shape, axis, 0):
            raise errors.FillError(
                f"{change}: wanted shapes that differ along that axis alone, got "
                f"{list(first.shape)} in {first!r} and {list(source.shape)} in {source!r}."
            )
    return Joined(tuple(sources), axis)


def _cut(
    grid: Grid, axis: int, sizes: tuple[int, ...], parts: tuple[int, ...], change: Change
) -> Grid:
    """Returns the grid with the sources of its one row cut along an axis, a row for each part."""
    (row,) = grid.rows
    columns = [_pieces(source, axis, sizes, parts, change) for source in row]
    return Grid(tuple(zip(*columns, strict=True)), grid.numbered)


def _pieces(
    source: Source, axis: int, sizes: tuple[int, ...], parts: tuple[int, ...], change: Change
) -> list[Source]:
    """Cuts a source by sizes along an axis, or by proportions if a size is -1."""
    axis = axis_of(axis, len(source.shape), change)
    total = source.shape[axis]
    if -1 in sizes:
        parts = parts or (1,) * len(sizes)
        sizes = tuple(total * part // sum(parts) for part in parts)
    if sum(sizes) != total:
        raise errors.FillError(
            f"{change}: wanted parts of {' + '.join(map(str, sizes))} along axis {axis}, got a "
            f"tensor of shape {list(source.shape)}. Pass the sizes that it has as parts=."
        )
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [cut(source, {axis: (end - size, end)}) for end, size in zip(ends, sizes, strict=True)]


def _without(shape: Wanted, axis: int) -> Wanted:
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _inserted(shape: Wanted, axis: int, size: int) -> Wanted:
    if shape is None or not -len(shape) - 1 <= axis <= len(shape):
        return None
    axis %= len(shape) + 1
    return (*shape[:axis], size, *shape[axis:])
