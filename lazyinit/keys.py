"""PRNG keys as values: which key a leaf is made from.

A ``Key`` holds the words of a JAX key. An ``RngPath`` says from which root keys a leaf is made, and
what is folded into them. Values can be compared, hashed, pickled and handed to any thread; JAX's
own keys are arrays on a device, or tracers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from lazyinit import compat


@dataclass(frozen=True, slots=True)
class Key:
    """A PRNG key by value, so that a leaf can be compared, hashed and handed to any thread.

    Attributes:
      data: the key's words, uint32, as bytes.
      shape: the shape of those words, ``(2,)`` for threefry.
      impl: the name of the PRNG implementation, ``"threefry2x32"``.
      typed: whether it was given as a typed key (``jax.random.key``), not as raw words.
    """

    data: bytes
    shape: tuple[int, ...]
    impl: str
    typed: bool

    @classmethod
    def of(cls, key: jax.Array | np.ndarray) -> "AnyKey":
        """Returns a typed or raw key by value; of a traced key, which has none, a ``TracedKey``."""
        if compat.is_tracer(key):
            return TracedKey(key)
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        impl = jax.random.key_impl(key) if typed else compat.setting("jax_default_prng_impl")
        with jax.ensure_compile_time_eval():  # The caller may be within another trace.
            words = np.asarray(jax.random.key_data(key) if typed else key)
        return cls(words.tobytes(), words.shape, str(impl), bool(typed))

    def array(self) -> jax.Array | np.ndarray:
        """Returns the key: a typed key array, or raw words (numpy), as it was given."""
        words = np.frombuffer(self.data, np.uint32).reshape(self.shape)
        if not self.typed:
            return words
        with jax.ensure_compile_time_eval():  # A value, whatever trace the caller is in.
            # jnp.asarray would compile a program that copies its argument (jax 0.10.2).
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
      folded: what Flax folds into the only root key, as names and a count: ``("head", 1)``.
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
        """Returns what ``init_fn`` takes: one key, or else a dict of root keys by stream."""
        keys = {stream: root.array() for stream, root in self.roots.items()}
        if len(keys) != 1 or self.fold < 0:
            return next(iter(keys.values())) if len(keys) == 1 else keys
        (root,) = self.roots.values()
        if not isinstance(root, Key) or root.typed:
            return jax.random.fold_in(root.array(), np.uint32(self.fold))
        # The PRNG implementation is that of the recording, even if JAX's default is another now.
        typed = jax.random.fold_in(replace(root, typed=True).array(), np.uint32(self.fold))
        return jax.random.key_data(typed)

    def __str__(self) -> str:
        return stream_path(self.roots, self.folded)


def stream_path(streams: Iterable[str], folded: Iterable[str | int]) -> str:
    """Returns the streams of a key, and what is folded in, as text: ``params/head#1``."""
    folded = tuple(folded)
    names = [x for x in folded if isinstance(x, str)]
    counts = "".join(f"#{x}" for x in folded if not isinstance(x, str))
    return "/".join(filter(None, ("+".join(streams), *names))) + counts
