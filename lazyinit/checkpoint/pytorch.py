"""PyTorch's ``.bin``, ``.pt`` and ``.pth`` files.

``torch.load`` is what unpickles, with ``weights_only=True``, which runs no code. Tensors are asked
for on the ``meta`` device: that reads no value, and each storage then says where in the file it
lies (https://docs.pytorch.org/docs/main/notes/serialization.html). The values are mapped by us,
so that no tensor of PyTorch is ever made.

Files from before PyTorch 1.6 are no zip archives. Where their values lie cannot be asked for, so
``torch.load`` reads such a file whole, when it is opened.
"""

import math
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.base import Checkpoint
from lazyinit.checkpoint.headers import (
    DTYPES,
    FETCH_AGAIN,
    HEADER_LIMIT,
    check_shape,
    damaged,
    named_leaves,
)
from lazyinit.checkpoint.mapped import File, MappedTensor
from lazyinit.checkpoint.memory import HeldTensor, number
from lazyinit.checkpoint.zipped import Member
from lazyinit.params import Source

_PICKLE = "data.pkl"
_BYTE_ORDER = "byteorder"


def is_archive(members: Mapping[str, Member]) -> bool:
    """Tells whether a zip archive is one that ``torch.save`` writes."""
    return _folder(members) is not None


def _folder(members: Mapping[str, Member]) -> str | None:
    # Everything lies in one folder, named after the file that was saved.
    found = [name for name in members if name.split("/")[1:] == [_PICKLE]]
    return found[0].removesuffix(_PICKLE) if len(found) == 1 else None


def open_archive(path: str | os.PathLike[str], members: Mapping[str, Member]) -> Checkpoint:
    """Opens a zip archive of ``torch.save``: unpickles its tree, reads no value.

    Dicts, lists and tuples in one another are named as paths: ``state_dict/encoder.weight``.
    Numbers are tensors with no dimensions; text and ``None`` are passed over.

    Args:
      path: of the file.
      members: its table of contents.

    Raises:
      CheckpointError: the file is damaged, its pickle would run code, or PyTorch is not installed.
    """
    file = File.at(path)
    folder = _folder(members)
    assert folder is not None, members
    tree_bytes = members[folder + _PICKLE]
    if tree_bytes.is_deflated or tree_bytes.size > HEADER_LIMIT:
        raise errors.CheckpointError(
            f"{file.path}: wanted a pickle stored as it is, of at most {HEADER_LIMIT} bytes, got "
            f"one of {tree_bytes.size}. Save it again with torch.save."
        )
    _check_byte_order(file, members.get(folder + _BYTE_ORDER))
    records = {m.offset: m for name, m in members.items() if name.startswith(f"{folder}data/")}
    torch = _import(file.path)
    tree = _load(torch, file.path, map_location="meta", mmap=True)
    tensors: dict[str, Source] = {}
    for name, leaf in named_leaves(file.path, tree):
        if isinstance(leaf, torch.Tensor):
            tensors[name] = _mapped(torch, file, name, leaf, records)
        elif isinstance(leaf, bool | int | float | complex):
            tensors[name] = number(file, name, leaf)
    return Checkpoint(os.fspath(path), tensors)


def open_pickle(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of ``torch.save`` from before its archives: reads it whole.

    Raises:
      CheckpointError: as ``open_archive``.
    """
    file = File.at(path)
    torch = _import(file.path)
    tree = _load(torch, file.path, map_location="cpu")
    tensors: dict[str, Source] = {}
    for name, leaf in named_leaves(file.path, tree):
        if isinstance(leaf, torch.Tensor):
            dtype = _dtype(torch, file, name, leaf)
            # NumPy has no bfloat16 of its own; the same bytes, as integers, do.
            plain = leaf.detach().resolve_conj().resolve_neg().contiguous()
            # Not reshape: it keeps whatever step an axis of one element has.
            bits = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
            array = bits.view(dtype).reshape(tuple(leaf.shape))
            tensors[name] = HeldTensor(name, array, origin=file.path)
        elif isinstance(leaf, bool | int | float | complex):
            tensors[name] = number(file, name, leaf)
    return Checkpoint(os.fspath(path), tensors)


def _import(path: str) -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise errors.CheckpointError(
            f"{path}: wanted PyTorch, which unpickles its own files, got none. "
            "Run pip install 'lazyinit[torch]', or convert the file to safetensors."
        ) from error
    return torch


def _load(torch: ModuleType, path: str, **how: Any) -> Any:  # Any: torch.load's own arguments.
    try:
        return torch.load(path, weights_only=True, **how)
    except OSError:
        raise
    except NotImplementedError as error:  # No name: torch.load stops at the tensor.
        raise errors.CheckpointError(
            f"{path}: wanted dense tensors, got one that PyTorch cannot describe without its "
            f"values, such as a sparse or a quantized one: {error!s:.100}. "
            "Save tensor.to_dense() or tensor.dequantize()."
        ) from error
    except Exception as error:  # Whatever its unpickler stumbles over.
        text = str(error)
        if "Unsupported operand" in text:
            raise errors.CheckpointError(
                f"{path}: wanted a pickle of protocol 2, which torch.save writes by itself, got "
                "one that torch.load does not read without running code. Save it again without "
                "pickle_protocol."
            ) from error
        if "Unsupported global" in text or "GLOBAL" in text:
            asked = text.partition("GLOBAL ")[2].partition("\n")[0] or text
            raise errors.CheckpointError(
                f"{path}: wanted tensors in dicts and lists, got a pickle that asks for code: "
                f"{asked.partition(' was not an allowed')[0]:.200}. Nothing was run. If you trust "
                "the file, load it with torch.load(..., weights_only=False) and save its "
                "state_dict() alone."
            ) from error
        if "sparse" in text and "meta" in text:  # PyTorch 2.14 checks what has no values.
            raise errors.CheckpointError(
                f"{path}: wanted dense tensors, got one that PyTorch cannot describe without its "
                f"values, a sparse one: {text:.100}. Save tensor.to_dense()."
            ) from error
        raise errors.CheckpointError(
            f"{path}: wanted a file of torch.save, got one that torch.load refuses: "
            f"{type(error).__name__}: {text!s:.200}. {FETCH_AGAIN}"
        ) from error


def _check_byte_order(file: File, record: Member | None) -> None:
    if record is None:
        return  # Written by a version that knew one order only.
    with open(file.path, "rb") as stream:
        stream.seek(record.offset)
        order = stream.read(min(record.size, 16))
    if record.is_deflated or order != b"little":
        raise errors.CheckpointError(
            f"{file.path}: wanted little-endian values, got {order!r}. "
            "Save it again on a little-endian machine."
        )


def _dtype(torch: ModuleType, file: File, name: str, tensor: Any) -> np.dtype:
    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided:
        raise errors.CheckpointError(
            f"{file.path}: tensor {name!r}: wanted a dense tensor of a dtype among "
            f"{', '.join(DTYPES)}, got {tensor.layout}, {tensor.dtype}. Save it as such."
        )
    return dtype


def _mapped(
    torch: ModuleType, file: File, name: str, tensor: Any, records: Mapping[int, Member]
) -> Source:  # Any: torch.Tensor, of a module that may not be installed.
    dtype = _dtype(torch, file, name, tensor)
    if tensor.is_conj() or tensor.is_neg():
        raise errors.CheckpointError(
            f"{file.path}: tensor {name!r}: wanted values as they are, got a view that conjugates "
            "or negates them. Save tensor.resolve_conj().resolve_neg()."
        )
    shape = check_shape(file.path, name, list(tensor.shape), dtype)
    steps = tuple(step * dtype.itemsize for step in tensor.stride())
    # The one attribute by which torch.load tells where a storage of the meta device lies.
    at = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if not math.prod(shape):
        return MappedTensor(file, name, shape, dtype, 0)
    record = records.get(at) if isinstance(at, int) else None
    if record is None or record.is_deflated:
        raise damaged(file.path, name, "values stored as they are in the archive", record)
    begin = tensor.storage_offset() * dtype.itemsize
    length = sum((size - 1) * step for size, step in zip(shape, steps, strict=True))
    if begin < 0 or min(steps, default=0) < 0 or begin + length + dtype.itemsize > record.size:
        got = f"{record.size} bytes in {record.name}"
        raise damaged(file.path, name, f"bytes {begin} to {begin + length + dtype.itemsize}", got)
    offset = record.offset + begin
    if tensor.is_contiguous():
        return MappedTensor(file, name, shape, dtype, offset)
    return MappedTensor(file, name, shape, dtype, offset, steps)
