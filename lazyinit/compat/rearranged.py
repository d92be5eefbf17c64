"""Describes equations that only move or cast elements, in types of our own.

The names of parameters are JAX's and not public. An equation that cannot be read gets no
description, and is run as it stands.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import jax.extend.core as jex

from lazyinit.compat.placements import moves


@dataclass(frozen=True, slots=True)
class Same:
    """The first input, unchanged; it may go to other devices."""


@dataclass(frozen=True, slots=True)
class Permuted:
    """The first input with its axes in another order, as ``numpy.transpose`` takes them."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shaped:
    """The first input's elements in the same order, under the shape of the result."""


@dataclass(frozen=True, slots=True)
class Flipped:
    """The first input with the elements along some axes in reverse order."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A box of the first input, of which every so many elements along each axis are taken.

    Attributes:
      box: for each axis, the first index and the one after the last.
      steps: for each axis, the step from one index that is taken to the next.
    """

    box: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InLine:
    """All inputs, concatenated along an axis, or stacked along a new one."""

    axis: int
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Recast:
    """The first input in the dtype of the result."""


Layout: TypeAlias = Same | Permuted | Shaped | Flipped | Box | InLine | Recast


def layout_of(equation: jex.JaxprEqn) -> Layout | None:
    """Returns how an equation moves or casts elements; ``None`` if it does anything else."""
    params = equation.params
    source: Any = equation.invars[0].aval if equation.invars else None
    match equation.primitive.name:
        case "copy" | "copy_p":
            return Same()
        case "transpose":
            return Permuted(tuple(params["permutation"]))
        case "reshape" if params["dimensions"] is None:
            return Shaped()
        case "squeeze" | "expand_dims":
            return Shaped()
        case "broadcast_in_dim":
            result: Any = equation.outvars[0].aval
            # Its dimensions come in ascending order: JAX checks that.
            return Shaped() if source.size == result.size else None
        case "rev":
            return Flipped(tuple(params["dimensions"]))
        case "slice":
            bounds = tuple(zip(params["start_indices"], params["limit_indices"], strict=True))
            return Box(bounds, tuple(params["strides"] or [1] * len(bounds)))
        case "concatenate":
            return InLine(params["dimension"])
        case "stack":  # A primitive since jax 0.11.
            return InLine(params["axis"], is_stacked=True)
        case "convert_element_type":
            return Recast()
        case _ if len(equation.invars) == 1 and moves(equation):
            return Same()
    return None
