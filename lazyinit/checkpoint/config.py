"""What the ``config.json`` beside a checkpoint says: of the model, and of how it is quantized."""

import json
import os
from collections.abc import Mapping
from typing import Any

_CONFIG_LIMIT = 1 << 24  # Bytes. A configuration has some thousands.
_KEYS = ("quantization_config", "compression_config")  # The second in old files.


def config_of(checkpoint: Any) -> Mapping[str, Any]:  # Any: what opens as a checkpoint.
    """Returns what the ``config.json`` of a local folder says; empty if it cannot be read."""
    if not isinstance(checkpoint, str | os.PathLike):
        return {}
    try:
        with open(os.path.join(os.fspath(checkpoint), "config.json"), encoding="utf-8") as file:
            said = json.loads(file.read(_CONFIG_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def quantization_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns how a configuration says that weights are quantized; empty if it says nothing.

    >>> quantization_of({"quantization_config": {"quant_method": "fp8"}})
    {'quant_method': 'fp8'}
    """
    inner = [part for part in config.values() if isinstance(part, dict)]  # "text_config" for one.
    found = [part[key] for part in (config, *inner) for key in _KEYS if part.get(key)]
    if not found:
        return {}
    return found[0] if isinstance(found[0], dict) else {"quant_method": found[0]}
