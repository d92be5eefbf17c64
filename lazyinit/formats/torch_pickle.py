"""Reads the pickles of PyTorch's files as plain values, and runs nothing that they ask for.

A pickle is a program that calls whatever it names. Here names are never looked up: each stays a
``Name``. A few are known (``rebuilt``), and calls of these become plain descriptions (``pickled``).
A call of any other name becomes a ``Foreign``, a dict of its arguments, so that tensors among them
are found, and no code runs.

Of Python's two interpreters of pickles, the one in C is not used: it believes any index into its
memo, and allocates memory up to it. The one in Python keeps a dict.

Format: https://docs.python.org/3/library/pickletools.html.
"""

import pickle
from typing import Any, NoReturn

from lazyinit.formats.pickled import STORAGES, Array, Dtype, Foreign, Name, Odd, Storage, put
from lazyinit.formats.rebuilt import KNOWN, as_filled

# Modules that nobody's saved values come from: a pickle that calls them wants to run code.
_SYSTEM = frozenset(
    (
        *("os", "posix", "nt", "io", "_io", "subprocess", "sys", "runpy", "importlib", "shutil"),
        *("socket", "pty", "ctypes", "pickle", "marshal"),
    )
)
_RUNNING = frozenset(("eval", "exec", "compile", "__import__", "open", "input", "breakpoint"))


class CodeError(pickle.UnpicklingError):
    """A pickle calls something whose only use is to run code; the text is its name."""


_Interpreter: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]  # See above.


class Reader(_Interpreter):
    """Reads one pickle; ``load`` returns dicts, lists, tuples, numbers, text and descriptions.

    Attributes:
      asked: the first unknown name that the pickle called, or ``None``.
      storages: the storages that the pickle names, by their keys.
    """

    def __init__(self, file: Any) -> None:  # Any: has read(size) and readline().
        """Starts at the current position of the file."""
        super().__init__(file, encoding="utf-8", errors="replace")
        self.asked: Name | None = None
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Returns a ``Name`` for a class or function of the pickle, and imports nothing."""
        return Name(module, name)

    def persistent_load(self, pid: Any) -> Storage | Name:
        """Returns the storage, or in old files the class, that PyTorch writes as this ``pid``."""
        if pid[0] == "module" and isinstance(pid[1], Name):
            return pid[1]
        kind, held, key, _, count, *view = pid
        is_known = isinstance(held, Name) and held.name in STORAGES
        if kind != "storage" or not is_known or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("a storage is described in another way than PyTorch does")
        if any(part is not None for part in view):
            raise pickle.UnpicklingError("a storage is a view of another, as before PyTorch 0.4")
        return self.storages.setdefault(key, Storage(key, STORAGES[held.name], count))

    def _call(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError(f"arguments are {type(args).__name__}")
        if not isinstance(function, Name):
            return Foreign(None, args)
        made = KNOWN.get((function.module, function.name))
        if made is not None:
            return made(args)
        if function.module == "torch._utils" and function.name.startswith("_rebuild"):
            return Odd(
                f"wanted a dense tensor, got what {function.name} makes, such as a sparse, a "
                "quantized or a nested one. Save tensor.to_dense() or tensor.dequantize()."
            )
        is_builtin = function.module in ("builtins", "__builtin__")
        if function.module.partition(".")[0] in _SYSTEM or (
            is_builtin and function.name in _RUNNING
        ):
            raise CodeError(str(function))
        self.asked = self.asked or function
        return Foreign(function, args)

    def _load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_new(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def _load_new_named(self) -> None:
        named, args, made = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.append(self._call(made, (*args, named)))

    def _load_inst(self) -> None:
        module, name = (self.readline()[:-1].decode("utf-8", "replace") for _ in range(2))
        args = tuple(self.pop_mark())  # This replaces self.append, so it comes first.
        self.append(self._call(Name(module, name), args))

    def _load_obj(self) -> None:
        function, *args = self.pop_mark()
        self.append(self._call(function, tuple(args)))

    def _load_build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if isinstance(made, Dtype):
            made.order = str(state[1])
        elif isinstance(made, Array):
            made.made = as_filled(state)
        elif isinstance(made, Foreign):
            # Attributes, and where a class has slots, two dicts of them.
            parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
            is_plain = all(isinstance(part, dict | None) for part in parts)
            for part in parts if is_plain else ({"state": state},):
                made.update(part or {})

    def _load_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        put(self.stack[-1], ((key, value),))

    def _load_items(self) -> None:
        items = self.pop_mark()
        put(self.stack[-1], zip(items[::2], items[1::2], strict=True))

    def _load_dict(self) -> None:
        items = self.pop_mark()
        self.append(put({}, zip(items[::2], items[1::2], strict=True)))

    def _load_set(self) -> None:
        self.append([])

    def _load_frozen_set(self) -> None:
        items = self.pop_mark()
        self.append(items)

    def _load_set_items(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def _load_bytes(self) -> None:
        # Python's own method would allocate all that the pickle promises before it reads.
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _load_extension(self) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an extension")

    dispatch: Any = {  # noqa: RUF012  # As in the class that it is from.
        **_Interpreter.dispatch,
        pickle.REDUCE[0]: _load_reduce,
        pickle.NEWOBJ[0]: _load_new,
        pickle.NEWOBJ_EX[0]: _load_new_named,
        pickle.INST[0]: _load_inst,
        pickle.OBJ[0]: _load_obj,
        pickle.BUILD[0]: _load_build,
        pickle.SETITEM[0]: _load_item,
        pickle.SETITEMS[0]: _load_items,
        pickle.DICT[0]: _load_dict,
        pickle.EMPTY_SET[0]: _load_set,
        pickle.FROZENSET[0]: _load_frozen_set,
        pickle.ADDITEMS[0]: _load_set_items,
        pickle.BYTEARRAY8[0]: _load_bytes,
        pickle.EXT1[0]: _load_extension,
        pickle.EXT2[0]: _load_extension,
        pickle.EXT4[0]: _load_extension,
    }
