"""Finds how a source lies in its files: in which parts, and in which order of axes.

A reader should read what lies together at once, so that each page of a file is mapped once, and
freed when it has been read.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lazyinit.sources import Shape, Source
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.mapped import MappedTensor
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.views import BoxView, Reshaped, groups, reshaped


def joined_parts(source: Source) -> Iterator[tuple[tuple[int, ...], Source]]:
    """Yields the parts that a source is joined of, each as a pair of its position and the part.

    A part is a box of the source, with as many axes as the source. Its position is the index of its
    first element. A source that is not joined has itself as its only part. So the tensors of a
    stack are read one by one, and never joined in a buffer of their own.
    """
    match source:
        case Joined(parts=parts, axis=axis, is_stacked=is_stacked) if all(
            part.dtype == source.dtype for part in parts
        ):
            start = 0
            for part in parts:
                if is_stacked:
                    part = reshaped(part, (*part.shape[:axis], 1, *part.shape[axis:]))
                for at, inner in joined_parts(part):
                    yield (*at[:axis], start + at[axis], *at[axis + 1 :]), inner
                start += part.shape[axis]
        case BoxView(source=whole, box=box, axes=axes) if isinstance(whole, Joined):
            for at, part in joined_parts(whole):
                cut = tuple(
                    (max(start - first, 0), min(stop - first, size))
                    for (start, stop), first, size in zip(box, at, part.shape, strict=True)
                )
                if all(start < stop for start, stop in cut):
                    begins = (at[axis] + cut[axis][0] - box[axis][0] for axis in axes)
                    yield tuple(begins), BoxView(part, cut, axes)
        case _:
            yield (0,) * len(source.shape), source


def order_of(source: Source) -> tuple[int, ...]:
    """Returns the axes of a source, from the one on which neighbors lie farthest apart in a file.

    >>> order_of(BoxView(HeldTensor("w", np.zeros((2, 3))), ((0, 2), (0, 3)), (1, 0)))
    (1, 0)
    """
    match source:
        case BoxView(source=inner, axes=axes):
            return tuple(axes.index(axis) for axis in order_of(inner) if axis in axes)
        case Reshaped(source=inner, shape=shape):
            places = {axis: place for place, axis in enumerate(order_of(inner))}
            found = sorted(
                groups(shape, inner.shape),
                key=lambda group: min((places[axis] for axis in group[1]), default=-1),
            )
            return tuple(axis for here, _ in found for axis in here)
        case AsDtype(source=inner):
            return order_of(inner)
        case MappedTensor(steps=(_, *_) as steps):
            return _farthest_first(steps)
        case HeldTensor(array=np.ndarray(strides=steps)):
            return _farthest_first(steps)
    return tuple(range(len(source.shape)))


def chunk_of(source: Any) -> Shape:  # Any: a source, which may have chunks.
    """Returns the shape of the chunks of a source, none of which can be read in part.

    It is ``()`` if a source has none, or if they do not lie along its axes.
    """
    match source:
        case BoxView(source=inner, axes=axes):
            chunk = chunk_of(inner)
            return tuple(chunk[axis] for axis in axes) if chunk else ()
        case AsDtype(source=inner):
            return chunk_of(inner)
    return getattr(source, "chunk", ())


def _farthest_first(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(steps)), key=lambda axis: -abs(steps[axis])))


def is_read_anywhere(source: Any) -> bool:  # Any: a source, which may have the parts it reads.
    """Tells whether reading a part of a source costs no more than the size of the part.

    That is so for sources that are mapped or in memory. If a source is compressed, in chunks or on
    a server, a small part of a row costs much more.
    """
    if isinstance(source, MappedTensor | HeldTensor):
        return True
    reads = getattr(source, "reads", ())
    return bool(reads) and all(map(is_read_anywhere, reads))
