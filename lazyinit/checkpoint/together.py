"""Lets one process write what several hold; all read the same tensors in the same order."""

from collections.abc import Callable, Iterable, Sequence, Set

import jax
import numpy as np

from lazyinit import errors
from lazyinit.sources import Source
from lazyinit.tensors.arrays import added_up
from lazyinit.tensors.pieces import Read, pieces


def write_together(
    sources: Sequence[Source], spread: Set[str], write: Callable[[Read], None]
) -> None:
    """Lets the first process write, while the others read with it what no process holds alone.

    Args:
      sources: the sources to write, in order; the same in every process.
      spread: the names of those sources that all processes must read together.
      write: writes the sources, given a function that reads one; called in the first process only.

    Raises:
      WriteError: in the other processes, if the first could not write. That one raises its own
        error.
    """
    # The first collective runs now, while all processes are here: in their first one, CPU devices
    # wait only 30 seconds for a late one, but in later ones as long as it takes.
    added_up(np.zeros(1, np.uint8))
    is_first = jax.process_index() == 0
    streams = {id(source): iter(pieces(source)) for source in sources}
    problems: list[Exception] = []
    if is_first:
        _collect(problems, lambda: write(lambda source: streams[id(source)]))
    # The first process has read all of them, unless it failed. It reads on then, as the others
    # would wait for it.
    for source in sources:
        if not spread.isdisjoint(source.names):
            _collect(problems, lambda source=source: _exhaust(streams[id(source)]))
    is_written = added_up(np.array([is_first and not problems]))
    if problems:
        raise problems[0]
    if not is_written.any():
        raise errors.WriteError(
            "save: wanted the first process to write the checkpoint, but it failed. Its own error "
            "says why. What was there before is unchanged."
        )


def _collect(problems: list[Exception], do: Callable[[], None]) -> None:
    try:
        do()
    except Exception as error:  # Whatever it is, the other processes must not wait for this one.
        problems.append(error)


def _exhaust(stream: Iterable[object]) -> None:
    for _ in stream:
        pass
