"""What a checkpoint is: named tensors that are described at once and read later, in part.

A format is one function that returns a ``Checkpoint``: it reads and validates headers, never
values. Everything above this package knows ``Checkpoint`` and ``Source`` only. A ``Source`` is
either a ``Tensor``, which lies somewhere under one name, or ``Derived`` from other sources: it
maps each index that it is asked for onto indices of theirs, so that it reads no more than it needs.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lazyinit.sources import Extent, Index, Shape, Source


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Source]):
    """A mapping from tensor name to ``Source``; nothing is read before a source is.

    Attributes:
      origin: the file or folder, or a word for where the tensors lie, for people to read.
      tensors: the source of each tensor, by its name, in the order of the file.
      metadata: the text, by key, that files of safetensors or GGUF hold beside the tensors, without
        keys on which several files disagree. Empty for other formats.
      dequantized: the method by which weights are quantized in the files, if they are given as
        numbers here; ``""`` if tensors are as the files have them.
    """

    origin: str
    tensors: Mapping[str, Source]
    metadata: Mapping[str, str] = field(default_factory=dict)
    dequantized: str = ""

    def __getitem__(self, name: str) -> Source:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({self.origin}, {len(self)} tensors)"


class Tensor:
    """A base for sources that are one tensor, in a file unless a subclass says otherwise.

    A subclass adds ``shape``, ``dtype`` and ``read``, or overrides what does not fit.

    Attributes:
      name: its name in the checkpoint.
      file: the file that it lies in.
    """

    __slots__ = ()

    name: str
    file: Any  # A local or a remote file: it has a path, and check() notices that it changed.

    @property
    def names(self) -> tuple[str, ...]:
        """The tensor's name, alone."""
        return (self.name,)

    @property
    def origin(self) -> str:
        """The path or the address of the file."""
        return self.file.path

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The runs of bytes of its values; empty unless they lie in a file as plain bytes."""
        return ()

    @property
    def is_streamed(self) -> bool:
        """Whether ``stream`` can read it, which takes less memory than reading many parts."""
        return False

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order (the last axis fastest), flat, in bounded memory.

        Each piece has at most ``limit`` bytes (or one element) and is valid until the next is
        asked for.
        """
        raise NotImplementedError  # The law of is_streamed: no caller asks where it is False.

    def check(self) -> None:
        """Raises ``CheckpointError`` if the file is gone or has changed since it was opened."""
        self.file.check()

    def __repr__(self) -> str:
        return f"{os.path.basename(self.origin)}:{self.name}"


class Derived:
    """A base for sources that read other sources.

    A subclass adds ``reads``, ``shape`` and ``read``.
    """

    __slots__ = ()

    @property
    def reads(self) -> Sequence[Source]:
        """The sources that it reads."""
        raise NotImplementedError  # Each subclass has its own.

    @property
    def dtype(self) -> np.dtype:
        """The dtype as stored."""
        return self.reads[0].dtype

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tensors that it reads."""
        return tuple(dict.fromkeys(name for part in self.reads for name in part.names))

    @property
    def origin(self) -> str:
        """The files or other places that those tensors lie in, joined by commas."""
        return ", ".join(dict.fromkeys(part.origin for part in self.reads))

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The runs of bytes that those tensors take in files."""
        return tuple(extent for part in self.reads for extent in part.extents)

    def check(self) -> None:
        """Raises ``CheckpointError`` if a file that it reads is gone or has changed."""
        for part in self.reads:
            part.check()


class OfOne(Derived):
    """A base for sources that read one other source.

    Attributes:
      source: the source that it reads.
    """

    __slots__ = ()

    source: Source

    @property
    def reads(self) -> Sequence[Source]:
        """The one source that it reads."""
        return (self.source,)


def bounds(index: Index, shape: Shape) -> tuple[tuple[int, int], ...]:
    """Returns the start and the stop of an index along each axis, counted from 0."""
    ends = (part.indices(size) for part, size in zip(index, shape, strict=True))
    return tuple((start, max(start, stop)) for start, stop, _ in ends)


def slices(ends: Sequence[tuple[int, int]]) -> Index:
    """Returns the index with these starts and stops."""
    return tuple(slice(start, stop) for start, stop in ends)
