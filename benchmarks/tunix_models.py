"""Factories of google-tunix's Llama, for ``lazyinit plan``; its other models for ``ways``.

``pip install --no-deps google-tunix==0.1.7 einops kagglehub kagglesdk``, and in this folder
``lazyinit plan tunix_models:llama_405b --mesh fsdp=32,tp=8 --metadata --optimizer adamw --dtype
bfloat16 --hbm 16GiB``.
"""

import importlib
import importlib.util
import sys
import types
from dataclasses import replace
from typing import Any

from flax import nnx

if "tunix" not in sys.modules:  # Its root imports trainers, and a hundred packages for them.
    _found = importlib.util.find_spec("tunix")
    assert _found is not None
    _root = types.ModuleType("tunix")
    _root.__path__ = list(_found.submodule_search_locations or ())
    sys.modules["tunix"] = _root


def module_of(package: str) -> Any:
    """Returns the module of a family of models: ``llama3``."""
    return importlib.import_module(f"tunix.models.{package}.model")


_llama3 = module_of("llama3")


def llama_405b() -> Any:
    """Makes Llama-3.1-405B."""
    return _made(_llama3.ModelConfig.llama3p1_405b())


def llama_2_70b() -> Any:
    """Makes Llama-2-70B: Llama-3's of that size with a smaller vocabulary."""
    return _made(replace(_llama3.ModelConfig.llama3p1_70b(), vocab_size=32000))


def _made(config: Any) -> Any:
    # Their arrays are placed by lazyinit, not by the mesh that is set while they are made.
    with nnx.use_eager_sharding(False):
        return _llama3.Llama3(config, rngs=nnx.Rngs(0))
