"""Lists the tensors of a model from its Hugging Face ``config.json``, without a checkpoint.

Some families of decoders are known. What ``config.json`` leaves out has the default of
``transformers``.

Source: ``transformers/models/{llama,mistral,qwen2,qwen3,qwen3_moe,gemma2,gemma3,gpt2}``, 4.57.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.params import StoredParam
from lazyinit.sources import Index, Shape
from lazyinit.tensors.base import Tensor

CONFIG = "config.json"
_NO_WEIGHTS = (".jinja", ".json", ".md", ".model", ".py", ".txt")  # Files without weights.
_LIMIT = 1 << 24  # The most bytes that are read. A configuration has some thousands.


@dataclass(frozen=True, slots=True, repr=False)
class Described(Tensor):
    """A ``Source`` without values: a tensor that is known from a configuration alone.

    Attributes:
      name: the name that the tensor has in a checkpoint.
      shape: the shape that it has there.
      dtype: the dtype that the configuration says.
      path: the path of the configuration.
    """

    name: str
    shape: Shape
    dtype: np.dtype
    path: str

    @property
    def origin(self) -> str:
        """The path of the configuration."""
        return self.path

    def _refuse(self) -> NoReturn:
        raise errors.CheckpointError(
            f"{self.origin}: wanted a checkpoint, got a configuration, which holds no values of "
            f"{self.name!r}."
        )

    def read(self, index: Index) -> np.ndarray:
        """Raises ``CheckpointError``: there are no values."""
        self._refuse()

    def check(self) -> None:
        """Raises ``CheckpointError``: there are no values."""
        self._refuse()


def config_at(target: str) -> Path | None:
    """Returns the path of a configuration without weights beside it; ``None`` for all else."""
    path = Path(target)
    if path.is_file() and path.name == CONFIG:
        return path
    if not path.is_dir() or not (path / CONFIG).is_file():
        return None
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".")]
    has_weights = any(
        name.endswith(".index.json") or not name.endswith(_NO_WEIGHTS) for name in names
    )
    return None if has_weights else path / CONFIG


def tree_of_config(path: Path) -> dict[str, StoredParam]:
    """Returns a leaf for each tensor of the model that a configuration describes, by name.

    Raises:
      PlanError: the file is no configuration, its family is not known, or it lacks a size.
    """
    try:
        said = json.loads(path.read_bytes()[:_LIMIT])
    except (OSError, ValueError, RecursionError) as error:
        raise errors.PlanError(f"{path}: wanted a configuration as JSON: {error}.") from error
    config = _Config(str(path), said if isinstance(said, dict) else {})
    family = config.said.get("model_type")
    shapes = _FAMILIES.get(family) if isinstance(family, str) else None
    if shapes is None:
        known = sorted(_FAMILIES)
        raise errors.PlanError(
            f"{path}: wanted a model_type among {', '.join(known)}, got {family!r}"
            f"{errors.nearest(str(family), known) or '.'} Plan a checkpoint of the model instead, "
            "or package.module:factory."
        )
    if config.said.get("quantization_config"):
        raise errors.PlanError(
            f"{path}: wanted the configuration of a model that is not quantized, got one with a "
            "quantization_config, which does not say which tensors there are. Plan the checkpoint "
            "itself."
        )
    dtype = config.dtype()
    return {
        name: StoredParam(shape, dtype, Described(name, shape, dtype, str(path)), path=name)
        for name, shape in shapes(config)
    }


@dataclass(frozen=True, slots=True)
class _Config:
    path: str
    said: Mapping[str, Any]

    def size(self, name: str, default: int | None = None) -> int:
        found = self.said.get(name)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            got = "nothing" if found is None else repr(found)
            raise errors.PlanError(f"{self.path}: wanted {name} to be 1 or more, got {got}.")
        return found

    def sizes(self, *names: str) -> Sequence[int]:
        return [self.size(name) for name in names]

    def is_set(self, name: str, default: bool = False) -> bool:
        found = self.said.get(name)
        return default if found is None else bool(found)

    def dtype(self) -> np.dtype:
        name = self.said.get("dtype") or self.said.get("torch_dtype") or "float32"
        try:
            return jnp.dtype(name)
        except TypeError as error:
            raise errors.PlanError(f"{self.path}: wanted a dtype, got {name!r}.") from error


_Shapes = Iterator[tuple[str, Shape]]


def _linear(name: str, n: int, m: int, bias: bool = False) -> _Shapes:
    """Yields the weight ``[out, in]`` of a ``Linear`` from n to m, and its bias."""
    yield f"{name}.weight", (m, n)
    if bias:
        yield f"{name}.bias", (m,)


@dataclass(frozen=True, slots=True)
class _Decoder:
    """What distinguishes a family of decoders; a call yields its tensors, by name and shape.

    Attributes:
      head: the default size of a head; 0 for ``width / heads``.
      biases: whether query, key and value have biases: ``"always"``, ``"never"``, or ``"asked"``,
        if ``attention_bias`` says so; then the output has one, too.
      has_head_norms: whether query and key are normalized.
      has_outer_norms: whether the outputs of attention and MLP are normalized, too.
      is_tied: whether by default the head is the embedding.
      has_experts: whether some layers have experts.
    """

    head: int = 0
    biases: str = "asked"
    has_head_norms: bool = False
    has_outer_norms: bool = False
    is_tied: bool = False
    has_experts: bool = False

    def __call__(self, config: _Config) -> _Shapes:
        width, layers, rows = config.sizes("hidden_size", "num_hidden_layers", "vocab_size")
        yield "model.embed_tokens.weight", (rows, width)
        for n in range(layers):
            yield from self._layer(config, f"model.layers.{n}", width)
            is_sparse = self.has_experts and _is_sparse(config, n)
            feed = _experts if is_sparse else _gated
            yield from feed(config, f"model.layers.{n}.mlp", width)
        yield "model.norm.weight", (width,)
        if not config.is_set("tie_word_embeddings", self.is_tied):
            yield from _linear("lm_head", width, rows)

    def _layer(self, config: _Config, layer: str, width: int) -> _Shapes:
        heads = config.size("num_attention_heads")
        keys = config.size("num_key_value_heads", heads)
        size = config.size("head_dim", self.head or width // heads)
        asked = self.biases == "asked" and config.is_set("attention_bias")
        attention = f"{layer}.self_attn"
        for name, count in (("q", heads), ("k", keys), ("v", keys)):
            bias = asked or self.biases == "always"
            yield from _linear(f"{attention}.{name}_proj", width, count * size, bias)
        yield from _linear(f"{attention}.o_proj", heads * size, width, asked)
        if self.has_head_norms:
            yield f"{attention}.q_norm.weight", (size,)
            yield f"{attention}.k_norm.weight", (size,)
        outer = ("pre_feedforward", "post_feedforward") if self.has_outer_norms else ()
        for name in ("input", "post_attention", *outer):
            yield f"{layer}.{name}_layernorm.weight", (width,)


def _gated(config: _Config, mlp: str, width: int, hidden: str = "intermediate_size") -> _Shapes:
    size, bias = config.size(hidden), config.is_set("mlp_bias")
    for name, n, m in (("gate", width, size), ("up", width, size), ("down", size, width)):
        yield from _linear(f"{mlp}.{name}_proj", n, m, bias)


def _experts(config: _Config, mlp: str, width: int) -> _Shapes:
    count = config.size("num_experts", 128)
    yield from _linear(f"{mlp}.gate", width, count)
    for n in range(count):
        yield from _gated(config, f"{mlp}.experts.{n}", width, "moe_intermediate_size")


def _is_sparse(config: _Config, layer: int) -> bool:
    dense = config.said.get("mlp_only_layers") or ()
    return layer not in dense and (layer + 1) % config.size("decoder_sparse_step", 1) == 0


def _gpt2(config: _Config) -> _Shapes:
    width, layers, rows = config.sizes("n_embd", "n_layer", "vocab_size")
    hidden = config.size("n_inner", 4 * width)
    yield "transformer.wte.weight", (rows, width)
    yield "transformer.wpe.weight", (config.size("n_positions", 1024), width)

    def norm(name: str) -> _Shapes:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)

    def turned(name: str, n: int, m: int) -> _Shapes:  # A Conv1D has its weight [in, out].
        yield f"{name}.weight", (n, m)
        yield f"{name}.bias", (m,)

    for layer in (f"transformer.h.{n}" for n in range(layers)):
        yield from norm(f"{layer}.ln_1")
        yield from turned(f"{layer}.attn.c_attn", width, 3 * width)
        yield from turned(f"{layer}.attn.c_proj", width, width)
        yield from norm(f"{layer}.ln_2")
        yield from turned(f"{layer}.mlp.c_fc", width, hidden)
        yield from turned(f"{layer}.mlp.c_proj", hidden, width)
    yield from norm("transformer.ln_f")
    if not config.is_set("tie_word_embeddings", default=True):
        yield from _linear("lm_head", width, rows)


_FAMILIES: Mapping[str, Callable[[_Config], _Shapes]] = {
    "gemma2": _Decoder(head=256, has_outer_norms=True, is_tied=True),
    "gemma3_text": _Decoder(head=256, has_head_norms=True, has_outer_norms=True, is_tied=True),
    "gpt2": _gpt2,
    "llama": _Decoder(),
    "mistral": _Decoder(biases="never"),
    "qwen2": _Decoder(biases="always"),
    "qwen3": _Decoder(head=128, has_head_norms=True),
    "qwen3_moe": _Decoder(has_head_norms=True, has_experts=True),
}
