"""Finds what follows a filled leaf: leaves computed from it, and the same leaf at other paths.

The leaves that were filled come in; replacements of their followers go out. ``ema = cast(w)``
is computed from the tensor that ``w`` is filled with, not from the ``w`` that an initializer would
have made: the program of ``ema`` is cut where it meets the value that ``w`` was recorded as.
"""

from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np

from lazyinit.derived import DerivedParam
from lazyinit.keys import AnyKey, RngPath
from lazyinit.params import LazyParam, StoredParam, Thunk
from lazyinit.program.behind import computed_from
from lazyinit.program.equations import Program, Value, is_key
from lazyinit.program.slices import Slice
from lazyinit.program.stored import as_stored
from lazyinit.sources import Source
from lazyinit.tensors.as_dtype import cast
from lazyinit.tensors.pieces import PIECE, as_bytes, indices

_Computed: TypeAlias = LazyParam | DerivedParam


@dataclass(frozen=True, slots=True)
class Follower:
    """The replacement of a leaf that follows filled leaves.

    Attributes:
      leaf: the leaf that replaces it.
      of: the paths of the filled leaves that it follows.
    """

    leaf: Thunk
    of: tuple[str, ...]


class Leaders:
    """The filled leaves, which are looked up by the leaf or the value that each was before."""

    def __init__(self, filled: Iterable[tuple[str, Any, Any]]) -> None:
        """Takes, for each, its path, the leaf before (of any kind), and the leaf after filling."""
        self._by_leaf: dict[int, Follower] = {}
        self._by_value: dict[int, list[tuple[Value, Mapping[str, AnyKey], Follower]]] = {}
        self._of_keys: dict[Any, tuple[dict[Value, Follower], Program]] = {}
        for path, was, leaf in filled:
            if not isinstance(was, Thunk) or not isinstance(leaf, Thunk):
                continue
            follower = Follower(leaf, (path,))
            self._by_leaf.setdefault(id(was), follower)
            if isinstance(was, _Computed) and (made := slice_of(was)) and _leads(made):
                known = self._by_value.setdefault(id(made.program), [])
                known.append((made.output, was.rng_path.roots, follower))

    def follower(self, leaf: Thunk) -> Follower | None:
        """Returns the replacement of a leaf; ``None`` if it follows no filled leaf."""
        found = self._by_leaf.get(id(leaf))
        if found is None:
            found = self._computed(leaf) if isinstance(leaf, _Computed) else None
        if found is not None:
            self._by_leaf[id(leaf)] = found  # A leaf at two places is one leaf.
        return found

    def _computed(self, leaf: _Computed) -> Follower | None:
        """Returns what replaces a leaf whose program needs the value of a filled leaf."""
        made = slice_of(leaf)
        if made is None:
            return None
        leaders, program = self._with_keys(made, leaf.rng_path.roots)
        made = replace(made, program=program)
        if made.output in leaders:
            same = leaders[made.output]
            return replace(same, leaf=_placed(same.leaf, leaf))
        taken = leaf.inputs if isinstance(leaf, DerivedParam) else ()
        inputs = dict(zip(made.given, taken, strict=True))
        stops = ChainMap[Value, Any](leaders, inputs, {made.key: None})
        met = set(made.program.ancestors(made.output, stops))
        found = {v: leaders[v] for v in sorted(met & leaders.keys())}
        for value, part in inputs.items():
            if value in met and value not in found and (follower := self.follower(part)):
                found[value] = follower
        if not found:
            return None
        inputs = {v: part for v, part in inputs.items() if v in met}
        inputs |= {v: follower.leaf for v, follower in found.items()}
        of = dict.fromkeys(path for follower in found.values() for path in follower.of)
        return Follower(_derived(leaf, made, inputs, met), tuple(of))

    def _with_keys(
        self, made: Slice, keys: Mapping[str, AnyKey]
    ) -> tuple[dict[Value, Follower], Program]:
        """Returns the filled leaves of a recording with these root keys, by value, and a program.

        In the program, what one equation (a jit, a scan) returned beside a filled leaf is computed
        from that leaf, if the equation's body does so.
        """
        which = id(made.program), frozenset(keys.items())
        if which not in self._of_keys:
            known = self._by_value.get(id(made.program), [])
            leaders = {v: f for v, roots, f in known if _agree(roots, keys)}
            self._of_keys[which] = leaders, computed_from(made.program, leaders)
        return self._of_keys[which]


def tied(
    loaded: Iterable[tuple[str, Any, StoredParam]],
) -> tuple[dict[str, StoredParam], list[str]]:
    """Gives a leaf that stands at several paths one tensor; returns replacements, and problems.

    If the checkpoint has several tensors for it, they must hold the same values: they are read
    and compared here.

    Args:
      loaded: for each loaded leaf, its path, the leaf before (of any kind), and the stored leaf.

    Returns:
      The leaves to put in place of loaded ones, by path, and a message for each that differs.
    """
    first: dict[Any, tuple[str, StoredParam]] = {}
    same: dict[str, StoredParam] = {}
    problems: list[str] = []
    for path, was, leaf in loaded:
        if not isinstance(was, Thunk):
            continue
        one_path, one = first.setdefault(_identity(was), (path, leaf))
        if one is leaf:
            continue
        if one.source == leaf.source or _equal(one.source, leaf.source, leaf.dtype):
            same[path] = one
        else:
            problems.append(
                f"{path}: wanted the same values as at {one_path!r}, because both paths are one "
                f"leaf, got {leaf.source!r}, which holds other values than {one.source!r}. Make "
                "this path a leaf of its own, with jax.numpy.copy in the recorded function, or "
                "fill from a checkpoint that has only one of the two tensors."
            )
    return same, problems


def _identity(leaf: Thunk) -> Any:
    """Returns what is equal for thunks that are one leaf."""
    if isinstance(leaf, LazyParam) and (made := slice_of(leaf)):
        return id(made.program), made.output, leaf.rng_path
    return id(leaf)


def _equal(one: Source, other: Source, dtype: np.dtype) -> bool:
    """Tells whether two sources, cast to a dtype, hold the same bytes; reads both in pieces."""
    parts = indices(one.shape, dtype.itemsize, PIECE)
    return all(
        as_bytes(cast(one.read(i), dtype, overflow=True))
        == as_bytes(cast(other.read(i), dtype, overflow=True))
        for i in parts  # Values that overflow are refused later, when the leaf is read.
    )


def slice_of(leaf: _Computed) -> Slice | None:
    """Returns the recorded program of a leaf; ``None`` if its ``init_fn`` was not recorded."""
    return leaf.init_fn if isinstance(leaf.init_fn, Slice) else None


def _leads(made: Slice) -> bool:
    """Tells whether other leaves may follow this one: it is no PRNG key, and no count of keys."""
    aval = made.program.avals[made.output]
    is_number = jnp.issubdtype(aval.dtype, jnp.inexact) or not made.program.is_small(made.output)
    return is_number and not is_key(aval)


def _agree(some: Mapping[str, AnyKey], others: Mapping[str, AnyKey]) -> bool:
    """Tells whether two sets of root keys are equal where they have a stream in common."""
    return all(key == others.get(stream, key) for stream, key in some.items())


def _placed(leaf: Thunk, like: Thunk) -> Thunk:
    """Returns a stored leaf with the sharding of another leaf, and any other leaf unchanged."""
    if isinstance(leaf, StoredParam) and leaf.sharding != like.sharding:
        return replace(leaf, sharding=like.sharding)
    return leaf


def _derived(leaf: _Computed, made: Slice, inputs: Mapping[Value, Thunk], met: set[Value]) -> Thunk:
    """Returns the leaf again, with other leaves as inputs of its program in place of values."""
    key, rng_path = (made.key, leaf.rng_path) if made.key in met else (-1, RngPath({}))
    if made.key < 0:
        streams = {made.program.streams[v] for v in met if v in made.program.streams}
        rng_path = RngPath({s: k for s, k in leaf.rng_path.roots.items() if s in streams})
    return as_stored(
        DerivedParam(
            leaf.shape,
            leaf.dtype,
            replace(made, key=key, given=tuple(inputs)),
            tuple(inputs.values()),
            rng_path,
            weak_type=leaf.weak_type,
            sharding=leaf.sharding,
            path=leaf.path,
        )
    )
