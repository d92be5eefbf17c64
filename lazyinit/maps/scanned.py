"""Maps made of maps: for layers that are scanned, for numbers and sizes that no leaf tells."""

from dataclasses import replace

from lazyinit import errors
from lazyinit.patterns import pattern, slashed
from lazyinit.rules.change import Change
from lazyinit.rules.joins import Stack
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule, Patterns, Rule, Rules, as_rules


def scanned(rules: Rules, tensor: str, leaf: str, *, axis: int = 0) -> tuple[AnyRule, ...]:
    """Returns rules for a tree in which ``nn.scan`` keeps the layers of a checkpoint stacked.

    Rules about leaves anywhere (``"**/q_proj/kernel"``) and rules about numbered layers
    (``"layers/{n}/attention/key/kernel"``, with ``tensor`` as the start of the tensor's name) are
    read below the scanned leaf too, and come before the rules as they were, which the other
    leaves go by.

    Args:
      rules: for the tree whose layers are not scanned.
      tensor: what the checkpoint calls a layer: ``"model.layers.{n}"``.
      leaf: what the scanned module is called: ``"model/layers"``.
      axis: the axis of every leaf along which the layers lie.

    Raises:
      FillError: the name of a layer has no number, or several.

    Example:
      >>> from lazyinit.maps.llama import LLAMA
      >>> rules = scanned(LLAMA, "model.layers.{n}", "model/layers")
      >>> rules[0].leaf, rules[0].tensor
      ('model/layers/**/embed_tokens/embedding', 'model.layers.{n}.**.embed_tokens.weight')
    """
    if len(pattern(tensor).numbers) != 1:
        raise errors.FillError(
            f"scanned: wanted the name of a numbered layer, such as 'model.layers.{{n}}', got "
            f"{tensor!r}."
        )
    rules = as_rules(rules)
    moved = (_moved(rule, tensor, leaf, axis) for rule in rules if isinstance(rule, Rule))
    return (*(rule for rule in moved if rule is not None), *rules)


def _moved(rule: Rule, tensor: str, leaf: str, axis: int) -> Rule | None:
    if not rule.tensors or rule.stacked or rule.unstacked or rule.tied:
        return None
    number = f"{{{pattern(tensor).numbers[0]}}}"
    if all(text.startswith("**") for text in (*rule.leaves, *rule.tensors)):
        leaves = tuple(f"{leaf}/{text}" for text in rule.leaves)
        tensors = tuple(f"{tensor}.{text}" for text in rule.tensors)
    elif all(slashed(text).startswith(slashed(tensor) + "/") for text in rule.tensors):
        head = {slashed(text).partition(number)[0] + number + "/" for text in rule.leaves}
        if len(head) > 1 or not all(number in text for text in rule.leaves):
            return None
        leaves = tuple(f"{leaf}/{slashed(text).partition(number + '/')[2]}" for text in rule.leaves)
        tensors = rule.tensors
    else:
        return None
    return replace(
        rule, leaf=_one(leaves), tensor=_one(tensors), layout=_along(rule.changes().changes, axis)
    )


def _along(changes: tuple[Change, ...], axis: int) -> tuple[Change, ...]:
    """Returns changes that put layers along an axis of the leaf, too.

    Numbered tensors are stacked before those of several patterns, whose axis then is counted with
    that of the layers.
    """
    if not changes or not isinstance(changes[-1], Stack):
        return (*changes, Stack(axis))
    before, last = changes[:-1], changes[-1]
    if axis < 0 or last.axis < 0:
        raise errors.FillError(
            f"scanned: wanted axes from 0 on for layers beside {last}, got {axis}."
        )
    if axis <= last.axis:
        return (*before, Stack(axis), Stack(last.axis + 1))
    return (*before, Stack(axis - 1), last)


def counted(rules: Rules, **counts: int) -> tuple[AnyRule, ...]:
    """Returns rules in which the tensors that a number stacks are written out.

    So that a number of layers can be stacked beside it: ``scanned(counted(rules, e=128), ...)``.

    Args:
      rules: any.
      counts: of numbers that only the patterns of tensors have: ``e=128`` experts.

    Raises:
      FillError: a count is under 2, no rule stacks by that number, or a rule that does has several
        patterns of tensors.

    Example:
      >>> rules = [Rule("moe", "experts.{e}.up", [Stack(0)])]
      >>> counted(rules, e=2)[0]
      Rule('moe', ('experts.0.up', 'experts.1.up'), [Stack(axis=0)])
    """
    for name, count in counts.items():
        if count < 2:
            raise errors.FillError(f"counted: wanted {name}=2 or more tensors, got {count}.")
    given = as_rules(rules)
    stacked = sorted({rule.stacked for rule in given if isinstance(rule, Rule)} - {""})
    if unknown := sorted(counts.keys() - set(stacked)):
        raise errors.FillError(
            f"counted: wanted numbers that rules stack by ({', '.join(stacked) or 'none'}), got "
            f"{unknown[0]}."
        )
    return tuple(
        _counted(rule, counts.get(rule.stacked, 0)) if isinstance(rule, Rule) else rule
        for rule in given
    )


def _counted(rule: Rule, count: int) -> Rule:
    if not count:
        return rule
    if not isinstance(rule.tensor, str):
        raise errors.FillError(
            f"{rule}: counted: wanted one pattern of tensors, got {len(rule.tensors)}. Write the "
            "tensors of this rule out, one pattern for each number."
        )
    number, text = f"{{{rule.stacked}}}", rule.tensor
    return replace(rule, tensor=tuple(text.replace(number, str(n)) for n in range(count)))


def _one(patterns: tuple[str, ...]) -> Patterns:
    return patterns[0] if len(patterns) == 1 else patterns


def sized(rules: Rules, **sizes: int) -> tuple[AnyRule, ...]:
    """Returns rules whose ``Rearrange`` changes say the sizes of axes, where they have them.

    Needed where there is no leaf to tell them: to convert a checkpoint without a tree.

    Args:
      rules: any.
      sizes: of named axes: ``h=32`` heads, ``g=8`` groups of keys and values.

    Example:
      >>> from lazyinit.maps.llama import LLAMA_NNX
      >>> [rule.layout for rule in sized(LLAMA_NNX, h=32) if "query" in str(rule)][0]
      (Rearrange('(h k) i -> i h k', h=32),)
    """
    return tuple(
        _sized(rule, sizes) if isinstance(rule, Rule) else rule for rule in as_rules(rules)
    )


def _sized(rule: Rule, sizes: dict[str, int]) -> Rule:
    changes = rule.changes().changes if rule.tensors else ()
    if not any(isinstance(change, Rearrange) for change in changes):
        return rule
    said = (
        change.having(**sizes) if isinstance(change, Rearrange) else change for change in changes
    )
    return replace(rule, layout=tuple(said))
