"""Small Flax modules that several tests share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def normal(stddev=0.02):
    """Returns a closure that is another object each time, as user code does inside of layers."""

    def init(key, shape, dtype=jnp.float32):
        return jax.random.normal(key, shape, dtype) * jnp.asarray(stddev, dtype)

    return init


class RMSNorm(nn.Module):
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale


class DecoderLayer(nn.Module):
    """Nine parameters: two scales, q, k, v, o, gate, up, down."""

    width: int
    hidden: int
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        def dense(features, name):
            return nn.Dense(
                features,
                use_bias=False,
                param_dtype=self.param_dtype,
                kernel_init=normal(0.02),
                name=name,
            )

        h = RMSNorm(self.param_dtype, name="attention_norm")(x)
        q, k, v = (dense(self.width, name)(h) for name in ("q", "k", "v"))
        weights = nn.softmax(q @ jnp.swapaxes(k, -1, -2) / self.width**0.5)
        x = x + dense(self.width, "o")(weights @ v)
        h = RMSNorm(self.param_dtype, name="mlp_norm")(x)
        gated = nn.silu(dense(self.hidden, "gate")(h)) * dense(self.hidden, "up")(h)
        return x + dense(self.width, "down")(gated)


class Decoder(nn.Module):
    """A decoder of ``9 * layers + 3`` parameters."""

    layers: int
    width: int = 16
    hidden: int = 32
    vocabulary: int = 64
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(
            self.vocabulary,
            self.width,
            param_dtype=self.param_dtype,
            embedding_init=normal(0.02),
            name="embed",
        )(tokens)
        for n in range(self.layers):
            layer = DecoderLayer(self.width, self.hidden, self.param_dtype, name=f"layers_{n}")
            x = layer(x)
        x = RMSNorm(self.param_dtype, name="norm")(x)
        return nn.Dense(
            self.vocabulary,
            use_bias=False,
            param_dtype=self.param_dtype,
            kernel_init=normal(0.02),
            name="head",
        )(x)


TOKENS = jax.ShapeDtypeStruct((1, 8), "int32")


class MLP(nn.Module):
    """A trunk of two layers and a head."""

    width: int = 16
    classes: int = 8

    @nn.compact
    def __call__(self, x):
        for n in range(2):
            x = nn.relu(nn.Dense(self.width, name=f"layers_{n}")(x))
        return nn.Dense(self.classes, name="head")(x)


# One case per feature of Linen: name -> (module, keywords of ``init``). Arguments are under
# ``args``, the keys under ``rngs`` (by default one typed key).
CASES = {}
KEY = jax.random.key(7)
X = jnp.linspace(-1.0, 2.0, 4 * 8, dtype=jnp.float32).reshape(4, 8)
SEQUENCE = jnp.linspace(-1.0, 1.0, 2 * 4 * 8, dtype=jnp.float32).reshape(2, 4, 8)


def case(name, module, *args, rngs=None, **kwargs):
    """Adds a case; ``module.init(rngs, *args, **kwargs)`` is the oracle."""
    assert name not in CASES
    CASES[name] = (module, KEY if rngs is None else rngs, args or (X,), kwargs)


# Told apart by another case already, or long.
SLOW = {
    "Bidirectional",
    "Conv grouped",
    "ConvLSTM",
    "ConvLocal",
    "Einsum",
    "InstanceNorm",
    "RNN GRUCell",
    "RNN MGUCell",
    "RNN SimpleCell",
    "SpectralNorm",
    "SpectralNorm of Conv",
    "attention",
    "attention normalized",
    "capture intermediates",
    "RNN OptimizedLSTMCell",
    "ConvTranspose",
    "DenseGeneral",
    "vmap over scan",
    "cond that makes parameters",
    "decoder bfloat16",
    "decoder float16",
    "decoder float32",
    "initializers bfloat16",
    "initializers float16",
    "jit class called twice",
    "jit between",
    "remat_scan",
    "scan nested",
    "scan of length one",
    "scan unrolled",
    "scan with remat",
    "threefry4x32",
    "philox2x32",
    "unsafe_rbg",
    "vmap axis 1",
}


def streams(*names):
    return {name: jax.random.key(n) for n, name in enumerate(names)}


# One of each mechanism: what of the others is cut over a mesh is the same.
ON_A_MESH = {
    "BatchNorm",
    "WeightNorm",
    "attention decode cache",
    "cond",
    "constants that are large",
    "map_variables mutable",
    "parameter of the input",
    "put_variable over a parameter",
    "rbg",
    "scan axis 1",
    "scan of carried data",
    "several streams",
    "unboxed keeps nested boxes",
    "variables, sow, perturb, put_variable",
    "vmap split",
}


class Wrap(nn.Module):
    """A module from a function: ``Wrap(lambda self, x: ...)``."""

    fn: object

    @nn.compact
    def __call__(self, *args, **kwargs):
        return self.fn(self, *args, **kwargs)


def compact(name):
    """Makes a case of the function's body."""

    def add(fn):
        case(name, Wrap(fn))
        return fn

    return add


# Structure of modules.


class Setup(nn.Module):
    def setup(self):
        self.encoder = nn.Dense(8)
        self.layers = [nn.Dense(8), nn.Dense(4)]
        self.named = {"a": nn.Dense(4), "b": nn.Dense(4)}
        self.scale = self.param("scale", nn.initializers.normal(1.0), (4,))

    def __call__(self, x):
        x = self.encoder(x)
        for layer in self.layers:
            x = layer(x)
        return (self.named["b"](x) + self.named["a"](x)) * self.scale

    def encode(self, x, *, twice=False):
        return self.encoder(self.encoder(x) if twice else x)


class Flags(nn.Module):
    @nn.compact
    def __call__(self, x, mode, sizes, mask=None, *, train=True, rate=0.0):
        for size in sizes:
            x = nn.Dense(size)(x)
        if mode == "wide" and train and mask is None:
            x = nn.Dense(16, name="wide")(x)
        return nn.Dropout(rate, deterministic=not train)(x)


class Tied(nn.Module):
    def setup(self):
        self.embed = nn.Embed(16, 8)
        self.body = nn.Dense(8)

    def __call__(self, tokens):
        return self.embed.attend(self.body(self.embed(tokens)))


class Borrower(nn.Module):
    shared: nn.Module

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(self.shared(x))


class SharedSubmodule(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(8)
        return Borrower(shared)(x) + Borrower(shared)(shared(x))


case("setup", Setup())
case("method name", Setup(), method="encode")
case("method function with keyword", Setup(), method=Setup.encode, twice=True)
case("method lambda", Setup(), method=lambda self, x: self.encode(x))
case("method bound", Setup(), method=Setup().encode)
case("flags strings tuples", Flags(), X, "wide", (8, 4), mask=None, train=True)
case("flags dropout", Flags(), X, "narrow", (8,), rate=0.5, rngs=streams("params", "dropout"))
case("tied embedding", Tied(), jnp.arange(4))
case("shared submodule", SharedSubmodule())
case("one key", MLP())
case("raw key", MLP(), rngs=jax.random.PRNGKey(3))
case("numpy raw key", MLP(), rngs=np.array([1, 2], np.uint32))
case("rbg", MLP(), rngs=jax.random.key(3, impl="rbg"))
for impl in ("threefry4x32", "philox2x32", "philox4x32"):
    case(impl, MLP(), rngs=jax.random.key(3, impl=impl))
case("unsafe_rbg", MLP(), rngs=jax.random.key(3, impl="unsafe_rbg"))
case("dict of typed and raw", Flags(), X, "a", (8,), rate=0.5,
     rngs={"dropout": jax.random.PRNGKey(1), "params": jax.random.key(3)})  # fmt: skip
case("default stream raw numpy", MLP(), rngs={"params": np.array([0, 5], np.uint32)})


def _batch_norm_and_sow(self, x):
    x = nn.BatchNorm(use_running_average=False)(x)
    self.sow("intermediates", "x", x)
    self.sow("losses", "norm", x.sum())
    return x


case("mutable list", Wrap(_batch_norm_and_sow), mutable=["params", "batch_stats"])
case("mutable with intermediates", Wrap(_batch_norm_and_sow), mutable=True)
case("mutable deny", Wrap(_batch_norm_and_sow), mutable=nn.DenyList(["losses"]))
case("mutable name", Wrap(lambda self, x: nn.Dense(8)(x)), mutable="params")
case("capture intermediates", Setup(), mutable=True, capture_intermediates=True)
case("intermediates not mutable", nn.Sequential([nn.Dense(8)]), capture_intermediates=True)


@compact("no params at all")
def _(self, x):
    return x


def _no_params_stream(self, x):
    noise = self.variable(
        "buffers", "noise", lambda: jax.random.normal(self.make_rng("noise"), (4, 8))
    )
    return x + noise.value


case("no params stream", Wrap(_no_params_stream), rngs=streams("noise"))


def _several_streams(self, x):
    self.param("a", nn.initializers.normal(), (8, 4))
    self.variable("s", "b", lambda: jax.random.uniform(self.make_rng("s"), (8, 4)))
    self.variable("s", "c", lambda: jax.random.uniform(self.make_rng("t"), (8, 4)))
    self.param("d", lambda key: jax.random.normal(key, (8, 4)) + self.make_rng("s")[0]
               if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
               else jax.random.normal(key, (8, 4)) * jax.random.uniform(self.make_rng("s")))  # fmt: skip
    return x


case("several streams", Wrap(_several_streams), rngs=streams("params", "s", "t"))
case("several raw streams", Wrap(_several_streams),
     rngs={n: jax.random.PRNGKey(i) for i, n in enumerate(("params", "s", "t"))})  # fmt: skip


# Variables.


@compact("variables, sow, perturb, put_variable")
def _(self, x):
    count = self.variable("state", "count", jnp.zeros, (), jnp.int32)
    count.value = count.value + 1
    self.variable("state", "mean", lambda: x.mean(0))
    self.variable("state", "flag", lambda: True)
    self.variable("state", "host", lambda: np.arange(6, dtype=np.int16).reshape(2, 3))
    self.sow("losses", "norm", jnp.sum(x * x))
    self.sow("losses", "norm", jnp.max(x))
    x = self.perturb("out", x)
    x = nn.Dense(8)(x)
    self.put_variable("state", "last", x)
    return x


@compact("put_variable over a parameter")
def _(self, x):
    kernel = self.param("kernel", nn.initializers.normal(0.1), (8, 8))
    self.put_variable("params", "kernel", kernel * 3.0 + 0.1)
    self.param("other", nn.initializers.normal(0.1), (8, 8))
    return x @ kernel


@compact("parameter of another parameter")
def _(self, x):
    first = self.param("first", nn.initializers.normal(0.1), (8, 8))
    self.param("second", lambda key: first * 0.5 + 0.1)
    self.param("third", lambda key: jax.random.normal(key, (8, 8)) * 0.3 + first)
    return x


@compact("parameter of the input")
def _(self, x):
    self.param("mean", lambda key: x.mean(0) * 0.3 + 0.1)
    self.param("whiten", lambda key: x.T @ x / 3 + jax.random.normal(key, (8, 8)))
    scale = self.param("scale", lambda key, s: jnp.full((8,), 1.0) / s, jnp.std(x))
    return x * scale


@compact("parameter with make_rng inside")
def _(self, x):
    self.param("a", lambda key: jax.random.normal(self.make_rng("params"), (8, 8)))
    self.param("b", nn.initializers.normal(), (8, 8))
    key = self.make_rng("params")
    self.param("c", lambda _: jax.random.normal(key, (8, 8)))
    return x


@compact("init_fn of pytrees, numpy and numbers")
def _(self, x):
    self.param("pair", lambda key: (jax.random.normal(key, (8, 4)), jnp.zeros(4)))
    self.param("tree", lambda key: {"z": jax.random.normal(key, (8,)), "a": [jnp.ones(2), 3]})
    self.param("numpy", lambda key: np.linspace(0, 1, 8, dtype=np.float16))
    self.param("float", lambda key: 0.5)
    self.param("int", lambda key: 3)
    self.param("weak", lambda key: jnp.asarray(0.5) * 1.0)
    self.param("weaker", lambda key: jax.lax.full((), 2.0))
    self.param("key", lambda key: key)
    self.param("keys", lambda key: jax.random.split(key, 3))
    self.param("words", lambda key: jax.random.key_data(key))
    self.param("none", lambda key: None)
    self.param("bool", lambda key: jax.random.bernoulli(key, 0.5, (8, 4)))
    self.param("ints", lambda key: jax.random.randint(key, (8, 4), 0, 100))
    self.param("complex", lambda key: jax.random.normal(key, (8, 4), jnp.complex64))
    self.param("empty", nn.initializers.normal(), (0, 3))
    self.param("scalar", nn.initializers.normal(), ())
    return x


@compact("constants that are large")
def _(self, x):
    table = np.sin(np.arange(256 * 8, dtype=np.float32)).reshape(256, 8)
    self.param("table", lambda key: jnp.asarray(table) * 0.3 + 0.1)
    self.param("noisy", lambda key: jnp.asarray(table) + 0.1 * jax.random.normal(key, (256, 8)))
    self.variable("buffers", "positions", lambda: jnp.arange(512)[None])
    return x


@compact("unboxed keeps nested boxes")
def _(self, x):
    init = nn.with_partitioning(nn.initializers.normal(), ("a", None))
    self.param("boxed", init, (8, 8), unbox=False)
    self.param("nested", nn.with_partitioning(init, ("b", None)), (8, 8))
    self.param("logical", nn.with_logical_partitioning(nn.initializers.ones, ("c", "d")), (8, 8))
    self.variable("v", "box", nn.with_partitioning(lambda: x * 2.0, ("a", "b")))
    return x


# Lifted transforms.


class ScanLayer(nn.Module):
    """A scan body whose parameters depend on keys alone, but for ``carried``."""

    width: int = 8
    data: bool = False
    boxed: bool = False

    @nn.compact
    def __call__(self, carry, x=None):
        init = normal(0.3)
        if self.boxed:
            init = nn.with_partitioning(init, ("in", "out"))
        y = nn.Dense(self.width, kernel_init=init)(carry)
        if self.data:
            self.param("carried", lambda key: carry.mean(0) * 0.3 + jax.random.normal(key, (8,)))
        y = nn.LayerNorm()(nn.tanh(y))
        return y + (0 if x is None else x), y.sum()


class Scanned(nn.Module):
    options: tuple = ()
    data: bool = False
    remat: bool = False
    length: int = 3

    @nn.compact
    def __call__(self, x):
        body = nn.remat(ScanLayer) if self.remat else ScanLayer
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        options |= dict(self.options)
        scan = nn.scan(body, length=self.length, **options)
        boxed = "metadata_params" in options
        return scan(data=self.data, boxed=boxed)(x, None)


METADATA = {nn.PARTITION_NAME: "layers"}
case("scan axis 0", Scanned())
case("scan axis 1", Scanned((("variable_axes", {"params": 1}), ("metadata_params", METADATA))))
case("scan with metadata", Scanned((("metadata_params", METADATA),)))
case("scan broadcast", Scanned((("variable_axes", {}), ("variable_broadcast", "params"),
                               ("split_rngs", {"params": False}))))  # fmt: skip
case("scan not split", Scanned((("split_rngs", {"params": False}),)))
case("scan with remat", Scanned(remat=True))
case("scan of carried data", Scanned(data=True))
case("scan unrolled", Scanned((("unroll", 3),)))
case("scan of length one", Scanned(length=1))


class NestedScan(nn.Module):
    @nn.compact
    def __call__(self, carry, _):
        return Scanned()(carry)[0], None


@compact("scan nested")
def _(self, x):
    scan = nn.scan(NestedScan, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
    return scan()(x, None)


class CarriedState(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        total = self.variable("batch_stats", "total", lambda: jnp.zeros(8))
        total.value = total.value + carry.sum(0)
        self.variable("history", "seen", lambda: carry * 0.5)
        return nn.Dense(8)(carry) + x, carry


@compact("scan with state")
def _(self, x):
    scan = nn.scan(
        CarriedState,
        variable_axes={"params": 0, "history": 1, "batch_stats": 0},
        split_rngs={"params": True},
    )
    return scan()(x, jnp.stack([x, x * 2.0, x]))


@compact("remat_scan")
def _(self, x):
    return nn.remat_scan(nn.Dense, lengths=(2, 3))(8)(x)


def _vmap(variables, split, **more):
    def body(self, x):
        mapped = nn.vmap(
            nn.Dense, variable_axes=variables, split_rngs={"params": split}, in_axes=0, **more
        )
        return mapped(8)(jnp.stack([x, x * 2.0]))

    return body


case("vmap split", Wrap(_vmap({"params": 0}, True)))
case("vmap axis 1", Wrap(_vmap({"params": 1}, True, metadata_params={nn.PARTITION_NAME: None})))
case("vmap shared", Wrap(_vmap({"params": None}, False)))
case("vmap same key", Wrap(_vmap({"params": 0}, False)))
case("vmap method", Wrap(_vmap({"params": 0}, True, methods=["__call__"])))


@compact("vmap over scan")
def _(self, x):
    mapped = nn.vmap(Scanned, variable_axes={"params": 0}, split_rngs={"params": True})
    return mapped()(jnp.stack([x, x * 2.0]))


@compact("remat")
def _(self, x):
    x = nn.remat(MLP)(8, 8)(x)
    return nn.remat(MLP, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)(8, 8)(x)


@compact("checkpoint")
def _(self, x):
    # The primitive below jax.checkpoint is another one since jax 0.12.
    @jax.checkpoint
    def drawn(key):
        return jax.random.normal(key, (8, 70)) * 0.3 + 0.7

    def scanned(key):
        step = jax.checkpoint(lambda c, key: (c, jax.random.normal(key, (70,)) * 0.3 + c))
        return jax.lax.scan(step, 1.3, jax.random.split(key, 3))[1]

    policy = jax.checkpoint_policies.dots_saveable
    within = jax.checkpoint(jax.jit(lambda w: jnp.sin(w) * 0.1 + 0.3), policy=policy)
    w = self.param("drawn", drawn)
    self.param("scanned", scanned)
    self.param("within jit", jax.jit(lambda key: drawn(key) * 0.3 + 0.7))
    self.variable("cache", "computed", within, w)
    self.variable("cache", "derived", jax.grad(lambda w: within(w).sum()), w)


@compact("jit class called twice")
def _(self, x):
    layer = nn.jit(MLP)(8, 8)
    return layer(layer(x)) + nn.jit(MLP)(8, 8)(x)


class JitMethod(nn.Module):
    @nn.jit
    @nn.compact
    def __call__(self, x):
        self.param("of_input", lambda key: x.mean(0) * 0.3 + jax.random.normal(key, (8,)))
        return nn.Dense(8)(x)


@compact("jit method called twice")
def _(self, x):
    return JitMethod()(JitMethod()(x))


class JitInside(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        x = JitMethod()(x)
        return nn.Dense(8)(x)


case("jit between", JitInside())


@compact("jit around an initializer")
def _(self, x):
    init = jax.jit(
        lambda key, a: (jax.random.normal(key, (8, 8)) * a + 0.1, a * 2), static_argnums=1
    )
    self.param("a", lambda key: init(key, 3.0)[0])
    self.param("b", lambda key: jax.jit(lambda k, m: jax.random.normal(k, (8,)) * m)(key, x.mean()))
    self.param("c", jax.nn.initializers.glorot_normal(), (8, 8))
    return x


class MapInit(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.map_variables(
            nn.Dense,
            "params",
            lambda v: jax.tree.map(jnp.transpose, v),
            lambda v: jax.tree.map(jnp.transpose, v),
            init=True,
        )
        return dense(4)(x)


class MapMutable(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.map_variables(
            nn.Dense,
            "params",
            lambda v: jax.tree.map(lambda a: a * 2.0, v),
            lambda v: jax.tree.map(lambda a: a * 0.3 + 0.1, v),
            mutable=True,
            init=True,
        )
        return dense(4)(x)


case("map_variables init", MapInit())
case("map_variables mutable", MapMutable())


@compact("fold_rngs")
def _(self, x):
    return nn.fold_rngs(MLP)(8, 8)(x)


@compact("add_metadata_axis")
def _(self, x):
    dense = nn.add_metadata_axis(
        nn.Dense, variable_axes={"params": 0}, metadata_params={nn.PARTITION_NAME: "axis"}
    )
    return dense(8, kernel_init=nn.with_partitioning(normal(), ("a", "b")))(x)


class ShareScope(nn.Module):
    def setup(self):
        self.inner = nn.Dense(8)
        self.scale = self.param("scale", nn.initializers.normal(), (8,))
        nn.share_scope(self, self.inner)

    def __call__(self, x):
        return self.inner(x) * self.scale


case("share_scope", ShareScope())


class Cond(nn.Module):
    @nn.compact
    def __call__(self, x):
        a, b = nn.Dense(8, name="a"), nn.Dense(8, name="b")
        if self.is_initializing():
            a(x), b(x)
        x = nn.cond(x.sum() > 0, lambda m, x: a(x), lambda m, x: b(x), self, x)
        self.variable("state", "after", lambda: x * 0.3 + 0.1)
        return x


class CondInit(nn.Module):
    @nn.compact
    def __call__(self, x):
        def branch(size):
            def call(m, x):
                return nn.Dense(8, name="same", kernel_init=nn.initializers.normal(size))(x)

            return call

        return nn.cond(x.sum() > 0, branch(1.0), branch(2.0), self, x)


class Switch(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = [nn.Dense(8, name=f"case_{n}") for n in range(3)]
        if self.is_initializing():
            for layer in layers:
                layer(x)
        calls = [lambda m, x, n=n: layers[n](x) for n in range(3)]
        x = nn.switch(jnp.argmax(x.sum(0)) % 3, calls, self, x)
        self.variable("state", "after", lambda: x * 0.3 + 0.1)
        return x


class While(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.param("rate", nn.initializers.normal(1.0), (8,))
        self.variable("state", "acc", lambda: jnp.zeros(8))

        def more(m, c):
            return c["n"] < 3

        def step(m, c):
            acc = m.variable("state", "acc", lambda: jnp.zeros(8))
            acc.value = acc.value * 0.3 + m.get_variable("params", "rate")
            return {"n": c["n"] + 1}

        nn.while_loop(more, step, self, {"n": 0}, carry_variables="state",
                      broadcast_variables="params")  # fmt: skip
        return x


case("cond", Cond())
case("cond that makes parameters", CondInit())
case("switch", Switch())
case("while_loop", While())


class CustomVjp(nn.Module):
    @nn.compact
    def __call__(self, x):
        def forward(m, x):
            return nn.vjp(lambda m, x: m(x), m, x)

        def backward(residual, tangent):
            params, *inputs = residual(tangent)
            return (jax.tree.map(jnp.sign, params), *inputs)

        call = nn.custom_vjp(lambda m, x: m(x), forward_fn=forward, backward_fn=backward)
        x = call(nn.Dense(8), x)
        self.variable("state", "after", lambda: x * 0.3 + 0.1)
        return x


class Grad(nn.Module):
    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(8)
        (x_grad,) = nn.grad(lambda m, x: m(x).sum(), dense, x)
        out, tangent = nn.jvp(
            lambda m, x: m(x), nn.Dense(8, name="j"), (x,), (x * 0.5,),
            variable_tangents={},
        )  # fmt: skip
        self.variable("state", "tangent", lambda: (out * 0.3 + 0.1, tangent, x_grad))
        return x


case("custom_vjp", CustomVjp())
case("grad and jvp", Grad())


# Layers.


@compact("WeightNorm")
def _(self, x):
    return nn.WeightNorm(nn.Dense(8))(nn.WeightNorm(nn.Dense(8), variable_filter=None)(x))


@compact("SpectralNorm")
def _(self, x):
    return nn.SpectralNorm(nn.Dense(8))(x, update_stats=True)


@compact("SpectralNorm of Conv")
def _(self, x):
    return nn.SpectralNorm(nn.Conv(4, (3,)))(x[None], update_stats=False)


@compact("BatchNorm")
def _(self, x):
    x = nn.BatchNorm(use_running_average=False)(x)
    x = nn.Dense(8)(x)
    x = nn.BatchNorm(use_running_average=True)(x)
    return nn.GroupNorm(2)(nn.RMSNorm()(x))


@compact("InstanceNorm")
def _(self, x):
    return nn.InstanceNorm()(x[None])


for _cell in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell"):
    case(f"RNN {_cell}", nn.RNN(getattr(nn, _cell)(8)), SEQUENCE)
case("ConvLSTM", nn.RNN(nn.ConvLSTMCell(4, (3,))), SEQUENCE[None])
case("Bidirectional", nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))), SEQUENCE)
case("attention", nn.MultiHeadDotProductAttention(2), SEQUENCE)
case("attention decode cache", nn.MultiHeadDotProductAttention(2, decode=True), SEQUENCE)
case("attention normalized", nn.MultiHeadDotProductAttention(2, normalize_qk=True), SEQUENCE)
case("Conv", nn.Conv(4, (3, 3), padding="SAME"), SEQUENCE[None])
case("Conv grouped", nn.Conv(8, (3,), feature_group_count=2, strides=2), SEQUENCE)
case("ConvTranspose", nn.ConvTranspose(4, (3,)), SEQUENCE)
case("ConvLocal", nn.ConvLocal(4, (3,)), SEQUENCE)
case("DenseGeneral", nn.DenseGeneral((2, 4), axis=(-2, -1), batch_dims=(0,)), SEQUENCE)
case("Einsum", nn.Einsum((8, 2, 4), "...d,dhk->...hk"), SEQUENCE)
case("Embed", nn.Embed(32, 8), jnp.arange(4))
case("PReLU", nn.PReLU(), X)
case("Sequential", nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(4)]), X)


# Initializers, each in three dtypes.

_FLOATS = ("float32", "bfloat16", "float16")
INITIALIZERS = {
    "constant": nn.initializers.constant(0.3),
    "delta_orthogonal": nn.initializers.delta_orthogonal(scale=0.7),
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "he_normal": nn.initializers.he_normal(),
    "he_uniform": nn.initializers.he_uniform(),
    "kaiming_normal": nn.initializers.kaiming_normal(),
    "kaiming_uniform": nn.initializers.kaiming_uniform(),
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "normal": nn.initializers.normal(0.02),
    "ones": nn.initializers.ones,
    "orthogonal": nn.initializers.orthogonal(1.3),
    "truncated_normal": nn.initializers.truncated_normal(0.02),
    "uniform": nn.initializers.uniform(0.05),
    "variance_scaling": nn.initializers.variance_scaling(0.3, "fan_avg", "truncated_normal"),
    "xavier_normal": nn.initializers.xavier_normal(),
    "xavier_uniform": nn.initializers.xavier_uniform(),
    "zeros": nn.initializers.zeros,
}


def initializers(dtype):
    def body(self, x):
        for name, init in INITIALIZERS.items():
            if "orthogonal" in name and dtype != "float32":
                continue  # JAX has no QR decomposition of half precision.
            shape = (3, 8, 8) if name == "delta_orthogonal" else (8, 16)
            self.param(name, init, shape, jnp.dtype(dtype))
        return x

    return body


for _dtype in _FLOATS:
    case(f"initializers {_dtype}", Wrap(initializers(_dtype)))
    case(f"decoder {_dtype}", Decoder(2, param_dtype=jnp.dtype(_dtype)), jnp.zeros((1, 4), int))
