import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from models import Decoder
from oracles import large_arrays_since, live

import lazyinit as li
from lazyinit.view import notebook


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


def test_the_page_shows_thunks_in_words_and_no_value_of_a_cut_up_array():
    text = notebook.renderer().to_text(mixed())
    assert "'lazy': LazyParam(float32[4,2], normal(0.02))  # 32 B" in text
    assert "'stored': StoredParam(bfloat16[3], the mapping:stored)  # 6 B" in text
    assert "'cut_up': Array(float32[16], data)  # 64 B" in text


def test_the_page_needs_no_server():
    page = li.inspect(mixed())._repr_html_()
    assert "<treescope-container" in page
    assert "src=" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


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
