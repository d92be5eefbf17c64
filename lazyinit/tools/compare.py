"""``lazyinit diff``: two checkpoints in, their differences out.

Names, shapes and dtypes are compared, and values if they are asked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazyinit.checkpoint import Checkpoint
from lazyinit.checkpoint.pieces import PIECE, Flow, nbytes, pieces
from lazyinit.params import Source, describe
from lazyinit.view import table


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs between two checkpoints.

    Attributes:
      name: of the tensor.
      kind: ``"only in the first"``, ``"only in the second"``, ``"shape"``, ``"dtype"`` or
        ``"values"``.
      first: what it is in the first checkpoint; ``""`` if it is not there.
      second: what it is in the second.
      elements: how many elements differ, bit by bit; 0 unless values were compared and differ.
    """

    name: str
    kind: str
    first: str
    second: str
    elements: int = 0


@dataclass(frozen=True, slots=True, repr=False)
class Comparison:
    """What differs between two checkpoints; prints as a table in which numbered layers fold.

    Attributes:
      first: where the first lies.
      second: where the second lies.
      equal: how many tensors are equal in all that was compared.
      differences: one for each other tensor.
    """

    first: str
    second: str
    equal: int
    differences: tuple[Difference, ...]

    def __str__(self) -> str:
        if not self.differences:
            return f"{self.equal} tensors are equal"
        folded = table.fold(
            (d.name, d.kind, d.first, d.second, str(d.elements or "")) for d in self.differences
        )
        rows = [(row.label, str(row.count), *row.cells) for row in folded]
        heads = ("tensor", "tensors", "differs", "first", "second", "elements")
        title = f"{len(self.differences)} tensors differ, {self.equal} are equal"
        return table.render(title, heads, rows, right=("tensors", "elements"))

    def __repr__(self) -> str:
        return str(self)


def compare(first: Checkpoint, second: Checkpoint, *, values: bool = False) -> Comparison:
    """Compares two checkpoints, in bounded memory.

    Args:
      first: opened.
      second: opened.
      values: whether to read the values of tensors of equal shape and dtype, and to compare them
        bit by bit.

    Raises:
      CheckpointError: a file is gone, has changed or is damaged.

    Example:
      >>> from lazyinit.checkpoint import open_checkpoint
      >>> one = open_checkpoint({"a": np.zeros(3), "b": np.zeros(2)})
      >>> other = open_checkpoint({"a": np.array([0.0, 1.0, 0.0]), "c": np.zeros(2)})
      >>> [(d.name, d.kind) for d in compare(one, other, values=True).differences]
      [('a', 'values'), ('b', 'only in the first'), ('c', 'only in the second')]
    """
    differences = list(_differences(first, second, values))
    names = len(first.keys() | second.keys())
    equal = names - len(differences)
    return Comparison(first.origin, second.origin, equal, tuple(differences))


def _differences(first: Checkpoint, second: Checkpoint, values: bool) -> Iterator[Difference]:
    for name, one in first.items():
        if name not in second:
            yield Difference(name, "only in the first", _told(one), "")
            continue
        other = second[name]
        told = _told(one), _told(other)
        if one.shape != other.shape:
            yield Difference(name, "shape", *told)
        elif one.dtype != other.dtype:
            yield Difference(name, "dtype", *told)
        elif values and one != other and (count := _elements(one, other)):
            yield Difference(name, "values", *told, count)
    for name, other in second.items():
        if name not in first:
            yield Difference(name, "only in the second", "", _told(other))


def _told(source: Source) -> str:
    return describe(source.shape, source.dtype)


def _elements(one: Source, other: Source) -> int:
    """Returns how many elements differ."""
    item, count = one.dtype.itemsize, 0
    flows = Flow(pieces(one)), Flow(pieces(other))
    portion = PIECE // item * item
    for _ in range(0, nbytes(one), portion):
        a, b = (_bytes(flow, portion) for flow in flows)
        if not np.array_equal(a, b):
            count += int((a != b).reshape(-1, item).any(1).sum())
    return count


def _bytes(flow: Flow, size: int) -> np.ndarray:
    parts = [np.frombuffer(part, np.uint8) for part in flow.take(size)]
    return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.uint8)])
