"""Records or opens what ``lazyinit plan`` plans, and finds the smallest mesh on which it fits."""

import importlib
import inspect
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from lazyinit import errors, paths
from lazyinit._fill import fill
from lazyinit._lazy import lazy
from lazyinit.checkpoint import open_checkpoint
from lazyinit.cost.planned import LeafPlan, Plan
from lazyinit.tools.from_config import config_at, tree_of_config

_MOST_DEVICES = 2**16


def tree_of(target: str) -> Any:
    """Returns the tree to plan: what a factory makes, recorded, or the tensors of a checkpoint.

    Args:
      target: ``package.module:factory``, a function without arguments that makes an NNX module or
        returns a pytree (such as the result of ``module.init``); or a checkpoint, or a
        ``config.json`` without weights.

    Raises:
      PlanError: the factory does not exist, needs arguments, fails, or makes no arrays; or the
        family of the configuration is not known.
      CheckpointError: the checkpoint cannot be opened.
    """
    module, colon, name = target.partition(":")
    if not colon or os.path.exists(target) or not module.replace(".", "").isidentifier():
        if config := config_at(target):
            return tree_of_config(config)
        opened = open_checkpoint(target)
        structs = {at: jax.ShapeDtypeStruct(x.shape, x.dtype) for at, x in opened.items()}
        return fill(structs, opened)[0]
    recorded = _recorded(target, _attribute(target, module, name))
    leaves = paths.leaves_with_paths(recorded)
    if not any(hasattr(leaf, "shape") for _, leaf in leaves):
        raise errors.PlanError(
            f"{target}: wanted a factory that makes an NNX module, or returns arrays, got one that "
            f"returns {type(recorded).__name__}. For a Linen module, return module.init(key, x)."
        )
    return recorded


def _attribute(target: str, module: str, name: str) -> Any:
    """Returns what a name means in a module, which may be in the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # As ``python -m`` does; an installed command does not.
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise errors.PlanError(f"{target}: wanted package.module:NAME: {error}.") from error
    return found


def _recorded(target: str, factory: Any) -> Any:
    """Returns the lazy tree of what a factory makes."""
    if not callable(factory):
        raise errors.PlanError(
            f"{target}: wanted a function without arguments, got {type(factory).__name__}."
        )
    # The signature of a module class is that of its metaclass, which takes anything.
    called = factory.__init__ if inspect.isclass(factory) else factory
    parameters = list(inspect.signature(called).parameters.values())[inspect.isclass(factory) :]
    needed = [
        str(parameter)
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise errors.PlanError(
            f"{target}: wanted a function without arguments, got one that needs "
            f"{', '.join(needed)}. Write one that makes the model with arguments of your choice."
        )
    try:
        made = lazy(factory)()
    except Exception as error:  # Whatever somebody else's factory raises.
        raise errors.PlanError(
            f"{target}: it failed while it was recorded: {str(error).rstrip('.')}. It should make "
            "the model as eager code does, without lazyinit."
        ) from error
    # An NNX module is recorded as its graph definition, which has no leaves, and its state.
    return made[1] if isinstance(made, tuple) and _is_graph(made[0]) else made


def _is_graph(x: Any) -> bool:
    """Tells whether a value is an NNX graph definition, without importing Flax."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(x, nnx.GraphDef)


def optimizer_of(name: str) -> Any:
    """Returns the optimizer of a name: that of optax with a learning rate, or ``module:NAME``.

    Raises:
      PlanError: no optimizer has this name, or it needs more than a learning rate.
    """
    module, colon, attribute = name.partition(":")
    if colon:
        return _attribute(f"--optimizer {name}", module, attribute)
    import optax  # Flax brings it; nothing else here needs it.

    make = getattr(optax, name, None)
    if not callable(make):
        known = [known for known in dir(optax) if known.islower()]
        raise errors.PlanError(
            f"--optimizer {name}: wanted an optimizer of optax, such as adamw, or module:NAME"
            f"{errors.nearest(name, known) or '.'}"
        )
    try:
        made: Any = make(1e-3)
    except TypeError as error:
        raise errors.PlanError(
            f"--optimizer {name}: wanted an optimizer that needs only a learning rate: {error}. "
            "Make it in a module of yours, and pass module:NAME."
        ) from error
    return made


def smallest_mesh(
    start: AbstractMesh, price: Callable[[AbstractMesh], Plan], memory: int | str
) -> tuple[AbstractMesh, Plan] | None:
    """Returns the mesh of fewest devices on which a plan fits, and the plan; ``None`` if none does.

    Among meshes of as many devices, those with larger first axes are tried first. Meshes whose axes
    do not divide a dimension are skipped.

    Args:
      start: the mesh with the least size of each axis; sizes are doubled any number of times.
      price: a function that returns the plan on a mesh.
      memory: the memory of each device, in bytes or as text such as ``"16GiB"``.

    Raises:
      ShardingError: the tree cannot be placed on ``start``.
      PlanError: ``memory`` is no size.
    """
    planned = price(start)
    limit = planned.fits(memory).limit
    least = sum(leaf.nbytes for leaf in (*planned.leaves, *planned.training) if _arrives(leaf))
    # Bytes that no axis cuts, and the least bytes on each device with half as many devices.
    whole, before = 0, math.inf
    for meshes in _grown(start):
        best = math.inf
        for mesh in meshes:
            if whole + (least - whole) / mesh.size > limit:
                continue
            try:
                planned = price(mesh)
            except errors.ShardingError:
                continue
            if planned.fits(memory):
                return mesh, planned
            best = min(best, max(planned.bytes_per_device.values(), default=0))
            if min(mesh.axis_sizes) > 1:  # A leaf that is whole here is whole on larger meshes.
                whole = sum(map(_whole, (*planned.leaves, *planned.training)))
        if whole > limit or before <= best < math.inf:
            return None  # With twice the devices, no mesh needs less on each of them.
        before = min(before, best)
    return None


def _arrives(leaf: LeafPlan) -> bool:
    """Tells whether a leaf takes new memory: it is not there already, nor made at another path."""
    return leaf.action not in ("keep", "share")


def _whole(leaf: LeafPlan) -> int:
    """Returns the bytes of a leaf that each device holds whole, else 0."""
    return leaf.nbytes if _arrives(leaf) and leaf.bytes_per_device == leaf.nbytes else 0


def _grown(start: AbstractMesh) -> Iterator[Sequence[AbstractMesh]]:
    """Yields groups of meshes whose axes are doubled any number of times, the smallest first.

    All meshes of one group have the same number of devices.
    """
    axes = len(start.axis_sizes)
    for doublings in range(int(math.log2(max(1, _MOST_DEVICES // start.size))) + 1):
        several = itertools.product(range(doublings + 1), repeat=axes)
        powers = sorted((p for p in several if sum(p) == doublings), reverse=True)
        sizes = [[size * 2**n for size, n in zip(start.axis_sizes, p, strict=True)] for p in powers]
        yield [start.update(axis_sizes=tuple(grown)) for grown in sizes]


def mesh_text(mesh: AbstractMesh) -> str:
    """Returns a mesh as text in the form that ``--mesh`` takes.

    >>> mesh_text(AbstractMesh((4, 8), ("data", "model")))
    'data=4,model=8'
    """
    return ",".join(f"{name}={size}" for name, size in mesh.shape.items())


def as_json(planned: Plan) -> Mapping[str, Any]:
    """Returns a plan as a value for JSON: each array, and the bytes by device, host and file."""
    return {
        "leaves": [_facts(leaf) for leaf in planned.leaves],
        "training": [_facts(leaf) for leaf in planned.training],
        "bytes_per_device": _by_text(planned.bytes_per_device),
        "peak_bytes_per_device": _by_text(planned.peak_bytes_per_device),
        "reads": _by_text(planned.reads),
        "unused_rules": list(planned.unused_rules),
    }


def _facts(leaf: LeafPlan) -> Mapping[str, Any]:
    """Returns a leaf of a plan as a value for JSON."""
    return {
        "path": leaf.path,
        "action": leaf.action,
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype),
        "spec": list(getattr(leaf.sharding, "spec", ())),
        "nbytes": leaf.nbytes,
        "bytes_per_device": leaf.bytes_per_device,
        "repeated_nbytes": leaf.repeated_nbytes,
    }


def _by_text(counts: Mapping[Any, Any]) -> Mapping[str, Any]:
    return {str(key): value for key, value in counts.items()}
