"""Weights of GPTQ and AWQ: integers in words, with zero points and scales of groups of inputs.

Sources: AutoGPTQ 0.7, ``nn_modules/qlinear/qlinear_cuda_old.py``, and GPTQModel, for the format
``gptq_v2``: words hold inputs, the first in the lowest bits, and in ``gptq`` zero points are stored
less one, so that the largest stands for 0 (other parts of AutoGPTQ take it for one more than the
largest). AutoAWQ 0.2, ``utils/packing_utils.py``: words hold outputs, the even ones of eight first.
A weight is ``(value - zero point) * scale`` in the dtype of the scales; here it is turned to
torch's ``[out, in]``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lazyinit.checkpoint.schemes.weights import PLACES, Scheme, Weight, by_end, is_count
from lazyinit.sources import Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.packed import UNSIGNED, Fields
from lazyinit.tensors.quantized import Scaled
from lazyinit.tensors.scales import Coded
from lazyinit.tensors.views import transposed

_WORD = 32  # Bits.
_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)
_FLOATS = ("float16", "bfloat16", "float32")


def _weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    parts = {part: f".{part}" for part in ("qzeros", "scales", "g_idx")}
    return by_end(checkpoint, ".qweight", ".weight", parts)


def _refused(said: Mapping[str, Any], bits: tuple[int, ...], forms: tuple[str, ...]) -> str:
    size = said.get("group_size", 128)
    if said.get("bits") not in bits:
        return f"wanted bits among {', '.join(map(str, bits))}, got {said.get('bits')!r:.80}"
    if not is_count(size) and size != -1:
        return f"wanted a group_size, got {size!r:.80}"
    keys = [key for key in ("checkpoint_format", "format", "version") if said.get(key) is not None]
    form = said[keys[0]] if keys else forms[0]
    if str(form).lower() not in forms:
        return f"the format {form!r:.80} is not among {', '.join(forms)}"
    return ""


def _gptq_refused(said: Mapping[str, Any]) -> str:
    if said.get("meta") and isinstance(said["meta"], dict) and said["meta"].get("dynamic"):
        return "modules differ in how they are quantized"
    if said.get("dynamic"):
        return "modules differ in how they are quantized (dynamic)"
    return _refused(said, (2, 4, 8), ("gptq", "gptq_v2"))


def _awq_refused(said: Mapping[str, Any]) -> str:
    if said.get("zero_point", True) is not True:
        return "wanted zero points, got zero_point false"
    return _refused(said, (4,), ("gemm",))


def _gptq(weight: Weight, said: Mapping[str, Any]) -> Source:
    bits, words = said["bits"], weight.values
    if words.dtype != np.dtype("int32") or len(words.shape) != 2:
        raise weight.wrong("", "values in words, int32[in, out]")
    size, out = words.shape[0] * _WORD // bits, words.shape[1]
    values = Fields(words, bits, 0, size, UNSIGNED[bits])
    group, groups = _groups(said, size)
    scales = weight.check("scales", (groups, out), *_FLOATS)
    packed = weight.check("qzeros", (groups, -(-out * bits // _WORD)), "int32")
    size_of, zeros = 1 << bits, Fields(packed, bits, 1, out, UNSIGNED[bits])
    if str(said.get("checkpoint_format") or said.get("format") or "gptq").lower() == "gptq":
        zeros = Coded(zeros, tuple((n + 1) % size_of for n in range(size_of)))
    dtype, there = scales.dtype, "g_idx" in weight.parts
    if there and not np.array_equal(weight.read("g_idx", *PLACES), np.arange(size) // group):
        scales, zeros = weight.in_order("g_idx", (scales, zeros), 0, size)
        group = 1
    return transposed(Scaled(values, scales, (group, 1), dtype, (zeros,)), (1, 0))


def _awq(weight: Weight, said: Mapping[str, Any]) -> Source:
    words = weight.values
    if words.dtype != np.dtype("int32") or len(words.shape) != 2:
        raise weight.wrong("", "values in words, int32[in, out / 8]")
    size, out = words.shape[0], words.shape[1] * 8
    group, groups = _groups(said, size)
    scales = weight.check("scales", (groups, out), *_FLOATS)
    packed = weight.check("qzeros", (groups, out // 8), "int32")
    values, zeros = (Fields(x, 4, 1, out, UNSIGNED[4], order=_AWQ) for x in (words, packed))
    return transposed(Scaled(values, scales, (group, 1), scales.dtype, (zeros,)), (1, 0))


def _groups(said: Mapping[str, Any], size: int) -> tuple[int, int]:
    """Returns how many inputs share a scale, and how many groups there are."""
    group = said.get("group_size", 128)
    group = max(size, 1) if group == -1 else group
    return group, -(-size // group)


GPTQ = Scheme(_weights, _gptq, _gptq_refused)
AWQ = Scheme(_weights, _awq, _awq_refused)
