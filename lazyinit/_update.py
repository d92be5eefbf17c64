"""The verb ``update``: replaces the arrays of a model by those of a checkpoint.

A model that serves or trains gets the weights of another step. Its arrays tell everything that
``fill`` and ``materialize`` need: shapes, dtypes and shardings. A few arrays are read at a time,
and the old ones are freed as soon as the new ones are there, so that memory never holds a second
model.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from lazyinit import agree, errors
from lazyinit import paths as tree_paths
from lazyinit._abstract import abstract
from lazyinit._fill import fill
from lazyinit._materialize import materialize
from lazyinit.checkpoint import open_checkpoint
from lazyinit.derived import origins
from lazyinit.make.read import check_values
from lazyinit.match.policies import OnCast, OnMismatch, OnMissing, OnUnexpected
from lazyinit.match.report import Report
from lazyinit.params import Thunk
from lazyinit.progress import Progress, ProgressLike, Tell, check_progress, reporting
from lazyinit.record.function import nnx_modules
from lazyinit.rules.rule import Rules
from lazyinit.tensors.memory import HeldTensor

TOGETHER = 2**28  # Bytes of leaves that are read together, before the old arrays are freed.


@agree.telling
def update(
    model: Any,
    checkpoint: str | os.PathLike[str] | Mapping[Any, Any],
    rules: Rules = (),
    *,
    at: str = "",
    on_missing: OnMissing = "warn",
    on_unexpected: OnUnexpected = "report",
    on_mismatch: OnMismatch = "error",
    on_cast: OnCast = "report",
    donate: bool = True,
    progress: ProgressLike = False,
) -> tuple[Any, Report]:
    """Reads new arrays for a model or a tree, each with the sharding of the array that it replaces.

    Names, shapes, dtypes and policies are checked first. Then arrays are read and replaced, a few
    at a time. A leaf that the checkpoint lacks keeps its value.

    Args:
      model: a module of Flax NNX, or several in a plain container, which are changed in place; or
        any pytree with arrays among its leaves (hence ``Any``), which is not changed.
      checkpoint: as for ``fill``; for example a mapping of a trainer's arrays.
      rules: as for ``fill``.
      at: as for ``fill``.
      on_missing: as for ``fill``. ``"warn"`` and ``"init"`` leave the leaf as it is.
      on_unexpected: as for ``fill``.
      on_mismatch: as for ``fill``. ``"init"`` leaves the leaf as it is.
      on_cast: as for ``fill``. If the dtype of a leaf has a smaller range than that of its tensor,
        the tensor is read twice: the first time to see whether the dtype can hold all its values.
      donate: whether each old array is deleted as soon as its new one is there, as
        ``jax.jit(donate_argnums=...)`` does: code that still holds the old array cannot use it any
        more. An array is kept if it is also in the checkpoint, or stays elsewhere in the tree.
      progress: as for ``materialize``. An error that a callback raises becomes an ``UpdateError``.

    Returns:
      The model, or the tree with the new arrays in the same containers; and the report of ``fill``.

    Raises:
      LazyinitError: any error of ``fill``; a ``CastError`` for a value that its leaf cannot hold;
        a ``HostsError`` if other processes are about to read something else. Nothing has changed.
      UpdateError: reading failed half-way. Each leaf of the error's ``tree``, and of an NNX model,
        is either the new array or the old one. Call ``update`` again, or go on with that tree.

    Example:
      >>> import jax.numpy as jnp, numpy as np, lazyinit as li
      >>> state = {"kernel": jnp.zeros(2), "bias": jnp.zeros(1)}
      >>> state, report = li.update(state, {"kernel": np.ones(2)}, on_missing="init")
      >>> state["kernel"], report.missing
      (Array([1., 1.], dtype=float32), ('bias',))
    """
    check_progress(progress)
    modules = nnx_modules()
    graphdef, tree = (None, model) if modules is None else modules.split(model)
    opened = open_checkpoint(checkpoint)
    filled, report = fill(
        abstract(tree),
        opened,
        rules,
        at=at,
        on_missing=on_missing,
        on_unexpected=on_unexpected,
        on_mismatch=on_mismatch,
        on_cast=on_cast,
    )
    leaves = [leaf for _, leaf in tree_paths.leaves_with_paths(tree)]
    now = list(leaves)
    asked = [
        (n, path, leaf)
        for n, (path, leaf) in enumerate(tree_paths.leaves_with_paths(filled))
        if isinstance(leaf, Thunk)
    ]
    for source in (source for _, _, leaf in asked for source in origins(leaf)[0]):
        source.check()
    check_values((path, leaf) for _, path, leaf in asked)
    agree.before_making(
        [(path, leaf) for _, path, leaf in asked],
        [True] * len(asked),
        [leaf.sharding for _, _, leaf in asked],
        [leaf.dtype for _, _, leaf in asked],
        call="update",
    )
    kept = [tensor.array for tensor in opened.values() if isinstance(tensor, HeldTensor)]
    held = Counter(map(id, (*now, *kept)))  # How many leaves and tensors still need each array.

    def as_it_is() -> Any:
        return tree_paths.replace_leaves(tree, now)

    total = sum(leaf.nbytes for *_, leaf in asked)
    try:
        with reporting(progress, total) as tell:
            for group in _groups(asked):
                made = materialize(
                    {path: leaf for _, path, leaf in group}, progress=_passed_on(tell)
                )
                for n, path, _ in group:
                    old, now[n] = now[n], made[path]
                    held[id(old)] -= 1
                    if donate and isinstance(old, jax.Array) and not held[id(old)]:
                        old.delete()
    except Exception as error:
        done = sum(now[n] is not old for n, old in enumerate(leaves))
        raise errors.UpdateError(
            f"{opened.origin}: wanted to read {len(asked)} leaves, got {done}, then: {error}\n"
            "The other leaves are as they were. Call update again, or go on with the tree of this "
            "error.",
            as_it_is(),
        ) from error
    finally:
        if graphdef is not None and modules is not None:
            modules.put(model, as_it_is())
    return (model if graphdef is not None else as_it_is()), report


def _passed_on(tell: Tell) -> Callable[[Progress], None]:
    """Returns a callback that adds the progress of one group of leaves to that of the whole."""
    before = 0

    def add(now: Progress) -> None:
        nonlocal before
        tell(now.action, now.path, now.done_bytes - before)
        before = now.done_bytes

    return add


def _groups(leaves: Sequence[tuple[int, str, Thunk]]) -> Iterator[list[tuple[int, str, Thunk]]]:
    """Yields the leaves in groups; a group ends once it has ``TOGETHER`` bytes or more."""
    group, size = [], 0
    for each in leaves:
        group.append(each)
        size += each[2].nbytes
        if size >= TOGETHER:
            yield group
            group, size = [], 0
    yield group
