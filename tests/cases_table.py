"""Prints ``docs/cases.md``: every case, and whether its bits are those of eager ``init``.

``python tests/cases_table.py > docs/cases.md`` takes a few minutes.
"""

import jax

jax.config.update("jax_num_cpu_devices", 8)

import models  # noqa: E402
import nnx_models  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from oracles import assert_same, kernel_sharding, large_arrays_since, live  # noqa: E402

import lazyinit as li  # noqa: E402
from lazyinit import paths  # noqa: E402

COLUMNS = ("Case", "Own key", "Sliced", "1 device", "2x4 devices", "One by one", "Allocates")


def row(name, want, record):
    """Returns the cells of a case: counts of leaves, whether bits are equal, what is alive."""
    before = live()
    tree = record()
    alive = large_arrays_since(before)
    lazy = [x for x in jax.tree.leaves(tree) if isinstance(x, li.LazyParam)]
    own = sum(x.init_fn.key >= 0 for x in lazy)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    one_by_one = tree
    for path, _ in reversed(paths.leaves_with_paths(tree)):
        one_by_one = li.materialize(one_by_one, lambda p, _, path=path: p == path)
    answers = [
        equal(li.materialize(tree), want),
        equal(
            without_numpy(li.materialize(tree, sharding=kernel_sharding(mesh))), without_numpy(want)
        ),
        equal(one_by_one, want),
    ]
    return (name, own, len(lazy) - own, *answers, "nothing" if not alive else str(alive))


def without_numpy(tree):
    """Makes arrays of NumPy's: a sharding asks for that too."""
    return paths.replace_leaves(
        tree,
        [jax.numpy.asarray(x) if isinstance(x, np.ndarray) else x for x in jax.tree.leaves(tree)],
    )


def equal(got, want):
    """Says whether two trees have the same bits, types and containers."""
    try:
        assert_same(got, want)
    except AssertionError as error:
        return f"no: {error}"
    return "yes"


def cases():
    """Yields, for each case, its name, a function that makes its tree eagerly, one that records it."""
    for name, (module, rngs, args, kwargs) in models.CASES.items():
        given = (rngs, *args)
        yield (
            f"Linen: {name}",
            lambda module=module, given=given, kwargs=kwargs: module.init(*given, **kwargs),
            lambda module=module, given=given, kwargs=kwargs: li.lazy(module).init(
                *given, **kwargs
            ),
        )
    for name, build in nnx_models.CASES.items():
        yield (
            f"NNX: {name}",
            lambda build=build: nnx.split(build(nnx_models.rngs()))[1],
            lambda build=build: li.lazy(build)(nnx_models.rngs())[1],
        )


def main():
    print(
        "# Cases\n\nMade by `python tests/cases_table.py > docs/cases.md`, on CPU, with jax",
        end=" ",
    )
    print(
        f"{jax.__version__}.\nEach case is in `tests/models.py` or `tests/nnx_models.py`. `Own key`"
    )
    print(
        "counts the leaves that start from a key of their own (the stream and what is folded into"
    )
    print(
        "it), `Sliced` those that start from the root keys. Equal means the same bits, dtypes, weak"
    )
    print(
        "types, containers and order of keys as eager `init`. `Allocates`: arrays larger than a key"
    )
    print("that are alive while the recorded tree is held.\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---|--:|--:|---|---|---|---|")
    for name, init, record in cases():
        print("| " + " | ".join(map(str, row(name, init(), record))) + " |", flush=True)


if __name__ == "__main__":
    main()
