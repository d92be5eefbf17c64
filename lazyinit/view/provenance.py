"""``provenance``: where each leaf comes from: bytes of a file, or a key and an initializer.

A tree of thunks comes in; a value goes out that can be kept beside the tree and written as JSON.
It is computed before the tree is made, because an array does not say where it comes from.
``origin.py`` has the record of one leaf.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyinit import errors, paths
from lazyinit.keys import stream_path
from lazyinit.sources import describe
from lazyinit.view import table
from lazyinit.view.facts import is_array_like
from lazyinit.view.origin import Record, from_fields, record_of, to_fields
from lazyinit.view.shown import Shown

_FORMAT = 1  # The version of the JSON.


@dataclass(frozen=True, slots=True, repr=False)
class Provenance(Shown, Mapping[str, Record]):
    """Where every leaf of a tree comes from, by path; prints as a table.

    Attributes:
      records: the record of each leaf, by path, in the order of the tree.
    """

    records: Mapping[str, Record]

    def __getitem__(self, path: str) -> Record:
        return self.records[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def to_json(self) -> str:
        """Returns the provenance as JSON text, of which ``from_json`` makes an equal value."""
        leaves = {path: to_fields(record) for path, record in self.records.items()}
        return json.dumps({"lazyinit_provenance": _FORMAT, "leaves": leaves}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """Returns the provenance that ``to_json`` wrote.

        Raises:
          CheckpointError: the text is something else.
        """
        try:
            read = json.loads(text)
            if read["lazyinit_provenance"] != _FORMAT:
                raise ValueError(f"its format is {read['lazyinit_provenance']!r}, not {_FORMAT}")
            return cls({path: from_fields(fields) for path, fields in read["leaves"].items()})
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
        """Returns the provenance that ``save`` wrote.

        Raises:
          CheckpointError: the file holds something else.
          OSError: as ``open`` does.
        """
        return cls.from_json(Path(path).read_text(encoding="utf-8", errors="replace"))

    def _table(self) -> table.Table:
        told = {path: _cells(record) for path, record in self.records.items()}
        # If several layers fold to one row, {n} stands for their numbers in the origin.
        rows = table.fold((p, *a, table.numbered(p, origin)) for p, (*a, origin) in told.items())
        cells = [
            (row.label, str(row.count), *(told[row.label] if row.count == 1 else row.cells))
            for row in rows
        ]
        columns = ("path", "leaves", "array", "state", "from")
        return table.Table(f"{len(self)} leaves", columns, cells, right=["leaves"])


NOTHING_KNOWN = Provenance({})


def provenance(tree: Any) -> Provenance:
    """Returns where each leaf of a lazy or filled tree comes from; nothing is read or made.

    Args:
      tree: any pytree with thunks or arrays among its leaves.

    Returns:
      One record for each thunk and array, by path. Compute it before ``materialize`` and keep it:
      of an array it says only that it is one.

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
            path: record_of(leaf)
            for path, leaf in paths.leaves_with_paths(tree)
            if is_array_like(leaf)
        }
    )


def _cells(record: Record) -> tuple[str, str, str]:
    """Returns the array, the state and the origin of a record, as cells of a table."""
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
