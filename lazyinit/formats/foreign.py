"""Tells by its first bytes what a file is: of which format of weights, or what it is instead."""

from lazyinit import errors
from lazyinit.formats.msgpack_walk import is_first_byte

_LFS = b"version https://git-lfs.github.com/spec/"
_MARKUP = (b"<!doctype html", b"<html", b"<?xml")
PAGE = (
    "a page of a web site",
    "The address that it was fetched from gives no file: it may want you to log in.",
)

_MARKS = {
    b"\x93NUMPY": "npy",
    b"GGUF": "gguf",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))


def format_of(head: bytes) -> str:
    """Returns which format a file has; ``"safetensors"`` if it is none of the others.

    >>> format_of(b"GGUF"), format_of(bytes([16, 0, 0, 0, 0, 0, 0, 0]) + b"{}")
    ('gguf', 'safetensors')
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    # The first eight bytes of safetensors are a length, of which the format allows but 27 bits.
    may_be_msgpack = bool(head) and is_first_byte(head[0])
    if head[8:9] == b"{" and not (may_be_msgpack and any(head[4:8])):
        return "safetensors"
    if head.startswith(_PICKLES):
        return "pickle"
    return "msgpack" if may_be_msgpack else "safetensors"


def foreign(head: bytes) -> tuple[str, str] | None:
    """Returns what a file without weights is, and the way out; ``None`` if it may hold weights.

    >>> foreign(b"version https://git-lfs.github.com/spec/v1")
    ('a pointer of Git LFS', 'Fetch the file that it stands for: git lfs pull.')
    """
    text = head.lstrip()
    if text.startswith(_LFS):
        return "a pointer of Git LFS", "Fetch the file that it stands for: git lfs pull."
    if text.lower().startswith(_MARKUP):
        return PAGE
    if is_json(head):
        return (
            "a JSON file, which holds settings, such as config.json",
            "Pass the folder that it lies in, or the file of weights beside it.",
        )
    return None


def not_weights(path: str, kind: tuple[str, str]) -> errors.CheckpointError:
    """Returns the error for a file (its path or address) that holds no weights."""
    return errors.CheckpointError(f"{path}: wanted a file of weights, got {kind[0]}. {kind[1]}")


def is_json(head: bytes) -> bool:
    """Tells whether a file begins as a JSON object does, and is text."""
    # The length with which safetensors begin has zeros in it.
    return head.lstrip()[:1] == b"{" and b"\0" not in head
