"""What the processes of a group said -> nothing, or the one error that all of them raise.

Digests of all that is to be done are exchanged first. Where they differ, two more exchanges find
the first leaf that differs, and what of it: 16 bytes for each leaf, then that leaf in words.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from lazyinit import errors
from lazyinit.agree.calls import Group, exchange
from lazyinit.agree.entries import Entry, aspects, digest_of

_ABSENT = {"leaf": "no such leaf"}
_WAY_OUT = (
    "Every process must make the same calls in the same order, with the same keys, models, "
    "checkpoints and shardings."
)


def agree(call: str, about: str, entries: Callable[[], Iterable[Entry]], group: Group) -> None:
    """Raises the same error in every process of a group, unless they are about to do the same.

    Args:
      call: the verb.
      about: what it depends on beside the leaves.
      entries: returns what is about to be done with each leaf; the same whenever it is asked.
      group: the processes.

    Raises:
      CheckpointError: a file is gone or has changed.
      HostsError: they differ.
      HostAbsentError: one of them did not come.
    """
    mine = json.dumps([call, about, digest_of(entries())]).encode()
    said = exchange(group, mine, call)
    if len(set(said.values())) == 1:
        return
    calls = {process: json.loads(text) for process, text in said.items()}
    if problem := _differing({p: {"call": verb} for p, (verb, *_) in calls.items()}):
        raise errors.HostsError(f"{problem}. {_WAY_OUT}")
    if len({digest for *_, digest in calls.values()}) > 1:
        _compare_leaves(call, list(entries()), group)
    if problem := _differing({p: {"settings": about} for p, (_, about, _) in calls.items()}):
        raise errors.HostsError(f"{call}: {problem}. {_WAY_OUT}")


def _compare_leaves(call: str, entries: Sequence[Entry], group: Group) -> None:
    told = [aspects(entry) for entry in entries]
    pairs = [
        (_short(entry.path), _short(json.dumps(said, sort_keys=True)))
        for entry, said in zip(entries, told, strict=True)
    ]
    lists = exchange(group, np.array(pairs, np.uint64).tobytes(), call)
    held = [_by_path(np.frombuffer(text, np.uint64).reshape(-1, 2)) for text in lists.values()]
    order = dict.fromkeys(path for facts in held for path in facts)
    differing = [path for path in order if len({facts.get(path) for facts in held}) > 1]
    if not differing:
        return  # They say it in another order, and mean the same.
    first = differing[0]
    place = next((n for n, entry in enumerate(entries) if _short(entry.path) == first), None)
    mine = ["", _ABSENT] if place is None else [entries[place].path, told[place]]
    said = exchange(group, json.dumps(mine).encode(), call)
    found = {process: json.loads(text) for process, text in said.items()}
    path = next(path for path, about in found.values() if about != _ABSENT)
    where = f"{path}: {call}" if path else call  # A tree may be one leaf.
    more = f" {len(differing) - 1} more leaves differ." if len(differing) > 1 else ""
    problem = _differing({process: about for process, (_, about) in found.items()})
    raise errors.HostsError(f"{where}: {problem}.{more} {_WAY_OUT}")


def _by_path(pairs: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Returns what is said of each path; two leaves may go by one."""
    found: dict[int, tuple[int, ...]] = {}
    for path, facts in pairs.tolist():
        found[path] = (*found.get(path, ()), facts)
    return found


def _differing(said: Mapping[int, Mapping[str, str]]) -> str:
    """Returns what differs, and which processes say what; ``""`` if nothing does."""
    if _ABSENT in said.values():  # Then nothing else matters.
        said = {p: {"leaf": about.get("leaf", "one that is there")} for p, about in said.items()}
    for what in dict.fromkeys(what for about in said.values() for what in about):
        by_text: dict[str, list[int]] = {}
        for process, about in sorted(said.items()):
            by_text.setdefault(about.get(what, "none"), []).append(process)
        if len(by_text) > 1:
            parts = [f"{text} in {_named(group)}" for text, group in by_text.items()]
            return f"wanted the same {what} in every process, got {', '.join(parts)}"
    return ""


def _named(processes: Sequence[int]) -> str:
    shown = ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
    return f"process {shown}" if len(processes) == 1 else f"processes {shown}"


def _short(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
