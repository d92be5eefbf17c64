"""``lazyinit plan``: what it prints, and its exit codes."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lazyinit.tools.cli import main

FACTORY = """
import flax.linen as nn, jax, jax.numpy as jnp
from flax import nnx

def make():
    return nn.Dense(1024).init(jax.random.key(0), jnp.zeros((1, 512)))

class Model(nnx.Module):
    def __init__(self):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("data", "model"))
        with nnx.use_eager_sharding(False):
            self.linear = nnx.Linear(512, 1024, kernel_init=init, rngs=nnx.Rngs(0))
"""
KERNEL, BIAS = 512 * 1024 * 4, 1024 * 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "its_model.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("its_model", None)


def planned(capsys, *arguments):
    code = main(["plan", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_it_prints_a_table_and_whether_that_fits(capsys):
    arguments = ["plan", "its_model:make", "--mesh", "data=4", "--fsdp", "data", "--hbm"]
    assert main([*arguments, "16GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 leaves: 2 initialize (2.0 MiB)"
    assert lines[-3] == "513.0 KiB on each of devices 0 to 3"
    assert lines[-2] == "mesh: data=4"
    assert lines[-1].startswith("fits into 16.0 GiB: ")
    assert main([*arguments, "1KiB"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("does not fit into 1.0 KiB: ")


def test_auto_prints_rules_that_rules_takes(capsys, folder):
    arguments = ["plan", "its_model:make", "--mesh", "data=2,model=4"]
    assert main([*arguments, "--auto"]) == 0
    table, _, rules = capsys.readouterr().out.partition("mesh: data=2,model=4\n")
    assert json.loads(rules) == {
        "params/bias": [["model", "data"]],
        "params/kernel": ["data", "model"],
    }
    (folder / "rules.json").write_text(rules)
    assert main([*arguments, "--rules", "rules.json"]) == 0
    assert capsys.readouterr().out.startswith(table)


def test_it_prints_json_with_what_training_holds(capsys):
    code, found = planned(
        capsys, "its_model:make", "--mesh", "data=2,model=4", "--fsdp", "data,model",
        "--optimizer", "adamw", "--gradients", "--copy", "bfloat16", "--hbm", "1GiB",
    )  # fmt: skip
    assert (code, found["fits"], found["mesh"]) == (0, True, "data=2,model=4")
    assert found["leaves"][1]["path"] == "params/kernel"
    assert found["leaves"][1]["spec"] == [None, ["data", "model"]]
    assert set(found["bytes_per_device"].values()) == {(KERNEL + BIAS) // 8 * 9 // 2 + 4}
    assert found["spare"] == 2**30 - max(found["peak_bytes_per_device"].values())
    actions = [leaf["action"] for leaf in found["training"]]
    assert [actions.count(word) for word in ("optimizer", "gradients", "copy")] == [5, 2, 2]


def test_rules_are_read_from_a_file(capsys, folder):
    (folder / "rules.json").write_text('{"**/kernel": [["data", "model"]], "**/nothing": []}')
    code, found = planned(
        capsys, "its_model:make", "--mesh", "data=2,model=4", "--rules", "rules.json"
    )
    assert code == 0
    assert "fits" not in found
    assert set(found["bytes_per_device"].values()) == {KERNEL // 8 + BIAS}
    assert found["unused_rules"] == ["**/nothing"]


@pytest.mark.parametrize("more", [[], ["--metadata"]])
def test_metadata_says_where_leaves_go(capsys, more):
    _, found = planned(capsys, "its_model:Model", "--mesh", "data=2,model=4", *more)
    assert set(found["bytes_per_device"].values()) == {KERNEL // 8 + BIAS}


def test_a_checkpoint_fills_the_leaves(capsys, folder):
    weights = {"weight": np.zeros((1024, 512), np.float16), "bias": np.zeros(1024, np.float16)}
    save_file(weights, folder / "x.safetensors")
    _, found = planned(
        capsys, "its_model:make", "--mesh", "data=2", "--fsdp", "data", "--hosts", "2",
        "--checkpoint", "x.safetensors", "--map", "torch", "--dtype", "bfloat16",
    )  # fmt: skip
    assert [leaf["action"] for leaf in found["leaves"]] == ["load"] * 2
    reads = [sum(files.values()) for files in found["reads"].values()]
    assert reads == [(KERNEL + BIAS) // 4] * 2
    assert set(found["bytes_per_device"].values()) == {(KERNEL + BIAS) // 4}


def test_a_checkpoint_is_planned_alone(capsys, folder):
    save_file({"weight": np.zeros((64, 32), np.float16)}, folder / "x.safetensors")
    _, found = planned(capsys, "x.safetensors", "--mesh", "data=2", "--fsdp", "data")
    assert set(found["bytes_per_device"].values()) == {64 * 32}


def test_the_smallest_mesh_is_proposed(capsys):
    more = ["--smallest-mesh", "--platform", "tpu", "--hbm"]
    arguments = ["its_model:make", "--mesh", "data=1,model=2", "--fsdp", "data,model", *more]
    code, found = planned(capsys, *arguments, "1.1MiB")
    assert (code, found["mesh"], found["fits"]) == (0, "data=4,model=2", True)
    arguments = ["its_model:make", "--mesh", "data=1", "--fsdp", "data", *more]
    assert main(["plan", *arguments, "1KiB"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "no larger mesh of these axes is enough, either"


def test_a_platform_decides_what_is_needed_meanwhile(capsys):
    arguments = ["its_model:make", "--mesh", "data=8", "--fsdp", "data", "--platform"]
    peaks = [
        max(planned(capsys, *arguments, name)[1]["peak_bytes_per_device"].values())
        for name in ("cpu", "tpu")
    ]
    assert peaks[1] == (KERNEL + BIAS) // 8 * 4 < peaks[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["its_model:make", "--mesh", "data"], "mesh 'data': wanted axes and their sizes, such"),
        (
            ["its_model:make", "--mesh", "a=2", "--fsdp", "b"],
            "shard_fsdp: the mesh has no axis 'b'",
        ),
        (["its_model:none", "--mesh", "a=2"], "its_model:none: wanted package.module:NAME"),
        (["nowhere", "--mesh", "a=2"], "nowhere: there is no such file or folder"),
        (["its_model:make", "--mesh", "a=2", "--hbm", "big"], "memory: wanted a number of bytes"),
        (["its_model:make", "--mesh", "a=2", "--hosts", "3"], "hosts: wanted a number that divi"),
        (["its_model:make", "--mesh", "a=2", "--copy", "b16"], "--copy b16: wanted a dtype such"),
        (["its_model:make", "--mesh", "a=2", "--smallest-mesh"], "--smallest-mesh: wanted --hbm"),
        (["its_model:make", "--mesh", "a=2", "--rules", "x.json"], "x.json: wanted a file with"),
        (
            ["its_model:make", "--mesh", "a=2", "--checkpoint", "its_model.py", "--map", "brt"],
            "--map brt: wanted one of torch, bert",
        ),
    ],
)
def test_errors_are_one_message_and_exit_code_2(capsys, arguments, message):
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lazyinit: {message}")
    assert not captured.out
