"""Finds the parts of a block that the shards of an array hold; others read them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax

from lazyinit.sources import Index, Shape

Ranges: TypeAlias = tuple[range, ...]
"""A block of an array: the places along each axis, counted from the array's first element."""


def ranges(index: Sequence[slice], shape: Shape) -> Ranges:
    """Returns the block that an index selects in an array of this shape."""
    return tuple(range(*part.indices(size)) for part, size in zip(index, shape, strict=True))


def within(part: Sequence[range], held: Sequence[range]) -> Index:
    """Returns where a block is in an array that holds the block ``held``."""
    return tuple(
        slice(p.start - h.start, p.stop - h.start) for p, h in zip(part, held, strict=True)
    )


def shards_of(array: jax.Array, wanted: Ranges) -> Iterator[tuple[Ranges, Ranges, Any]]:
    """Yields the shards of this process that overlap a block.

    Each comes as the overlap, the block that the shard holds, and the shard itself.
    """
    for shard in array.addressable_shards:
        held = ranges(shard.index, array.shape)
        part = tuple(
            range(max(w.start, h.start), min(w.stop, h.stop))
            for w, h in zip(wanted, held, strict=True)
        )
        if all(part):
            yield part, held, shard
