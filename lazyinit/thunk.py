"""The duck type of a leaf that is not made yet.

A thunk shows the shape and dtype that it will have as ``jax.ShapeDtypeStruct`` does, and refuses
to be used as an array. It has no ``__jax_array__``, which would make ``jax.eval_shape`` evaluate
it.
"""

import math
from typing import NoReturn, Self, TypeAlias

import jax
import numpy as np

from lazyinit import errors

Shape: TypeAlias = tuple[int, ...]


class Thunk:
    """The duck type that both kinds of thunk share with ``jax.ShapeDtypeStruct``."""

    __slots__ = ()

    shape: Shape
    dtype: np.dtype
    path: str

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array once made, over all its shards together."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a thunk with no dimensions")
        return self.shape[0]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Nothing in it ever changes.

    def __getattr__(self, name: str) -> NoReturn:
        # Only what it has not is looked for here. What an array has not is nobody's mistake of
        # taking it for one; copying and pickling ask for such.
        if name.startswith("_") or not hasattr(jax.Array, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise errors.NoArrayAttributeError(self._holds_no_values(f"an array's {name!r}"))

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise errors.NotMaterializedError(self._holds_no_values("an array"))

    def _holds_no_values(self, wanted: str) -> str:
        return (
            f"{self.path or 'a leaf'}: wanted {wanted}, got {self!r}, which holds no values yet. "
            f"Make it with lazyinit.materialize(tree, {self.path or None!r})."
        )

    __array__ = __iter__ = __getitem__ = __bool__ = __float__ = __int__ = __index__ = _refuse
    __complex__ = __neg__ = __pos__ = __abs__ = __invert__ = __round__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __matmul__ = __rmatmul__ = __truediv__ = __rtruediv__ = _refuse
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = _refuse
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _refuse
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __divmod__ = __rdivmod__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __reversed__ = _refuse
