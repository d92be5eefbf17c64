"""Changes that split, merge and reorder the axes of a tensor, in the notation of einops."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from lazyinit import errors
from lazyinit.rules.change import OneByOne, Wanted
from lazyinit.sources import Shape, Source
from lazyinit.tensors.views import reshaped, transposed


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Rearrange(OneByOne):
    """Splits, merges and reorders axes by name, as einops does: ``Rearrange("(h k) i -> i h k")``.

    A size that does not follow from the tensor's shape (``h`` here) is taken from the leaf.
    Without a leaf it must be given: ``Rearrange("(h k) i -> i h k", h=12)``. ``1`` is an axis of
    size 1, and ``...`` stands for the axes that are not named.

    Attributes:
      order: the axes before and after ``->``.
      sizes: the given sizes of named axes, as pairs.

    Raises:
      FillError: the two sides do not name the same axes once each, or a size names no axis.

    Example:
      >>> Rearrange("(h k) i -> i h k", h=12)
      Rearrange('(h k) i -> i h k', h=12)
    """

    order: str
    sizes: tuple[tuple[str, int], ...]

    def __init__(self, order: str, **sizes: int) -> None:
        before, after = map(_names, _sides(order) or ((), ()))
        if not before + after or sorted(before) != sorted(after) or len({*before}) < len(before):
            raise errors.FillError(
                f"Rearrange({order!r}): wanted the same axes once each before and after '->', as "
                "in '(h k) i -> i h k'."
            )
        for name, size in sizes.items():
            if name not in before or not isinstance(size, int) or size < 0:
                raise errors.FillError(
                    f"Rearrange({order!r}): {name}={size!r}: wanted sizes of named axes, from 0 "
                    "on, as in Rearrange('(h k) i -> i h k', h=12)."
                )
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "sizes", tuple(sorted(sizes.items())))

    def __reduce__(self) -> tuple[object, ...]:
        return _rearrange, (self.order, self.sizes)

    def having(self, **sizes: int) -> "Rearrange":
        """Returns the change with more sizes given; it ignores names that are not its axes."""
        axes = _names(_sides(self.order)[0])
        return Rearrange(self.order, **dict(self.sizes) | {n: sizes[n] for n in sizes if n in axes})

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the shape of the tensor, worked out from the wanted shape and the known sizes.

        A size that cannot be worked out is -1.
        """
        after, before = _spread(_sides(self.order)[::-1], len(wanted))
        if len(after) != len(wanted):
            return None
        known = dict(self.sizes)
        _learn(after, wanted, known)
        return tuple(_product(group, known) for group in before)

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source with its axes rearranged."""
        return self._rearranged(source, _sides(self.order), wanted)

    def restored(self, source: Source) -> Source:
        """Returns the source with its axes as they were before the change."""
        return self._rearranged(source, _sides(self.order)[::-1], None)

    def _rearranged(self, source: Source, sides: "_Sides", wanted: Wanted) -> Source:
        """Returns the source with its axes changed from the first to the second of two sides."""
        before, after = _spread(sides, len(source.shape))
        known = dict(self.sizes)
        # The tensor's sizes go first, so that a leaf of another shape is reported as a mismatch.
        _learn(before, source.shape, known)
        if wanted is not None:
            _learn(after, wanted, known)
        fits = _learn(before, source.shape, known)
        unknown = sorted({name for group in before for name in group if name not in known})
        if not fits or unknown:
            advice = f" The size of {unknown[0]} cannot be told: say it." if unknown else ""
            raise errors.FillError(
                f"{self}: wanted a tensor of axes {' '.join(map(_text, before))!r}, got one of "
                f"shape {list(source.shape)}.{advice}"
            )
        axes = [name for group in before for name in group]
        order = [axes.index(name) for group in after for name in group]
        split = reshaped(source, tuple(known[name] for name in axes))
        merged = tuple(math.prod(known[name] for name in group) for group in after)
        return reshaped(transposed(split, tuple(order)), merged)

    def __repr__(self) -> str:
        return f"Rearrange({', '.join([repr(self.order), *(f'{n}={s}' for n, s in self.sizes)])})"


@dataclass(frozen=True, slots=True, repr=False)
class Reshape(OneByOne):
    """Gives a tensor another shape, and keeps its elements in order: ``Reshape((768, 12, 64))``.

    It serves layouts that other libraries write as shapes. ``Rearrange`` does the same with named
    axes, and takes their sizes from the leaf.

    Attributes:
      shape: the shape of the leaf. One size may be -1, and is then worked out.
      back: the shape of the tensor, to read rules backwards; ``()`` if it is not known.

    Raises:
      FillError: a size is below -1, or several are -1.

    Example:
      >>> Reshape((768, 12, 64), back=(768, 768))
      Reshape((768, 12, 64), back=(768, 768))
    """

    shape: Shape
    back: Shape = ()

    def __post_init__(self) -> None:
        for name in ("shape", "back"):
            sizes = tuple(map(int, getattr(self, name)))
            object.__setattr__(self, name, sizes)
            if any(size < -1 for size in sizes) or sizes.count(-1) > 1:
                raise errors.FillError(
                    f"Reshape: wanted sizes from 0 on for {name}, one of which may be -1, got "
                    f"{list(sizes)}."
                )

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns ``back``, the shape of the tensor; ``None`` if it is not known."""
        return self.back if self.back and -1 not in self.back else None

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source in the shape of the leaf."""
        return self._under(self.shape, source)

    def restored(self, source: Source) -> Source:
        """Returns the source in the shape of the tensor."""
        if not self.back:
            raise errors.FillError(
                f"{self}: wanted the shape that the tensor had, which the leaf does not tell. Pass "
                "it as back=."
            )
        return self._under(self.back, source)

    def _under(self, shape: Shape, source: Source) -> Source:
        """Returns the source in another shape of as many elements."""
        rest = math.prod(size for size in shape if size >= 0)
        count = math.prod(source.shape)
        known = tuple(count // max(rest, 1) if size < 0 else size for size in shape)
        if math.prod(known) != count:
            raise errors.FillError(
                f"{self}: wanted a tensor of {rest} elements{' or a multiple' * (-1 in shape)}, "
                f"got one of shape {list(source.shape)}."
            )
        return reshaped(source, known)

    def __repr__(self) -> str:
        return f"Reshape({self.shape}{f', back={self.back}' if self.back else ''})"


def _rearrange(order: str, sizes: tuple[tuple[str, int], ...]) -> Rearrange:
    return Rearrange(order, **dict(sizes))


_Sides: TypeAlias = Sequence[tuple[tuple[str, ...], ...]]


@functools.lru_cache(maxsize=1024)
def _sides(order: str) -> _Sides:
    """Returns the groups of axes on both sides of the arrow; ``()`` if the text is malformed."""
    if order.count("->") != 1 or not _SIDE.fullmatch(order.replace("->", " ")):
        return ()
    return tuple(
        # A "1" becomes a group without names.
        tuple(tuple(n for n in found.split() if n != "1") for found in _GROUP.findall(side))
        for side in order.replace("(", " (").replace(")", ") ").split("->")
    )


_GROUP = re.compile(r"(?<=\()[^()]*(?=\))|[\w.]+(?![^(]*\))")
_SIDE = re.compile(r"(?:\s|\.\.\.|\w+|\((?:\s|\w+)*\))*")


def _names(side: Sequence[tuple[str, ...]]) -> list[str]:
    return [name for group in side for name in group]


def _spread(sides: _Sides, ndim: int) -> tuple[list[tuple[str, ...]], ...]:
    """Returns both sides with ``...`` replaced by axes, so that the first side has ``ndim``."""
    unnamed = range(ndim - sum(group != ("...",) for group in sides[0]))
    rest = [(f"axis {i}",) for i in unnamed]
    return tuple(
        [each for group in side for each in (rest if group == ("...",) else [group])]
        for side in sides
    )


def _learn(groups: Sequence[tuple[str, ...]], shape: Shape, known: dict[str, int]) -> bool:
    """Adds to ``known`` each size that a shape tells; returns whether all sizes agree."""
    if len(groups) != len(shape):
        return False
    fits = True
    for group, size in zip(groups, shape, strict=True):
        unknown = [name for name in group if name not in known]
        rest = math.prod(known[name] for name in group if name in known)
        if size < 0 or len(unknown) > 1:
            continue
        if unknown and rest and size % rest == 0:
            known[unknown[0]] = size // rest
        else:
            fits = fits and not unknown and rest == size
    return fits


def _product(group: tuple[str, ...], known: Mapping[str, int]) -> int:
    """Returns the size of a group of axes, or -1 if the size of one is not known."""
    return math.prod(known[n] for n in group) if all(n in known for n in group) else -1


def _text(group: tuple[str, ...]) -> str:
    return group[0] if len(group) == 1 else f"({' '.join(group)})" if group else "1"
