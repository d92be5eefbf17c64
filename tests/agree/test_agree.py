"""Real processes that are about to do different things: the same error in each, nothing made."""

import disagreements
import jax
import numpy as np
import pytest
from models import Decoder
from processes import in_processes, two_processes

import lazyinit as li

PROGRAM = """
import disagreements
mesh = jax.make_mesh((2, jax.device_count() // 2), ("x", "y"))
say(disagreements.run(rank == 1, args[0], mesh) | disagreements.digests(mesh))
"""

# For each case, what the error says in every process.
DISAGREE = {
    "another key": [
        "params/embed/embedding: materialize: wanted the same key in every process, got "
        "params threefry2x32[0, 0] in process{ 0}, params threefry2x32[0, 1] in process 1. "
    ],
    "another depth": [
        "params/layers_2/",
        "wanted the same leaf in every process, got no such leaf in process{ 0}, ",
    ],
    "another width": ["got float32[64,16] in process{ 0}, float32[64,32] in process 1."],
    "another dtype": ["the same dtype in", "float32 in process{ 0}, bfloat16 in process 1"],
    "another sharding": ["w: materialize: ", "the same sharding", "'y'", "'x'"],
    "another selection": ["the same selected in", "yes in process{ 0}, no in process 1"],
    "another initializer": [
        "params/w: materialize: wanted the same initializer in every process, got "
        "_shifted with add(#0, int32[] 1) in process{ 0}, "
        "_shifted with add(#0, int32[] 2) in process 1. "
    ],
    "another computation of a leaf": [
        "w: ",
        "the same computation in every process, got multiply of params/w with multiply(input 0, ",
    ],
    "another key of one of two leaves that another is computed of": ["the same key in every proce"],
    "a missing layer": ["the same source in", "checkpoint in process{ 0}, key in process 1"],
    "another size of a file": ["the same file in", "whole.safetensors of "],
    "another layout": ["params/w: ", "the same tensors in", "the mapping:v.T in process 1"],
    "another way to read": [
        "materialize: wanted the same settings in every process, got ",
        "no broadcast in process{ 0}, ",
        "broadcast by gloo in process 1",
    ],
    "another update": ["v: update: wanted the same tensors in", "the mapping:u in process 1"],
    "another verb": ["the same call in", "materialize in process{ 0}, save in process 1"],
    "another order of calls": ["the same", "in every process, got "],
    "another tree to save": ["w: save: ", "no such leaf in process{ 0}, "],
    "another tree to digest": ["v: digest: ", "no such leaf in process{ 0}, "],
    "a digest where others make": ["the same call in", "materialize in process{ 0}, digest in"],
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    disagreements.files(folder)
    return two_processes(PROGRAM, str(folder), devices=2)


@pytest.mark.parametrize("case", DISAGREE)
def test_a_disagreement_is_the_same_error_in_both_processes_before_anything_is_made(case, reports):
    said = [report[case] for report in reports]
    _assert_disagreement(case, said, " 0")


def test_a_process_without_the_file_stops_the_other(reports):
    (kind, text, seconds, made), (own, of_own, _, _) = (r["no such file"] for r in reports)
    assert (kind, own) == ("HostAbsentError", "CheckpointError")
    assert text == f"process 1: fill failed there: CheckpointError: {of_own}"
    assert seconds < 5
    assert made == 0


def test_processes_that_do_the_same_make_it_after_all_errors(reports):
    for report in reports:
        kind, text, _, made = report["all the same"]
        assert (kind, text) == ("", "")
        assert made > 0


def test_a_digest_of_shards_in_several_processes_is_that_of_whole_arrays(reports):
    eager = Decoder(layers=2).init(jax.random.key(0), np.ones((1, 4), np.int32))
    for report in reports:
        assert report["digests"] == [str(li.digest(eager))] * 2
        assert report["digest of keys"] == str(li.digest({"key": jax.random.key(7)}))


@pytest.mark.slow
def test_four_processes_have_the_same_error(tmp_path):
    disagreements.files(tmp_path)
    reports = in_processes(4, PROGRAM, str(tmp_path), devices=1)
    for case in DISAGREE:
        _assert_disagreement(case, [report[case] for report in reports], "es 0, 2, 3")
    for n in (0, 2, 3):
        assert "process 1: fill failed there" in reports[n]["no such file"][1]
    assert all(report["all the same"][0] == "" for report in reports)


def _assert_disagreement(case, said, others):
    (text,) = {text for _, text, _, _ in said}
    for part in DISAGREE[case]:
        assert part.replace("{ 0}", others) in text, text
    for kind, _, seconds, made in said:
        assert kind == "HostsError", text
        assert made == 0
        assert seconds < 5
