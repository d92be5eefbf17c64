"""Shows progress: what a verb is doing now, and how much of it is done.

The verbs report the bytes that they have done, from the thread that called them. A few times a
second their report goes to a bar in a terminal or a notebook, or to the user's own function.
"""

import contextlib
import html
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from lazyinit import errors
from lazyinit.sources import Source
from lazyinit.tensors.pieces import Read, pieces
from lazyinit.view.table import format_bytes

Action: TypeAlias = Literal["compile", "make", "move", "read", "write"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a verb is: the argument of the callback in ``progress=callback``.

    The callback is called at most ten times a second, and once when all bytes are done, on the
    thread that called the verb. An error that it raises ends the verb, as an error of reading or
    writing would: no array is returned, and the checkpoint that was there before is unchanged.
    (With ``format="orbax"``, the folder is already written when the last call comes.)

    Attributes:
      action: what is done now: ``"compile"``, ``"make"``, ``"move"``, ``"read"`` or ``"write"``.
      path: the path of the leaf, or the name of the tensor, with which it is done.
      done_bytes: the bytes of arrays made, or of values written, so far.
      total_bytes: the bytes of everything that the verb was asked for.

    Example:
      >>> import jax.numpy as jnp, numpy as np, lazyinit as li
      >>> model, _ = li.update({"b": jnp.zeros(3)}, {"b": np.ones(3)}, progress=print)
      Progress(action='read', path='b', done_bytes=12, total_bytes=12)
    """

    action: Action
    path: str
    done_bytes: int
    total_bytes: int


ProgressLike: TypeAlias = bool | Callable[[Progress], None]
"""Whether to show a bar, or a function to call instead."""

Tell: TypeAlias = Callable[[Action, str, int], None]
"""A function that is told what was done, to which leaf or tensor, and how many more bytes."""

_PAUSE = 0.1  # Seconds between two updates.


def silent(action: Action, path: str, nbytes: int) -> None:
    """Shows no progress."""


def check_progress(progress: object) -> None:
    """Checks the ``progress`` argument of a verb.

    Raises:
      WordError: ``progress`` is neither a bool nor a callable.
    """
    if not isinstance(progress, bool) and not callable(progress):
        raise errors.WordError(
            f"progress: wanted True, False or a function that takes a lazyinit.Progress, got "
            f"{progress!r:.80}."
        )


@contextlib.contextmanager
def reporting(progress: ProgressLike, total: int) -> Iterator[Tell]:
    """Gives a verb the function to which it reports its progress, within a ``with`` block.

    Args:
      progress: whether to show a bar, if there is a terminal or a notebook; or a callback.
      total: the bytes of all that is to be done.

    Raises:
      WordError: ``progress`` is neither a bool nor a callable.
    """
    check_progress(progress)
    if progress is False:
        yield silent
    elif progress is True:
        with _display(total) as show:
            yield silent if show is None else _Throttled(show, total)
    else:
        yield _Throttled(progress, total)


class _Throttled:
    """Adds up the bytes that are done, and shows them at most ten times a second."""

    def __init__(self, show: Callable[[Progress], None], total: int) -> None:
        self._show, self._total = show, total
        self._done, self._next = 0, 0.0

    def __call__(self, action: Action, path: str, nbytes: int) -> None:
        self._done += nbytes
        is_last = nbytes and self._done >= self._total
        if is_last or time.monotonic() >= self._next:
            self._show(Progress(action, path, self._done, self._total))
            self._next = time.monotonic() + _PAUSE  # A pause after showing, which may be slow.


def watched(tell: Tell, names: Mapping[int, str], read: Read = pieces) -> Read:
    """Returns a function that reads sources as ``read`` does, and reports each piece as written.

    Args:
      tell: the function that is told of each piece.
      names: the name under which each source is written, by its ``id``.
      read: the function that yields the values of a source, in order.
    """

    def telling(source: Source) -> Iterable[np.ndarray]:
        for piece in read(source):
            # Reported before it is written, because the caller may stop at the last piece.
            tell("write", names.get(id(source), ", ".join(source.names)), piece.nbytes)
            yield piece
            del piece  # It may be a view of an array made on demand, which can then be freed.

    return telling


@contextlib.contextmanager
def _display(total: int) -> Iterator[Callable[[Progress], None] | None]:
    """Gives a function that shows progress; ``None`` if there is no terminal and no notebook."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_jupyter:
        yield _in_notebook()
    elif console.is_terminal:
        with _in_terminal(console, total) as show:
            yield show
    else:
        yield None


@contextlib.contextmanager
def _in_terminal(console: Any, total: int) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as bars
    from rich.table import Column

    what = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    columns = (
        bars.TextColumn("{task.description}", markup=False, table_column=what),
        bars.BarColumn(bar_width=20),
        bars.DownloadColumn(binary_units=True),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    # The bar gets no thread of its own, which would take Python's lock from threads that work.
    with bars.Progress(*columns, console=console, auto_refresh=False, expand=True) as bar:
        task = bar.add_task("", total=total)

        def show(now: Progress) -> None:
            told = f"{now.action} {now.path}"
            bar.update(task, completed=now.done_bytes, description=told, refresh=True)

        yield show


def _in_notebook() -> Callable[[Progress], None]:
    from IPython.display import (  # pyright: ignore[reportMissingImports] (a notebook has it)
        HTML,
        display,
    )

    began = time.monotonic()
    handle = display(HTML(""), display_id=True)

    def show(now: Progress) -> None:
        if handle is not None:  # IPython gives none where no shell runs.
            handle.update(HTML(as_html(now, time.monotonic() - began)))

    return show


def as_html(now: Progress, seconds: float) -> str:
    """Returns progress as a line of HTML; ``seconds`` is how long the verb has run.

    >>> as_html(Progress("read", "head", 2**20, 2**21), 2.0).partition("</progress>")[2]
    ' 1.0 MiB of 2.0 MiB, 512.0 KiB/s, 2 s left: read head</div>'
    """
    done, total = now.done_bytes, now.total_bytes
    rate = done / max(seconds, 1e-9)
    told = f"{format_bytes(done)} of {format_bytes(total)}, {format_bytes(int(rate))}/s"
    if done < total:
        left = f"{(total - done) / rate:.0f} s left" if done else "time left unknown"
        told += f", {left}: {now.action} {now.path}"
    else:
        told += f", {seconds:.1f} s"
    bar = f'<progress value="{done}" max="{max(total, 1)}" aria-label="progress"></progress>'
    return f'<div style="font-family: monospace">{bar} {html.escape(told)}</div>'
