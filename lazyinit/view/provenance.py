"""``provenance``: where each leaf comes from: bytes of a file, or a key and an initializer.

A tree of thunks comes in; a value goes out that can be kept beside the tree and written as JSON.
It is computed before the tree is made, because an array does not say where it comes from.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lazyinit import errors, paths
from lazyinit.checkpoint.base import Derived
from lazyinit.derived import DerivedParam, origins
from lazyinit.keys import AnyKey, Key, stream_path
from lazyinit.params import Extent, LazyParam, Source, describe, label
from lazyinit.view import table
from lazyinit.view.facts import State, is_array_like, state

_FORMAT = 1  # Of the JSON.


@dataclass(frozen=True, slots=True)
class StoredOrigin:
    """The tensors that a leaf, or a part of it, is read from.

    Attributes:
      file: the file, folder or address, or a word for a mapping in memory.
      tensors: their names in the checkpoint.
      shapes: that of each tensor, as stored.
      dtype: of the (first) tensor, as stored.
      layout: how they make the leaf, as text: ``model.safetensors:fc.weight.T``.
      shape: of what is read, in the layout of the leaf.
      extents: which bytes of which files; empty if they do not lie plainly in one.
    """

    file: str
    tensors: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    layout: str
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class RootKey:
    """The root key of one stream.

    Attributes:
      stream: its name.
      impl: the PRNG implementation, ``"threefry2x32"``; ``"traced"`` for a key without a value.
      words: the key's 32-bit words.
      typed: whether it was given as a typed key, not as raw words.
    """

    stream: str
    impl: str
    words: tuple[int, ...]
    typed: bool


@dataclass(frozen=True, slots=True)
class LazyOrigin:
    """The initializer that makes a leaf, or a part of it, and its key.

    Attributes:
      initializer: its name for people.
      keys: the root keys that it depends on.
      folded: what is folded into the one root key.
      fold: the 32-bit value that stands for that; ``-1`` if nothing is folded in.
    """

    initializer: str
    keys: tuple[RootKey, ...]
    folded: tuple[str | int, ...]
    fold: int


@dataclass(frozen=True, slots=True)
class Record:
    """Where one leaf comes from.

    Attributes:
      state: ``"stored"``; ``"lazy"``; ``"overlap"``, which is stored in part and lazy for the
        rest; ``"derived"``, computed from leaves that are stored or lazy; or ``"array"``, whose
        past is not known.
      shape: that it will have.
      dtype: that it will have in the tree, unless ``materialize`` is given another.
      stored: the tensors, for ``"stored"`` and ``"overlap"``, and for ``"derived"`` those of all
        that it is computed from; else empty.
      lazy: the initializer, for ``"lazy"`` and ``"overlap"``; for ``"derived"`` first what computes
        it, then the initializers of what it is computed from; else empty.
    """

    state: State
    shape: tuple[int, ...]
    dtype: str
    stored: tuple[StoredOrigin, ...] = ()
    lazy: tuple[LazyOrigin, ...] = ()

    @property
    def kind(self) -> State:
        """The state, by the name that it has in the JSON."""
        return self.state


@dataclass(frozen=True, slots=True, repr=False)
class Provenance(Mapping[str, Record]):
    """Where every leaf of a tree comes from, by path; prints as a table.

    Attributes:
      records: by path, in the order of the tree.
    """

    records: Mapping[str, Record]

    def __getitem__(self, path: str) -> Record:
        return self.records[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def to_json(self) -> str:
        """Returns it as JSON, from which ``from_json`` makes an equal value."""
        leaves = {path: _fields(record) for path, record in self.records.items()}
        return json.dumps({"lazyinit_provenance": _FORMAT, "leaves": leaves}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Returns the value that ``to_json`` wrote.

        Raises:
          CheckpointError: it is something else.
        """
        try:
            read = json.loads(text)
            if read["lazyinit_provenance"] != _FORMAT:
                raise ValueError(f"its format is {read['lazyinit_provenance']!r}, not {_FORMAT}")
            return cls({path: _record(fields) for path, fields in read["leaves"].items()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise errors.CheckpointError(
                f"provenance: wanted JSON that Provenance.to_json wrote, got something else: "
                f"{error!r:.200}"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON to a file.

        Raises:
          OSError: as ``open`` does.
        """
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Provenance":
        """Returns the value that ``save`` wrote.

        Raises:
          CheckpointError: the file holds something else.
          OSError: as ``open`` does.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))

    def __str__(self) -> str:
        told = {path: _cells(record) for path, record in self.records.items()}
        # Layers come from layers of the same number: {n}, where several are one row.
        rows = table.fold((p, *a, table.numbered(p, origin)) for p, (*a, origin) in told.items())
        cells = [
            (row.label, str(row.count), *(told[row.label] if row.count == 1 else row.cells))
            for row in rows
        ]
        columns = ("path", "leaves", "array", "state", "from")
        return table.render(f"{len(self)} leaves", columns, cells, right=["leaves"])

    def __repr__(self) -> str:
        return str(self)


NOTHING_KNOWN = Provenance({})


def provenance(tree: Any) -> Provenance:
    """Returns where each leaf of a lazy or filled tree comes from; nothing is read or made.

    Args:
      tree: any pytree with thunks or arrays among its leaves.

    Returns:
      One record for each thunk and array, by path. Keep it beside the tree: of an array it can
      only say that it is one.

    Example:
      >>> import jax, flax.linen as nn, numpy as np, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> tree = li.lazy(nn.Dense(2)).init(jax.random.key(7), x)
      >>> stored = {"params": {"kernel": np.ones((3, 2), "float32")}}
      >>> tree, _ = li.fill(tree, stored, on_missing="init")
      >>> origins = li.provenance(tree)
      >>> origins["params/bias"].lazy[0].keys
      (RootKey(stream='params', impl='threefry2x32', words=(0, 7), typed=True),)
      >>> print(origins)
      2 leaves
      path            leaves   array          state    from
      ────────────...
      params/bias          1   float32[2]     lazy     zeros, params#2
      params/kernel        1   float32[3,2]   stored   the mapping:params/kernel
    """
    return Provenance(
        {
            path: _record_of(leaf)
            for path, leaf in paths.leaves_with_paths(tree)
            if is_array_like(leaf)
        }
    )


def _record_of(leaf: Any) -> Record:
    sources, initialized = origins(leaf)
    own = (leaf,) if isinstance(leaf, DerivedParam) else ()
    stored, lazy = tuple(map(_stored, sources)), tuple(map(_lazy, (*own, *initialized)))
    return Record(state(leaf), tuple(leaf.shape), str(leaf.dtype), stored, lazy)


def _stored(source: Source) -> StoredOrigin:
    # One for each name; a constant that a rule says has none.
    tensors = {name: tensor for tensor in _tensors(source) for name in tensor.names}
    first = next(iter(tensors.values()), source)
    return StoredOrigin(
        source.origin,
        tuple(tensors),
        tuple(tuple(tensor.shape) for tensor in tensors.values()),
        str(first.dtype),
        repr(source),
        tuple(source.shape),
        tuple(source.extents),
    )


def _tensors(source: Source) -> Iterator[Source]:
    """Yields what lies below all layout changes."""
    if not isinstance(source, Derived):
        yield source
        return
    for part in source.reads:
        yield from _tensors(part)


def _lazy(leaf: LazyParam | DerivedParam) -> LazyOrigin:
    path = leaf.rng_path
    keys = tuple(_root(stream, key) for stream, key in path.roots.items())
    return LazyOrigin(label(leaf.init_fn), keys, tuple(path.folded), path.fold)


def _root(stream: str, key: AnyKey) -> RootKey:
    if not isinstance(key, Key):
        return RootKey(stream, "traced", (), True)
    words = np.frombuffer(key.data, np.uint32).tolist()
    return RootKey(stream, key.impl, tuple(words), key.typed)


def _fields(record: Record) -> dict[str, Any]:  # Any, here and below: what JSON holds.
    fields = asdict(record)
    return {"kind": fields.pop("state"), **fields}


def _record(fields: Mapping[str, Any]) -> Record:
    stored = tuple(
        StoredOrigin(
            **{
                **_tuples(x),
                "shapes": tuple(map(tuple, x["shapes"])),
                "extents": tuple(Extent(**extent) for extent in x["extents"]),
            }
        )
        for x in fields["stored"]
    )
    lazy = tuple(
        LazyOrigin(**{**_tuples(x), "keys": tuple(RootKey(**_tuples(k)) for k in x["keys"])})
        for x in fields["lazy"]
    )
    others = {**_tuples(fields), "stored": stored, "lazy": lazy}
    return Record(others.pop("kind"), **others)


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}


def _cells(record: Record) -> tuple[str, str, str]:
    parts = [
        x.layout if x.dtype == record.dtype else f"{x.layout}, cast from {x.dtype}"
        for x in record.stored
    ]
    for x in record.lazy:
        keyed = stream_path((key.stream for key in x.keys), x.folded)
        parts.append(", ".join(filter(None, (x.initializer, keyed))))
    text = " over ".join(parts)
    if record.state == "derived":
        own = parts.pop(len(record.stored))
        text = f"{own} of {', '.join(parts if len(parts) < 4 else [parts[0], '...', parts[-1]])}"
    return describe(record.shape, record.dtype), record.state, text
