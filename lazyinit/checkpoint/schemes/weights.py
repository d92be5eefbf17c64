"""The tensors of a quantized weight, and schemes, which find them and say what they mean."""

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

_READ_LIMIT = 1 << 24  # The most bytes of a tensor (a shape, an order) that is read at opening.
_ADVICE = "The tensors and config.json do not fit together: fetch the folder again."
PLACES = ("int32", "int64")  # Dtypes of tensors that hold an order of groups, or a shape.


@dataclass(frozen=True, slots=True)
class Weight:
    """The tensors of one quantized weight.

    Attributes:
      checkpoint: the checkpoint that they are in.
      name: the name of the weight once it is a tensor of numbers.
      main: the name of the tensor that holds its values.
      parts: the names of its other tensors, by what each is, such as ``"weight_scale"``; only of
        those that the checkpoint has.
    """

    checkpoint: Checkpoint
    name: str
    main: str
    parts: Mapping[str, str]

    @property
    def module(self) -> str:
        """The name of the weight's module: its own name, without the last key."""
        return self.name.rpartition(".")[0]

    @property
    def values(self) -> Source:
        """The tensor that holds the values."""
        return self.checkpoint[self.main]

    def part(self, part: str) -> Source:
        """Returns another tensor of the weight.

        Raises:
          CheckpointError: the checkpoint lacks it.
        """
        if part not in self.parts:
            raise errors.CheckpointError(
                f"{self.checkpoint.origin}: tensor {self.main!r}: wanted its {part!r} beside it, "
                f"got {', '.join(map(repr, self.parts.values())) or 'no other tensor of it'}. "
                f"{_ADVICE}"
            )
        return self.checkpoint[self.parts[part]]

    def wrong(self, part: str, wanted: str, got: object = None) -> errors.CheckpointError:
        """Returns the error for a part that is wrong; the part ``""`` is the values."""
        name = self.parts[part] if part else self.main
        source = self.checkpoint[name]
        shown = describe(source.shape, source.dtype) if got is None else f"{got!r:.80}"
        return errors.CheckpointError(
            f"{self.checkpoint.origin}: tensor {name!r}: wanted {wanted}, got {shown}. {_ADVICE}"
        )

    def check(self, part: str, shape: Shape, *dtypes: str) -> Source:
        """Returns a part after checking its shape and dtype; the part ``""`` is the values.

        Raises:
          CheckpointError: it is missing, or has another shape or dtype.
        """
        source = self.part(part) if part else self.values
        if source.shape != shape or source.dtype.name not in dtypes:
            raise self.wrong(part, f"{' or '.join(dtypes)}{list(shape)}")
        return source

    def read(self, part: str, *dtypes: str) -> np.ndarray:
        """Reads a small part, whose values say how the other parts are to be read.

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
        """Returns the scales, one for each block of values, after checking them.

        In the file, scales may lack their last axes, if there is one scale for all along those.

        Args:
          part: the part that holds the scales.
          shape: the shape of the values.
          block: how many values along each axis share a scale.
          exponents: whether scales may be ``uint8``, as powers of two.

        Raises:
          CheckpointError: the scales are missing, of another shape, or not floats.
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
        """Returns scales and zero points with one for each value along an axis, not for each group.

        Args:
          part: the part that says, for each value along the axis, the number of its group.
          sources: scales and zero points, with one for each group along the axis.
          axis: the axis that is cut into groups.
          size: how many values there are along the axis.

        Raises:
          CheckpointError: the part has another shape, or the number of a group that is not there.
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
      weights: finds the weights of a checkpoint.
      source: returns the source of a weight's numbers, or raises ``CheckpointError``.
      refused: returns why weights of a configuration cannot be dequantized; ``""`` if they can.
      is_plain: tells whether a configuration quantizes no weight, but activations or a cache alone.
    """

    weights: Callable[[Checkpoint], Iterator[Weight]]
    source: Callable[[Weight, Mapping[str, Any]], Source]
    refused: Callable[[Mapping[str, Any]], str] = lambda said: ""
    is_plain: Callable[[Mapping[str, Any]], bool] = lambda said: False


def by_end(
    checkpoint: Checkpoint, main: str, weight: str, parts: Mapping[str, str]
) -> Iterator[Weight]:
    """Yields the weights whose values are in tensors with names that end in ``main``.

    Args:
      checkpoint: the checkpoint to search.
      main: the end of the names of tensors that hold values, such as ``".qweight"``.
      weight: the end that the weight's own name has in its place, such as ``".weight"``.
      parts: the ends of the names of the other tensors, by what each is.
    """
    for name in checkpoint:
        if name.endswith(main):
            stem = name.removesuffix(main)
            there = {part: stem + end for part, end in parts.items() if stem + end in checkpoint}
            yield Weight(checkpoint, stem + weight, name, there)


def in_shape(source: Source, shape: Shape) -> Source:
    """Returns a source under another shape; a mapped tensor in C order stays a mapped tensor."""
    if isinstance(source, MappedTensor) and not source.steps:
        return replace(source, shape=shape)  # A reshape would read blocks in several runs.
    return reshaped(source, shape)


def dtype_by(scales: Source) -> np.dtype:
    """Returns the dtype of products: bfloat16 if scales have eight bits, else that of scales."""
    if scales.dtype.itemsize > 1:
        return scales.dtype
    return np.dtype(jnp.bfloat16)


def is_count(value: object) -> bool:
    """Tells whether a value of JSON is an integer from 1 to 2**31 - 1."""
    return type(value) is int and 0 < value < 1 << 31
