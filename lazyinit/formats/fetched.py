"""Fetches ranges of bytes of files at an address, through ``fsspec``.

A server is not trusted to honor ranges, to stay up, or to keep the file the same: each answer is
checked. Bytes that it sends beyond those that were asked for are not read.
"""

import functools
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lazyinit import errors
from lazyinit.formats.foreign import PAGE, not_weights

_TRIES = 4
_PAUSE = 0.2  # Seconds before the second try; twice as long before each one after.
_PATIENCE = 30.0  # Seconds to wait for the next byte.
_CHUNK = 2**20  # Bytes taken from a connection at a time.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
_VERSIONS = (
    "ETag",
    "etag",
    "Last-Modified",
    "LastModified",
    "last_modified",
    "mtime",
    "updated",
    "created",
)


class _Refused(Exception):
    """Raised for an answer that would be the same if the server were asked again."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as it was when it was opened, so that a later change is noticed.

    Attributes:
      path: its address.
      size: bytes.
      version: its entity tag, or else when it was last written; empty if the server says neither.
      is_page: whether the server calls it a page of a web site.
    """

    path: str
    size: int
    version: str
    is_page: bool = field(default=False, compare=False)

    @classmethod
    def at(cls, url: str) -> "RemoteFile":
        """Asks for the size and version of a file.

        Raises:
          CheckpointError: the server cannot be reached, or does not tell the size.
          FileNotFoundError: there is no such file.
        """
        filesystem, path = _filesystem(url)
        info = _patiently(url, "its size", lambda: _info(filesystem, path))
        size = info.get("size")
        if not isinstance(size, int):
            if _is_page(info):
                raise not_weights(url, PAGE)
            raise errors.CheckpointError(
                f"{url}: wanted a server that tells how long the file is, got one that does not. "
                "Download it first."
            )
        return cls(url, size, _version(info), _is_page(info))

    @property
    def tells_version(self) -> bool:
        """Whether each answer of the server says which version of the file it is of (HTTP)."""
        return is_http(self.path)

    def check(self) -> None:
        """Raises a ``CheckpointError`` if the file is no longer the one that was opened."""
        try:
            now = RemoteFile.at(self.path)
        except FileNotFoundError as error:
            raise errors.CheckpointError(
                f"{self.path}: the file was opened but is no longer there. Open the checkpoint "
                "again."
            ) from error
        if now != self:
            raise self._changed(
                f"{self.size} bytes, {self.version!r} then; {now.size}, {now.version!r} now"
            )

    def read(self, start: int, stop: int, *, what: str) -> bytes:
        """Fetches the bytes from ``start`` to ``stop``; asks up to four times.

        Args:
          start: the first byte, counted from the start of the file.
          stop: the byte after the last one.
          what: a name for what lies there, for messages.

        Raises:
          CheckpointError: the server ignores ranges, fails again and again, or the file has
            changed since it was opened.
        """
        if start == stop:
            return b""
        filesystem, path = _filesystem(self.path)
        fetch = _fetch_http if self.tells_version else _fetch_any
        try:
            return _patiently(self.path, what, lambda: fetch(self, filesystem, path, start, stop))
        except FileNotFoundError as error:
            raise errors.CheckpointError(
                f"{self.path}: {what}: the file was opened but is no longer there. Open the "
                "checkpoint again."
            ) from error
        except _Refused as error:
            raise errors.CheckpointError(f"{self.path}: {what}: {error}") from error

    def _changed(self, how: str) -> errors.CheckpointError:
        return errors.CheckpointError(
            f"{self.path}: the file has changed since it was opened ({how}). Open the checkpoint "
            "again."
        )


def is_http(url: str) -> bool:
    """Tells whether an address is one of HTTP, where names are quoted and queries follow."""
    return url.startswith(("http://", "https://"))


def _is_page(info: Mapping[str, Any]) -> bool:
    return str(info.get("mimetype", "")).startswith(("text/html", "application/xhtml"))


def _version(info: Mapping[str, Any]) -> str:
    # A proxy that compresses marks the same entity tag as weak.
    found = next((info[key] for key in _VERSIONS if info.get(key)), "")
    return str(found).removeprefix("W/")


@functools.cache
def _timeouts() -> Mapping[str, Any]:
    import aiohttp

    return {"timeout": aiohttp.ClientTimeout(None, sock_connect=_PATIENCE, sock_read=_PATIENCE)}


def _filesystem(url: str) -> tuple[Any, str]:  # Any: fsspec has no types.
    protocol = url.partition("://")[0]
    try:
        import fsspec

        options = {"client_kwargs": _timeouts()} if protocol in ("http", "https") else {}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = f" and pip install {_PACKAGES[protocol]}" if protocol in _PACKAGES else ""
        raise errors.CheckpointError(
            f"{url}: wanted a package that reads {protocol}:// addresses, got an error: {error}. "
            f"Run pip install 'lazyinit-jax[remote]'{package}."
        ) from error
    except ValueError as error:
        raise errors.CheckpointError(
            f"{url}: wanted an address that fsspec knows (s3://, gs://, https://, hf://), got "
            f"{protocol}://. Download the checkpoint first."
        ) from error


def _info(filesystem: Any, path: str) -> Mapping[str, Any]:
    filesystem.invalidate_cache(path)
    try:
        info = filesystem.info(path)
    except FileNotFoundError as error:
        # fsspec raises this for whatever went wrong over HTTP; the cause says what it was.
        status = getattr(error.__cause__, "status", None)
        if error.__cause__ is None or isinstance(error.__cause__, FileNotFoundError):
            raise
        if status in (404, 410):
            raise
        raise error.__cause__ from error
    if info.get("type") == "directory":
        raise FileNotFoundError(path)
    return info


def _patiently(url: str, what: str, ask: Any) -> Any:  # Any: a callable, and what it returns.
    for left in reversed(range(_TRIES)):
        try:
            return ask()
        except (FileNotFoundError, _Refused, errors.CheckpointError):
            raise
        except Exception as error:  # Each filesystem of fsspec has errors of its own.
            status = getattr(error, "status", None)
            final = isinstance(error, PermissionError) or (
                isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            )
            if not left or final:
                times = "" if final else f" after {_TRIES} tries"
                raise errors.CheckpointError(
                    f"{url}: {what} cannot be fetched{times}: {type(error).__name__}: "
                    f"{error!s:.200}. Try again later, or download the checkpoint first."
                ) from error
            time.sleep(_PAUSE * 2 ** (_TRIES - 1 - left))
    raise AssertionError("unreachable")


def _fetch_http(file: RemoteFile, filesystem: Any, path: str, start: int, stop: int) -> bytes:
    # For a block size of zero, fsspec makes one request and returns bytes as they come. Its other
    # ways to read hold all that the server chooses to send.
    headers = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        opened = filesystem.open(path, block_size=0, size=file.size, headers=headers)
    except Exception as error:  # aiohttp's, which is not ours to import before it is needed.
        if getattr(error, "status", None) == 416:  # The range lies past the end.
            raise file._changed(f"{file.size} bytes then, fewer now") from error
        raise
    with opened as stream:
        response = stream.r
        _check_response(file, response.status, response.headers, start, stop)
        parts, wanted = [], stop - start
        while wanted and (part := stream.read(min(wanted, _CHUNK))):
            parts.append(part)
            wanted -= len(part)
    if wanted:
        raise ConnectionError(f"{stop - start - wanted} bytes came of {stop - start}")
    return b"".join(parts)


def _check_response(
    file: RemoteFile, status: int, headers: Mapping[str, str], start: int, stop: int
) -> None:
    version = _version(headers)
    sent, _, whole = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if whole.isdigit() and int(whole) != file.size:
        raise file._changed(f"{file.size} bytes then, {whole} now")
    if version and file.version and version != file.version:
        raise file._changed(f"{file.version!r} then, {version!r} now")
    if status == 200 and (start, stop) == (0, file.size):
        return
    if status != 206 or sent != f"{start}-{stop - 1}":
        got = f"the whole file (status {status})"
        if status == 206:
            got = f"bytes {sent}" if sent else "a range without saying which"
        raise _Refused(
            f"wanted bytes {start}-{stop - 1}, got {got}: the server ignores ranges. "
            "Download the file first."
        )


def _fetch_any(file: RemoteFile, filesystem: Any, path: str, start: int, stop: int) -> bytes:
    data = filesystem.cat_file(path, start=start, end=stop)
    if len(data) > stop - start:
        raise _Refused(f"wanted {stop - start} bytes, got {len(data)}. Download the file first.")
    if len(data) < stop - start:
        file.check()
        raise ConnectionError(f"{len(data)} bytes came of {stop - start}")
    return data
