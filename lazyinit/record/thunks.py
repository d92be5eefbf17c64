"""Traces an initialization, and puts a thunk in place of each array, for every recorder."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from lazyinit import compat, errors, meshes, paths
from lazyinit.derived import DerivedParam
from lazyinit.keys import AnyKey, RngPath
from lazyinit.params import LazyParam, Thunk
from lazyinit.program.equations import Program, Value
from lazyinit.program.slices import Slice
from lazyinit.program.small_values import SmallValues
from lazyinit.program.stored import as_stored
from lazyinit.program.tracing import Result, trace
from lazyinit.record.garbage import uncollected
from lazyinit.record.inputs import Inputs
from lazyinit.record.opaque import refuse_tracers, refuse_tracers_in_statics


@dataclass(frozen=True, slots=True)
class Note:
    """What a recorder noted of one parameter while its initializer ran under the trace.

    Attributes:
      label: a name for the initializer. (The initializer itself may hold tracers.)
      stream: the root stream of its key.
      folded: what is folded into the stream's root key.
      fold: the 32-bit value that stands for ``folded``.
      key: the traced key that it was given.
      value: the traced value that it returned (any pytree).
    """

    label: str
    stream: str
    folded: tuple[str | int, ...]
    fold: int
    key: Any
    value: Any


@uncollected()
def record(
    init: Callable[[Mapping[str, Any], Sequence[Any]], tuple[Any, Sequence[Note]]],
    keys: Mapping[str, AnyKey],
    inputs: Inputs,
    where: str,
    *,
    own_keys: int = 0,
) -> Any:
    """Traces an initialization and returns its tree with a thunk for each array.

    Args:
      init: takes root keys by stream and stand-ins for inputs without values, and returns the tree
        (any pytree) and the notes about its parameters.
      keys: the root keys, by stream.
      inputs: the other arguments; the keys among these are root keys, too.
      where: what is being recorded, for messages.
      own_keys: how many entries at the start of each path are the recorder's, not the model's.

    Raises:
      RecordError: ``init`` needs a value that is not known while tracing.
    """
    keys = {**inputs.keys, **keys}
    tree: Any = None
    notes: list[tuple[Note, int]] = []

    def flat(keys: Mapping[str, Any], stand_ins: Sequence[Any]) -> list[Any]:
        nonlocal tree
        notes.clear()  # The trace may call this a second time.
        made, noted = init(keys, stand_ins)
        named = [(_less(own_keys, path), x) for path, x in paths.leaves_with_paths(made)]
        leaves = [x for _, x in named]
        _refuse_references(named)
        refuse_tracers((path, x) for path, x in named if not compat.is_tracer(x))
        refuse_tracers_in_statics(made, own_keys)
        traced = [x for x in leaves if compat.is_tracer(x)]
        # No tracer may outlive the trace, so its position among the results stands for it.
        place = iter(range(len(traced)))
        tree = paths.replace_leaves(
            made, [_Place(next(place)) if compat.is_tracer(x) else x for x in leaves]
        )
        returned = list(traced)
        for note in noted:
            values = [x for x in jax.tree.leaves(note.value) if compat.is_tracer(x)]
            notes.append((replace(note, key=None, value=None), len(values)))
            returned += [note.key, *values]
        return returned

    recorded, results = trace(flat, keys, inputs.shapes, where=where)
    given = dict(zip(recorded.abstract, inputs.passed_on(), strict=True))
    made = {value: leaf for value, leaf in given.items() if isinstance(leaf, Thunk)}
    # This computes a few counts, which would go to all devices of a mesh that is set.
    return meshes.outside(
        lambda: _with_thunks(tree, recorded, results, notes, keys, made, own_keys)
    )


def _refuse_references(leaves: Sequence[tuple[str, Any]]) -> None:
    for path, leaf in leaves:
        if isinstance(leaf, jax.Ref):
            raise errors.RecordError(
                f"{path}: wanted an array, got a mutable one (a jax.Ref), which "
                "cannot be recorded. Return arrays, for NNX by nnx.var_defaults(ref=False)."
            )


def _less(own_keys: int, path: str) -> str:
    return "/".join(path.split("/")[own_keys:])


@dataclass(frozen=True, slots=True)
class _Place:
    number: int


def _with_thunks(
    tree: Any,
    recorded: Program,
    results: Sequence[Result],
    notes: Sequence[tuple[Note, int]],
    keys: Mapping[str, AnyKey],
    made: Mapping[Value, Thunk],
    own_keys: int,
) -> Any:
    leaves = paths.leaves_with_paths(tree)
    rest = (r.value for r in results[sum(isinstance(x, _Place) for _, x in leaves) :])
    noted: dict[Value, tuple[Note, Value]] = {}
    for note, count in notes:
        key = next(rest)
        noted |= {next(rest): (note, key) for _ in range(count)}
    references = [v for v, aval in recorded.avals.items() if compat.is_reference(aval)]
    constants = SmallValues(recorded, {}, {})
    thunks = []
    known: dict[Result, Thunk] = {}  # A value at two places is one thunk.
    for path, leaf in leaves:
        if not isinstance(leaf, _Place):
            thunks.append(leaf)
            continue
        result = results[leaf.number]
        value, where = result.value, _less(own_keys, path)
        if any(recorded.depends(value, reference) for reference in references):
            raise errors.RecordError(
                f"{where}: wanted an array that is computed from arrays, got one that is read from "
                "a mutable array (a jax.Ref), which cannot be recorded. Write to it inside of a "
                "jax.jit, or use x.at[...].set()."
            )
        if value in made:
            thunks.append(made[value])
            continue
        if result not in known:
            met = sorted(recorded.ancestors(value)) if made else ()
            inputs = {v: made[v] for v in met if v in made}
            known[result] = (
                _derived(recorded, result, inputs, keys, where)
                if inputs
                else _thunk(recorded, result, noted.get(value), keys, constants, where)
            )
        thunks.append(known[result])
    return paths.replace_leaves(tree, thunks)


def _derived(
    recorded: Program,
    result: Result,
    inputs: Mapping[Value, Thunk],
    keys: Mapping[str, AnyKey],
    path: str,
) -> Thunk:
    value = result.value
    aval = recorded.avals[value]
    leaf = DerivedParam(
        aval.shape,
        aval.dtype,
        Slice(recorded, value, label=recorded.name_of(value), given=tuple(inputs)),
        tuple(inputs.values()),
        _roots_of(recorded, value, keys),
        weak_type=aval.weak_type,
        sharding=result.placement,
        path=path,
    )
    return as_stored(leaf)


def _thunk(
    recorded: Program,
    result: Result,
    noted: tuple[Note, Value] | None,
    keys: Mapping[str, AnyKey],
    constants: SmallValues,
    path: str,
) -> LazyParam:
    value = result.value
    aval = recorded.avals[value]
    if not hasattr(aval, "shape"):
        raise errors.RecordError(
            f"{path}: wanted an array, got a mutable one ({aval}), which cannot be recorded. "
            "Record the model with nnx.var_defaults(hijax=False)."
        )
    name = (noted and noted[0].label) or recorded.name_of(value)
    if noted and recorded.made_from(value, noted[1]):
        note, key = noted
        rng_path = RngPath({note.stream: keys[note.stream]}, note.folded, note.fold)
    elif fold := None if recorded.is_traced else recorded.fold_of(value):
        root, number, key = fold  # nnx.Rngs makes a key by folding a count into a stream's key.
        stream = recorded.streams[root]
        with jax.ensure_compile_time_eval():  # The caller may be in another trace.
            count = int(constants[number])
        rng_path = RngPath({stream: keys[stream]}, (count,), count)
    else:
        key, rng_path = -1, _roots_of(recorded, value, keys)
    return LazyParam(
        aval.shape,
        aval.dtype,
        Slice(recorded, value, key, name),
        rng_path,
        weak_type=getattr(aval, "weak_type", False),
        sharding=result.placement,
        path=path,
    )


def _roots_of(recorded: Program, value: Value, keys: Mapping[str, AnyKey]) -> RngPath:
    """Returns the root keys that a value depends on, with nothing folded in."""
    return RngPath({stream: keys[stream] for stream in sorted(recorded.streams_of(value))})
