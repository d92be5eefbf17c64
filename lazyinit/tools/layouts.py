"""Lists the layouts that may be proposed, and finds those that lead from given shapes to others.

The one idea is that *all* layouts that shapes allow are kept. A square kernel may be transposed or
not, and nothing here chooses: ``decide.py`` does, by siblings and conventions, or leaves it open.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from lazyinit import errors
from lazyinit.rules.change import Change, Frame, Grid, Layout
from lazyinit.rules.joins import Concat, Split, Stack
from lazyinit.rules.layout import Transpose
from lazyinit.rules.reshape import Rearrange
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import Tensor
from lazyinit.tensors.memory import HeldTensor

Ends: TypeAlias = tuple[tuple[Shape, ...], tuple[Shape, ...]]
"""The shapes of tensors, and the shapes of the leaves that they make."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way from tensors to leaves.

    Attributes:
      changes: the changes of a rule.
      turned: whether the last axis of the leaf is the first axis of the tensor, as it is where
        ``[out, in]`` becomes ``[in, out]``; ``None`` for vectors, which have no second axis.
      heads: ``"to"`` if the outputs are split into heads, as those of a query are, ``"from"`` if
        the inputs are; ``""`` if neither is.
      stacked: the index of the number, in the tensors' names, that counts stacked ones; or -1.
    """

    changes: tuple[Change, ...]
    turned: bool | None = None
    heads: str = ""
    stacked: int = -1

    @property
    def stack(self) -> tuple[int, int]:
        """The number that counts stacked tensors, or -1, and the axis of the stack, or -1."""
        axes = (change.axis for change in self.changes if isinstance(change, Stack))
        return self.stacked, next(axes, -1)


TRANSPOSED_CONVOLUTION = Transpose("i o ... -> ... i o")
"""The change for PyTorch's transposed convolutions, whose kernels are ``[in, out, ...]``."""

_T = Transpose("o i -> i o")
_VECTORS = (Option(()), Option((Rearrange("(h k) -> h k"),)))
_MATRICES = (
    Option((_T,), True),
    Option((), False),
    Option((Rearrange("(h k) i -> i h k"),), True, "to"),
    Option((Rearrange("o (h k) -> h k o"),), True, "from"),
    Option((Rearrange("(h k) i -> h i k"),), True, "to"),
    Option((Rearrange("i (h k) -> i h k"),), False, "to"),
    Option((Rearrange("(h k) o -> h k o"),), False, "from"),
    Option((Rearrange("i (h k) -> h i k"),), False, "to"),
)
_KERNELS = (
    Option((Transpose("o i ... -> ... i o"),), True),
    Option((), False),
    Option((TRANSPOSED_CONVOLUTION,), False),
)
_STACKS = (*_KERNELS, Option((Transpose("n o i -> n i o"),), True))
_SPLITS = (
    Option((_T, Split(1)), True),
    Option((Split(1),), False),
    Option((Split(0),), False),
    Option((_T, Split(1), Rearrange("i (h k) -> i h k")), True),
    Option((Split(1), Rearrange("i (h k) -> i h k")), False),
    Option((Split(0), Rearrange("(h k) o -> h k o")), False),
)
_CUTS = (Option((Split(0),)), Option((Split(0), Rearrange("(h k) -> h k"))))


def alone(rank: int) -> tuple[Option, ...]:
    """Returns the ways from one tensor of ``rank`` axes to one leaf, the likeliest first."""
    return (_VECTORS, _VECTORS, _MATRICES, _STACKS)[rank] if rank < 4 else _KERNELS


def stacked(rank: int, place: int) -> Iterator[Option]:
    """Yields the ways from numbered tensors to one leaf; number ``place`` counts the tensors."""
    for axis in (0, 1):
        for option in alone(rank):
            yield replace(option, changes=(*option.changes, Stack(axis)), stacked=place)


def joined(rank: int) -> Iterator[Option]:
    """Yields the ways from several tensors to one leaf."""
    for option in alone(rank):
        # Models fuse outputs: the last axis of a turned leaf, else the first or the last.
        for axis in (1,) if option.turned else (0, 1):
            yield replace(option, changes=(*option.changes, Concat(axis)))
        for axis in (0, 1):
            yield replace(option, changes=(*option.changes, Stack(axis)))


def split(rank: int) -> tuple[Option, ...]:
    """Returns the ways from one tensor to several leaves."""
    return _SPLITS if rank == 2 else _CUTS if rank == 1 else ()


def leads(option: Option, tensors: Sequence[Shape], leaves: Sequence[Shape]) -> bool:
    """Tells whether a way leads from tensors to leaves of these shapes.

    Args:
      option: the way.
      tensors: the shape of each pattern's tensor, or of each numbered tensor that is stacked.
      leaves: the shape of each pattern's leaf.
    """
    made = _made(option, [nothing_of(shape) for shape in tensors], leaves)
    return [source.shape for source in made] == list(leaves)


def possible(options: Iterable[Option], known: Collection[Ends]) -> list[Option]:
    """Returns the ways that lead from tensors to leaves of all these shapes.

    Of several ways that put every element in the same place, only the first is returned. An axis
    of size 1 can make two ways the same: with one head, ``(h k) i -> i h k`` does what
    ``o (h k) -> h k o`` does.
    """
    found = [o for o in options if all(leads(o, before, after) for before, after in known)]
    if len(found) < 2:
        return found
    distinct: dict[tuple[int, ...], Option] = {}
    for option in found:
        effect = (at for before, after in known for at in _effect(option, before, after))
        distinct.setdefault(tuple(effect), option)
    return list(distinct.values())


def _effect(option: Option, tensors: Sequence[Shape], leaves: Sequence[Shape]) -> Iterator[int]:
    """Yields where a way takes some elements of leaves from; equal for ways that do the same."""
    starts = [sum(map(math.prod, tensors[:n])) for n in range(len(tensors))]
    sources = [_Positions(s, first) for s, first in zip(tensors, starts, strict=True)]
    for source in _made(option, sources, leaves):
        yield from _probed(source)


def _made(option: Option, sources: Sequence[Source], leaves: Sequence[Shape]) -> tuple[Source, ...]:
    """Returns the leaves that a way makes; none if the way does not fit the shapes."""
    numbered = option.stacked >= 0
    rows = (tuple(sources),) if numbered else tuple((source,) for source in sources)
    frame = Frame(len(rows), numbered)
    try:
        layout = Layout(option.changes, frame, Frame(len(leaves), False))
        return tuple(row[0] for row in layout.forward(Grid(rows, numbered), tuple(leaves)).rows)
    except errors.FillError:
        return ()


def _probed(source: Source) -> Iterator[int]:
    """Yields the first and the last element of a source, and their neighbors along each axis.

    These tell ways apart, since each way here maps an axis evenly, except at joints between
    tensors of equal size.
    """
    for end, step in ((0, 1), (-1, -1)) if math.prod(source.shape) else ():
        corner = [end % size for size in source.shape]
        for axis in range(-1, len(corner)):
            place = [n + step * (k == axis) for k, n in enumerate(corner)]
            if all(0 <= n < size for n, size in zip(place, source.shape, strict=True)):
                yield int(source.read(tuple(slice(n, n + 1) for n in place)).item())


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class _Positions(Tensor):
    """A source of the numbers from ``first`` on, in order; it takes no memory."""

    shape: Shape
    first: int

    @property
    def dtype(self) -> np.dtype:
        return np.dtype("int64")

    def read(self, index: Index) -> np.ndarray:
        places = (range(size)[each] for each, size in zip(index, self.shape, strict=True))
        open_mesh = np.ix_(*(np.arange(p.start, p.stop) for p in places))
        return self.first + np.asarray(np.ravel_multi_index(open_mesh, self.shape))

    def check(self) -> None:
        pass


def nothing_of(shape: Shape) -> HeldTensor:
    """Returns a source of zeros that takes no memory, to try a layout on a shape."""
    return HeldTensor("", np.broadcast_to(np.uint8(0), shape))
