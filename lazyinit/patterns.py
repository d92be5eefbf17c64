"""The pattern language: globs that select paths, and the patterns of rules. One engine reads both.

A text comes in, and a ``Pattern`` goes out, which matches names. A name is a sequence of keys
with ``/`` between them. In every pattern ``*`` stands for a part of one key, and the key ``**``
for any number of keys. Beyond that, globs and the patterns of rules differ:

- ``glob`` reads what ``paths``, sharding rules and policies take. It selects a subtree by its
  root, and knows ``?`` and ``[...]`` as a shell does. Here ``.`` is a character like any other.
- ``pattern`` reads what rules take. It fits a whole name, ``{n}`` stands for a number, and ``.``
  means the same as ``/``. Here ``?`` and ``[`` are plain characters, as tensors may have them in
  their names. Another pattern can write out what the wildcards captured in a name.

In both, a backslash before a character with a meaning in either makes it a plain character;
``escape`` does this for any name. A ``/`` at the start or the end of a pattern means nothing; with
a backslash it belongs to the name.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lazyinit import errors


def slashed(name: str) -> str:
    """Returns a name with ``/`` for each ``.``: names are compared in this form."""
    return name.replace(".", "/")


def joined_like(name: str, other: str) -> str:
    """Returns a ``/``-joined name, but joined by ``.`` if the other name is."""
    return name.replace("/", ".") if "." in other and "/" not in other else name


@dataclass(frozen=True, slots=True)
class Captures:
    """What the wildcards and numbers of a pattern stood for in a name.

    Attributes:
      texts: what each wildcard stood for, in order.
      numbers: what each ``{n}`` stood for, as ``(name, digits)``, in order.
    """

    texts: tuple[str, ...]
    numbers: tuple[tuple[str, str], ...]

    def without(self, number: str) -> "Captures":
        """Returns the same captures without one number."""
        return replace(self, numbers=tuple(n for n in self.numbers if n[0] != number))

    def having(self, number: str, digits: str) -> "Captures":
        """Returns the same captures with one number added or replaced."""
        return replace(self, numbers=(*self.without(number).numbers, (number, digits)))


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern; ``glob`` and ``pattern`` make it.

    Attributes:
      parts: the pattern's text, cut so that plain text (without backslashes) is at even indices,
        and wildcards and numbers at odd ones. A ``/`` follows each key, the last one too; the
        ``/`` after a ``**`` belongs to the wildcard.
      regex: the regular expression for names in which a ``/`` follows each key, so that a ``**``
        that stands for no key leaves no stray ``/`` behind.
      last: the last key of all names that fit, or ``""`` if it may differ.
    """

    parts: tuple[str, ...]
    regex: re.Pattern[str]
    last: str

    @property
    def wildcards(self) -> tuple[str, ...]:
        """The pattern's wildcards, in order."""
        return tuple(part.removesuffix("/") for part in self.parts[1::2] if part[0] != "{")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the pattern's numbers, in order, once each."""
        return tuple(self.regex.groupindex)

    def selects(self, path: str) -> bool:
        """Tells whether a glob fits the path of a leaf, or of a subtree that contains the leaf."""
        return self.regex.match(path + "/") is not None

    def match(self, name: str) -> Captures | None:
        """Returns the captures of a whole ``/``-joined name, or ``None`` if it does not fit."""
        found = self.regex.fullmatch(name + "/")
        if found is None:
            return None
        named = self.regex.groupindex
        if not named:
            return Captures(found.groups(), ())
        places = set(named.values())
        texts = (text for place, text in enumerate(found.groups(), 1) if place not in places)
        return Captures(tuple(texts), tuple((number, found[number]) for number in named))

    def write(self, captures: Captures) -> str:
        """Returns the ``/``-joined name with these captures; a number not among them stays ``{n}``.

        Args:
          captures: what each wildcard of this pattern stands for, and numbers by their names.
        """
        texts, numbers = iter(captures.texts), dict(captures.numbers)
        written = ""
        for place, part in enumerate(self.parts):
            if not place % 2:
                written += part
            else:
                written += numbers.get(part[1:-1], part) if part[0] == "{" else next(texts)
        return written.removesuffix("/")

    def sample(self) -> str:
        """Returns a name that fits this pattern, made of text that stands in no other pattern.

        So another pattern fits that name only if it fits all names that fit this pattern.
        """
        texts = {"*": _SAMPLE, "**/": f"{_SAMPLE}/{_SAMPLE}/"}
        wild = (texts.get(part, "") for part in self.parts[1::2] if part[0] != "{")
        return self.write(Captures(tuple(wild), tuple((n, _SAMPLE_NUMBER) for n in self.numbers)))


@functools.lru_cache(maxsize=4096)
def glob(text: str) -> Pattern:
    """Compiles a glob over paths.

    Raises:
      PathError: a class such as ``[b-a]`` has its end before its start.

    >>> glob("params/head").selects("params/head/kernel")
    True
    >>> glob("params/**/kernel").selects("params/kernel")
    True
    >>> glob("params/*/kernel").selects("params/a/b/kernel")
    False
    """
    try:
        return _compiled(text, _IN_GLOBS)
    except re.error as error:
        raise errors.PathError(
            f"{text}: wanted a glob, got one with a class that cannot be read: {error.msg}. Write "
            "a range from its first character to its last, as in '[a-z]'. If the bracket belongs "
            "to a name, write it as r'\\['."
        ) from error


def escape(name: str) -> str:
    r"""Returns a pattern that fits exactly one path or name, whatever characters the name has.

    The pattern can be used in ``paths``, sharding rules and policies, where it also selects the
    subtree below that path, and in ``Rule``, ``Rename`` and ``Ignore``.

    Args:
      name: a path of the tree, or the name of a tensor in a checkpoint.

    Returns:
      The name with a backslash before each character that means something in patterns, and before
      a ``/`` or ``.`` at its beginning and at its end.

    Example:
      >>> escape("blocks[0].*")
      'blocks\\[0].\\*'
      >>> print(escape("/w{n}/"))
      \/w\{n}\/
    """
    text = re.sub(r"[\\\[*?{]", r"\\\g<0>", name)
    if text[-1:] in ("/", "."):
        text = f"{text[:-1]}\\{text[-1]}"
    return f"\\{text}" if text[:1] in ("/", ".") else text


@functools.lru_cache(maxsize=4096)
def pattern(text: str) -> Pattern:
    """Compiles a pattern of a rule.

    >>> captures = pattern("layers/{n}/*/kernel").match("layers/3/up/kernel")
    >>> pattern("h.{n}.*.weight").write(captures)
    'h/3/up/weight'
    """
    return _compiled(slashed(text), _IN_RULES)


# What splits a pattern: an escaped character, a key ``**``, or another wildcard or number. Numbers
# have names that a group of a regular expression may have.
_ESCAPED = r"\\[\\*?\[\]{}./]"
_IN_GLOBS = re.compile(rf"({_ESCAPED}|(?<![^/])\*\*/|\*|\?|\[[^\]/]+\])")
_IN_RULES = re.compile(rf"({_ESCAPED}|(?<![^/])\*\*/|\*|\{{[A-Za-z_]\w*\}})")
_REGEX = {"**/": "((?:[^/]*/)*)", "*": "([^/]*)", "?": "([^/])"}
# Captures a pattern without the slashes at its ends, unless a backslash stands before them.
_BARE = re.compile(r"/*((?:\\.|[^\\]|\\(?=\Z))*?)/*", re.DOTALL)
_ENDS_WITH_BACKSLASH = re.compile(r"(?<!\\)(?:\\\\)*\\\Z")
_SAMPLE, _SAMPLE_NUMBER = "\ue000", "918273645"  # Text that no name is expected to have.


def _compiled(text: str, wild: re.Pattern[str]) -> Pattern:
    """Returns the pattern of a text; ``wild`` finds the parts of it that are not plain text."""
    bare = _BARE.fullmatch(text)
    assert bare is not None, text  # _BARE matches any text.
    parts = [""]
    # A backslash at the end would escape the "/" that is added. With a second backslash before it
    # it is a plain character.
    ends_so = _ENDS_WITH_BACKSLASH.search(bare[1])
    for place, part in enumerate(wild.split(bare[1] + ("\\/" if ends_so else "/"))):
        if place % 2 and part[0] != "\\":
            parts += [part, ""]
        else:
            parts[-1] += part[1:] if place % 2 else part
    regex, numbers = "", set[str]()
    for place, part in enumerate(parts):
        if not place % 2:
            regex += re.escape(part)
        elif part[0] == "{":
            number = part[1:-1]
            regex += f"(?P={number})" if number in numbers else f"(?P<{number}>{_NUMBER})"
            numbers.add(number)
        else:
            regex += _REGEX.get(part) or _one_of(part)
    _, slash, last = parts[-1].removesuffix("/").rpartition("/")
    is_whole = bool(slash) or len(parts) == 1 or parts[-2] == "**/"
    return Pattern(tuple(parts), re.compile(regex), last if is_whole else "")


_NUMBER = "0|[1-9][0-9]{0,8}"


def _one_of(part: str) -> str:
    """Returns the regular expression for one character of a class such as ``[a-c]``."""
    negated = part.startswith("[!")
    members = re.escape(part[1 + negated : -1]).replace(r"\-", "-")
    return f"([{'^/' if negated else ''}{members}])"


def check_alike(
    rule: object, some: Sequence[str], others: Sequence[str], *, apart: int = 1
) -> None:
    """Checks that the patterns of a rule have the same wildcards, and the same numbers but one.

    Args:
      rule: the rule, for the error to name.
      some: the patterns of one side; all of them have the same numbers.
      others: the patterns of the other side; empty if there is no other side.
      apart: how many numbers may be on one side alone.

    Raises:
      FillError: wildcards or numbers differ, or a pattern is empty.
    """
    every = (*some, *others)
    shown = " and ".join(map(repr, every))
    if not some or not all(every) or len({pattern(each).wildcards for each in every}) > 1:
        raise errors.FillError(
            f"{rule}: wanted two patterns with the same wildcards in the same order, got {shown}. "
            "Write the rule as Rule('**/kernel', '**.weight'). If a '*' or '{' belongs to a name, "
            "write a backslash before it, as lazyinit.escape does."
        )
    one, other = ({frozenset(pattern(p).numbers) for p in side} for side in (some, others or some))
    if len(one) > 1 or len(other) > 1 or len(one.pop() ^ other.pop()) > apart:
        raise errors.FillError(
            f"{rule}: wanted the same numbers in all patterns, except for one that is stacked or "
            f"unstacked, got {shown}. Write the rule as "
            "Rule('layers/kernel', 'h.{n}.weight', [Stack(axis=0)])."
        )
