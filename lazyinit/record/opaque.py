"""Refuses objects that JAX cannot look into and that hold a traced value.

A tracer that leaves the recording in such an object fails later, in the user's code. JAX refuses
every object that is not an array, but here an object without a traced value passes as it is. A
traced value that depends on no key and no shape is replaced by its value, as in eager JAX, if it is
in something that can be changed: an attribute, a closure, a dict, a list.

The search is limited, because an object of a user may hold a vocabulary, a Python module or a
device. It goes into attributes, slots, built-in containers, arrays of objects, and the closures,
defaults and bound objects of functions. It goes four levels deep, and six into what a pytree holds
beside its leaves. It leaves out classes, Python modules, weak references, iterators and mappings
that are computed, because reading these runs other people's code.
"""

import collections
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import numpy as np

from lazyinit import compat, errors, paths

_DEPTH = 4  # How many objects, containers and functions within each other are searched.
_DEPTH_OF_STATICS = 6  # Two more levels, because static metadata lies in tuples of tuples.
_CLOSED = (
    str, bytes, bool, int, float, complex, type(None), type, types.ModuleType, compat.EagerSteps,
)  # fmt: skip
_BUILT_IN = (dict, list, tuple, type(None))  # Pytrees that hold only keys beside their leaves.
_ROOT = "what is returned"
_SEQUENCES = (list, tuple, set, frozenset, collections.deque)
_WITHOUT_ATTRIBUTES = frozenset([dict, *_SEQUENCES, types.MappingProxyType, types.MethodType])


def _never(_: Any) -> bool:
    return False


def refuse_tracers(
    objects: Iterable[tuple[str, Any]],
    path_of: Callable[[str, Any], str] = lambda name, _: name,
    passes: Callable[[Any], bool] = _never,
) -> None:
    """Raises an error if an object holds a traced value of the recording that is under way.

    Args:
      objects: the results that are not arrays, with the path or name of each. The caller keeps
        them alive.
      path_of: maps a name and its object to a path; it is called for a refused object only.
      passes: tells of an object whether it is left out; the caller then looks after what it holds.

    Raises:
      RecordError: an object holds a traced value.
    """
    clean: set[int] = set()  # Layers share functions and settings, which are searched once.
    for name, x in objects:
        if id(x) in clean:
            continue
        clean.add(id(x))
        where = _find(x, _DEPTH, set(), passes)
        if where:
            raise errors.RecordError(
                f"{path_of(name, x) or _ROOT}: wanted an array or a pytree of them, got a "
                f"{type(x).__name__} that holds an array in {where}, which JAX cannot look into. "
                "Register the class as a pytree (jax.tree_util.register_dataclass), or return its "
                "arrays."
            )


def refuse_tracers_in_statics(tree: Any, own_keys: int) -> None:
    """Raises an error if a pytree holds a traced value of this recording beside its leaves.

    Args:
      tree: any pytree.
      own_keys: how many entries at the start of each path are the recorder's, not the model's.

    Raises:
      RecordError: static metadata holds a traced value.
    """
    stack: list[tuple[Any, tuple[int, ...]]] = [(jax.tree.structure(tree), ())]
    while stack:
        structure, indices = stack.pop()
        if data := structure.node_data():
            kind, static = data
            if kind not in _BUILT_IN and (where := _find(static, _DEPTH_OF_STATICS, set(), _never)):
                raise errors.RecordError(
                    f"{_path_at(tree, indices, own_keys)}: wanted arrays as leaves, got a "
                    f"{kind.__name__} that holds one in what JAX takes as static ({where}). Make "
                    "that field one of its data, or keep no array there."
                )
        children = enumerate(structure.children())
        stack += [(child, (*indices, n)) for n, child in children]


def _path_at(node: Any, indices: Iterable[int], own_keys: int) -> str:
    keys: list[Any] = []
    for n in indices:
        level, _ = jax.tree_util.tree_flatten_with_path(
            node, is_leaf=lambda x, at=node: x is not at
        )
        is_within = paths.is_variable(node)
        ((key,), node) = level[n]
        keys += [] if is_within else [key]
    return paths.path_string(keys[own_keys:]) or _ROOT


def _find(x: Any, depth: int, seen: set[int], passes: Callable[[Any], bool]) -> str:
    """Returns where an object holds a traced value, or ``""``; replaces constants by values."""
    if depth == 0 or isinstance(x, _CLOSED) or id(x) in seen or isinstance(x, jax.Array):
        return ""
    seen.add(id(x))
    if passes(x):
        return ""
    for name, part, put in _parts(x):
        if type(part) in _CLOSED:  # Most parts are, and this check is fast.
            continue
        if isinstance(part, compat.TracedValue) and part.is_current():
            if put is None or not part.is_constant():
                return name
            put(part.computed())
            continue
        inner = _find(part, depth - 1, seen, passes)
        if inner:
            return name + inner
    return ""


_Part: TypeAlias = tuple[str, Any, Callable[[Any], Any] | None]
"""The name of a part of an object, the part, and a function that replaces it, if there is one."""


def _parts(x: Any) -> Iterator[_Part]:
    match x:
        case dict():
            yield from _entries("[{!r}]", x)
        case types.MappingProxyType():
            yield from ((f"[{key!r}]", value, None) for key, value in x.items())
        case np.ndarray() | np.generic():
            if x.dtype == object:
                yield from ((f"[{n}]", value, None) for n, value in enumerate(np.ravel(x)))
        case list():
            for n, value in enumerate(x):
                yield f"[{n}]", value, functools.partial(list.__setitem__, x, n)
        case _ if isinstance(x, _SEQUENCES):
            yield from ((f"[{n}]", value, None) for n, value in enumerate(x))
        case types.FunctionType():
            yield from _parts_of_function(x)
        case types.MethodType():
            yield from ((".__self__", x.__self__, None), (".__func__", x.__func__, None))
        case functools.partial():
            parts = (".func", x.func), (".args", x.args), (".keywords", x.keywords)
            yield from ((name, part, None) for name, part in parts)
    if type(x) not in _WITHOUT_ATTRIBUTES:
        yield from _attributes(x)


def _entries(name: str, x: dict[Any, Any]) -> Iterator[_Part]:
    for key, value in dict.items(x):
        yield name.format(key), value, functools.partial(dict.__setitem__, x, key)


def _parts_of_function(x: types.FunctionType) -> Iterator[_Part]:
    for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents, functools.partial(setattr, cell, "cell_contents")
        except ValueError:  # A variable that was never set.
            continue
    yield ".__defaults__", x.__defaults__, None
    yield ".__kwdefaults__", x.__kwdefaults__, None


def _attributes(x: Any) -> Iterator[_Part]:
    """Yields the attributes and slots of an object, and runs no property or other code of it."""
    try:
        fields = object.__getattribute__(x, "__dict__")
    except AttributeError:
        fields = {}
    if isinstance(fields, dict):
        yield from _entries(".{}", fields)
    for cls in type(x).__mro__:
        if "__slots__" in vars(cls):
            for name, member in vars(cls).items():
                if isinstance(member, types.MemberDescriptorType):
                    try:
                        yield f".{name}", member.__get__(x), functools.partial(member.__set__, x)
                    except AttributeError:  # A slot that was never set.
                        continue
