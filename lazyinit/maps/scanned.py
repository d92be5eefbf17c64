"""Makes maps from maps: for scanned layers, for a given number of experts, and with given sizes."""

from dataclasses import replace

from lazyinit import errors
from lazyinit.patterns import pattern, slashed
from lazyinit.rules.change import Change
from lazyinit.rules.joins import Stack
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import AnyRule, Patterns, Rule, Rules, as_rules


def scanned(rules: Rules, tensor: str, leaf: str, *, axis: int = 0) -> tuple[AnyRule, ...]:
    """Returns rules for a tree in which ``nn.scan`` keeps the layers of a checkpoint stacked.

    Each rule for leaves anywhere (``"**/q_proj/kernel"``), and each for numbered layers
    (``"layers/{n}/attention/key/kernel"``, with ``tensor`` as the start of the tensor's name), is
    rewritten for the scanned module. These rules come first; the given ones follow, for all other
    leaves.

    Args:
      rules: the rules for a tree whose layers are not scanned.
      tensor: the name of a layer in the checkpoint: ``"model.layers.{n}"``.
      leaf: the path of the scanned module: ``"model/layers"``.
      axis: the axis of every leaf along which the layers are stacked.

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
    """Returns a rule rewritten for the scanned module; ``None`` if it is not about layers."""
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
    """Returns the changes with one more ``Stack``, of layers along an axis of the leaf.

    Numbered tensors are stacked before those of several patterns. If the last change stacks
    patterns, the axis that comes later in the leaf is renumbered.
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
    """Returns rules that list stacked tensors one by one, in place of a number in their pattern.

    A rule can stack by only one number. Once experts are listed, layers can be stacked by theirs:
    ``scanned(counted(rules, e=128), ...)``.

    Args:
      rules: the rules; those that stack by no such number are returned unchanged.
      counts: how many tensors each number counts: ``e=128`` experts.

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
    """Returns a rule with one pattern for each of ``count`` tensors; unchanged if that is 0."""
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
    """Returns rules in which the ``Rearrange`` changes have the sizes of their named axes.

    They are needed to convert a checkpoint without a tree, where no leaf tells the sizes.

    Args:
      rules: the rules; those without such axes are returned unchanged.
      sizes: the sizes of named axes: ``h=32`` heads, ``g=8`` groups of keys and values.

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
