"""Flax models of transformers: recorded, and initialized in full.

None downloads anything: each is made from a configuration, as ``from_config`` would. The timed part
is cold, as in ``initialize.py``.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from decoder import Size
from harness import Case
from measure import Measured

import lazyinit as li

os.environ["USE_TORCH"] = "0"  # Flax alone: an installed torch would be imported with it.

_TOKENS = jax.ShapeDtypeStruct((1, 8), jnp.int32)

Inputs = list[jax.ShapeDtypeStruct | None]
Make = Callable[[int], tuple[nn.Module, Inputs]]


def bert(layers: int) -> tuple[nn.Module, Inputs]:
    """Returns bert-base-uncased's module (with 12 layers), and the inputs of its ``init``."""
    from transformers import BertConfig, FlaxBertForMaskedLM

    return FlaxBertForMaskedLM(BertConfig(num_hidden_layers=layers), _do_init=False).module, [
        *[_TOKENS] * 4,
        None,
    ]  # No head mask.


def gpt2(layers: int) -> tuple[nn.Module, Inputs]:
    """Returns gpt2's (124 million parameters with 12 layers)."""
    from transformers import FlaxGPT2LMHeadModel, GPT2Config

    return FlaxGPT2LMHeadModel(GPT2Config(n_layer=layers), _do_init=False).module, [_TOKENS] * 3


def llama(layers: int) -> tuple[nn.Module, Inputs]:
    """Returns a Llama that is 1024 wide."""
    from transformers import FlaxLlamaForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    return FlaxLlamaForCausalLM(config, _do_init=False).module, [_TOKENS] * 3


def llama2_70b(layers: int) -> tuple[nn.Module, Inputs]:
    """Returns Llama-2-70B (with 80 layers)."""
    from transformers import FlaxLlamaForCausalLM

    return FlaxLlamaForCausalLM(_llama2_70b_config(layers), _do_init=False).module, [_TOKENS] * 3


def llama2_70b_scanned(layers: int) -> tuple[nn.Module, Inputs]:
    """Returns Llama-2-70B with its layers, transformers' own, under ``nn.scan``."""
    from transformers.models.llama.modeling_flax_llama import FlaxLlamaDecoderLayer

    config = _llama2_70b_config(layers)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, mask: jax.Array, positions: jax.Array) -> Any:
            layer = FlaxLlamaDecoderLayer(config, name="layer")
            return layer(x, attention_mask=mask, position_ids=positions)[0], None

    class Scanned(nn.Module):
        @nn.compact
        def __call__(
            self, ids: jax.Array, mask: jax.Array, positions: jax.Array, return_dict: bool = True
        ) -> jax.Array:
            x = nn.Embed(config.vocab_size, config.hidden_size, name="embed")(ids)
            layers = nn.scan(
                Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, nn.broadcast),
                length=config.num_hidden_layers,
            )
            x, _ = layers(name="layers")(x, mask, positions)
            return nn.Dense(config.vocab_size, use_bias=False, name="head")(nn.RMSNorm()(x))

    return Scanned(), [_TOKENS] * 3


def _llama2_70b_config(layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=32000,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=4096,
    )


def lazyinit(measured: Measured, size: Size, _: Path, *, make: Make) -> Any:
    module, inputs = make(size.layers)
    key, tokens = jax.random.key(0), [x and jnp.ones(x.shape, x.dtype) for x in inputs]
    li.lazy(module)
    with measured:
        with measured.part("record"):
            tree = li.lazy(module).init(key, *tokens, return_dict=False)
        with measured.part("materialize"):
            return jax.block_until_ready(li.materialize(tree))


def jit(measured: Measured, size: Size, _: Path, *, make: Make) -> Any:
    module, inputs = make(size.layers)
    key, tokens = jax.random.key(0), [x and jnp.ones(x.shape, x.dtype) for x in inputs]
    init = functools.partial(module.init, return_dict=False)
    with measured:
        return jax.block_until_ready(jax.jit(init)(key, *tokens))


def eager(measured: Measured, size: Size, _: Path, *, make: Make) -> Any:
    module, inputs = make(size.layers)
    key, tokens = jax.random.key(0), [x and jnp.ones(x.shape, x.dtype) for x in inputs]
    with measured:
        return jax.block_until_ready(module.init(key, *tokens, return_dict=False))


def record(measured: Measured, size: Size, _: Path, *, make: Make) -> Any:
    module, inputs = make(size.layers)
    key = jax.random.key(0)
    li.lazy(module)
    with measured:
        return li.lazy(module).init(key, *inputs, return_dict=False)


def eval_shape(measured: Measured, size: Size, _: Path, *, make: Make) -> Any:
    module, inputs = make(size.layers)
    key = jax.random.key(0)
    with measured:
        return jax.eval_shape(functools.partial(module.init, return_dict=False), key, *inputs)


def _case(make: Make, name: str, title: str, layers: int, contenders: dict[str, str]) -> Case:
    """Returns a case, and puts its contenders, each with the model bound, into this module."""
    bound = {f"{function}_{make.__name__}": label for function, label in contenders.items()}
    for function, of_model in zip(contenders, bound, strict=True):
        globals()[of_model] = functools.partial(globals()[function], make=make)
    own, *_, reference = bound
    return Case(
        name=name,
        title=title,
        module="hugging_face",
        contenders=bound,
        reference=reference,
        exact=(own,) if contenders is _INITIALIZE else (),
        size=Size(layers=layers),
        quick=Size(layers=2),
        needs=("transformers",),
    )


_INITIALIZE = {
    "lazyinit": "lazyinit",
    "jit": "`jax.jit(module.init)`",
    "eager": "eager `module.init`",
}
_RECORD = {"record": "lazyinit", "eval_shape": "`jax.eval_shape(module.init)`"}

CASES = (
    _case(llama2_70b, "record-llama", "recording, Llama-2-70B, {layers} layers", 80, _RECORD),
    _case(
        llama2_70b_scanned,
        "record-llama-scanned",
        "recording, Llama-2-70B, its {layers} layers under nn.scan",
        80,
        _RECORD,
    ),
    _case(
        bert, "init-bert", "cold full init, FlaxBert ({layers} layers, {bytes})", 12, _INITIALIZE
    ),
    _case(
        gpt2, "init-gpt2", "cold full init, FlaxGPT2 ({layers} layers, {bytes})", 12, _INITIALIZE
    ),
    _case(
        llama, "init-llama", "cold full init, FlaxLlama ({layers} layers, {bytes})", 8, _INITIALIZE
    ),
)
