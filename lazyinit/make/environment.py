"""What the bits of a compiled program may depend on, and where the whole test suite was run."""

import functools
import importlib.metadata
import os
import platform as machine
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from lazyinit import compat

# The versions of jax and jaxlib, and the vector units of the CPU, where the whole suite was run.
_UNITS = "avx avx2 fma f16c avx512f avx512vl avx512dq avx512bw avx512_bf16 avx512_fp16 amx_bf16"
TESTED_JAX = ("0.10.2", "0.12.0.1")
TESTED_UNITS = frozenset([" ".join(["x86_64", *sorted(_UNITS.split())])])  # Sapphire Rapids.


@dataclass(frozen=True, slots=True)
class Environment:
    """All that the bits of a compiled program may depend on.

    Attributes:
      jax: the version of jax.
      jaxlib: the version of jaxlib.
      platform: ``"cpu"``, ``"gpu"``, ``"tpu"``.
      device: the kind of device; for a CPU, its vector units.
      runtime: the version of the runtime below jaxlib (such as CUDA's); ``""`` for a CPU.
      options: the compiler options that the user set.
    """

    jax: str
    jaxlib: str
    platform: str
    device: str
    runtime: str
    options: str

    def __str__(self) -> str:
        device = self.device.split()[0] if self.platform == "cpu" else self.device
        options = f" with {self.options}" if self.options else ""
        return f"jax {self.jax}, {self.platform} ({device}){options}"

    @property
    def is_tested(self) -> bool:
        """Whether the whole test suite was run here."""
        return (
            self.jax in TESTED_JAX
            and self.jax == self.jaxlib
            and self.platform == "cpu"
            and self.device in TESTED_UNITS
            and not self.options
        )


def environment(platform: str) -> Environment:
    """Returns all that the bits of programs on a platform depend on."""
    device = jax.local_devices(backend=platform)[0]
    is_cpu = platform == "cpu"
    return Environment(
        jax.__version__,
        _jaxlib(),
        platform,
        _cpu() if is_cpu else device.device_kind,
        "" if is_cpu else str(device.client.platform_version),
        " ".join(_options()),
    )


@functools.cache
def _jaxlib() -> str:
    return importlib.metadata.version("jaxlib")  # Cached, because this reads a file.


@functools.cache
def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:  # Not on Linux.
        flags = machine.processor()
    return " ".join([machine.machine(), *sorted(set(_UNITS.split()) & set(flags.split()))])


def _options() -> Iterator[str]:
    for flag in os.environ.get("XLA_FLAGS", "").split():
        if not flag.startswith(("--xla_force_host_platform_device_count", "--xla_dump")):
            yield flag
    yield from os.environ.get("LIBTPU_INIT_ARGS", "").split()
    # This setting may replace the compiler options that drawing asks for (jax 0.10.2).
    if not compat.setting("jax_compiler_enable_remat_pass"):
        yield "jax_compiler_enable_remat_pass=False"
