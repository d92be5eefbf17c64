"""The only room that touches names of JAX and Flax that are not public.

Private names of JAX and Flax come in; functions and values of our own go out. Nothing above this
floor has to know which versions are installed. ``primitives`` is a table of what is known of each
primitive, and ``rearranged`` describes the equations that only move elements. ``eager`` traces in
the steps of eager JAX (``origins`` says what a value is computed from, ``scalars`` which constants
NumPy may not cast), and ``again`` repeats calls of JAX's initializers without their Python code.
``counting`` adds whole numbers on the host. ``placements`` finds the sharding of the results of an
equation, ``unplaced`` removes shardings and meshes from an equation, and ``on_parts`` (built on
``device_parts`` and ``moved_parts``) runs an equation on the part that a device holds. ``pickling``
writes equations as bytes, ``hosts`` reaches the other processes, and ``versions`` says which JAX
this package is made for.

Each shim says which version can drop it, and ``tests/compat/test_compat.py`` tests every one.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax._src import core
from jax._src.state.types import AbstractRef
from jax.extend.core.primitives import random_fold_in_p
from jax.interpreters import partial_eval

from lazyinit.compat.again import call as call
from lazyinit.compat.counting import counted as counted
from lazyinit.compat.device_parts import Axes as Axes
from lazyinit.compat.device_parts import Cut as Cut
from lazyinit.compat.device_parts import DevicePlace as DevicePlace
from lazyinit.compat.device_parts import HeldPart as HeldPart
from lazyinit.compat.device_parts import WholeError as WholeError
from lazyinit.compat.device_parts import spread as spread
from lazyinit.compat.eager import EagerSteps as EagerSteps
from lazyinit.compat.eager import TracedValue as TracedValue
from lazyinit.compat.eager import eager_steps as eager_steps
from lazyinit.compat.hosts import Store as Store
from lazyinit.compat.hosts import store as store
from lazyinit.compat.on_parts import floats_computed as floats_computed
from lazyinit.compat.on_parts import run_on_part as run_on_part
from lazyinit.compat.pickling import PICKLED_ARRAY as PICKLED_ARRAY
from lazyinit.compat.pickling import dumps as dumps
from lazyinit.compat.pickling import pickling_problem as pickling_problem
from lazyinit.compat.placements import Placement as Placement
from lazyinit.compat.placements import Placements as Placements
from lazyinit.compat.placements import is_cut as is_cut
from lazyinit.compat.placements import mesh_around as mesh_around
from lazyinit.compat.placements import moves as moves
from lazyinit.compat.primitives import ClosedJaxpr as ClosedJaxpr
from lazyinit.compat.primitives import Fact as Fact
from lazyinit.compat.primitives import Scan as Scan
from lazyinit.compat.primitives import bit_width as bit_width
from lazyinit.compat.primitives import bodies as bodies
from lazyinit.compat.primitives import decomposes as decomposes
from lazyinit.compat.primitives import differs_where_cut as differs_where_cut
from lazyinit.compat.primitives import facts as facts
from lazyinit.compat.primitives import index_taken as index_taken
from lazyinit.compat.primitives import is_fold as is_fold
from lazyinit.compat.primitives import is_order_free as is_order_free
from lazyinit.compat.primitives import is_transposing as is_transposing
from lazyinit.compat.primitives import jit_body as jit_body
from lazyinit.compat.primitives import may_loop as may_loop
from lazyinit.compat.primitives import scan_of as scan_of
from lazyinit.compat.primitives import title as title
from lazyinit.compat.primitives import transparent_body as transparent_body
from lazyinit.compat.rearranged import Box as Box
from lazyinit.compat.rearranged import Flipped as Flipped
from lazyinit.compat.rearranged import InLine as InLine
from lazyinit.compat.rearranged import Permuted as Permuted
from lazyinit.compat.rearranged import Recast as Recast
from lazyinit.compat.rearranged import Same as Same
from lazyinit.compat.rearranged import Shaped as Shaped
from lazyinit.compat.rearranged import layout_of as layout_of
from lazyinit.compat.unplaced import Unplaced as Unplaced
from lazyinit.compat.unplaced import bind as bind


def is_reference(aval: Any) -> bool:
    """Tells whether a value is a mutable array (a ``jax.Ref``). Drop when its type is public."""
    return isinstance(aval, AbstractRef)


def narrow(equation: jex.JaxprEqn, wanted: Sequence[bool]) -> jex.JaxprEqn | None:
    """Drops from an equation what only its unwanted outputs need.

    Args:
      equation: any equation.
      wanted: for each of its outputs, whether it is wanted.

    Returns:
      One equation over the same variables; ``None`` where JAX does not leave exactly one, as if no
      output is wanted.
    """
    invars = list(dict.fromkeys(v for v in equation.invars if isinstance(v, jex.Var)))
    whole = jex.Jaxpr(
        constvars=[], invars=invars, outvars=equation.outvars, eqns=[equation],
        effects=equation.effects, debug_info=_no_debug_info(equation),
    )  # fmt: skip
    # jax.interpreters.partial_eval is public by place, not by promise.
    narrowed, _ = partial_eval.dce_jaxpr(whole, list(wanted))
    return narrowed.eqns[0] if len(narrowed.eqns) == 1 else None


def _no_debug_info(equation: jex.JaxprEqn) -> Any:
    return jex.DebugInfo(f"lazyinit:{equation.primitive.name}", "", None, None)


def counts_by_index(equation: jex.JaxprEqn) -> bool:
    """Tells whether a ``random_bits`` hashes the flat index of each element by threefry.

    With several keys, the index counts within the elements that are drawn from one key.

    Drop when a jaxpr equation says under which settings it was traced.
    """
    key: Any = equation.invars[0].aval
    is_threefry = key_impl(key.dtype) == "threefry2x32"
    return is_threefry and equation.ctx.threefry_partitionable


def key_impl(dtype: Any) -> str:
    """Returns the name of the PRNG behind a dtype of typed keys, such as ``"threefry2x32"``.

    Drop when ``jax.random.key_impl`` takes a dtype.
    """
    return dtype._impl.name


def is_anywhere(equation: jex.JaxprEqn) -> bool:
    """Tells whether an equation was traced under no mesh and for no special kind of memory."""
    return equation.ctx.cur_abstract_mesh.empty and equation.ctx.compute_type is None


def mesh_of(equations: Sequence[jex.JaxprEqn]) -> jax.sharding.AbstractMesh | None:
    """Returns the mesh that was set where equations were traced, ``None`` if none was.

    Drop when a jaxpr equation says under which settings it was traced.
    """
    meshes = (equation.ctx.cur_abstract_mesh for equation in equations)
    return next((mesh for mesh in meshes if not mesh.empty), None)


def is_array(aval: Any) -> bool:
    """Tells whether a value is a plain array: no key, no mutable array, no token."""
    return isinstance(aval, core.ShapedArray) and not jnp.issubdtype(
        aval.dtype, jax.dtypes.extended
    )


def setting(name: str) -> Any:
    """Returns the value of a JAX setting that holds in this thread, contexts included."""
    return getattr(jax.config, name)  # Typed nowhere, so not found by type checkers.


def for_one_thread() -> dict[str, str | bool | int]:
    """Returns XLA's compiler options for a CPU program that several threads run side by side.

    They keep optimization barriers. They keep XLA from splitting work over threads of its own, with
    which three runs took as long as four do without. They allow the widest vectors of the machine,
    as an element has the same bits in any lane of a vector.
    """
    passes = "cse_barrier_expander,cpu-parallel-task-assigner"
    return {"xla_disable_hlo_passes": passes, "xla_cpu_prefer_vector_width": 512}


def enable_x64(on: bool) -> AbstractContextManager[None]:
    """Returns a context in which 64-bit types are on or off."""
    return jax.enable_x64(on)


def flax_fold(names: Sequence[str | int]) -> int:
    """Returns the 32-bit value that Flax Linen folds into a stream for these names and counts.

    It is the first 4 bytes of a SHA-1 over the names, as in
    ``flax.core.scope.LazyRng.as_jax_rng``. Drop when Flax exposes it.
    """
    import hashlib

    from flax import config

    digest = hashlib.sha1()
    for name in names:
        if config.flax_fix_rng_separator:
            digest.update(b"\00")
        size = 0 if isinstance(name, str) else (name.bit_length() + 7) // 8
        digest.update(name.encode() if isinstance(name, str) else name.to_bytes(size, "big"))
    return int.from_bytes(digest.digest()[:4], "big")


def flax_make_rng(scope: Any, name: str) -> Any | None:
    """Does what ``Scope.make_rng`` of Flax does, for a stream that has its own typed key.

    All that is left to do is to bind one primitive. Drop when a ``LazyRng`` folds its suffix in
    without going through ``jax.numpy``.

    Returns:
      The key; ``None``, with nothing done, for any other stream or outside of ``EagerSteps``.
    """
    rng = scope.rngs.get(name)
    if not (rng is not None and isinstance(core.trace_ctx.trace, EagerSteps)):
        return None
    if not (hasattr(rng, "suffix") and jnp.issubdtype(rng.rng.dtype, jax.dtypes.prng_key)):
        return None
    scope._check_valid()
    scope._validate_trace_level()
    scope.rng_counters[name] += 1
    number = flax_fold((*rng.suffix, scope.rng_counters[name]))
    return random_fold_in_p.bind(rng.rng, np.uint32(number))


def flax_check(module: Any) -> None:
    """Checks, as Flax does before ``init``, that a Linen module's ``__post_init__`` completed.

    Drop when ``nn.init`` does so, too. Where Flax has no such check, nothing is checked.
    """
    getattr(module, "_module_checks", lambda: None)()


def static_attributes(graphdef: Any) -> list[tuple[str, Any]]:
    """Returns the name and value of each attribute of an NNX module that holds no arrays.

    They are read from its graph definition; the list is empty if Flax lays that out differently.
    Drop when a graph definition lists them.
    """
    attributes = getattr(graphdef, "attributes", ())
    return [(str(name), a.value) for name, a in attributes if hasattr(a, "value")]


def is_tracer(x: Any) -> bool:
    """Tells whether ``x`` (any object) is a traced value."""
    return isinstance(x, core.Tracer)


def is_in_trace() -> bool:
    """Tells whether the caller runs inside a trace (of a jit, a vmap)."""
    return not core.trace_state_clean()


def this_trace() -> Callable[[], AbstractContextManager[Any]]:
    """Returns what makes contexts in which the trace of now is the current one, even if it is over.

    Flax changes a module only under the trace that made it. Nothing can be computed there.
    """
    return functools.partial(core.set_current_trace, core.trace_ctx.trace)


def is_one_key(x: Any) -> bool:
    """Tells whether ``x``, any object, is a single key, typed or raw, as Flax wants it."""
    if not isinstance(x, jax.Array | np.ndarray):
        return False
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x.shape == ()
    raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return (x.shape, x.dtype) == (raw.shape, raw.dtype)
