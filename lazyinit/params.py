"""What a leaf is before it is an array: ``LazyParam`` (made from a key) or ``StoredParam`` (read).

Both are thunks: plain frozen values, pytree leaves.
"""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat, errors
from lazyinit.thunk import Shape as Shape
from lazyinit.thunk import Thunk as Thunk

Index: TypeAlias = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of bytes in a file, where the values of one tensor lie plainly.

    Attributes:
      file: its path or address.
      start: of its first byte, from the start of the file.
      stop: after its last byte.
    """

    file: str
    start: int
    stop: int


class Source(Protocol):
    """An array that can be read in part: a tensor in a file, or a layout change of others.

    A law for every implementation: ``read(index)`` equals ``read(everything)[index]``.
    """

    @property
    def shape(self) -> Shape:
        """The shape after any layout change."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """The dtype as stored; ``ml_dtypes`` for bfloat16 and its like."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the checkpoint, of the tensors that it reads."""
        ...

    @property
    def origin(self) -> str:
        """The file, or a word for where the tensors lie, for people to read."""
        ...

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Where in files the tensors lie; empty if not as plain bytes (chunks, memory)."""
        ...

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index`` (one slice with step 1 per dimension).

        The result may be a view of a memory map: it costs no memory until it is copied.
        """
        ...

    def check(self) -> None:
        """Raises ``CheckpointError`` if what it reads is gone or has changed."""
        ...


def describe(shape: Shape, dtype: np.dtype) -> str:
    """Returns ``float32[768,2]`` for a shape and a dtype."""
    return f"{dtype}[{','.join(map(str, shape))}]"


def cast_dtype(own: Any, wanted: Any) -> Any:
    """Returns the dtype a leaf will have: ``wanted`` if it is floating-point, else its own.

    Args:
      own: its dtype; typed PRNG keys too.
      wanted: a dtype, or ``None``.
    """
    return jnp.dtype(wanted) if wanted is not None and jnp.issubdtype(own, jnp.floating) else own


@dataclass(frozen=True, slots=True)
class Key:
    """A PRNG key by value, so that a leaf can be compared, hashed and held by any thread.

    Attributes:
      data: the key's words, uint32, as bytes.
      shape: the shape of those words, ``(2,)`` for threefry.
      impl: the name of the PRNG implementation, ``"threefry2x32"``.
      typed: whether it was given as a typed key (``jax.random.key``), not as raw words.
    """

    data: bytes
    shape: Shape
    impl: str
    typed: bool

    @classmethod
    def of(cls, key: jax.Array | np.ndarray) -> "AnyKey":
        """Returns the value of a typed or raw key; a traced one stays the tracer that it is."""
        if compat.is_tracer(key):
            return TracedKey(key)
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        impl = jax.random.key_impl(key) if typed else compat.setting("jax_default_prng_impl")
        with jax.ensure_compile_time_eval():  # Somebody may be recording within another trace.
            words = np.asarray(jax.random.key_data(key) if typed else key)
        return cls(words.tobytes(), words.shape, str(impl), bool(typed))

    def array(self) -> jax.Array | np.ndarray:
        """Returns the key: a typed key array, or raw words (numpy), as it was given."""
        words = np.frombuffer(self.data, np.uint32).reshape(self.shape)
        if not self.typed:
            return words
        with jax.ensure_compile_time_eval():  # A value, whatever trace the caller is in.
            # Not jnp.asarray: that compiles a program, to copy what it is given (jax 0.10.2).
            return jax.random.wrap_key_data(jax.device_put(words), impl=self.impl)


@dataclass(frozen=True, slots=True, eq=False)
class TracedKey:
    """A PRNG key without a value, inside ``jax.jit`` or ``jax.vmap``. Compared by identity.

    Attributes:
      tracer: the key, typed or raw, of the trace in which it was made.
    """

    tracer: Any  # A jax.Array to type checkers, a tracer in fact.

    def array(self) -> Any:
        """Returns the key, as it was given."""
        return self.tracer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TracedKey) and other.tracer is self.tracer

    def __hash__(self) -> int:
        return id(self.tracer)


AnyKey: TypeAlias = Key | TracedKey


@dataclass(frozen=True, slots=True)
class RngPath:
    """Where the key of a leaf comes from: root streams, and what is folded into them.

    Attributes:
      roots: each stream's root key, by the stream's name. Empty if the leaf needs no key.
      folded: what Flax folds into the one root, as names and a count: ``("head", 1)``.
      fold: the 32-bit value that stands for ``folded`` (the head of its SHA-1, see
        ``flax.core.scope.LazyRng``), or ``-1`` where the root itself is the key.
    """

    roots: Mapping[str, AnyKey]
    folded: tuple[str | int, ...] = ()
    fold: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "roots", MappingProxyType(dict(self.roots)))

    def __hash__(self) -> int:
        return hash((frozenset(self.roots.items()), self.folded, self.fold))

    def __reduce__(self) -> tuple[Any, ...]:
        return RngPath, (dict(self.roots), self.folded, self.fold)

    def key(self) -> Any:
        """Returns what ``init_fn`` takes: the key, or a dict of root keys if there are several.

        Raises:
          RngsError: there is no key at all (``roots`` is empty) but a fold.
        """
        keys = {stream: root.array() for stream, root in self.roots.items()}
        if len(keys) != 1 or self.fold < 0:
            return next(iter(keys.values())) if len(keys) == 1 else keys
        (root,) = self.roots.values()
        if not isinstance(root, Key) or root.typed:
            return jax.random.fold_in(root.array(), np.uint32(self.fold))
        # Raw words mean what they meant when they were given, whatever the default is now.
        typed = jax.random.fold_in(replace(root, typed=True).array(), np.uint32(self.fold))
        return jax.random.key_data(typed)

    def __str__(self) -> str:
        names = "/".join(str(x) for x in self.folded if isinstance(x, str))
        counts = "".join(f"#{x}" for x in self.folded if not isinstance(x, str))
        return "/".join(filter(None, ("+".join(self.roots), names))) + counts


@dataclass(frozen=True, slots=True, repr=False)
class LazyParam(Thunk):
    """A parameter that is not made yet: a small program from a key to an array.

    A pytree leaf with the duck type of ``jax.ShapeDtypeStruct``.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have.
      init_fn: maps a key to the value, eagerly: ``init_fn(rng_path.key())``.
      rng_path: which root stream that key comes from, and what is folded into it.
      weak_type: whether the array will be weakly typed, as JAX calls it.
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
    rng_path: RngPath = RngPath({})
    weak_type: bool = field(default=False, kw_only=True)
    path: str = field(default="", kw_only=True, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not _is_key(self.dtype):
            object.__setattr__(self, "dtype", jnp.dtype(self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        if problem := self._pickling_problem():
            raise errors.PicklingError(
                f"{self.path or 'a leaf'}: wanted an initializer that can be pickled, got "
                f"{label(self.init_fn)}: {problem}. Define it at the top of a module, or pickle "
                "the tree once this leaf is materialized."
            )
        fields = (self.shape, self.dtype, self.init_fn, self.rng_path, self.weak_type, self.path)
        return _lazy_param, fields

    def _pickling_problem(self) -> str:
        if any(isinstance(root, TracedKey) for root in self.rng_path.roots.values()):
            return "its key is traced, and has no value"
        ask = getattr(self.init_fn, "pickling_problem", None)
        if ask is not None:
            return ask()
        try:
            pickle.dumps(self.init_fn)
        except Exception as error:  # Whatever pickle raises.
            return str(error)
        return ""

    def __repr__(self) -> str:
        parts = (describe(self.shape, self.dtype), label(self.init_fn), str(self.rng_path))
        return f"LazyParam({', '.join(filter(None, parts))})"


def _lazy_param(*fields: Any) -> LazyParam:
    *positional, weak_type, path = fields
    return LazyParam(*positional, weak_type=weak_type, path=path)


@dataclass(frozen=True, slots=True, repr=False)
class StoredParam(Thunk):
    """A parameter that lies in a checkpoint and is not read yet. A pytree leaf.

    Attributes:
      shape: the shape that the array will have.
      dtype: the dtype that it will have; another than ``source.dtype`` is a cast on reading.
      source: what file, which tensors, and which layout change makes it.
      path: where in the tree it was filled in; only messages use it.
    """

    shape: Shape
    dtype: np.dtype
    source: Source
    path: str = field(default="", kw_only=True, compare=False)

    def __repr__(self) -> str:
        return f"StoredParam({describe(self.shape, self.dtype)}, {self.source!r})"


def _is_key(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)


def label(init_fn: Callable[..., Any]) -> str:
    """Returns the name of an initializer for people: ``zeros``, ``normal(0.02)``."""
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
