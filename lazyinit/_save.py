"""``save``: a tree -> a Hugging Face folder of safetensors files, rules read backwards."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import jax
import numpy as np

from lazyinit import agree, compat, errors
from lazyinit._materialize import materialize
from lazyinit.checkpoint.arrays import DeviceArray
from lazyinit.checkpoint.base import Tensor
from lazyinit.checkpoint.folder import local_path, planned, write_folder
from lazyinit.checkpoint.key_data import KEY_DATA, KeyData, implementation, is_typed_key
from lazyinit.checkpoint.memory import HeldTensor
from lazyinit.checkpoint.views import AsDtype
from lazyinit.derived import DerivedParam
from lazyinit.match.places import Place, places
from lazyinit.match.unmatch import unmatch
from lazyinit.params import (
    Index,
    LazyParam,
    OverlapParam,
    Shape,
    Source,
    StoredParam,
    Thunk,
)
from lazyinit.patterns import slashed
from lazyinit.rules.rule import Rules, as_rules

Lazy: TypeAlias = Literal["refuse", "make"]

_PT = MappingProxyType({"format": "pt"})


@agree.telling
def save(
    tree: Any,
    folder: str | os.PathLike[str],
    *,
    rules: Rules = (),
    at: str = "",
    max_shard_size: int | str = "5GB",
    metadata: Mapping[str, str] = _PT,
    lazy: Lazy = "refuse",
) -> None:
    """Writes the leaves of a tree as safetensors, as Hugging Face's libraries read them.

    One file, ``model.safetensors``, or several and an index. The host holds a piece of one tensor
    at a time: arrays are gathered from their shards by pieces, stored leaves go from file to file.
    A reader of the folder finds the old checkpoint or the new one at every instant, also if the
    process is killed; other files in the folder stay. With several processes all of them must
    call this, and the first one writes.

    Args:
      tree: any pytree of arrays, numbers and thunks.
      folder: where to; is made if it is not there.
      rules: as for ``fill``, with which it would be read: read backwards, they give names and
        layouts. Without a rule a tensor goes by the path of its leaf.
      at: as for ``fill``: only the subtree there is saved.
      max_shard_size: bytes of values in one file: a number, or text such as ``"5GB"`` (five
        billion) or ``"512MiB"``. A tensor that is larger has a file of its own.
      metadata: what the files say beside the tensors, text by text. transformers wants a
        ``"format"``, and ``"pt"`` stands for PyTorch's names and layouts.
      lazy: what to do with leaves that are not made yet: ``"refuse"``, or ``"make"`` them one by
        one, on the default device, and let each go once it is written.

    Raises:
      NotMaterializedError: leaves are not made yet, and ``lazy`` does not say to make them.
      SaveError: a leaf that is no array, a dtype that safetensors has not, a folder in which
        another process is saving; all problems with leaves at once.
      FillError: a rule cannot be read backwards.
      PathError: ``at`` names no subtree.
      WriteError: no space, no permission; the checkpoint that was there still is.
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
    path, rules = local_path(folder), as_rules(rules)
    leaves = [(p, x) for p, x in places(tree) if _is_below(p, at)]
    if not leaves:
        everything = [p.path for p, _ in places(tree)]
        raise errors.PathError(
            f"{at}: at= wants a subtree of the tree, which has {len(everything)} leaves and none "
            f"there{errors.nearest(at, everything)}"
            if at
            else "save: wanted a tree with leaves, got one that has none."
        )
    _check(leaves, lazy)
    make = _maker()
    sources = [
        _words(place, leaf) if is_typed_key(leaf) else (place, _source(place.path, leaf, make))
        for place, leaf in leaves
    ]
    plans = planned(
        unmatch(sources, rules=rules, at=at), metadata=metadata, max_shard_size=max_shard_size
    )
    if jax.process_count() == 1:
        write_folder(path, plans)
        return
    agree.before_saving(
        [(place.path, leaf) for place, leaf in leaves], [t for plan in plans for t in plan.tensors]
    )
    from lazyinit.checkpoint.together import write_together

    spread = {p.path for p, x in sources if isinstance(x, DeviceArray) and x.is_spread}
    ordered = [source for plan in plans for _, source in plan.tensors]
    write_together(ordered, spread, lambda read: write_folder(path, plans, read))


def _is_below(place: Place, at: str) -> bool:
    at = slashed(at).strip("/")
    return not at or place.name.startswith(at + "/")


def _check(leaves: Sequence[tuple[Place, Any]], lazy: Lazy) -> None:
    not_made = [
        f"{place.path}: wanted an array or a leaf from a checkpoint, got {leaf!r}, which is not "
        'made yet. Make it with lazyinit.materialize, or one by one with lazy="make".'
        for place, leaf in leaves
        if isinstance(leaf, LazyParam | OverlapParam | DerivedParam)
    ]
    if not_made and lazy == "refuse":
        raise errors.NotMaterializedError(errors.listing(not_made))
    problems = [problem for place, leaf in leaves if (problem := _problem(place.path, leaf))]
    if problems:
        raise errors.SaveError(errors.listing(problems))


def _problem(path: str, leaf: Any) -> str:
    if isinstance(leaf, bool | int | float | complex):
        return ""
    if not isinstance(leaf, Thunk | jax.Array | np.ndarray | np.generic):
        return f"{path}: wanted an array, got {type(leaf).__name__}. Leave it out of the tree."
    if compat.is_tracer(leaf):
        return f"{path}: wanted an array with values, got a tracer. Save outside of jax.jit."
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return f"{path}: wanted an array with values, got one that was deleted or donated."
    return ""


def _words(place: Place, leaf: Any) -> tuple[Place, Source]:
    """Returns where the words of a key go, and what they are: a few bytes, made at once."""
    end = f"/{KEY_DATA}/{implementation(leaf.dtype)}"
    named = replace(place, path=place.name + end, name=place.name + end, boxed="")
    if isinstance(leaf, StoredParam) and isinstance(leaf.source, KeyData):
        return named, leaf.source.source
    made = materialize({place.path: leaf})[place.path] if isinstance(leaf, Thunk) else leaf
    return named, DeviceArray(place.path, jax.random.key_data(made))


def _source(path: str, leaf: Any, make: Callable[[str, Thunk], DeviceArray]) -> Source:
    match leaf:
        case StoredParam():
            same = leaf.source.dtype == leaf.dtype
            return leaf.source if same else AsDtype(leaf.source, leaf.dtype)
        case Thunk():
            return OnDemand(path, leaf, make)
        case jax.Array():
            return DeviceArray(path, leaf)
        case _:
            held = HeldTensor(path, np.asarray(leaf))
            native = held.dtype.newbyteorder("=")
            return held if native == held.dtype else AsDtype(held, native)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class OnDemand(Tensor):
    """A ``Source``: a leaf that is made when it is read.

    Attributes:
      name: the path of the leaf.
      leaf: a thunk of any kind.
      make: makes it; one for all leaves that are read one after the other.
    """

    name: str
    leaf: Thunk
    make: Callable[[str, Thunk], DeviceArray]

    @property
    def shape(self) -> Shape:
        """The leaf's shape."""
        return self.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        """The leaf's dtype."""
        return self.leaf.dtype

    @property
    def origin(self) -> str:
        """A word for the tree."""
        return "the tree"

    def read(self, index: Index) -> np.ndarray:
        """Returns the values at ``index``, of the leaf once made."""
        return self.make(self.name, self.leaf).read(index)

    def check(self) -> None:
        """Does nothing: making it says what is wrong."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OnDemand) and other.leaf is self.leaf

    def __hash__(self) -> int:
        return id(self.leaf)


def _maker() -> Callable[[str, Thunk], DeviceArray]:
    """Returns a function that makes a leaf, and holds the last one that it was asked for."""
    held: list[tuple[Thunk, DeviceArray]] = []

    def make(path: str, leaf: Thunk) -> DeviceArray:
        if not held or held[0][0] is not leaf:
            held.clear()  # Before the next one is made.
            held.append((leaf, DeviceArray(path, materialize({path: leaf})[path])))
        return held[0][1]

    return make
