"""Ways in which processes disagree, each run in all processes: the odd one does something else.

``run(odd, folder)`` returns for each case what the process raised, how long it waited, and whether
any array was made. The processes go on after each error, so that one start of them serves all.
"""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec
from models import Decoder
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit import compat

IDS = jax.ShapeDtypeStruct((1, 4), "int32")


def sharded(mesh):
    return li.shard_fsdp(mesh, ("x", "y"), min_size=1)


def tree_of(key=0, **config):
    return li.lazy(Decoder(**{"layers": 2, **config})).init(jax.random.key(key), IDS)


def files(folder):
    """Writes checkpoints of a decoder: whole, with a missing layer, in another layout and size."""
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    tensors = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x)
        for p, x in jax.tree_util.tree_leaves_with_path(eager)
    }
    save_file(tensors, Path(folder, "whole.safetensors"))
    first = next(iter(tensors))
    save_file({n: x for n, x in tensors.items() if n != first}, Path(folder, "less.safetensors"))
    longer = Path(folder, "longer")
    longer.mkdir()
    save_file(tensors | {"more": np.ones(3)}, longer / "whole.safetensors")


def cases(is_odd, folder, mesh):
    """Yields the name of each case and what to do for it, in this process."""
    spread = sharded(mesh)

    def pick(usual, odd):
        return odd if is_odd else usual

    def filled(name, **kwargs):
        return li.fill(tree_of(), Path(folder, name), on_missing="init", **kwargs)[0]

    class Own(nn.Module):
        init: object

        @nn.compact
        def __call__(self, x):
            return x @ self.param("w", self.init, (8, 8))

    def own(init, key=0):
        x = jax.ShapeDtypeStruct((1, 8), "float32")
        return li.lazy(Own(init)).init(jax.random.key(key), x)

    def by_hand(path, leaf):
        return NamedSharding(mesh, PartitionSpec(*([None] * (leaf.ndim - 1)), "y"))

    def by_other_hand(path, leaf):
        return NamedSharding(mesh, PartitionSpec(*([None] * (leaf.ndim - 1)), "x"))

    weight = {"v": np.arange(64, dtype="float32").reshape(8, 8)}
    small = own(nn.initializers.zeros)
    everywhere = NamedSharding(mesh, PartitionSpec("x"))
    held = jax.make_array_from_callback((8, 8), everywhere, weight["v"].__getitem__)

    yield "another key", lambda: li.materialize(tree_of(pick(0, 1)), sharding=spread)
    yield "another depth", lambda: li.materialize(tree_of(layers=pick(2, 3)), sharding=spread)
    yield "another width", lambda: li.materialize(tree_of(width=pick(16, 32)), sharding=spread)
    yield (
        "another dtype",
        lambda: li.materialize(tree_of(), sharding=spread, dtype=pick(None, jnp.bfloat16)),
    )
    yield "another sharding", lambda: li.materialize(small, sharding=pick(by_hand, by_other_hand))
    yield (
        "another selection",
        lambda: li.materialize(tree_of(), pick(None, "params/embed"), sharding=spread),
    )
    yield (
        "another initializer",
        lambda: li.materialize(
            own(pick(_shifted(np.int32(1)), _shifted(np.int32(2)))), sharding=spread
        ),
    )
    yield (
        "another computation of a leaf",
        lambda: li.materialize(
            li.lazy(lambda tree: jax.tree.map(lambda x: x * pick(2, 3), tree))(small),
            sharding=spread,
        ),
    )
    yield (
        "another key of one of two leaves that another is computed of",
        lambda: li.materialize(
            li.lazy(lambda one, other: one @ other)(
                *(own(nn.initializers.normal(), key)["params"]["w"] for key in (pick(0, 1), 2))
            ),
            sharding=by_hand,
        ),
    )
    yield (
        "a missing layer",
        lambda: li.materialize(
            filled(pick("whole.safetensors", "less.safetensors")), sharding=spread
        ),
    )
    yield (
        "another size of a file",
        lambda: li.materialize(
            filled(pick("whole.safetensors", "longer/whole.safetensors")), sharding=spread
        ),
    )
    yield (
        "another layout",
        lambda: li.materialize(
            li.fill(
                small,
                weight,
                [li.Rule("w", "v", pick((), li.Transpose("a b -> b a")))],
                at="params",
            )[0],
            sharding=spread,
        ),
    )
    yield (
        "another way to read",
        lambda: li.materialize(
            filled("whole.safetensors"), sharding=spread, broadcast=pick(False, True)
        ),
    )
    yield (
        "no such file",
        lambda: li.materialize(
            filled(pick("whole.safetensors", "absent.safetensors")), sharding=spread
        ),
    )
    yield (
        "another update",
        lambda: li.update(
            {"v": jax.device_put(weight["v"], by_hand("v", weight["v"]))},
            {pick("v", "u"): weight["v"], "w": weight["v"]},
            [li.Rule("v", pick("v", "u"))],
        ),
    )
    yield (
        "another verb",
        lambda: (
            li.save(weight, Path(folder, "saved"))
            if is_odd
            else li.materialize(small, sharding=spread)
        ),
    )
    yield (
        "another order of calls",
        lambda: [
            li.materialize(tree, sharding=spread)
            for tree in pick([small, tree_of()], [tree_of(), small])
        ],
    )
    yield (
        "another tree to save",
        lambda: li.save(pick(weight, weight | {"w": np.ones(3)}), Path(folder, "saved")),
    )
    yield (
        "another tree to digest",
        lambda: li.digest(pick({"w": held}, {"w": held, "v": held})),
    )
    yield (
        "a digest where others make",
        lambda: li.digest({"w": held}) if is_odd else li.materialize(small, sharding=spread),
    )
    yield "all the same", lambda: li.materialize(tree_of(), sharding=spread)


def _shifted(by):
    def init(key, shape, dtype=jnp.float32):  # By its name the same for any number.
        return jax.random.normal(key, shape, dtype) + by

    return init


def run(is_odd, folder, mesh):
    """Runs every case and returns for each: the error's kind and text, seconds, arrays made."""
    reports = {}
    for name, do in cases(is_odd, folder, mesh):
        result, before = None, len(jax.live_arrays())
        began = time.monotonic()
        try:
            result = do()
        except li.LazyinitError as error:
            kind, text = type(error).__name__, str(error)
        else:
            kind, text = "", ""
        seconds = time.monotonic() - began
        reports[name] = [kind, text, seconds, len(jax.live_arrays()) - before]
        del result  # Held until now: what was made is counted.
        together(name)  # Who fails early must not come to the next case before the others.
    return reports


def together(name):
    store = compat.store()
    store.put(f"tests/{name}/{jax.process_index()}", b"here")
    for process in range(jax.process_count()):
        store.wait_for(f"tests/{name}/{process}", 60)


def digests(mesh):
    """Returns the digests of one tree, sharded and replicated, and of a key on all devices."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    made = [li.materialize(tree_of(), sharding=how) for how in (sharded(mesh), everywhere)]
    key = li.lazy(lambda key: {"key": key})(jax.random.key(7))
    return {
        "digests": [str(li.digest(tree)) for tree in made],
        "digest of keys": str(li.digest(li.materialize(key, sharding=everywhere))),
    }
