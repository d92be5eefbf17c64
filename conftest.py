"""Every test, doctests and README snippets too, runs on eight CPU devices."""

import gc
import os
import sys

import hypothesis
import jax
import pytest

# They need what the extra `docs` installs.
collect_ignore = ["docs/conf.py", "docs/execute.py"]

os.environ.pop("COLUMNS", None)  # Tables are as wide as it says.

# What Python compiles is kept, for later runs and for processes that tests start: it is a third of
# what collecting takes.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

jax.config.update("jax_num_cpu_devices", 8)

# No limit of time: a first example compiles, and machines are shared. Runs of the same code try the
# same examples, so that what fails has been broken; `--hypothesis-profile=search` tries others.
for profile, is_same in (("lazyinit", True), ("search", False)):
    hypothesis.settings.register_profile(
        profile,
        deadline=None,
        derandomize=is_same,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile("lazyinit")


def pytest_configure(config: pytest.Config) -> None:
    """Lets processes and later runs share what XLA has compiled: that is most of the suite's time.

    The folder is ``.pytest_cache/d/xla``; ``pytest --cache-clear`` empties it.
    """
    jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_finish() -> None:
    """Takes what was imported out of Python's collections of garbage, a fifth of the suite's time.

    What tests make is collected as ever.
    """
    gc.collect()
    gc.freeze()
