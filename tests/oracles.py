"""What eager JAX says: comparisons that let no bit, type or order of keys pass."""

import sys
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def assert_same(got, want, where="tree"):
    """Asserts that two trees are bit-identical.

    The same containers, keys in the same order, metadata of boxes, dtypes, weak types, shapes and
    bytes. Typed PRNG keys are compared by implementation and words.
    """
    assert type(got) is type(want) or _both_arrays(got, want), (
        f"{where}: {type(got).__name__}, wanted {type(want).__name__}"
    )
    if isinstance(want, Mapping):
        assert list(got) == list(want), f"{where}: keys {list(got)}, wanted {list(want)}"
        for key in want:
            assert_same(got[key], want[key], f"{where}/{key}")
        return
    if not isinstance(want, jax.Array) and not jax.tree_util.all_leaves([want]):
        (got_children, got_rest), (want_children, want_rest) = map(_one_level, (got, want))
        assert got_rest == want_rest, f"{where}: metadata {got_rest!r}, wanted {want_rest!r}"
        assert len(got_children) == len(want_children), f"{where}: another number of children"
        for (name, a), (_, b) in zip(got_children, want_children, strict=True):
            assert_same(a, b, f"{where}/{name}")
        return
    if isinstance(want, jax.Array | np.ndarray):
        assert_same_array(got, want, where)
        return
    assert got == want, f"{where}: {got!r}, wanted {want!r}"


def assert_same_array(got, want, where="array"):
    """Asserts that two arrays have the same type, shape and bytes."""
    facts = [(x.dtype, x.shape, getattr(x, "weak_type", None)) for x in (got, want)]
    assert facts[0] == facts[1], f"{where}: {facts[0]}, wanted {facts[1]}"
    if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
        assert jax.random.key_impl(got) == jax.random.key_impl(want), where
        got, want = jax.random.key_data(got), jax.random.key_data(want)
    got, want = np.asarray(got), np.asarray(want)
    if got.tobytes() != want.tobytes():
        differ = got.view(f"V{got.itemsize}") != want.view(f"V{want.itemsize}")
        n = int(np.sum(differ))
        raise AssertionError(
            f"{where}: {n} of {got.size} elements differ, first "
            f"{got[differ].flat[0]!r}, wanted {want[differ].flat[0]!r}"
        )


def kernel_sharding(mesh):
    """Returns a sharding callable that cuts every dimension that it can, each over one axis."""

    def shard(path, leaf):
        free = dict(mesh.shape)
        spec = []
        for size in leaf.shape:
            axis = next((a for a, n in free.items() if size % n == 0 and size), None)
            free.pop(axis, None)
            spec.append(axis)
        return NamedSharding(mesh, PartitionSpec(*spec))

    return shard


def live():
    """Returns the arrays that are alive now, by identity."""
    return {id(x): x for x in jax.live_arrays()}


def large_arrays_since(before, size=64):
    """Returns shapes of arrays alive now and not before, of more elements than a key or scalar."""
    return [(x.shape, str(x.dtype)) for n, x in live().items() if n not in before and x.size > size]


def _both_arrays(got, want):
    # What comes out of an eager jit as it went in may be JAX's own kind of numpy array.
    return isinstance(got, jax.Array) and (
        isinstance(want, jax.Array) or type(want).__name__ == "TypedNdArray"
    )


def _one_level(node):
    children, rest = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if hasattr(rest, "items") or isinstance(rest, list):
        rest = repr(rest)
    return [(str(key), child) for key, child in children], rest


def lines_run_by(work):
    """Returns how many lines of Python a function runs: what it costs, the same on any machine."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def assert_not_quadratic(work, size=100):
    """Asserts that eight times the size costs less than 16 times the lines, not 64 times.

    Args:
      work: takes a size, and returns the function to count.
    """
    small, large = work(size), work(8 * size)
    small()  # What is cached once does not count.
    assert lines_run_by(large) < 16 * lines_run_by(small)
