"""Every exception of the package, and the pieces that messages share.

A message names the place first: a path, a file or an argument. Then it says what was wanted, what
was got instead, and what the user can do about it. Each error is a ``LazyinitError`` and also the
built-in error that fits, so that code which knows nothing of this package can catch it.
"""

import difflib
import inspect
import os
import pickle
import sys
import warnings
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
    """A thunk that was asked for an attribute of arrays; ``hasattr`` answers False."""


class PicklingError(LazyinitError, pickle.PicklingError, TypeError):
    """A leaf that cannot be pickled, or a pickled one that this version of JAX cannot read."""


class CheckpointError(LazyinitError, ValueError):
    """A checkpoint that is broken, unsafe or of an unknown format. The message names the file."""


class FillError(LazyinitError, ValueError):
    """Tensors of a checkpoint and leaves of a tree that do not fit together."""


class CastError(LazyinitError, OverflowError):
    """A value of a checkpoint that the dtype of its leaf cannot hold. No array was made."""


class SaveError(LazyinitError, ValueError):
    """A tree, or tensors, that cannot be written as asked. Nothing has been written."""


class UpdateError(LazyinitError, RuntimeError):
    """An update that failed half-way. Each leaf of ``tree`` is the new array or the old one."""

    def __init__(self, message: str, tree: object = None) -> None:
        """Takes the message, and the tree as it is now."""
        super().__init__(message)
        self.tree = tree


class PlanError(LazyinitError, ValueError):
    """A size, an optimizer or a number of hosts with which ``plan`` cannot count."""


class WordError(LazyinitError, ValueError):
    """An argument that is not one of the few values that it may have."""


class BitsError(LazyinitError, ValueError):
    """A leaf whose bits differ from those of eager JAX. That is a fault of this package."""


class HostsError(LazyinitError, RuntimeError):
    """Processes that are about to do different things. Each of them raises this error at once."""


class HostAbsentError(HostsError, TimeoutError):
    """A process that the others waited for, and that failed or did not make their call in time."""


class DigestError(LazyinitError, TypeError):
    """A leaf whose values have no digest, or text that is no digest."""


class LazyinitWarning(UserWarning):
    """Something worth knowing: that a slower way is taken, say, or that a version is not tested."""


class WriteError(LazyinitError, OSError):
    """A file that cannot be written, for lack of space or permission. The old file is unchanged."""


_PACKAGE = os.path.dirname(__file__) + os.sep


def warn(message: str) -> None:
    """Gives one warning, with the line of the user's code that called this package."""
    if sys.version_info >= (3, 12):
        warnings.warn(message, LazyinitWarning, skip_file_prefixes=(_PACKAGE,))
    else:  # Drop with Python 3.11.
        frame, level = inspect.currentframe(), 1
        while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
            frame, level = frame.f_back, level + 1
        warnings.warn(message, LazyinitWarning, stacklevel=level)


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
    """Returns the first ten problems, one on each line, and how many more there are."""
    shown = "\n".join(problems[:_SHOWN])
    more = len(problems) - _SHOWN
    return shown if more <= 0 else f"{shown}\n... and {more} more"
