"""What a leaf is before it becomes an array.

A leaf that is not made yet is a thunk: a plain frozen value, and a pytree leaf. A ``LazyParam`` is
made from a key by an initializer, a ``StoredParam`` is read from a ``Source``, an ``OverlapParam``
is made and then read in part, and a ``DerivedParam`` (``derived``) is computed from other thunks.
They share ``Thunk``, which shows shape and dtype as ``jax.ShapeDtypeStruct`` does and refuses to be
used as an array.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import singledispatch
from html import escape
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from lazyinit import errors, meshes
from lazyinit.keys import RngPath, TracedKey
from lazyinit.sources import Shape, Source, describe

NO_KEY = RngPath({})


def cast_dtype(own: Any, wanted: Any) -> Any:
    """Returns the dtype that a leaf will have: ``wanted`` for floating-point leaves, or its own.

    Args:
      own: the dtype of the leaf, which may be that of typed PRNG keys.
      wanted: a dtype, or ``None`` for the leaf's own.
    """
    return jnp.dtype(wanted) if wanted is not None and jnp.issubdtype(own, jnp.floating) else own


@singledispatch
def leaf_as_html(leaf: Any) -> str:
    """Returns a leaf as HTML, for the result of a notebook's cell; ``view`` registers how."""
    return f"<code>{escape(repr(leaf))}</code>"


@singledispatch
def leaf_in_treescope(leaf: Any, path: str | None, subtree_renderer: Any) -> Any:
    """Returns a leaf as treescope shows it, in treescope's types; ``view`` registers how."""
    return NotImplemented


class Thunk:
    """The base of leaves that are not made yet, with the attributes of a ``jax.ShapeDtypeStruct``.

    A thunk has no ``__jax_array__``, which would make ``jax.eval_shape`` evaluate it.
    """

    __slots__ = ()

    shape: Shape
    dtype: np.dtype
    sharding: Sharding | None
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
        """The size of the whole array once made, in bytes, however it is sharded."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a thunk with no dimensions")
        return self.shape[0]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self  # Nothing in it ever changes.

    def _repr_html_(self) -> str:
        return leaf_as_html(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        return leaf_in_treescope(self, path, subtree_renderer)

    def __getattr__(self, name: str) -> NoReturn:
        # Python calls this only for names that a thunk lacks. If arrays have the name, somebody
        # takes the thunk for an array. If they lack it too, a plain AttributeError is right:
        # copying and pickling ask for such names.
        if name.startswith("_") or not (hasattr(jax.Array, name) or hasattr(np.ndarray, name)):
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


@dataclass(frozen=True, slots=True, repr=False)
class LazyParam(Thunk):
    """A parameter that is not made yet: a small program from a key to an array.

    A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have.
      init_fn: maps a key to the value, eagerly: ``init_fn(rng_path.key())``.
      rng_path: says from which root stream that key comes, and what is folded into it.
      weak_type: whether the array will be weakly typed, as JAX calls it.
      sharding: where eager ``init`` would have put it; ``None`` is the default device.
      path: where in the tree it was recorded; only messages use it.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 4), "float32")
      >>> tree = li.lazy(nn.Dense(3)).init(jax.random.key(0), x)
      >>> tree["params"]["bias"]
      LazyParam(float32[3], zeros, params#2)
      >>> tree["params"]["bias"].nbytes
      12
    """

    shape: Shape
    dtype: np.dtype
    init_fn: Callable[..., Any] = field(hash=False)  # Any: an array, typed or raw key as argument.
    rng_path: RngPath = NO_KEY
    weak_type: bool = field(default=False, kw_only=True)
    sharding: Sharding | None = field(default=None, kw_only=True)
    path: str = field(default="", kw_only=True, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not _is_key(self.dtype):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        if problem := pickling_problem(self.init_fn, self.rng_path):
            raise errors.PicklingError(
                f"{self.path or 'a leaf'}: wanted an initializer that can be pickled, got "
                f"{label(self.init_fn)}: {problem}. Define it at the top of a module, or pickle "
                "the tree once this leaf is materialized."
            )
        fields = (self.shape, self.dtype, self.init_fn, self.rng_path)
        return _lazy_param, (*fields, self.weak_type, meshes.to_pickle(self.sharding), self.path)

    def __repr__(self) -> str:
        parts = (describe(self.shape, self.dtype), label(self.init_fn), str(self.rng_path))
        return f"LazyParam({', '.join(filter(None, parts))})"


def _lazy_param(*fields: Any) -> LazyParam:
    *positional, weak_type, pickled, path = fields
    sharding = meshes.from_pickle(pickled)
    return LazyParam(*positional, weak_type=weak_type, sharding=sharding, path=path)


@dataclass(frozen=True, slots=True, repr=False)
class StoredParam(Thunk):
    """A parameter that is in a checkpoint and not read yet. A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have; values of another ``source.dtype`` are cast when read.
      source: reads the values from tensors of a file, through changes of their layout.
      sharding: where it goes if nothing else is asked for; ``None`` is the default device.
      path: where in the tree it was filled in; only messages use it.
    """

    shape: Shape
    dtype: np.dtype
    source: Source
    sharding: Sharding | None = field(default=None, kw_only=True)
    path: str = field(default="", kw_only=True, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.shape, self.dtype, self.source)
        return _stored_param, (*fields, meshes.to_pickle(self.sharding), self.path)

    def __repr__(self) -> str:
        return f"StoredParam({describe(self.shape, self.dtype)}, {self.source!r})"


def _stored_param(*fields: Any) -> StoredParam:
    *positional, pickled, path = fields
    return StoredParam(*positional, sharding=meshes.from_pickle(pickled), path=path)


@dataclass(frozen=True, slots=True, repr=False)
class OverlapParam(Thunk):
    """A parameter that is initialized, and then in part read from a checkpoint. A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have.
      rest: the thunk that makes the whole array first.
      stored: the source that is then written over the first elements of each dimension.
      path: where in the tree it was filled in; only messages use it.
    """

    shape: Shape
    dtype: np.dtype
    rest: LazyParam
    stored: Source
    path: str = field(default="", kw_only=True, compare=False)

    @property
    def sharding(self) -> Sharding | None:  # pyright: ignore (the others cannot be set, either)
        """Where it goes if nothing else is asked for; ``None`` is the default device."""
        return self.rest.sharding

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the part that comes from the checkpoint, once made."""
        return math.prod(self.stored.shape) * self.dtype.itemsize

    def __repr__(self) -> str:
        parts = (describe(self.shape, self.dtype), repr(self.stored), label(self.rest.init_fn))
        return f"OverlapParam({', '.join(parts)})"


def placement_of(leaf: Any) -> Sharding | None:
    """Returns the sharding for the array that replaces a leaf; ``None`` is the default device.

    Args:
      leaf: an array, a shape or a thunk.
    """
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None  # Nobody asked for the device that an uncommitted array is on.
    return getattr(leaf, "sharding", None)


def pickling_problem(init_fn: Callable[..., Any], rng_path: RngPath) -> str:
    """Returns why an initializer and its key cannot be pickled; ``""`` if they can."""
    if any(isinstance(root, TracedKey) for root in rng_path.roots.values()):
        return "its key is traced, and has no value"
    ask = getattr(init_fn, "pickling_problem", None)
    if ask is not None:
        return ask()
    try:
        pickle.dumps(init_fn)
    except Exception as error:  # Whatever pickle raises.
        return str(error)
    return ""


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def label(init_fn: Callable[..., Any]) -> str:
    """Returns the name of an initializer, for people to read: ``zeros``, ``normal(0.02)``."""
    named = getattr(init_fn, "label", None)
    if isinstance(named, str):
        return named
    name = getattr(init_fn, "__qualname__", type(init_fn).__qualname__)
    maker, _, inner = name.rpartition(".<locals>.")
    if not maker or inner == "<lambda>" or not hasattr(init_fn, "__code__"):
        return inner or name
    cells = getattr(init_fn, "__closure__", None) or ()
    # jax.nn.initializers.normal(0.02) returns a closure: its maker's name and numbers say more.
    # Python orders free variables anew in each process; by name, the label is always the same.
    named_cells = sorted(zip(init_fn.__code__.co_freevars, cells, strict=True), key=lambda c: c[0])
    told = [c.cell_contents for _, c in named_cells if isinstance(c.cell_contents, float | str)]
    told.sort(key=lambda x: isinstance(x, str))
    shown = f"({', '.join(map(str, told))})" if told else ""
    return maker.rpartition(".")[2] + shown
