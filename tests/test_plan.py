import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import Decoder, Wrap
from oracles import large_arrays_since, live

import lazyinit as li
from lazyinit.make import limits

IDS = jax.ShapeDtypeStruct((1, 4), "int32")


def mesh():
    return jax.make_mesh((2, 4), ("x", "y"))


def recorded(layers=2):
    return li.lazy(Decoder(layers=layers)).init(jax.random.key(0), IDS)


def test_the_planned_bytes_are_those_that_land():
    tree, sharding = recorded(), li.shard_fsdp(mesh(), ("x", "y"), min_size=1)
    planned = li.plan(tree, sharding)
    made = li.materialize(tree, sharding=sharding)
    landed = dict.fromkeys(jax.devices(), 0)
    for array in jax.tree.leaves(made):
        for shard in array.addressable_shards:
            landed[shard.device] += shard.data.nbytes
    assert planned.bytes_per_device == landed
    assert planned.bytes_of("initialize") == sum(x.nbytes for x in jax.tree.leaves(made))


def test_each_leaf_says_what_will_be_done_with_it():
    tree = {
        "made": jnp.ones(4),
        "host": np.ones(2, np.float32),
        "lazy": li.LazyParam((8,), "float32", jax.nn.initializers.zeros),
        "stored": li.LazyParam((8,), "float32", jax.nn.initializers.zeros),
        "step": 3,
    }
    tree, _ = li.fill(tree, {"stored": np.ones(8, np.float32)}, on_missing="init")
    tree["shared"] = tree["lazy"]
    everything = li.plan(tree)
    assert [(leaf.path, leaf.action) for leaf in everything.leaves] == [
        ("host", "keep"),
        ("lazy", "initialize"),
        ("made", "keep"),
        ("shared", "share"),
        ("stored", "load"),
    ]
    assert [leaf.action for leaf in li.plan(tree, paths="lazy").leaves] == [
        "keep",
        "initialize",
        "keep",
        "keep",
        "keep",
    ]
    moved = li.plan(tree, NamedSharding(mesh(), P()), paths=["made", "host"])
    assert [leaf.action for leaf in moved.leaves] == ["move", "keep", "move", "keep", "keep"]
    assert set(moved.bytes_per_device.values()) == {4 * 4 + 2 * 4}


def test_a_dtype_changes_the_bytes_of_floating_leaves_alone():
    tree = {
        "float": li.LazyParam((8,), "float32", jax.nn.initializers.zeros),
        "count": li.LazyParam((8,), "int32", jax.nn.initializers.zeros),
    }
    planned = li.plan(tree, dtype="bfloat16")
    assert {leaf.path: leaf.nbytes for leaf in planned.leaves} == {"float": 16, "count": 32}


def test_the_table_folds_layers_and_says_what_each_device_gets():
    assert str(li.plan(recorded(4), NamedSharding(mesh(), P()), paths="params/layers_*")) == (
        str(li.plan(recorded(4), NamedSharding(mesh(), P()), paths="params/layers_*/**"))
    )
    lines = str(li.plan(recorded(4), NamedSharding(mesh(), P()))).splitlines()
    assert lines[0].startswith("39 leaves: 39 initialize (")
    rows = [line for line in lines if line.startswith("params/")]
    assert len(rows) == 9 + 3
    assert sum(" 4   initialize " in row for row in rows) == 9
    devices = ", ".join(map(str, jax.devices()))
    assert lines[-1].endswith(f" on each of {devices}")


def test_a_sharding_rule_that_matches_nothing_is_said():
    rules = [("**/kernel", P("x")), ("**/kernal", P("y"))]
    planned = li.plan(recorded(), li.shard_by_rules(mesh(), rules))
    assert planned.unused_rules == ("**/kernal",)
    assert str(planned).endswith("sharding rule '**/kernal' matches no leaf")


def test_planning_allocates_nothing():
    tree = recorded()
    before = live()
    str(li.plan(tree, li.shard_fsdp(mesh(), "y", min_size=1)))
    assert large_arrays_since(before, size=0) == []


def test_a_plan_refuses_what_materialize_would_refuse():
    with pytest.raises(li.errors.ShardingError, match=r"^params/.*does not divide"):
        li.plan(recorded(), lambda path, leaf: NamedSharding(jax.make_mesh((3,), ("z",)), P("z")))
    with pytest.raises(li.errors.PathError, match=r"^params/nowhere: this pattern matches none"):
        li.plan(recorded(), paths="params/nowhere")


def test_the_peak_counts_what_is_needed_beside_the_leaves():
    def body(self, x):
        self.param("drawn", nn.initializers.normal(), (512, 512))
        self.param("decomposed", nn.initializers.orthogonal(), (64, 64))

    tree = li.lazy(Wrap(body)).init(jax.random.key(0), 0)
    (device,) = li.plan(tree).bytes_per_device
    arriving, peak = (
        getattr(li.plan(tree), name)[device]
        for name in ("bytes_per_device", "peak_bytes_per_device")
    )
    drawing = os.cpu_count() * limits.SHEET_BYTES
    assert peak == arriving + drawing + limits.TEMPORARIES * 64 * 64 * 4
    drawn = li.plan(tree, paths="params/drawn").peak_bytes_per_device[device]
    assert drawn == 2**20 + drawing  # However many leaves there are.
    leaf = li.LazyParam((8,), "float32", jax.nn.initializers.zeros)
    stored, _ = li.fill({"w": leaf}, {"w": np.zeros(8, np.float32)})
    threads = os.cpu_count()
    assert li.plan(stored).peak_bytes_per_device[device] == 32 + threads * limits.READ_BYTES


def test_a_word_that_is_no_action_is_refused_with_the_nearest():
    planned = li.plan(recorded())
    with pytest.raises(li.errors.WordError) as caught:
        planned.bytes_of("laod")
    assert str(caught.value) == (
        "action: wanted one of 'initialize', 'load', 'overlap', 'derive', 'move', 'share', 'keep', "
        "'optimizer', 'gradients', 'copy', got 'laod'; did you mean 'load'?"
    )
    words = ("initialize", "load", "overlap", "move", "share", "keep")
    assert sum(map(planned.bytes_of, words)) == planned.bytes_of("initialize") > 0
