"""Lazy leaves that somebody made by hand, whose ``init_fn`` is any function of a key."""

from dataclasses import replace
from typing import Any

import jax

from lazyinit import errors
from lazyinit.keys import Key
from lazyinit.params import LazyParam, label
from lazyinit.program.slices import Slice
from lazyinit.program.tracing import trace
from lazyinit.sources import describe


def with_slice(leaf: LazyParam, path: str) -> LazyParam:
    """Returns the same leaf with a slice as its ``init_fn``, which is traced now.

    Raises:
      RecordError: the ``init_fn`` fails, or returns another shape or dtype than the leaf has.
    """
    roots = leaf.rng_path.roots
    one = len(roots) == 1
    streams = {"key": Key.of(leaf.rng_path.key())} if one else roots

    def init(keys: Any, _: Any) -> list[Any]:
        return jax.tree.leaves(leaf.init_fn(keys["key"] if one else dict(keys) or None))

    try:
        traced, results = trace(init, streams)
    except Exception as error:
        raise errors.RecordError(
            f"{path}: wanted an init_fn that maps a key to an array, got "
            f"{label(leaf.init_fn)}, which failed: {error}. Bind its shape and dtype first."
        ) from error
    avals = [traced.avals[r.value] for r in results]
    found = [describe(aval.shape, aval.dtype) for aval in avals]
    if found != [describe(leaf.shape, leaf.dtype)]:
        raise errors.RecordError(
            f"{path}: wanted {describe(leaf.shape, leaf.dtype)} from its init_fn, "
            f"got {', '.join(found) or 'nothing'}. Give the LazyParam the shape and dtype that "
            "its init_fn returns."
        )
    made = Slice(traced, results[0].value, next(iter(traced.streams)) if one else -1)
    return replace(leaf, init_fn=made)
