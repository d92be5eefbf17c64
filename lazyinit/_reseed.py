"""The verb ``reseed``: a lazy tree -> the tree of another seed, without tracing the model again.

A lazy tree and new root keys come in; a tree with the same programs and those keys goes out.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lazyinit import errors, paths
from lazyinit.derived import DerivedParam, with_inputs
from lazyinit.keys import AnyKey, Key, RngPath, TracedKey
from lazyinit.params import LazyParam, OverlapParam, Thunk
from lazyinit.program.slices import Slice


def reseed(tree: Any, rngs: Any) -> Any:
    """Returns the lazy tree that other keys would have given; nothing is traced or allocated.

    Args:
      tree: any pytree with ``LazyParam`` leaves.
      rngs: one key, a dict of keys by stream, or an ``nnx.Rngs``. One key replaces the only root
        key of the tree, or that of ``params`` if there are several. Streams without a new key keep
        theirs. Each key must be of the same kind as the one that it replaces: typed or raw, and of
        the same PRNG implementation. The counts of an ``nnx.Rngs`` are ignored: those of the
        recording are kept.

    Returns:
      The tree with new root keys in its ``LazyParam`` leaves, in the initializers of
      ``OverlapParam`` leaves, and in everything that a ``DerivedParam`` is computed from. Other
      leaves are unchanged.

    Raises:
      RngsError: a key is not of the kind that it replaces, is no key at all, or none is for a
        stream of the tree.
      RecordError: the model's Python code looked at a value that came from one of these keys, so
        that under another key it might have made other leaves.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 4), "float32")
      >>> tree = li.lazy(nn.Dense(3)).init(jax.random.key(0), x)
      >>> li.reseed(tree, jax.random.key(1)) == li.lazy(nn.Dense(3)).init(jax.random.key(1), x)
      True
    """
    leaves = paths.leaves_with_paths(tree)
    thunks = [(path, leaf) for path, leaf in leaves if isinstance(leaf, Thunk)]
    parts = [(path, _seeded(part)) for path, leaf in thunks for part in with_inputs(leaf)]
    lazy = [(path, part) for path, part in parts if part is not None]
    roots: dict[str, AnyKey] = {}
    for _, leaf in lazy:
        roots |= leaf.rng_path.roots
    fresh = _by_stream(rngs, roots)
    for stream, key in fresh.items():
        _check(stream, key, roots[stream])
    problems = [
        f"{path}: wanted a leaf that is the same program under any key, but the model's Python "
        f"code looked at a value that came from {', '.join(map(repr, sorted(seen)))} while it was "
        "recorded. Record the model again with the new key."
        for path, leaf in lazy
        if isinstance(leaf.init_fn, Slice) and (seen := leaf.init_fn.program.looked_at & set(fresh))
    ]
    if problems:
        raise errors.RecordError(errors.listing(problems))
    placed: dict[int, Any] = {}  # By identity: a thunk at two paths stays one thunk.
    return paths.replace_leaves(tree, [_again(leaf, fresh, placed) for _, leaf in leaves])


def _seeded(part: Thunk) -> LazyParam | DerivedParam | None:
    """Returns the part of a thunk that has root keys; ``None`` if there is none."""
    part = part.rest if isinstance(part, OverlapParam) else part
    return part if isinstance(part, LazyParam | DerivedParam) else None


def _again(leaf: Any, fresh: Mapping[str, AnyKey], placed: dict[int, Any]) -> Any:
    """Returns a leaf (of any kind) with other root keys, also in all that it is computed from."""
    if id(leaf) in placed:
        return placed[id(leaf)]
    changed: dict[str, Any] = {}
    if isinstance(leaf, LazyParam | DerivedParam):
        path = leaf.rng_path
        roots = {stream: fresh.get(stream, key) for stream, key in path.roots.items()}
        changed["rng_path"] = RngPath(roots, path.folded, path.fold)
    if isinstance(leaf, OverlapParam):
        changed["rest"] = _again(leaf.rest, fresh, placed)
    if isinstance(leaf, DerivedParam):
        changed["inputs"] = tuple(_again(part, fresh, placed) for part in leaf.inputs)
    is_other = any(_differs(getattr(leaf, name), new) for name, new in changed.items())
    placed[id(leaf)] = replace(leaf, **changed) if is_other else leaf
    return placed[id(leaf)]


def _differs(old: Any, new: Any) -> bool:
    if isinstance(old, tuple):
        return any(a is not b for a, b in zip(old, new, strict=True))
    return old != new if isinstance(old, RngPath) else old is not new


def _by_stream(rngs: Any, roots: Mapping[str, AnyKey]) -> dict[str, AnyKey]:
    """Returns the new keys of streams that the tree uses, by the name of the stream."""
    if isinstance(rngs, jax.Array | np.ndarray):
        stream = next(iter(roots)) if len(roots) == 1 else "params"
        if roots and stream not in roots:
            raise errors.RngsError(
                f"reseed: wanted a dict of keys by stream ({', '.join(map(repr, sorted(roots)))}), "
                f"got one key. Say which it replaces, as in {{{min(roots)!r}: key}}."
            )
        return {stream: Key.of(rngs)} if roots else {}
    fresh = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(rngs):
        name = paths.path_string(key_path)
        if name.endswith("/count/value"):  # Of an nnx.Rngs.
            continue
        stream = name.removesuffix("/key/value")
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise errors.RngsError(
                f"reseed: rngs[{stream!r}]: wanted a key such as jax.random.key(0), got "
                f"{type(leaf).__name__}."
            )
        fresh[stream] = Key.of(leaf)
    used = {stream: key for stream, key in fresh.items() if stream in roots}
    if roots and not used:
        known, got = (", ".join(map(repr, sorted(streams))) for streams in (roots, fresh))
        raise errors.RngsError(
            f"reseed: wanted a key for a stream that the tree uses ({known}), got keys for "
            f"{got or 'none'}. Name the stream, as in {{{min(roots)!r}: key}}."
        )
    return used


def _check(stream: str, key: AnyKey, replaced: AnyKey) -> None:
    if isinstance(key, TracedKey) or isinstance(replaced, TracedKey):
        return
    wanted, got = ((k.typed, k.impl, k.shape) for k in (replaced, key))
    if wanted != got:
        raise errors.RngsError(
            f"reseed: rngs[{stream!r}]: wanted a key of the same kind as the one that it replaces, "
            f"{_kind(replaced)}, got {_kind(key)}. Pass such a key, or record the model again."
        )


def _kind(key: Key) -> str:
    return f"{'a typed' if key.typed else 'a raw'} {key.impl} key of {key.shape[-1]} words"
