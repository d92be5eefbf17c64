"""What is known of a leaf without making it: the record behind every table and report of leaves.

A leaf is in one of six *states*, and ``inspect`` and ``provenance`` print that word. ``plan``
prints what ``materialize`` will *do* with a leaf, and the report of ``fill`` what it *found* for
it. These words follow from the state:

============ ================================= ==================== =================
state        what the leaf is                  ``plan``             ``fill``'s report
============ ================================= ==================== =================
``lazy``     made by an initializer            ``initialize``       ``missing``
``stored``   read from a checkpoint            ``load``             ``loaded``
``overlap``  made, then read in part           ``overlap``          ``adapted``
``derived``  computed from other leaves        ``derive``           ``derived``
``array``    there already                     ``move``             ``kept``
``abstract`` a shape alone: nothing makes it  ``keep``             ``missing``
============ ================================= ==================== =================

Beside these, ``plan`` says ``keep`` of a leaf that stays as it is and ``share`` of one that is made
at an earlier path. The report says ``derived`` of any leaf that follows one that was filled: it is
computed from that, or is the same leaf at another path. It says ``kept`` of leaves that an earlier
checkpoint filled, ``mismatched`` of those whose tensor does not fit, and ``unexpected`` of a tensor
without a leaf.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias

import jax

from lazyinit.derived import DerivedParam, origins
from lazyinit.params import label
from lazyinit.sources import Shape, describe

State: TypeAlias = Literal["lazy", "stored", "overlap", "derived", "array", "abstract"]

# By whether a leaf is read from a source, and whether it has an initializer.
_STATES: dict[tuple[bool, bool], State] = {
    (False, True): "lazy",
    (True, False): "stored",
    (True, True): "overlap",
    (False, False): "array",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one leaf, as a plain value that holds neither leaf nor tensor.

    Attributes:
      path: the path of the leaf in the tree.
      state: ``"lazy"``, ``"stored"``, ``"overlap"``, ``"derived"``, ``"array"`` or
        ``"abstract"``.
      shape: the shape of the whole array.
      dtype: the dtype of the array, which may be that of typed PRNG keys.
      origin: what makes the leaf, as text: an initializer, a file, or one over the other; for a
        derived leaf, what computes it.
      stored_nbytes: bytes of the part that is read from a checkpoint, in this dtype; 0 for a
        derived leaf, which is computed.
    """

    path: str
    state: State
    shape: Shape
    dtype: Any  # A np.dtype, or JAX's dtype of typed keys.
    origin: str
    stored_nbytes: int

    @classmethod
    def of(cls, path: str, leaf: Any, *, dtype: Any = None, **more: Any) -> Self:
        """Returns the facts of a leaf: a thunk, or anything with a shape and a dtype.

        Args:
          path: the path of the leaf.
          leaf: any such object.
          dtype: the dtype that the leaf will have once made, if it is another.
          **more: the further fields of a subclass, of any type.
        """
        is_derived = isinstance(leaf, DerivedParam)
        sources, initialized = ((), ()) if is_derived else origins(leaf)
        dtype = leaf.dtype if dtype is None else dtype
        made_by = [file_name(source.origin) for source in sources]
        made_by += [label(part.init_fn) for part in initialized]
        return cls(
            path=path,
            state="derived" if is_derived else _state(leaf, sources, initialized),
            shape=leaf.shape,
            dtype=dtype,
            origin=leaf.made_by if is_derived else " over ".join(made_by),
            stored_nbytes=sum(math.prod(x.shape) for x in sources) * dtype.itemsize,
            **more,
        )

    @property
    def nbytes(self) -> int:
        """The size of the whole array once made, in bytes, however it is sharded."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def array(self) -> str:
        """The dtype and shape of the array, as text: ``float32[768,2]``."""
        return describe(self.shape, self.dtype)


def state(leaf: object) -> State:
    """Returns the state of a leaf, as the table at the top of this file defines it."""
    return "derived" if isinstance(leaf, DerivedParam) else _state(leaf, *origins(leaf))


def _state(leaf: object, sources: Sequence[object], initialized: Sequence[object]) -> State:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return "abstract"
    return _STATES[bool(sources), bool(initialized)]


def is_array_like(leaf: object) -> bool:
    """Tells whether a leaf has a shape and a dtype, as thunks and arrays have, and so facts."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def file_name(origin: str) -> str:
    """Returns the last part of a file's path or address; an origin that is no path is unchanged."""
    return os.path.basename(origin.rstrip("/")) or origin
