"""Takes NNX modules apart for a recording, and keeps the counts of ``nnx.Rngs``.

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

# In eager mode, an attribute of a module that is an array is data. A traced value has to be data,
# too, because the graph definition would differ otherwise. Flax asks for nothing but the type, and
# no value of this type exists outside of a recording.
nnx.register_data_type(compat.TracedValue)


Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def call(function: Callable[..., Any], arguments: Callable[[], Arguments]) -> tuple[Any, Arguments]:
    """Returns what a function returns, and the arguments that it was called with.

    Eager Flax places a variable whose metadata names mesh axes as soon as it makes it, and refuses
    to make it if no mesh is set. A recording makes it all the same, because it places nothing yet.

    Args:
      function: makes an NNX module, or anything else.
      arguments: returns new arguments at each call, because a function changes its ``nnx.Rngs``.

    Raises:
      ShardingError: the metadata of a variable does not fit it under the mesh that is set.
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
    """Raises an error that has the path, if the metadata of a variable is why Flax refused it.

    The path is known once the module is made, which is why it was made without placing anything.
    """
    tree = split(made)[1]
    leaves = paths.leaves_with_paths(tree)
    try:
        resolve(ShardByMetadata(None, ()), tree, leaves, [True] * len(leaves), needs_devices=False)
    except errors.ShardingError as error:
        raise error from refused


def split(made: Any) -> tuple[nnx.GraphDef[Any] | None, Any]:
    """Returns the graph definition and the state of a module, or of several in plain containers.

    For anything else, it returns ``None`` and ``made`` itself.
    """
    return nnx.split(made) if _is_of_modules(made) else (None, made)


def modules_behind(made: Any, graphdef: nnx.GraphDef[Any] | None) -> list[nnx.Pytree]:
    """Returns the modules that attributes of a module lead to, if these attributes are not data.

    An initializer that is a method, or is defined in one, leads to the method's module, which is a
    part of ``made`` or, if a layer was made only for its graph definition, is not. Eager JAX leaves
    arrays in it; here these are traced values, for which the caller puts thunks.

    Raises:
      RecordError: such an attribute leads to a traced value that is in no module.
    """
    behind: dict[int, nnx.Pytree] = {}
    searched: set[int] = set()
    attributes = compat.static_attributes(graphdef)
    while attributes:
        searched |= {id(x) for _, x in attributes}
        found: dict[int, nnx.Pytree] = {}
        refuse_tracers(attributes, functools.partial(_path, made), functools.partial(_keep, found))
        new = [x for n, x in found.items() if n not in behind]
        attributes = compat.static_attributes(nnx.graphdef(new)) if new else []
        attributes = [(name, x) for name, x in attributes if id(x) not in searched]
        behind |= found
    return list(behind.values())


def _keep(found: dict[int, nnx.Pytree], x: Any) -> bool:
    """Tells whether something is a module, and keeps it if it is."""
    if is_module := isinstance(x, nnx.Pytree):
        found[id(x)] = x
    return is_module


def put(made: Any, state: Any) -> None:
    """Sets the variables of a module, or of several, to those of a state from ``split``."""
    nnx.update(made, state)


def _is_of_modules(made: Any) -> bool:
    """Tells whether something is a module, or a plain container of only modules and optimizers."""
    if isinstance(made, nnx.Module):
        return True
    inner = made.values() if type(made) is dict else made if type(made) in (tuple, list) else ()
    return bool(inner) and all(isinstance(x, nnx.Pytree) or _is_of_modules(x) for x in inner)


def counts_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Returns the state of each ``nnx.Rngs`` among the arguments."""
    return [nnx.state(rngs) for rngs in _rngs(args, kwargs)]


def count_on(args: Sequence[Any], kwargs: Mapping[str, Any], counts: Sequence[Any]) -> None:
    """Sets each ``nnx.Rngs`` among the arguments to the state in which an eager call leaves it."""
    for rngs, state in zip(_rngs(args, kwargs), counts, strict=True):
        nnx.update(rngs, jax.tree.map(_made, state))


def _path(module: nnx.Module, name: str, attribute: Any) -> str:
    """Returns the path of an attribute that is not data, in its module."""
    found = (path for path, x in nnx.iter_graph(module) if x is attribute)
    return "/".join(map(str, next(found, (name,))))


def _made(leaf: Any) -> Any:
    return leaf.init_fn(leaf.rng_path.key()) if isinstance(leaf, LazyParam) else leaf


def _rngs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[nnx.Rngs]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, nnx.Rngs)]
