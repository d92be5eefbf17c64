"""What a checkpoint is: named tensors that are described at once and read later, in part.

A format is one function that returns a ``Checkpoint``: it reads and validates headers, never
values. Everything above this package knows ``Checkpoint`` and ``Source`` only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from lazyinit.params import Source


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Checkpoint(Mapping[str, Source]):
    """A mapping from tensor name to ``Source``; nothing is read before a source is.

    Attributes:
      origin: the file or folder, or a word for where the tensors lie, for people to read.
      tensors: the source of each tensor, by its name, in the order of the file.
    """

    origin: str
    tensors: Mapping[str, Source]

    def __getitem__(self, name: str) -> Source:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __repr__(self) -> str:
        return f"Checkpoint({self.origin}, {len(self)} tensors)"


@runtime_checkable
class Streamed(Protocol):
    """A source that can be read from its first value to its last without being mapped."""

    def stream(self, limit: int) -> Iterator[np.ndarray]:
        """Yields the values in order (the last axis fastest), flat, in bounded memory.

        Each piece has at most ``limit`` bytes (or one element) and is valid until the next is
        asked for.
        """
        ...
