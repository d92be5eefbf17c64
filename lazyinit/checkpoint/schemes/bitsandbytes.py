"""Weights of four and of eight bits as bitsandbytes has them.

Source: https://github.com/bitsandbytes-foundation/bitsandbytes, 0.50: ``functional.py``
(``QuantState``) and ``backends/default/ops.py``. A weight of four bits consists of codes of a
table, two to a byte, the first in its high half. Blocks of the flat weight share a scale; these
scales may be quantized in the same way, with eight bits. A weight of eight bits consists of rows of
integers, each row with the largest value that it stands for.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lazyinit.checkpoint.schemes.weights import Scheme, Weight, by_end, in_shape, is_count
from lazyinit.sources import Shape, Source
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.headers import DTYPES, MAX_NDIM, are_counts
from lazyinit.tensors.memory import Filled
from lazyinit.tensors.packed import UNSIGNED, Fields
from lazyinit.tensors.quantized import Scaled, blocks_of
from lazyinit.tensors.scales import Coded, Raised, Rows

_FLOAT32 = np.dtype("float32")
_STATE = "quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_BYTE = ("uint8", "int8")


def _weights(checkpoint: Checkpoint) -> Iterator[Weight]:
    parts = {part: f".{part}" for part in (*_PARTS, *(_STATE + kind for kind in _KINDS))}
    is_integer = {name: checkpoint[name].dtype.name in _BYTE for name in checkpoint}
    for weight in by_end(checkpoint, "", "", parts):
        if weight.parts:
            yield weight
    beside = {"SCB": ".SCB", "format": ".weight_format"}
    for weight in by_end(checkpoint, ".weight", ".weight", beside):
        is_four = any(f"{weight.main}{end}" in checkpoint for end in parts.values())
        if not is_four and (weight.parts or is_integer[weight.main]):
            yield weight


def _source(weight: Weight, said: Mapping[str, Any]) -> Source:
    is_eight = weight.values.dtype == np.dtype("int8") or "SCB" in weight.parts
    return _rows(weight) if is_eight else _codes(weight)


def _rows(weight: Weight) -> Source:
    """Returns the numbers of a weight of int8 values, with one scale for each row."""
    values = weight.values
    if values.dtype != np.dtype("int8") or len(values.shape) != 2:
        raise weight.wrong("", "values int8[rows, columns]")
    if "format" in weight.parts and (held := weight.read("format", "uint8", "int8")).any():
        raise weight.wrong("format", "0, which stands for values in rows", held.tolist())
    rows, columns = values.shape
    block = (1, max(columns, 1))
    scales = in_shape(weight.check("SCB", (rows,), "float32"), (rows, 1))
    product = Scaled(values, scales, block, _FLOAT32)
    # Two products, as in bitsandbytes: their order decides how the last bit is rounded.
    part = Filled(np.array(7.874015718698502e-3, _FLOAT32), (1, 1))
    return Scaled(product, part, (max(rows, 1), block[1]), _FLOAT32)


def _codes(weight: Weight) -> Source:
    """Returns the numbers of a weight of 4-bit codes, which a table and scales of blocks give."""
    state = _state(weight)
    shape, size = tuple(state["shape"]), state["blocksize"]
    count = math.prod(shape)
    packed = weight.values
    if packed.dtype != np.dtype("uint8") or math.prod(packed.shape) != -(-count // 2):
        raise weight.wrong("", f"{-(-count // 2)} bytes for values {list(shape)}")
    # In rows, if blocks end where rows do, so that some rows lie in a part of the bytes.
    rows = count // shape[-1] if shape and shape[-1] and not shape[-1] % size else 1
    width = count // rows
    codes = Fields(in_shape(packed, (rows, -(-width // 2))), 4, 1, width, UNSIGNED[4], order=(1, 0))
    block = (1, size)
    scales = _scales(weight, state, blocks_of((rows, width), block))
    made = Scaled(Coded(codes, _table(weight, "quant_map", 16)), scales, block, state["dtype"])
    return in_shape(made, shape)


def _scales(weight: Weight, state: Mapping[str, Any], shape: Shape) -> Source:
    """Returns the scales of blocks, in a shape; they may be codes themselves ("nested")."""
    count = math.prod(shape)
    if "nested_offset" not in state:
        return in_shape(weight.check("absmax", (count,), "float32"), shape)
    block = (state["nested_blocksize"],)
    codes = weight.check("absmax", (count,), "uint8")
    scales = weight.check("nested_absmax", blocks_of((count,), block), "float32")
    table = _table(weight, "nested_quant_map", 256)
    made = Scaled(Coded(codes, table), scales, block, _FLOAT32)
    return Rows(Raised(made, state["nested_offset"]), shape)


def _table(weight: Weight, part: str, size: int) -> tuple[float, ...]:
    """Reads the table in a part: the number that each of ``size`` codes stands for."""
    weight.check(part, (size,), "float32")
    return tuple(weight.read(part, "float32").tolist())


def _state(weight: Weight) -> dict[str, Any]:
    """Returns the weight's state, parsed from JSON and checked, with its dtype as NumPy's."""
    part = next((_STATE + kind for kind in _KINDS if _STATE + kind in weight.parts), _STATE + "nf4")
    held = weight.read(part, "uint8").tobytes()
    try:
        state = json.loads(held)
    except (ValueError, RecursionError) as error:
        raise weight.wrong(part, "bytes of JSON", str(error)) from error
    if not isinstance(state, dict):
        raise weight.wrong(part, "a JSON object", state)
    shape, dtype = state.get("shape"), DTYPES.get(str(state.get("dtype")))
    if state.get("quant_type") != part.removeprefix(_STATE):
        raise weight.wrong(part, "the quant_type in its name", state.get("quant_type"))
    if not isinstance(shape, list) or not are_counts(shape) or len(shape) > MAX_NDIM:
        raise weight.wrong(part, "a shape", shape)
    if math.prod(shape) >> 60:
        raise weight.wrong(part, "a shape of fewer than 2**60 values", shape)
    if dtype is None or dtype.name not in ("float32", "float16", "bfloat16"):
        raise weight.wrong(part, "dtype float32, float16 or bfloat16", state.get("dtype"))
    is_nested = "nested_offset" in state
    for key in ("blocksize", "nested_blocksize")[: 1 + is_nested]:
        if not is_count(state.get(key)) or state[key] % 2:
            raise weight.wrong(part, f"an even number above 0 as {key}", state.get(key))
    if is_nested and type(state["nested_offset"]) not in (int, float):
        raise weight.wrong(part, "a number as nested_offset", state["nested_offset"])
    if is_nested != ("nested_absmax" in weight.parts):
        raise weight.wrong(part, "nested_offset if and only if there is nested_absmax", state)
    return {**state, "dtype": dtype}


BITSANDBYTES = Scheme(_weights, _source)
