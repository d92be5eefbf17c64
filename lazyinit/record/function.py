"""Records any callable: a pure function that returns a pytree, or what makes a Flax NNX module.

An NNX constructor is such a function, too: it maps the keys inside an ``nnx.Rngs`` to the state
that ``nnx.split`` takes out of the module. What is Flax's stands in ``nnx_modules``, which is
imported only where Flax NNX is in use.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazyinit import errors
from lazyinit.record.thunks import Inputs, Note, record

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
        """
        name = getattr(self.function, "__name__", type(self.function).__name__)
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

        try:
            made, counts = record(init, {}, inputs, f"lazy({name})", own_keys=1)
        except _mutable_variable_errors() as error:
            raise errors.RecordError(
                f"lazy({name}): wanted variables that hold arrays, got ones that hold mutable "
                "arrays, which cannot be recorded. Record the model with "
                "nnx.var_defaults(hijax=False)."
            ) from error
        if modules := nnx_modules():
            modules.count_on(args, kwargs, counts)
        return made if graphdef is None else (graphdef, made)


def nnx_modules() -> Any | None:
    """Returns our module for NNX, ``None`` if nothing in this process has imported NNX."""
    if "flax.nnx" not in sys.modules:
        return None
    from lazyinit.record import nnx_modules

    return nnx_modules


def _mutable_variable_errors() -> tuple[type[Exception], ...]:
    modules = nnx_modules()
    return () if modules is None else (modules.ImmutableVariableError,)
