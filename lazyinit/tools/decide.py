"""Decides between layouts that shapes leave open, by siblings and conventions, or not at all.

Pairs of families come in, each with all layouts that its shapes allow. A ``Decision`` goes out for
each. Only reasons that people would accept decide:

- *Names*: a query, a key and a value lead to heads, and an output leads from them.
- *Siblings*: tensors of the same kind in the same layer, for which shapes do tell, all agree.
- *The convention* of the checkpoint: PyTorch's weights are ``[out, in]``, and embeddings have the
  same layout everywhere. It holds unless siblings elsewhere in the model contradict it.

A note names the reason. Any other layout stays open: it is listed, and not applied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyinit.tools.layouts import TRANSPOSED_CONVOLUTION, Option
from lazyinit.tools.pairing import Pair
from lazyinit.tools.words import is_embedding, meaning, words


@dataclass(frozen=True, slots=True)
class Decision:
    """What is known about the layout of a pair.

    Attributes:
      pair: the pair.
      options: the layouts that are still possible; one if it is decided.
      why: the reason for this layout, or for leaving it open; ``""`` if shapes alone tell.
      is_open: whether the layout is not decided.
    """

    pair: Pair
    options: tuple[Option, ...]
    why: str = ""
    is_open: bool = False


_Kind = tuple[str, int, bool]
_Told = Mapping[_Kind, Sequence[tuple[tuple[str, ...], bool, str]]]


def decide(pairs: Sequence[Pair]) -> list[Decision]:
    """Decides the layout of each pair of one model, or leaves it open."""
    pairs = [_by_heads(pair) for pair in pairs]
    told: dict[_Kind, list[tuple[tuple[str, ...], bool, str]]] = {}
    for pair in pairs:
        turned = {option.turned for option in pair.options}
        if len(turned) == 1 and None not in turned:
            said = pair.tensors[0].scope, bool(turned.pop()), _leaf(pair)
            told.setdefault(_kind(pair), []).append(said)
    stacks = {option.stack[1] for pair in pairs if _one_stack(pair) for option in pair.options}
    return [_decided(pair, told, stacks - {-1}) for pair in pairs]


def _by_heads(pair: Pair) -> Pair:
    """Returns the pair without the layouts that its names contradict, unless none is left."""
    said = _said(pair)
    options = tuple(option for option in pair.options if {option.heads} <= said | {""})
    return replace(pair, options=options) if options and len(said) == 1 else pair


def _said(pair: Pair) -> set[str]:
    """Returns whether the names of a pair say that it leads to heads or from them."""
    keys = (*pair.tensors[0].keys[-2:], *pair.leaves[0].keys[-2:])
    return {_HEADS.get(meaning(word), "") for key in keys for word in words(key)} - {""}


_HEADS = {"q": "to", "k": "to", "v": "to", "o": "from"}


def _kind(pair: Pair) -> _Kind:
    """Returns the kind of a pair; siblings of one kind are expected to have one layout."""
    tensor = pair.tensors[0]
    return tensor.keys[-1], min(tensor.rank, 3), _is_embedding(pair)


def _is_embedding(pair: Pair) -> bool:
    """Tells whether a pair is an embedding's matrix, by the names of its leaf and its tensor."""
    leaf, tensor = "/".join(pair.leaves[0].keys), "/".join(pair.tensors[0].keys)
    if pair.tensors[0].rank != 2 or pair.is_fused or pair.leaves[0].keys[-1] == "kernel":
        return False
    return pair.leaves[0].keys[-1] == "embedding" or (is_embedding(leaf) and is_embedding(tensor))


def _leaf(pair: Pair) -> str:
    leaf = pair.leaves[0]
    return leaf.name(["{n}"] * (len(leaf.words) - 1))


def _one_stack(pair: Pair) -> bool:
    return len({option.stack for option in pair.options}) == 1 and pair.options[0].stacked >= 0


def _decided(pair: Pair, told: _Told, axes: set[int]) -> Decision:
    """Returns the decision for a pair, from what siblings tell and the axes of other stacks."""
    options, why = pair.options, ""
    said = _said(pair)
    if said and all(option.heads and {option.heads} != said for option in options):
        return Decision(pair, options, "its names contradict its shape", is_open=True)
    if len({option.turned for option in options}) > 1:
        turned, why = _turned(pair, told)
        if turned is None:
            return Decision(pair, options, why, is_open=True)
        options = tuple(option for option in options if option.turned == turned)
    if len({option.stack for option in options}) > 1 and len(axes) == 1:
        found = tuple(option for option in options if option.stack[1] in axes)
        options, why = found or options, why or "stacked along the axis that the others are"
    if len(options) > 1:
        return Decision(pair, options, "shapes leave its layout open", is_open=True)
    if any(TRANSPOSED_CONVOLUTION in option.changes for option in options):
        why = "a transposed convolution: Flax flips its kernel unless transpose_kernel=True"
        return Decision(pair, options, why, is_open=True)
    return Decision(pair, options, why)


def _turned(pair: Pair, told: _Told) -> tuple[bool | None, str]:
    """Decides whether a pair is turned, if shapes allow both; returns that and the reason.

    ``None`` stands for undecided.
    """
    all_told = told.get(_kind(pair), ())
    near = [each for each in all_told if each[0] == pair.tensors[0].scope]
    if near:
        if len({turned for _, turned, _ in near}) > 1:
            return None, "shapes leave its layout open, and its siblings differ"
        return near[0][1], _reason(near[0][1], f"{near[0][2]} is")
    usual = _convention(pair)
    if usual is None or any(turned != usual for _, turned, _ in all_told):
        return None, "shapes leave its layout open, and nothing else tells"
    if all_told:
        return usual, _reason(usual, f"{all_told[0][2]} is")
    if not _is_embedding(pair) and pair.leaves[0].keys[-1] not in ("kernel", "w"):
        return None, "shapes leave its layout open, and no other tensor tells"
    return usual, _reason(usual, _CUSTOMS[_is_embedding(pair), usual])


def _convention(pair: Pair) -> bool | None:
    """Returns whether a pair is turned by the convention of its names; ``None`` without one."""
    if _is_embedding(pair):
        return False
    if pair.tensors[0].keys[-1] in ("kernel", "embedding"):
        return False
    return True if pair.tensors[0].keys[-1] in ("weight", "w") else None


_CUSTOMS = {
    (False, True): "PyTorch stores weights",
    (False, False): "Flax stores kernels",
    (True, False): "embeddings are",
}


def _reason(turned: bool, like: str) -> str:
    return f"shapes leave its layout open; {'transposed' if turned else 'as stored'}, as {like}"
