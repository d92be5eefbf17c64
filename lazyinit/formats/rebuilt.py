"""Stands in for the functions that pickles of tensors and arrays call.

None of those is imported or run: ``KNOWN`` has a function of our own for each, which takes the same
arguments, checks them, and returns a value of ``pickled``, which describes the result.

Format: ``torch/_utils.py``, whose functions ``_rebuild_*`` say how tensors are written, and
``__reduce__`` of NumPy's arrays and dtypes, and of JAX's arrays.
"""

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lazyinit import compat
from lazyinit.formats.pickled import Args, Array, Dtype, Name, Odd, Storage, TensorSpec, put


def _tensor(args: Args) -> TensorSpec | Odd:
    storage, offset, shape, stride, *rest = args
    return _view(storage, None, offset, shape, stride, rest[2:3])


def _typed_tensor(args: Args) -> TensorSpec | Odd:
    storage, offset, shape, stride, _, _, dtype, *rest = args
    return _view(storage, dtype.name, offset, shape, stride, rest)


def _view(
    storage: Any, dtype: str | None, offset: Any, shape: Any, stride: Any, metadata: list[Any]
) -> TensorSpec | Odd:
    counts = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(type(count) is int for count in counts):
        raise pickle.UnpicklingError("a tensor is described in another way than PyTorch does")
    if len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor has {len(shape)} sizes and {len(stride)} strides")
    marks = metadata[0] if metadata and isinstance(metadata[0], dict) else {}
    if marks.get("conj") or marks.get("neg"):
        return Odd(
            "wanted a tensor that has the stored values, got a view that conjugates or negates "
            "them. Save tensor.resolve_conj().resolve_neg()."
        )
    return TensorSpec(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride))


def _meta(args: Args) -> Odd:
    return Odd(
        "wanted values, got a tensor of the meta device, which has none. Save it after it was made "
        "on a device that holds values."
    )


def _ordered(args: Args) -> Any:
    return put({}, args[0] if args else ())


def _array(args: Args) -> Array:
    return Array()


def as_filled(state: Any) -> np.ndarray | Odd:
    """Returns the array that a state describes, as NumPy writes it in pickles."""
    _, shape, dtype, is_fortran, content = state
    return _as_array(shape, dtype, content, "F" if is_fortran else "C")


def _scalar(args: Args) -> np.ndarray | Odd:
    dtype, *content = args
    return _as_array((), dtype, content[0] if content else None, "C")


def _from_buffer(args: Args) -> np.ndarray | Odd:
    content, dtype, shape, order = args
    return _as_array(shape, dtype, bytes(content), order)


def _as_array(shape: Any, dtype: Any, content: Any, order: Any) -> np.ndarray | Odd:
    held = dtype.dtype() if isinstance(dtype, Dtype) else None
    if held is None or not isinstance(content, bytes):
        text = dtype.text if isinstance(dtype, Dtype) else type(dtype).__name__
        return Odd(
            f"wanted an array of numbers, little-endian, got one of {text!r:.40}. Save it as a "
            "tensor."
        )
    if len(content) != math.prod(shape) * held.itemsize:
        raise pickle.UnpicklingError(f"{held}{list(shape)} has {len(content)} bytes")
    return np.ndarray(shape, held, content, order=order)


def _dtype(args: Args) -> Dtype:
    text = args[0]
    if isinstance(text, Name):  # A class of scalars, as of bfloat16.
        text = text.name if text.module == "ml_dtypes" else str(text)
    if type(text) is not str:
        raise pickle.UnpicklingError("a dtype is not written as text")
    return Dtype(text)


def _of_jax(args: Args) -> np.ndarray | Odd:
    _, _, state, _ = args
    return as_filled(state)


def _encoded(args: Args) -> Any:
    text, encoding = args  # Bytes, as protocol 2 has them.
    return text.encode("latin1") if encoding == "latin1" else text


def _first(args: Args) -> Any:
    return args[0]


def _of_class(args: Args) -> Any:
    function, _, inner, _ = args
    made = KNOWN.get((function.module, function.name))
    if made is None:
        return Odd("wanted a dense tensor, got a tensor of another class. Save a dense one.")
    return made(inner)


def _complex(args: Args) -> complex:
    real, imaginary = args
    if type(real) is not float or type(imaginary) is not float:
        raise pickle.UnpicklingError("a complex number is not made of two floats")
    return complex(real, imaginary)


def _bytes(args: Args) -> Any:
    return args[0] if args else b""


def _items(args: Args) -> list[Any]:
    return list(args[0]) if args else []


KNOWN: Mapping[tuple[str, str], Callable[[Args], Any]] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): lambda args: tuple(args[0]),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_meta_tensor_no_storage"): _meta,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_class,
    ("_codecs", "encode"): _encoded,
    ("numpy", "dtype"): _dtype,
    compat.PICKLED_ARRAY: _of_jax,
    **{
        (f"numpy.{core}.multiarray", name): make
        for core in ("core", "_core")
        for name, make in (("_reconstruct", _array), ("scalar", _scalar))
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    **{
        (builtins, name): make
        for builtins in ("builtins", "__builtin__")
        for name, make in (
            *(("set", _items), ("frozenset", _items), ("complex", _complex)),
            *(("bytes", _bytes), ("bytearray", _bytes)),
        )
    },
}
