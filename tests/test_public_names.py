"""What is public is what ``lazyinit/__init__.py`` exports, and this list."""

import importlib
import subprocess
import sys
import types

import pytest

import lazyinit as li

NAMES = [
    "Cast",
    "Check",
    "Concat",
    "Constant",
    "Ignore",
    "LazyParam",
    "LazyinitError",
    "LazyinitWarning",
    "OverlapParam",
    "Provenance",
    "Rearrange",
    "Rename",
    "RngPath",
    "Rule",
    "Split",
    "Stack",
    "StoredParam",
    "TORCH",
    "Transpose",
    "Unstack",
    "check",
    "errors",
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
    "save",
    "shard_by_metadata",
    "shard_by_rules",
    "shard_fsdp",
    "strip_prefix",
    "suggest_rules",
]


def test_the_public_names_are_these():
    public = {
        name
        for name, value in vars(li).items()
        if not name.startswith("_")
        and (not isinstance(value, types.ModuleType) or name in ("errors", "maps"))
    }
    assert public == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_public_is_documented(name):
    assert (getattr(li, name).__doc__ or "").strip() or name == "TORCH"


def loaded(*modules):
    """Returns which of the modules a fresh ``import lazyinit`` loads."""
    code = f"import sys, lazyinit; print(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_the_package_is_light():
    heavy = ("flax", "optax", "torch", "transformers", "treescope", "safetensors", "IPython")
    formats = ("tensorstore", "orbax", "msgpack", "fsspec", "aiohttp")
    assert loaded(*heavy, *formats) == []


@pytest.mark.parametrize("name", ["params", "program.slices", "_plan", "_materialize"])
def test_the_engine_imports_no_flax(name):
    importlib.import_module(f"lazyinit.{name}")
    code = f"import sys, lazyinit.{name}; print('flax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
