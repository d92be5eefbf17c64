"""From names and shapes to rules: pairs names that may belong together, and notes what is doubtful.

Leaves and tensors that nothing matches come in by name and shape. Rules go out, the surest first,
each with notes, and beside them the leaves for which several tensors are equally likely.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lazyinit import errors
from lazyinit.params import Shape
from lazyinit.patterns import joined_like
from lazyinit.rules.change import Change, Frame, Grid, Layout
from lazyinit.rules.joins import Concat, Split
from lazyinit.rules.layout import Transpose
from lazyinit.rules.reshape import Rearrange
from lazyinit.rules.rule import Rule
from lazyinit.tools.pairing import Family, Pair, Pairing, families, feasible, nothing_of, pair_up
from lazyinit.tools.words import meaning, words


@dataclass(frozen=True, slots=True)
class Proposal:
    """A rule, the names that it pairs, and what is doubtful about it.

    Attributes:
      rule: the rule that is proposed.
      leaves: names of the leaves that it makes.
      tensors: names of the tensors that it makes them from.
      notes: what is doubtful about it, one line each.
    """

    rule: Rule
    leaves: frozenset[str]
    tensors: frozenset[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposals:
    """The rules that are proposed, and the leaves for which none is.

    Attributes:
      chosen: proposals, the surest first.
      ambiguous: by the name of a leaf, the tensors that are equally likely to make it.
    """

    chosen: tuple[Proposal, ...]
    ambiguous: Mapping[str, tuple[str, ...]]


def propose(leaves: Mapping[str, Shape], tensors: Mapping[str, Shape], like: str) -> Proposals:
    """Proposes rules that make leaves from tensors, both given by name with their shapes.

    Args:
      leaves: what is to be made.
      tensors: what there is.
      like: the name of some tensor, for how names are joined.
    """
    chosen: list[Proposal] = []
    ambiguous: dict[str, tuple[str, ...]] = {}
    for numbered in (True, False):
        # Leaves that are ambiguous as families are not tried again one by one.
        made = {name for each in chosen for name in each.leaves} | {*ambiguous}
        used = _used(chosen).union(*ambiguous.values())
        mine = families({n: s for n, s in leaves.items() if n not in made}, numbered=numbered)
        theirs = families({n: s for n, s in tensors.items() if n not in used}, numbered=numbered)
        if len(mine) * len(theirs) > _MANY:
            break
        possible = feasible(mine, theirs)
        pairing, told = _paired(possible)
        chosen += [
            _of_pair(pair, rivals, pairing, told, like)
            for pair, rivals in zip(pairing.chosen, pairing.rivals, strict=True)
        ]
        # Fused tensors are looked for only among names that nothing simpler may pair.
        paired = {id(of) for pair in possible for of in (pair.leaf, pair.tensor)}
        rest = [[family for family in some if id(family) not in paired] for some in (mine, theirs)]
        chosen += _fused(rest[0], rest[1], like)
        used = _used(chosen)
        for options in pairing.open:
            for numbers in options[0].leaf.shapes:
                found = [t for pair in options for t in pair.sources(numbers) if t not in used]
                if found:
                    ambiguous[options[0].leaf.name(numbers)] = tuple(found)
    return Proposals(tuple(chosen), ambiguous)


def _used(chosen: Sequence[Proposal]) -> set[str]:
    return {name for each in chosen for name in each.tensors}


_MANY = 100_000  # Pairs beyond which nobody waits.


def _paired(pairs: Sequence[Pair]) -> tuple[Pairing, bool]:
    """Returns what is paired, and whether shapes tell if kernels are stored transposed.

    All kernels are taken to be transposed, or none, whichever pairs more leaves. One kernel alone
    tells nothing: a model has as many of shape ``[d, f]`` as of ``[f, d]``.
    """
    told: list[tuple[tuple[int, int], Pairing]] = []
    for transposed in (True, False):
        some = [made for pair in pairs if (made := pair.where(transposed)) is not None]
        pairing = pair_up(some)
        possible = {id(pair.leaf): len(pair.leaf.shapes) for pair in some}
        chosen = sum(len(pair.leaf.shapes) for pair in pairing.chosen)
        told.append(((sum(possible.values()), chosen), pairing))
    (one, first), (other, second) = told
    if one != other:
        return (first if one > other else second), True
    return pair_up(pairs), False


def _of_pair(pair: Pair, rivals: int, pairing: Pairing, told: bool, like: str) -> Proposal:
    numbers = [f"{{{letter}}}" for letter in _LETTERS[: len(pair.tensor.words) - 1]]
    others = [n for place, n in enumerate(numbers) if place != pair.stacked]
    leaf, tensor = _written(pair.leaf, others), _written(pair.tensor, numbers)
    # Where shapes do not tell, kernels are taken to be transposed, as in PyTorch, and others not.
    changes = dict(zip(pair.transposed, pair.layouts, strict=True))
    rule = Rule(
        leaf,
        joined_like(tensor, like),
        changes.get(pair.is_kernel, pair.layouts[0]) if len(changes) > 1 else pair.layouts[0],
    )
    notes = []
    if pair.is_kernel and len(set(next(iter(pair.leaf.shapes.values()))[-2:])) == 1:
        notes.append(
            f"square, and {'' if any(pair.transposed) else 'not '}transposed "
            + ("as the other kernels are" if told else "though no other kernel tells")
        )
    if pair in pairing.by_shape:
        notes.append("the shapes alone say so, not the names")
    elif rivals:
        notes.append("the names say so, the shapes leave others")
    said = tuple(f"{rule.leaf} from {rule.tensor}: {note}." for note in notes)
    return Proposal(rule, frozenset(pair.leaf.names), frozenset(pair.tensor.names), said)


_LETTERS = "nmklijabcdefgh"


def _written(family: Family, numbers: Sequence[str]) -> str:
    return family.names[0] if len(family.shapes) == 1 else family.name(numbers)


_FUSED = (("q", "k", "v"), ("k", "v"), ("gate", "up"))
_T = Transpose("o i -> i o")
_SPLITS: tuple[tuple[Change, ...], ...] = (
    (_T, Split(1)),
    (Split(1),),
    (Split(0),),
    (_T, Split(1), Rearrange("i (h k) -> i h k")),
    (Split(1), Rearrange("i (h k) -> i h k")),
    (Split(0), Rearrange("(h k) -> h k")),
)
_JOINS: tuple[tuple[Change, ...], ...] = ((_T, Concat(1)), (Concat(1),), (Concat(0),))


def _fused(leaves: Sequence[Family], tensors: Sequence[Family], like: str) -> Iterator[Proposal]:
    """Yields rules where one tensor makes several sisters, or several sisters one leaf."""
    for many, ones, changes in ((leaves, tensors, _SPLITS), (tensors, leaves, _JOINS)):
        used: set[int] = set()
        for sisters in _sisters(many):
            for one in ones:
                fits = [c for c in changes if _fits(sisters, one, c, split=many is leaves)]
                if fits and not used & {id(one), *map(id, sisters)}:
                    used |= {id(one), *map(id, sisters)}
                    yield _of_fused(sisters, one, fits[0], many is leaves, like)


def _sisters(some: Sequence[Family]) -> Iterator[list[Family]]:
    """Yields families that other models fuse into one tensor: query, key and value of one layer.

    Sisters stand in one module, have the same last key and the same numbers, and names that mean
    what ``_FUSED`` lists; they come in that order.
    """
    groups: dict[object, dict[str, Family]] = {}
    for family in some:
        head, _, last = family.name(["0"] * (len(family.words) - 1)).rpartition("/")
        above, _, module = head.rpartition("/")
        meant = next((meaning(word) for word in words(module)), "")
        groups.setdefault((above, last, tuple(family.shapes)), {})[meant] = family
    for group in groups.values():
        for names in _FUSED:
            if all(name in group for name in names):
                yield [group[name] for name in names]
                break


def _fits(
    sisters: Sequence[Family], one: Family, changes: tuple[Change, ...], *, split: bool
) -> bool:
    """Tells whether changes lead from the fused family's shapes to its sisters', or back.

    Args:
      sisters: the families that are separate.
      one: the family that holds all of them.
      changes: from tensors to leaves.
      split: whether the fused one is the tensor, and the sisters are leaves.
    """
    if set(one.shapes) != set(sisters[0].shapes):
        return False
    ends = Frame(1, False), Frame(len(sisters), False)
    layout = Layout(changes, *(ends if split else ends[::-1]))
    for numbers, shape in one.shapes.items():
        shapes = tuple(sister.shapes[numbers] for sister in sisters)
        before, after = ((shape,), shapes) if split else (shapes, (shape,))
        try:
            made = layout.forward(Grid(tuple((nothing_of(each),) for each in before)), after)
        except errors.FillError:
            return False
        if tuple(row[0].shape for row in made.rows) != after:
            return False
    return True


def _of_fused(
    sisters: Sequence[Family], one: Family, changes: tuple[Change, ...], split: bool, like: str
) -> Proposal:
    """Returns the rule between a fused family and its sisters; ``like`` is a name of a tensor."""
    numbers = [f"{{{letter}}}" for letter in _LETTERS[: len(one.words) - 1]]
    several = tuple(_written(sister, numbers) for sister in sisters)
    alone = _written(one, numbers)
    if split:
        rule = Rule(several, joined_like(alone, like), changes)
    else:
        rule = Rule(alone, tuple(joined_like(name, like) for name in several), changes)
    names = frozenset(name for sister in sisters for name in sister.names)
    mine, theirs = (names, frozenset(one.names)) if split else (frozenset(one.names), names)
    note = f"{rule.leaf} from {rule.tensor}: fused in this order, which shapes do not tell."
    return Proposal(rule, mine, theirs, (note,))
