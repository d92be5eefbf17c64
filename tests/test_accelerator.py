"""The command for machines with an accelerator, and its bookkeeping. What it measures is no test."""

import re
from types import SimpleNamespace

import accelerator
import jax
import numpy as np
import pytest
from decoder import Size
from harness import ContenderError

FOUND = {
    "platform": "gpu",
    "kind": "NVIDIA H100",
    "devices": 4,
    "runtime": "PJRT C API",
    "memory": 80 * 2**30,
    "mesh": [2, 2],
    "passed": 70,
    "failed": {"compile erf_inv float32": "normal float32"},
    "seconds": 12.34,
    "cases": [
        ("Linen: Dense", "yes", "yes"),
        ("Linen: MLP", "yes", "no: params/w: 1 of 8 elements differ"),
        ("NNX: Linear", "not run: eager init: TypeError: x", "not run: eager init: TypeError: x"),
    ],
}


def measured(seconds, bits="b", device=2**20, structure="s"):
    return {
        "seconds": seconds,
        "device_peak_bytes": device,
        "peak_bytes": 2**21,
        "facts": {"structure": structure, "bits": bits, "bytes": 2**22},
    }


def test_the_page_says_what_was_found_and_lists_what_is_not_equal():
    assert list(accelerator.page(FOUND)) == [
        "| What | Found |",
        "|---|---|",
        "| Devices | 4 of NVIDIA H100 (gpu), 80.0 GiB each |",
        "| Runtime | PJRT C API |",
        "| Self-check | 70 kinds passed, 1 failed, 12.3 s |",
        "| Bits of eager `init`, default device | 2 cases equal, 0 differ, 1 not run |",
        "| Bits of eager `init`, 2x2 devices | 1 cases equal, 1 differ, 1 not run |",
        "",
        "- Failed kind: compile erf_inv float32 (shown by normal float32)",
        "- Linen: MLP: no: params/w: 1 of 8 elements differ",
        "- NNX: Linear: not run: eager init: TypeError: x",
    ]
    assert accelerator._different(FOUND) == ["Linen: MLP"]


def test_ratios_are_taken_within_a_repeat_and_memory_is_told_where_it_was_counted(monkeypatch):
    case = accelerator.CASES[0]
    runs = {
        "lazyinit_init": [measured(t) for t in (1.0, 2.0, 4.0)],
        "jit_init": [measured(4.0, bits="other", device=None) for _ in range(3)],
    }
    monkeypatch.setattr(accelerator, "run_once", lambda *a: measured(1.0))
    wanted, _ = accelerator.run(case, Size(), 1)
    assert list(accelerator.rows(case, wanted, runs)) == [
        ("init (4 MiB)", "lazyinit", "2.00", "1", "1", "2", "yes"),
        ("", accelerator._JIT, "4.00", "**2.00**", "not counted", "2", "no"),
    ]
    assert accelerator._is_exact(case, wanted, runs)


def test_a_contender_with_another_structure_fails(monkeypatch):
    found = [measured(1.0), measured(1.0), measured(1.0, structure="other")]
    monkeypatch.setattr(accelerator, "run_once", lambda *a: found.pop(0))
    with pytest.raises(ContenderError, match="load: load_file: other paths"):
        accelerator.run(accelerator.CASES[1], Size(), 1)


@pytest.mark.parametrize("case", accelerator.CASES, ids=lambda case: case.name)
def test_a_case_names_functions_that_there_are(case):
    for name in (*case.contenders, case.reference):
        assert callable(getattr(accelerator, name))


def test_cases_are_chosen_from_all_over_the_list():
    assert accelerator._chosen(list(range(100)), 4) == [0, 25, 50, 75]
    assert accelerator._chosen([1, 2], 4) == accelerator._chosen([1, 2], None) == [1, 2]
    assert accelerator._chosen([1, 2], 0) == []


def fail():
    raise TypeError("no such dtype\nmore")


def test_what_fails_is_an_answer_and_no_end():
    (eagerly,) = set(accelerator._compared(fail, fail, None, None))
    assert eagerly == "not run: eager init: TypeError: no such dtype"
    (lazily,) = set(accelerator._compared(dict, fail, None, None))
    assert lazily == "no: TypeError: no such dtype"


def test_the_mesh_has_all_local_devices():
    assert accelerator._mesh().devices.shape == (2, 4)


def test_the_peak_is_that_of_the_device_that_had_most_beside_what_it_had(monkeypatch):
    def device(in_use, peak):
        stats = {"bytes_in_use": in_use, "peak_bytes_in_use": peak}
        return SimpleNamespace(memory_stats=lambda: stats)

    noted = SimpleNamespace()
    monkeypatch.setattr(jax, "local_devices", lambda: [device(5, 20), device(15, 25)])
    made = accelerator._watched(lambda *a: {"w": jax.numpy.ones(2)}, noted, Size(), None)
    assert noted.device_peak_bytes == 15
    assert isinstance(made["w"], np.ndarray)
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: None)])
    accelerator._watched(lambda *a: {}, noted, Size(), None)
    assert noted.device_peak_bytes is None


@pytest.mark.slow
def test_one_command_measures_all_and_no_case_differs(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv(accelerator._PLATFORMS, "cpu")  # So that it is as before, afterwards.
    file = tmp_path / "folder" / "page.md"
    assert accelerator.main(["--cases", "3", "--layers", "1", "--markdown", str(file)]) == 0
    text = file.read_text()
    assert capsys.readouterr().out.strip() in text
    assert re.search(r"^\| Devices \| 8 of cpu \(cpu\) \|$", text, re.M)
    assert re.search(r"^\| Self-check \| \d+ kinds passed, \d+ failed, [\d.]+ s \|$", text, re.M)
    assert text.count("| 3 cases equal, 0 differ |") == 2
    table = text[text.index("| Case |") :].splitlines()
    assert len(table) == 8
    assert {line.count("|") for line in table} == {8}
    assert [re.sub(r" \(.*", "", line.split("|")[1].strip()) for line in table[2::2]] == [
        "init",
        "load",
        "init and load",
    ]
    for line in table[2::2]:  # lazyinit's
        assert line.split("|")[2].strip() == "lazyinit"
        assert line.split("|")[7].strip() == "yes"
