"""``quantized``: makes a map for quantized checkpoints from one for plain checkpoints."""

from dataclasses import replace

from lazyinit import errors
from lazyinit.patterns import slashed
from lazyinit.rules.dequantize import Dequantize
from lazyinit.rules.rule import AnyRule, Rule, Rules, as_rules


def quantized(
    rules: Rules, change: Dequantize, *, scale: str, weight: str = "weight"
) -> tuple[AnyRule, ...]:
    """Returns rules for a checkpoint in which each weight may have scales beside it.

    Before each rule for weights comes one that takes their scales, too. A weight without scales is
    loaded by the given rule, unless its values are quantized: then the missing scales are an error.

    Args:
      rules: the rules for a checkpoint that is not quantized.
      change: the change that makes one tensor of values and scales.
      scale: the last key in the names of scales: ``"weight_scale_inv"``.
      weight: the last key in the names of the weights, if it is another than in ``rules``:
        ``"weight_packed"``.

    Raises:
      FillError: ``change`` is no ``Dequantize``.

    Example:
      >>> from lazyinit.maps.llama import LLAMA
      >>> change = Dequantize(block=(128, 128))
      >>> rules = quantized(LLAMA, change, scale="weight_scale_inv")
      >>> [rule for rule in rules if "q_proj" in str(rule)][0].tensor
      ('**.q_proj.weight', '**.q_proj.weight_scale_inv')
    """
    if not isinstance(change, Dequantize):
        raise errors.FillError(
            f"quantized: wanted a change such as Dequantize(block=(128, 128)), got {change!r:.80}."
        )
    return tuple(
        each
        for rule in as_rules(rules)
        for each in (*_with_scales(rule, change, weight, scale), rule)
    )


def _with_scales(rule: AnyRule, change: Dequantize, weight: str, scale: str) -> tuple[Rule, ...]:
    """Returns the rule that takes scales too, if the given one is about weights; else nothing."""
    if not isinstance(rule, Rule) or not rule.tensors:
        return ()
    if any(slashed(text).rpartition("/")[2] != "weight" for text in rule.tensors):
        return ()
    tensors = tuple(
        text.removesuffix("weight") + key for text in rule.tensors for key in (weight, scale)
    )
    layout = (change, *rule.changes().changes)
    return (replace(rule, tensor=tensors, layout=layout, optional=True),)
