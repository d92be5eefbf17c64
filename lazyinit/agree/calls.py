"""Exchanges values between processes, through the key-value store of ``jax.distributed``.

Every process of a group makes the same calls in the same order, so the group and the number of the
call tell which call a value belongs to. If a verb fails in one process, that process leaves a note
in the store. The other processes then wait for it no longer, and raise an error with its message.
"""

import collections
import functools
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeAlias, TypeVar

import jax

from lazyinit import compat, errors

P = ParamSpec("P")
R = TypeVar("R")

Group: TypeAlias = tuple[int, ...]
"""Processes by their index, ascending."""

SETTING = "LAZYINIT_HOSTS"
_SECONDS = 300.0  # How long a process is waited for, unless the setting says otherwise.
_FAILED = "lazyinit/failed"  # The folder of the store with the notes of failed processes.
# Seconds before a note counts. Code that catches the error may still make the call another way.
_GRACE = 2.0
_KEPT = 600  # The most characters of an error that the other processes are told.
WAY_OUT = (
    "Every process must make the same calls in the same order, with the same keys, models, "
    "checkpoints and shardings."
)

_lock = threading.Lock()
_calls: collections.Counter[Group] = collections.Counter()
_noted: list[str] = []  # The store's key for the note of this process; empty if it left none.


def seconds() -> float:
    """Returns the number of seconds to wait for another process, as the setting says.

    The setting ``off`` gives 0: then nothing is compared.

    Raises:
      WordError: the setting is neither ``off`` nor a number of seconds.
    """
    said = os.environ.get(SETTING, "")
    if said == "off":
        return 0.0
    try:
        found = float(said or _SECONDS)
    except ValueError:
        found = 0.0
    if not 0 < found < 10**6:
        raise errors.WordError(
            f"{SETTING}: wanted 'off', or the number of seconds to wait for another process, got "
            f"{said!r}. Set it to 600, for example, or leave it unset for {_SECONDS:.0f}."
        )
    return found


def exchange(group: Group, mine: bytes, call: str) -> dict[int, bytes]:
    """Sends a value to all processes of a group, and returns the values that they sent.

    Args:
      group: the processes; this one among them.
      mine: the value of this process.
      call: what is being done, for messages: ``"materialize"``.

    Returns:
      The value of each process, by the index of the process.

    Raises:
      HostAbsentError: a process did not make this call in time, or its verb failed.
      HostsError: a process made another call, or ``jax.distributed`` has no store.
    """
    store = compat.store()
    if store is None:
        raise errors.HostsError(
            f"{call}: wanted the key-value store of jax.distributed, to reach processes "
            f"{_listed(group)}, got none. Call jax.distributed.initialize first. If the program "
            "does so already, this version of JAX keeps the store where lazyinit does not find it."
        )
    with _lock:
        number = _calls[group]
        _calls[group] += 1
    me = jax.process_index()
    name = f"lazyinit/{hashlib.blake2b(repr(group).encode(), digest_size=8).hexdigest()}"
    forget_failure()
    store.put(f"{name}/{number}/{me}", f"{call}\n".encode() + mine)
    try:
        said = _all_of(group, store, f"{name}/{number}", call)
    except errors.HostAbsentError:
        # A call that some process missed does not count, so that numbers agree if all go on.
        with _lock:
            _calls[group] -= 1
        store.forget(f"{name}/{number}/{me}")
        raise
    if number:  # All processes have come to this call, so all have read the values of the last.
        store.forget(f"{name}/{number - 1}/{me}")
    parts = {process: text.partition(b"\n") for process, text in said.items()}
    if problem := differing({p: {"call": other.decode()} for p, (other, *_) in parts.items()}):
        raise errors.HostsError(f"{problem}. {WAY_OUT}")
    return {process: value for process, (*_, value) in parts.items()}


def differing(said: Mapping[int, Mapping[str, str]]) -> str:
    """Returns what differs between processes, in words, or ``""`` if nothing does.

    Args:
      said: for each process, its texts by what they are about: ``{0: {"dtype": "float32"}}``.
    """
    for what in dict.fromkeys(what for about in said.values() for what in about):
        by_text: dict[str, list[int]] = {}
        for process, about in sorted(said.items()):
            by_text.setdefault(about.get(what, "none"), []).append(process)
        if len(by_text) > 1:
            parts = [f"{text} in {_named(group)}" for text, group in by_text.items()]
            return f"wanted the same {what} in every process, got {', '.join(parts)}"
    return ""


def _all_of(group: Group, store: compat.Store, folder: str, call: str) -> dict[int, bytes]:
    """Waits until all processes of a group have sent a value, and returns the values."""
    began = time.monotonic()
    limit = seconds() or _SECONDS
    while missing := set(map(str, group)) - (said := store.below(folder)).keys():
        waited = time.monotonic() - began
        absent = sorted(map(int, missing))
        if waited >= min(_GRACE, limit):
            # A note says either that a verb failed there, or that it gave up waiting for this one.
            notes = store.below(_FAILED)
            if failed := [process for process in absent if str(process) in notes]:
                raise errors.HostAbsentError(notes[str(failed[0])].decode())
        if waited >= limit:
            raise errors.HostAbsentError(
                f"{call}: wanted processes {_listed(group)} to make this call, but "
                f"{_named(absent)} did not in {waited:.0f} s. All processes whose devices hold "
                "the arrays must make the same calls in the same order. Set "
                f"{SETTING}={limit * 10:.0f} to wait longer, or {SETTING}=off in every process "
                "to compare nothing."
            )
        store.wait_for(f"{folder}/{absent[0]}", min(_GRACE, limit - waited))
    return {process: said[str(process)] for process in group}


def telling(verb: Callable[P, R]) -> Callable[P, R]:
    """Returns a verb that tells the other processes when it fails in this one."""

    @functools.wraps(verb)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            made = verb(*args, **kwargs)
        except Exception as error:
            # If the processes disagree, all of them raise the same error and need no note.
            if not isinstance(error, errors.HostsError) or isinstance(
                error, errors.HostAbsentError
            ):
                _note_failure(verb.__name__, error)
            raise
        forget_failure()
        return made

    return told


def _note_failure(call: str, error: Exception) -> None:
    store = compat.store()
    if store is None:
        return
    me = jax.process_index()
    text = str(error)
    if not isinstance(error, errors.HostAbsentError):  # That error names its process already.
        text = f"process {me}: {call} failed there: {type(error).__name__}: {text}"
    _noted[:] = [f"{_FAILED}/{me}"]
    store.put(_noted[0], text[:_KEPT].encode())


def forget_failure() -> None:
    """Removes the note of this process, if it left one, since the process goes on after all."""
    if _noted and (store := compat.store()) is not None:
        store.forget(_noted.pop())


def _named(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process {shown}" if len(processes) == 1 else f"processes {shown}"


def _listed(processes: Sequence[int]) -> str:
    """Returns the numbers of processes as text; if there are many, only the first sixteen."""
    shown = ", ".join(map(str, processes[:16]))
    return shown if len(processes) <= 16 else f"{shown}, ... ({len(processes)} in all)"
