"""Leaves -> what two processes must have in common of them.

``digest_of`` is short and quick, and two processes that agree have the same. ``aspects`` is for
people, and slow: what is the same there is the same, even where the digests differ (two processes
may record the same equations in another order).
"""

import functools
import hashlib
import marshal
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import NamedSharding, Sharding

from lazyinit.checkpoint.base import Derived
from lazyinit.checkpoint.views import BoxView
from lazyinit.derived import DerivedParam, origins, parts_of
from lazyinit.keys import Key
from lazyinit.params import LazyParam, Source, describe, label
from lazyinit.program import stable
from lazyinit.program.slices import Slice


class Entry(NamedTuple):
    """What is about to be done with one leaf. A tuple: there may be 20,000, and little time.

    Attributes:
      path: where it is in the tree.
      leaf: a thunk, an array, or any other leaf.
      is_selected: whether it is made, read or written; the others are left as they are.
      sharding: where it goes.
      dtype: the dtype that it will have; ``None`` for its own.
    """

    path: str
    leaf: Any
    is_selected: bool
    sharding: Sharding | None
    dtype: Any


class _Numbers:
    """Texts by number from 1, in the order of first use; each object is told once."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}  # By identity.
        self.texts: dict[str, int] = {}
        self._kept: list[Any] = []  # Alive, so that no identity is used again.

    def of(self, thing: Any, told: Callable[[Any], str]) -> int:
        found = self.known.get(id(thing))
        if found is None:
            found = self.texts.setdefault(told(thing), len(self.texts) + 1)
            self.known[id(thing)] = found
            self._kept.append(thing)
        return found


def digest_of(entries: Iterable[Entry]) -> str:
    """Returns 32 hex digits for all that is about to be done.

    Raises:
      CheckpointError: a file that a selected leaf is read from is gone or has changed.
    """
    numbers = _Numbers()
    known = numbers.known.get
    told = hashlib.blake2b(digest_size=16)
    rows: list[Any] = []
    for path, leaf, is_selected, sharding, dtype in entries:
        if not is_selected or not hasattr(leaf, "shape"):
            rows.append((path, is_selected))
            continue
        own = leaf.dtype
        rows.append(
            (
                path,
                leaf.shape,
                # What follows ``or`` is right alone, but a call; and most leaves are alike.
                known(id(own)) or numbers.of(own, str),
                known(id(sharding)) or numbers.of(sharding, _placement),
                dtype if dtype is None else known(id(dtype)) or numbers.of(dtype, str),
            )
        )
        if isinstance(leaf, LazyParam):  # Most are; for them ``origins`` is a detour.
            rows.append(_made_row(leaf, numbers))
        else:
            read, made = origins(leaf)
            parts = parts_of(leaf) if isinstance(leaf, DerivedParam) else ()
            rows += [_made_row(x, numbers) for x in parts if isinstance(x, DerivedParam)]
            rows += [_made_row(lazy, numbers) for lazy in made]
            rows += [_source_row(source, numbers) for source in read]
        if len(rows) > 256:  # To keep 40,000 tuples is to have Python's collector walk over them.
            told.update(_bytes(rows))
            rows.clear()
    told.update(_bytes([*rows, *numbers.texts]))
    return told.hexdigest()


def _bytes(rows: list[Any]) -> bytes:
    # Version 2 writes each value out; later ones refer to objects that happen to be the same.
    return marshal.dumps(rows, 2)


def _made_row(lazy: LazyParam | DerivedParam, numbers: _Numbers) -> tuple[Any, ...]:
    rng, init = lazy.rng_path, lazy.init_fn
    known = numbers.known.get
    roots = [(s, known(id(root)) or numbers.of(root, _key)) for s, root in rng.roots.items()]
    if not isinstance(init, Slice):
        return (*roots, rng.fold, label(init))
    program = known(id(init.program)) or numbers.of(init.program, _program)
    return (*roots, rng.fold, program, init.output, init.key, init.given)


def _source_row(source: Any, numbers: _Numbers) -> tuple[Any, ...]:
    if isinstance(source, BoxView):  # Most are one, and to tell it in words takes long.
        return (source.box, source.axes, _source_row(source.source, numbers))
    if isinstance(source, Derived):
        return (repr(source), *[_source_row(part, numbers) for part in source.reads])
    return (
        source.names,
        source.shape,
        numbers.of(source.dtype, str),
        numbers.of(getattr(source, "file", None), _checked_file),
        tuple([(extent.start, extent.stop) for extent in source.extents]),
    )


def aspects(entry: Entry) -> dict[str, str]:
    """Returns what there is to say of a leaf, by what it is about."""
    leaf = entry.leaf
    if not hasattr(leaf, "shape"):
        return {"leaf": type(leaf).__name__}
    if not entry.is_selected:
        return {"selected": "no"}
    found = {
        "selected": "yes",
        "leaf": describe(leaf.shape, leaf.dtype),
        "sharding": _placement(entry.sharding),
        "dtype": str(leaf.dtype if entry.dtype is None else entry.dtype),
    }
    read, made = origins(leaf)
    found["source"] = " and ".join(["checkpoint"] * len(read) + ["key"] * len(made)) or "an array"
    parts = parts_of(leaf) if isinstance(leaf, DerivedParam) else ()
    computed = [part for part in parts if isinstance(part, DerivedParam)]
    tensors = [tensor for source in read for tensor in _tensors(source)]
    several = {
        "computation": [_steps(part, part.made_by) for part in computed],
        "initializer": [_steps(lazy, label(lazy.init_fn)) for lazy in made],
        "key": [_keys(part) for part in (*made, *computed)],
        "folded into the key": [f"{lazy.rng_path} {lazy.rng_path.fold}" for lazy in made],
        "tensors": [repr(source) for source in read],
        "stored as": [describe(tensor.shape, tensor.dtype) for tensor in tensors],
        "file": dict.fromkeys(_file(getattr(tensor, "file", None)) for tensor in tensors),
        "place in the file": [str([(e.start, e.stop) for e in t.extents]) for t in tensors],
    }
    return found | {about: ", ".join(texts) for about, texts in several.items() if texts}


def _tensors(source: Any) -> list[Source]:
    if isinstance(source, Derived):
        return [tensor for part in source.reads for tensor in _tensors(part)]
    return [source]


def _steps(made: LazyParam | DerivedParam, name: str) -> str:
    init = made.init_fn
    return f"{name} ({stable.steps_of(init)})" if isinstance(init, Slice) else name


def _keys(made: LazyParam | DerivedParam) -> str:
    return ", ".join(f"{name} {_key(root)}" for name, root in sorted(made.rng_path.roots.items()))


def _program(program: Any) -> str:
    return stable.digest(program).hex()


def _key(root: Any) -> str:
    if not isinstance(root, Key):
        return "traced"
    words = np.frombuffer(root.data, np.uint32)
    shown = ", ".join(map(str, words[:8])) + (", ..." if len(words) > 8 else "")
    return f"{root.impl}[{shown}]"


def _checked_file(file: Any) -> str:
    if file is not None:
        file.check()
    return _file(file)


def _file(file: Any) -> str:
    """Returns a file's name and size: in which folder it is may differ from host to host."""
    if file is None:
        return "memory"
    name = os.path.basename(getattr(file, "path", "") or type(file).__name__)
    return f"{name} of {getattr(file, 'size', '?')} bytes"


def _placement(sharding: Sharding | None) -> str:
    if sharding is None or sharding.is_fully_addressable:
        return "devices of this process"  # Which ones differs from process to process.
    if not isinstance(sharding, NamedSharding):
        devices = sorted(device.id for device in sharding.device_set)
        return f"{type(sharding).__name__} on devices {devices}"
    return f"{sharding.spec} on {_mesh(sharding.mesh)} in {sharding.memory_kind}"


@functools.lru_cache(maxsize=16)
def _mesh(mesh: Any) -> str:
    order = hashlib.blake2b(repr([d.id for d in mesh.devices.flat]).encode(), digest_size=4)
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"mesh {axes} (devices {order.hexdigest()})"
