"""Random initializers, shapes, dtypes and shardings; random functions whose leaves share arithmetic.

Eager JAX is the oracle. ``python tests/random_leaves.py --leaves 10000 --moved 1000 --functions
1000`` runs as many as one likes; ``tests/make/test_random_leaves.py`` a sample of them.
"""

import argparse
import contextlib
import functools
import math
import sys

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.nn import initializers
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from oracles import assert_same

import lazyinit as li
from lazyinit import paths

# Leaves.

SCALED = ["lecun_normal", "he_uniform", "glorot_normal", "he_normal", "lecun_uniform"]


def elementwise_of(op):
    return lambda key, shape, dtype: op(jax.random.uniform(key, shape, dtype, 0.05, 0.95))


ONE = {
    name: elementwise_of(getattr(lax, name))
    for name in [
        "abs",
        "neg",
        "sign",
        "floor",
        "ceil",
        "round",
        "sqrt",
        "rsqrt",
        "cbrt",
        "square",
        "exp",
        "exp2",
        "expm1",
        "log",
        "log1p",
        "logistic",
        "tanh",
        "sin",
        "cos",
        "tan",
        "sinh",
        "cosh",
        "erf",
        "erf_inv",
        "erfc",
    ]
    if name != "square" or hasattr(lax, "square")
}
INITIALIZERS = {
    "normal": initializers.normal(0.02),
    "uniform": initializers.uniform(0.3),
    "truncated normal": initializers.truncated_normal(0.5),
    "constant": initializers.constant(0.25),
    "moved": lambda k, s, d: jax.random.normal(k, s, d) * 0.3 + 0.7,
    "products": lambda k, s, d: (lambda x: x * 0.3 + x * 0.7 - 0.1)(jax.random.normal(k, s, d)),
    "range": lambda k, s, d: jax.random.uniform(k, s, d, -0.3, 0.9),
    "exponential": jax.random.exponential,
    "gumbel": jax.random.gumbel,
    "laplace": jax.random.laplace,
    "cauchy": jax.random.cauchy,
    "logistic sample": jax.random.logistic,
    "power": elementwise_of(lambda x: lax.pow(x, jnp.asarray(1.7, x.dtype))),
    "integer power": elementwise_of(lambda x: lax.integer_pow(x, 5)),
    "quotient": elementwise_of(lambda x: jnp.asarray(1.7, x.dtype) / x),
    "remainder": elementwise_of(lambda x: lax.rem(x, jnp.asarray(0.3, x.dtype))),
    "angle": elementwise_of(lambda x: lax.atan2(x, x - jnp.asarray(0.5, x.dtype))),
    "cast": lambda k, s, d: jax.random.normal(k, s).astype(d),
    "cast twice": lambda k, s, d: jax.random.normal(k, s).astype("bfloat16").astype(d),
    "clipped": lambda k, s, d: jnp.clip(jax.random.normal(k, s, d), -0.5, 0.5),
    "rows": lambda k, s, d: lax.scan(
        lambda _, key: (None, jax.random.normal(key, s[1:], d) * 0.02),
        None,
        jax.random.split(k, s[0]),
    )[1],
    "jitted": jax.jit(
        lambda k, s, d: jax.random.normal(k, s, d) * 0.3 + 0.1, static_argnums=(1, 2)
    ),
    "jitted products": jax.jit(
        lambda k, s, d: (lambda x: x * 0.3 + x * x * 0.7 - 0.1)(jax.random.normal(k, s, d)),
        static_argnums=(1, 2),
    ),
    "jitted powers": jax.jit(
        lambda k, s, d: (lambda x: ((x * 0.3 + 0.1) * x + 0.7) * x - x * x)(
            jax.random.uniform(k, s, d)
        ),
        static_argnums=(1, 2),
    ),
    "transposed": lambda k, s, d: jax.random.normal(k, s[::-1], d).T,
    "summed": lambda k, s, d: jax.random.normal(k, s, d) - jax.random.normal(k, s, d).sum(),
    "orthogonal": lambda k, s, d: initializers.orthogonal()(k, s, "float32").astype(d),
    **{name: getattr(initializers, name)() for name in SCALED},
    **ONE,
}
COMMON = ["normal", "uniform", "truncated normal", "moved", "range", *SCALED]
SIZES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 33, 48, 60, 63, 64, 65, 66, 72, 96, 100]
SIZES += [120, 127, 128, 129, 192, 200, 256, 300, 384, 500, 513, 768, 1000, 1024]


def random_shape(rng, least):
    while True:
        shape = tuple(int(n) for n in rng.choice(SIZES, rng.integers(least, 5)))
        if math.prod(shape) <= 2**19:
            return shape


@functools.cache
def meshes():
    return [
        jax.make_mesh(shape, tuple(names), axis_types=(AxisType.Auto,) * len(names))
        for shape, names in (((8,), "a"), ((2, 4), "ab"), ((2, 2, 2), "abc"))
    ]


def random_sharding(rng, shape):
    if rng.random() < 0.3:
        return None
    mesh = meshes()[rng.integers(3)]
    axes, spec = list(mesh.shape), []
    for size in shape:
        fits = [a for a in axes if size % mesh.shape[a] == 0]
        axis = rng.choice(fits) if fits and rng.random() < 0.7 else None
        spec.append(axis if axis is None else str(axis))
        axes = [a for a in axes if a != axis]
    return NamedSharding(mesh, PartitionSpec(*spec))


def random_leaf(seed):
    """Returns a name, a function of a key, a sharding, and the type of the mesh around it."""
    rng = np.random.default_rng(seed)
    name = str(rng.choice(COMMON if rng.random() < 0.5 else list(INITIALIZERS)))
    dtype = str(rng.choice(["float32", "float32", "bfloat16", "float16"]))
    shape = random_shape(rng, 2 if name in {*SCALED, "orthogonal"} else 1)
    if name == "orthogonal":
        shape = tuple(min(n, 33) for n in shape[:3])
    if name == "rows":
        shape = (min(shape[0], 9), *shape[1:])
    sharding = random_sharding(rng, shape)
    where = None if sharding is None else (sharding.spec, dict(sharding.mesh.shape))

    def init(key):
        return INITIALIZERS[name](key, shape, dtype)

    def init_rows(key):
        row = jax.vmap(lambda key: INITIALIZERS[name](key, shape[1:], dtype))
        return row(jax.random.split(key, shape[0]))

    # Last, so that a seed gives the leaf that it gave before.
    least = 3 if name in {*SCALED, "orthogonal", "rows"} else 2
    is_vmapped = len(shape) >= least and shape[0] <= 33 and rng.random() < 0.3
    axis_type = rng.choice([None, None, AxisType.Auto, AxisType.Explicit])
    how = "vmapped " * is_vmapped + f"within {axis_type} " * (axis_type is not None)
    made = init_rows if is_vmapped else init
    return f"{how}{name} {dtype}{shape} {where}", made, sharding, axis_type


def check_leaf(seed):
    name, init, sharding, axis_type = random_leaf(seed)
    key = jax.random.key(seed)
    with contextlib.nullcontext() if axis_type is None else jax.set_mesh(mesh_around(axis_type)):
        thunk = li.lazy(init)(key)
    made = li.materialize(thunk, sharding=sharding)
    assert_same(jnp.asarray(made), jnp.asarray(init(key)), f"seed {seed}: {name}")


# Leaves whose elements are moved after they are drawn.

DRAWN = ["normal", "uniform", "truncated normal", "moved", "range", "constant", "rows"]


def random_move(rng, shape):
    """Returns what moves the elements of an array of this shape, and what people call it."""
    kinds = ["transpose", "swapaxes", "split", "merge", "slice", "T", "flip", "step"]
    kind = str(rng.choice(kinds))
    axis = int(rng.integers(len(shape)))
    match kind:
        case "transpose":
            axes = tuple(map(int, rng.permutation(len(shape))))
            return lambda x: x.transpose(axes), f"transpose{axes}"
        case "swapaxes":
            return lambda x: jnp.swapaxes(x, axis, -1), f"swapaxes({axis}, -1)"
        case "split":
            inner = int(rng.choice([n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0]))
            to = (*shape[:axis], shape[axis] // inner, inner, *shape[axis + 1 :])
            return lambda x: x.reshape(to), f"reshape{to}"
        case "merge":
            to = (*shape[:axis], math.prod(shape[axis : axis + 2]), *shape[axis + 2 :])
            return lambda x: x.reshape(to), f"reshape{to}"
        case "slice":
            start = int(rng.integers(shape[axis]))
            stop = int(rng.integers(start, shape[axis])) + 1
            index = (*[slice(None)] * axis, slice(start, stop))
            return lambda x: x[index], f"[{start}:{stop}] along {axis}"
        case "flip":
            return lambda x: jnp.flip(x, axis), f"flip {axis}"
        case "step":
            start, step = int(rng.integers(min(shape[axis], 3))), int(rng.choice([2, 3, -1, -2]))
            index = (*[slice(None)] * axis, slice(start if step > 0 else None, None, step))
            return lambda x: x[index], f"[{start}::{step}] along {axis}"
    return lambda x: x.T, "T"


def check_moved(seed):
    rng = np.random.default_rng(seed)
    name, dtype = str(rng.choice(DRAWN)), str(rng.choice(["float32", "bfloat16"]))
    shape = [int(n) for n in rng.choice([2, 3, 4, 6, 8, 16, 24], rng.integers(1, 3))]
    shape.insert(int(rng.integers(len(shape) + 1)), int(rng.choice([64, 65, 96, 128, 192])))
    if rng.random() < 0.7:
        shape.sort()  # So that the last axis is long.
    if name == "rows":
        shape = [min(shape[0], 9), *shape[1:]]
    moves, said, left = [], [], jax.ShapeDtypeStruct(tuple(shape), dtype)
    for _ in range(int(rng.integers(1, 4))):
        move, title = random_move(rng, left.shape)
        left = jax.eval_shape(move, left)
        moves, said = [*moves, move], [*said, title]

    def init(key):
        x = INITIALIZERS[name](key, tuple(shape), dtype)
        for move in moves:
            x = move(x)
        return x

    axis_type = rng.choice([None, AxisType.Auto, AxisType.Explicit])
    sharding = random_sharding(rng, left.shape)
    if sharding is not None and axis_type is AxisType.Explicit:
        explicit = jax.make_mesh(sharding.mesh.axis_sizes, sharding.mesh.axis_names)
        sharding = NamedSharding(explicit, sharding.spec)
    key = jax.random.key(seed)
    with contextlib.nullcontext() if axis_type is None else jax.set_mesh(mesh_around(axis_type)):
        thunk = li.lazy(init)(key)
    made = li.materialize(thunk, sharding=sharding)
    assert sharding is None or made.sharding == sharding
    where = f"seed {seed}: {name} {dtype}{shape} {' '.join(said)}, recorded within {axis_type}"
    assert_same(made, init(key), f"{where}, to {sharding}")


@functools.cache
def mesh_around(axis_type):
    return jax.make_mesh((8,), ("z",), axis_types=(axis_type,))


# Functions whose leaves share arithmetic.

UNARY = [
    lambda x: x * 0.3 + 0.1, lambda x: x * x, jnp.abs, jnp.sqrt, jnp.exp, jnp.tanh, lambda x: -x,
    lambda x: x.astype("bfloat16"), lambda x: x - x.astype("bfloat16").astype(x.dtype),
    lambda x: x / 3.0, lambda x: x * 0.9, lambda x: jnp.clip(x, 0.1, 0.8),
    lambda x: x - x.mean(), lambda x: x / (jnp.sqrt((x * x).sum(-1, keepdims=True)) + 1e-6),
    lambda x: x[::-1], lambda x: x.T if x.ndim == 2 and x.shape[0] == x.shape[1] else x,
]  # fmt: skip
BINARY = [
    lambda x, y: x + y, lambda x, y: x * y, lambda x, y: x - 0.01 * y, lambda x, y: x * 0.9 + y * 0.1,
    lambda x, y: jnp.where(x > y, x, y * 0.5), lambda x, y: x * x + y, jnp.maximum,
    lambda x, y: x / (jnp.sqrt(y * y) + 1e-3),
]  # fmt: skip
DRAWS = [
    jax.random.normal, jax.random.uniform, initializers.lecun_normal(), initializers.normal(0.02),
]  # fmt: skip


def random_function(seed):
    """Returns a function of a key and an array to a tuple of leaves, under a jit or a scan or none."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.choice([3, 5, 16, 33, 64, 96], 2))
    plan = []  # What is computed, from what was computed before.
    for n in range(int(rng.integers(2, 9))):
        kind = "draw" if n == 0 else str(rng.choice(["draw", "data", "one", "two", "two"]))
        operands = rng.integers(0, n, 2) if n else (0, 0)
        plan.append((kind, int(rng.integers(1000)), *map(int, operands)))
    several = rng.choice(len(plan), int(rng.integers(1, min(len(plan), 4) + 1)), replace=False)
    on_data = rng.random() < 0.3

    def body(key, x):
        values = []
        for n, (kind, which, a, b) in enumerate(plan):
            if kind == "data" and not on_data:
                kind = "draw"
            if kind == "draw":
                values.append(DRAWS[which % len(DRAWS)](jax.random.fold_in(key, which % 5), shape))
            elif kind == "data":
                values.append(x * (n + 0.5))
            elif kind == "one":
                values.append(UNARY[which % len(UNARY)](values[a].astype("float32")))
            else:
                first, second = values[a].astype("float32"), values[b].astype("float32")
                same = first.shape == second.shape
                values.append(BINARY[which % len(BINARY)](first, second if same else first))
        return tuple(values[n] for n in several)

    how = str(rng.choice(["jit", "jit", "scan", "nn.jit", "nn.scan", "parts", "plain"]))

    def parts(key, x):  # Two jits, of which the second takes what the first gives.
        made = jax.jit(body)(key, x)
        return made, jax.jit(lambda *xs: tuple(v * 0.9 + 0.1 * v * v for v in xs))(*made)

    def scan(key, x):
        return lax.scan(lambda c, k: (c * 0.5, body(k, c)), x, jax.random.split(key, 3))

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            made = self.param("all", lambda key: body(key, x))
            return x * 0.5 + sum(v.astype("float32").sum() for v in made) * 1e-3, None

    linen = {
        "nn.jit": lambda: nn.jit(Module)(),
        "nn.scan": lambda: nn.scan(
            Module, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )(),
    }
    functions = {"jit": jax.jit(body), "scan": scan, "parts": parts, "plain": body}
    x = jax.random.normal(jax.random.key(seed + 1), shape)
    if how in linen:
        module = linen[how]()
        return (
            how,
            lambda key: module.init(key, x, None),
            lambda key: li.lazy(module).init(key, x, None),
        )
    return how, lambda key: functions[how](key, x), lambda key: li.lazy(functions[how])(key, x)


def check_function(seed):
    how, eager, lazy = random_function(seed)
    key = jax.random.key(seed)
    want, tree = eager(key), lazy(key)
    where = f"seed {seed}: {how}"
    assert_same(li.materialize(tree), want, where)
    wanted = dict(paths.leaves_with_paths(want))
    names = [p for p, leaf in paths.leaves_with_paths(tree) if isinstance(leaf, li.LazyParam)]
    pairs = [(a, b) for n, a in enumerate(names) for b in names[n + 1 :]][:3]
    for some in [(name,) for name in names] + pairs:
        made = dict(
            paths.leaves_with_paths(li.materialize(tree, lambda p, _, some=some: p in some))
        )
        for name in some:
            assert_same(made[name], wanted[name], f"{where}, {some} alone, {name}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=0)
    parser.add_argument("--moved", type=int, default=0)
    parser.add_argument("--functions", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    chosen = parser.parse_args()
    bad = 0
    counts = chosen.leaves, chosen.moved, chosen.functions
    for check, count in zip((check_leaf, check_moved, check_function), counts, strict=True):
        for seed in range(chosen.first, chosen.first + count):
            try:
                check(seed)
            except Exception as error:
                bad += 1
                again = []
                for _ in range(3):  # Does it differ each time, or does eager JAX from itself?
                    try:
                        check(seed)
                        again.append("equal")
                    except AssertionError:
                        again.append("differs")
                print("again:", *again, flush=True)
                print(type(error).__name__, str(error)[:400], flush=True)
            if seed % 200 == 199:
                jax.clear_caches()
        print(
            f"jax {jax.__version__}: {check.__name__}: {count} tried, {bad} differ so far",
            flush=True,
        )
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
