"""What a pickle of tensors becomes: plain values that describe what its program would have built.

``rebuilt`` makes these descriptions, ``torch_pickle`` reads the program.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lazyinit.tensors.headers import DTYPES

# What is held is whatever a file says. Hence Any, here and below.
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
    # Of quantized tensors, which are not read; but in old files other values lie behind theirs.
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
      module: where it would be imported from.
      name: there.
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
      key: what the file calls it.
      dtype: of its values, by NumPy's name; what a tensor says of itself counts more.
      count: of its values.
    """

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor, as a view of a storage.

    Attributes:
      storage: where its values are.
      dtype: by NumPy's name.
      offset: of its first value, counted in values.
      shape: its sizes.
      stride: along each axis, counted in values.
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
    """A tensor that is not read.

    Attributes:
      problem: why, and the way out.
    """

    problem: str


class Foreign(dict[Any, Any]):
    """What a name was called with, by key: arguments, items, attributes."""

    def __init__(self, name: Name | None, args: Args) -> None:
        """Holds the arguments."""
        super().__init__(enumerate(args))
        self.name = name

    def append(self, item: Any) -> None:
        """Holds an item of a list."""
        self[len(self)] = item

    def extend(self, items: Any) -> None:
        """Holds the items of a list."""
        for item in items:
            self.append(item)


@dataclass(slots=True)
class Array:
    """An array of NumPy that waits for its state."""

    made: np.ndarray | Odd | None = None


@dataclass(slots=True)
class Dtype:
    """A dtype of NumPy that waits for its state.

    Attributes:
      text: as NumPy writes it, without a byte order.
      order: of its bytes.
    """

    text: str
    order: str = "|"

    def dtype(self) -> np.dtype | None:
        """Returns NumPy's own object for the dtype, or ``None`` if it is none that tensors have."""
        if self.text in DTYPES and self.order != ">":
            return DTYPES[self.text]
        try:
            dtype = np.dtype(self.text)
        except TypeError:
            return None
        dtype = dtype.newbyteorder(self.order) if self.order in ("<", ">") else dtype
        return dtype if dtype in DTYPES.values() else None


def put(held: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Puts items into a dict, whose keys are text and whole numbers; the rest becomes text.

    An object of a class that is not run is put beside its value.
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
    """Returns what a description stands for.

    Of an object of a class that is not run that is its tensors, and what may hold some, but no
    numbers; of a module the names are those of its ``state_dict``.
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
