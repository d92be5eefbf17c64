"""Reads safetensors and GGUF by ranges of bytes at ``https://``, ``s3://``, ``gs://``, ``hf://``.

The header comes first; then each read asks for the runs of bytes that hold its slice, several at
once. Nothing is kept: a tensor that is read twice is fetched twice.
"""

import contextlib
import itertools
import urllib.parse
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np

from lazyinit import errors
from lazyinit.formats import gguf, safetensors, sharded
from lazyinit.formats.fetched import RemoteFile, is_http
from lazyinit.formats.foreign import PAGE, foreign, format_of, is_json, not_weights
from lazyinit.sources import Extent, Index, Shape
from lazyinit.tensors.base import Checkpoint, Tensor
from lazyinit.tensors.headers import HEADER_LIMIT
from lazyinit.tensors.spans import Span, put, sizes, spans

GAP = 2**16  # Bytes. A gap of no more is fetched, too, as another request would take longer.
_HEAD = 512  # Bytes that are enough to tell what a file is that holds no weights.
_BLOCK = 2**23  # The most bytes of one request.
_AT_ONCE = 8  # The most requests that one read makes at a time.
_FIRST = 2**14  # Bytes of the first request for a header that does not say how long it is.

_OTHERS = {
    "zip": "a zip archive, such as PyTorch's or NumPy's",
    "hdf5": "HDF5",
    "gguf": "GGUF, under a name without .gguf",
    "pickle": "a pickle, such as PyTorch's",
}

Fetch: TypeAlias = Callable[[int, int, str], bytes]
"""Fetches the bytes from a start to a stop; the text names what lies there, for messages."""

T = TypeVar("T")


def open_url(url: str) -> Checkpoint:
    """Opens a safetensors file, a folder of them, an index, or a GGUF file, at an address.

    An address that ends in ``.safetensors`` or ``.gguf`` is a file, in ``.index.json`` an index.
    Any other is a folder if it has ``model.safetensors`` or its index, and else a file.

    Raises:
      CheckpointError: nothing is there, it is broken, or the server fails to send it; the message
        starts with the address.
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
    elif name.endswith(".gguf"):
        tries = ((url, _open_gguf),)
    for there, opens in tries:
        with contextlib.suppress(FileNotFoundError):
            return opens(there)
    tried = ", nor ".join(there for there, _ in tries)
    raise errors.CheckpointError(
        f"{url}: wanted a file of safetensors or GGUF, or a folder of safetensors under Hugging "
        f"Face's names, but there is no {tried}. If the checkpoint has another format or other "
        "names, download it, and open it here."
    )


def _open_file(url: str) -> Checkpoint:
    file = RemoteFile.at(url)

    def read(fetch: Fetch) -> safetensors.Header:
        return safetensors.read_header(
            url, file.size, lambda start, stop: fetch(start, stop, "the header")
        )

    header = _read_or_explain(file, read)
    return header.checkpoint(url, lambda e: RemoteTensor(file, e.name, e.shape, e.dtype, e.offset))


def _open_gguf(url: str) -> Checkpoint:
    file = RemoteFile.at(url)

    def read(fetch: Fetch) -> Checkpoint:
        return gguf.open_stream(url, file, _Stream(fetch, file.size), RemoteTensor)

    return _read_or_explain(file, read, wanted="gguf")


class _Stream:
    """Reads a file from its first byte on; each request asks for twice as much as the last."""

    def __init__(self, fetch: Fetch, size: int) -> None:
        self._fetch, self._size, self._next = fetch, size, _FIRST
        self._held, self._at, self._stop = b"", 0, 0

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        end = min(self._at + size, self._size)
        if end > self._stop:
            start, stop = self._stop, min(max(end, self._stop + self._next), self._size)
            left = self._held[len(self._held) - (start - self._at) :]
            self._held = left + self._fetch(start, stop, "the header")
            self._stop, self._next = stop, min(2 * self._next, _BLOCK)
        begin = len(self._held) - (self._stop - self._at)
        data = self._held[begin : begin + end - self._at]
        self._at = end
        return data


def _open_index(url: str, origin: str) -> Checkpoint:
    file = RemoteFile.at(url)
    # One byte past the limit is enough for it to be refused.
    size = min(file.size, HEADER_LIMIT + 1)
    text = _read_or_explain(file, lambda fetch: fetch(0, size, "the index"))
    if (kind := foreign(text[:_HEAD])) and not is_json(text[:_HEAD]):
        raise not_weights(url, kind)
    folder = _without_query(url).rpartition("/")[0]
    # Names are quoted, as in an address "%2e%2e" would climb out and "?" would end the path.
    plain = urllib.parse.quote if is_http(url) else str
    return sharded.open_index(
        url,
        text,
        origin=origin,
        siblings=(),
        open_shard=lambda name: _open_file(f"{folder}/{plain(name)}"),
    )


def _read_or_explain(
    file: RemoteFile, read: Callable[[Fetch], T], wanted: str = "safetensors"
) -> T:
    """Returns what ``read`` returns, or raises an error that says what the file is instead.

    Args:
      file: the file.
      read: reads the header or the index, given a function that fetches bytes of the file.
      wanted: the format that it should have: ``"safetensors"`` or ``"gguf"``.

    Raises:
      CheckpointError: ``read`` raised one. If the first bytes of the file show that it is a web
        page, holds no weights, or has another format, the message says so.
    """
    is_there = False

    def fetch(start: int, stop: int, what: str) -> bytes:
        nonlocal is_there
        data = file.read(start, stop, what=what)
        is_there = True
        return data

    try:
        return read(fetch)
    except errors.CheckpointError as error:
        if file.is_page:  # Pages of web sites are seldom served in ranges.
            raise not_weights(file.path, PAGE) from error
        # A server that sent no bytes is not asked again.
        head = file.read(0, min(file.size, _HEAD), what="its first bytes") if is_there else b""
        if kind := foreign(head):
            raise not_weights(file.path, kind) from error
        if (found := format_of(head)) not in (wanted, "safetensors"):
            raise errors.CheckpointError(
                f"{file.path}: wanted {wanted}, got {_OTHERS.get(found, found)}. Only safetensors "
                "and GGUF can be read at an address: download the file, and open it here."
            ) from error
        raise


def _without_query(url: str) -> str:
    # Signed addresses end in a query; the keys of a bucket may have a "?" in them.
    return url.partition("?")[0] if is_http(url) else url


@dataclass(frozen=True, slots=True, repr=False)
class RemoteTensor(Tensor):
    """A ``Source``: a tensor of a file at an address.

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
        """Returns the values at ``index``; fetches gaps of up to ``GAP`` bytes between them, too.

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
            # Each worker copies its bytes into place and frees them, so that at most _AT_ONCE
            # runs are held. The first failure cancels the others.
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
