"""The canaries: whether they cover what leaves need, and whether each shows a fault of its kind."""

import typing
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit.compat import floats_computed, on_parts
from lazyinit.make import elementwise, executable, proofs, selfcheck
from lazyinit.make.derive import derivations_of
from lazyinit.make.executable import Compiler
from lazyinit.make.proofs import TRUSTED, Found, Proofs
from lazyinit.make.stacked import Stacked
from lazyinit.make.ways import Drawn, Job, way_of
from lazyinit.program import partwise

SORTS = typing.get_args(proofs.Sort)


@pytest.fixture(scope="module")
def covered():
    """All canaries, in order: the sort, the canary, its dtype, and the kinds that it has."""
    with pytest.MonkeyPatch.context() as patch:  # Nothing is compiled.
        patch.setattr(selfcheck, "make", lambda *_, **__: iter(()))
        patch.setattr(selfcheck, "_differs_by_parts", lambda *_: False)
        return [
            (sort, canary, dtype, attempt(canary, dtype, "cpu")[0])
            for sort in SORTS
            for attempt, each in [selfcheck._canaries(sort)]
            for canary, dtype in each
        ]


@pytest.fixture
def proven(covered):
    """What is proven where all canaries pass."""
    kinds = {
        sort: frozenset().union(*(found for own, *_, found in covered if own == sort))
        for sort in SORTS
    }
    return lambda _: Proofs("a machine of the tests", of=lambda sort: Found(kinds[sort]))


def provers(covered, sort):
    """Returns for each kind the first canary that has it, which proves it, and a dtype."""
    first = {}
    for own, canary, dtype, kinds in covered:
        if own == sort:
            first.update((kind, (canary, dtype)) for kind in sorted(kinds - set(first)))
    return first


FLOATS = ("float32", "bfloat16", "float16")
RANDOM = {
    "normal": initializers.normal(0.02),
    "uniform": initializers.uniform(0.1),
    "constant": initializers.constant(0.5),
    "truncated normal": initializers.truncated_normal(0.02),
    "lecun normal": initializers.lecun_normal(),
    "he uniform": initializers.he_uniform(),
    "xavier normal": initializers.xavier_normal(),
    "jax.random.normal": jax.random.normal,
    "jax.random.uniform": jax.random.uniform,
    "scaled and moved": lambda *args: jax.random.normal(*args) * 0.3 + 0.7,
}


def is_drawn(init, ask):
    leaf = li.lazy(init)(jax.random.key(0))
    return isinstance(way_of([Job("w", leaf, None, leaf.dtype)], ask), Drawn)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", RANDOM)
def test_what_initializers_need_is_proven_where_the_canaries_pass(proven, name, dtype):
    def one(key):
        return RANDOM[name](key, (64, 128), dtype)

    def scanned(key):
        return jax.lax.scan(lambda _, key: (None, one(key)), None, jax.random.split(key, 3))[1]

    def vmapped(key):
        return jax.vmap(one)(jax.random.split(key, 3))

    drawn = [is_drawn(init, lambda *_: TRUSTED) for init in (one, scanned, vmapped)]
    assert [is_drawn(init, proven) for init in (one, scanned, vmapped)] == drawn
    assert dtype != "float32" or name == "constant" or all(drawn)


def test_bits_and_single_steps_are_proven_where_the_canaries_pass(proven):
    def steps(key):
        x = jax.random.uniform(key, (64, 128))
        return jnp.where(jnp.floor(x * 8) > 3, jnp.sqrt(abs(x)), -(jnp.minimum(x, 0.5) ** 3))

    bits = [
        lambda key, d=d: jax.random.bits(key, (64, 128), d) for d in ("uint8", "uint16", "uint32")
    ]
    assert all(is_drawn(init, proven) for init in (steps, *bits))


PARTED = {
    "an average": lambda x: x * 0.9 + x * 0.1,
    "casts": lambda x: [x.astype(d) for d in (*FLOATS, "float8_e4m3fn") if d != x.dtype],
    "roots and powers": lambda x: [jnp.sqrt(abs(x)), jnp.square(x), x**3, -x, x - 1],
    "quotients": lambda x: [x / 3, x / x[:, :1]],
}
PARTED_WIDE = {
    "clipped": lambda x: jnp.clip(x, -1, 1),
    "chosen": lambda x: jnp.where(x < 0, x, jnp.round(x) + jnp.sign(x) + jnp.floor(x)),
    "largest": lambda x: [x.max(1), x.min(1), x.argmax(1)],
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in PARTED for d in FLOATS] + [(n, d) for n in PARTED_WIDE for d in FLOATS[:2]],
)
def test_what_derived_leaves_need_is_proven_where_the_canaries_pass(proven, name, dtype):
    values = np.ones((8, 128), dtype)
    tree, _ = li.fill({"w": jax.ShapeDtypeStruct(values.shape, values.dtype)}, {"w": values})
    lazy = li.lazy(lambda tree: {**PARTED, **PARTED_WIDE}[name](tree["w"]))(tree)
    sharding = NamedSharding(jax.make_mesh((8,), ("a",)), P("a"))
    jobs = [
        Job("made", leaf, sharding, leaf.dtype)
        for leaf in jax.tree.leaves(lazy)
        if isinstance(leaf, li.DerivedParam)
    ]

    def parted(ask):
        return [derivations_of([job], ask)[0].parted is not None for job in jobs]

    trusted = parted(lambda *_: TRUSTED)
    assert parted(proven) == trusted
    assert dtype != "float32" or all(trusted)


def test_every_kind_has_a_way_a_step_and_at_most_one_dtype(covered):
    """``li.check`` has a column for each."""
    assert all(len(kind.split()) in (2, 3) for *_, kinds in covered for kind in kinds)


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
def test_every_kind_passes_where_the_suite_runs(covered, sort):
    found = selfcheck.run("cpu", sort)
    assert not found.failed
    assert found.passed == set(provers(covered, sort))


# Of what these give, the last bits are lost in every leaf: in a shift, or as the bound of a clip,
# of which only the sign shows if no element reaches it.
HIGHER_BITS = {
    "draw convert_element_type uint16": 15,
    "draw nextafter float32": 15,
    "draw random_bits uint64": 15,
    "draw stop_gradient bfloat16": 15,
    "draw stop_gradient float32": 31,
}


def flipped(x, kind):
    """Returns an array with a bit of each element changed, the last one if that can show."""
    if x.dtype == bool:
        return ~x
    word = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    bit = jnp.asarray(1 << HIGHER_BITS.get(kind, 0), word)
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(x, word) ^ bit, x.dtype)


def plant_in_drawing(patch, kind):
    """Makes the steps of a kind wrong in the last bit; of rows, takes the keys in another order."""
    patch.setattr(executable, "compiler", Compiler())
    if kind.startswith("draw rows_of_"):
        under, real = kind.removeprefix("draw rows_of_"), Stacked.rows
        patch.setattr(
            Stacked,
            "rows",
            lambda self, parts: real(self, parts)[:: -1 if self.under == under else 1],
        )
        return
    real_step = elementwise._run_step

    def run(step, args, *rest):
        made = real_step(step, args, *rest)
        is_it = proofs._drawn(step) == kind
        return [x._replace(array=flipped(x.array, kind)) for x in made] if is_it else made

    patch.setattr(elementwise, "_run_step", run)


def plant_in_parts(patch, kind):
    """Makes the equations of a kind wrong in the last bit, where they are run on parts."""
    _, name, dtypes = kind.split()
    real = on_parts._run

    def run(equation, *rest):
        made = real(equation, *rest)
        is_it = equation.primitive.name == name and "+".join(floats_computed(equation)) == dtypes
        return [replace(x, array=flipped(x.array, kind)) for x in made] if is_it else made

    patch.setattr(on_parts, "_run", run)
    forget_parts(name)


def forget_parts(name):
    """Forgets the programs of a primitive, and of what has a body."""
    for step in [s for s in partwise._known if s[1].name in (name, "jit", "pjit")]:
        del partwise._known[step]


def is_caught(covered, sort, kind):
    canary, dtype = provers(covered, sort)[kind]
    attempt, _ = selfcheck._canaries(sort)
    plant = plant_in_parts if sort == "by parts" else plant_in_drawing
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, kind)
        _, differs = attempt(canary, dtype, "cpu")
    if sort == "by parts":
        forget_parts(kind.split()[1])
    return differs


@pytest.mark.parametrize(
    ("sort", "kind"),
    [
        ("narrow", "draw random_bits uint8"),
        ("wide", "draw sign float32"),
        ("wide", "draw rows_of_scan"),
        ("double", "draw erf_inv float64"),
        ("by parts", "part div float16"),
    ],
)
def test_a_planted_fault_of_a_kind_is_caught(covered, sort, kind):
    assert is_caught(covered, sort, kind)


@pytest.mark.slow
@pytest.mark.parametrize("sort", SORTS)
def test_a_planted_fault_of_every_kind_is_caught(covered, sort):
    """Each by the canary that proves the kind: what goes wrong by one bit has to show in it."""
    assert [k for k in provers(covered, sort) if not is_caught(covered, sort, k)] == []
