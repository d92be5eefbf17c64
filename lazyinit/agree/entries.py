"""Says what two processes must have in common, leaf by leaf.

``digest_of`` is quick: processes with equal digests agree. ``aspects`` is slow: it says in words
what is about to be done with a leaf. The words decide, because processes that agree may still have
different digests: they may have recorded the same equations in another order.
"""

import functools
import hashlib
import marshal
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, Sharding

from lazyinit.derived import DerivedParam, origins, with_inputs
from lazyinit.keys import Key
from lazyinit.params import LazyParam, StoredParam, label
from lazyinit.program import stable
from lazyinit.program.slices import Slice
from lazyinit.sources import Source, describe
from lazyinit.tensors.base import Derived
from lazyinit.tensors.mapped import MappedTensor
from lazyinit.tensors.views import BoxView


class Entry(NamedTuple):
    """What is about to be done with one leaf. A tuple, because 20,000 must be made quickly.

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


_LINES = 256  # The most steps of a leaf that are sent to other processes.
_LONGEST = 160  # The most characters of each of these steps.
_NONE: Any = object()  # Differs from the dtype, sharding, program and key of every leaf.


class _Numbers:
    """Numbers texts from 1, in the order of first use, and remembers the number of each object."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}  # By identity.
        self.texts: dict[str, int] = {}
        self._kept: list[Any] = []  # Keeps objects alive, so that no other gets the id of one.

    def of(self, thing: Any, told: Callable[[Any], str]) -> int:
        found = self.known.get(id(thing))
        if found is None:
            found = self.texts.setdefault(told(thing), len(self.texts) + 1)
            self.known[id(thing)] = found
            self._kept.append(thing)
        return found


def digest_of(entries: Iterable[Entry]) -> tuple[str, str]:
    """Returns two digests of all that is about to be done, of 32 hex digits each.

    Processes are about to do the same if they agree in one of the two. The digests differ in how
    they take a sharding on devices of one process alone. For the first it means that process, in
    every process that names it: a stage of a pipeline, for example. For the second it means the
    devices of whichever process names it: each process then makes an array for itself.

    Raises:
      CheckpointError: a file that a selected leaf is read from is gone or has changed.
    """
    numbers = _Numbers()
    told = hashlib.blake2b(digest_size=16)
    rows: list[Any] = []
    # Most leaves have the same dtype, sharding, program and key as the leaf before. Comparing them
    # with that leaf's takes a tenth of the time of looking them up in a table.
    stored = placed = cast = program = root = _NONE
    common: tuple[Any, ...] = ()
    made: tuple[Any, ...] = ()
    for path, leaf, is_selected, sharding, dtype in entries:
        if not is_selected or not hasattr(leaf, "shape"):
            rows.append((path, is_selected))
            continue
        if leaf.dtype is not stored or sharding != placed or dtype is not cast:
            stored, placed, cast = leaf.dtype, sharding, dtype
            as_dtype = None if cast is None else numbers.of(cast, str)
            common = (numbers.of(stored, str), numbers.of(placed, _placement), as_dtype)
        if isinstance(leaf, LazyParam):  # Most leaves are lazy: this is faster than ``origins``.
            init, rng = leaf.init_fn, leaf.rng_path
            if isinstance(init, Slice) and len(rng.roots) == 1:
                ((stream, key),) = rng.roots.items()
                if init.program is not program or key is not root:
                    program, root = init.program, key
                    made = (numbers.of(program, _program), numbers.of(root, _key))
                steps = (stream, rng.fold, init.output, init.key, init.given)
                rows.append((path, leaf.shape, common, made, steps))
            else:
                rows.append((path, leaf.shape, common, *_made_row(leaf, numbers)))
        elif isinstance(leaf, StoredParam):
            rows.append((path, leaf.shape, common, _source_row(leaf.source, numbers)))
        else:
            read, lazy = origins(leaf)
            parts = with_inputs(leaf) if isinstance(leaf, DerivedParam) else ()
            rows.append((path, leaf.shape, common))
            rows += [_made_row(x, numbers) for x in parts if isinstance(x, DerivedParam)]
            rows += [_made_row(x, numbers) for x in lazy]
            rows += [_source_row(source, numbers) for source in read]
        if len(rows) > 256:  # Python's garbage collector would walk over all rows if they stayed.
            told.update(_bytes(rows))
            rows.clear()
    told.update(_bytes(rows))
    own = told.copy()
    told.update(_bytes([*numbers.texts]))
    own.update(_bytes([_as_own(text) for text in numbers.texts]))
    return told.hexdigest(), own.hexdigest()


def _bytes(rows: list[Any]) -> bytes:
    # Version 2 of the format writes out each value. Later versions write a reference where an
    # object stands twice, so that equal rows could have different bytes.
    return marshal.dumps(rows, 2)


def _made_row(lazy: LazyParam | DerivedParam, numbers: _Numbers) -> tuple[Any, ...]:
    """Returns what a leaf is made of: its keys, and its place in the program or its initializer."""
    rng, init = lazy.rng_path, lazy.init_fn
    known = numbers.known.get
    roots = [(s, known(id(root)) or numbers.of(root, _key)) for s, root in rng.roots.items()]
    if not isinstance(init, Slice):
        return (*roots, rng.fold, label(init))
    program = known(id(init.program)) or numbers.of(init.program, _program)
    return (*roots, rng.fold, program, init.output, init.key, init.given)


def _source_row(source: Any, numbers: _Numbers) -> tuple[Any, ...]:
    """Returns what a leaf is read from: the tensors, their places, and how they are changed."""
    if isinstance(source, BoxView):  # Most sources are one, and its ``repr`` takes long.
        return (source.box, source.axes, _source_row(source.source, numbers))
    if isinstance(source, Derived):
        return (repr(source), *[_source_row(part, numbers) for part in source.reads])
    dtype = numbers.of(source.dtype, str)
    file = numbers.of(getattr(source, "file", None), _checked_file)
    if isinstance(source, MappedTensor):  # Its extent follows from these, and takes long to make.
        return (source.name, source.shape, dtype, file, source.offset, source.steps)
    return (
        source.names,
        source.shape,
        dtype,
        file,
        tuple([(extent.start, extent.stop) for extent in source.extents]),
    )


def aspects(entry: Entry, *, as_own: bool = False) -> dict[str, str]:
    """Returns what is about to be done with a leaf, as texts by what they are about.

    For example ``{"selected": "yes", "leaf": "float32[3]", "dtype": "bfloat16", ...}``.

    Args:
      entry: the leaf, and what is about to be done with it.
      as_own: whether a sharding on devices of this process alone means the devices of whichever
        process names it, as in the second digest of ``digest_of``.
    """
    leaf = entry.leaf
    if not hasattr(leaf, "shape"):
        return {"leaf": type(leaf).__name__}
    if not entry.is_selected:
        return {"selected": "no"}
    placement = _placement(entry.sharding)
    found = {
        "selected": "yes",
        "leaf": describe(leaf.shape, leaf.dtype),
        "sharding": _as_own(placement) if as_own else placement,
        "dtype": str(leaf.dtype if entry.dtype is None else entry.dtype),
    }
    read, made = origins(leaf)
    found["source"] = " and ".join(["checkpoint"] * len(read) + ["key"] * len(made)) or "an array"
    parts = with_inputs(leaf) if isinstance(leaf, DerivedParam) else ()
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


def steps(entry: Entry) -> dict[str, tuple[str, list[str]]]:
    """Returns the steps that compute a leaf, of which ``aspects`` gives only digests.

    Returns:
      For ``"computation"`` and ``"initializer"`` the name of what is run, and its steps: at most
      256 lines of at most 160 characters.
    """
    leaf = entry.leaf
    if not entry.is_selected or not hasattr(leaf, "shape"):
        return {}
    parts = with_inputs(leaf) if isinstance(leaf, DerivedParam) else ()
    computed = [part for part in parts if isinstance(part, DerivedParam)]
    made = origins(leaf)[1]
    several = {
        "computation": [(part.made_by, part.init_fn) for part in computed],
        "initializer": [(label(lazy.init_fn), lazy.init_fn) for lazy in made],
    }
    found = {}
    for about, pairs in several.items():
        lines = [x for _, init in pairs if isinstance(init, Slice) for x in stable.lines_of(init)]
        short = [line[:_LONGEST] for line in lines[:_LINES]]
        found[about] = (", ".join(name for name, _ in pairs), short)
    return found


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
    """Returns a file's name and size, but not its folder, which may differ from host to host."""
    if file is None:
        return "memory"
    name = os.path.basename(getattr(file, "path", "") or type(file).__name__)
    return f"{name} of {getattr(file, 'size', '?')} bytes"


_OWN = "devices of this process"


def _placement(sharding: Sharding | None) -> str:
    if sharding is None:
        return _OWN
    processes = {device.process_index for device in sharding.device_set}
    if len(processes) == 1:  # The devices are not named: each process may take other ones.
        return f"devices of process {processes.pop()}"
    if not isinstance(sharding, NamedSharding):
        devices = sorted(device.id for device in sharding.device_set)
        return f"{type(sharding).__name__} on devices {devices}"
    return f"{sharding.spec} on {_mesh(sharding.mesh)} in {sharding.memory_kind}"


def _as_own(placement: str) -> str:
    """Returns the words for a placement, if this process means its own devices by them."""
    return _OWN if placement == f"devices of process {jax.process_index()}" else placement


@functools.lru_cache(maxsize=16)
def _mesh(mesh: Any) -> str:
    order = hashlib.blake2b(repr([d.id for d in mesh.devices.flat]).encode(), digest_size=4)
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    return f"mesh {axes} (devices {order.hexdigest()})"
