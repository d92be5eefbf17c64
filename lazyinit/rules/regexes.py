"""Reads regular expressions as patterns, as far as tables of tensor names use them.

A regular expression and its replacement come in. Pairs of patterns that mean the same go out: one
pair for each choice of alternatives and optional parts.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lazyinit import errors
from lazyinit.patterns import slashed

_MOST_WAYS = 256


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to match a part of an expression: a pattern, and the piece in each group.

    Attributes:
      text: the pattern.
      groups: the name or number of each group, with the piece of the pattern that it captures.
    """

    text: str = ""
    groups: tuple[tuple[str, str], ...] = ()

    def then(self, other: "_Way") -> "_Way":
        """Returns this way followed by another."""
        return _Way(self.text + other.text, self.groups + other.groups)


def read_regex(regex: str, template: str) -> list[tuple[str, str]]:
    r"""Returns pairs of patterns, for old and new names, that do what ``re.sub`` would do.

    A ``.`` without a backslash is read as a dot, and the whole name has to fit. ``[0-9]+`` and
    ``\d+`` become numbers, ``[^.]+`` and ``\w+`` a part of a key, ``.*`` any number of keys.

    Raises:
      FillError: the expression contains anything but these, plain text, groups, alternatives and
        ``?``, or the template names a group that the expression lacks.

    Example:
      >>> read_regex(r"h\.(\d+)\.(up|down)\.weight", r"layers.\1.\2.k")
      [('h.{n}.up.weight', 'layers.{n}.up.k'), ('h.{n}.down.weight', 'layers.{n}.down.k')]
    """
    ways = _Reader(regex).read()
    for way in ways:
        if any("**" in key != "**" for key in slashed(way.text).split("/")):
            raise errors.FillError(f"wanted '.*' to stand for whole keys, got {way.text!r}")
    return [(way.text, _template_as_pattern(template, dict(way.groups))) for way in ways]


def _template_as_pattern(template: str, groups: dict[str, str]) -> str:
    r"""Returns the replacement of a regular expression as a pattern.

    Args:
      template: the replacement, as ``re.sub`` takes it, with ``\1`` or ``\g<name>`` for groups.
      groups: for the number or name of each group, the piece of the pattern that it captures, such
        as ``{n}``; it is written in place of the group.

    Raises:
      FillError: the template names a group that is not among them.
    """

    def group(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if found[3] is not None:
            return _PATTERNS_OWN.sub(r"\\\g<0>", found[3])
        if name not in groups:
            raise errors.FillError(f"{template!r} names group {name}, which the expression lacks")
        return groups[name]

    return re.sub(r"\\(\d+)|\\g<(\w+)>|\\(.)", group, template)


class _Reader:
    """Reads one expression from its first character to its last."""

    def __init__(self, regex: str) -> None:
        self._regex, self._at, self._groups, self._numbers = regex, 0, 0, 0

    def read(self) -> Sequence[_Way]:
        ways = self._alternatives()
        if self._at < len(self._regex):
            raise self._refused("an opening parenthesis before it")
        return ways

    def _alternatives(self) -> list[_Way]:
        """Reads alternatives, up to a closing parenthesis or the end."""
        numbers = self._numbers
        ways, most = self._sequence(), self._numbers
        while self._take("|"):
            # A name fits one alternative only, so all of them number ``{n}`` from the same start.
            self._numbers = numbers
            ways = [*ways, *self._sequence()]
            most = max(most, self._numbers)
        self._numbers = most
        unused = {name: "" for way in ways for name, _ in way.groups}  # ``re.sub`` writes "", too.
        return [replace(w, groups=tuple((unused | dict(w.groups)).items())) for w in ways]

    def _sequence(self) -> list[_Way]:
        """Reads one alternative: its parts one after the other."""
        ways = [_Way()]
        while self._at < len(self._regex) and self._regex[self._at] not in "|)":
            ways = [one.then(two) for one, two in itertools.product(ways, self._part())]
            if len(ways) > _MOST_WAYS:
                raise self._refused(f"at most {_MOST_WAYS} ways to fit")
        return ways

    def _part(self) -> Iterable[_Way]:
        """Reads one part: a wildcard, a group, an anchor or a plain character."""
        for wild, make in _WILD:
            if found := wild.match(self._regex, self._at):
                self._at = found.end()
                return [_Way(make or self._number())]
        if self._take("("):
            return self._optional(self._group())
        if found := _ANCHOR.match(self._regex, self._at):
            self._at = found.end()
            return [_Way()]
        found = _PLAIN.match(self._regex, self._at)
        if found is None:
            raise self._refused("plain text, a number, a group or an alternative")
        self._at = found.end()
        return self._optional([_Way(found[1] or _PATTERNS_OWN.sub(r"\\\g<0>", found[2]))])

    def _number(self) -> str:
        self._numbers += 1
        return f"{{n{self._numbers if self._numbers > 1 else ''}}}"

    def _group(self) -> list[_Way]:
        """Reads the rest of a group after its parenthesis; it may have a name, a number or none."""
        names: list[str] = []
        if found := _NAMED.match(self._regex, self._at):
            self._at = found.end()
            names = [found[1]]
        if names or not self._take("?:"):
            self._groups += 1
            names.append(str(self._groups))
        ways = self._alternatives()
        if not self._take(")"):
            raise self._refused("a closing parenthesis")
        return [replace(w, groups=(*w.groups, *((name, w.text) for name in names))) for w in ways]

    def _optional(self, ways: list[_Way]) -> list[_Way]:
        """Returns the ways of a part; if a ``?`` follows, leaving it out is the first of them."""
        if not self._take("?"):
            return ways
        groups = {name: "" for way in ways for name, _ in way.groups}
        return [_Way("", tuple(groups.items())), *ways]

    def _take(self, text: str) -> bool:
        found = self._regex.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _refused(self, wanted: str) -> errors.FillError:
        rest = self._regex[self._at :]
        return errors.FillError(
            f"wanted {wanted}, got {rest!r}" if rest else f"wanted {wanted} at its end"
        )


_WILD = (
    (re.compile(r"(?:\[0-9\]|\\d)\+"), ""),
    (re.compile(r"(?:\[\^\\?[./]\]|\\w)[+*]\??"), "*"),
    (re.compile(r"\.[*+]\??"), "**"),
)
_ANCHOR = re.compile(r"\^|\$|\\Z|\\A")
_NAMED = re.compile(r"\?P<(\w+)>")
# One plain character; the only quantifier that may follow it is ``?``.
_PLAIN = re.compile(r"(?:([\w\-/:.])|\\([^\w\s]))(?![*+{])")
_PATTERNS_OWN = re.compile(r"[\\*?\[{]")  # Characters that have a meaning in patterns.
