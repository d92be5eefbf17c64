"""Weights of float8 as DeepSeek has them, and of MXFP4 as GPT-OSS has them.

Source: ``transformers`` 5.24, ``integrations/finegrained_fp8.py`` (the weight times the scale of
its block, computed in float32) and ``integrations/mxfp4.py`` (32 values in 16 bytes with one
exponent; the result has its last two axes exchanged).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit.checkpoint.schemes.weights import (
    Scheme,
    Weight,
    by_end,
    dtype_by,
    in_shape,
    is_count,
)
from lazyinit.sources import Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.packed import nibbles
from lazyinit.tensors.quantized import Scaled
from lazyinit.tensors.views import transposed

_MX = 32  # How many values share an exponent.
_BLOCK = [128, 128]  # What transformers takes where the configuration does not say.


def _float8_weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    ends = {"scale_inv": "_scale_inv", "scale": "_scale"}
    for weight in by_end(checkpoint, "", "", ends):
        dtype = weight.values.dtype
        if weight.parts or (dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.floating)):
            is_scale = weight.name.endswith(("_scale_inv", "_scale"))
            if not is_scale:
                yield weight


def _float8_refused(said: Mapping[str, Any]) -> str:
    block, experts = said.get("weight_block_size", _BLOCK), said.get("expert_dtype", "fp8")
    is_pair = isinstance(block, list) and len(block) == 2 and all(map(is_count, block))
    if block is not None and not is_pair:
        return f"wanted a weight_block_size of two sizes, got {block!r:.80}"
    return f"experts are of {experts!r:.80}" if experts != "fp8" else ""


def _float8(weight: Weight, said: Mapping[str, Any]) -> Source:
    values = weight.values
    if not jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.itemsize != 1:
        raise weight.wrong("", "values of float8")
    part = "scale" if "scale" in weight.parts else "scale_inv"
    scales = weight.part(part)
    sizes = said.get("weight_block_size", _BLOCK)
    if not values.shape:
        raise weight.wrong("", "values with an axis or more")
    if sizes is None or scales.shape in ((), (1,)):  # One for all, or one for each row.
        rows = 1 if scales.shape not in ((), (1,), (1, 1)) else max(values.shape[0], 1)
        block = (rows, *(max(size, 1) for size in values.shape[1:]))
    elif len(values.shape) < 2:
        raise weight.wrong("", "values with two axes or more, along which blocks are cut")
    else:
        block = (*(1 for _ in values.shape[:-2]), *sizes)
    found = weight.scales(part, values.shape, block, exponents=True)
    return Scaled(values, found, block, dtype_by(scales))


def _mxfp4_weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    return by_end(checkpoint, "_blocks", "", {"scales": "_scales"})


def _mxfp4(weight: Weight, said: Mapping[str, Any]) -> Source:
    blocks = weight.values
    is_blocks = len(blocks.shape) > 2 and blocks.shape[-1] == _MX // 2
    if blocks.dtype != np.dtype("uint8") or not is_blocks:
        raise weight.wrong("", f"blocks of {_MX // 2} bytes, uint8[..., n, {_MX // 2}]")
    *outer, groups, _ = list(blocks.shape)
    scales = weight.check("scales", (*outer, groups), "uint8", "float8_e8m0fnu")
    values = nibbles(in_shape(blocks, (*outer, groups * _MX // 2)))
    block = (*(1 for _ in outer), _MX)
    last = len(outer)
    made = Scaled(values, scales, block, np.dtype(jnp.bfloat16))
    return transposed(made, (*range(last - 1), last, last - 1))


FLOAT8 = Scheme(_float8_weights, _float8, _float8_refused)
MXFP4 = Scheme(_mxfp4_weights, _mxfp4)
