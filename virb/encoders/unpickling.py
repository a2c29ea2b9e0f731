"""Pickles read as data. A pickle is a program that may call anything; here its calls are looked up in a table of inert answers
(``virb.encoders.inert``), and nothing of the file is imported, resolved or run. What is in no table is refused by its name.

Only the parsing of opcodes (``pickletools``) is Python's; no object of the interpreter is reachable from the stack: a global of the file is
a ``Global`` with a name, a call gives tensors, numbers, containers or a ``Record``.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from virb.encoders.inert import NEW, Array, Damaged, Global, Items, Record, Refused, Things, construct, is_known, plain_key

Calls = Mapping[str, Callable[..., Any]]
Storages = Callable[[Any], Any]


def load(file: IO[bytes], storages: Storages | None = None, calls: Calls | None = None) -> Any:
    """The one pickle at the file's position, which is left behind it. ``storages`` answers persistent ids; ``calls``: name -> our function
    for further names that the file may call (it gets inert arguments and must check them). Refused, or Damaged."""
    try:
        return _Reader(storages, calls or {}).read(pickletools.genops(file))
    except (
        IndexError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
        EOFError,
        MemoryError,
        RuntimeError,
    ) as error:
        raise Damaged(f"is not a whole pickle ({type(error).__name__}: {str(error)[:100]})") from error


_MARK = object()


class _Reader:
    """The stack machine. One method per kind of opcode; every call goes through ``_call`` or ``_new``."""

    def __init__(self, storages: Storages | None, calls: Calls) -> None:
        self.storages = storages
        self.calls = calls
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for opcode, argument, _ in opcodes:
            name = opcode.name
            if name == "STOP":
                (answer,) = self.stack
                if answer is _MARK:
                    raise ValueError("a mark is left")
                return answer
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(argument)
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name not in ("PROTO", "FRAME"):
                getattr(self, f"_{name.lower()}", self._unknown(name))(argument)
        raise EOFError("no STOP")

    @staticmethod
    def _unknown(name: str) -> Callable[[Any], None]:
        def refuse(argument: Any) -> None:
            raise Refused(f"the pickle opcode {name}")

        return refuse

    # Stack and memo

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _popped(self) -> list[Any]:
        """Everything above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            if at == 0:
                raise IndexError("no mark")
            at -= 1
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._popped()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _put(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, at: int) -> None:
        self.stack.append(self.memo[at])

    _binget = _long_binget = _get

    # Containers

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._popped()))

    def _tuple1(self, _: Any, count: int = 1) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise IndexError("stack")
        del self.stack[-count:]
        self.stack.append(items)

    def _tuple2(self, _: Any) -> None:
        self._tuple1(_, 2)

    def _tuple3(self, _: Any) -> None:
        self._tuple1(_, 3)

    def _list(self, _: Any) -> None:
        self.stack.append(self._popped())

    def _frozenset(self, _: Any) -> None:
        self.stack.append(Things(self._popped()))

    def _dict(self, _: Any) -> None:
        items = self._popped()
        self.stack.append({})
        self._set(items)

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: Any) -> None:
        self._extend(self._popped())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Record):  # a record that is filled like a list keeps what it was made of
            raise TypeError("append to something that is no list")

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._popped())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = {plain_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Record):
            target.fields.update(pairs)
        else:
            raise TypeError("item of something that is no dictionary")

    # Names, storages, calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self._find(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a global without a name")
        self.stack.append(self._find(module, name))

    def _find(self, module: str, name: str) -> Global:
        found = Global({"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module), name)
        if not (str(found) in self.calls or is_known(found)):
            raise Refused(str(found))
        return found

    def _persid(self, argument: Any) -> None:
        self.stack.append(argument)
        self._binpersid(None)

    def _binpersid(self, _: Any) -> None:
        key = self.stack.pop()
        if self.storages is None:
            raise TypeError("a storage outside a torch file")
        self.stack.append(self.storages(key))

    def _reduce(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(what, arguments))

    def _newobj(self, _: Any) -> None:
        arguments, what = self.stack.pop(), self.stack.pop()
        self.stack.append(self._call(what, arguments))

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._newobj(_)

    def _obj(self, _: Any) -> None:
        what, *arguments = self._popped()
        self.stack.append(self._call(what, tuple(arguments)))

    def _inst(self, argument: str) -> None:
        arguments = tuple(self._popped())
        module, _, name = argument.partition(" ")
        self.stack.append(self._call(self._find(module, name), arguments))

    def _call(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Global):
            raise Refused(f"a call of a {what.kind if isinstance(what, Record) else type(what).__name__}")
        if not isinstance(arguments, tuple):
            raise TypeError("arguments that are no tuple")
        name = str(what)
        if name in self.calls:
            return self.calls[name](*arguments)
        if name in NEW:  # cls, *arguments
            return self._call(arguments[0], arguments[1:])
        return construct(what, arguments)

    def _build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Array):
            self.stack[-1] = target.filled(state)
            for at, value in self.memo.items():
                if value is target:
                    self.memo[at] = self.stack[-1]
        elif isinstance(target, Global):
            raise Refused(f"a change of {target}")
        elif isinstance(target, Record) and target.kind == "numpy.dtype":
            target.fields["order"] = state[1]
        elif isinstance(target, Record):
            for part in state if isinstance(state, tuple) else (state,):  # (__dict__, slots)
                target.fields.update(part if isinstance(part, dict) else {"state": part} if part is not None else {})
        elif isinstance(target, Items | Things):
            target.fields = state
        # a tensor's or parameter's own attributes are of no use here


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": Things}
