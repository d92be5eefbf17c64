"""Records any callable: a pure function that returns a pytree, or a constructor of an NNX module.

Such a constructor is a function, too: it maps the keys inside an ``nnx.Rngs`` to the state that
``nnx.split`` takes out of the module. The code that needs Flax is in ``nnx_modules``, which is
imported only where Flax NNX is in use.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from lazyinit import compat, errors, paths
from lazyinit.keys import Key
from lazyinit.program.equations import is_key
from lazyinit.record.inputs import Inputs
from lazyinit.record.thunks import Note, record
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
          *args: as for the function. A typed key (``jax.random.key``) is recognized by its type, a
            raw key by its shape and dtype. An array may be a thunk, which is made when a leaf that
            is computed from it is made; or a ``jax.ShapeDtypeStruct``, whose values are not known.
            The counts of an ``nnx.Rngs`` go up as in an eager call.
          **kwargs: as ``args``.

        Returns:
          The pytree that the function would return, in the same containers, with a ``LazyParam``
          for each array. A thunk that the function passes on stays that thunk. An array that it
          computes from thunks becomes a ``DerivedParam``, or a ``StoredParam`` if it only moves and
          casts what a checkpoint holds. A value that is made without tracing (a NumPy array, a
          Python number) stays as it is. For an NNX module, the graph definition and the state are
          returned: ``nnx.merge(graphdef, materialize(state))`` is the module.

        Raises:
          RecordError: the function's Python code depends on a value that is not known.
          ShardingError: under the mesh that is set, the placement that an initializer or its
            metadata asks for does not fit a leaf.
        """
        try:
            graphdef, made, counts = self._record(args, kwargs)
        except ValueError as error:
            mesh = compat.mesh_around()
            # JAX raises a plain ValueError, which has no path.
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
        behind: list[Any] = []
        recording: Callable[[], AbstractContextManager[Any]] = nullcontext

        def init(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> tuple[Any, list[Note]]:
            nonlocal graphdef, behind, recording
            recording = compat.this_trace()
            modules = nnx_modules()
            if modules is None:
                args, kwargs = inputs.join(keys, stand_ins)
                made = self.function(*args, **kwargs)
                modules = nnx_modules()
                if modules is None:
                    return (made, [], []), []
            # The function has imported NNX itself, so it is called once more as one that uses NNX.
            made, (args, kwargs) = modules.call(self.function, lambda: inputs.join(keys, stand_ins))
            graphdef, tree = modules.split(made)
            behind = modules.modules_behind(made, graphdef)
            return (tree, modules.counts_of(args, kwargs), modules.split(behind)[1]), []

        made, counts, left_behind = record(init, {}, inputs, self._name, own_keys=1)
        if behind and (modules := nnx_modules()):
            with recording():
                modules.put(behind, left_behind)
        return graphdef, made, counts

    def _check_places(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], mesh: Mesh, refused: ValueError
    ) -> None:
        """Raises an error that has paths, if there are leaves that the mesh does not divide.

        The path of a leaf is known once all is recorded. So all is recorded on a mesh of one device
        with the same axes, which divides every leaf. Then each leaf says where it was to go.
        """
        one = np.full((1,) * mesh.devices.ndim, mesh.devices.flat[0])
        with jax.set_mesh(Mesh(one, mesh.axis_names, axis_types=mesh.axis_types)):
            try:
                args, kwargs = jax.tree.map(_made_anew, (args, kwargs))
                _, tree, _ = self._record(args, kwargs)
            except Exception:  # Something else is wrong, and JAX's own error says it.
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
    """Returns a copy of an array on the mesh that is set, and anything else as it is."""
    if not isinstance(x, jax.Array) or compat.is_tracer(x):
        return x
    return Key.of(x).array() if is_key(x) else jnp.asarray(np.asarray(x))


def nnx_modules() -> Any | None:
    """Returns our module for NNX, or ``None`` if nothing in this process has imported NNX."""
    if "flax.nnx" not in sys.modules:
        return None
    from lazyinit.record import nnx_modules

    return nnx_modules


def _mutable_variable_errors() -> tuple[type[Exception], ...]:
    modules = nnx_modules()
    return () if modules is None else (modules.ImmutableVariableError,)
