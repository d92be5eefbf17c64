import functools
import pickle

import jax
import numpy as np
from safetensors.numpy import save_file

import lazyinit as li
from lazyinit.params import LazyParam
from lazyinit.rules.torch import TORCH

fill = functools.partial(li.fill, on_missing="init")


def lazy(*shape):
    return LazyParam(shape, "float32", jax.nn.initializers.zeros)


def test_a_report_prints_as_a_table_with_folded_layers(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {f"layer.{i}.weight": np.ones((8, 4), "float32") for i in range(3)}
    tensors |= {
        "norm.weight": np.ones(8, "bfloat16"),
        "norm.ids": np.ones(1, "float32"),
        "head.bias": np.ones(3, "float32"),
    }
    save_file(tensors, path)
    params = {
        "layer": [{"kernel": lazy(4, 8)} for _ in range(3)],
        "norm": {"scale": lazy(8)},
        "head": {"kernel": lazy(8, 2), "bias": lazy(2)},
    }
    _, report = fill({"params": params}, path, TORCH, on_mismatch="init", on_missing="init")
    summary, *table = str(report).splitlines()
    assert summary == (
        "4 of 6 leaves from model.safetensors (416 B), 1 cast, 1 missing (will be initialized), "
        "1 mismatched (left as they were), 1 unexpected"
    )
    assert (
        table
        == """\
path                         array          leaves   bytes   status
───────────────────────────────────────────────────────────────────────────────────────
params/head/bias             float32[2]          1     8 B   mismatched with float32[3]
params/head/kernel           float32[8,2]        1    64 B   missing
params/layer/{0..2}/kernel   float32[4,8]        3   384 B   loaded
params/norm/scale            float32[8]          1    32 B   loaded, cast from bfloat16
norm.ids                     float32[1]          1     4 B   unexpected""".splitlines()
    )


def test_a_report_is_a_plain_value():
    tree = {"a": lazy(2, 3), "b": lazy(2)}
    _, report = fill(
        tree,
        {
            "a": np.ones(
                (
                    2,
                    3,
                ),
                "float32",
            ),
            "c": np.ones(1, "float32"),
        },
    )
    assert (
        report
        == fill(
            tree,
            {
                "a": np.ones(
                    (
                        2,
                        3,
                    ),
                    "float32",
                ),
                "c": np.ones(1, "float32"),
            },
        )[1]
    )
    assert pickle.loads(pickle.dumps(report)) == report
    assert report.nbytes == 24
    assert report.origin == "the mapping"
    assert report.summary() == (
        "1 of 2 leaves from the mapping (24 B), 1 missing (will be initialized), 1 unexpected"
    )
