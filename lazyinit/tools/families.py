"""Groups names into families that differ in their numbers alone, and families into sisters.

Names with their shapes come in, and families go out. A leaf that every layer has is one family,
so that one rule can serve all layers. *Sisters* are families that other models fuse into one
tensor: the query, the key and the value of one module.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lazyinit.sources import Shape
from lazyinit.tools.words import meaning, words

Numbers = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Names that differ in their numbers alone.

    Attributes:
      words: the text around the numbers: ``("layers_", "/kernel")``.
      shapes: the shape of each name, by the numbers in it.
    """

    words: tuple[str, ...]
    shapes: Mapping[Numbers, Shape] = field(hash=False)

    def name(self, numbers: Sequence[object]) -> str:
        """Returns the name with these numbers, or with what stands for them."""
        rest = "".join(f"{n}{word}" for n, word in zip(numbers, self.words[1:], strict=True))
        return self.words[0] + rest

    @property
    def text(self) -> str:
        """The name without its numbers: its words, with spaces between them."""
        return " ".join(self.words)

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they were given."""
        return [self.name(numbers) for numbers in self.shapes]

    @property
    def keys(self) -> list[str]:
        """The keys of the names, with ``0`` for each number."""
        return re.split(r"[/.]", self.name(["0"] * (len(self.words) - 1)))

    @property
    def scope(self) -> tuple[str, ...]:
        """The texts between the numbers, up to the last number; they tell the kind of layer."""
        return tuple(_NUMBER.split(self.name(["0"] * (len(self.words) - 1)))[:-2:2])

    @property
    def rank(self) -> int:
        """The number of axes of each shape."""
        return len(next(iter(self.shapes.values())))


_NUMBER = re.compile(r"(?<![A-Za-z0-9])(0|[1-9][0-9]{0,8})(?![A-Za-z0-9])")


def families(shapes: Mapping[str, Shape], *, numbered: bool) -> list[Family]:
    """Returns the families of names; unless ``numbered``, each name is a family by itself."""
    found: dict[tuple[tuple[str, ...], int], dict[Numbers, Shape]] = {}
    for name, shape in shapes.items():
        parts = _NUMBER.split(name) if numbered else [name]
        key = tuple(parts[::2]), len(shape)
        found.setdefault(key, {})[tuple(map(int, parts[1::2]))] = shape
    return [Family(words, of) for (words, _), of in found.items()]


def numbers_differ(one: Family, other: Family) -> bool:
    """Tells whether each family's first name has a number that the other's lacks."""
    some, others = (_NUMBER.split(family.names[0])[1::2] for family in (one, other))
    return not (_holds(some, others) or _holds(others, some))


def _holds(these: Sequence[str], those: Sequence[str]) -> bool:
    """Tells whether all of ``those`` are among ``these``, in the same order."""
    rest = iter(these)
    return all(number in rest for number in those)


_FUSED = (("q", "k", "v"), ("k", "v"), ("gate", "up"))


def sisters(some: Sequence[Family]) -> Iterator[tuple[Family, ...]]:
    """Yields groups of families that other models fuse into one tensor, in the order of fusing.

    Sisters have the same numbers, and names that differ in one word: query, key and value, or
    gate and up.
    """
    groups: dict[object, dict[str, Family]] = {}
    for family in some:
        part, rest = _part(family)
        groups.setdefault((rest, tuple(family.shapes)), {})[part] = family
    for group in groups.values():
        for names in _FUSED:
            if all(name in group for name in names):
                yield tuple(group[name] for name in names)
                break


def _part(family: Family) -> tuple[str, tuple[str, ...]]:
    """Returns which part of a fused tensor a family would be (``"q"``), and its other words.

    The part is ``""`` if the name has no such word.
    """
    keys = family.keys
    for place in range(len(keys) - 1, max(len(keys) - 3, -1), -1):
        first, *others = words(keys[place]) or [""]
        if any(meaning(first) in names for names in _FUSED):
            return meaning(first), (*keys[:place], " ".join(others), *keys[place + 1 :])
    return "", tuple(keys)


def says_fused(one: Family, sisters: Sequence[Family]) -> bool:
    """Tells whether a family's name says that it fuses these sisters: ``qkv_proj``, ``gate_up``."""
    parts = [_part(sister)[0] for sister in sisters]
    said = [word for key in one.keys[-2:] for word in words(key)]
    meant = [meaning(word) for word in said]
    return "".join(parts) in said or any(
        meant[n : n + len(parts)] == parts for n in range(len(meant))
    )
