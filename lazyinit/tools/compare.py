"""``lazyinit diff`` compares two checkpoints: names, shapes, dtypes and, if asked to, values."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lazyinit.checkpoint import Checkpoint
from lazyinit.sources import Source, describe
from lazyinit.tensors.pieces import PIECE, Flow, pieces
from lazyinit.view import table
from lazyinit.view.shown import Shown


@dataclass(frozen=True, slots=True)
class Difference:
    """How one tensor differs between two checkpoints.

    Attributes:
      name: the name of the tensor.
      kind: ``"only in the first"``, ``"only in the second"``, ``"shape"``, ``"dtype"`` or
        ``"values"``.
      first: its shape and dtype in the first checkpoint, as text; ``""`` if it is not there.
      second: its shape and dtype in the second.
      elements: how many elements differ in their bits, or in value if the dtypes differ; 0 if
        values were not compared.
      largest: the largest absolute difference between two elements; ``nan`` if only one of them
        is ``nan``; 0 if they differ in bits alone, as 0 and -0 do.
    """

    name: str
    kind: str
    first: str
    second: str
    elements: int = 0
    largest: float = 0.0


@dataclass(frozen=True, slots=True, repr=False)
class Comparison(Shown):
    """What differs between two checkpoints; prints as a table in which numbered layers fold.

    Attributes:
      first: the origin of the first checkpoint.
      second: the origin of the second.
      equal: how many tensors are equal in all that was compared.
      differences: one for each tensor that differs.
    """

    first: str
    second: str
    equal: int
    differences: tuple[Difference, ...]

    def _table(self) -> table.Table:
        if not self.differences:
            return table.Table(f"{self.equal} tensors are equal", (), ())
        folded = table.fold(
            (d.name, d.kind, d.first, d.second, *_found(d)) for d in self.differences
        )
        rows = [(row.label, str(row.count), *row.cells) for row in folded]
        heads = ("tensor", "tensors", "differs", "first", "second", "elements", "largest")
        title = f"{len(self.differences)} tensors differ, {self.equal} are equal"
        return table.Table(title, heads, rows, right=("tensors", "elements", "largest"))


def compare(first: Checkpoint, second: Checkpoint, *, values: bool = False) -> Comparison:
    """Compares two checkpoints, in bounded memory.

    Args:
      first: the one checkpoint.
      second: the other one.
      values: whether to read and compare the values of tensors of equal shape: bit by bit, or as
        numbers if the dtypes differ.

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
            elements, largest = _elements(one, other) if values else (0, 0.0)
            yield Difference(name, "dtype", *told, elements, largest)
        elif values and one != other and (found := _elements(one, other))[0]:
            yield Difference(name, "values", *told, *found)
    for name, other in second.items():
        if name not in first:
            yield Difference(name, "only in the second", "", _told(other))


def _told(source: Source) -> str:
    return describe(source.shape, source.dtype)


def _found(difference: Difference) -> tuple[str, str]:
    if not difference.elements:
        return "", ""
    return str(difference.elements), f"{difference.largest:.3g}"


def _elements(one: Source, other: Source) -> tuple[int, float]:
    """Returns how many elements differ, and the largest difference."""
    dtypes = one.dtype, other.dtype
    sizes = [dtype.itemsize for dtype in dtypes]
    flows = Flow(pieces(one)), Flow(pieces(other))
    portion = max(1, PIECE // max(sizes))
    count, largest = 0, 0.0
    for _ in range(0, math.prod(one.shape), portion):
        a, b = (_bytes(flow, portion * size) for flow, size in zip(flows, sizes, strict=True))
        if one.dtype == other.dtype:
            if np.array_equal(a, b):
                continue
            differing = (a != b).reshape(-1, sizes[0]).any(1)
            x, y = (_numbers(part.view(one.dtype)[differing]) for part in (a, b))
            count += int(differing.sum())
        else:
            x, y = (_numbers(part.view(dtype)) for part, dtype in zip((a, b), dtypes, strict=True))
            differing = (x != y) & ~(np.isnan(x) & np.isnan(y))
            x, y = x[differing], y[differing]
            count += int(differing.sum())
        largest = float(np.maximum(largest, _largest(x, y)))
    return count, largest


def _numbers(values: np.ndarray) -> np.ndarray:
    """Returns values in a wider dtype, in which their differences are exact or nearly so."""
    if np.iscomplexobj(values):
        return values.astype(np.complex128)
    return values.astype(np.longdouble if values.dtype.itemsize == 8 else np.float64)


def _largest(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the largest absolute difference; ``nan`` if only one of two elements is ``nan``."""
    both = np.isnan(x) & np.isnan(y)
    with np.errstate(invalid="ignore"):
        apart = np.where((x == y) | both, 0, np.abs(x - y))
    return float(apart.max(initial=0))


def _bytes(flow: Flow, size: int) -> np.ndarray:
    """Returns the next bytes of a tensor, ``size`` of them or what is left."""
    parts = [np.frombuffer(part, np.uint8) for part in flow.take(size)]
    return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, np.uint8)])
