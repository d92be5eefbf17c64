"""Records any callable: a pure function that returns a pytree, or what makes a Flax NNX module.

An NNX constructor is such a function, too: it maps the keys inside an ``nnx.Rngs`` to the state
that ``nnx.split`` takes out of the module. What is Flax's stands in ``nnx_modules``, which is
imported only where Flax NNX is in use.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lazyinit import compat, errors, paths
from lazyinit.keys import Key
from lazyinit.program.equations import is_key
from lazyinit.record.thunks import Inputs, Note, record
from lazyinit.sharding import resolve

if TYPE_CHECKING:
    from flax import nnx


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
            or by its shape and dtype, if raw. An array may be a thunk, which is made when something
            that is computed of it is, or a ``jax.ShapeDtypeStruct``, whose values are not known.
            An ``nnx.Rngs`` counts on as it would have.
          **kwargs: as ``args``.

        Returns:
          The pytree that the function would return, in the same containers, each array a
          ``LazyParam``. A thunk that the function passes on is that thunk; what it computes of
          thunks is a ``DerivedParam``, or a ``StoredParam`` if it only moves and casts what a
          checkpoint holds. What is made without tracing (a numpy array, a Python number) is as it
          is. For an NNX module, its graph
          definition and its state: ``nnx.merge(graphdef, materialize(state))`` is the module.

        Raises:
          RecordError: the function's Python code depends on a value that is not known.
          ShardingError: under the mesh that is set, a leaf does not fit what its initializer or its
            metadata says of where it goes.
        """
        try:
            graphdef, made, counts = self._record(args, kwargs)
        except ValueError as error:
            mesh = compat.mesh_around()
            # JAX has one type for all that it refuses, and no path.
            is_refused = type(error) is ValueError and "sharding" in str(error).lower()
            if mesh is None or not is_refused or compat.is_in_trace():
                raise
            self._check_places(args, kwargs, mesh, error)
            raise errors.ShardingError(
                f"{self._name}: wanted shardings that fit, got one that JAX refuses: {error} "
                "Change what an initializer or its metadata says."
            ) from error
        except _mutable_variable_errors() as error:
            raise errors.RecordError(
                f"{self._name}: wanted variables that hold arrays, got ones that hold mutable "
                "arrays, which cannot be recorded. Record the model with "
                "nnx.var_defaults(hijax=False)."
            ) from error
        if modules := nnx_modules():
            modules.count_on(args, kwargs, counts)
        return made if graphdef is None else (graphdef, made)

    @property
    def _name(self) -> str:
        return f"lazy({getattr(self.function, '__name__', type(self.function).__name__)})"

    def _record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        """Returns the graph definition, if there is one, the tree, and the counts of ``Rngs``."""
        inputs = Inputs.of(args, kwargs, raw_keys=True)
        graphdef: nnx.GraphDef[Any] | None = None

        def init(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> tuple[Any, list[Note]]:
            nonlocal graphdef
            modules = nnx_modules()
            if modules is None:
                args, kwargs = inputs.join(keys, stand_ins)
                made = self.function(*args, **kwargs)
                modules = nnx_modules()
                if modules is None:
                    return (made, []), []
            # If the function imported NNX, it has to be traced once more, for it.
            made, (args, kwargs) = modules.call(self.function, lambda: inputs.join(keys, stand_ins))
            graphdef, made = modules.split(made)
            return (made, modules.counts_of(args, kwargs)), []

        made, counts = record(init, {}, inputs, self._name, own_keys=1)
        return graphdef, made, counts

    def _check_places(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: Mesh, refused: ValueError
    ) -> None:
        """Raises the error that has the paths, if there are leaves that a mesh does not divide.

        Nobody knows the path of a leaf before all is recorded. That works on a mesh of the same
        axes with one device, which divides all. Then each leaf says where it was to go.
        """
        one = np.full((1,) * mesh.devices.ndim, mesh.devices.flat[0])
        with jax.set_mesh(Mesh(one, mesh.axis_names, axis_types=mesh.axis_types)):
            try:
                args, kwargs = jax.tree.map(_made_anew, (args, kwargs))
                _, tree, _ = self._record(args, kwargs)
            except Exception:  # It is something else that does not fit.
                return
        leaves = paths.leaves_with_paths(tree)

        def place(_: str, leaf: Any) -> Any:
            there = getattr(leaf, "sharding", None)
            return NamedSharding(mesh, there.spec) if isinstance(there, NamedSharding) else there

        try:
            resolve(place, tree, leaves, [True] * len(leaves))
        except errors.ShardingError as error:
            raise error from refused


def _made_anew(x: Any) -> Any:
    """Returns an array, if it is one, on the mesh that is set."""
    if not isinstance(x, jax.Array) or compat.is_tracer(x):
        return x
    return Key.of(x).array() if is_key(x) else jnp.asarray(np.asarray(x))


def nnx_modules() -> Any | None:
    """Returns our module for NNX, ``None`` if nothing in this process has imported NNX."""
    if "flax.nnx" not in sys.modules:
        return None
    from lazyinit.record import nnx_modules

    return nnx_modules


def _mutable_variable_errors() -> tuple[type[Exception], ...]:
    modules = nnx_modules()
    return () if modules is None else (modules.ImmutableVariableError,)
