"""Weights as compressed-tensors (llm-compressor, vLLM) writes them.

Source: https://github.com/vllm-project/compressed-tensors, 0.20: ``compressors``, which names the
tensors of each format, and ``quantization/lifecycle/forward_helpers.py``, which multiplies: values
less their zero points, times scales, in the dtype of the scales.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.schemes.weights import (
    PLACES,
    Scheme,
    Weight,
    by_end,
    dtype_by,
    in_shape,
    is_count,
)
from lazyinit.sources import Shape, Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.packed import SIGNED, Fields, nibbles
from lazyinit.tensors.quantized import Scaled, blocks_of
from lazyinit.tensors.scales import Divided

_PARTS = ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx")
_PARTS += ("weight_global_scale",)
_PLAIN = ("float-quantized", "int-quantized", "naive-quantized")
_FORMATS = (*_PLAIN, "pack-quantized", "nvfp4-pack-quantized", "mxfp4-pack-quantized")
_BFLOAT16 = np.dtype(jnp.bfloat16)


def _weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    parts = {part: f".{part}" for part in _PARTS}
    yield from by_end(checkpoint, ".weight_packed", ".weight", parts)
    for weight in by_end(checkpoint, ".weight", ".weight", parts):
        if "weight_scale" in weight.parts or weight.values.dtype.itemsize == 1:
            yield weight


def _refused(said: Mapping[str, Any]) -> str:
    groups = said.get("config_groups", {} if said.get("kv_cache_scheme") else None)
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        return f"wanted config_groups to say how weights are quantized, got {groups!r:.80}"
    sparsity = said.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        return f"weights are sparse, in the format {sparsity['format']!r:.80}"
    if said.get("transform_config"):
        return "weights are rotated (transform_config), and the model would have to turn them back"
    used = [group.get("format") or said.get("format") for group in _groups(said)]
    other = [form for form in used if form not in _FORMATS]
    return f"the format {other[0]!r:.80} is not among {', '.join(_FORMATS)}" if other else ""


def _groups(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the groups that quantize weights, not the activations of modules alone."""
    groups = said.get("config_groups") or {}
    return [group for group in groups.values() if group.get("weights") is not None]


def _source(weight: Weight, said: Mapping[str, Any]) -> Source:
    form, args = _args(weight, said)
    if weight.main.endswith("_packed") != (form not in _PLAIN):
        raise weight.wrong("", f"the tensor of a weight in the format {form!r}")
    if form == "nvfp4-pack-quantized":
        return _nvfp4(weight, args)
    if form == "mxfp4-pack-quantized":
        return _mxfp4(weight, args)
    return _integers(weight, args) if form == "pack-quantized" else _plain(weight, args)


def _nvfp4(weight: Weight, args: Mapping[str, Any]) -> Source:
    values = _float4(weight)
    _wanted(weight, args, 4, "float", {"tensor_group": 16})
    block = (*(1 for _ in values.shape[:-1]), 16)
    counts = blocks_of(values.shape, block)
    scales = weight.check("weight_scale", counts, "float8_e4m3fn")
    number = weight.part("weight_global_scale")
    if number.shape not in ((), (1,)) or not jnp.issubdtype(number.dtype, jnp.floating):
        raise weight.wrong("weight_global_scale", "one number, float32[1]")
    return Scaled(values, Divided(scales, number), block, _BFLOAT16)


def _mxfp4(weight: Weight, args: Mapping[str, Any]) -> Source:
    values = _float4(weight)
    _wanted(weight, args, 4, "float", {"group": 32})
    block = (*(1 for _ in values.shape[:-1]), 32)
    counts = blocks_of(values.shape, block)
    scales = weight.check("weight_scale", counts, "uint8", "float8_e8m0fnu")
    return Scaled(values, scales, block, _BFLOAT16)


def _float4(weight: Weight) -> Source:
    if weight.values.dtype != np.dtype("uint8") or not weight.values.shape:
        raise weight.wrong("", "two values to a byte, uint8[..., n]")
    return nibbles(weight.values)


def _integers(weight: Weight, args: Mapping[str, Any]) -> Source:
    """Returns the numbers of a weight whose integers are packed, several to a word."""
    bits, packed = args.get("num_bits"), weight.values
    if not is_count(bits) or bits not in SIGNED:
        raise _unclear(weight, "num_bits of 2, 4 or 8", bits)
    _wanted(weight, args, bits, "int")
    if packed.dtype != np.dtype("int32") or len(packed.shape) < 2:
        raise weight.wrong("", "values in words, int32[..., n]")
    weight.check("weight_shape", (len(packed.shape),), *PLACES)
    shape = tuple(map(int, weight.read("weight_shape", *PLACES)))
    words = (*shape[:-1], -(-shape[-1] * bits // 32))
    if min(shape) < 0 or words != packed.shape:
        raise weight.wrong("weight_shape", f"the shape of values in {list(packed.shape)}", shape)
    # Values are stored with half of their range added.
    values = Fields(packed, bits, len(shape) - 1, shape[-1], SIGNED[bits], flip=1 << (bits - 1))
    block = _block(weight, shape, args)
    scales = weight.scales("weight_scale", shape, block)
    zeros = _zeros(weight, args, bits, scales.shape, shape)
    if "weight_g_idx" in weight.parts:
        order = weight.read("weight_g_idx", *PLACES)
        size = block[-1]
        # A -1 says that there is no order.
        if -1 not in order and not np.array_equal(order, np.arange(shape[-1]) // size):
            last = len(shape) - 1
            taken = weight.in_order("weight_g_idx", (scales, *zeros), last, shape[-1])
            scales, zeros, block = taken[0], taken[1:], (*block[:-1], 1)
    return Scaled(values, scales, block, dtype_by(scales), zeros)


def _zeros(
    weight: Weight, args: Mapping[str, Any], bits: int, counts: Shape, shape: Shape
) -> tuple[Source, ...]:
    """Returns the zero points of a weight with packed integers; none if it is symmetric."""
    part = "weight_zero_point"
    if args.get("symmetric", True):
        if part in weight.parts:
            raise weight.wrong(part, "no such tensor, as weights are symmetric")
        return ()
    *outer, rows, groups = counts
    words = (*outer, -(-rows * bits // 32), groups)
    held = weight.check(part, words, "int32")
    if rows != shape[-2]:
        raise _unclear(weight, "zero points of a group or a channel", args.get("strategy"))
    return (Fields(held, bits, len(shape) - 2, rows, SIGNED[bits], flip=1 << (bits - 1)),)


def _plain(weight: Weight, args: Mapping[str, Any]) -> Source:
    """Returns the numbers of a weight whose values, float8 or int8, have a byte each."""
    values = weight.values
    is_int = values.dtype == np.dtype("int8")
    if not is_int and not (
        jnp.issubdtype(values.dtype, jnp.floating) and values.dtype.itemsize == 1
    ):
        raise weight.wrong("", "values of float8 or int8")
    _wanted(weight, args, 8, "int" if is_int else "float")
    block = _block(weight, values.shape, args)
    scales = weight.scales("weight_scale", values.shape, block)
    zeros = ()
    if "weight_zero_point" in weight.parts:
        shape, kinds = weight.part("weight_scale").shape, ("int8", values.dtype.name)
        zeros = (in_shape(weight.check("weight_zero_point", shape, *kinds), scales.shape),)
    return Scaled(values, scales, block, dtype_by(scales), zeros)


def _block(weight: Weight, shape: Shape, args: Mapping[str, Any]) -> Shape:
    """Returns how many values along each axis share a scale."""
    strategy = args.get("strategy")
    size: Any = args.get("group_size")
    sizes: Any = args.get("block_structure")
    if strategy == "tensor":
        return tuple(max(size, 1) for size in shape)
    if strategy == "channel" and shape:
        return (*(1 for _ in shape[:-1]), max(shape[-1], 1))
    if strategy == "group" and is_count(size) and shape:
        return (*(1 for _ in shape[:-1]), size)
    is_pair = isinstance(sizes, list) and len(sizes) == 2 and all(map(is_count, sizes))
    if strategy == "block" and is_pair and len(shape) > 1:
        return (*(1 for _ in shape[:-2]), *sizes)
    wanted = "a strategy among tensor, channel, group with its group_size and block with its"
    got = {key: args.get(key) for key in ("strategy", "group_size", "block_structure")}
    raise _unclear(weight, f"{wanted} block_structure", got)


def _wanted(
    weight: Weight,
    args: Mapping[str, Any],
    bits: int,
    kind: str,
    strategies: Mapping[str, int] | None = None,
) -> None:
    """Raises a ``CheckpointError`` unless the configuration agrees with the tensors."""
    got = {key: args.get(key) for key in ("num_bits", "type", "strategy", "group_size")}
    said = (got["num_bits"], got["type"] or "int")
    if said != (bits, kind) or (
        strategies and (got["strategy"], got["group_size"]) not in list(strategies.items())
    ):
        raise _unclear(weight, f"weights of {bits} bits, {kind}, as the tensor is", got)


def _unclear(weight: Weight, wanted: str, got: object) -> errors.CheckpointError:
    return errors.CheckpointError(
        f"{weight.checkpoint.origin}: tensor {weight.main!r}: wanted config.json to say {wanted}, "
        f"got {got!r:.120}. Fetch the folder again, or read it with rules of your own."
    )


def _args(weight: Weight, said: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Returns a weight's format and quantization arguments, from the group of its module."""
    tiers: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
    for group in _groups(said):
        args, form = group["weights"], group.get("format") or said.get("format")
        targets = group.get("targets")
        for target in targets if isinstance(targets, list) else ():
            if isinstance(target, str) and (tier := _tier(weight, target)):
                found = tiers.setdefault(tier, [])
                each = str(form), args if isinstance(args, dict) else {}
                found += [each] * (each not in found)
    (best, *others) = tiers[min(tiers)] if tiers else [("", {})]
    if not tiers or others:
        wanted = f"in one of its config_groups how {weight.module!r} is quantized"
        raise _unclear(weight, wanted, f"{len(others) + bool(tiers)} that fit")
    return best


def _tier(weight: Weight, target: str) -> int:
    """Returns how a target fits a module: 1 by name, 2 by a pattern, 3 by a class, 0 not at all."""
    if target == weight.module:
        return 1
    text = target.removeprefix("re:")
    if text != target:
        try:
            return 2 if re.match(text, weight.module) else 0
        except re.error as error:
            raise _unclear(weight, "a pattern of modules", target) from error
    # Names of classes, which the tensors do not tell: such as "Linear".
    return 3 if target.isidentifier() and target[:1].isupper() else 0


COMPRESSED_TENSORS = Scheme(_weights, _source, _refused, lambda said: not _groups(said))
