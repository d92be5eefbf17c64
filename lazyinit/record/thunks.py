"""What every recorder shares: trace an initialization, and put a thunk where each array was."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax

from lazyinit import compat, errors, paths, program
from lazyinit.params import Key, LazyParam, RngPath, Thunk, label
from lazyinit.slices import Slice

Shapes: TypeAlias = Sequence[tuple[str, jax.ShapeDtypeStruct]]


@dataclass(frozen=True, slots=True)
class Note:
    """What was seen of one parameter while its initializer ran under the trace.

    Attributes:
      init_fn: the initializer.
      stream: the root stream of its key.
      folded: what is folded into that.
      fold: the 32-bit value that stands for ``folded``.
      key: the key that it was given, traced.
      value: what it returned (any pytree), traced.
    """

    init_fn: Callable[..., Any]
    stream: str
    folded: tuple[str | int, ...]
    fold: int
    key: Any
    value: Any


def split_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], Shapes]:
    """Parts the arguments of an initialization (any pytrees) in values and mere shapes.

    Returns:
      A function that takes stand-ins for the shapes and returns ``(args, kwargs)`` with these in
      place, and the name and shape of each. Arrays that have values are left where they are.
    """
    leaves = jax.tree_util.tree_leaves_with_path((args, kwargs))
    shapes = {
        n: (_argument(path), jax.ShapeDtypeStruct(x.shape, x.dtype))
        for n, (path, x) in enumerate(leaves)
        if isinstance(x, jax.ShapeDtypeStruct | Thunk)
    }

    def join(stand_ins: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = [x for _, x in leaves]
        for n, stand_in in zip(shapes, stand_ins, strict=True):
            values[n] = stand_in
        return paths.replace_leaves((args, kwargs), values)

    return join, list(shapes.values())


def _argument(key_path: tuple[Any, ...]) -> str:
    _, *rest = paths.path_string(key_path).split("/")
    return f"argument {'/'.join(rest)}"


def record(
    init: Callable[[Mapping[str, Any], Sequence[Any]], tuple[Any, Sequence[Note]]],
    keys: Mapping[str, Key],
    shapes: Shapes,
    where: str,
) -> Any:
    """Traces an initialization and returns its tree with a ``LazyParam`` for each array.

    Args:
      init: takes root keys by stream and stand-ins for ``shapes``, and returns the tree (any
        pytree) and what was noted of its parameters.
      keys: the root keys.
      shapes: name and shape of each input that has no value.
      where: what is being recorded, for messages.

    Raises:
      RecordError: ``init`` needs a value that is not known while tracing.
    """
    tree: Any = None
    notes: list[tuple[Note, int]] = []

    def flat(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> list[Any]:
        nonlocal tree
        made, noted = init(keys, stand_ins)
        leaves = jax.tree.leaves(made)
        traced = [x for x in leaves if compat.is_tracer(x)]
        # No tracer may outlive the trace: its place in what is returned stands for it.
        place = iter(range(len(traced)))
        tree = paths.replace_leaves(
            made, [_Place(next(place)) if compat.is_tracer(x) else x for x in leaves]
        )
        returned = list(traced)
        for note in noted:
            values = [x for x in jax.tree.leaves(note.value) if compat.is_tracer(x)]
            bare = Note(note.init_fn, note.stream, note.folded, note.fold, None, None)
            notes.append((bare, len(values)))
            returned += [note.key, *values]
        return returned

    try:
        recorded, values = program.trace(flat, keys, shapes)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise errors.RecordError(
            f"{where}: the model's Python code wants the value of an array, and recording knows "
            "shapes alone. Pass flags and sizes as Python values or numpy arrays, and let no "
            f"initializer or branch look at a computed array.\n{error}"
        ) from error
    return _with_thunks(tree, recorded, values, notes, keys)


@dataclass(frozen=True, slots=True)
class _Place:
    number: int


def _with_thunks(
    tree: Any,
    recorded: program.Program,
    values: Sequence[program.Value],
    notes: Sequence[tuple[Note, int]],
    keys: Mapping[str, Key],
) -> Any:
    leaves = paths.leaves_with_paths(tree)
    rest = iter(values[sum(isinstance(x, _Place) for _, x in leaves) :])
    noted: dict[program.Value, tuple[Note, program.Value]] = {}
    for note, count in notes:
        key = next(rest)
        noted |= {next(rest): (note, key) for _ in range(count)}
    made: dict[program.Value, LazyParam] = {}  # A value at two places is one thunk.
    thunks = []
    for path, leaf in leaves:
        if not isinstance(leaf, _Place):
            thunks.append(leaf)
            continue
        value = values[leaf.number]
        if value not in made:
            made[value] = _thunk(recorded, value, noted.get(value), keys, path)
        thunks.append(made[value])
    return paths.replace_leaves(tree, thunks)


def _thunk(
    recorded: program.Program,
    value: program.Value,
    noted: tuple[Note, program.Value] | None,
    keys: Mapping[str, Key],
    path: str,
) -> LazyParam:
    aval = recorded.avals[value]
    name = ""
    if noted is not None:
        note, key = noted
        name = label(note.init_fn)
        if recorded.made_from(value, key):
            init_fn = Slice(recorded, value, key, name)
            rng_path = RngPath({note.stream: keys[note.stream]}, note.folded, note.fold)
            return LazyParam(
                aval.shape, aval.dtype, init_fn, rng_path, weak_type=aval.weak_type, path=path
            )
    init_fn = Slice(recorded, value, label=name or recorded.name_of(value))
    rng_path = RngPath({stream: keys[stream] for stream in sorted(recorded.streams_of(value))})
    weak_type = getattr(aval, "weak_type", False)
    return LazyParam(aval.shape, aval.dtype, init_fn, rng_path, weak_type=weak_type, path=path)
