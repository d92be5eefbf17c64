"""Where one leaf comes from, as a ``Record``, and as fields for JSON.

``provenance`` keeps one record for each leaf of a tree.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lazyinit.derived import DerivedParam, origins
from lazyinit.keys import AnyKey, Key
from lazyinit.params import LazyParam, label
from lazyinit.sources import Extent, Source
from lazyinit.tensors.base import Derived
from lazyinit.view.facts import State, state


@dataclass(frozen=True, slots=True)
class StoredOrigin:
    """The tensors that a leaf, or a part of it, is read from.

    Attributes:
      file: the file, folder or address, or a word for a mapping in memory.
      tensors: their names in the checkpoint.
      shapes: the shape of each tensor, as stored.
      dtype: the dtype of the (first) tensor, as stored.
      layout: how the tensors make the leaf, as text: ``model.safetensors:fc.weight.T``.
      shape: the shape of what is read, in the layout of the leaf.
      extents: the byte ranges that are read; empty if the bytes are not plainly in a file.
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
      stream: the name of the stream.
      impl: the PRNG implementation, ``"threefry2x32"``; ``"traced"`` for a key without a value.
      words: the key's 32-bit words.
      typed: whether the user gave a typed key, not raw words.
    """

    stream: str
    impl: str
    words: tuple[int, ...]
    typed: bool


@dataclass(frozen=True, slots=True)
class LazyOrigin:
    """The initializer that makes a leaf, or a part of it, and its key.

    Attributes:
      initializer: the name of the initializer, for people.
      keys: the root keys that it depends on.
      folded: what is folded into the one root key: names and counts.
      fold: the 32-bit value that Flax folds in for these; ``-1`` if nothing is folded in.
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
      shape: the shape of the leaf.
      dtype: the dtype of the leaf in the tree; ``materialize`` may be given another.
      stored: the tensors that the leaf is read from; for ``"derived"`` those of all leaves that it
        is computed from.
      lazy: the initializer that makes the leaf; for ``"derived"`` first what computes it, then the
        initializers of all leaves that it is computed from.
    """

    state: State
    shape: tuple[int, ...]
    dtype: str
    stored: tuple[StoredOrigin, ...] = ()
    lazy: tuple[LazyOrigin, ...] = ()

    @property
    def kind(self) -> State:
        """The state, under the name of its field in the JSON."""
        return self.state


def record_of(leaf: Any) -> Record:  # Any: a thunk, an array, or what describes one.
    """Returns the record of where a leaf comes from."""
    sources, initialized = origins(leaf)
    own = (leaf,) if isinstance(leaf, DerivedParam) else ()
    stored, lazy = tuple(map(_stored, sources)), tuple(map(_lazy, (*own, *initialized)))
    return Record(state(leaf), tuple(leaf.shape), str(leaf.dtype), stored, lazy)


def _stored(source: Source) -> StoredOrigin:
    # Several parts may read one tensor, which is listed once. A rule's constant has no name.
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
    """Yields the sources below all layout changes: the tensors of the checkpoint."""
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


def to_fields(record: Record) -> dict[str, Any]:  # Any, here and below: what JSON holds.
    """Returns a record as the fields of a JSON object."""
    fields = asdict(record)
    return {"kind": fields.pop("state"), **fields}


def from_fields(fields: Mapping[str, Any]) -> Record:
    """Returns the record from the fields that ``to_fields`` made of it.

    Raises:
      KeyError, TypeError, AttributeError: fields are missing, or are of other types.
    """
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
    """Returns fields with tuples in place of lists, which JSON makes of tuples."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
