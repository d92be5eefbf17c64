"""What tests of checkpoints do with them: read all of a tensor, or see that a file is refused."""

import re

import pytest

from lazyinit import errors
from lazyinit.checkpoint.opening import open_checkpoint


def everything(source):
    """Returns all values of a source."""
    return source.read((slice(None),) * len(source.shape))


def refused(path, message, *, first=None, **how):
    """Checks that what is at a path is not opened; returns the error, which begins with the path.

    Args:
      path: of a file or a folder.
      message: a regular expression for a part of the error.
      first: what the error begins with instead: a file in a folder.
      **how: more arguments of ``open_checkpoint``.
    """
    with pytest.raises(errors.CheckpointError, match=message) as caught:
        open_checkpoint(path, **how)
    assert str(caught.value).startswith(f"{first or path}: "), str(caught.value)
    return str(caught.value)


def refused_in(ask, *parts):
    """Checks that a call raises an error of these parts in order, the first at its start."""
    with pytest.raises(errors.CheckpointError) as caught:
        ask()
    pattern = "[\\s\\S]*".join(map(re.escape, parts))
    assert re.match(pattern, str(caught.value)), str(caught.value)
