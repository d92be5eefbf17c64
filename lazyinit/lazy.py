"""``lazy``: the one entrance to recording, which picks the recorder for a model."""

from typing import TYPE_CHECKING

from lazyinit import errors

if TYPE_CHECKING:
    import flax.linen as nn

    from lazyinit.record.linen import LazyModule


def lazy(model: "nn.Module") -> "LazyModule":
    """Wraps a model so that its initialization is recorded and nothing is allocated.

    Args:
      model: a Flax Linen module.

    Returns:
      An object whose ``init`` has the signature of ``module.init`` and returns its tree with a
      ``LazyParam`` in place of each array.

    Raises:
      RecordError: ``model`` is of a kind that cannot be recorded.

    Example:
      >>> import jax, flax.linen as nn, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 1_000_000), "bfloat16")
      >>> tree = li.lazy(nn.Dense(1_000_000)).init(jax.random.key(0), x)
      >>> tree["params"]["kernel"].nbytes  # four terabytes, none of them allocated
      4000000000000
    """
    import flax.linen as nn

    from lazyinit.record.linen import LazyModule

    if isinstance(model, nn.Module):
        return LazyModule(model)
    raise errors.RecordError(
        f"lazy: wanted a flax.linen.Module instance, got {model!r}. "
        "Make an instance first if this is a module class."
    )
