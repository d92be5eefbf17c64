"""The verb ``from_pretrained``: records, fills and materializes a model in one call."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lazyinit import agree, errors, paths
from lazyinit._fill import fill
from lazyinit._lazy import lazy
from lazyinit._materialize import materialize
from lazyinit.casts import DtypeLike
from lazyinit.match.as_numbers import as_numbers
from lazyinit.match.asked import is_fillable
from lazyinit.match.places import Place, places
from lazyinit.match.policies import OnCast, OnMismatch, OnMissing, OnUnexpected
from lazyinit.match.ready import Meant, find_map, with_config
from lazyinit.match.report import Report
from lazyinit.progress import ProgressLike
from lazyinit.rules.rule import Rules
from lazyinit.sharding import ShardingLike

if TYPE_CHECKING:
    from flax import nnx


@agree.telling
def from_pretrained(
    model: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rngs: Any,
    *args: Any,
    rules: Rules = None,
    at: str = "",
    sharding: ShardingLike = None,
    dtype: DtypeLike = None,
    on_missing: OnMissing = "warn",
    on_unexpected: OnUnexpected = "report",
    on_mismatch: OnMismatch = "error",
    on_cast: OnCast = "report",
    progress: ProgressLike = False,
    broadcast: bool = False,
    **kwargs: Any,
) -> tuple[Any, Report]:
    """Makes a model's parameters: reads those that a checkpoint has, and initializes the others.

    It calls ``lazy``, ``fill`` and ``materialize``, one after the other. Nothing is allocated
    before names, shapes, policies and shardings are known to fit.

    Args:
      model: what ``lazy`` takes: a Linen module, an NNX module class or a function that makes an
        NNX module, or a pure function of a key. Models and their arguments may be of any type.
      checkpoint: as for ``fill``.
      rngs: a key, a dict of keys by stream, or an ``nnx.Rngs``. It is the first argument of
        ``module.init`` or of the function. An NNX model gets it as ``rngs=``, and a key as
        ``rngs=nnx.Rngs(key)``.
      *args: the other arguments of ``module.init``, of the class or of the function; a
        ``jax.ShapeDtypeStruct`` may stand for an array.
      rules: as for ``fill``. With ``None``, a ready map is looked for if the ``config.json`` of a
        local folder, or a GGUF file, names a family of models. If one map of ``lazyinit.maps`` for
        this family explains every leaf and every tensor, it is used, and the report names it; if
        none does, no rules are used. Also with ``None``, weights that the ``config.json`` says are
        quantized are dequantized when they are read, unless the model has leaves for their scales;
        the report says so.
      at: as for ``fill``.
      sharding: as for ``materialize``.
      dtype: as for ``materialize``.
      on_missing: as for ``fill``.
      on_unexpected: as for ``fill``.
      on_mismatch: as for ``fill``.
      on_cast: as for ``fill``.
      progress: as for ``materialize``.
      broadcast: as for ``materialize``.
      **kwargs: the keyword arguments of ``module.init``, of the class or of the function.

    Returns:
      The tree that ``module.init`` would have returned, or the NNX module; and the report of
      ``fill``, whose ``provenance`` says where each leaf comes from.

    Raises:
      LazyinitError: any error that ``lazy``, ``fill`` and ``materialize`` raise.

    Example:
      >>> import jax, flax.linen as nn, numpy as np, lazyinit as li
      >>> x = jax.ShapeDtypeStruct((1, 3), "float32")
      >>> checkpoint = {"weight": np.ones((2, 3), "float32")}
      >>> params, report = li.from_pretrained(
      ...     nn.Dense(2), checkpoint, jax.random.key(0), x, rules=li.TORCH, on_missing="init"
      ... )
      >>> params["params"]["kernel"].shape, report.missing
      ((3, 2), ('params/bias',))
    """
    graphdef, tree = _record(model, rngs, args, kwargs)
    ready = Meant()
    if rules is None:
        leaves = _to_fill(tree)
        opened, config = with_config(checkpoint)
        checkpoint = as_numbers(leaves, opened, config, at=at)
        ready = find_map(leaves, checkpoint, config, at=at)
    try:
        tree, report = fill(
            tree,
            checkpoint,
            ready.rules if rules is None else rules,
            at=at,
            on_missing=on_missing,
            on_unexpected=on_unexpected,
            on_mismatch=on_mismatch,
            on_cast=on_cast,
        )
    except errors.FillError as error:
        if not ready.why:
            raise
        raise errors.FillError(f"{error} {ready.why}") from error
    report = replace(report, ready_map=ready.name)
    made = materialize(tree, sharding=sharding, dtype=dtype, progress=progress, broadcast=broadcast)
    return _merge(graphdef, made), report


def _to_fill(tree: Any) -> list[Place]:
    """Returns the places of the leaves that need a tensor of the checkpoint."""
    of_streams = paths.of_random_streams(tree)
    return [
        place
        for (place, leaf), of_stream in zip(places(tree), of_streams, strict=True)
        if is_fillable(leaf) and not of_stream
    ]


def _record(
    model: Any, rngs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> "tuple[nnx.GraphDef[Any] | None, Any]":
    """Returns an NNX module's graph definition (``None`` for others), and the lazy tree."""
    import flax.linen as nn
    from flax import nnx

    if isinstance(model, nn.Module):
        return None, lazy(model).init(rngs, *args, **kwargs)
    is_nnx_class = inspect.isclass(model) and issubclass(model, nnx.Module)
    if is_nnx_class and not isinstance(rngs, nnx.Rngs):
        rngs = nnx.Rngs(rngs)
    if isinstance(rngs, nnx.Rngs):
        recorded = lazy(model)(*args, rngs=rngs, **kwargs)
    else:
        recorded = lazy(model)(rngs, *args, **kwargs)
    match recorded:
        case (nnx.GraphDef() as graphdef, tree):
            return graphdef, tree
    return None, recorded


def _merge(graphdef: "nnx.GraphDef[Any] | None", tree: Any) -> Any:
    """Returns the NNX module of a graph definition and its state; without one, the tree itself."""
    if graphdef is None:
        return tree
    from flax import nnx

    return nnx.merge(graphdef, tree)
