"""The change that dequantizes: it multiplies quantized values by their scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.rules.change import Change, Frame, Grid, Wanted
from lazyinit.sources import Source, describe
from lazyinit.tensors.packed import FLOAT4, nibbles
from lazyinit.tensors.quantized import Scaled, blocks_of, sharing
from lazyinit.tensors.views import reshaped

_FORMATS = ("scaled", "mxfp4")
_MX = 32  # How many values share a scale in the specification of MX formats.
_SCALES = "float32, float16, bfloat16, float64, float8_e4m3fn or float8_e8m0fnu"


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Dequantize:
    """Multiplies quantized tensors by their scales while any part of them is read.

    It makes one leaf of two tensors, the values and the scales (two of four, and so on)::

        Rule("**/kernel", ("**.weight", "**.weight_scale_inv"),
             [Dequantize(block=(128, 128)), Transpose("o i -> i o")])

    A leaf that has the dtype of the values keeps them as they are, without scales.

    Values are float8, float4 or int8. Scales have one element, or an axis for each of the first
    axes of the values; along each axis there is one scale, one for each index, or, if ``block``
    is given, one for each block. Scales of ``uint8`` are exponents (E8M0). A product is computed
    in float32 and rounded once.

    Attributes:
      format: ``"scaled"``; or ``"mxfp4"``, values of four bits, two in a byte, with a scale for
        each 32: values ``[..., n, 16]`` with scales ``[..., n]`` (GPT-OSS's ``blocks`` and
        ``scales``), or ``[..., 16 n]`` with ``[..., n]`` (compressed-tensors' ``weight_packed``).
      block: how many values share a scale, along each of the last axes: ``(128, 128)``, or
        ``(64,)`` for groups of 64.
      dtype: the dtype of the products; ``fill`` casts them to the leaf's.

    Raises:
      FillError: the format is unknown, the dtype is none of floats, or a block size is not valid.

    Example:
      >>> import ml_dtypes
      >>> from lazyinit.tensors.memory import HeldTensor
      >>> values = HeldTensor("w", np.ones((2, 4), ml_dtypes.float8_e4m3fn))
      >>> scales = HeldTensor("s", np.array([[1.0, 2.0]], np.float32))
      >>> made = Dequantize(block=(2, 2)).forward(Grid(((values,), (scales,))), (None,))
      >>> made.rows[0][0].read((slice(0, 1), slice(1, 4)))
      array([[1., 2., 2.]], dtype=float32)
    """

    format: str
    block: tuple[int, ...]
    dtype: np.dtype

    def __init__(
        self,
        format: str = "scaled",
        *,
        block: Sequence[int] = (),
        dtype: Any = "float32",  # Whatever jnp.dtype takes.
    ) -> None:
        if format not in _FORMATS:
            raise errors.FillError(
                f"Dequantize: wanted a format among {', '.join(map(repr, _FORMATS))}, got "
                f"{format!r}{errors.nearest(str(format), _FORMATS)}"
            )
        sizes = tuple(block)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or (
            sizes and format != "scaled"
        ):
            raise errors.FillError(
                f"Dequantize({format!r}): wanted block= to say for 'scaled' how many values along "
                f"each of the last axes share a scale, as in block=(128, 128), got {block!r}."
            )
        try:
            made = jnp.dtype(dtype)
        except TypeError:
            made = np.dtype(object)
        if not jnp.issubdtype(made, jnp.floating):
            raise errors.FillError(
                f"Dequantize: wanted a dtype of floats, such as 'bfloat16', got {dtype!r}."
            )
        object.__setattr__(self, "format", format)
        object.__setattr__(self, "block", sizes)
        object.__setattr__(self, "dtype", made)

    def __reduce__(self) -> tuple[object, ...]:
        return _dequantize, (self.format, self.block, self.dtype)

    def __repr__(self) -> str:
        shown = [repr(self.format)] * (self.format != "scaled")
        shown += [f"block={self.block}"] * bool(self.block)
        shown += [f"dtype={str(self.dtype)!r}"] * (self.dtype != np.float32)
        return f"Dequantize({', '.join(shown)})"

    def kept(self) -> Change:
        """Returns the change for a leaf that keeps values quantized: it drops their scales."""
        return _Kept(self)

    def after(self, before: Frame, leaves: Frame) -> Frame:
        """Returns a frame with half as many rows: one for each pair of values and scales."""
        return _half(before, self)

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        """Returns, for each pair, the wanted shape of its values, and ``None`` for its scales."""
        is_kept = self.format == "scaled"
        return tuple(each for shape in wanted for each in (shape if is_kept else None, None))

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        """Returns the grid with a row for each pair: its values times its scales."""
        pairs = zip(grid.rows[::2], grid.rows[1::2], strict=True)
        rows = (tuple(map(self._scaled, values, scales)) for values, scales in pairs)
        return Grid(tuple(rows), grid.numbered)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        """Raises a ``FillError``: products do not tell what the scales were.

        A format says how scales are read, not how a writer chose them: by the largest value, by
        data that ran through the model, or by a search.
        """
        raise errors.FillError(
            f"wanted a layout that can be read backwards, got {self}, which would need new scales, "
            "and a leaf does not tell how to choose them. Save plain numbers: pass the rules "
            "without it, which are those that lazyinit.maps.quantized was given."
        )

    def _scaled(self, values: Source, scales: Source) -> Source:
        """Returns the products of one pair of values and scales."""
        if not _is_scale(scales.dtype):
            raise errors.FillError(
                f"{self}: wanted scales of {_SCALES}, or exponents of uint8, got "
                f"{describe(scales.shape, scales.dtype)} in {scales!r}"
            )
        values, scales = (self._unpacked if self.format == "mxfp4" else self._aligned)(
            values, scales
        )
        given = (_MX,) if self.format == "mxfp4" else self.block
        block = sharing(values.shape, scales.shape, given)
        if block is None:
            if not self.block:
                what = "with one place, or as many, along each axis"
            elif len(self.block) > len(values.shape):
                what = f"of {len(self.block)} axes"
            else:
                whole = (1,) * (len(values.shape) - len(self.block)) + self.block
                what = f"of shape {list(blocks_of(values.shape, whole))}"
            advice = "" if self.block else ". Say how many values share one: block=(128, 128)"
            raise errors.FillError(
                f"{self}: wanted scales {what} for {values!r} of shape {list(values.shape)}, got "
                f"{list(scales.shape)} in {scales!r}{advice}"
            )
        return Scaled(values, scales, block, self.dtype)

    def _aligned(self, values: Source, scales: Source) -> tuple[Source, Source]:
        """Returns values, and scales with as many axes; checks the dtype of the values."""
        if values.dtype.itemsize > 1 or values.dtype in (np.dtype("uint8"), np.dtype("bool")):
            raise errors.FillError(
                f"{self}: wanted values of float8, float4 or int8, got "
                f"{describe(values.shape, values.dtype)} in {values!r}"
            )
        # A single scale for the whole tensor may have the shape () or (1,).
        shape = () if scales.shape == (1,) else scales.shape
        return values, reshaped(scales, shape + (1,) * (len(values.shape) - len(shape)))

    def _unpacked(self, values: Source, scales: Source) -> tuple[Source, Source]:
        """Returns values with one element for each number, and their scales; checks the shapes."""
        packed = [(*scales.shape, _MX // 2), (*scales.shape[:-1], scales.shape[-1] * _MX // 2)]
        if values.dtype == FLOAT4:  # A reader of safetensors has unpacked F4 already.
            packed = [(*scales.shape[:-1], scales.shape[-1] * _MX)]
        elif values.dtype != np.dtype("uint8"):
            packed = []
        if not scales.shape or values.shape not in packed:
            raise errors.FillError(
                f"{self}: wanted blocks of uint8[..., n, {_MX // 2}] or uint8[..., {_MX // 2} n] "
                f"for scales of shape {list(scales.shape)} in {scales!r}, got "
                f"{describe(values.shape, values.dtype)} in {values!r}"
            )
        if values.dtype != FLOAT4:
            values = nibbles(reshaped(values, packed[1]))
        return values, scales


def _dequantize(format: str, block: tuple[int, ...], dtype: np.dtype) -> Dequantize:
    return Dequantize(format, block=block, dtype=dtype)


def _half(before: Frame, change: object) -> Frame:
    """Returns a frame with a row for each pair of rows, if there are pairs."""
    if before.rows % 2:
        raise errors.FillError(
            f"{change}: wanted pairs of tensors, values and scales, got {before.rows}. List both "
            "patterns in the rule: ('**.weight', '**.weight_scale')."
        )
    return Frame(before.rows // 2, before.numbered)


def _is_scale(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) or dtype == np.dtype("uint8")


@dataclass(frozen=True, slots=True)
class _Kept:
    """Keeps the quantized values, and drops their scales."""

    of: Dequantize

    def after(self, before: Frame, leaves: Frame) -> Frame:
        return _half(before, self.of)

    def before(self, wanted: tuple[Wanted, ...], grid: Frame) -> tuple[Wanted, ...]:
        return tuple(each for shape in wanted for each in (shape, None))

    def forward(self, grid: Grid, wanted: tuple[Wanted, ...]) -> Grid:
        return Grid(grid.rows[::2], grid.numbered)

    def backward(self, grid: Grid, before: Frame) -> Grid:
        return self.of.backward(grid, before)
