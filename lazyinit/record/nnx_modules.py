"""What recording does for Flax NNX: a module taken apart, and the counts of its ``nnx.Rngs``.

This file is imported once Flax NNX is in use, so that a plain function needs no Flax.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from flax import nnx
from flax.errors import ImmutableVariableError as ImmutableVariableError

from lazyinit import compat, errors, paths
from lazyinit.params import LazyParam
from lazyinit.record import state_dicts as state_dicts
from lazyinit.record.opaque import refuse_tracers
from lazyinit.shard_by import ShardByMetadata
from lazyinit.sharding import resolve

# In eager mode an attribute of a module that is an array is data. A traced value has to be, too, or
# the graph definition is another one; Flax asks for the type alone. No value of this type exists
# outside of a recording.
nnx.register_data_type(compat.TracedValue)


Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def call(function: Callable[..., Any], arguments: Callable[[], Arguments]) -> tuple[Any, Arguments]:
    """Returns what a function returns, and what it was called with.

    Eager Flax places each variable with names in its metadata when it is made, and refuses to make
    one where no mesh is set. A recording places nothing: it is made all the same, and placed later.

    Args:
      function: makes an NNX module, or anything else.
      arguments: gives new ones at each call: a function changes its ``nnx.Rngs``.

    Raises:
      ShardingError: under the mesh that is set, the metadata of a variable does not fit it.
    """
    args, kwargs = arguments()
    try:
        return function(*args, **kwargs), (args, kwargs)
    except (ValueError, AssertionError) as error:  # AssertionError: drop at jax>=0.11.
        if not nnx.using_eager_sharding():
            raise
        refused = error
    args, kwargs = arguments()
    with nnx.use_eager_sharding(False):
        made = function(*args, **kwargs)
    if not jax.sharding.get_abstract_mesh().empty:
        _check_metadata(made, refused)
        raise refused
    for _, node in nnx.iter_graph(made) if _is_of_modules(made) else ():
        if isinstance(node, nnx.Variable):
            node.set_metadata(eager_sharding=True)
    return made, (args, kwargs)


def _check_metadata(made: Any, refused: Exception) -> None:
    """Raises the error that has the path, if it was its metadata for which a variable was refused.

    A module knows where its variables are once it is made, so it was made without placing any.
    """
    tree = split(made)[1]
    leaves = paths.leaves_with_paths(tree)
    try:
        resolve(ShardByMetadata(None, ()), tree, leaves, [True] * len(leaves), needs_devices=False)
    except errors.ShardingError as error:
        raise error from refused


def split(made: Any) -> tuple[nnx.GraphDef[Any] | None, Any]:
    """Returns the graph definition and the state of a module, or of several in plain containers.

    For anything else, ``None`` and ``made``.

    Raises:
      RecordError: an attribute that is no data holds a traced value.
    """
    if not _is_of_modules(made):
        return None, made
    graphdef, state = nnx.split(made)
    refuse_tracers(compat.static_attributes(graphdef), functools.partial(_path, made))
    return graphdef, state


def put(made: Any, state: Any) -> None:
    """Sets the variables of a module, or of several, to those of a state that ``split`` gave."""
    nnx.update(made, state)


def _is_of_modules(made: Any) -> bool:
    """Tells whether something is a module, or plain containers of such and of optimizers alone."""
    if isinstance(made, nnx.Module):
        return True
    inner = made.values() if type(made) is dict else made if type(made) in (tuple, list) else ()
    return bool(inner) and all(isinstance(x, nnx.Pytree) or _is_of_modules(x) for x in inner)


def counts_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns the state of each ``nnx.Rngs`` among the arguments."""
    return [nnx.state(rngs) for rngs in _rngs(args, kwargs)]


def count_on(args: Sequence[Any], kwargs: Mapping[str, Any], counts: Sequence[Any]) -> None:
    """Sets each ``nnx.Rngs`` among the arguments to a recorded state, as an eager call does."""
    for rngs, state in zip(_rngs(args, kwargs), counts, strict=True):
        nnx.update(rngs, jax.tree.map(_made, state))


def _path(module: nnx.Module, name: str, attribute: Any) -> str:
    """Returns where in a module an attribute is that is no data."""
    found = (path for path, x in nnx.iter_graph(module) if x is attribute)
    return "/".join(map(str, next(found, (name,))))


def _made(leaf: Any) -> Any:
    return leaf.init_fn(leaf.rng_path.key()) if isinstance(leaf, LazyParam) else leaf


def _rngs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[nnx.Rngs]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, nnx.Rngs)]
