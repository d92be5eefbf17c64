"""Records the initialization of a Flax Linen module.

Flax's own ``init`` runs once, under an abstract trace, with a root scope that notes each parameter.
So structure, names and errors are those of ``init``, whatever the module does. Nothing global is
patched, because the scope belongs to this one call.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
from flax.core import DenyList, Scope
from flax.core.scope import LazyRng
from flax.errors import InvalidRngError

from lazyinit import compat, errors
from lazyinit.keys import AnyKey, Key
from lazyinit.params import label
from lazyinit.record import state_dicts as state_dicts
from lazyinit.record.inputs import Inputs
from lazyinit.record.thunks import Note, record

_NO_INTERMEDIATES = DenyList("intermediates")  # Flax's own default.


@dataclass(frozen=True, slots=True)
class LazyModule:
    """A Linen module whose ``init`` records instead of allocating.

    Attributes:
      module: the module, unbound.
    """

    module: nn.Module

    def init(
        self,
        rngs: Any,
        *args: Any,
        method: Callable[..., Any] | str | None = None,
        mutable: Any = _NO_INTERMEDIATES,
        capture_intermediates: bool | Callable[[nn.Module, str], bool] = False,
        **kwargs: Any,
    ) -> Any:
        """Records what ``module.init`` with the same arguments would allocate.

        Args:
          rngs: a key (``jax.random.key(0)``, or raw: uint32[2]), or a dict of keys by stream.
          *args: as for ``module.init``. An array may be a ``jax.ShapeDtypeStruct``, whose shape is
            known and whose values are not.
          method: as for ``module.init``.
          mutable: as for ``module.init``.
          capture_intermediates: as for ``module.init``.
          **kwargs: as ``args``.

        Returns:
          The variables that ``module.init`` would return, in the same containers, with a
          ``LazyParam`` for each array. A value that is made without tracing (a NumPy array, a
          Python number) stays as it is.

        Raises:
          RngsError: a key is of the wrong kind.
          RecordError: the module's Python code depends on a value that is not known.
        """
        compat.flax_check(self.module)
        streams = _keys(rngs, type(self.module).__name__)
        inputs = Inputs.of(args, kwargs, raw_keys=False)
        real = _unbound(self.module, method)
        own = _own_init(self.module, method, mutable, capture_intermediates)

        def init(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> tuple[Any, list[Note]]:
            args, kwargs = inputs.join(keys, stand_ins)
            traced = {stream: keys[stream] for stream in streams}
            if own:
                given = traced if isinstance(rngs, dict) else traced["params"]
                return own(given, *args, **kwargs), []
            noting = _NotingModule(self.module, keys, [])
            # The type checker sees a module, of which nn.init calls nothing but clone.
            run = nn.init(real, cast(nn.Module, noting), mutable, capture_intermediates)
            return run(traced, *args, **kwargs), noting.notes

        return record(init, streams, inputs, f"lazy({type(self.module).__name__}).init")

    def init_with_output(self, *_: Any, **__: Any) -> Any:
        """Raises an error, because an output is a computed array, which recording never makes.

        Raises:
          RecordError: always.
        """
        raise errors.RecordError(
            f"lazy({type(self.module).__name__}).init_with_output: recording computes no output. "
            "Use lazy(module).init(...), materialize the tree, then module.apply(tree, ...)."
        )


@dataclass(frozen=True, slots=True)
class _NotingModule:
    """Stands in for a module until Flax binds it, and binds it to a scope that notes."""

    module: nn.Module
    keys: Mapping[str, Any]
    notes: list[Note]

    def clone(self, *, parent: Scope, **kwargs: Any) -> nn.Module:
        return self.module.clone(parent=_note_into(parent, self.notes, self.keys), **kwargs)


class _NotingScope(Scope):
    """A scope that notes the initializers that ``param`` calls, as do its children."""

    notes: list[Note]
    keys: Mapping[str, Any]

    def push(self, name: str | None = None, prefix: str = "", reuse: bool = False) -> Scope:
        return _note_into(super().push(name, prefix, reuse), self.notes, self.keys)

    def rewound(self, rewind_rngs: bool = False) -> Scope:
        return _note_into(super().rewound(rewind_rngs), self.notes, self.keys)

    def make_rng(self, name: str = "params") -> Any:
        key = compat.flax_make_rng(self, name)
        return super().make_rng(name) if key is None else key

    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **kwargs: Any) -> Any:
        def noting(key: Any, *args: Any, **kwargs: Any) -> Any:
            """Runs the initializer, and notes which key it got and what it returned."""
            count = self.rng_counters["params"]  # Before the initializer asks for more keys.
            value = compat.call(init_fn, key, *args, **kwargs)
            rng = self.rngs["params"]
            if isinstance(rng, LazyRng) and rng.rng is self.keys["params"]:
                folded = (*rng.suffix, count)
                fold = compat.flax_fold(folded)
                self.notes.append(Note(label(init_fn), "params", folded, fold, key, value))
            return value

        made_before = self.has_variable("params", name)
        init = init_fn if made_before else noting
        try:
            return super().param(name, init, *init_args, **kwargs)
        except ValueError as error:
            # JAX raises a plain ValueError, which has no path.
            if type(error) is not ValueError or "sharding" not in str(error).lower():
                raise
            path = "/".join(("params", *self.path, name))
            raise errors.ShardingError(
                f"{path}: wanted a sharding that fits the parameter, got one that JAX refuses: "
                f"{error} Change what its initializer or its metadata says."
            ) from error


def _note_into(scope: Any, notes: list[Note], keys: Mapping[str, Any]) -> Any:
    scope.__class__ = _NotingScope  # This one object, which Flax made for this one call.
    scope.notes, scope.keys = notes, keys
    return scope


def _unbound(module: nn.Module, method: Callable[..., Any] | str | None) -> Callable[..., Any]:
    if isinstance(method, str):
        name, method = method, getattr(module, method)
        if not callable(method):
            raise TypeError(
                f"{type(module).__name__}.{name}: wanted a method, got {type(method).__name__}."
            )
    elif method is None:
        method = module.__call__
    if inspect.ismethod(method) and isinstance(method.__self__, nn.Module):
        return method.__func__
    return method


def _own_init(
    module: nn.Module, method: Any, mutable: Any, capture_intermediates: Any
) -> Callable[..., Any] | None:
    """Returns the ``init`` of a class that has one of its own, else ``None``.

    It may hand on other arguments, or initialize another module. It gets the options that were
    given, because it may not know the others. Flax makes the scopes within, so nothing is noted.
    """
    inits = ("init", "init_with_output")
    if all(getattr(type(module), name) is getattr(nn.Module, name) for name in inits):
        return None
    options = {
        "method": (method, None),
        "mutable": (mutable, _NO_INTERMEDIATES),
        "capture_intermediates": (capture_intermediates, False),
    }
    given = {name: x for name, (x, default) in options.items() if x != default}
    return functools.partial(module.init, **given)


class _LinenRngsError(errors.RngsError, InvalidRngError, ValueError):
    """An error that is also what Flax raises, for one wrong key and for a wrong dict of keys."""


def _keys(rngs: Any, name: str) -> dict[str, AnyKey]:
    streams = rngs if isinstance(rngs, dict) else {"params": rngs}
    for stream, rng in streams.items():
        where = f"lazy({name}).init: rngs" + (f"[{stream!r}]" if rngs is streams else "")
        wanted = "a key such as jax.random.key(0), or a dict of them by stream"
        if not isinstance(stream, str) or not compat.is_one_key(rng):
            raise _LinenRngsError(f"{where}: wanted {wanted}, got {_shown(rng)}.")
    return {stream: Key.of(rng) for stream, rng in streams.items()}


def _shown(x: Any) -> str:
    shape = f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") and hasattr(x, "dtype") else repr(x)
    return f"{type(x).__name__} {shape}"
