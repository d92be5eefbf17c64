"""Every exception of the package.

A message says where first (a path, a file or an argument), then what was wanted, what was
got, and the way out.
"""

import difflib
import pickle
from collections.abc import Collection, Sequence

_SHOWN = 10


class LazyinitError(Exception):
    """The base of every error that this package raises on purpose."""


class PathError(LazyinitError, LookupError, ValueError):
    """A path or pattern that names no leaf of the tree."""


class ShardingError(LazyinitError, ValueError):
    """A sharding that does not fit a leaf, or a sharding argument of the wrong kind."""


class RngsError(LazyinitError, TypeError):
    """A PRNG key, or a dict of them, of the wrong kind."""


class RecordError(LazyinitError, TypeError):
    """A model whose initialization cannot be traced."""


class AbstractInputError(LazyinitError, ValueError):
    """A leaf whose initial value depends on an input that was given as a shape alone."""


class NotMaterializedError(LazyinitError, TypeError):
    """A thunk that was used as if it were an array."""


class NoArrayAttributeError(NotMaterializedError, AttributeError):
    """A thunk that was asked for what only an array has; ``hasattr`` takes it for a no."""


class PicklingError(LazyinitError, pickle.PicklingError, TypeError):
    """A leaf that cannot be pickled, or a pickled one that this version of JAX cannot read."""


class CheckpointError(LazyinitError, ValueError):
    """A checkpoint that is broken, unsafe or of an unknown format; the file comes first."""


class FillError(LazyinitError, ValueError):
    """Tensors of a checkpoint and leaves of a tree that do not fit together."""


class SaveError(LazyinitError, ValueError):
    """A tree, or tensors, that cannot be written as asked; nothing has been."""


class WordError(LazyinitError, ValueError):
    """An argument that takes one of a few words, and was given another."""


class BitsError(LazyinitError, ValueError):
    """A leaf whose bits are not those that eager JAX gives it: a fault of this package."""


class LazyinitWarning(UserWarning):
    """What is worth knowing and stops nothing: a slower way, a version that nobody tested."""


class WriteError(LazyinitError, OSError):
    """A file that cannot be written: no space, no permission; what was there before still is."""


def nearest(wanted: str, known: Collection[str]) -> str:
    """Returns ``"; did you mean '...'?"`` for the closest known string, or ``""``."""
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_word(argument: str, word: object, words: Sequence[str]) -> None:
    """Checks that an argument is one of the words that it may be.

    Raises:
      WordError: it is not; the message names the words, and the nearest one.
    """
    if word not in words:
        raise WordError(
            f"{argument}: wanted one of {', '.join(map(repr, words))}, got {word!r}"
            f"{nearest(str(word), words)}"
        )


def listing(problems: Sequence[str]) -> str:
    """Joins problems, one a line: the first ten, and how many more there are."""
    shown = "\n".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return shown if more <= 0 else f"{shown}\n... and {more} more"
