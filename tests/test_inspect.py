import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import Decoder
from oracles import large_arrays_since, live

import lazyinit as li


def mixed():
    """Returns a tree with a lazy, a stored, a whole, a cut-up and a host leaf."""
    mesh = jax.make_mesh((8,), ("data",))
    tree = {
        "lazy": li.LazyParam((4, 2), "float32", jax.nn.initializers.normal(0.02)),
        "stored": li.LazyParam((3,), "bfloat16", jax.nn.initializers.zeros),
    }
    tree, _ = li.fill(tree, {"stored": np.ones(3, np.float32)}, on_missing="init")
    cut_up = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, P("data")))
    return tree | {"whole": jnp.ones(2), "cut_up": cut_up, "host": np.zeros(5), "step": 3}


def test_the_table_shows_every_kind_of_leaf():
    assert str(li.inspect(mixed())).splitlines() == [
        "5 leaves: 38 B not made yet, 112 B in arrays",
        "path     leaves   state    from or on     array          bytes each",
        "─" * 67,
        "cut_up        1   array    data           float32[16]          64 B",
        "host          1   array    host           float64[5]           40 B",
        "lazy          1   lazy     normal(0.02)   float32[4,2]         32 B",
        "stored        1   stored   the mapping    bfloat16[3]           6 B",
        "whole         1   array    cpu:0          float32[2]            8 B",
    ]


def test_numbered_layers_fold_into_one_row():
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    table = str(li.inspect(li.lazy(Decoder(layers=12)).init(jax.random.key(0), ids)))
    rows = [line for line in table.splitlines() if line.startswith("params/")]
    assert len(rows) == 12
    assert sum("{0..11}" in row for row in rows) == 9


def test_the_page_needs_no_server():
    page = li.inspect(mixed())._repr_html_()
    assert page.isascii()
    assert not re.search(r"""(src|href)=|@import|fetch\(|https?://(?!www\.w3\.org)""", page)


def test_a_view_prints_as_its_table():
    view = li.inspect(mixed())
    assert repr(view) == str(view)


def test_looking_makes_and_reads_nothing():
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    tree = li.lazy(Decoder(layers=2)).init(jax.random.key(0), ids)
    before = live()
    str(li.inspect(tree))
    li.inspect(tree).to_html()
    assert large_arrays_since(before, size=0) == []


def decoder(layers=2):
    ids = jax.ShapeDtypeStruct((1, 4), "int32")
    return li.lazy(Decoder(layers=layers)).init(jax.random.key(0), ids)


def shown(view):
    return [line.path for line in view.lines]


def test_paths_choose_as_they_do_for_materialize():
    tree = decoder()
    kernels = [f"params/layers_{n}/{k}/kernel" for n in range(2) for k in "kqv"]
    assert shown(li.inspect(tree, "params/layers_*/[kqv]/kernel")) == kernels
    assert shown(li.inspect(tree, paths=["params/norm", "params/head"])) == [
        "params/head/kernel",
        "params/norm/scale",
    ]
    assert shown(li.inspect(tree, lambda path, leaf: path.endswith("norm/scale"))) == [
        "params/layers_0/attention_norm/scale",
        "params/layers_0/mlp_norm/scale",
        "params/layers_1/attention_norm/scale",
        "params/layers_1/mlp_norm/scale",
        "params/norm/scale",
    ]
    _, state = li.lazy(nnx.BatchNorm)(2, rngs=nnx.Rngs(0))
    assert shown(li.inspect(state, nnx.Param)) == ["bias", "scale"]
    assert shown(li.inspect(state, [nnx.BatchStat])) == ["mean", "var"]


def test_paths_that_select_nothing_are_refused_with_the_nearest_one():
    with pytest.raises(li.errors.PathError, match="params/haed: .*params/head"):
        li.inspect(decoder(), "params/haed")


def test_two_trees_show_what_changed():
    before = decoder()
    stored = {"params/head/kernel": np.ones((16, 64), "f")}
    after, _ = li.fill(before, stored, on_missing="init")
    words = {line.path: line.word for line in li.inspect(before, after).lines}
    assert words.pop("params/head/kernel") == "lazy → stored"
    assert set(words.values()) == {"lazy"}
    assert "1 lazy → stored" in str(li.inspect(before, after=after)).splitlines()[0]
    assert shown(li.inspect(before, after, paths="params/head")) == ["params/head/kernel"]


def test_each_change_has_a_word():
    a, b = np.zeros(2, "f"), np.zeros(3, "f")
    before = {"same": a, "other": a, "larger": a, "gone": a, "equal": LAZY}
    after = {"same": a, "other": a.copy(), "larger": b, "new": a, "equal": replace(LAZY)}
    assert {line.path: line.word for line in li.inspect(before, after).lines} == {
        "same": "array",
        "other": "array, replaced",
        "larger": "array, was float32[2]",
        "gone": "gone",
        "new": "new: array",
        "equal": "lazy",
    }


LAZY = li.LazyParam((4, 2), "float32", jax.nn.initializers.zeros)


def test_trees_without_a_path_in_common_are_refused():
    with pytest.raises(li.errors.PathError, match="^a: wanted a second tree .* got one with 'b'"):
        li.inspect({"a": LAZY}, {"b": LAZY})
    with pytest.raises(li.errors.PathError, match="got one with no arrays"):
        li.inspect({"a": LAZY}, {})


def test_paths_or_a_second_tree_given_twice_are_refused():
    tree = {"a": LAZY}
    with pytest.raises(li.errors.PathError, match="wanted one choice of paths, got two"):
        li.inspect(tree, "a", paths="a")
    with pytest.raises(li.errors.PathError, match="wanted one second tree, got two"):
        li.inspect(tree, tree, after=tree)


def test_a_sharding_beside_a_second_tree_is_refused():
    with pytest.raises(li.errors.ShardingError, match="wanted a sharding or a second tree"):
        li.inspect({"a": LAZY}, {"a": LAZY}, sharding="data=2")


def test_a_sharding_shows_where_leaves_will_go():
    shard = li.shard_fsdp("data=4,model=2", ("data", "model"))
    view = li.inspect(decoder(), "params/head", sharding=shard)
    (line,) = view.lines
    placed = li.plan(decoder(), shard, paths="params/head")
    (per_device,) = set(placed.bytes_per_device.values())
    assert dict(line.more)["bytes per device"] == f"{per_device} B"
    assert dict(line.more)["will"] == "initialize"
    assert line.origin == "None, ('data', 'model')"
    assert str(view).splitlines()[-1] == f"each of devices 0 to 7  {per_device} B  {'█' * 20}"


def test_a_tree_that_is_one_leaf_is_shown():
    assert shown(li.inspect(LAZY)) == [""]
    assert "float32[4,2]" in li.inspect(LAZY).to_html()
    assert "0 leaves" in li.inspect({}).to_html()


def test_only_the_first_arrays_are_drawn_and_none_that_lies_on_many_devices():
    tree = {f"{n:03}": np.ones((2, n), "f") for n in range(100)}
    assert li.inspect(tree).to_html().count("<template data-picture") == 16
    whole = {
        "a": jnp.ones(8),
        "key": jax.random.key(0),
        "none": jnp.ones((0, 3)),
        "s": np.array("s"),
    }
    assert li.inspect(whole).to_html().count("<template data-picture") == 1


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint32", "float16", "bfloat16", "float8_e4m3fn", "int4", "complex64"]
)
def test_arrays_of_every_dtype_are_shown(dtype):
    page = li.inspect({"a": jnp.ones((3, 2), dtype)}).to_html()
    assert page.count("<template data-picture") == (dtype != "complex64")


def test_many_leaves_make_a_small_page():
    unlike = {f"w{n * 7919 % 20011:05}": replace(LAZY, shape=(1, n)) for n in range(2000)}
    assert len(li.inspect(unlike).to_html()) < 250_000
    alike = decoder(layers=200)
    assert len(li.inspect(alike).to_html()) < 60_000
