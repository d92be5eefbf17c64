"""Guesses which tensors make which leaves, by shapes, numbers and words, for people to judge.

Names that differ in numbers alone are one *family*. A family of leaves and one of tensors may be
a pair if their numbers agree and some layout leads from the shapes of the one to those of the
other. Of the possible pairs, those are chosen that share the most words on both sides; what is
learned from them (this checkpoint writes ``enc`` for ``encoder``) tells others apart.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint.memory import HeldTensor
from lazyinit.params import Shape
from lazyinit.rules.change import Change, Frame, Grid, Layout
from lazyinit.rules.joins import Stack
from lazyinit.rules.layout import Transpose
from lazyinit.rules.reshape import Rearrange
from lazyinit.tools.words import Dictionary

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Names that differ in their numbers alone.

    Attributes:
      words: what is between the numbers: ``("layers_", "/kernel")``.
      shapes: by the numbers of a name, its shape.
    """

    words: tuple[str, ...]
    shapes: Mapping[Numbers, Shape] = field(hash=False)

    def name(self, numbers: Sequence[object]) -> str:
        """Returns the name with these numbers, or with what stands for them."""
        rest = "".join(f"{n}{word}" for n, word in zip(numbers, self.words[1:], strict=True))
        return self.words[0] + rest

    @property
    def text(self) -> str:
        """The words alone."""
        return " ".join(self.words)

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they came."""
        return [self.name(numbers) for numbers in self.shapes]


def families(shapes: Mapping[str, Shape], *, numbered: bool) -> list[Family]:
    """Returns the families of these names; each name alone if they are not to be numbered."""
    found: dict[tuple[str, ...], dict[Numbers, Shape]] = {}
    for name, shape in shapes.items():
        parts = _NUMBER.split(name) if numbered else [name]
        found.setdefault(tuple(parts[::2]), {})[tuple(map(int, parts[1::2]))] = shape
    return [Family(words, of) for words, of in found.items()]


_NUMBER = re.compile(r"(?<![A-Za-z0-9])(0|[1-9][0-9]{0,8})(?![A-Za-z0-9])")
_LAYOUTS: tuple[tuple[bool, tuple[Change, ...]], ...] = (
    (False, ()),
    (True, (Transpose("o i -> i o"),)),
    (True, (Transpose("o i ... -> ... i o"),)),
    (True, (Rearrange("(h k) i -> i h k"),)),
    (True, (Rearrange("o (h k) -> h k o"),)),
    (False, (Rearrange("i (h k) -> i h k"),)),
    (False, (Rearrange("(h k) o -> h k o"),)),
    (False, (Rearrange("(h k) -> h k"),)),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A family of leaves, one of tensors that may make it, and how.

    Attributes:
      leaf: the leaves.
      tensor: the tensors.
      stacked: which of the tensors' numbers counts what is stacked, or -1.
      layouts: the changes that lead from tensors to leaves; several if shapes do not tell.
      transposed: for each, whether it is the one of a kernel that is stored transposed.
    """

    leaf: Family
    tensor: Family
    stacked: int
    layouts: tuple[tuple[Change, ...], ...]
    transposed: tuple[bool, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether the leaves are kernels, of which PyTorch stores the transposed."""
        shapes = self.leaf.shapes.values()
        return self.leaf.words[-1].endswith("kernel") and all(len(shape) > 1 for shape in shapes)

    def sources(self, numbers: Numbers) -> list[str]:
        """Returns the names of the tensors that the leaf with these numbers is made from."""
        if self.stacked < 0:
            return [self.tensor.name(numbers)]
        place = self.stacked
        return [
            self.tensor.name(each)
            for each in self.tensor.shapes
            if (*each[:place], *each[place + 1 :]) == numbers
        ]

    def where(self, transposed: bool) -> "Pair | None":
        """Returns the pair under the assumption that kernels are stored transposed, or are not."""
        if not self.is_kernel:
            return self
        if transposed not in self.transposed:
            return None
        layout = self.layouts[self.transposed.index(transposed)]
        return replace(self, layouts=(layout,), transposed=(transposed,))


def pairs(leaf: Family, tensor: Family) -> Iterator[Pair]:
    """Yields the ways in which these tensors may make these leaves: one, or none."""
    if set(leaf.shapes) == set(tensor.shapes):
        shapes = [(tensor.shapes[numbers], shape) for numbers, shape in leaf.shapes.items()]
        fits = [(t, changes) for t, changes in _LAYOUTS if _leads(changes, shapes)]
        yield from _pair(leaf, tensor, -1, fits)
        return
    for place in range(len(tensor.words) - 1):
        stacks: dict[Numbers, dict[int, Shape]] = {}
        for numbers, shape in tensor.shapes.items():
            rest = (*numbers[:place], *numbers[place + 1 :])
            stacks.setdefault(rest, {})[numbers[place]] = shape
        if set(stacks) != set(leaf.shapes):
            continue
        fits = [
            (t, (*changes, Stack(axis)))
            for axis in (0, 1)
            for t, changes in _LAYOUTS
            if all(_stacks(changes, axis, stacks[rest], leaf.shapes[rest]) for rest in stacks)
        ]
        if fits:
            yield from _pair(leaf, tensor, place, [f for f in fits if f[1][-1] == fits[0][1][-1]])
            return


def _pair(
    leaf: Family, tensor: Family, stacked: int, fits: Sequence[tuple[bool, tuple[Change, ...]]]
) -> Iterator[Pair]:
    kinds = dict(reversed(fits))  # The simplest of each kind.
    if kinds:
        yield Pair(leaf, tensor, stacked, tuple(kinds.values()), tuple(kinds))


def _stacks(
    changes: tuple[Change, ...], axis: int, shapes: Mapping[int, Shape], wanted: Shape
) -> bool:
    count = len(shapes)
    if sorted(shapes) != list(range(count)) or wanted[axis : axis + 1] != (count,):
        return False
    rest = (*wanted[:axis], *wanted[axis + 1 :])
    return _leads(changes, [(shape, rest) for shape in shapes.values()])


def _leads(changes: tuple[Change, ...], shapes: Sequence[tuple[Shape, Shape]]) -> bool:
    return all(
        shape_after(changes, shape, wanted) == wanted for shape, wanted in dict.fromkeys(shapes)
    )


def nothing_of(shape: Shape) -> HeldTensor:
    """Returns a source of a shape that takes no memory, to try layouts on."""
    return HeldTensor("", np.broadcast_to(np.uint8(0), shape))


def shape_after(changes: tuple[Change, ...], shape: Shape, wanted: Shape) -> Shape | None:
    """Returns what changes make of a shape; ``None`` if they do not apply to it."""
    nothing = nothing_of(shape)
    one = Frame(1, False)
    try:
        made = Layout(changes, one, one).forward(Grid(((nothing,),)), (wanted,)).rows[0][0]
    except errors.FillError:
        return None
    if changes and made is nothing:
        return None  # A transposition that does not apply to so few or many axes.
    return made.shape


@dataclass(frozen=True, slots=True)
class Pairing:
    """What was paired, and what could not be.

    Attributes:
      chosen: pairs, the surest first.
      by_shape: those of them for which names said nothing.
      rivals: for each of the chosen, how many others were possible for its leaves or its tensors.
      open: for each leaf that is in none of them, its likeliest pairs: several, or one whose
        tensor is as likely to make another leaf.
    """

    chosen: tuple[Pair, ...]
    by_shape: tuple[Pair, ...]
    rivals: tuple[int, ...]
    open: tuple[tuple[Pair, ...], ...]


def feasible(leaves: Sequence[Family], tensors: Sequence[Family]) -> list[Pair]:
    """Returns every pair that numbers and shapes allow."""
    return [
        pair
        for leaf in leaves
        for tensor in tensors
        if _same_size(leaf, tensor)
        for pair in pairs(leaf, tensor)
    ]


def pair_up(feasible: Sequence[Pair]) -> Pairing:
    """Chooses the pairs that are surest, round by round, until nothing tells the rest apart."""
    waiting = list(feasible)
    leaves = Counter(id(pair.leaf) for pair in waiting)
    tensors = Counter(id(pair.tensor) for pair in waiting)
    known = Dictionary()
    chosen: list[Pair] = []
    by_shape: list[Pair] = []
    while waiting:
        scores = [known.likeness(pair.leaf.text, pair.tensor.text) for pair in waiting]
        sure = _sure(waiting, scores)
        if not sure:
            break
        for pair, score in sure:
            known.learn(pair.leaf.text, pair.tensor.text)
            chosen.append(pair)
            by_shape += [pair] * (score <= 0)
        gone = {id(pair.leaf) for pair, _ in sure}, {id(pair.tensor) for pair, _ in sure}
        waiting = [p for p in waiting if id(p.leaf) not in gone[0] and id(p.tensor) not in gone[1]]
    best: dict[int, list[tuple[float, Pair]]] = {}
    for pair in waiting:
        score = known.likeness(pair.leaf.text, pair.tensor.text)
        best.setdefault(id(pair.leaf), []).append((score, pair))
    likeliest = (
        tuple(pair for score, pair in scored if score == max(score for score, _ in scored))
        for scored in best.values()
    )
    rivals = (leaves[id(pair.leaf)] + tensors[id(pair.tensor)] - 2 for pair in chosen)
    return Pairing(tuple(chosen), tuple(by_shape), tuple(rivals), tuple(likeliest))


def _same_size(leaf: Family, tensor: Family) -> bool:
    sizes = (sum(map(math.prod, family.shapes.values())) for family in (leaf, tensor))
    return next(sizes) == next(sizes)


def _sure(waiting: Sequence[Pair], scores: Sequence[float]) -> list[tuple[Pair, float]]:
    """Returns the pairs to choose next: those without a rival, or else the best of the best."""
    by_leaf: dict[int, list[float]] = {}
    by_tensor: dict[int, list[float]] = {}
    for pair, score in zip(waiting, scores, strict=True):
        by_leaf.setdefault(id(pair.leaf), []).append(score)
        by_tensor.setdefault(id(pair.tensor), []).append(score)
    alone, best = [], []
    for pair, score in zip(waiting, scores, strict=True):
        rivals = [by_leaf[id(pair.leaf)], by_tensor[id(pair.tensor)]]
        if all(len(each) == 1 for each in rivals):
            alone.append((pair, score))
        elif score > 0 and all(sum(other >= score for other in each) == 1 for each in rivals):
            best.append((pair, score))
    top = max((score for _, score in best), default=0)
    return alone or [(pair, score) for pair, score in best if score == top]
