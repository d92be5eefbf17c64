"""Finds what differs between processes, and raises the same error about it in all of them.

Digests of all that is to be done are exchanged first. Where they differ, two more exchanges follow.
The first sends 24 bytes for each leaf, and finds the first leaf that differs. The second sends that
leaf in words, with its steps, and finds what about it differs.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lazyinit import errors
from lazyinit.agree.calls import WAY_OUT, Group, differing, exchange
from lazyinit.agree.entries import Entry, aspects, digest_of, steps

_ABSENT = {"leaf": "no such leaf"}


def agree(call: str, about: str, entries: Callable[[], Iterable[Entry]], group: Group) -> None:
    """Raises the same error in every process of a group, unless they are about to do the same.

    Args:
      call: the verb.
      about: the version and settings of JAX, and arguments, on which the result depends, too.
      entries: returns what is about to be done with each leaf. It may be called again, and must
        return the same then.
      group: the processes.

    Raises:
      CheckpointError: a file is gone or has changed.
      HostsError: the processes are about to do different things.
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    mine = json.dumps([about, *digest_of(entries())]).encode()
    calls = {process: json.loads(text) for process, text in exchange(group, mine, call).items()}
    for told in (lambda said: said[:2], lambda said: [said[0], said[2]]):
        if len({json.dumps(told(said)) for said in calls.values()}) == 1:
            return
    if any(len({said[way] for said in calls.values()}) > 1 for way in (1, 2)):
        _compare_leaves(call, list(entries()), group)
    if problem := differing({p: {"settings": said[0]} for p, said in calls.items()}):
        raise errors.HostsError(f"{call}: {problem}. {WAY_OUT}")


def _compare_leaves(call: str, entries: Sequence[Entry], group: Group) -> None:
    """Raises an error about the first leaf that differs, unless only the order of steps differs.

    Raises:
      HostsError: a leaf differs, or only some processes have it.
      HostAbsentError: a process did not make this call in time, or its verb failed.
    """
    told = [aspects(entry) for entry in entries]
    rows = [
        (_short(entry.path), _facts(said), _facts(aspects(entry, as_own=True)))
        for entry, said in zip(entries, told, strict=True)
    ]
    lists = exchange(group, np.array(rows, np.uint64).tobytes(), f"{call}, leaf by leaf")
    tables = [np.frombuffer(text, np.uint64).reshape(-1, 3) for text in lists.values()]
    held = [[_by_path(table[:, [0, way]]) for table in tables] for way in (1, 2)]
    order = dict.fromkeys(path for facts in held[0] for path in facts)
    differ = [path for path in order if all(_differ(path, way) for way in held)]
    if not differ:
        return  # All are about to do the same; they recorded its equations in another order.
    first = differ[0]
    place = next((n for n, entry in enumerate(entries) if _short(entry.path) == first), None)
    mine: Any = ["", _ABSENT, {}]
    if place is not None:
        mine = [entries[place].path, told[place], steps(entries[place])]
    said = exchange(group, json.dumps(mine).encode(), f"{call}, a leaf that differs")
    found = {process: json.loads(text) for process, text in said.items()}
    path = next(path for path, about, _ in found.values() if about != _ABSENT)
    where = f"{path}: {call}" if path else call  # A tree that is one leaf has an empty path.
    others = len(differ) - 1
    more = f" {others} more {'leaf differs' if others == 1 else 'leaves differ'}." * (others > 0)
    about = {process: about for process, (_, about, _) in found.items()}
    if _ABSENT in about.values():  # Then the error says only which processes have the leaf.
        there = {"leaf": "one that is there"}
        about = {p: {"leaf": (there | said)["leaf"]} for p, said in about.items()}
    else:
        about = _by_steps(about, {process: computed for process, (*_, computed) in found.items()})
    raise errors.HostsError(f"{where}: {differing(about)}.{more} {WAY_OUT}")


def _by_steps(
    about: Mapping[int, Mapping[str, str]], computed: Mapping[int, Mapping[str, Any]]
) -> dict[int, dict[str, str]]:
    """Returns what each process said, with the first differing step in place of each digest."""
    found = {process: dict(said) for process, said in about.items()}
    for what in dict.fromkeys(what for told in computed.values() for what in told):
        told = {process: of.get(what, ("none", [])) for process, of in computed.items()}
        if len({said.get(what) for said in about.values()}) == 1:
            continue
        words = {process: name for process, (name, _) in told.items()}
        if len(set(words.values())) == 1:
            rows = itertools.zip_longest(
                *(lines for _, lines in told.values()), fillvalue="no further step"
            )
            first = next((row for row in rows if len(set(row)) > 1), None)
            if first is None:  # The difference is in steps that were not sent.
                continue
            words = {p: f"{words[p]} with {step}" for p, step in zip(told, first, strict=True)}
        for process, text in words.items():
            found[process][what] = text
    return found


def _facts(said: Mapping[str, str]) -> int:
    """Returns a hash, of 64 bits, of what ``aspects`` says of a leaf."""
    return _short(json.dumps(said, sort_keys=True))


def _differ(path: int, held: Sequence[Mapping[int, tuple[int, ...]]]) -> bool:
    """Tells whether processes differ in the facts about a path, or only some have it."""
    return len({facts.get(path) for facts in held}) > 1


def _by_path(pairs: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Returns the facts about each path; a path of two leaves has two facts."""
    found: dict[int, tuple[int, ...]] = {}
    for path, facts in pairs.tolist():
        found[path] = (*found.get(path, ()), facts)
    return found


def _short(text: str) -> int:
    """Returns a hash of a text, of 64 bits, which travels in its place."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
