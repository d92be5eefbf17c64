"""The benchmarks' own bookkeeping. What they measure is no test."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import harness
import look
import plan
import pytest
import run
import scaling
from decoder import Size
from harness import Case, ContenderError, Spread


def case(**kwargs):
    contenders = {"lazyinit": "lazyinit", "eval_shape": "`jax.eval_shape`"}
    return Case("name", "recording", "record", contenders, "eval_shape", **kwargs)


@pytest.mark.parametrize("case", run.CASES, ids=lambda case: case.name)
def test_a_case_names_functions_that_there_are(case):
    module = importlib.import_module(case.module)
    for name in (*case.contenders, case.reference):
        assert callable(getattr(module, name))
    assert next(iter(case.contenders.values())).startswith("lazyinit")
    assert set(case.exact) <= set(case.contenders)


@pytest.mark.parametrize("quick", [True, False])
def test_a_scan_names_functions_that_there_are(quick):
    for scan in scaling.scans(quick):
        module = importlib.import_module(scan.case.module)
        assert all(callable(getattr(module, name)) for name in scan.who())
        assert set(scan.last) <= set(scan.who())


def test_a_decoder_is_planned_and_its_smallest_mesh_found(capsys):
    plan.main(["tiny"], smallest=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny"] * 2
    assert "data=1,model=1 fits into 16.0 GiB" in lines[1]


def test_pages_of_each_sort_of_tree_are_made_and_weighed(capsys):
    look.main(200)
    lines = capsys.readouterr().out.splitlines()
    sorts = [
        f"200 {sort} {state} leaves" for sort in ("alike", "unlike") for state in ("lazy", "stored")
    ]
    assert [line.split(":")[0] for line in lines] == sorts
    assert all(float(line.split()[-2]) < 0.2 for line in lines)


@pytest.mark.slow
def test_405_billion_parameters_are_planned_in_less_than_a_gibibyte():
    script = Path(plan.__file__)
    command = [sys.executable, script, "llama-3.1-405b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=script.parent)
    memory = re.search(r"planned in \S+ s, (\S+) GiB", done.stdout)
    assert float(memory[1]) < 1
    assert done.stdout.endswith("11.8 GiB on each of devices 0 to 255\n")


def test_names_of_cases_and_scans_are_unique():
    for names in ([c.name for c in run.CASES], [s.name for s in scaling.scans(quick=True)]):
        assert len(set(names)) == len(names)


def measured(seconds, peak=2**20, bits="b", **facts):
    norms = {"w": 1.0}
    return {
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "parts": {"load": seconds / 2},
        "peak_bytes": peak,
        "kept_bytes": 2**20,
        "read_bytes": 3 * 2**20,
        "peak_was_reset": True,
        "facts": {"structure": "s", "bits": bits, "norms": norms, "bytes": 8, "borrowed": 0}
        | facts,
    }


def outcome(monkeypatch, case, runs):
    def run_once(case, function, size, folder, *flags):
        return runs[function].pop(0)

    monkeypatch.setattr(harness, "run_once", run_once)
    return harness.run_case(case, quick=False, repeats=3, say=lambda _: None)


def test_ratios_are_taken_within_a_repeat(monkeypatch):
    runs = {
        "lazyinit": [measured(t) for t in (1.0, 2.0, 4.0)],
        "eval_shape": [measured(t, peak=2**21, bits="other") for t in (4.0, 4.0, 4.0)],
    }
    own, other = outcome(monkeypatch, case(), runs).scores
    assert own.seconds == Spread(2.0, 1.0, 4.0)
    assert own.times == Spread(1.0, 1.0, 1.0)
    assert other.times == Spread(2.0, 1.0, 4.0)  # Not the ratio of the medians.
    assert other.peaks == Spread(2.0, 2.0, 2.0)
    assert other.same_bits  # Its bits are the reference.
    assert own.same_bits is False
    assert own.read_bytes is None


def test_the_table_has_a_row_for_each_contender_and_each_part(monkeypatch):
    runs = {
        "lazyinit": [measured(t) for t in (1.0, 1.0, 1.0, 9.0)],
        "eval_shape": [measured(t) for t in (2.0, 3.0, 4.0, 9.0)],
    }
    lines = list(run.table([outcome(monkeypatch, case(reads=True), runs)]))
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2:] == [
        "| recording | lazyinit | 1.00 (1.00 - 1.00) | 1 | 2.00 | 1 (1 - 1) | 1 | 1 (1 - 1) | 3 | yes |",
        "|  | - its load | 0.50 (0.50 - 0.50) |  |  |  |  |  |  |  |",
        "|  | `jax.eval_shape` | 3.00 (2.00 - 4.00) | **3.00** (2.00 - 4.00) | 6.00 | 1 (1 - 1) | "
        "**1.00** (1.00 - 1.00) | 1 (1 - 1) | 3 | yes |",
        "|  | - its load | 1.50 (1.00 - 2.00) |  |  |  |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (measured(1.0, structure="other"), "other paths, shapes or dtypes"),
        (measured(1.0, norms={"w": 1.01}), "w: wanted norm 1.0, as eval_shape has, got 1.01"),
        (measured(1.0, bits="other"), "other bits than eval_shape"),
        (measured(1.0, borrowed=2), "2 arrays lie in a memory map"),
    ],
)
def test_a_wrong_result_fails_the_case(monkeypatch, wrong, message):
    runs = {"lazyinit": [wrong] * 3, "eval_shape": [measured(1.0)] * 3}
    with pytest.raises(ContenderError, match=message):
        outcome(monkeypatch, case(exact=("lazyinit",), owned=True), runs)


def test_where_to_write_is_made_before_anything_is_measured(monkeypatch, tmp_path):
    plots, tables = tmp_path / "a" / "plots", tmp_path / "b" / "tables.md"

    def fails(*args, **kwargs):
        assert plots.is_dir()
        assert tables.parent.is_dir()
        raise ContenderError("measured")

    monkeypatch.setattr(run, "run_case", fails)
    monkeypatch.setattr(run, "run_all", lambda folder, **_: [f"plots in {folder.name}"])
    arguments = ["--only", "record-32", "--plots", str(plots), "--markdown", str(tables)]
    assert run.main(arguments) == 1
    assert "plots in plots" in tables.read_text()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        run.main(["--only", "record-32", "--plots", str(tmp_path / "file")])


def test_a_scan_prints_what_ran_and_leaves_out_what_did_not():
    scan = scaling.Scan("n", "By depth", "layers", case(), {6: Size(layers=6), 12: Size(layers=12)})
    found = {
        "lazyinit": {6: Spread(1, 1, 2), 12: Spread(2, 1, 3)},
        "eval_shape": {6: Spread(5, 4, 6)},
    }
    assert list(scaling.table(scan, found))[1:] == [
        "| layers | lazyinit | `jax.eval_shape` |",
        "|--:|--:|--:|",
        "| 6 | 1.000 (1.000 - 2.000) | 5.000 (4.000 - 6.000) |",
        "| 12 | 2.000 (1.000 - 3.000) |  |",
    ]


def test_a_real_contender_runs_in_a_process_of_its_own(tmp_path):
    found = harness.run_once(case(), "lazyinit", Size(layers=1), str(tmp_path))
    assert found["facts"]["leaves"] == 12
    assert found["seconds"] > 0
    with pytest.raises(ContenderError, match="has no attribute 'nobody'"):
        harness.run_once(case(), "nobody", Size(layers=1), str(tmp_path))
