"""What ``fill`` did, as a plain value: an entry for each leaf and for each tensor left over."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from lazyinit.rules.rule import AnyRule
from lazyinit.sources import Shape, describe
from lazyinit.view import table
from lazyinit.view.facts import Facts, file_name
from lazyinit.view.provenance import NOTHING_KNOWN, Provenance
from lazyinit.view.shown import Shown

Status: TypeAlias = Literal[
    "loaded", "derived", "missing", "mismatched", "adapted", "kept", "unexpected"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafReport(Facts):
    """What ``fill`` did with one leaf, or with one tensor that no leaf is made from.

    The inherited attributes are the facts of the leaf as ``fill`` returns it. For an unexpected
    tensor they are the facts of a leaf that would be read from it; its path is the tensor's name.

    Attributes:
      status: ``"loaded"``: it is read from the checkpoint. ``"missing"``: the checkpoint lacks it,
        and it will be initialized. ``"derived"``: the checkpoint lacks it, but has what it is
        computed from, or the same leaf at another path. ``"mismatched"``: its tensor does not fit,
        and it was left as it was. ``"adapted"``: its tensor does not fit, and ``on_mismatch``
        replaced it. ``"kept"``: the checkpoint lacks it, and it is an array, a leaf filled before
        or the state of a random stream. ``"unexpected"``: it is a tensor that makes no leaf.
      tensor: the names of its tensors, shortened for people; ``""`` if it has none.
      stored_shape: the shape of the (first) tensor, before any layout change.
      stored_dtype: the dtype of the (first) tensor; that of the leaf if there is none.
      tensors: the names of all its tensors.
      follows: the paths of the leaves that a derived leaf follows.
    """

    status: Status
    tensor: str
    stored_shape: Shape
    stored_dtype: np.dtype
    tensors: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()

    @property
    def cast(self) -> bool:
        """Whether the tensor is cast when it is read."""
        return self.status == "loaded" and self.stored_dtype != self.dtype


@dataclass(frozen=True, slots=True, repr=False)
class Report(Shown):
    """What ``fill`` did. ``str(report)`` is a table in which numbered layers fold.

    Attributes:
      origin: where the tensors lie.
      entries: one for each leaf that a tensor could make, in tree order, then one for each
        unexpected tensor, in the order of the checkpoint.
      unused_rules: rules that were not used. Optional ones, such as ``TORCH``'s, are not listed.
      provenance: where each leaf of the filled tree comes from.
      ready_map: the map of ``lazyinit.maps`` that ``from_pretrained`` chose itself, or ``""``.
      dequantized: the quantization method of weights that are dequantized when read, or ``""``.

    Example:
      >>> import numpy as np
      >>> from lazyinit import fill
      >>> tree = {"a": np.zeros(2), "b": np.zeros(3)}
      >>> _, report = fill(tree, {"a": np.ones(2), "c": np.ones(4)})
      >>> report.loaded, report.kept, report.unexpected
      (('a',), ('b',), ('c',))
      >>> print(report)
      1 of 2 leaves from the mapping (16 B), 1 kept, 1 unexpected
      path   array        leaves   bytes   status
      ───────────────────────────────────────────────
      a      float64[2]        1    16 B   loaded
      b      float64[3]        1    24 B   kept
      c      float64[4]        1    32 B   unexpected
    """

    origin: str
    entries: tuple[LeafReport, ...]
    unused_rules: tuple[AnyRule, ...] = ()
    provenance: Provenance = NOTHING_KNOWN
    ready_map: str = ""
    dequantized: str = ""

    @property
    def loaded(self) -> tuple[str, ...]:
        """Paths of the leaves that come from the checkpoint."""
        return self._paths("loaded")

    @property
    def derived(self) -> tuple[str, ...]:
        """Paths of the leaves that the checkpoint lacks, and that follow leaves that it fills."""
        return self._paths("derived")

    @property
    def missing(self) -> tuple[str, ...]:
        """Paths of the leaves that the checkpoint lacks; they will be initialized."""
        return self._paths("missing")

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Paths of the leaves whose tensor has another shape or kind; they are unchanged."""
        return self._paths("mismatched")

    @property
    def adapted(self) -> tuple[str, ...]:
        """Paths of the leaves that ``on_mismatch`` replaced, for example by an overlap."""
        return self._paths("adapted")

    @property
    def kept(self) -> tuple[str, ...]:
        """Paths of arrays and of leaves filled before, which this checkpoint lacks."""
        return self._paths("kept")

    @property
    def unexpected(self) -> tuple[str, ...]:
        """Names of the tensors that no leaf is made from."""
        return self._paths("unexpected")

    @property
    def cast(self) -> tuple[str, ...]:
        """Paths of loaded leaves whose tensor has another dtype of the same kind."""
        return tuple(entry.path for entry in self.entries if entry.cast)

    @property
    def sources(self) -> Mapping[str, LeafReport]:
        """The entries of leaves for which a tensor was found, mismatched ones too, by path."""
        found = (entry for entry in self.entries if entry.status != "unexpected")
        return {entry.path: entry for entry in found if entry.tensor}

    @property
    def nbytes(self) -> int:
        """The size of the loaded leaves as whole arrays, in bytes, however they are sharded."""
        return sum(entry.nbytes for entry in self.entries if entry.status == "loaded")

    def _paths(self, status: Status) -> tuple[str, ...]:
        return tuple(entry.path for entry in self.entries if entry.status == status)

    def summary(self) -> str:
        """Returns one line: how many leaves come from the checkpoint, and what else was found."""
        leaves = len(self.entries) - len(self.unexpected)
        size = table.format_bytes(self.nbytes)
        parts = [f"{len(self.loaded)} of {leaves} leaves from {file_name(self.origin)} ({size})"]
        for kept, word in (
            (self.cast, "cast"),
            (self.derived, "derived"),
            (self.missing, "missing (will be initialized)"),
            (self.mismatched, "mismatched (left as they were)"),
            (self.adapted, "adapted"),
            (self.kept, "kept"),
            (self.unexpected, "unexpected"),
        ):
            if kept:
                parts.append(f"{len(kept)} {word}")
        found = f" by lazyinit.maps.{self.ready_map}" if self.ready_map else ""
        how = [f"dequantized from {self.dequantized}"] if self.dequantized else []
        return ", ".join([parts[0] + found, *how, *parts[1:]])

    def __repr__(self) -> str:
        return f"Report({self.summary()})"

    def _table(self) -> table.Table:
        folded = table.fold(_cells(entry) for entry in self.entries)
        rows = [
            (row.label, array, str(row.count), table.format_bytes(int(nbytes) * row.count), status)
            for row in folded
            for array, nbytes, status in [row.cells]
        ]
        heads = ("path", "array", "leaves", "bytes", "status")
        notes = [f"unused: {rule}" for rule in self.unused_rules]
        return table.Table(self.summary(), heads, rows, right=["leaves", "bytes"], notes=notes)


def _cells(entry: LeafReport) -> tuple[str, str, str, str]:
    """Returns the path, array, bytes and status of an entry, as cells of a table."""
    status: str = entry.status
    if entry.cast:
        status += f", cast from {entry.stored_dtype}"
    elif status == "derived":
        follows = [table.numbered(entry.path, path) for path in entry.follows]
        status += f" from {', '.join(follows if len(follows) < 4 else [follows[0], '...'])}"
    elif status in ("mismatched", "adapted"):
        status += f" with {describe(entry.stored_shape, entry.stored_dtype)}"
    return entry.path, entry.array, str(entry.nbytes), status
