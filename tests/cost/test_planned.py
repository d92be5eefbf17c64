"""What a plan prints, and whether it fits."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import lazyinit as li
from lazyinit.errors import PlanError

ZEROS = jax.nn.initializers.zeros


def tree():
    kernel = li.LazyParam((1024, 1024), "float32", ZEROS)
    return {"kernel": kernel, "bias": li.LazyParam((1024,), "float32", ZEROS)}


SHARD = li.shard_by_rules("data=4,model=8", {"kernel": P("data", "model")})


def test_a_plan_prints_what_is_replicated_and_what_that_takes():
    planned = li.plan(tree(), SHARD, optimizer=optax.adamw(1e-3), gradients="bfloat16")
    lines = str(planned).splitlines()
    assert lines[0] == (
        "2 leaves: 2 initialize (4.0 MiB); for training: 5 optimizer (8.0 MiB), "
        "2 gradients (2.0 MiB)"
    )
    assert lines[5] == (
        "5 of these are on each of their devices whole, 14.0 KiB; copies take 434.1 KiB over all "
        "devices, most for bias (124.0 KiB)"
    )
    total = 4 * 2**20 // 32 * 7 // 2 + 4096 * 7 // 2 + 4
    assert set(planned.bytes_per_device.values()) == {total}
    assert lines[-1] == "462.0 KiB on each of devices 0 to 31"


def test_a_plan_prints_what_hosts_read(tmp_path):
    li.save({"w": np.zeros((64, 64), np.float32)}, tmp_path)
    filled, _ = li.fill({"w": jax.ShapeDtypeStruct((64, 64), "float32")}, tmp_path)
    lines = str(li.plan(filled, li.shard_fsdp("data=4", "data"))).splitlines()
    assert "to read, by host 0: 16.0 KiB of model.safetensors" in lines
    lines = str(li.plan(filled, li.shard_fsdp("data=4", "data"), hosts=2)).splitlines()
    assert "to read, by hosts 0 to 1: 8.0 KiB of model.safetensors" in lines


def test_the_peak_is_printed_where_it_is_more():
    made = {"w": li.LazyParam((1024,), "float32", ZEROS)}  # Made whole, on the first device.
    lines = str(li.plan(made, li.shard_fsdp("data=4", "data"))).splitlines()
    assert lines[-3:] == [
        "at most 17.0 KiB on device 0",
        "at most 1.0 KiB on each of devices 1 to 3",
        "1.0 KiB on each of devices 0 to 3",
    ]


def test_a_plan_says_whether_it_fits_and_by_how_much_not():
    planned = li.plan(tree(), SHARD)
    fullest = max(planned.peak_bytes_per_device.values())
    exact = planned.fits(fullest)
    assert exact
    assert str(exact).endswith("0 B to spare on device 0, the fullest")
    short = planned.fits(fullest - 1)
    assert not short
    assert (short.limit, short.spare, short.lacking) == (fullest - 1, -1, 1)
    assert "does not fit into 16.1 MiB: 1 B too much on device 0, the fullest" in repr(short)
    assert str(planned.fits("1KiB")).endswith("the fullest, and too much on 31 more")
    assert planned.fits("16GiB").limit == 16 * 2**30
    assert planned.fits("16GB").limit == 16 * 10**9
    assert li.plan({"step": 3}).fits(1)


@pytest.mark.parametrize("wrong", ["16 gigs", "", 0, -3, "GiB"])
def test_memory_that_is_no_size_is_refused(wrong):
    with pytest.raises(PlanError) as caught:
        li.plan(tree(), SHARD).fits(wrong)
    assert str(caught.value) == (
        f"memory: wanted a number of bytes, or text such as '5GB' or '512MiB', got {wrong!r}."
    )


def test_numbers_of_devices_that_are_not_in_a_row_are_counted():
    planned = li.plan(tree(), SHARD)
    counts = {device: n % 2 for n, device in enumerate(planned.bytes_per_device)}
    lines = str(li.Plan((), counts, counts)).splitlines()
    assert lines[-2:] == ["0 B on each of 16 devices", "1 B on each of 16 devices"]
