"""Guesses which tensors make which leaves, by shapes, numbers and words, for people to judge.

A family of leaves and one of tensors may be a pair if their numbers agree and some layout leads
from the shapes of the tensors to those of the leaves. Sisters may pair with what they are fused
into. Of the possible pairs, those whose names share the most words are chosen. What is learned from
them (this checkpoint writes ``enc`` for ``encoder``) tells other pairs apart. A pair keeps all its
possible layouts: ``decide.py`` chooses one.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from lazyinit.sources import Shape
from lazyinit.tools import layouts
from lazyinit.tools.families import Family, Numbers, families, says_fused, sisters
from lazyinit.tools.layouts import Option, possible
from lazyinit.tools.words import Dictionary, meaning, words


@dataclass(frozen=True, slots=True)
class Pair:
    """Families of leaves, and families of tensors that may make them, with the ways to do it.

    Attributes:
      leaves: one family, or several that one tensor makes.
      tensors: one family, or several that make one leaf.
      options: all ways that lead from tensors to leaves; several if shapes do not tell.
    """

    leaves: tuple[Family, ...]
    tensors: tuple[Family, ...]
    options: tuple[Option, ...]

    @property
    def families(self) -> set[int]:
        """The identities of the pair's families."""
        return {id(family) for family in (*self.leaves, *self.tensors)}

    @property
    def is_fused(self) -> bool:
        """Whether there are several families on one side."""
        return len(self.leaves) + len(self.tensors) > 2

    @property
    def is_kernel(self) -> bool:
        """Whether the leaves are kernels, as Flax calls them."""
        return all(each.words[-1].endswith("kernel") and each.rank > 1 for each in self.leaves)

    def sources(self, numbers: Numbers) -> list[str]:
        """Returns the names of the tensors that the leaf with these numbers is made from."""
        place = self.options[0].stacked
        return [
            tensor.name(each)
            for tensor in self.tensors
            for each in tensor.shapes
            if (each if place < 0 else (*each[:place], *each[place + 1 :])) == numbers
        ]

    def may_be(self, turned: bool) -> bool:
        """Tells whether the pair is possible if all kernels of a model are turned, or none is."""
        return not self.is_kernel or any(option.turned == turned for option in self.options)


def feasible(leaves: Sequence[Family], tensors: Sequence[Family], shared: set[str]) -> list[Pair]:
    """Returns every pair of one family with another that numbers, shapes and names allow.

    Args:
      leaves: families of leaves.
      tensors: families of tensors.
      shared: names of modules that both sides have. Two different ones are never paired: no leaf
        of ``gate`` is made from a tensor of ``down`` if both sides have both names.
    """
    sizes: dict[int, list[Family]] = {}
    for tensor in tensors:
        sizes.setdefault(_size(tensor), []).append(tensor)
    found = (
        pair(leaf, tensor)
        for leaf in leaves
        for tensor in sizes.get(_size(leaf), ())
        if _module(leaf) == _module(tensor) or not {_module(leaf), _module(tensor)} <= shared
    )
    return [each for each in found if each is not None]


def modules(names: Iterable[str]) -> set[str]:
    """Returns the names of the modules of leaves or tensors: the last key but one of each name."""
    return {_module(family) for name in names for family in families({name: ()}, numbered=False)}


def _module(family: Family) -> str:
    return family.keys[-2] if len(family.keys) > 1 else ""


def pair(leaf: Family, tensor: Family) -> Pair | None:
    """Returns two families with all ways in which they may be a pair; ``None`` if there is none."""
    if set(leaf.shapes) == set(tensor.shapes):
        known = {((tensor.shapes[numbers],), (shape,)) for numbers, shape in leaf.shapes.items()}
        options = possible(layouts.alone(tensor.rank), known)
    else:
        ways = {place: _stacked(leaf, tensor, place) for place in range(len(tensor.words) - 1)}
        alike = {place: _agreement(leaf, tensor, place) for place in ways if ways[place]}
        best = [place for place in alike if alike[place] == max(alike.values())]
        options = [option for place in best for option in ways[place]]
    return Pair((leaf,), (tensor,), tuple(options)) if options else None


def given(leaf: str, tensor: str, shapes: tuple[Shape, Shape]) -> Pair | None:
    """Returns the pair of a leaf and a tensor that are known to belong together.

    ``shapes`` are theirs, in this order. Returns ``None`` if no layout leads from one to the other.
    """
    (one,), (other,) = (
        families({name: shape}, numbered=True)
        for name, shape in zip((leaf, tensor), shapes, strict=True)
    )
    options = possible(layouts.alone(other.rank), [((shapes[1],), (shapes[0],))])
    return Pair((one,), (other,), tuple(options)) if options else None


def _stacked(leaf: Family, tensor: Family, place: int) -> list[Option]:
    """Returns the ways to make the leaves if number ``place`` of the tensors is stacked."""
    stacks: dict[Numbers, dict[int, Shape]] = {}
    for numbers, shape in tensor.shapes.items():
        rest = (*numbers[:place], *numbers[place + 1 :])
        stacks.setdefault(rest, {})[numbers[place]] = shape
    counts = (sorted(stack) == list(range(len(stack))) for stack in stacks.values())
    if set(stacks) != set(leaf.shapes) or not all(counts):
        return []
    known = {(tuple(stacks[rest].values()), (leaf.shapes[rest],)) for rest in stacks}
    return possible(layouts.stacked(tensor.rank, place), known)


def _agreement(leaf: Family, tensor: Family, place: int) -> int:
    """Counts the numbers that follow the same word on both sides if number ``place`` is stacked."""
    rest = [word for n, word in enumerate(tensor.words[:-1]) if n != place]
    return sum(
        _word_before(one) == _word_before(other)
        for one, other in zip(leaf.words[:-1], rest, strict=True)
    )


def _word_before(text: str) -> str:
    return next((meaning(word) for word in reversed(words(text))), "")


def fusible(leaves: Sequence[Family], tensors: Sequence[Family], *, said: bool) -> Iterator[Pair]:
    """Yields pairs where one tensor makes several sisters, or several sisters one leaf.

    Args:
      leaves: families of leaves.
      tensors: families of tensors.
      said: whether to yield only pairs whose fused name says what it holds, as ``qkv`` does.
    """
    for many, ones in ((leaves, tensors), (tensors, leaves)):
        for some in sisters(many):
            for one in ones:
                if _may_fuse(some, one) and (not said or says_fused(one, some)):
                    is_split = many is leaves
                    ends = (some, (one,)) if is_split else ((one,), some)
                    options = tuple(_fused(*ends, is_split))
                    if options:
                        yield Pair(*ends, options)


def _may_fuse(some: Sequence[Family], one: Family) -> bool:
    return set(one.shapes) == set(some[0].shapes) and _size(one) == sum(map(_size, some))


def _fused(leaves: tuple[Family, ...], tensors: tuple[Family, ...], is_split: bool) -> list[Option]:
    """Returns the ways from tensors to leaves if one side is fused."""
    ways = layouts.split if is_split else layouts.joined
    known = {
        (
            tuple(family.shapes[numbers] for family in tensors),
            tuple(family.shapes[numbers] for family in leaves),
        )
        for numbers in leaves[0].shapes
    }
    return possible(ways(tensors[0].rank), known)


@dataclass(frozen=True, slots=True)
class Pairing:
    """What was paired, and what could not be.

    Attributes:
      chosen: the chosen pairs, the surest first.
      scores: for each chosen pair, how alike the names are, from -1 to 1.
      rivals: for each chosen pair, how many other pairs had one of its families.
      open: for each family of leaves that is in no chosen pair, its likeliest pairs: several, or
        one whose tensor is as likely to make other leaves.
    """

    chosen: tuple[Pair, ...]
    scores: tuple[float, ...]
    rivals: tuple[int, ...]
    open: tuple[tuple[Pair, ...], ...]


def pair_up(feasible: Sequence[Pair], known: Dictionary) -> Pairing:
    """Chooses the pairs that are surest, round by round, until nothing tells the rest apart.

    Args:
      feasible: all pairs that are possible.
      known: what is known of the words of names; a copy of it learns, it does not.
    """
    waiting, known = list(feasible), known.copy()
    count = Counter(family for each in waiting for family in each.families)
    chosen: list[Pair] = []
    sureness: list[float] = []
    while waiting:
        scores = [_likeness(known, each) for each in waiting]
        sure = _sure(waiting, scores)
        if not sure:
            break
        for each, score in sure:
            if not each.is_fused:
                known.learn(each.leaves[0].text, each.tensors[0].text)
            chosen.append(each)
            sureness.append(score)
        gone = {family for each, _ in sure for family in each.families}
        waiting = [each for each in waiting if not gone & each.families]
    best: dict[int, list[tuple[float, Pair]]] = {}
    for each in waiting:
        for leaf in each.leaves:
            best.setdefault(id(leaf), []).append((_likeness(known, each), each))
    likeliest = (
        tuple(each for score, each in scored if score == max(score for score, _ in scored))
        for scored in best.values()
    )
    rivals = (sum(count[family] - 1 for family in each.families) for each in chosen)
    return Pairing(tuple(chosen), tuple(sureness), tuple(rivals), tuple(likeliest))


def _likeness(known: Dictionary, pair: Pair) -> float:
    scores = [known.likeness(a.text, b.text) for a in pair.leaves for b in pair.tensors]
    return sum(scores) / len(scores)


def _size(family: Family) -> int:
    return sum(map(math.prod, family.shapes.values()))


def _sure(waiting: Sequence[Pair], scores: Sequence[float]) -> list[tuple[Pair, float]]:
    """Returns the pairs to choose next: those without rivals, or else those with the top score.

    A pair with the top score must be likelier than every rival.
    """
    by_family: dict[int, list[float]] = {}
    for each, score in zip(waiting, scores, strict=True):
        for family in each.families:
            by_family.setdefault(family, []).append(score)
    alone, best = [], []
    for each, score in zip(waiting, scores, strict=True):
        rivals = [by_family[family] for family in each.families]
        if all(len(some) == 1 for some in rivals):
            alone.append((each, score))
        elif score > 0 and all(sum(other >= score for other in some) == 1 for some in rivals):
            best.append((each, score))
    top = max((score for _, score in best), default=0)
    return alone or [(each, score) for each, score in best if score == top]
