"""The verb ``lazy``: picks the recorder for a model. This is the only way into recording."""

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from lazyinit import errors

if TYPE_CHECKING:
    import flax.linen as nn

    from lazyinit.record.function import LazyFunction
    from lazyinit.record.linen import LazyModule


@overload
def lazy(model: "nn.Module") -> "LazyModule": ...  # pyright: ignore (some modules are callable, too)
@overload
def lazy(model: Callable[..., Any]) -> "LazyFunction": ...
def lazy(model: Any) -> Any:
    """Wraps a model so that its initialization is recorded and nothing is allocated.

    Args:
      model: a Flax Linen module; a Flax NNX module class, or a function that makes an NNX module;
        or any pure function of keys and arrays that returns a pytree.

    Returns:
      For a Linen module, an object whose ``init`` has the signature of ``module.init`` and returns
      its tree, with a ``LazyParam`` in place of each array. For the others, a callable with the
      signature of ``model`` that returns the pytree with such leaves. If ``model`` makes an NNX
      module, or ``(model, optimizer)``, that is ``(graphdef, state)``, as ``nnx.split`` returns it.

    Raises:
      RecordError: ``model`` is of a kind that cannot be recorded.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 1_000_000), "bfloat16")
      >>> tree = li.lazy(nn.Dense(1_000_000)).init(jax.random.key(0), x)
      >>> tree["params"]["kernel"].nbytes  # four terabytes, none of them allocated
      4000000000000
    """
    # If nothing has imported Flax, no model is one of its modules. Recording needs no Flax.
    nn, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    if nn and isinstance(model, nn.Module):
        from lazyinit.record.linen import LazyModule

        return LazyModule(model)
    if nnx and isinstance(model, nnx.Module):
        raise errors.RecordError(
            f"lazy: wanted an NNX module class, got a {type(model).__name__} that is made already. "
            "Pass its class: lazy(Model)(..., rngs=rngs)."
        )
    if nn and inspect.isclass(model) and issubclass(model, nn.Module):
        raise errors.RecordError(
            f"lazy: wanted an instance of a Linen module, got the class {model.__name__}. "
            f"Make an instance first: lazy({model.__name__}(...)).init(key, x)."
        )
    if callable(model):
        from lazyinit.record.function import LazyFunction

        return LazyFunction(model)
    raise errors.RecordError(
        f"lazy: wanted a Flax module or a function, got {type(model).__name__}. Pass a "
        "flax.linen.Module, an nnx.Module class, or a pure function of keys and arrays."
    )
