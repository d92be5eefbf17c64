"""Finds what lies beside the weights of a folder: configuration, tokenizer, model card and code.

A folder comes in, and those of its files that a copy of its checkpoint needs go out. Weights are
recognized by the endings that their formats have, or by their first bytes if a name says nothing.
"""

import filecmp
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lazyinit import errors
from lazyinit.checkpoint.opening import open_checkpoint
from lazyinit.formats import orbax
from lazyinit.formats.commit import INDEX, SINGLE
from lazyinit.tensors.headers import HEADER_LIMIT

# Endings of files of weights, also of other frameworks and runtimes, and of their indices.
_WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp", ".msgpack"),
    *(".npz", ".npy", ".eqx", ".h5", ".hdf5", ".keras", ".pb", ".tflite", ".gguf", ".ggml"),
    *(".onnx", ".onnx_data", ".onnx.data", ".ot", ".mlmodel", ".llamafile", ".index.json"),
)
_UNFINISHED = (".incomplete", ".part", ".partial", ".tmp", ".crdownload", ".aria2", ".lock", "~")
_MAGIC = (b"\x93NUMPY", b"\x89HDF", b"GGUF", *(bytes([0x80, version]) for version in range(2, 6)))
_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class SideFile:
    """A file that is to be carried over.

    Attributes:
      name: its path below the folder, with ``/``.
      path: where it lies now.
    """

    name: str
    path: Path


def folder_like(like: str | os.PathLike[str]) -> Path:
    """Returns the folder to carry files over from.

    Raises:
      SaveError: it is an address, a file or a folder of Orbax, or nothing is there.
    """
    folder = Path(like)
    wanted = "wanted a folder on this machine whose files can be copied, got"
    if "://" in os.fspath(like):
        raise errors.SaveError(f"like={os.fspath(like)}: {wanted} an address. Download it first.")
    if folder.is_file():
        raise errors.SaveError(f"like={folder}: {wanted} a file. Its folder is {folder.parent}.")
    if not folder.is_dir():
        there = folder.parent.iterdir() if folder.parent.is_dir() else ()
        near = errors.nearest(folder.name, [path.name for path in there])
        raise errors.SaveError(f"like={folder}: {wanted} a path where nothing is{near or '.'}")
    if _is_orbax(folder):
        raise errors.SaveError(
            f"like={folder}: {wanted} a folder that Orbax wrote, which has only weights. Pass the "
            "folder with config.json."
        )
    return folder


def metadata_of(folder: Path) -> Mapping[str, str]:
    """Returns the metadata of the safetensors in a folder; empty if there are none.

    Raises:
      CheckpointError: the safetensors are damaged.
    """
    there = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), "")
    return open_checkpoint(folder / there).metadata if there else {}


def side_files(like: Path, target: Path) -> list[SideFile]:
    """Returns the files of a folder that another one lacks, without weights.

    Left out are weights of any format and their indices, unfinished files, hidden files and folders
    (whose names begin with a dot), and what lies in ``target``, if that is inside.

    Args:
      like: the folder that has the files.
      target: the folder that is to get them, which need not exist.

    Raises:
      SaveError: the target has a different file of the same name, or a file is a pointer of Git
        LFS, a link to nowhere, or cannot be read. All problems are collected.
    """
    found, problems = [], []
    for path in _below(like, target):
        file = SideFile(path.relative_to(like).as_posix(), path)
        try:
            problem = _problem(path) or _clash(file, target)
            if not problem and not (target / file.name).exists():
                found.append(file)
        except OSError as error:
            problem = f"{path}: it cannot be read: {error.strerror}."
        problems += [problem] * bool(problem)
    if problems:
        raise errors.SaveError(errors.listing(problems))
    return found


def _below(folder: Path, target: Path) -> Iterator[Path]:
    """Yields, in order, the files of a folder that are not weights; all in Orbax's folders are."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            is_target = target.exists() and path.samefile(target)
            # A link could lead around in a circle.
            if not (is_target or path.is_symlink() or _is_orbax(path)):
                yield from _below(path, target)
        elif not path.name.lower().endswith(_UNFINISHED) and not _is_weights(path):
            yield path


def _is_orbax(folder: Path) -> bool:
    return any((folder / name).exists() for name in (orbax.TREE, orbax.STEP))


def _is_weights(path: Path) -> bool:
    if path.name.lower().endswith(_WEIGHTS):
        return True
    if not path.is_file():
        return False
    head = _head(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(("data.pkl", ".npy")) for name in archive.namelist())
    is_header = head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= HEADER_LIMIT
    return is_header or head.startswith(_MAGIC)


def _problem(path: Path) -> str:
    if not path.is_file():
        got = "a link to nowhere" if path.is_symlink() else "something else"
        return f"{path}: wanted a file, got {got}. Fetch the folder again, or remove it."
    if _head(path).startswith(_POINTER):
        return f"{path}: wanted a file, got a pointer of Git LFS to it. Run git lfs pull."
    return ""


def _clash(file: SideFile, target: Path) -> str:
    there = target / file.name
    blocked = next((p for p in there.parents if p.is_relative_to(target) and p.is_file()), None)
    if blocked is not None:
        return f"{blocked}: wanted a folder to copy {file.path} to, got a file. Save elsewhere."
    if there.exists() and not (there.is_file() and filecmp.cmp(there, file.path, shallow=False)):
        return (
            f"{there}: wanted to copy {file.path} to this path, but a different file is there. "
            "Remove that one, or save elsewhere."
        )
    return ""


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(len(_POINTER))
