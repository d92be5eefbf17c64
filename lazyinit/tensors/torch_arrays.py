"""Turns PyTorch's tensors in memory into NumPy's arrays, without importing PyTorch."""

import sys
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.tensors.headers import DTYPES


def is_torch_tensor(value: object) -> bool:
    """Tells whether a value is a tensor of PyTorch; there is none before PyTorch is imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(origin: str, name: str, tensor: Any) -> np.ndarray:  # Any: torch.Tensor.
    """Returns an array of the same bits; of the same memory if that is on the host, in C order.

    Raises:
      CheckpointError: the tensor is not dense, has no values, or has a dtype that JAX lacks.
    """
    torch = sys.modules["torch"]
    dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None or tensor.layout != torch.strided or tensor.is_meta:
        raise errors.CheckpointError(
            f"{origin}: tensor {name!r}: wanted a dense tensor with values, of a dtype among "
            f"{', '.join(DTYPES)}, got {tensor.layout}, {tensor.dtype}, on {tensor.device}. "
            "Convert it to such a tensor first."
        )
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not reshape, which keeps any stride that an axis of one element has. Bytes are handed over, as
    # NumPy has no bfloat16 of its own.
    flat = plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()
    return flat.view(dtype).reshape(tuple(tensor.shape))
