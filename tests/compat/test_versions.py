"""Which versions of JAX are supported, tested, and running now."""

import importlib.metadata
import os
import re
import tomllib
import warnings
from pathlib import Path

import jax
import pytest

import lazyinit as li
from lazyinit.compat import versions
from lazyinit.make.environment import TESTED_JAX

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TESTED = PROJECT["tool"]["lazyinit"]["tested"]


def test_the_jax_that_is_running_is_the_one_that_this_run_is_for():
    """``.ci/run`` says which: a run on another could pass for it else."""
    expected = os.environ.get("LAZYINIT_EXPECTED_JAX")
    assert expected in (None, jax.__version__)
    assert importlib.metadata.version("jaxlib") == jax.__version__


def test_both_ends_of_the_range_are_tested():
    oldest, too_new = versions.supported()
    assert TESTED["oldest"]["jax"] == oldest == TESTED_JAX[0]
    assert TESTED["newest"]["jax"] == TESTED_JAX[-1]
    assert versions._numbers(TESTED_JAX[-1]) < versions._numbers(too_new)
    assert PROJECT["project"]["requires-python"] == f">={TESTED['oldest']['python']}"


def test_the_readme_names_what_is_tested():
    rows = re.findall(
        r"^\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.M
    )
    for end in TESTED.values():
        assert (end["python"], end["jax"], end["flax"]) in rows
    assert {jax_version for _, jax_version, _ in rows} == set(TESTED_JAX)


@pytest.mark.parametrize("version", ["0.9.2", "0.13.0", "1.0"])
def test_a_version_outside_of_the_range_is_one_warning_with_the_range(monkeypatch, version):
    monkeypatch.setattr(jax, "__version__", version)
    with pytest.warns(
        li.LazyinitWarning, match=rf"wanted jax >= 0.10.2, < 0.13, got jax {version}"
    ):
        versions.warn_outside()


@pytest.mark.parametrize(
    "version", ["0.10.2", "0.11.2", "0.12.0.1", "0.12.7", "0.12.1.dev20261101"]
)
def test_versions_within_the_range_are_silent(monkeypatch, version):
    monkeypatch.setattr(jax, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.warn_outside()


def test_a_folder_that_was_never_installed_says_nothing(monkeypatch):
    monkeypatch.setattr(versions, "DISTRIBUTION", "no-such-distribution")
    assert versions.supported() is None
    versions.warn_outside()
