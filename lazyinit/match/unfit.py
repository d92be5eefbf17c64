"""Says why a tensor cannot make a leaf as it is: it is not read, or needs its scales."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from lazyinit.checkpoint import Checkpoint
from lazyinit.patterns import pattern, slashed
from lazyinit.tensors.refused import RefusedTensor

_SCALE = "_scale"  # Comes after the name of the values in the name of their scales.
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
        """Returns why one of the tensors cannot be read at all; ``""`` if all can."""
        found = (self._checkpoint[tensor] for tensor in tensors)
        problems = (each.problem for each in found if isinstance(each, RefusedTensor))
        return next(problems, "").rstrip(".")

    def unscaled(self, tensors: Iterable[str], dtype: Any) -> str:  # Any: JAX's own dtypes, too.
        """Returns why tensors need scales before a cast to a dtype; ``""`` if they do not."""
        for tensor in tensors:
            if tensor in self._scales and self._is_small(tensor, dtype):
                return (
                    f"its values are to be multiplied by {self._scales[tensor]!r}. Take both "
                    f"tensors in one rule, with lazyinit.Dequantize, or {_BY_FOLDER}"
                )
        return ""

    def packed(self, names: Iterable[str]) -> tuple[str, str]:
        """Returns a packed, quantized tensor that stands for one of the names, and why it is unfit.

        Both are ``""`` if there is none.

        Args:
          names: names that no tensor has, with ``/`` or ``.``; ``{n}`` may stand for a number.
        """
        for name in names if self._packed else ():
            name = slashed(name)
            fits = (each for each in self._packed if "{" in name and pattern(name).match(each))
            if found := name if name in self._packed else next(fits, ""):
                why = f"it holds {found.replace('/', '.')!r}, quantized. To read it, {_BY_FOLDER}"
                return self._packed[found], why
        return "", ""

    def _is_small(self, tensor: str, dtype: Any) -> bool:  # Any: as above.
        """Tells whether a tensor of one-byte numbers would be cast to other floats."""
        held = self._checkpoint[tensor].dtype
        is_float = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
        return is_float and held != dtype and held.itemsize == 1 and held != "bool"

    def are_quantized(self, tensors: Iterable[str], dtype: Any) -> bool:  # Any: as above.
        """Tells whether a tensor holds numbers of one byte where the leaf wants other floats."""
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            return False
        held = (self._checkpoint[tensor].dtype for tensor in tensors)
        return any(d != dtype and d.itemsize == 1 and d not in _NO_VALUES for d in held)

    @functools.cached_property
    def _scales(self) -> Mapping[str, str]:
        """The names of scales, by the names of the tensors that they scale."""
        found: dict[str, str] = {}
        for name in self._checkpoint:
            values, is_scale, rest = name.rpartition(_SCALE)
            if is_scale and not any(mark in rest for mark in "./"):
                found.setdefault(values, name)
            elif name.endswith((".absmax", ".SCB")):  # As bitsandbytes names its scales.
                found.setdefault(name.removesuffix(".absmax").replace(".SCB", ".weight"), name)
        return found

    @functools.cached_property
    def _packed(self) -> Mapping[str, str]:
        """The names of packed tensors, by the names that they have in an unquantized checkpoint."""
        found: dict[str, str] = {}
        for name in self._checkpoint:
            stem, _, last = name.rpartition(".")
            if last in ("weight_packed", "qweight"):
                found[slashed(f"{stem}.weight")] = name
            whole = name.removesuffix("_blocks")
            if whole != name and f"{whole}_scales" in self._checkpoint:
                found[slashed(whole)] = name
        return found


_NO_VALUES = ("bool", "uint8")  # One-byte dtypes of masks and packed bits, not of numbers.
