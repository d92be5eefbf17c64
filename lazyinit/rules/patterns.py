"""Patterns of names: matched against a name, and written out again with what was captured.

``*`` stands for a part of one key, ``**`` for any number of keys, ``{n}`` for a number. Names are
compared with ``/`` between their keys; in a pattern ``.`` means the same.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lazyinit import errors


def slashed(name: str) -> str:
    """Returns the form in which names are compared: ``a.b`` and ``a/b`` are one name."""
    return name.replace(".", "/")


def joined_like(name: str, other: str) -> str:
    """Returns a ``/``-joined name as another one is joined."""
    return name.replace("/", ".") if "." in other and "/" not in other else name


@dataclass(frozen=True, slots=True)
class Captures:
    """What the wildcards and numbers of a pattern stood for in a name.

    Attributes:
      texts: of ``*`` and ``**``, in order.
      numbers: of ``{n}``, as ``(name, digits)``, in order.
    """

    texts: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]

    def without(self, number: str) -> "Captures":
        """Returns the same without one number."""
        return replace(self, numbers=tuple(n for n in self.numbers if n[0] != number))

    def having(self, number: str, digits: str) -> "Captures":
        """Returns the same with one number more."""
        return replace(self, numbers=(*self.without(number).numbers, (number, digits)))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern, compiled. Made by ``pattern``.

    Attributes:
      keys: its keys.
      regex: what it is as a regular expression over names whose keys are each followed by ``/``,
        so that a ``**`` that stands for no key at all leaves no stray ``/`` behind.
      wildcards: its ``*`` and ``**``, in order.
      numbers: the names of its numbers, in order, once each.
    """

    keys: tuple[str, ...]
    regex: re.Pattern[str]
    wildcards: tuple[str, ...]
    numbers: tuple[str, ...]

    @property
    def last(self) -> str:
        """The last key of all names that fit, or ``""`` if they may differ in it."""
        return "" if _ANY.search(self.keys[-1]) else self.keys[-1]

    def match(self, name: str) -> Captures | None:
        """Returns what is captured in a ``/``-joined name, or ``None`` if it does not fit."""
        found = self.regex.fullmatch(name + "/")
        if found is None:
            return None
        numbers = found.groupdict()
        if not numbers:
            return Captures(found.groups(), ())
        named = {self.regex.groupindex[number] for number in numbers}
        texts = (text for place, text in enumerate(found.groups(), 1) if place not in named)
        return Captures(tuple(texts), tuple((number, numbers[number]) for number in self.numbers))

    def write(self, captures: Captures) -> str:
        """Returns the ``/``-joined name; a number that was not captured is written ``{n}``."""
        texts, numbers = iter(captures.texts), dict(captures.numbers)
        return "".join(_written(key, texts, numbers) for key in self.keys).rstrip("/")


@functools.lru_cache(maxsize=4096)
def pattern(text: str) -> Pattern:
    """Returns the compiled form of a pattern."""
    keys = tuple(slashed(text).strip("/").split("/"))
    seen: list[str] = []
    regex = "".join(_regex(key, seen) for key in keys)
    return Pattern(keys, re.compile(regex), tuple(_WILDCARD.findall(text)), tuple(seen))


def check_alike(
    rule: object, some: Sequence[str], others: Sequence[str], *, apart: int = 1
) -> None:
    """Checks that patterns share their wildcards, and their numbers, but for one at most.

    Args:
      rule: what an error names.
      some: the patterns of one side; ``{n}`` is in all or in none.
      others: those of the other; none if there is no other side.
      apart: how many numbers one side may have that the other has not.

    Raises:
      FillError: they do not, or one is empty.
    """
    every = (*some, *others)
    shown = " and ".join(map(repr, every))
    if not some or not all(every) or len({pattern(each).wildcards for each in every}) > 1:
        raise errors.FillError(
            f"{rule}: wanted two patterns with the same wildcards in the same order, got {shown}. "
            "Write it as Rule('**/kernel', '**.weight')."
        )
    one, other = ({frozenset(pattern(p).numbers) for p in side} for side in (some, others or some))
    if len(one) > 1 or len(other) > 1 or len(one.pop() ^ other.pop()) > apart:
        raise errors.FillError(
            f"{rule}: wanted the same numbers in all patterns, but for one that is stacked or "
            f"unstacked, got {shown}. Write it as "
            "Rule('layers/kernel', 'h.{n}.weight', [Stack(axis=0)])."
        )


_WILDCARD = re.compile(r"\*\*|\*")
_ANY = re.compile(r"\*|\{([A-Za-z_]\w*)\}")


def _regex(key: str, seen: list[str]) -> str:
    if key == "**":
        return "((?:[^/]+/)*)"
    parts, end = [], 0
    for found in _ANY.finditer(key):
        parts.append(re.escape(key[end : found.start()]))
        end = found.end()
        number = found[1]
        if found[0] == "*":
            parts.append("([^/]*)")
        elif number in seen:
            parts.append(f"(?P={number})")
        else:
            seen.append(number)
            parts.append(f"(?P<{number}>0|[1-9][0-9]{{0,8}})")
    return "".join([*parts, re.escape(key[end:]), "/"])


def _written(key: str, texts: Iterator[str], numbers: Mapping[str, str]) -> str:
    if key == "**":
        return next(texts)
    return _ANY.sub(lambda f: next(texts) if f[0] == "*" else numbers.get(f[1], f[0]), key) + "/"
