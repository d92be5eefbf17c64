"""Ready rules for families of models: from the names of Hugging Face's PyTorch checkpoints.

Maps are tuples of rules, as ``fill``, ``save`` and the others take them. A few functions take other
rules or a configuration, and return a map. The one idea is that support for a family of models is a
table of rules, so that it needs no code of its own. Read ``parts.py`` first, which has the rules of
one module of each kind, then ``llama.py`` as an example of a family; the others are like it.

``BERT``, ``GPT2``, ``LLAMA`` (Mistral too), ``T5``, ``VIT`` and ``CLIP`` lead to the Flax modules
of ``transformers`` 4. Maps that end in ``_NNX`` lead to the trees that the docstrings of their
files show. Maps that end in ``_TUNIX`` lead to the models of google-tunix, ``GEMMA3_VISION_TUNIX``
to one with a vision tower. ``maxtext`` makes the rules for a decoder of MaxText; ``QWEN_MAXTEXT``
has those for Qwen, without scanned layers. ``scanned`` makes rules for stacked layers from any map,
``counted`` changes rules for stacked experts so that they list the tensor of each expert. ``sized``
sets the sizes of named axes (such as the number of heads), which are needed where there is no tree.
``quantized`` (``with_scales.py``) adds rules that multiply weights by their scales.
``ready_maps.py`` says which map is for which ``model_type``, for users who pass no rules.

Example:
  >>> import numpy as np, lazyinit as li
  >>> tree = {"params": {"lm_head": {"kernel": np.zeros((2, 3))}}}
  >>> _, report = li.fill(tree, {"lm_head.weight": np.ones((3, 2))}, li.maps.LLAMA)
  >>> report.loaded
  ('params/lm_head/kernel',)
"""

from lazyinit.maps.bert import BERT, BERT_NNX
from lazyinit.maps.clip import CLIP, CLIP_NNX
from lazyinit.maps.gemma import GEMMA2_TUNIX, GEMMA3_TUNIX, GEMMA3_VISION_TUNIX, GEMMA_TUNIX
from lazyinit.maps.gpt2 import GPT2, GPT2_NNX
from lazyinit.maps.llama import LLAMA, LLAMA_NNX, LLAMA_TUNIX
from lazyinit.maps.of_maxtext import maxtext
from lazyinit.maps.qwen import QWEN2_TUNIX, QWEN3_TUNIX, QWEN_MAXTEXT
from lazyinit.maps.scanned import counted, scanned, sized
from lazyinit.maps.t5 import T5, T5_NNX
from lazyinit.maps.vit import VIT, VIT_NNX
from lazyinit.maps.with_scales import quantized

__all__ = [
    "BERT",
    "BERT_NNX",
    "CLIP",
    "CLIP_NNX",
    "GEMMA2_TUNIX",
    "GEMMA3_TUNIX",
    "GEMMA3_VISION_TUNIX",
    "GEMMA_TUNIX",
    "GPT2",
    "GPT2_NNX",
    "LLAMA",
    "LLAMA_NNX",
    "LLAMA_TUNIX",
    "QWEN2_TUNIX",
    "QWEN3_TUNIX",
    "QWEN_MAXTEXT",
    "T5",
    "T5_NNX",
    "VIT",
    "VIT_NNX",
    "counted",
    "maxtext",
    "quantized",
    "scanned",
    "sized",
]
