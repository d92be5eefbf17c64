"""Tensors that cannot make a leaf as they are: those refused, and quantized ones without scales."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from lazyinit.checkpoint import Checkpoint
from lazyinit.patterns import pattern, slashed
from lazyinit.tensors.refused import RefusedTensor

_SCALE = "_scale"  # What the names of scales have after the name of their values.
_BY_FOLDER = (
    "open a folder whose config.json says how with "
    "lazyinit.open_checkpoint(folder, dequantize=True)"
)


class Unfit:
    """Says why tensors of a checkpoint cannot make a leaf."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Takes the checkpoint."""
        self._checkpoint = checkpoint

    def refused(self, tensors: Iterable[str]) -> str:
        """Returns why one of the tensors is not read at all, or ``""``."""
        found = (self._checkpoint[tensor] for tensor in tensors)
        problems = (each.problem for each in found if isinstance(each, RefusedTensor))
        return next(problems, "").rstrip(".")

    def unscaled(self, tensors: Iterable[str], dtype: Any) -> str:  # Any: JAX's own dtypes, too.
        """Returns why values may not be cast to a dtype: that they have scales, or ``""``."""
        for tensor in tensors:
            if tensor in self._scales and self._is_small(tensor, dtype):
                return (
                    f"its values are to be multiplied by {self._scales[tensor]!r}. Take both "
                    f"tensors in one rule, with lazyinit.Dequantize, or {_BY_FOLDER}"
                )
        return ""

    def packed(self, names: Iterable[str]) -> tuple[str, str]:
        """Returns the tensor that is one of these, quantized and packed, and why it cannot be read.

        Args:
          names: of tensors that there are not, with ``/`` or ``.``; numbers may stand as ``{n}``.
        """
        for name in names if self._packed else ():
            name = slashed(name)
            fits = (each for each in self._packed if "{" in name and pattern(name).match(each))
            if found := name if name in self._packed else next(fits, ""):
                why = f"it holds {found.replace('/', '.')!r}, quantized. To read it, {_BY_FOLDER}"
                return self._packed[found], why
        return "", ""

    def _is_small(self, tensor: str, dtype: Any) -> bool:  # Any: as above.
        held = self._checkpoint[tensor].dtype
        is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        return is_float and held != dtype and held.itemsize == 1 and held != "bool"

    def are_quantized(self, tensors: Iterable[str], dtype: Any) -> bool:  # Any: as above.
        """Tells whether one of the tensors has fewer bits than a leaf of a dtype of floats."""
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            return False
        held = (self._checkpoint[tensor].dtype for tensor in tensors)
        return any(d != dtype and d.itemsize == 1 and d not in _NO_VALUES for d in held)

    @functools.cached_property
    def _scales(self) -> Mapping[str, str]:
        """The names of scales by those of their values."""
        found: dict[str, str] = {}
        for name in self._checkpoint:
            values, is_scale, rest = name.rpartition(_SCALE)
            if is_scale and not any(mark in rest for mark in "./"):
                found.setdefault(values, name)
            elif name.endswith((".absmax", ".SCB")):  # Those of bitsandbytes.
                found.setdefault(name.removesuffix(".absmax").replace(".SCB", ".weight"), name)
        return found

    @functools.cached_property
    def _packed(self) -> Mapping[str, str]:
        """The names of packed tensors by those that they have where nothing is quantized."""
        found: dict[str, str] = {}
        for name in self._checkpoint:
            stem, _, last = name.rpartition(".")
            if last in ("weight_packed", "qweight"):
                found[slashed(f"{stem}.weight")] = name
            whole = name.removesuffix("_blocks")
            if whole != name and f"{whole}_scales" in self._checkpoint:
                found[slashed(whole)] = name
        return found


_NO_VALUES = ("bool", "uint8")
