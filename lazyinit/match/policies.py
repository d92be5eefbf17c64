"""Policies: what is done with a leaf or a tensor that has no counterpart, or one that does not fit.

An argument such as ``on_missing`` comes in, and what to do in each case goes out. A policy is one
word for all cases, a callable that decides each, or a mapping from globs to either. A case that no
glob of a mapping matches is an error, so that nothing is decided by accident.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from lazyinit import errors, paths
from lazyinit.patterns import glob, slashed
from lazyinit.sources import Source

MissingWord: TypeAlias = Literal["warn", "init", "error"]
UnexpectedWord: TypeAlias = Literal["report", "ignore", "error"]
MismatchWord: TypeAlias = Literal["error", "init"]
CastWord: TypeAlias = Literal["report", "overflow", "lossless", "error"]

# Any: the leaf that is asked about, and the leaf that a callable returns to replace it.
_DecideMissing: TypeAlias = Callable[[str, Any], MissingWord]
_DecideUnexpected: TypeAlias = Callable[[str, Source], UnexpectedWord]
_DecideMismatch: TypeAlias = Callable[[str, Any, Source], Any]
_DecideCast: TypeAlias = Callable[[str, Any, Source], CastWord]

OnMissing: TypeAlias = (
    MissingWord | _DecideMissing | Mapping[str, MissingWord | _DecideMissing]
)  # fmt: skip
OnUnexpected: TypeAlias = (
    UnexpectedWord | _DecideUnexpected | Mapping[str, UnexpectedWord | _DecideUnexpected]
)
OnMismatch: TypeAlias = (
    MismatchWord | _DecideMismatch | Mapping[str, MismatchWord | _DecideMismatch]
)
OnCast: TypeAlias = CastWord | _DecideCast | Mapping[str, CastWord | _DecideCast]


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy of ``fill``, whose words and globs are known to be valid.

    Attributes:
      argument: the name of the argument: ``"on_missing"``.
      words: the words that it allows.
      choices: globs, each with a word or a callable; one choice for all has the glob ``"**"``.
    """

    argument: str
    words: tuple[str, ...]
    choices: tuple[tuple[str, str | Callable[..., Any]], ...]

    @classmethod
    def of(
        cls, argument: str, given: object, words: tuple[str, ...], known: Sequence[str]
    ) -> "Policy":
        """Returns the policy for an argument of ``fill``.

        Args:
          argument: its name.
          given: its value: a word, a callable, or a mapping from globs to either.
          words: the words that are allowed, as a value and as a callable's answer.
          known: the paths, or names of tensors, that globs select from.

        Raises:
          FillError: the value is no word, callable or mapping from globs to these.
          PathError: a glob matches nothing that is known.
        """
        if not isinstance(given, Mapping):
            return cls(argument, words, (("**", _checked(argument, given, words)),))
        choices = []
        for pattern, choice in given.items():
            if not isinstance(pattern, str):
                raise errors.FillError(
                    f"{argument}: wanted a mapping from globs such as 'params/head/**', got one "
                    f"from {pattern!r}. Write each glob as a string."
                )
            choices.append((pattern, _checked(f"{argument}[{pattern!r}]", choice, words)))
            selects = glob(slashed(pattern)).selects
            if pattern != "**" and not any(map(selects, map(slashed, known))):
                raise errors.PathError(
                    f"{argument}[{pattern!r}]: {paths.nothing_matches(pattern, known)}"
                )
        return cls(argument, words, tuple(choices))

    def decide(self, path: str, *case: Any) -> Any:
        """Returns what to do in one case: a word, or what a callable returned in place of one.

        The first glob that matches the path decides; if none does, it is ``"error"``.

        Args:
          path: the path of the leaf, or the name of the tensor.
          *case: what a callable gets besides: the leaf, the source. Without any, the answer is
            ``"error"`` where a callable would decide.

        Raises:
          FillError: a callable raised it to refuse the case.
        """
        name = slashed(path)
        for pattern, choice in self.choices:
            if glob(slashed(pattern)).selects(name):
                if isinstance(choice, str):
                    return choice
                return choice(path, *case) if case else "error"
        return "error"

    def refuse(self, path: str, answer: object, others: str = "") -> str:
        """Returns the message for an answer that is not one of the words (nor of ``others``)."""
        return (
            f"{path}: wanted {self.argument} to return one of "
            f"{', '.join(map(repr, self.words))}{others}, got {answer!r:.80}."
        )

    def knows(self, answer: object) -> bool:
        """Tells whether an answer is one of the words."""
        return isinstance(answer, str) and answer in self.words


def _checked(argument: str, choice: object, words: Iterable[str]) -> Any:
    """Returns a word or a callable, and raises a ``FillError`` for anything else."""
    if (isinstance(choice, str) and choice in words) or callable(choice):
        return choice
    raise errors.FillError(
        f"{argument}: wanted one of {', '.join(map(repr, words))}, a callable, or a mapping from "
        f"globs to these, got {choice!r:.80}."
    )
