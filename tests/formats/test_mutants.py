"""Broken files of every format: they open and read, or are a ``CheckpointError``, and nothing else.

``LAZYINIT_MUTANTS=5000 pytest -m slow -n 0 tests/formats/test_mutants.py`` makes 5,000 of each.
"""

import contextlib
import functools
import math
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
from checkpoint_writers import FORMATS, OTHERS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutants import mutate

from lazyinit import errors

ALL = [*FORMATS, *OTHERS]
_MANY = int(os.environ.get("LAZYINIT_MUTANTS", "200"))
_SECONDS, _KILOBYTES = 10, 2**19  # Of one mutant. None has more than some 10,000 bytes.
# Bytes that a header may promise: it costs some time to make them, and cannot be done.
_LARGE, _ENDLESS = 2**28, 2**42


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@functools.cache
def written(format, base):
    folder = base / format.name
    folder.mkdir()
    tensors = format.tensors()
    return Path(format.write(folder, tensors)), tensors


def read(source):
    index = tuple(slice(n // 3, n - n // 3) for n in source.shape)
    everything = (slice(None),) * len(source.shape)
    size = math.prod(source.shape) * source.dtype.itemsize
    if size > _LARGE:
        source.read(tuple(slice(0, min(n, 2)) for n in source.shape))
        if size > _ENDLESS:
            source.read(everything)
        return
    whole = source.read(everything)
    assert (whole.shape, whole.dtype) == (source.shape, source.dtype)
    assert source.read(index).tobytes() == whole[(*index, ...)].tobytes()


@contextlib.contextmanager
def refusals(path):
    """Lets nothing pass but what names the file."""
    try:
        yield
    except (errors.CheckpointError, errors.CastError) as error:
        assert str(error).startswith(str(path)), error


def check_mutant(format, base, tmp_path_factory, random):
    original, tensors = written(format, base)
    folder = tmp_path_factory.mktemp("broken")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        path = folder / original.name
        if original.is_dir():
            shutil.copytree(original, path)
            files = sorted(file for file in path.rglob("*") if file.is_file())
        else:
            files = [Path(shutil.copy2(original, path))]
        mutate(random, random.choice([file for file in files if file.stat().st_size]))
        started = time.perf_counter()
        with refusals(path):
            for source in format.open(path, tensors).values():
                with refusals(path):
                    read(source)
        assert time.perf_counter() - started < _SECONDS
    finally:
        shutil.rmtree(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < _KILOBYTES


@pytest.mark.parametrize("format", ALL, ids=str)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=True))
def test_a_broken_file_opens_or_is_refused_and_nothing_else(format, base, tmp_path_factory, random):
    check_mutant(format, base, tmp_path_factory, random)


@pytest.mark.slow
@pytest.mark.parametrize("format", ALL, ids=str)
@settings(max_examples=_MANY, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=True))
def test_files_broken_in_many_ways_open_or_are_refused(format, base, tmp_path_factory, random):
    check_mutant(format, base, tmp_path_factory, random)
