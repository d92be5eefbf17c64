"""Reads a source in another dtype, and names the tensor of a value that this cannot hold."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.sources import Index, Shape, Source
from lazyinit.tensors.base import OfOne
from lazyinit.tensors.casting import Overflow, may_overflow
from lazyinit.tensors.tiles import copy


@dataclass(frozen=True, slots=True, repr=False)
class AsDtype(OfOne):
    """A ``Source`` with its values in another dtype.

    Attributes:
      source: what is read.
      cast: the dtype of the values.
      overflow: whether a value that the dtype cannot hold may wrap or become infinite; if not, it
        is an error.
    """

    source: Source
    cast: np.dtype
    overflow: bool = False

    @property
    def shape(self) -> Shape:
        """The shape, which stays as it is."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.cast

    @property
    def may_refuse(self) -> bool:
        """Whether the source may have a value that the dtype cannot hold."""
        return not self.overflow and may_overflow(self.source.dtype, self.cast)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Casts values that were read from the source.

        Raises:
          CastError: the dtype cannot hold one of them.
        """
        with told(self.source):
            return cast(values, self.cast, overflow=self.overflow)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, cast.

        Raises:
          CastError: the dtype cannot hold one of them.
        """
        return self.of(self.source.read(index))

    def __repr__(self) -> str:
        overflow = ", overflow=True" if self.overflow else ""
        return f"{self.source!r}.astype({self.cast}{overflow})"


def cast(values: np.ndarray, dtype: np.dtype, *, overflow: bool = False) -> np.ndarray:
    """Returns values in another dtype.

    Raises:
      Overflow: the dtype cannot hold one of them; not if ``overflow`` says that it may.
    """
    made = np.empty_like(values, dtype, subok=False)
    copy(made, values, overflow=overflow)
    return made


@contextlib.contextmanager
def told(source: Source, path: str = "") -> Iterator[None]:
    """Turns an ``Overflow`` within the block into an error that names the tensor and its file.

    Args:
      source: the source whose values are cast.
      path: the path of the leaf that it fills, if there is one; the message then starts with it.

    Raises:
      CastError: in place of an ``Overflow``.
    """
    above = f"{path}: " if path else ""
    try:
        yield
    except errors.CastError as error:  # A part of the source has said which tensor it was.
        raise errors.CastError(f"{above}{error}") from None
    except Overflow as error:
        names = ", ".join(map(repr, source.names[:3])) + ", ..." * (len(source.names) > 3)
        tensors = f"tensor{'s' * (len(source.names) > 1)} {names}: " if names else ""
        dtype = error.made.dtype
        raise errors.CastError(
            f"{above}{source.origin}: {tensors}wanted values that {dtype} holds, got {error.value} "
            f"({error.value.dtype}), which would become {error.made}. Choose a dtype that holds "
            'it, or let it overflow, with on_cast="overflow" or with '
            f"Cast({str(dtype)!r}, overflow=True) in rules."
        ) from None


def may_refuse(source: Any, dtype: np.dtype) -> bool:  # Any: a source, which may have its parts.
    """Tells whether reading a source into arrays of a dtype may end in a ``CastError``."""
    return may_overflow(source.dtype, dtype) or _may_refuse(source)


def _may_refuse(source: Any) -> bool:
    return getattr(source, "may_refuse", False) or any(
        map(_may_refuse, getattr(source, "reads", ()))
    )


def same_kind(one: np.dtype, other: np.dtype) -> bool:
    """Tells whether a cast between two dtypes changes only the width of a number.

    >>> same_kind(np.dtype("float32"), np.dtype("float16"))
    True
    >>> same_kind(np.dtype("float32"), np.dtype("int32"))
    False
    """
    return _kind(one) == _kind(other)


def _kind(dtype: np.dtype) -> object:
    kinds = (np.floating, np.integer, np.complexfloating)
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)
