"""``maxtext(config)`` makes the rules from a Hugging Face checkpoint to a decoder of MaxText.

It knows checkpoints of Llama, Mistral, Mixtral, Qwen 2 and 3 with MoE, Gemma 1 to 3, DeepSeek 2
and 3, Kimi K2, which is a DeepSeek 3, and GPT-OSS. Its rules fit MaxText's decoders, unscanned::

    token_embedder/embedding   decoder/decoder_norm/scale   decoder/logits_dense/kernel
    decoder/layers_0/{pre,post}_self_attention_layer_norm/scale
    decoder/layers_0/self_attention/{query,key,value,out}/kernel
    decoder/layers_0/mlp/{wi_0,wi_1,wo}/kernel
    decoder/layers_0/MoeBlock_0/gate/kernel, decoder/layers_0/MoeBlock_0/{wi_0,wi_1,wo} [e, in, out]
    decoder/layers_0/{pre,post}_{self_attention,ffw}_norm/scale in Gemma
    decoder/layers_0/{self_attention,mlp,...}_{local,global} for two layers of Gemma 2
    decoder/dense_layers_0, decoder/moe_layers_0 in DeepSeek (``maxtext_deepseek.py``)
    decoder/layers_0/GptOssAttention, decoder/layers_0/GptOssMlp (``maxtext_gpt_oss.py``)

and scanned: ``decoder/layers`` with the layers along axis 1. For Gemma 3, each step of the scan has
six layers, ``decoder/layers/layers_0`` to ``layers_5``; the layers that are left over stand in
``decoder/layers_remainder``. For GPT-OSS each step has two.

Some of MaxText's values are not those of the checkpoint. It divides queries by the root of their
size where the model itself does not (Llama, Mistral, Mixtral, Gemma 1 and 2), adds 1 to Gemma's
norms, multiplies Gemma's embeddings by the root of their size, and puts Llama 3.1's rotary pairs
side by side.

Names and numbers: ``maxtext/checkpoint_conversion/utils/param_mapping.py`` and
``maxtext/layers/attentions.py``, 0.2.5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from lazyinit import errors
from lazyinit.maps.maxtext_deepseek import MLP, deepseek_layer
from lazyinit.maps.maxtext_gpt_oss import gpt_oss_layer
from lazyinit.maps.maxtext_scan import stacked_layers
from lazyinit.maps.parts import AXES, HEADS_IN, HEADS_OUT, linear, norm, rule
from lazyinit.maps.qwen import QWEN_MAXTEXT
from lazyinit.maps.scanned import counted, scanned
from lazyinit.maps.tunix import GROUPS_OUT, TENSORS
from lazyinit.rules.change import Change
from lazyinit.rules.joins import Stack
from lazyinit.rules.lengths import Pad
from lazyinit.rules.renames import Ignore
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule, Rule
from lazyinit.rules.values import Scale

_LAYER = "decoder/layers_{n}"
_DIVIDED = Scale(axis=-1, power=-0.5)
_PLUS_1 = Scale(plus=1)
_NORMS = (
    ("pre_self_attention_layer_norm", "input_layernorm"),
    ("post_self_attention_layer_norm", "post_attention_layernorm"),
)
_GEMMA_NORMS = (
    ("pre_self_attention_norm", "input_layernorm"),
    ("post_self_attention_norm", "post_attention_layernorm"),
    ("pre_ffw_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
)
_GEMMA3_NORMS = (
    *_GEMMA_NORMS,
    ("self_attention/query_norm", "self_attn.q_norm"),
    ("self_attention/key_norm", "self_attn.k_norm"),
)
_GEMMA_1_NORMS = (_GEMMA_NORMS[0], ("pre_ffw_norm", "post_attention_layernorm"))
_QUERY, _KEY = (HEADS_OUT, _DIVIDED), (GROUPS_OUT,)
# PyTorch has all first halves of rotary pairs before all second ones; here each pair is adjacent.
_QUERY_PAIRS = (Rearrange("(h p k) i -> i h (k p)", p=2), _DIVIDED)
_KEY_PAIRS = (Rearrange("(g p k) i -> i g (k p)", p=2),)


# In the functions below, ``here`` is a path in MaxText's tree, ``there`` a name in the checkpoint.
def _attention(
    here: str, there: str, query: tuple[Change, ...] = _QUERY, key: tuple[Change, ...] = _KEY
) -> tuple[Rule, ...]:
    return (
        rule(f"{here}/query/kernel", f"{there}.q_proj.weight", *query),
        rule(f"{here}/key/kernel", f"{there}.k_proj.weight", *key),
        rule(f"{here}/value/kernel", f"{there}.v_proj.weight", GROUPS_OUT),
        rule(f"{here}/out/kernel", f"{there}.o_proj.weight", HEADS_IN),
    )


def _gated(here: str, there: str) -> tuple[Rule, ...]:
    return tuple(r for name, t in MLP for r in linear(f"{here}/{name}", f"{there}.{t}"))


def _llama(*, interleaved: bool = False) -> tuple[AnyRule, ...]:
    heads = (_QUERY_PAIRS, _KEY_PAIRS) if interleaved else (_QUERY, _KEY)
    return (
        *(r for leaf, t in _NORMS for r in norm(f"{_LAYER}/{leaf}", f"{TENSORS}.{t}")),
        *_attention(f"{_LAYER}/self_attention", f"{TENSORS}.self_attn", *heads),
        *_gated(f"{_LAYER}/mlp", f"{TENSORS}.mlp"),
    )


def _mixtral() -> tuple[AnyRule, ...]:
    here, there = f"{_LAYER}/MoeBlock_0", f"{TENSORS}.block_sparse_moe"
    return (
        *_llama(),
        *linear(f"{here}/gate", f"{there}.gate"),
        *(
            rule(f"{here}/{name}", f"{there}.experts.{{e}}.{tensor}.weight", AXES, Stack(0))
            for name, tensor in (("wi_0", "w1"), ("wi_1", "w3"), ("wo", "w2"))
        ),
    )


def _gemma_layer(
    here: str,
    there: str,
    norms: tuple[tuple[str, str], ...],
    query: tuple[Change, ...] = _QUERY,
    end: str = "",
) -> tuple[Rule, ...]:
    return (
        *(rule(f"{here}/{n}{end}/scale", f"{there}.{t}.weight", _PLUS_1) for n, t in norms),
        *_attention(f"{here}/self_attention{end}", f"{there}.self_attn", query),
        *_gated(f"{here}/mlp{end}", f"{there}.mlp"),
    )


def _gemma2(config: Mapping[str, Any], *, is_scanned: bool) -> tuple[AnyRule, ...]:
    layers, ends = _count(config, "num_hidden_layers", 1000), ("_local", "_global")
    made = [
        _gemma_layer(f"decoder/layers_{n // 2}", f"model.layers.{n}", _GEMMA_NORMS, end=ends[n % 2])
        for n in range(layers)
    ]
    return (
        stacked_layers(made, 2, layers) if is_scanned else tuple(r for layer in made for r in layer)
    )


def _gemma3(config: Mapping[str, Any], model: str, *, is_scanned: bool) -> tuple[AnyRule, ...]:
    query, layers = (HEADS_OUT,), _count(config, "num_hidden_layers", 1000)
    if not is_scanned:
        return _gemma_layer(_LAYER, f"{model}.layers.{{n}}", _GEMMA3_NORMS, query)
    full = layers - layers % 6  # Each step of the scan has five local layers and a global one.
    made = []
    for n in range(layers):
        head = "decoder/layers_0" if n < full else "decoder/layers_remainder"
        here = f"{head}/layers_{n % 6}"
        made.append(_gemma_layer(here, f"{model}.layers.{n}", _GEMMA3_NORMS, query))
    return stacked_layers(made, 6, full) + tuple(r for layer in made[full:] for r in layer)


def _gpt_oss(config: Mapping[str, Any], *, is_scanned: bool) -> tuple[AnyRule, ...]:
    if not is_scanned:
        return gpt_oss_layer(_LAYER, TENSORS)
    layers = _count(config, "num_hidden_layers", 1000)  # A local and a global one in each step.
    made = [
        gpt_oss_layer(f"decoder/layers_0/layers_{n % 2}", f"model.layers.{n}")
        for n in range(layers)
    ]
    return stacked_layers(made, 2, layers)


def _deepseek(config: Mapping[str, Any], *, is_scanned: bool) -> tuple[AnyRule, ...]:
    layers = _count(config, "num_hidden_layers", 1000)
    dense = _count(config, "first_k_dense_replace", layers, least=0)
    made: list[AnyRule] = []
    for kind, numbers in (("dense", range(dense)), ("moe", range(dense, layers))):
        head = f"{kind}_layers"
        each = []
        for n in numbers:
            here = f"decoder/{head}_{0 if is_scanned else n - numbers.start}"
            each.append(deepseek_layer(here, f"model.layers.{n}", has_experts=kind == "moe"))
        made += (
            stacked_layers(each, 1, len(each), head) if is_scanned else (r for x in each for r in x)
        )
    # After these come layers that predict further tokens, which MaxText does not have.
    if "num_nextn_predict_layers" in config:
        more = _count(config, "num_nextn_predict_layers", 1000, least=0)
        made += (Ignore(f"model.layers.{n}.**") for n in range(layers, layers + more))
    return tuple(made)


def maxtext(
    config: Mapping[str, Any],
    *,
    scanned_layers: bool = True,
    interleaved: bool = False,
    vocab_size: int = 0,
) -> tuple[AnyRule, ...]:
    """Returns rules for a decoder of MaxText, from a checkpoint with names of Hugging Face.

    Args:
      config: the content of the checkpoint's ``config.json`` (any JSON). It needs ``model_type``,
        for Gemma 2 and 3 and DeepSeek the numbers of layers, for scanned experts their number.
      scanned_layers: whether one leaf holds all layers, as MaxText's ``scan_layers`` says.
      interleaved: whether rotary pairs are side by side, as in models that MaxText calls
        ``llama3.1-...``, or whose ``rope_type`` is ``"llama3.1"``.
      vocab_size: the size of MaxText's vocabulary, if it pads the embedding with zeros; 0 for the
        checkpoint's size.

    Raises:
      FillError: the configuration is of another family, or lacks a number that is needed.

    Example:
      >>> rules = maxtext({"model_type": "llama"}, scanned_layers=False)
      >>> [rule.layout for rule in rules if "query" in str(rule)][0]
      (Rearrange('(h k) i -> i h k'), Scale(axis=-1, power=-0.5))
    """
    family = config.get("model_type")
    inner = config.get("text_config")
    sizes = inner if isinstance(inner, Mapping) else config
    model, embedding = "model", ()
    by_layer, experts = True, ""
    match family:
        case "llama" | "mistral":
            rules = _llama(interleaved=interleaved)
        case "mixtral":
            rules, experts = _mixtral(), "num_local_experts"
        case "qwen2" | "qwen3":
            rules = QWEN_MAXTEXT
        case "qwen3_moe":
            rules, experts = QWEN_MAXTEXT, "num_experts"
        case "gemma":
            rules, embedding = _gemma_layer(_LAYER, TENSORS, _GEMMA_1_NORMS), (Scale(axis=-1),)
        case "gemma2":
            rules, embedding = _gemma2(sizes, is_scanned=scanned_layers), (Scale(axis=-1),)
            by_layer = False
        case "gemma3_text" | "gemma3":
            model = "model" if family == "gemma3_text" else "language_model.model"
            rules = _gemma3(sizes, model, is_scanned=scanned_layers)
            embedding, by_layer = (Scale(axis=-1, dtype="bfloat16"),), False
        case "deepseek_v2" | "deepseek_v3" | "kimi_k2":
            rules, by_layer = _deepseek(sizes, is_scanned=scanned_layers), False
        case "gpt_oss":
            rules, by_layer = _gpt_oss(sizes, is_scanned=scanned_layers), False
        case _:
            raise errors.FillError(
                f"maxtext: wanted a model_type among {', '.join(FAMILIES)} in the configuration, "
                f"got {family!r:.80}{errors.nearest(str(family), FAMILIES)}"
            )
    if scanned_layers and by_layer:
        rules = counted(rules, e=_count(sizes, experts, 10_000)) if experts else rules
        rules = tuple(
            rule
            for rule in scanned(rules, "model.layers.{n}", "decoder/layers", axis=1)
            if not (isinstance(rule, Rule) and str(rule.leaf).startswith(_LAYER))
        )
    if vocab_size:
        back = _count(sizes, "vocab_size", 1 << 31)
        embedding = (*embedding, Pad(axis=0, size=vocab_size, back=back))
    return tuple(_with_ends(rules, model, embedding, is_gemma=str(family).startswith("gemma")))


FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"),
    *("gemma", "gemma2", "gemma3_text", "gemma3", "deepseek_v2", "deepseek_v3", "kimi_k2"),
    "gpt_oss",
)


def _with_ends(
    rules: tuple[AnyRule, ...], model: str, embedding: tuple[Change, ...], *, is_gemma: bool
) -> Iterator[AnyRule]:
    """Yields rules for the embedding, the last norm and the head, and then the given rules."""
    plus = (_PLUS_1,) if is_gemma else ()
    yield rule("token_embedder/embedding", f"{model}.embed_tokens.weight", *embedding)
    yield rule("decoder/decoder_norm/scale", f"{model}.norm.weight", *plus)
    if not is_gemma:
        yield rule("decoder/logits_dense/kernel", "lm_head.weight", AXES)
        yield rule("decoder/logits_dense/kernel", f"{model}.embed_tokens.weight", AXES, tied=True)
    else:  # The head is always the embedding.
        yield Ignore(model.removesuffix("model") + "lm_head.weight")
    yield Ignore("**.rotary_emb.inv_freq")
    yield from rules


def _count(config: Mapping[str, Any], name: str, most: int, *, least: int = 1) -> int:
    """Returns a number of a configuration, and checks it, since the file may hold anything."""
    count = config.get(name)
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
        raise errors.FillError(
            f"maxtext: wanted {name} from {least} to {most} in the configuration, got "
            f"{count!r:.80}."
        )
    return count
