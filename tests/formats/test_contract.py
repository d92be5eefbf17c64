"""Laws that every format obeys, whoever wrote the file; the writers are the official ones."""

import functools
import math
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
import tensorstore
from checkpoint_writers import FORMATS, Format, save_safetensors, with_index, write_gguf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from range_server import serving
from reading import everything

import lazyinit as li
from lazyinit import errors
from lazyinit.formats import remote
from lazyinit.tensors.spans import ranges

REMOTE = [
    Format("http", lambda folder, t: save_safetensors(t, folder / "t.safetensors"), "remote"),
    Format(
        "http-index",
        lambda f, t: with_index(f, t, "model", ".safetensors", save_safetensors),
        "remote",
    ),
    Format("http-gguf", write_gguf, "remote", False, ("bool", "uint8", "bfloat16")),
    Format("fsspec", lambda folder, t: save_safetensors(t, folder / "t.safetensors"), "remote"),
]
ALL = [*FORMATS, *REMOTE]


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


@functools.cache
def written(format, folder, server, shape=None):
    """Writes the format once; returns the path or address to open, and the tensors."""
    values = format.tensors()
    if shape is not None:
        values = {"big": np.random.default_rng(1).normal(size=shape).astype("float32")}
    folder = Path(folder) / format.name / str(shape)
    folder.mkdir(parents=True)
    path = format.write(folder, values)
    if format in REMOTE:
        prefix = f"{format.name}/{'large' if shape else 'small'}"
        path = f"{server.url}/{prefix}"
        server.put(folder, f"{prefix}/")
        if format.name == "fsspec":
            path = f"memory://{prefix}"
            fsspec.filesystem("memory").put(str(folder), path, recursive=True)
        if "index" not in format.name:
            path += f"/t.{'gguf' if 'gguf' in format.name else 'safetensors'}"
    return path, values


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return str(tmp_path_factory.mktemp("written"))


@pytest.fixture(params=ALL, ids=str)
def case(request, base, server):
    """A format, what to open, and the tensors that were written."""
    return (request.param, *written(request.param, base, server))


@pytest.fixture(params=ALL, ids=str)
def large(request, base, server):
    """The same with one tensor of 4 MiB, so that its header is small beside it."""
    return (request.param, *written(request.param, base, server, (1024, 1024)))


def kernel_of(values):
    return next(name for name in values if name.endswith("kernel"))


def same_bits(got, want):
    return (got.shape, got.dtype) == (want.shape, want.dtype) and got.tobytes() == want.tobytes()


def test_names_shapes_and_dtypes_are_those_that_were_saved(case):
    format, path, values = case
    checkpoint = format.open(path, values)
    described = {name: (source.shape, source.dtype) for name, source in checkpoint.items()}
    assert described == {name: (array.shape, array.dtype) for name, array in values.items()}
    assert all(source.names == (name,) for name, source in checkpoint.items())
    assert all(name in repr(source) for name, source in checkpoint.items())


def test_reading_all_gives_the_saved_bits(case):
    format, path, values = case
    for name, source in format.open(path, values).items():
        assert same_bits(everything(source), values[name]), name
        assert type(everything(source)) is np.ndarray


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_a_part_is_reading_all_and_taking_the_part(case, data):
    format, path, values = case
    name = data.draw(st.sampled_from(sorted(values)))
    source = format.open(path, values)[name]
    index = tuple(
        slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in source.shape
    )
    got = source.read(index)
    assert same_bits(got, values[name][(*index, ...)])
    open_ended = tuple(
        slice(None) if part == slice(0, n) else part
        for part, n in zip(index, source.shape, strict=True)
    )
    assert same_bits(source.read(open_ended), got)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_reading_any_part_is_reading_all_and_taking_the_part(case, data):
    test_reading_a_part_is_reading_all_and_taking_the_part.hypothesis.inner_test(case, data)


def traffic(format, server):
    """Returns bytes that were read so far, as the system, TensorStore or the server counts them."""
    if format.name == "fsspec":
        return 0
    if format in REMOTE:
        return server.sent
    if format.kind == "chunked":
        found = tensorstore.experimental_collect_matching_metrics(
            "/tensorstore/kvstore/file/bytes_read"
        )
        return sum(value["value"] for metric in found for value in metric["values"])
    with open("/proc/self/io") as counters:
        return int(counters.readline().split()[1])


needs_counters = pytest.mark.skipif(
    not os.path.exists("/proc/self/io"), reason="Linux alone counts what a process reads"
)


@needs_counters
def test_opening_reads_headers_only(large, server):
    format, path, values = large
    everything(format.open(path, values)["big"])  # Imports, once.
    before = traffic(format, server)
    format.open(path, values)
    assert traffic(format, server) - before < 2**16


@needs_counters
@pytest.mark.parametrize(
    "index",
    [
        (slice(128, 256), slice(None)),
        (slice(None), slice(512, 640)),
        (slice(3, 5), slice(7, 9)),
        (slice(5, 5), slice(None)),
    ],
)
def test_a_shard_reads_no_more_than_its_bytes_and_the_stated_alignment(large, server, index):
    format, path, values = large
    source = format.open(path, values)["big"]
    source.read(index)
    before = traffic(format, server)
    got = source.read(index)
    read = traffic(format, server) - before
    assert same_bits(got, values["big"][index])
    if format.kind == "mapped":
        # A view of the map: nothing is asked for, and what is touched is what is copied.
        assert read < 2**12
        assert not got.flags.owndata
        assert not got.flags.writeable
    elif format.kind in ("copied", "held"):
        assert read < 2**12
    elif format.kind == "streamed":
        assert read <= 2**20 + math.prod(source.shape) * 4 * (index[0].stop or 1024) / 1024 * 1.1
    elif format.kind == "remote":
        assert read <= got.nbytes + remote.GAP * max(0, got.shape[0] - 1)
    else:
        (rows, columns), (tall, wide) = ranges(source.shape, index), source.chunk
        chunks = len({r // tall for r in rows}) * len({c // wide for c in columns})
        assert read <= chunks * tall * wide * 4 * 1.01 + 2**14


def test_extents_are_where_the_values_lie_plainly(case):
    format, path, values = case
    for name, source in format.open(path, values).items():
        parts = [
            Path(extent.file).read_bytes()[extent.start : extent.stop]
            for extent in source.extents
            if format not in REMOTE
        ]
        if format.kind in ("mapped", "copied"):
            order = "F" if format.name == "npz-fortran" else "C"
            assert b"".join(parts) == values[name].tobytes(order)
        elif format in REMOTE:
            (extent,) = source.extents
            assert extent.stop - extent.start == values[name].nbytes
            assert extent.file == source.origin
        else:
            assert source.extents == ()


def test_sources_are_values_that_can_be_pickled(case):
    format, path, values = case
    one, other = format.open(path, values), format.open(path, values)
    for name, source in one.items():
        copy = pickle.loads(pickle.dumps(source))
        assert same_bits(everything(copy), values[name])
        if format.kind != "held":  # Its values are in memory, twice.
            assert source == other[name] == copy
            assert len({source, other[name], copy}) == 1


def test_two_threads_read_at_once(case):
    format, path, values = case
    checkpoint = format.open(path, values)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            read = pool.map(lambda name: (name, everything(checkpoint[name])), values)
            assert all(same_bits(got, values[name]) for name, got in read)


def copy_of(path, tmp_path):
    path = Path(path)
    if path.is_dir():
        return shutil.copytree(path, tmp_path / "copy")
    return shutil.copy2(path, tmp_path / "copy")


def files_of(path):
    return [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("what", ["changed", "gone"])
def test_a_file_that_changed_or_is_gone_is_noticed(format, what, base, server, tmp_path):
    original, values = written(format, base, server)
    path = Path(copy_of(original, tmp_path))
    checkpoint = format.open(path, values)
    for source in checkpoint.values():
        source.check()
    for file in files_of(path):
        if what == "changed":
            os.utime(file, ns=(1, 1))
        else:
            file.unlink()
    message = "has changed since it was opened" if what == "changed" else "no longer be read"
    for name, source in checkpoint.items():
        for ask in (source.check, lambda source=source: everything(source)):
            with pytest.raises(errors.CheckpointError, match=message) as caught:
                ask()
            assert str(caught.value).startswith(str(path)), name


def test_filling_and_making_a_tree_over_eight_devices_gives_the_saved_bits(case):
    format, path, values = case
    opened = format.open(path, values)
    # JAX makes no 64-bit arrays here unless it is told to.
    values = {name: x for name, x in values.items() if x.dtype.itemsize <= 4}
    zeros = jax.nn.initializers.zeros
    tree = {name: li.LazyParam(x.shape, x.dtype, zeros) for name, x in values.items()}
    tree, report = li.fill(tree, opened, on_missing="error")
    assert sorted(report.loaded) == sorted(values)
    made = li.materialize(tree, sharding=cut_where_possible)
    for name, array in made.items():
        assert same_bits(np.asarray(array), values[name]), name
    assert len(made[kernel_of(values)].sharding.device_set) == 8


def cut_where_possible(path, leaf):
    mesh = jax.make_mesh((8,), ("x",))
    axes = [n % 8 == 0 and n > 0 for n in leaf.shape]
    spec = ["x" if cut and not any(axes[:place]) else None for place, cut in enumerate(axes)]
    return jax.NamedSharding(mesh, jax.P(*spec))


def test_a_source_is_all_that_a_sharded_array_needs(case):
    format, path, values = case
    name = kernel_of(values)
    source = format.open(path, values)[name]
    sharding = jax.NamedSharding(jax.make_mesh((4, 2), ("x", "y")), jax.P("x", "y"))
    array = jax.make_array_from_callback(source.shape, sharding, source.read)
    assert same_bits(np.asarray(array), values[name])
