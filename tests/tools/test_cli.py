"""The command line: what it prints, and its exit codes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from range_server import serving
from safetensors.numpy import load_file, save_file

import lazyinit as li
from lazyinit.tools.cli import main


@pytest.fixture
def checkpoint(tmp_path):
    tensors = {f"layer.{n}.weight": np.full((2, 3), n, np.float32) for n in range(3)}
    save_file(tensors | {"bias": np.ones(4, np.float16)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def test_inspect_prints_a_table_in_which_layers_fold(checkpoint, capsys):
    assert main(["inspect", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{checkpoint}: 4 tensors, 80 B"
    assert [line.split() for line in lines[3:]] == [
        ["layer.{0..2}.weight", "3", "float32[2,3]", "24", "B"],
        ["bias", "1", "float16[4]", "8", "B"],
    ]


def test_inspect_prints_a_tree_with_sizes_as_bars(checkpoint, capsys):
    assert main(["inspect", "--tree", str(checkpoint)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{checkpoint}: 4 tensors, 80 B"
    assert [line.split(maxsplit=1)[1].split() for line in lines[3:]] == [
        ["layer.{0..2}.weight", "3", "float32[2,3]", "72", "B", "█" * 9],
        ["bias", "1", "float16[4]", "8", "B", "█"],
    ]


@pytest.mark.parametrize("form", [[], ["--tree"]])
def test_inspect_fits_a_terminal_of_80_columns(form, tmp_path, capsys, monkeypatch):
    tensors = {
        f"model.layers.{n}.self_attention.{name}_projection.weight": np.ones((n + 1, 3), np.float32)
        for n in range(12)
        for name in ("query", "key")
    }
    save_file(tensors, tmp_path / "x.safetensors")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", *form, str(tmp_path / "x.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20
    assert max(map(len, lines)) <= 80


def test_inspect_prints_json(checkpoint, capsys):
    assert main(["inspect", "--json", str(checkpoint)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["origin"] == str(checkpoint)
    tensor = found["tensors"]["layer.1.weight"]
    assert (tensor["shape"], tensor["dtype"], tensor["nbytes"]) == ([2, 3], "float32", 24)
    (extent,) = tensor["extents"]
    raw = checkpoint.read_bytes()[extent["start"] : extent["stop"]]
    assert raw == load_file(checkpoint)["layer.1.weight"].tobytes()


def test_diff_says_by_its_exit_code_whether_checkpoints_differ(checkpoint, tmp_path, capsys):
    other = tmp_path / "other.npz"
    assert main(["convert", str(checkpoint), str(other)]) == 0
    assert capsys.readouterr().out == f"{other}: 4 tensors, 80 B\n"
    assert main(["diff", "--values", str(checkpoint), str(other)]) == 0
    assert capsys.readouterr().out == "4 tensors are equal\n"
    tensors = load_file(checkpoint)
    tensors["bias"][1] = 7
    save_file(tensors, checkpoint)
    assert main(["diff", str(checkpoint), str(other)]) == 0
    assert main(["diff", "--json", "--values", str(checkpoint), str(other)]) == 1
    found = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert found["equal"] == 3
    (difference,) = found["differences"]
    assert (difference["name"], difference["kind"], difference["elements"]) == ("bias", "values", 1)


def test_diff_verifies_a_conversion_by_its_rules(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "diff_rules.py").write_text(
        "from lazyinit import Rule, Transpose\n"
        "FLAX = [Rule('l{n}/kernel', 'layer.{n}.weight', Transpose('o i -> i o')), Rule('b', 'bias')]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rules = ["--rules", "diff_rules:FLAX"]
    there = str(tmp_path / "there.npz")
    assert main(["convert", str(checkpoint), there, *rules]) == 0
    assert main(["diff", "--values", str(checkpoint), there, *rules]) == 0
    assert main(["diff", "--values", there, str(checkpoint), *rules, "--reverse"]) == 0
    capsys.readouterr()
    half = str(tmp_path / "half.npz")
    assert main(["convert", str(checkpoint), half, *rules, "--dtype", "bfloat16"]) == 0
    wrong = {
        name: x.read((slice(None),) * x.shape.__len__())
        for name, x in li.open_checkpoint(there).items()
    }
    wrong["l1/kernel"] = wrong["l1/kernel"].copy()
    wrong["l1/kernel"][2, 1] += 0.25
    wrong["b"] = np.array([1, 1, np.nan, 1], np.float16)
    np.savez(tmp_path / "wrong.npz", **wrong)
    capsys.readouterr()
    arguments = ["diff", "--values", str(checkpoint), str(tmp_path / "wrong.npz"), *rules]
    assert main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 tensors differ, 2 are equal"
    assert [line.split() for line in lines[3:]] == [
        ["l1/kernel", "1", "values", "float32[3,2]", "float32[3,2]", "1", "0.25"],
        ["b", "1", "values", "float16[4]", "float16[4]", "1", "nan"],
    ]
    assert main([*arguments, "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["differences"]
    assert [(d["name"], d["largest"]) for d in found] == [("l1/kernel", 0.25), ("b", "nan")]


def test_convert_takes_rules_by_name_and_reads_them_backwards(tmp_path, monkeypatch, capsys):
    leaves = {"head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.savez(tmp_path / "x.npz", **leaves)
    arguments = ["convert", str(tmp_path / "x.npz"), str(tmp_path / "folder")]
    assert main([*arguments, "--rules", "torch", "--reverse", "--dtype", "float16"]) == 0
    (written,) = load_file(tmp_path / "folder" / "model.safetensors").items()
    assert written[0] == "head.weight"
    np.testing.assert_array_equal(
        written[1], leaves["head/kernel"].T.astype(np.float16), strict=True
    )
    (tmp_path / "own_rules.py").write_text(
        "from lazyinit import Rule\nRULES = [Rule('out/*', 'head/*')]\nWRONG = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    back = ["convert", str(tmp_path / "x.npz"), str(tmp_path / "y.npz"), "--rules"]
    assert main([*back, "own_rules:RULES"]) == 0
    assert list(li.open_checkpoint(tmp_path / "y.npz")) == ["out/kernel"]
    for wrong in ("own_rules:WRONG", "own_rules:NONE", "no_such_module:RULES", ":RULES"):
        assert main([*back, wrong]) == 2
        assert f"lazyinit: --rules {wrong}: wanted rules called" in capsys.readouterr().err


def test_a_tied_tensor_is_not_left_out(tmp_path, capsys):
    shared = np.ones(3, np.float32)
    li.save({"a": shared, "b": shared}, tmp_path / "x")
    assert main(["convert", str(tmp_path / "x"), str(tmp_path / "y.npz")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'y.npz'}: 2 tensors, 24 B\n"
    assert main(["diff", "--values", str(tmp_path / "x"), str(tmp_path / "y.npz")]) == 0


def test_families_have_their_rules_by_name(tmp_path, capsys):
    wte = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"transformer.wte.weight": wte, "transformer.h.0.attn.bias": wte}
    save_file(tensors, tmp_path / "x.safetensors")
    arguments = ["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y.msgpack"), "--rules"]
    assert main([*arguments, "gpt2"]) == 0
    assert "left out: transformer.h.0.attn.bias\n" in capsys.readouterr().out
    assert list(li.open_checkpoint(tmp_path / "y.msgpack")) == ["transformer/wte/embedding"]
    assert main([*arguments, "gtp2"]) == 2
    err = capsys.readouterr().err
    assert "lazyinit: --rules gtp2: wanted one of torch, bert, " in err
    assert "did you mean 'gpt2'?" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere"], "nowhere: there is no such file or folder"),
        (["diff", "nowhere", "nowhere"], "nowhere: there is no such file or folder"),
        (["convert", "{}", "x.pt"], "x.pt: wanted a folder, or a file that ends in"),
        (["convert", "{}", "x.npz", "--dtype", "float99"], "--dtype float99: wanted a dtype such"),
        (["convert", "{}", "x", "--max-shard-size", "big"], "max_shard_size: wanted a number of"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(checkpoint, capsys, arguments, message):
    assert main([a.format(checkpoint) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"lazyinit: {message}")
    assert "Traceback" not in captured.err
    assert not captured.out


def test_it_runs_as_a_module(checkpoint):
    command = [sys.executable, "-m", "lazyinit", "inspect", str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 tensors" in done.stdout


def test_a_word_that_is_no_command_says_which_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["inspekt"])
    assert "invalid choice: 'inspekt'" in capsys.readouterr().err


def test_an_interrupt_says_that_nothing_is_lost(checkpoint, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lazyinit.tools.cli.open_checkpoint", interrupted)
    assert main(["inspect", str(checkpoint)]) == 2
    told = "lazyinit: interrupted. What was there before is unchanged.\n"
    assert capsys.readouterr().err == told


def test_a_file_elsewhere_is_inspected_by_ranges(checkpoint, capsys):
    with serving() as server:
        server.files["/x.safetensors"] = checkpoint.read_bytes()
        assert main(["inspect", f"{server.url}/x.safetensors"]) == 0
    assert "4 tensors, 80 B" in capsys.readouterr().out


def test_metadata_is_shown_and_what_a_format_cannot_hold_is_named(tmp_path, capsys):
    said = {"format": "pt", "step": "7", "picture": "x" * 200}
    save_file({"a": np.ones(2)}, tmp_path / "x.safetensors", said)
    assert main(["inspect", str(tmp_path / "x.safetensors")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.strip().split(maxsplit=1) for line in lines[-3:]]
    assert sorted(shown) == [
        ["format", "pt"],
        ["picture", f"{'x' * 80}... (200 characters)"],
        ["step", "7"],
    ]
    assert main(["inspect", "--json", str(tmp_path / "x.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["metadata"] == said
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "x.npz")]) == 0
    told = capsys.readouterr().out.splitlines()[1]
    kept = [
        key for key in li.open_checkpoint(tmp_path / "x.safetensors").metadata if key != "format"
    ]
    assert told == f"left out: the metadata {', '.join(kept)}, for which the format has no place"
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y")]) == 0
    assert "left out" not in capsys.readouterr().out
