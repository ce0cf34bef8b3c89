"""A machine that reads pickles and runs nothing of them.

A pickle is a program. Its instructions are interpreted here, without a way to import or to call: a name stands for one of the
readers that the machine was given, or for nothing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

from fedstill.errors import printable

__all__ = ["Bytes", "Foreign", "Machine", "Reader", "Shell", "Unexpected", "demand"]

_MOST_INSTRUCTIONS = 2_000_000  # a network's takes some hundred thousand; each may make an object
_PROTOCOLS = (2, 3, 4)  # storages are of the first


class Unexpected(Exception):
    """Why a file is refused."""


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unexpected(otherwise)


class Bytes(Protocol):
    """What a pickle is read from. It gives no more than there is, however much is asked for."""

    def read(self, count: int, /) -> bytes: ...

    def readline(self) -> bytes: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class Reader:
    """What a name stands for: a function from arguments to a value; None: the name itself is all that is needed."""

    name: str
    read: Callable[..., Any] | None = None


@dataclass
class Foreign:
    """An object of a library, passed over."""

    name: str


@dataclass
class Shell:
    """A value whose content follows its making: a numpy array or type, a torch module."""

    kind: str
    fill: Callable[[Shell, Any], Any]
    value: Any = None


@dataclass
class Machine:
    """Pickle's stack machine over one pickle of ``stream``, which is left where that ends.

    Attributes:
        stream: the bytes.
        names: readers of the names that are known.
        passes_over: how names begin whose objects are passed over, as :class:`Foreign`.
        persistent: reader of what a pickle refers to outside itself; None: it may not.
    """

    stream: Bytes
    names: Mapping[tuple[str, str], Reader]
    passes_over: tuple[str, ...] = ()
    persistent: Callable[[Any], Any] | None = None
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """The pickle's value.

        Raises:
            Unexpected: it names something unknown, or does what no network's pickle does.
            ValueError, IndexError, KeyError, TypeError, AttributeError: it is no sound pickle.
        """
        for number, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], self.stream))):
            demand(number < _MOST_INSTRUCTIONS, f"it has more than {_MOST_INSTRUCTIONS} instructions")
            name = opcode.name
            if name == "STOP":
                demand(len(self.stack) == 1 and not self.marks, "its stack does not add up")
                return self.stack.pop()
            if name in _VALUES:
                self.stack.append(_VALUES[name] if argument is None else argument)
            elif name in _PUTS:
                self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]
            elif name in _GETS:
                self.stack.append(self.memo[int(str(argument))])
            elif name in _STEPS:
                _STEPS[name](self, argument)
            else:
                raise Unexpected(f"it uses the instruction {name}, which such files do not")
        raise ValueError("no end")

    def pop(self) -> Any:
        demand(not self.marks or len(self.stack) > self.marks[-1], "its stack does not add up")
        return self.stack.pop()

    def above_mark(self) -> list[Any]:
        first = self.marks.pop()
        taken = self.stack[first:]
        del self.stack[first:]
        return taken

    def find(self, module: Any, name: Any) -> Reader | Foreign:
        demand(isinstance(module, str) and isinstance(name, str), "it names something without a text")
        found = self.names.get((module, name))
        if found is not None:
            return found
        text = f"{module}.{name}"
        if text.startswith(self.passes_over):
            return Foreign(text)
        raise Unexpected(f"it names {printable(text, 80)}, which is not on the list of what such files hold")

    def call(self, made_by: Any, arguments: Any) -> Any:
        demand(isinstance(arguments, tuple), "it calls something without arguments")
        if isinstance(made_by, Foreign):
            return Foreign(made_by.name)
        demand(isinstance(made_by, Reader) and made_by.read is not None, "it calls what cannot be called")
        return made_by.read(*arguments)


def _build(machine: Machine, _: Any) -> None:
    state, top = machine.pop(), machine.stack[-1]
    if isinstance(top, Shell):
        top.value = top.fill(top, state)
    else:
        # an ordered dictionary's own attributes say nothing; a foreign object is not looked at
        demand(isinstance(top, dict | Foreign), f"it gives a state to a {type(top).__name__}")


def _set_items(machine: Machine, pairs: list[Any]) -> None:
    top = machine.stack[-1]
    if isinstance(top, Foreign):
        return
    demand(isinstance(top, dict) and len(pairs) % 2 == 0, "it fills something that is no dictionary")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        demand(isinstance(key, str | int), "a key is neither text nor number")
        top[key] = value


def _extend(machine: Machine, values: list[Any]) -> None:
    top = machine.stack[-1]
    if isinstance(top, Foreign):
        return
    demand(isinstance(top, list), "it appends to something that is no list")
    top.extend(values)


def _add(machine: Machine, values: list[Any]) -> None:
    top = machine.stack[-1]
    demand(isinstance(top, set) and all(isinstance(each, str | int) for each in values), "a set holds more than names")
    top.update(values)


def _tuple(count: int) -> Callable[[Machine, Any], None]:
    def step(machine: Machine, _: Any) -> None:
        machine.stack.append(tuple(reversed([machine.pop() for _ in range(count)])))

    return step


def _reduce(machine: Machine, _: Any) -> None:
    arguments, made_by = machine.pop(), machine.pop()
    machine.stack.append(machine.call(made_by, arguments))


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.stack.append(machine.find(module, name))


def _persistent(machine: Machine, _: Any) -> None:
    if machine.persistent is None:
        raise Unexpected("it refers to something outside itself")
    machine.stack.append(machine.persistent(machine.pop()))


def _protocol(machine: Machine, number: int) -> None:
    demand(number in _PROTOCOLS, f"it is of pickle protocol {number}, not {' or '.join(map(str, _PROTOCOLS))}")


_VALUES: Mapping[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")),
}
_PUTS = ("BINPUT", "LONG_BINPUT", "MEMOIZE")
_GETS = ("BINGET", "LONG_BINGET")
_STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, size: None,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP_MARK": lambda machine, _: machine.above_mark().clear(),
    "POP": lambda machine, _: machine.pop(),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "EMPTY_TUPLE": _tuple(0),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.above_mark())),
    "APPEND": lambda machine, _: _extend(machine, [machine.pop()]),
    "APPENDS": lambda machine, _: _extend(machine, machine.above_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, [machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.above_mark()),
    "ADDITEMS": lambda machine, _: _add(machine, machine.above_mark()),
    "GLOBAL": lambda machine, text: machine.stack.append(machine.find(*text.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
