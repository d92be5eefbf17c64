"""Plain values that describe what the program of a pickle would have built.

``torch_pickle`` reads the program, and ``rebuilt`` makes most of these descriptions.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lazyinit.tensors.headers import DTYPES

# The types are Any, here and below, as a file may hold anything.
Args: TypeAlias = tuple[Any, ...]

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    # Quantized tensors are not read, but in old files other values lie behind theirs.
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
    "QUInt4x2Storage": "uint8",
    "QUInt2x4Storage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that a pickle names.

    Attributes:
      module: the module that it would be imported from.
      name: its name in that module.
    """

    module: str
    name: str

    def __str__(self) -> str:
        is_builtin = self.module in ("builtins", "__builtin__")
        return self.name if is_builtin else f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values in the file.

    Attributes:
      key: its name in the file.
      dtype: NumPy's name for the dtype of its values; a tensor on it may state another.
      count: the number of its values.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor, as a view of a storage.

    Attributes:
      storage: the storage that holds its values.
      dtype: NumPy's name for its dtype.
      offset: the place of its first value in the storage, counted in values.
      shape: its shape.
      stride: the step along each axis, counted in values.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie in C order without gaps."""
        step = 1
        for size, stride in zip(self.shape[::-1], self.stride[::-1], strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(frozen=True, slots=True)
class Odd:
    """A tensor that cannot be read.

    Attributes:
      problem: why, and the way out.
    """

    problem: str


class Foreign(dict[Any, Any]):
    """An object whose class is not run: a dict of its arguments, items and attributes."""

    def __init__(self, name: Name | None, args: Args) -> None:
        """Starts with the arguments that ``name`` was called with, by position."""
        super().__init__(enumerate(args))
        self.name = name

    def append(self, item: Any) -> None:
        """Adds an item, as a list does, under the next number."""
        self[len(self)] = item

    def extend(self, items: Any) -> None:
        """Adds several items, as a list does."""
        for item in items:
            self.append(item)


@dataclass(slots=True)
class Array:
    """An array of NumPy, which the pickle makes empty; ``made`` has its values once they came."""

    made: np.ndarray | Odd | None = None


@dataclass(slots=True)
class Dtype:
    """A dtype of NumPy, whose byte order the pickle sets after it is made.

    Attributes:
      text: NumPy's text for the dtype, without a byte order.
      order: NumPy's mark for the byte order.
    """

    text: str
    order: str = "|"

    def dtype(self) -> np.dtype | None:
        """Returns NumPy's own object for the dtype, or ``None`` if tensors cannot have it."""
        if self.text in DTYPES and self.order != ">":
            return DTYPES[self.text]
        try:
            dtype = np.dtype(self.text)
        except TypeError:
            return None
        dtype = dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype
        return dtype if dtype in DTYPES.values() else None


def put(held: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Puts items into a dict; keys that are neither text nor integers become text.

    If a key is a ``Foreign``, the list of key and value is put under a name made for it.
    """
    for key, value in items:
        if isinstance(key, str | int):
            held[key] = value
        elif isinstance(key, Foreign):
            held[f"<object {len(held)}>"] = [key, value]
        else:
            name = _text(key) or f"<{type(key).__name__} {len(held)}>"
            held[f"{name} {len(held)}" if name in held else name] = value
    return held


def _text(key: Any) -> str:
    # The hash of a tuple, and its text, would recur into whatever it holds.
    is_flat = isinstance(key, tuple) and all(isinstance(k, str | int | float | None) for k in key)
    return str(key) if is_flat or isinstance(key, float | bytes | None) else ""


def plain(value: Any) -> Any:
    """Returns the value that a description stands for.

    A ``Foreign`` becomes a dict of all that it holds but plain numbers. If it is a module of
    PyTorch, the dict has the names of its ``state_dict``.
    """
    if isinstance(value, Array):
        return value.made
    if not isinstance(value, Foreign):
        return value
    held = value
    if {"_parameters", "_buffers", "_modules"} <= value.keys():
        dropped = value.get("_non_persistent_buffers_set") or ()
        kept = (value["_parameters"], value["_buffers"], value["_modules"])
        everything = {key: x for part in kept if isinstance(part, dict) for key, x in part.items()}
        held = {key: x for key, x in everything.items() if key not in dropped}
    return {key: x for key, x in held.items() if not isinstance(x, bool | int | float | complex)}
