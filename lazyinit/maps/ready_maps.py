"""Lists the ready maps by family; ``from_pretrained`` searches the list where it gets no rules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lazyinit.maps.bert import BERT, BERT_NNX
from lazyinit.maps.clip import CLIP, CLIP_NNX
from lazyinit.maps.gemma import GEMMA2_TUNIX, GEMMA3_TUNIX, GEMMA3_VISION_TUNIX, GEMMA_TUNIX
from lazyinit.maps.gpt2 import GPT2, GPT2_NNX
from lazyinit.maps.llama import LLAMA, LLAMA_NNX, LLAMA_TUNIX
from lazyinit.maps.of_maxtext import FAMILIES, maxtext
from lazyinit.maps.qwen import QWEN2_TUNIX, QWEN3_TUNIX, QWEN_MAXTEXT
from lazyinit.maps.t5 import T5, T5_NNX
from lazyinit.maps.vit import VIT, VIT_NNX
from lazyinit.rules.rule import AnyRule


@dataclass(frozen=True, slots=True)
class ReadyMap:
    """A map, and the checkpoints that it is for.

    Attributes:
      name: the name of the map in ``lazyinit.maps``, or the call that makes it.
      rules: the rules, or a function that makes them from a configuration.
      model_types: the ``model_type`` in ``config.json`` of each family that the map is for.
      parts: patterns of tensors that need no leaf, since the model may lack that part (vision).
    """

    name: str
    rules: tuple[AnyRule, ...] | Callable[[Mapping[str, Any]], tuple[AnyRule, ...]]
    model_types: tuple[str, ...]
    parts: tuple[str, ...] = ()

    def rules_for(self, config: Mapping[str, Any]) -> tuple[AnyRule, ...]:
        """Returns the rules for a checkpoint with this ``config.json`` (any JSON).

        Raises:
          FillError: the configuration does not say what the rules need.
        """
        return self.rules(config) if callable(self.rules) else self.rules


_LLAMA = ("llama", "mistral")
_VISION = ("vision_tower.**", "multi_modal_projector.**")

READY: tuple[ReadyMap, ...] = (
    ReadyMap("BERT", BERT, ("bert",)),
    ReadyMap("BERT_NNX", BERT_NNX, ("bert",)),
    ReadyMap("CLIP", CLIP, ("clip",)),
    ReadyMap("CLIP_NNX", CLIP_NNX, ("clip",)),
    ReadyMap("GEMMA_TUNIX", GEMMA_TUNIX, ("gemma",)),
    ReadyMap("GEMMA2_TUNIX", GEMMA2_TUNIX, ("gemma2",)),
    ReadyMap("GEMMA3_TUNIX", GEMMA3_TUNIX, ("gemma3_text",)),
    ReadyMap("GEMMA3_VISION_TUNIX", GEMMA3_VISION_TUNIX, ("gemma3",), parts=_VISION),
    ReadyMap("GPT2", GPT2, ("gpt2",)),
    ReadyMap("GPT2_NNX", GPT2_NNX, ("gpt2",)),
    ReadyMap("LLAMA", LLAMA, _LLAMA),
    ReadyMap("LLAMA_NNX", LLAMA_NNX, _LLAMA),
    ReadyMap("LLAMA_TUNIX", LLAMA_TUNIX, _LLAMA),
    ReadyMap("QWEN2_TUNIX", QWEN2_TUNIX, ("qwen2",)),
    ReadyMap("QWEN3_TUNIX", QWEN3_TUNIX, ("qwen3", "qwen3_moe")),
    ReadyMap("QWEN_MAXTEXT", QWEN_MAXTEXT, ("qwen2", "qwen3", "qwen3_moe")),
    ReadyMap("maxtext(config)", maxtext, FAMILIES, parts=_VISION),
    ReadyMap(
        "maxtext(config, scanned_layers=False)",
        partial(maxtext, scanned_layers=False),
        tuple(name for name in FAMILIES if not name.startswith("qwen")),
        parts=_VISION,
    ),
    ReadyMap("maxtext(config, interleaved=True)", partial(maxtext, interleaved=True), ("llama",)),
    ReadyMap(
        "maxtext(config, scanned_layers=False, interleaved=True)",
        partial(maxtext, scanned_layers=False, interleaved=True),
        ("llama",),
    ),
    ReadyMap("T5", T5, ("t5",)),
    ReadyMap("T5_NNX", T5_NNX, ("t5",)),
    ReadyMap("VIT", VIT, ("vit",)),
    ReadyMap("VIT_NNX", VIT_NNX, ("vit",)),
)
