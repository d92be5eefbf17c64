"""Safetensors that lie elsewhere (``https://``, ``s3://``, ``gs://``, ``hf://``), read by ranges.

The header comes first; then each read asks for the runs of bytes that hold its slice, several at
once. Nothing is kept: a tensor that is read twice is fetched twice.
"""

import contextlib
import itertools
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lazyinit import errors
from lazyinit.checkpoint import safetensors, sharded
from lazyinit.checkpoint.base import Checkpoint, Tensor
from lazyinit.checkpoint.fetched import RemoteFile, is_http
from lazyinit.checkpoint.headers import HEADER_LIMIT
from lazyinit.checkpoint.spans import Span, put, sizes, spans
from lazyinit.params import Extent, Index, Shape

GAP = 2**16  # Bytes: a gap of no more is fetched along; another request would take longer.
_BLOCK = 2**23  # Bytes of one request.
_AT_ONCE = 8  # Requests of one read.


def open_url(url: str) -> Checkpoint:
    """Opens a safetensors file, a folder of them, or an index, at an address.

    An address that ends in ``.safetensors`` is a file, in ``.index.json`` an index. Another is a
    folder if it has one of both under Hugging Face's names, and a file if not.

    Raises:
      CheckpointError: there is none, it is broken, or the server does not play its part; the
        message starts with the address.
    """
    name = _without_query(url).rstrip("/").rpartition("/")[2]
    folder = url.rstrip("/")
    tries: Sequence[tuple[str, Callable[[str], Checkpoint]]] = (
        (f"{folder}/model.safetensors", _open_file),
        (f"{folder}/model.safetensors.index.json", lambda there: _open_index(there, folder)),
        (url, _open_file),
    )
    if name.endswith(".index.json"):
        tries = ((url, lambda there: _open_index(there, url)),)
    elif name.endswith(".safetensors"):
        tries = ((url, _open_file),)
    for there, opens in tries:
        with contextlib.suppress(FileNotFoundError):
            return opens(there)
    tried = ", nor ".join(there for there, _ in tries)
    raise errors.CheckpointError(
        f"{url}: wanted a safetensors file, or a folder of them under Hugging Face's names; "
        f"there is no {tried}."
    )


def _open_file(url: str) -> Checkpoint:
    file = RemoteFile.at(url)
    header = safetensors.read_header(
        url, file.size, lambda start, stop: file.read(start, stop, what="the header")
    )
    tensors = header.tensors(lambda e: RemoteTensor(file, e.name, e.shape, e.dtype, e.offset))
    return Checkpoint(url, tensors)


def _open_index(url: str, origin: str) -> Checkpoint:
    file = RemoteFile.at(url)
    # One byte past the limit is enough for it to be refused.
    text = file.read(0, min(file.size, HEADER_LIMIT + 1), what="the index")
    folder = _without_query(url).rpartition("/")[0]
    # A name is a name: in an address, "%2e%2e" would climb out and "?" would end it.
    plain = urllib.parse.quote if is_http(url) else str
    return sharded.open_index(
        url,
        text,
        origin=origin,
        siblings=(),
        open_shard=lambda name: _open_file(f"{folder}/{plain(name)}"),
    )


def _without_query(url: str) -> str:
    # Addresses that are signed end in one; the keys of a bucket may have a "?" in them.
    return url.partition("?")[0] if is_http(url) else url


@dataclass(frozen=True, slots=True, repr=False)
class RemoteTensor(Tensor):
    """A ``Source``: a tensor of a file that lies elsewhere.

    Attributes:
      file: the file that it lies in.
      name: what the file calls it.
      shape: as stored.
      dtype: as stored.
      offset: where its first byte is, from the start of the file.
    """

    file: RemoteFile
    name: str
    shape: Shape
    dtype: np.dtype
    offset: int

    @property
    def extents(self) -> tuple[Extent, ...]:
        """The run of bytes that it takes in its file."""
        nbytes = int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize
        return (Extent(self.file.path, self.offset, self.offset + nbytes),)

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, fetched; gaps of up to ``GAP`` bytes come along.

        Raises:
          CheckpointError: the file has changed, or the server does not give what was asked for.
        """
        values = np.empty(sizes(self.shape, index), self.dtype)
        self._fetch_all(values, index)
        if not self.file.tells_version:
            self.file.check()
        return values

    def _fetch_all(self, values: np.ndarray, index: Index) -> None:
        itemsize = self.dtype.itemsize
        wanted = spans(self.shape, itemsize, index, gap=GAP, limit=_BLOCK)
        first = list(itertools.islice(wanted, 2))
        if len(first) < 2:
            for span in first:
                self._fetch(values, span)
            return
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            # Each worker puts its bytes in place and lets go of them: _AT_ONCE runs at most are
            # held, and the first that fails ends it.
            queue = itertools.chain(first, wanted)
            while batch := list(itertools.islice(queue, 8 * _AT_ONCE)):
                running = [pool.submit(self._fetch, values, span) for span in batch]
                try:
                    for done in running:
                        done.result()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise

    def _fetch(self, values: np.ndarray, span: Span) -> None:
        start, stop = self.offset + span.start, self.offset + span.stop
        data = self.file.read(start, stop, what=f"tensor {self.name!r}")
        put(values, self.shape, span, data)
