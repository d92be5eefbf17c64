"""The tensors of one quantized weight, and what a scheme is: which they are, and what they mean."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.sources import Shape, Source, describe
from lazyinit.tensors.base import Checkpoint
from lazyinit.tensors.mapped import MappedTensor
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.quantized import blocks_of
from lazyinit.tensors.scales import Taken
from lazyinit.tensors.views import reshaped

_READ_LIMIT = 1 << 24  # Bytes of a tensor that is read when a checkpoint is opened: shapes, orders.
_ADVICE = "The tensors and config.json do not go together: fetch the folder again."
PLACES = ("int32", "int64")  # Dtypes of what says places of groups, or a shape.


@dataclass(frozen=True, slots=True)
class Weight:
    """The tensors of one quantized weight.

    Attributes:
      checkpoint: that they are in.
      name: what the weight is called once it is a tensor of numbers.
      main: the name of the tensor that holds its values.
      parts: the names of the others, by what each is: ``"weight_scale"``; those that are there.
    """

    checkpoint: Checkpoint
    name: str
    main: str
    parts: Mapping[str, str]

    @property
    def module(self) -> str:
        """The name without its last key."""
        return self.name.rpartition(".")[0]

    @property
    def values(self) -> Source:
        """The tensor that holds the values."""
        return self.checkpoint[self.main]

    def part(self, part: str) -> Source:
        """Returns another tensor of the weight.

        Raises:
          CheckpointError: there is none.
        """
        if part not in self.parts:
            raise errors.CheckpointError(
                f"{self.checkpoint.origin}: tensor {self.main!r}: wanted its {part!r} beside it, "
                f"got {', '.join(map(repr, self.parts.values())) or 'no other tensor of it'}. "
                f"{_ADVICE}"
            )
        return self.checkpoint[self.parts[part]]

    def wrong(self, part: str, wanted: str, got: object = None) -> errors.CheckpointError:
        """Returns the error for a part that is not as it should be; ``""`` for the values."""
        name = self.parts[part] if part else self.main
        source = self.checkpoint[name]
        shown = describe(source.shape, source.dtype) if got is None else f"{got!r:.80}"
        return errors.CheckpointError(
            f"{self.checkpoint.origin}: tensor {name!r}: wanted {wanted}, got {shown}. {_ADVICE}"
        )

    def check(self, part: str, shape: Shape, *dtypes: str) -> Source:
        """Returns a part that has this shape and one of these dtypes; ``""`` for the values.

        Raises:
          CheckpointError: it is missing, or another.
        """
        source = self.part(part) if part else self.values
        if source.shape != shape or source.dtype.name not in dtypes:
            raise self.wrong(part, f"{' or '.join(dtypes)}{list(shape)}")
        return source

    def read(self, part: str, *dtypes: str) -> np.ndarray:
        """Returns the values of a small part, which say how the others are to be read.

        Raises:
          CheckpointError: it is missing, of another dtype, or not small.
        """
        source = self.part(part)
        if source.dtype.name not in dtypes:
            raise self.wrong(part, " or ".join(dtypes))
        if math.prod(source.shape) * source.dtype.itemsize > _READ_LIMIT:
            raise self.wrong(part, f"a tensor of at most {_READ_LIMIT} bytes")
        return np.array(source.read((slice(None),) * len(source.shape)))

    def scales(self, part: str, shape: Shape, block: Shape, *, exponents: bool = False) -> Source:
        """Returns scales, one for each block of values of this shape, checked.

        Axes at the end along which there is one scale for all may be left out.

        Args:
          part: which.
          shape: of the values.
          block: how many values along each axis share a scale.
          exponents: whether scales may be ``uint8``, powers of two.

        Raises:
          CheckpointError: they are missing, of another shape, or no floats.
        """
        source = self.part(part)
        counts = blocks_of(shape, block)
        is_exponents = exponents and source.dtype == np.dtype("uint8")
        if not jnp.issubdtype(source.dtype, jnp.floating) and not is_exponents:
            raise self.wrong(part, "floats")
        short = source.shape
        while len(short) < len(counts) and counts[len(short)] == 1:
            short += (1,)
        if source.shape == (1,) and math.prod(counts) == 1:
            short = counts
        if short != counts:
            raise self.wrong(part, f"scales of shape {list(counts)} for values {list(shape)}")
        return in_shape(source, counts)

    def in_order(self, part: str, sources: tuple[Source, ...], axis: int, size: int) -> Any:
        """Returns the scales and zero points of groups in an order that a tensor says.

        Args:
          part: which for each place along the axis says the number of its group.
          sources: with a place for each group along the axis.
          axis: along which groups lie.
          size: places along the axis of the values.

        Raises:
          CheckpointError: it is of another shape, or names a group that there is not.
        """
        self.check(part, (size,), *PLACES)
        held = self.read(part, *PLACES)
        count = sources[0].shape[axis]
        if held.size and not 0 <= held.min() <= held.max() < count:
            raise self.wrong(part, f"groups from 0 to {count - 1}", int(held.max()))
        held.flags.writeable = False
        places = HeldTensor(self.parts[part], held, self.checkpoint.origin)
        return tuple(Taken(source, axis, places) for source in sources)


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights of one method lie in a checkpoint.

    Attributes:
      weights: finds them.
      source: makes the numbers of one, or raises ``CheckpointError``.
      refused: says why a configuration is none that is dequantized, or ``""``.
      is_plain: tells whether a configuration quantizes no weight: activations or a cache alone.
    """

    weights: Callable[[Checkpoint], Iterator[Weight]]
    source: Callable[[Weight, Mapping[str, Any]], Source]
    refused: Callable[[Mapping[str, Any]], str] = lambda said: ""
    is_plain: Callable[[Mapping[str, Any]], bool] = lambda said: False


def by_end(
    checkpoint: Checkpoint, main: str, weight: str, parts: Mapping[str, str]
) -> Iterator[Weight]:
    """Yields the weights whose values are in tensors with such an end of their name.

    Args:
      checkpoint: whose names are looked through.
      main: the end of that name: ``".qweight"``.
      weight: the end that the weight's own name has in its place: ``".weight"``.
      parts: the ends of the names of the other tensors, by what each is.
    """
    for name in checkpoint:
        if name.endswith(main):
            stem = name.removesuffix(main)
            there = {part: stem + end for part, end in parts.items() if stem + end in checkpoint}
            yield Weight(checkpoint, stem + weight, name, there)


def in_shape(source: Source, shape: Shape) -> Source:
    """Returns a source under another shape; one that lies in a file plainly lies there so, too."""
    if isinstance(source, MappedTensor) and not source.steps:
        return replace(source, shape=shape)  # No block of it is read by runs of elements.
    return reshaped(source, shape)


def dtype_by(scales: Source) -> np.dtype:
    """Returns the dtype of products: that of the scales, if it has sixteen bits or more."""
    if scales.dtype.itemsize > 1:
        return scales.dtype
    return np.dtype(jnp.bfloat16)


def is_count(value: object) -> bool:
    """Tells whether a value of JSON is a whole number above zero."""
    return type(value) is int and 0 < value < 1 << 31
