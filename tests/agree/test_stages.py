"""Stages of a pipeline: leaves on meshes that have no device in common, and no process either."""

import numpy as np
import pytest
import stages
from processes import in_processes

import lazyinit as li

PROGRAM = """
import lazyinit as li
import stages

(folder,) = args
place = stages.placed(jax.devices())
own, elsewhere = ("first", "second")[:: 1 if rank < jax.process_count() / 2 else -1]

tree = stages.lazy()
alone = li.materialize(tree, own, place)
made = li.materialize(tree, sharding=place)
held = {name: len(leaf.addressable_shards) for name, leaf in made[elsewhere].items()}
digests = {"made": str(li.digest(made)), "own": str(li.digest(alone[own]))}
again = str(li.digest(made[own]))
li.save(made, folder)
filled, _ = li.fill(tree, folder)
for broadcast in (False, True):
    read = li.materialize(filled, sharding=place, broadcast=broadcast)
    digests[f"read {broadcast}"] = str(li.digest(read))
digests["updated"] = str(li.digest(li.update(made, folder)[0]))
# Beside them, what each process means for itself.
mixed = {"spread": tree["first"]["everywhere"], "local": tree["first"]["bias"]}
mine = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
everywhere = stages.everywhere(jax.devices())
mixed = li.materialize(
    mixed, sharding=lambda path, leaf: mine if path == "local" else everywhere
)
digests["mixed"] = str(li.digest(mixed))
say({"held": held, "digests": digests, "own is": own, "same": digests["own"] == again})
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_stages_in_other_processes_are_made_saved_and_read(tmp_path, count):
    reports = in_processes(count, PROGRAM, str(tmp_path), devices=8 // count)
    whole = li.materialize(stages.lazy())
    for report in reports:
        digests = report["digests"]
        assert set(report["held"].values()) == {0}
        assert digests.pop("own") == str(li.digest(whole[report["own is"]]))
        mixed = {"spread": whole["first"]["everywhere"], "local": whole["first"]["bias"]}
        assert digests.pop("mixed") == str(li.digest(mixed))
        assert set(digests.values()) == {str(li.digest(whole))}
        assert report["same"]
    saved = li.open_checkpoint(tmp_path)
    for stage, leaves in whole.items():
        for name, leaf in leaves.items():
            tensor = saved[f"{stage}/{name}"]
            index = tuple(slice(n) for n in leaf.shape)
            assert np.asarray(leaf).tobytes() == np.asarray(tensor.read(index)).tobytes()
