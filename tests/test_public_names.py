"""What is public is what ``lazyinit/__init__.py`` exports, and this list."""

import pkgutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import lazyinit as li

NAMES = [
    "Cast",
    "Check",
    "Checkpoint",
    "Concat",
    "Constant",
    "Dequantize",
    "DerivedParam",
    "Digest",
    "Headroom",
    "Ignore",
    "LazyParam",
    "LazyinitError",
    "LazyinitWarning",
    "OverlapParam",
    "Pad",
    "Plan",
    "Progress",
    "Provenance",
    "Rearrange",
    "Rename",
    "Repeat",
    "Report",
    "Reshape",
    "ResizeGrid",
    "RngPath",
    "Rule",
    "Scale",
    "Source",
    "Split",
    "Stack",
    "StoredParam",
    "Suggestion",
    "TORCH",
    "Transpose",
    "TreeView",
    "Trim",
    "Unstack",
    "abstract",
    "check",
    "digest",
    "errors",
    "escape",
    "fill",
    "from_pretrained",
    "inspect",
    "lazy",
    "maps",
    "materialize",
    "open_checkpoint",
    "overlap",
    "plan",
    "provenance",
    "reseed",
    "rules_from",
    "save",
    "shard_auto",
    "shard_by_metadata",
    "shard_by_rules",
    "shard_fsdp",
    "strip_prefix",
    "suggest_rules",
    "update",
]


def test_the_public_names_are_these():
    public = {
        name
        for name, value in vars(li).items()
        if not name.startswith("_")
        and (not isinstance(value, types.ModuleType) or name in ("errors", "maps"))
    }
    assert public == set(NAMES)
    assert sorted(li.__all__) == NAMES


def test_what_functions_return_has_a_public_type():
    tree = {"w": li.LazyParam((2,), "float32", jax.numpy.zeros)}
    checkpoint = li.open_checkpoint({"w": np.ones(2, np.float32)})
    filled, report = li.fill(tree, checkpoint)
    assert isinstance(checkpoint, li.Checkpoint)
    assert isinstance(report, li.Report)
    assert isinstance(filled["w"], li.StoredParam)
    assert isinstance(li.plan(filled), li.Plan)
    assert isinstance(li.provenance(filled), li.Provenance)
    assert isinstance(li.inspect(filled), li.TreeView)
    assert isinstance(li.suggest_rules(tree, checkpoint), li.Suggestion)


def test_no_public_function_hides_a_module_of_its_name():
    modules = {module.name for module in pkgutil.iter_modules(li.__path__)}
    hidden = {n for n in modules & set(NAMES) if not isinstance(getattr(li, n), types.ModuleType)}
    assert hidden == set()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_is_documented(name):
    assert (getattr(li, name).__doc__ or "").strip() or name == "TORCH"


def test_the_package_and_its_engine_import_no_flax_and_nothing_heavy():
    heavy = ("flax", "optax", "torch", "transformers", "treescope", "safetensors", "IPython")
    formats = ("tensorstore", "orbax", "msgpack", "fsspec", "aiohttp")
    engine = ("params", "program.slices", "_plan", "_materialize")
    code = f"import sys, {', '.join(f'lazyinit.{name}' for name in engine)}\n"
    code += f"print(*[m for m in {heavy + formats!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
