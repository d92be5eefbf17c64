"""Plants faults, one at a time, in a copy of the package, and tells whether tests catch them.

``python tests/planted.py`` plants all, ``python tests/planted.py make cost`` those of two rooms. Each
is one line that is wrong, and the tests that have to see it are those of its room. What is planted
is text: where the code has changed, the fault is told as gone, and is to be written anew.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]

# Room; file; the line, or a part of it; what is put there; the tests that run, up to the first that fails.
FAULTS = [
    (
        "record",
        "record/linen.py",
        "folded = (*rng.suffix, count)",
        "folded = (*rng.suffix, 1 + count)",
        "record/test_record_linen.py",
    ),
    (
        "record",
        "record/thunks.py",
        "{stream: keys[stream]}, (count,), count)",
        "{stream: keys[stream]}, (count,), count + 1)",
        "record/test_record_nnx.py",
    ),
    (
        "make",
        "make/moved.py",
        "if work.keeps_all() else None",
        "if True else None",
        "make/test_elementwise.py",
    ),
    (
        "make",
        "make/limits.py",
        "SHORT = 64",
        "SHORT = 1",
        "make/test_elementwise.py make/test_draw.py",
    ),
    (
        "match",
        "match/follow.py",
        "for v, roots, f in known if _agree(roots, keys)}",
        "for v, roots, f in known}",
        "match/test_follow.py match",
    ),
    (
        "match",
        "match/match.py",
        "if own and not self._takes(fit, own[0]):",
        "if own:",
        "match test_fill.py rules/test_rules.py",
    ),
    (
        "agree",
        "agree/entries.py",
        "numbers.of(placed, _placement), as_dtype)",
        "0, as_dtype)",
        "agree/test_differences.py agree",
    ),
    ("agree", "agree/calls.py", "_calls[group] -= 1", "pass", "agree/test_calls.py agree"),
    (
        "cost",
        "cost/tally.py",
        "found = each if n else on_first",
        "found = each",
        "cost/test_tally.py cost",
    ),
    (
        "cost",
        "cost/training.py",
        "mirrored is not None and mirrored[0].shape == struct.shape",
        "mirrored is not None",
        "cost/test_training.py",
    ),
    (
        "program",
        "program/separable.py",
        "and not keys[False] & keys[True]",
        "",
        "program/test_separable.py program",
    ),
    (
        "program",
        "program/fingerprint.py",
        "return (type(param), np.array(param).tobytes())",
        "return (type(param), param)",
        "program/test_fingerprint.py",
    ),
    (
        "rules",
        "rules/joins.py",
        "axis %= len(shape) + 1",
        "axis %= len(shape)",
        "rules/test_joins.py rules",
    ),
    (
        "rules",
        "rules/lengths.py",
        "return cut(source, {axis: (0, size)})",
        "return cut(source, {axis: (source.shape[axis] - size, source.shape[axis])})",
        "rules/test_lengths.py",
    ),
    ("maps", "maps/llama.py", '"**/up_proj", "**.up_proj"', '"**/up_proj", "**.gate_proj"', "maps"),
    ("maps", "maps/llama.py", "self_attn.v_proj", "self_attn.k_proj", "maps/test_maps_nnx.py"),
    (
        "formats",
        "formats/safetensors.py",
        "if end != size:",
        "if end > size:",
        "formats/test_safetensors.py",
    ),
    (
        "tensors",
        "tensors/tiles.py",
        "steps == (size * found[0], size * found[1])",
        "steps[0] == size * found[0]",
        "tensors/test_tiles.py",
    ),
    (
        "tensors",
        "tensors/mapped.py",
        "if now != self:",
        "if now.size != self.size:",
        "formats/test_contract.py formats/test_safetensors.py",
    ),
    ("view", "view/table.py", "numbers[i - 1] + 1]", "numbers[i - 1] + 2]", "view/test_table.py"),
    (
        "view",
        "view/origin.py",
        "map(_lazy, (*own, *initialized))",
        "map(_lazy, initialized)",
        "view/test_provenance.py view",
    ),
    (
        "compat",
        "compat/placements.py",
        "return Fact.BY_ELEMENT in primitives.facts(equation) or equation",
        "return True or equation",
        "compat record/test_record_on_mesh.py",
    ),
    (
        "compat",
        "compat/again.py",
        "(token, key.aval, config.trace_context())",
        "(token, key.aval, None)",
        "compat/test_compat_again.py compat",
    ),
    (
        "tools",
        "tools/compare.py",
        "elif one.dtype != other.dtype:",
        "elif False:",
        "tools/test_compare.py",
    ),
    (
        "tools",
        "tools/convert.py",
        "metadata = {**_PT, **checkpoint.metadata,",
        "metadata = {**checkpoint.metadata, **_PT,",
        "tools/test_convert.py",
    ),
    (
        "verbs",
        "_materialize.py",
        "same = (id(leaf), placement, targets[n])",
        "same = (id(leaf), placement)",
        "test_materialize.py test_casts.py",
    ),
    (
        "verbs",
        "_digest.py",
        'is_whole = said["digest"] == str(found)',
        "is_whole = True",
        "test_digest.py",
    ),
    (
        "verbs",
        "shard_by.py",
        "if n % parts == 0]",
        "if n]",
        "test_sharding.py",
    ),
]


def first_failure(copy: Path, tests: list[str]) -> str:
    """Returns the first of these tests that fails, or what pytest says if it cannot run them."""
    cache = f"cache_dir={HERE / '.pytest_cache'}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-o", cache, *tests],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return ""
    failed = re.findall(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return (failed or [done.stdout[-200:] or done.stderr[-200:]])[0]


def caught(copy: Path, file: str, old: str, new: str, tests: str) -> tuple[bool, str]:
    """Returns whether a test fails with a fault planted and passes without it, and which."""
    path = copy / "lazyinit" / file
    text = path.read_text()
    if text.count(old) != 1:
        return False, "the fault is gone: write it anew"
    path.write_text(text.replace(old, new))
    failed = first_failure(copy, [f"tests/{each}" for each in tests.split()])
    path.write_text(text)
    if not failed:
        return False, "NOT CAUGHT"
    if first_failure(copy, [failed]):
        return False, f"{failed} fails without the fault, too: mend that first"
    return True, failed


def main(rooms: list[str]) -> int:
    """Plants the faults of these rooms, or all; returns how many were not seen to be caught."""
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        left_out = shutil.ignore_patterns(".git", ".pytest_cache", "__pycache__", "*.egg-info")
        shutil.copytree(HERE, copy, ignore=left_out, dirs_exist_ok=True)
        for room, file, old, new, tests in FAULTS:
            if not rooms or room in rooms:
                is_caught, said = caught(copy, file, old, new, tests)
                missed += not is_caught
                print(f"{room:10} {file:24} {said}", flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
