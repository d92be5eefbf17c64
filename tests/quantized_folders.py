"""Small quantized folders: those that the libraries wrote whose formats they are, and others by hand.

``checkpoint/quantized_by_reference.safetensors`` holds, for each case, the tensors of a folder
(``case|name``), what the library itself makes of them (``case=name``), and its ``config.json`` (in the
metadata). It was written on one CPU, with seed 0, by compressed-tensors 0.20.0 (``compress`` and
``decompress`` of each format), bitsandbytes 0.50.2 (``quantize_4bit``, ``dequantize_4bit`` and the
like for eight bits), ``transformers`` 5.24.0 (``Fp8Dequantize``, ``convert_moe_packed_tensors``),
AutoGPTQ 0.7.1 (what its layers make of the identity) and AutoAWQ 0.2.9 (``dequantize_gemm``).
"""

import json
from pathlib import Path

import numpy as np
from reading import everything

import lazyinit as li

_FILE = Path(__file__).parent / "checkpoint" / "quantized_by_reference.safetensors"
_ALL = li.open_checkpoint(_FILE)
CASES = sorted(_ALL.metadata)


def _marked(case, mark):
    start = f"{case}{mark}"
    return {n.removeprefix(start): everything(s) for n, s in _ALL.items() if n.startswith(start)}


def tensors_of(case):
    """Returns the tensors of a folder by name."""
    return {name: np.array(x) for name, x in _marked(case, "|").items()}


def config_of_case(case):
    """Returns what the folder's ``config.json`` says."""
    return json.loads(_ALL.metadata[case])


def numbers_of(case):
    """Returns what the library makes of the folder's weight: its name and values."""
    ((name, values),) = _marked(case, "=").items()
    return name, values


def write(folder, tensors, config):
    """Writes a folder; returns it."""
    folder.mkdir(exist_ok=True)
    li.save(tensors, folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def written(folder, case):
    """Writes the folder of a case; returns it."""
    return write(folder, tensors_of(case), config_of_case(case))
