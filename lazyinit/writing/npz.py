"""NumPy's ``.npz`` archives, written a piece at a time, not compressed.

Dtypes that NumPy has not are written as it writes them, ``V`` and their size: of these ``V2`` can
be told again, as bfloat16.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.
"""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from lazyinit import errors
from lazyinit.params import Source, describe
from lazyinit.writing.commit import replacing_file
from lazyinit.writing.pieces import as_bytes, nbytes, pieces

_LARGE = 2**31 - 2**20  # Bytes; from here on a member needs 64-bit sizes.


def write_npz(path: Path, tensors: Mapping[str, Source]) -> None:
    """Writes tensors as one archive, in place of the file that is there.

    Raises:
      SaveError: a name or a dtype that cannot be read back.
      WriteError: it cannot be written; the file that was there still is.
    """
    if problems := list(_problems(tensors)):
        raise errors.SaveError(errors.listing(problems))
    with (
        replacing_file(path) as stream,
        zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, source in tensors.items():
            member = zipfile.ZipInfo(f"{name}.npy")  # Always of 1980: equal bytes each time.
            with archive.open(member, "w", force_zip64=nbytes(source) > _LARGE) as entry:
                entry.write(_header(source))
                for piece in pieces(source):
                    entry.write(as_bytes(piece))


def _problems(tensors: Mapping[str, Source]) -> Iterator[str]:
    for name, source in tensors.items():
        dtype = np.dtype(source.dtype)
        if _is_foreign(dtype) and dtype != ml_dtypes.bfloat16:
            yield (
                f"{name}: wanted a dtype that .npz can hold, got "
                f"{describe(source.shape, source.dtype)}. Cast it (--dtype), or write safetensors."
            )
        if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
            yield (
                f"{name!r}: wanted a name that is a plain path in an archive. Rename it in rules, "
                "or write safetensors."
            )


def _is_foreign(dtype: np.dtype) -> bool:
    return dtype.isbuiltin == 2  # NumPy's number for dtypes that others registered.


def _header(source: Source) -> bytes:
    header = io.BytesIO()
    dtype = np.dtype(source.dtype)
    descr = "|V2" if _is_foreign(dtype) else np.lib.format.dtype_to_descr(dtype)
    facts = {"descr": descr, "fortran_order": False, "shape": tuple(source.shape)}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()
