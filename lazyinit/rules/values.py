"""Changes that compute new values: scaled and shifted, or interpolated on another grid."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from lazyinit import errors
from lazyinit.rules.change import Change, OneByOne, Wanted, axis_of, resized, size_along
from lazyinit.sources import Shape, Source, describe
from lazyinit.tensors.computed import METHODS, Affine, Interpolated
from lazyinit.tensors.joined import Joined
from lazyinit.tensors.views import cut, reshaped


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class Scale(OneByOne):
    """Multiplies each value and adds to it, for libraries that fold numbers into their weights.

    ``Scale(by=0.125)`` is for a model that keeps queries divided by 8, ``Scale(plus=1)`` for a
    checkpoint whose norms are stored with 1 subtracted. Values are computed in float32 (in float64
    if they are float64), and rounded once, to the dtype of the leaf. Backwards, ``plus`` is
    subtracted and the result divided, in the dtype of the leaf, so that values come back up to a
    rounding.

    Attributes:
      by: the factor.
      plus: the number that is added after the multiplication.
      axis: an axis whose size, to the ``power``, is another factor; negative to count from the
        end. ``Scale(axis=-1, power=-0.5)`` divides by the root of the last size.
      power: the exponent of that size.
      dtype: the dtype to which the whole factor is rounded.

    Raises:
      FillError: ``by`` is 0, a number is not finite, or ``dtype`` is no dtype of floats.

    Example:
      >>> Scale(plus=1), Scale(axis=-1, power=-0.5)
      (Scale(plus=1), Scale(axis=-1, power=-0.5))
    """

    by: float = 1
    plus: float = 0
    axis: int | None = None
    power: float = 0.5
    dtype: str = "float32"

    def __post_init__(self) -> None:
        numbers = (self.by, self.plus, self.power)
        if not self.by or not all(math.isfinite(number) for number in numbers):
            raise errors.FillError(f"{self}: wanted finite numbers, and for by= one other than 0.")
        try:
            made = jnp.dtype(self.dtype)
        except TypeError:
            made = np.dtype(object)
        if not jnp.issubdtype(made, jnp.floating):
            raise errors.FillError(f"{self}: wanted a dtype of floats, such as 'bfloat16'.")

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape: the change keeps every shape."""
        return wanted

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source, scaled and shifted."""
        return self._scaled(source, inverted=False)

    def restored(self, source: Source) -> Source:
        """Returns the source with ``plus`` subtracted, and then divided by the factor."""
        return self._scaled(source, inverted=True)

    def _scaled(self, source: Source, *, inverted: bool) -> Source:
        _check_floats(source, self)
        size = 1
        if self.axis is not None:
            size = max(1, source.shape[axis_of(self.axis, len(source.shape), self)])
        with np.errstate(over="ignore"):  # A factor that overflows is infinite; refused below.
            factor = np.float64(size) ** self.power * self.by
            factor = float(factor.astype(jnp.dtype(self.dtype)))
        if not factor or not math.isfinite(factor):
            raise errors.FillError(
                f"{self}: wanted a factor that {self.dtype} can hold, got one that becomes "
                f"{factor:g} in it. Pass dtype='float64'."
            )
        return Affine(source, factor, float(self.plus), inverted)

    def __repr__(self) -> str:
        said = [f"{n}={v!r}" for n in ("by", "plus") if (v := getattr(self, n)) != _PLAIN[n]]
        said += [f"axis={self.axis}", f"power={self.power!r}"] * (self.axis is not None)
        said += [f"dtype={self.dtype!r}"] * (self.dtype != "float32")
        return f"Scale({', '.join(said)})"


_PLAIN = {"by": 1, "plus": 0}


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class ResizeGrid(OneByOne):
    """Interpolates position embeddings to another grid, for images or patches of another size.

    One axis has some positions that are kept (a class token), and then those of a grid, row by
    row. The grid is resized to that of the leaf; by default both are squares. The change is lossy,
    and cannot be read backwards. Every shard reads the whole grid, but only its own columns.

    PyTorch and JAX differ. ``"torch bicubic"`` is ``interpolate(..., mode="bicubic",
    align_corners=False)``, as ViT, CLIP and SigLIP of ``transformers`` call it: the kernel of
    Keys with -0.75, the edge repeated beyond itself, and no blurring where the grid shrinks.
    ``"jax cubic"`` is ``jax.image.resize(..., "cubic")``: the kernel with -0.5, no weight beyond
    the edge, and a wider kernel where the grid shrinks. ``"torch bilinear"`` and ``"jax linear"``
    differ in the same way. If the grids are equal, the values are not changed.

    Attributes:
      axis: the axis of positions; negative to count from the end.
      first: how many positions before the grid are kept.
      grid: the rows and columns of the tensor's grid; ``()`` for a square.
      to: the rows and columns of the leaf's grid; ``()`` for a square.
      method: one of these four.

    Raises:
      FillError: the method is unknown, or a size is not valid.

    Example:
      >>> ResizeGrid(axis=1, first=1)
      ResizeGrid(axis=1, first=1)
    """

    axis: int
    first: int = 0
    grid: tuple[int, ...] = ()
    to: tuple[int, ...] = ()
    method: str = "torch bicubic"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise errors.FillError(
                f"ResizeGrid: wanted a method among {', '.join(map(repr, METHODS))}, got "
                f"{self.method!r}{errors.nearest(str(self.method), list(METHODS))}"
            )
        for name in ("grid", "to"):
            sizes = tuple(map(int, getattr(self, name)))
            object.__setattr__(self, name, sizes)
            if len(sizes) not in (0, 2) or any(size < 1 for size in sizes):
                raise errors.FillError(
                    f"ResizeGrid: wanted rows and columns for {name}, as in {name}=(14, 14), got "
                    f"{list(sizes)}."
                )
        if self.first < 0:
            raise errors.FillError(f"ResizeGrid: wanted first=0 or more, got {self.first}.")

    def wanted_before(self, wanted: Shape) -> Wanted:
        """Returns the wanted shape with the tensor's size along the axis: -1 without ``grid``."""
        return resized(wanted, self.axis, self.first + math.prod(self.grid) if self.grid else -1)

    def changed(self, source: Source, wanted: Wanted) -> Source:
        """Returns the source with its grid resized."""
        axis = axis_of(self.axis, len(source.shape), self)
        before, after = source.shape[:axis], source.shape[axis + 1 :]
        have = self._grid(self.grid, source.shape[axis], "grid")
        size = size_along(wanted, self.axis)
        if size < 0 and not self.to:
            raise errors.FillError(
                f"{self}: wanted the size of the leaf, which nothing tells here. Pass it as to=."
            )
        to = self._grid(self.to, size if size >= 0 else self.first + math.prod(self.to), "to")
        if have == to:
            return source
        _check_floats(source, self)
        rest = cut(source, {axis: (self.first, source.shape[axis])})
        made = Interpolated(reshaped(rest, (*before, *have, *after)), axis, to, self.method)
        flat = reshaped(made, (*before, math.prod(to), *after))
        return Joined((cut(source, {axis: (0, self.first)}), flat), axis) if self.first else flat

    def restored(self, source: Source) -> Source:
        """Raises a ``FillError``: interpolation cannot be undone."""
        raise errors.FillError(
            f"wanted a layout that can be read backwards, got {self}, which is lossy. Save with "
            "rules that do not have it: the file then has the grid of the leaf."
        )

    def _grid(self, said: tuple[int, ...], size: int, name: str) -> tuple[int, int]:
        """Returns the given rows and columns, or those of a square, checked against a size."""
        count = size - self.first
        root = math.isqrt(max(count, 0))
        rows, columns = said or (root, root)
        if count < 1 or rows * columns != count:
            what = f"{self.first} places and a {f'{rows} x {columns} grid' if said else 'square'}"
            raise errors.FillError(
                f"{self}: wanted {what} along axis {self.axis} of the "
                f"{'tensor' if name == 'grid' else 'leaf'}, got {size} places. Pass first= and "
                f"{name}=(rows, columns)."
            )
        return rows, columns

    def __repr__(self) -> str:
        said = [f"axis={self.axis}"] + [f"first={self.first}"] * bool(self.first)
        said += [f"{n}={v}" for n in ("grid", "to") if (v := getattr(self, n))]
        said += [f"method={self.method!r}"] * (self.method != "torch bicubic")
        return f"ResizeGrid({', '.join(said)})"


def _check_floats(source: Source, change: Change) -> None:
    """Raises a ``FillError`` if a tensor does not hold floats."""
    if not jnp.issubdtype(source.dtype, jnp.floating):
        raise errors.FillError(
            f"{change}: wanted a tensor of floats, got {describe(source.shape, source.dtype)} in "
            f"{source!r}."
        )
