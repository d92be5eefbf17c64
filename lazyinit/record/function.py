"""Records any callable: a pure function that returns a pytree, or what makes a Flax NNX module.

An NNX constructor is such a function, too: it maps the keys inside an ``nnx.Rngs`` to the state
that ``nnx.split`` takes out of the module.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from flax.errors import ImmutableVariableError

from lazyinit import compat, errors
from lazyinit.params import LazyParam
from lazyinit.record.opaque import refuse_tracers
from lazyinit.record.thunks import Inputs, Note, record

# An attribute of an NNX module that is an array is data, one that is a tracer is not: Flax asks
# ``isinstance(x, jax.Array | ...)`` in a way that Python 3.11 answers by the type alone.
nnx.register_data_type(compat.TracedValue)


@dataclass(frozen=True, slots=True)
class LazyFunction:
    """A function, or a module class of NNX, whose call records instead of computing.

    Attributes:
      function: maps keys and other arguments to a pytree or to an NNX module.
    """

    function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Records what the function with the same arguments would compute.

        Args:
          *args: as for the function. A key is found by its type, if typed (``jax.random.key``),
            or by its shape and dtype, if raw. An array may be a ``jax.ShapeDtypeStruct`` or a
            thunk: then its shape is known, its values are not. An ``nnx.Rngs`` counts on as it
            would have.
          **kwargs: as ``args``.

        Returns:
          The pytree that the function would return, in the same containers, each array a
          ``LazyParam``. A thunk that the function passes on is that thunk; what is made without
          tracing (a numpy array, a Python number) is as it is. For an NNX module, its graph
          definition and its state: ``nnx.merge(graphdef, materialize(state))`` is the module.

        Raises:
          RecordError: the function's Python code depends on a value that is not known.
        """
        name = getattr(self.function, "__name__", type(self.function).__name__)
        inputs = Inputs.of(args, kwargs, raw_keys=True)
        graphdef: nnx.GraphDef[Any] | None = None

        def init(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> tuple[Any, list[Note]]:
            nonlocal graphdef
            args, kwargs = inputs.join(keys, stand_ins)
            made = self.function(*args, **kwargs)
            if isinstance(made, nnx.Module):
                module = made
                graphdef, made = nnx.split(module)
                refuse_tracers(compat.static_attributes(graphdef), functools.partial(_path, module))
            return (made, [nnx.state(rngs) for rngs in _rngs(args, kwargs)]), []

        try:
            made, counted = record(init, {}, inputs, f"lazy({name})", own_keys=1)
        except ImmutableVariableError as error:
            raise errors.RecordError(
                f"lazy({name}): wanted variables that hold arrays, got ones that hold mutable "
                "arrays, which cannot be recorded. Record the model with "
                "nnx.var_defaults(hijax=False)."
            ) from error
        for rngs, state in zip(_rngs(args, kwargs), counted, strict=True):
            nnx.update(rngs, jax.tree.map(_made, state))
        return made if graphdef is None else (graphdef, made)


def _path(module: nnx.Module, name: str, attribute: Any) -> str:
    """Returns where in a module an attribute is that is no data."""
    found = (path for path, x in nnx.iter_graph(module) if x is attribute)
    return "/".join(map(str, next(found, (name,))))


def _made(leaf: Any) -> Any:
    return leaf.init_fn(leaf.rng_path.key()) if isinstance(leaf, LazyParam) else leaf


def _rngs(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[nnx.Rngs]:
    return [x for x in (*args, *kwargs.values()) if isinstance(x, nnx.Rngs)]
