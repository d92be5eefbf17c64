"""Each process of a group tells the others one value, over the store that the hosts share.

Every process of a group makes the same calls in the same order, so that a group and a number say
which call is meant. A process whose verb failed leaves a note of it, and is waited for no longer
by those who come to a call that it will not come to.
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
_FAILED = "lazyinit/failed"  # Where notes of failures are.
# Seconds before a note counts: whoever failed may try another way, and come after all.
_GRACE = 2.0
_KEPT = 600  # Characters of another process's error that are told.
WAY_OUT = (
    "Every process must make the same calls in the same order, with the same keys, models, "
    "checkpoints and shardings."
)

_lock = threading.Lock()
_calls: collections.Counter[Group] = collections.Counter()
_noted: list[str] = []  # The key of this process's note, if there is one. At most one.


def seconds() -> float:
    """Returns how long a process is waited for, from the setting; 0 where nothing is compared.

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
            f"{SETTING}: wanted 'off', or for how many seconds another process is waited for, "
            f"got {said!r}."
        )
    return found


def exchange(group: Group, mine: bytes, call: str) -> dict[int, bytes]:
    """Tells the processes of a group a value, and returns what each of them told, by process.

    Args:
      group: the processes; this one among them.
      mine: what this one tells.
      call: what is being done, for messages: ``"materialize"``.

    Raises:
      HostsError: this version of JAX has no store that the hosts share.
      HostAbsentError: one of them did not come in time, or failed on its way.
      HostsError: one of them is doing something else.
    """
    store = compat.store()
    if store is None:
        raise errors.HostsError(
            f"{call}: wanted the key-value store of jax.distributed, to reach processes "
            f"{_listed(group)}, got none. Call jax.distributed.initialize first; if it was, this "
            "version of JAX has moved it."
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
        # A call that not all came to is not counted, so that numbers agree if they all go on.
        with _lock:
            _calls[group] -= 1
        store.forget(f"{name}/{number}/{me}")
        raise
    if number:  # Whoever came to this call has read what was said in the last one.
        store.forget(f"{name}/{number - 1}/{me}")
    parts = {process: text.partition(b"\n") for process, text in said.items()}
    if problem := differing({p: {"call": other.decode()} for p, (other, *_) in parts.items()}):
        raise errors.HostsError(f"{problem}. {WAY_OUT}")
    return {process: value for process, (*_, value) in parts.items()}


def differing(said: Mapping[int, Mapping[str, str]]) -> str:
    """Returns what processes say differently, and which of them say what; ``""`` if nothing."""
    for what in dict.fromkeys(what for about in said.values() for what in about):
        by_text: dict[str, list[int]] = {}
        for process, about in sorted(said.items()):
            by_text.setdefault(about.get(what, "none"), []).append(process)
        if len(by_text) > 1:
            parts = [f"{text} in {_named(group)}" for text, group in by_text.items()]
            return f"wanted the same {what} in every process, got {', '.join(parts)}"
    return ""


def _all_of(group: Group, store: compat.Store, folder: str, call: str) -> dict[int, bytes]:
    """Returns what the processes of a group said in one call, once all of them have."""
    began = time.monotonic()
    limit = seconds() or _SECONDS
    while missing := set(map(str, group)) - (said := store.below(folder)).keys():
        waited = time.monotonic() - began
        absent = sorted(map(int, missing))
        if waited >= min(_GRACE, limit):  # Whoever comes too late hears that from those who left.
            notes = store.below(_FAILED)
            if failed := [process for process in absent if str(process) in notes]:
                raise errors.HostAbsentError(notes[str(failed[0])].decode())
        if waited >= limit:
            raise errors.HostAbsentError(
                f"{call}: wanted processes {_listed(group)}, got none of {_listed(absent)} in "
                f"{waited:.0f} s. All processes whose devices hold the arrays make the same calls "
                f"in the same order. {SETTING}={limit * 10:.0f} waits longer, {SETTING}=off "
                "(for every process) compares nothing."
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
            # A disagreement is known to all of them: it is their error, too.
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
    if not isinstance(error, errors.HostAbsentError):  # That names its process already.
        text = f"process {me}: {call} failed there: {type(error).__name__}: {text}"
    _noted[:] = [f"{_FAILED}/{me}"]
    store.put(_noted[0], text[:_KEPT].encode())


def forget_failure() -> None:
    """Takes back the note that this process left, if it did: it goes on."""
    if _noted and (store := compat.store()) is not None:
        store.forget(_noted.pop())


def _named(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process {shown}" if len(processes) == 1 else f"processes {shown}"


def _listed(processes: Sequence[int]) -> str:
    """Returns processes for people; not a thousand of them."""
    shown = ", ".join(map(str, processes[:16]))
    return shown if len(processes) <= 16 else f"{shown}, ... ({len(processes)} in all)"
