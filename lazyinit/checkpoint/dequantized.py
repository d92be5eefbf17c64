"""Turns a quantized checkpoint into one of numbers, as its ``config.json`` says.

The values, scales, zero points and other tensors of a weight become one tensor, under the name that
the weight has if nothing is quantized, so that everything above reads it by the same rules. Nothing
is guessed: it is an error if the tensors are not what the configuration promises, or the reverse.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lazyinit import errors
from lazyinit.checkpoint.schemes.bitsandbytes import BITSANDBYTES
from lazyinit.checkpoint.schemes.block_scaled import FLOAT8, MXFP4
from lazyinit.checkpoint.schemes.compressed_tensors import COMPRESSED_TENSORS
from lazyinit.checkpoint.schemes.gptq_awq import AWQ, GPTQ
from lazyinit.checkpoint.schemes.weights import Scheme, Weight
from lazyinit.sources import Source, describe
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.refused import RefusedTensor

_SCHEMES: Mapping[str, Scheme] = {
    "awq": AWQ,
    "bitsandbytes": BITSANDBYTES,
    "compressed-tensors": COMPRESSED_TENSORS,
    "fp8": FLOAT8,
    "gptq": GPTQ,
    "mxfp4": MXFP4,
}
_ELSE = "save it dequantized with the library that quantized it."
# Names of scales of activations and of the cache of keys and values, which no weight needs.
_OF_NO_WEIGHT = re.compile(
    r".*[._](input|output|activation|[kqv]|prob)_(global_scale|scale|scale_inv|scale_ub|zero_point)"
)
_OF_A_WEIGHT = re.compile(
    r".*[._](weight_(packed|scale|scale_inv|zero_point|global_scale|shape|g_idx|scale_2|format)|"
    r"qweight|qzeros|g_idx|scales|blocks|SCB|absmax|quant_map|nested_absmax|quant_state\.\w+)"
)


def dequantized(checkpoint: Checkpoint, said: Mapping[str, Any]) -> Checkpoint:
    """Returns a checkpoint whose quantized weights are the numbers that they stand for.

    A few small tensors of each weight may be read, which say how the others lie. Scales of
    activations are left out, as no weight needs them. If the configuration quantizes no weight, but
    only activations or the cache of keys and values, all tensors stay as they are.

    Args:
      checkpoint: the checkpoint as its files have it.
      said: the ``quantization_config`` of its ``config.json`` (any JSON).

    Raises:
      CheckpointError: the method cannot be dequantized, or tensors do not fit the configuration;
        all such weights are collected.
    """
    method, scheme = _scheme(said)
    where = f"{checkpoint.origin}: config.json says quant_method {method!r:.80}"
    if scheme is None:
        raise errors.CheckpointError(
            f"{where}: wanted a method among {', '.join(_SCHEMES)}. Fetch the model as it was "
            f"before it was quantized, or {_ELSE}"
        )
    if why := scheme.refused(said):
        raise errors.CheckpointError(
            f"{where}, which lazyinit does not dequantize in this form: {why}. Fetch the model as "
            f"it was before it was quantized, or {_ELSE}"
        )
    made: dict[str, Source] = {}
    taken: set[str] = set()
    problems: list[str] = []
    is_plain = scheme.is_plain(said)
    for weight in () if is_plain else scheme.weights(checkpoint):
        taken |= {weight.main, *weight.parts.values()}
        try:
            made[weight.name] = _made(weight, scheme, said, made)
        except errors.CheckpointError as error:
            problems.append(str(error))
    problems += _left(checkpoint, taken, where)
    if problems:
        raise errors.CheckpointError(errors.listing(problems))
    if is_plain:
        return checkpoint
    if not made:
        raise errors.CheckpointError(
            f"{where}, but none of the {len(checkpoint)} tensors is quantized in that way. If "
            "they are plain numbers, remove quantization_config from config.json. If not, fetch "
            "the folder again."
        )
    plain = {
        name: source
        for name, source in checkpoint.items()
        if name not in taken and not is_of_no_weight(name)
    }
    return replace(checkpoint, tensors={**plain, **made}, dequantized=str(method))


def quantizes_weights(said: Mapping[str, Any]) -> bool:
    """Tells whether a configuration (any JSON) quantizes weights, or may do so in unknown ways.

    >>> quantizes_weights({"config_groups": {}, "kv_cache_scheme": {"num_bits": 8}})
    False
    """
    _, scheme = _scheme(said)
    is_plain = scheme is not None and not scheme.refused(said) and scheme.is_plain(said)
    return bool(said) and not is_plain


def is_of_no_weight(name: str) -> bool:
    """Tells whether a tensor of this name is a scale of activations, or of a cache."""
    return _OF_NO_WEIGHT.fullmatch(name) is not None


def tells_scales(names: Iterable[str]) -> bool:
    """Tells whether one of these names is that of a quantized weight's part, such as its scales."""
    return any(_OF_A_WEIGHT.fullmatch(name) for name in names)


def _scheme(said: Mapping[str, Any]) -> tuple[Any, Scheme | None]:  # Any: JSON.
    """Returns the method that a configuration names, and its scheme, or ``None`` without one."""
    method = said.get("quant_method", "compressed-tensors" if "config_groups" in said else None)
    # transformers wrote these before it named the method.
    if method is None and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = "bitsandbytes"
    return method, _SCHEMES.get(method) if isinstance(method, str) else None


def _made(
    weight: Weight, scheme: Scheme, said: Mapping[str, Any], made: Mapping[str, Source]
) -> Source:
    is_twice = weight.name in made or (
        weight.name != weight.main and weight.name in weight.checkpoint
    )
    if is_twice:
        raise weight.wrong("", f"it to be the only tensor for {weight.name!r}", "two")
    for name in (weight.main, *weight.parts.values()):
        source = weight.checkpoint[name]
        if isinstance(source, RefusedTensor):
            raise errors.CheckpointError(f"{source.origin}: tensor {name!r}: {source.problem}")
    return scheme.source(weight, said)


def _left(checkpoint: Checkpoint, taken: set[str], where: str) -> Iterator[str]:
    """Yields an error message for each quantized tensor that the method did not account for."""
    for name, source in checkpoint.items():
        if name in taken or is_of_no_weight(name) or isinstance(source, RefusedTensor):
            continue
        is_small = source.dtype.itemsize == 1 and source.dtype.name not in ("bool", "uint8")
        if is_small or _OF_A_WEIGHT.fullmatch(name):
            yield (
                f"{where}, but tensor {name!r}, {describe(source.shape, source.dtype)}, is "
                "quantized in another way. Fetch the folder again."
            )
