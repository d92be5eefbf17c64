"""Makes rules from names and shapes: pairs names that may belong together, and notes doubts.

Leaves and tensors that no rule matches come in by name and shape. Rules go out, the surest first,
each with notes, and beside them what is not decided: leaves for which several tensors are equally
likely, and tensors whose layout nothing tells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lazyinit.patterns import escape, joined_like
from lazyinit.rules.layout import Transpose
from lazyinit.rules.rule import Patterns, Rule
from lazyinit.sources import Shape
from lazyinit.tools.decide import Decision, decide
from lazyinit.tools.families import Family, families, numbers_differ
from lazyinit.tools.pairing import Pair, Pairing, feasible, fusible, modules, pair_up
from lazyinit.tools.words import Dictionary, is_embedding, words


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed rule, or several if nothing tells which of them is right.

    Attributes:
      rules: the possible rules.
      leaves: the names of the leaves that they make.
      tensors: the names of the tensors that they take.
      notes: what is doubtful, one line each.
      is_open: whether nothing tells which of the rules is right.
    """

    rules: tuple[Rule, ...]
    leaves: frozenset[str]
    tensors: frozenset[str]
    notes: tuple[str, ...] = ()
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Proposals:
    """The rules that are proposed, and the leaves for which there is none.

    Attributes:
      chosen: the decided proposals, the surest first; their rules are to be used.
      open: the proposals that are open.
      given: the decisions on the layouts of the given pairs, in their order.
      ambiguous: the tensors that are equally likely to make a leaf, by its name.
    """

    chosen: tuple[Proposal, ...]
    open: tuple[Proposal, ...]
    given: tuple[Decision, ...]
    ambiguous: Mapping[str, tuple[str, ...]]


def propose(
    leaves: Mapping[str, Shape],
    tensors: Mapping[str, Shape],
    *,
    every: Mapping[str, Shape],
    given: Sequence[Pair],
    like: str,
) -> Proposals:
    """Proposes rules that make leaves from tensors, both given by name with their shapes.

    Args:
      leaves: the leaves to be made.
      tensors: the tensors that may make them.
      every: all tensors, also those that make other leaves.
      given: pairs of other leaves and tensors of the same model, which are known.
      like: the name of any tensor: rules join the keys of names as it does.
    """
    pairings: list[Pairing] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    known = Dictionary(leaves, every)
    shared = modules(leaves) & modules(every)
    for numbered in (True, False):
        made = {
            n for each in pairings for pair in each.chosen for f in pair.leaves for n in f.names
        }
        used = {
            n for each in pairings for pair in each.chosen for f in pair.tensors for n in f.names
        }
        # Leaves that are ambiguous as families are not tried again one by one.
        made, used = made | {*ambiguous}, used.union(*ambiguous.values())
        mine = families({n: s for n, s in leaves.items() if n not in made}, numbered=numbered)
        theirs = families({n: s for n, s in tensors.items() if n not in used}, numbered=numbered)
        if len(mine) * len(theirs) > _MANY:
            break
        found = _pairings(mine, theirs, known, shared)
        pairings += found
        gone = {n for each in found for pair in each.chosen for f in pair.tensors for n in f.names}
        for pairing in found:
            for options in pairing.open:
                for family in options[0].leaves:
                    for numbers in family.shapes:
                        sources = [t for pair in options for t in pair.sources(numbers)]
                        left = [t for t in sources if t not in gone]
                        if left:
                            ambiguous[family.name(numbers)] = tuple(dict.fromkeys(left))
    chosen = [pair for pairing in pairings for pair in pairing.chosen]
    decisions = decide([*chosen, *given])
    proposals = [
        _proposal(decision, rivals, score, like)
        for decision, (rivals, score) in zip(
            decisions[: len(chosen)],
            (each for p in pairings for each in zip(p.rivals, p.scores, strict=True)),
            strict=True,
        )
    ]
    spoken = {name for each in proposals for name in each.leaves} | {*ambiguous}
    rest = {name: shape for name, shape in leaves.items() if name not in spoken}
    proposals += _ties(rest, every, like)
    return Proposals(
        tuple(each for each in proposals if not each.is_open),
        tuple(each for each in proposals if each.is_open),
        tuple(decisions[len(chosen) :]),
        ambiguous,
    )


_MANY = 100_000  # Stops at more possible pairs than this: trying them takes too long.


def _pairings(
    leaves: Sequence[Family], tensors: Sequence[Family], known: Dictionary, shared: set[str]
) -> list[Pairing]:
    """Pairs families in three steps, each for what the steps before it left.

    First come families whose names say that they are fused, then pairs of one with one, then other
    fused families: these are tried only where nothing simpler is possible.
    """
    said = pair_up(list(fusible(leaves, tensors, said=True)), known)
    gone = {family for pair in said.chosen for family in pair.families}
    mine, theirs = ([f for f in some if id(f) not in gone] for some in (leaves, tensors))
    possible = feasible(mine, theirs, shared)
    simple = _paired(possible, known)
    gone = {family for pair in possible for family in pair.families}
    mine, theirs = ([f for f in some if id(f) not in gone] for some in (mine, theirs))
    fused = pair_up(list(fusible(mine, theirs, said=False)), known)
    return [replace(said, open=()), simple, fused]


def _paired(pairs: Sequence[Pair], known: Dictionary) -> Pairing:
    """Returns the pairing with all kernels turned, or with none, whichever can pair more leaves.

    If both can pair as many, some kernels may be turned and others not.
    """
    found: list[tuple[tuple[int, int], Pairing]] = []
    for turned in (True, False):
        some = [pair for pair in pairs if pair.may_be(turned)]
        pairing = pair_up(some, known)
        possible = {id(f): len(f.shapes) for pair in some for f in pair.leaves}
        chosen = sum(len(f.shapes) for pair in pairing.chosen for f in pair.leaves)
        found.append(((sum(possible.values()), chosen), pairing))
    (one, first), (other, second) = found
    if one != other:
        return first if one > other else second
    return pair_up(pairs, known)


def _proposal(decision: Decision, rivals: int, score: float, like: str) -> Proposal:
    """Returns the rules for a decided or open pair, with a note on each doubt."""
    pair = decision.pair
    rules = tuple(
        Rule(*_patterns(pair, option.stacked, like), option.changes) for option in decision.options
    )
    notes = [decision.why] * bool(decision.why)
    if pair.is_fused:
        notes.append("fused in this order, which shapes do not tell")
    if numbers_differ(pair.leaves[0], pair.tensors[0]):
        notes.append("their numbers differ")
    if score <= 0:
        notes.append("the shapes alone say so, not the names")
    elif rivals:
        notes.append("the names say so, the shapes leave others")
    elif score <= _ALIKE:
        notes.append("the shapes say so, the names hardly")
    said = tuple(f"{rules[0].leaf} from {rules[0].tensor}: {note}." for note in notes)
    leaves, tensors = (
        frozenset(name for family in side for name in family.names)
        for side in (pair.leaves, pair.tensors)
    )
    return Proposal(rules, leaves, tensors, said, decision.is_open)


_ALIKE = 0.5  # Names must be more alike than this to be a reason by themselves.
_LETTERS = "nmklijabcdefgh"


def _patterns(pair: Pair, stacked: int, like: str) -> tuple[Patterns, Patterns]:
    """Returns the patterns of leaves and of tensors; one number of the tensors may be stacked."""
    values = zip(*pair.tensors[0].shapes, strict=True)
    numbers = [
        f"{{{letter}}}" if len({*found}) > 1 or place == stacked else str(found[0])
        for place, (letter, found) in enumerate(zip(_LETTERS, values, strict=False))
    ]
    others = [number for place, number in enumerate(numbers) if place != stacked]
    leaves = tuple(_pattern(family, others) for family in pair.leaves)
    tensors = tuple(joined_like(_pattern(family, numbers), like) for family in pair.tensors)
    return _one(leaves), _one(tensors)


def _pattern(family: Family, numbers: Sequence[str]) -> str:
    """Returns the pattern of a family's names, in which numbers may be ``{n}``."""
    marks = [chr(0xE000 + place) for place in range(len(numbers))]  # No name has these characters.
    text = escape(family.name(marks))
    for mark, number in zip(marks, numbers, strict=True):
        text = text.replace(mark, number)
    return text


def _one(patterns: tuple[str, ...]) -> Patterns:
    return patterns[0] if len(patterns) == 1 else patterns


_TURN = Transpose("o i -> i o")
_HEADS = {"head", "lm", "logits", "unembed", "unembedding", "output"}


def _ties(leaves: Mapping[str, Shape], tensors: Mapping[str, Shape], like: str) -> list[Proposal]:
    """Returns rules that fill an output head from the tensor of the embedding.

    They are for models that use one matrix for both: the checkpoint has no tensor for the head.
    """
    found: list[Proposal] = []
    for leaf, shape in leaves.items():
        if len(shape) != 2 or not _HEADS & {*words(leaf)}:
            continue
        same = [n for n, s in tensors.items() if is_embedding(n) and s in (shape, shape[::-1])]
        if len(same) != 1:
            continue
        turns = [()] * (tensors[same[0]] == shape) + [_TURN] * (tensors[same[0]] == shape[::-1])
        if len(turns) > 1 and leaf.endswith("kernel"):
            turns = [_TURN]  # A kernel is [width, words], an embedding [words, width].
        rules = tuple(
            Rule(escape(leaf), escape(joined_like(same[0], like)), turn, tied=True)
            for turn in turns
        )
        note = f"{leaf} from {rules[0].tensor}: tied, as there is no tensor for it."
        found.append(Proposal(rules, frozenset([leaf]), frozenset(same), (note,), len(rules) > 1))
    return found
