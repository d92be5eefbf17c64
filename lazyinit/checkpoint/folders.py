"""Finds the checkpoint of a folder that has none of the usual files and indices."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from lazyinit import errors
from lazyinit.sources import Source
from lazyinit.tensors.base import Checkpoint

STEMS = ("model", "pytorch_model", "diffusion_pytorch_model", "flax_model", "diffusion_flax_model")
_ENDINGS = ("safetensors", "bin", "msgpack")
# The order in which transformers looks for them, then that of diffusers.
OWN_NAMES = tuple(
    f"{stem}.{ending}{index}"
    for stem, ending in (
        ("model", "safetensors"),
        ("pytorch_model", "bin"),
        ("flax_model", "msgpack"),
        ("diffusion_pytorch_model", "safetensors"),
        ("diffusion_pytorch_model", "bin"),
        ("diffusion_flax_model", "msgpack"),
    )
    for index in ("", ".index.json")
)
_VARIANT = re.compile(
    rf"(?:{'|'.join(STEMS)})\."
    rf"(?:(?P<file>[\w-]+)\.(?:{'|'.join(_ENDINGS)})|(?:{'|'.join(_ENDINGS)})\.index\.(?P<index>[\w-]+)\.json)"
)
_SHARD = re.compile(rf"(.+)-(\d{{5}})-of-(\d{{5}})\.({'|'.join(_ENDINGS)})")
_STEP = re.compile(r"checkpoint_(\d+(?:\.\d+)?)")


def find_variant(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the file of the only variant (such as ``fp16``) in a folder; ``None`` without one.

    Raises:
      CheckpointError: the folder holds several variants.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        if (match := _VARIANT.fullmatch(name)) and not _SHARD.fullmatch(name):
            found.setdefault(match["file"] or match["index"], []).append(name)
    if len(found) > 1:
        listed = ", ".join(repr(files[0]) for files in found.values())
        raise errors.CheckpointError(
            f"{folder}: wanted one checkpoint, got the variants {', '.join(found)}. Pass the file "
            f"of one itself: {listed}."
        )
    ((files),) = found.values() or [[]]
    return folder / min(files, key=_rank) if files else None


def _rank(name: str) -> tuple[int, str]:
    ending = next(n for n, ending in enumerate(_ENDINGS) if f".{ending}" in name)
    return ending, name


def find_newest(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns Flax's ``checkpoint_N`` with the largest number, or ``None`` if there is none."""
    steps = {float(match[1]): name for name in names if (match := _STEP.fullmatch(name))}
    return folder / steps[max(steps)] if steps else None


def open_shards(
    folder: Path, names: Sequence[str], open_file: Callable[[Path], Checkpoint]
) -> Checkpoint | None:
    """Opens the shards of a folder without an index as one checkpoint; ``None`` without shards.

    Raises:
      CheckpointError: a shard is missing, there are shards of several checkpoints, or two shards
        hold tensors of one name.
    """
    found: dict[tuple[str, int, str], dict[int, str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            stem, number, count, ending = match.groups()
            found.setdefault((stem, int(count), ending), {})[int(number)] = name
    if len(found) > 1:
        listed = ", ".join(repr(min(files.values())) for files in found.values())
        raise errors.CheckpointError(
            f"{folder}: wanted the shards of one checkpoint, got those of {len(found)}, such as "
            f"{listed}. Keep each in a folder of its own."
        )
    for (_, count, _), files in found.items():
        missing = [n for n in range(1, count + 1) if n not in files]
        if missing:
            raise errors.CheckpointError(
                f"{folder}: wanted {count} shards, got {len(files)}: number {missing[0]} is "
                "missing. Fetch it, or pass one of the shards itself."
            )
        return _joined(folder, [folder / files[n] for n in sorted(files)], open_file)
    return None


def _joined(
    folder: Path, paths: Sequence[Path], open_file: Callable[[Path], Checkpoint]
) -> Checkpoint:
    tensors: dict[str, Source] = {}
    for path in paths:
        for name, source in open_file(path).items():
            if name in tensors:
                raise errors.CheckpointError(
                    f"{path}: tensor {name!r}: wanted it in one shard, but {tensors[name].origin} "
                    "holds it, too. Pass one of the shards itself."
                )
            tensors[name] = source
    return Checkpoint(str(folder), tensors)
