"""The verb ``save``: a tree -> a Hugging Face folder of safetensors; rules are read backwards."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import numpy as np

from lazyinit import agree, compat, errors
from lazyinit._materialize import materialize
from lazyinit.checkpoint.beside import folder_like, metadata_of, side_files
from lazyinit.checkpoint.config import config_of, quantization_of
from lazyinit.checkpoint.dequantized import quantizes_weights, tells_scales
from lazyinit.checkpoint.folder import local_path, planned, write_folder
from lazyinit.derived import DerivedParam
from lazyinit.formats.to_orbax import check_orbax, write_orbax
from lazyinit.match.places import Place, places
from lazyinit.match.unmatch import unmatch
from lazyinit.params import LazyParam, OverlapParam, StoredParam, Thunk
from lazyinit.patterns import slashed
from lazyinit.progress import ProgressLike, check_progress, reporting, watched
from lazyinit.rules.rule import Rules, as_rules
from lazyinit.sources import Source
from lazyinit.tensors.arrays import DeviceArray, OnDemand
from lazyinit.tensors.as_dtype import AsDtype
from lazyinit.tensors.key_data import KEY_DATA, KeyData, implementation, is_typed_key
from lazyinit.tensors.memory import HeldTensor
from lazyinit.tensors.pieces import Read, nbytes, pieces

Format: TypeAlias = Literal["safetensors", "orbax"]
Lazy: TypeAlias = Literal["refuse", "make"]

_PT = {"format": "pt"}


@agree.telling
def save(
    tree: Any,
    folder: str | os.PathLike[str],
    *,
    rules: Rules = (),
    at: str = "",
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] | None = None,
    lazy: Lazy = "refuse",
    like: str | os.PathLike[str] | None = None,
    format: Format = "safetensors",
    progress: ProgressLike = False,
) -> None:
    """Writes the leaves of a tree as safetensors, as Hugging Face's libraries read them.

    It writes one file, ``model.safetensors``, or several and an index. The host holds a piece of
    one tensor at a time: arrays are gathered from their shards piece by piece, and stored leaves
    are copied from file to file. At every instant a reader of the folder finds either the old
    checkpoint or the new one, even if the process is killed; other files in the folder stay. With
    several processes, all of them must call this, and the first one writes.

    Args:
      tree: any pytree of arrays, numbers and thunks.
      folder: the folder to write to; it is made if it does not exist.
      rules: the rules with which ``fill`` would read the folder. Read backwards, they give names
        and layouts. A leaf that no rule fits is saved under its path.
      at: the path of the subtree to save, as for ``fill``; ``""`` for the whole tree.
      max_shard_size: bytes of values in one file: a number, or text such as ``"5GB"`` (five
        billion) or ``"512MiB"``. A tensor that is larger has a file of its own.
      metadata: entries for the metadata of the files: a mapping from text to text. They replace
        entries of the same name that ``like`` has. The transformers library wants an entry
        ``"format"``, whose value ``"pt"`` stands for PyTorch's names and layouts. Without this
        argument the files have that value, unless ``like`` has another.
      lazy: what to do with leaves that are not made yet. ``"refuse"`` raises an error; ``"make"``
        makes them one by one, on the default device, and frees each once it is written.
      like: a folder, such as the one that the tree was filled from, whose other files are copied:
        ``config.json``, tokenizer, model card and code, also those in folders within it. The
        metadata of its safetensors is copied, too. Weights of any format, unfinished or hidden
        files, and links to folders are not copied. The copies are made first, and removed if the
        checkpoint cannot be written.
      format: ``"safetensors"``; or ``"orbax"``, with which Orbax writes the tree as it is, as its
        ``StandardCheckpointer`` does. Nothing may be at ``folder`` then. Leaves that are not made
        yet are made first, all together, where ``materialize`` would put them. Arguments about
        names and files (``rules``, ``at``, ``metadata``, ``like``) are refused, and
        ``max_shard_size`` is ignored.
      progress: as for ``materialize``; only the process that writes shows it.

    Raises:
      NotMaterializedError: leaves are not made yet, and ``lazy`` is ``"refuse"``.
      SaveError: leaves are no arrays, or have a dtype that safetensors lacks (all of them are
        named); another process is saving to the folder; there is no folder ``like``, or a different
        file is where one of its files would go; or, with Orbax, something is at ``folder``, or
        Orbax cannot hold a leaf.
      WordError: ``format`` is unknown, or ``progress`` is of the wrong kind.
      FillError: a rule cannot be read backwards.
      CastError: a leaf from a checkpoint has a value that its dtype cannot hold.
      PathError: ``at`` names no subtree.
      WriteError: there is no space or no permission; the checkpoint that was there is unchanged.
      HostsError: the processes are about to save different things.

    Example:
      >>> import tempfile, numpy as np, lazyinit as li
      >>> tree = {"params": {"fc": {"kernel": np.ones((2, 3), "float32")}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     li.save(tree, folder, rules=li.TORCH)
      ...     li.open_checkpoint(folder)["fc.weight"].shape
      (3, 2)
    """
    if lazy not in get_args(Lazy):
        raise errors.SaveError(f"lazy: wanted one of 'refuse', 'make', got {lazy!r}.")
    errors.check_word("format", format, get_args(Format))
    check_progress(progress)
    path, rules = local_path(folder), as_rules(rules)
    if format == "orbax":
        given = {"rules": rules, "at": at, "metadata": metadata, "like": like}
        named = [name for name, value in given.items() if value]
        _save_orbax(tree, path, lazy, named, progress)
        return
    # The first process writes; the others need not reach the folder.
    like = folder_like(like) if like is not None and jax.process_index() == 0 else None
    leaves = [(p, x) for p, x in places(tree) if _is_below(p, at)]
    if not leaves:
        everything = [p.path for p, _ in places(tree)]
        raise errors.PathError(
            f"{at}: wanted at= to be the path of a subtree, but none of the tree's "
            f"{len(everything)} leaves lies below it{errors.nearest(at, everything)}"
            if at
            else "save: wanted a tree with leaves, got one that has none."
        )
    _check(leaves, lazy)
    make = _maker()
    told: dict[str, bool] = {}
    sources = [
        _words(place, leaf)
        if is_typed_key(leaf)
        else (place, _source(place.path, leaf, make, told))
        for place, leaf in leaves
    ]
    carried = {} if like is None else metadata_of(like)
    said = {**carried, **metadata} if metadata is not None else {**_PT, **carried}
    tensors = unmatch(sources, rules=rules, at=at)
    plans = planned(tensors, metadata=said, max_shard_size=max_shard_size)
    beside = [] if like is None else side_files(like, path)
    _check_truth(like, tensors)
    ordered = [source for plan in plans for _, source in plan.tensors]
    names = {id(source): name for plan in plans for name, source in plan.tensors}

    def write(read: Read) -> None:
        with reporting(progress, sum(map(nbytes, ordered))) as tell:
            write_folder(path, plans, watched(tell, names, read), beside=beside)

    if jax.process_count() == 1:
        write(pieces)
        return
    agree.before_saving(
        [(place.path, leaf) for place, leaf in leaves], [t for plan in plans for t in plan.tensors]
    )
    from lazyinit.checkpoint.together import write_together

    on_devices = [(p.path, x.is_spread) for p, x in sources if isinstance(x, DeviceArray)]
    spread = agree.as_first([path for path, is_spread in on_devices if is_spread], call="save")
    told.update((path, path in spread) for path, _ in on_devices)
    write_together(ordered, spread, write)


def _check_truth(like: Path | None, tensors: Mapping[str, Source]) -> None:
    """Raises a ``SaveError`` if the copied ``config.json`` would say that numbers are quantized.

    That would be wrong of plain numbers, which have no scales beside them.
    """
    method = quantization_of(config_of(like)) if like is not None else {}
    if quantizes_weights(method) and not tells_scales(tensors):
        raise errors.SaveError(
            f"like={like}: its config.json says that weights are quantized, by "
            f"{method.get('quant_method')!r:.80}, but the tree has plain numbers, which readers "
            "would then take for quantized ones. Pass a copy of that folder whose config.json has "
            "no quantization_config, or leave like= out."
        )


def _save_orbax(
    tree: Any, path: Path, lazy: Lazy, given: Sequence[str], progress: ProgressLike
) -> None:
    if given:
        raise errors.SaveError(
            f"{', '.join(given)}: wanted no such argument with format='orbax', which writes the "
            "tree as it is. Change the tree before you save it, or write safetensors."
        )
    leaves = [(place.path, leaf) for place, leaf in places(tree)]
    _check(list(places(tree)), lazy)
    check_orbax(path, dict(leaves))
    if jax.process_count() > 1:
        agree.before_saving(leaves, [])
    made = materialize(tree, lambda _, leaf: isinstance(leaf, Thunk))
    total = sum(np.asarray(x).nbytes if np.isscalar(x) else x.nbytes for _, x in leaves)
    with reporting(progress, total) as tell:
        tell("write", str(path), 0)
        write_orbax(path, made)
        tell("write", str(path), total)


def _is_below(place: Place, at: str) -> bool:
    at = slashed(at).strip("/")
    return not at or place.name.startswith(at + "/")


def _check(leaves: Sequence[tuple[Place, Any]], lazy: Lazy) -> None:
    not_made = [
        f"{place.path}: wanted an array or a leaf from a checkpoint, got {leaf!r}, which is not "
        'made yet. Make it with lazyinit.materialize, or let save make it with lazy="make".'
        for place, leaf in leaves
        if isinstance(leaf, LazyParam | OverlapParam | DerivedParam)
    ]
    if not_made and lazy == "refuse":
        raise errors.NotMaterializedError(errors.listing(not_made))
    problems = [problem for place, leaf in leaves if (problem := _problem(place.path, leaf))]
    if problems:
        raise errors.SaveError(errors.listing(problems))


def _problem(path: str, leaf: Any) -> str:
    """Returns why a leaf cannot be saved; ``""`` if it can."""
    if isinstance(leaf, bool | int | float | complex):
        return ""
    if not isinstance(leaf, Thunk | jax.Array | np.ndarray | np.generic):
        return f"{path}: wanted an array, got {type(leaf).__name__}. Leave it out of the tree."
    if compat.is_tracer(leaf):
        return f"{path}: wanted an array with values, got a tracer. Save outside of jax.jit."
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return (
            f"{path}: wanted an array with values, got one that was deleted or donated. Save the "
            "array that took its place."
        )
    return ""


def _words(place: Place, leaf: Any) -> tuple[Place, Source]:
    """Returns the place and the source of a key's words; a lazy key is made at once."""
    end = f"/{KEY_DATA}/{implementation(leaf.dtype)}"
    named = replace(place, path=place.name + end, name=place.name + end, boxed="")
    if isinstance(leaf, StoredParam) and isinstance(leaf.source, KeyData):
        return named, leaf.source.source
    made = materialize({place.path: leaf})[place.path] if isinstance(leaf, Thunk) else leaf
    return named, DeviceArray(place.path, jax.random.key_data(made))


def _source(
    path: str,
    leaf: Any,
    make: Callable[[str, Thunk], DeviceArray],
    told: Mapping[str, bool],
) -> Source:
    """Returns the source of a leaf's values.

    Args:
      path: the path of the leaf.
      leaf: a thunk, an array or a number.
      make: makes a thunk of the given path when its values are read.
      told: the value of ``DeviceArray.is_spread``, by path; it is filled in before arrays are read.
    """
    match leaf:
        case StoredParam():
            same = leaf.source.dtype == leaf.dtype
            return leaf.source if same else AsDtype(leaf.source, leaf.dtype)
        case Thunk():
            return OnDemand(path, leaf, make)
        case jax.Array():
            return DeviceArray(path, leaf, told)
        case _:
            held = HeldTensor(path, np.asarray(leaf))
            native = held.dtype.newbyteorder("=")
            return held if native == held.dtype else AsDtype(held, native)


def _maker() -> Callable[[str, Thunk], DeviceArray]:
    """Returns a function that makes a leaf, and keeps only the last leaf that it made."""
    held: list[tuple[Thunk, DeviceArray]] = []

    def make(path: str, leaf: Thunk) -> DeviceArray:
        if not held or held[0][0] is not leaf:
            held.clear()  # Frees the last leaf before the next one is made.
            held.append((leaf, DeviceArray(path, materialize({path: leaf})[path])))
        return held[0][1]

    return make
