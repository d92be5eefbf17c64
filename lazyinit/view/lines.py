"""What ``inspect`` shows of a leaf: a line, and more facts when the leaf is unfolded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from lazyinit.derived import DerivedParam, origins
from lazyinit.params import Thunk, label
from lazyinit.sharding import describe as where
from lazyinit.sources import describe
from lazyinit.view import table
from lazyinit.view.facts import Facts, State


@dataclass(frozen=True, slots=True)
class Line:
    """What is shown of one leaf.

    Attributes:
      path: the path of the leaf.
      state: its state, as defined in ``view.facts``.
      word: the word that is shown: the state, or how it changed.
      array: its dtype and shape, as text.
      nbytes: the bytes of the whole array once made.
      origin: what makes the leaf, or where it is.
      more: further facts, each with a label.
      leaf: the leaf itself.
    """

    path: str
    state: State
    word: str
    array: str
    nbytes: int
    origin: str
    more: tuple[tuple[str, str], ...]
    leaf: Any  # A thunk, an array, or whatever else has a shape and a dtype.

    @property
    def kind(self) -> tuple[object, ...]:
        """What alike leaves have in common: all that does not depend on their paths."""
        # Alike layers may be in different files, or be computed from different leaves.
        if self.state == "stored":
            return self.word, self.array
        is_derived = self.state == "derived"
        origin = table.numbered(self.path, self.origin) if is_derived else self.origin
        return self.word, self.array, origin


def line_of(path: str, leaf: Any, place: Callable[[Any], str] = where) -> Line:
    """Returns the line of a leaf (a thunk, or anything with a shape and a dtype).

    Args:
      path: the path of the leaf.
      leaf: any such object.
      place: a function that returns the text for a sharding.
    """
    facts = Facts.of(path, leaf)
    origin, array, more = facts.origin, facts.array, []
    if isinstance(leaf, Thunk):
        more += _made_by(leaf, facts)
        if leaf.sharding is not None:
            more.append(("sharding", place(leaf.sharding)))
    elif isinstance(leaf, jax.Array):
        origin = place(leaf.sharding)
        more.append(("sharding", origin))
    else:
        origin = "" if isinstance(leaf, jax.ShapeDtypeStruct) else "host"
    return Line(path, facts.state, facts.state, array, facts.nbytes, origin, tuple(more), leaf)


def size(nbytes: int) -> str:
    """Returns a number of bytes as text, in units and exactly: ``1.0 KiB (1,024)``."""
    short = table.format_bytes(nbytes)
    return short if nbytes < 1024 else f"{short} ({nbytes:,})"


def _made_by(leaf: Thunk, facts: Facts) -> list[tuple[str, str]]:
    """Returns labeled facts about what makes a thunk: tensors, initializers and keys, or inputs."""
    if isinstance(leaf, DerivedParam):
        inputs = [part.path or describe(part.shape, part.dtype) for part in leaf.inputs]
        return [("computed by", leaf.made_by), ("inputs", ", ".join(inputs))]
    sources, initialized = origins(leaf)
    more = []
    for source in sources:
        names, layout = ", ".join(source.names), repr(source)
        stored = describe(source.shape, source.dtype)
        more += [("file", source.origin), ("tensor", names)]
        more += [("layout", layout)] * (not layout.endswith(":" + names))
        more += [("read as", stored)] * (stored != facts.array)
    for part in initialized:
        made_by = facts.origin if part is leaf else label(part.init_fn)
        more += [("initializer", made_by), ("key", str(part.rng_path))]
    return [(name, text) for name, text in more if text]


def rows_of(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Returns the rows of a table: path, leaves, word, origin, array, bytes. Alike layers fold."""
    folded = table.fold(
        (x.path, x.word, x.origin, x.array, table.format_bytes(x.nbytes)) for x in lines
    )
    return [(row.label, str(row.count), *row.cells) for row in folded]
