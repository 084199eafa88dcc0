"""Execute the pickles of a torch file: protocols 2 to 5, without imports."""

import mmap
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxnets.weights.torch_objects import Global, Record, fill_array, hashable, named_global
from flaxnets.weights.torch_tensors import Malformed, Refused, Storage, is_index


class Machine:
    """A stack machine with a memo that executes one pickle, file[start:end], without imports.

    The time of an instruction is proportional to its own bytes and to the values that it takes off
    the stack. An instruction that copies a value to which others may refer has to `spend` from a
    budget of twice the pickle's length. So a short file cannot cost much time or memory.
    """

    def __init__(
        self, file: mmap.mmap, start: int, end: int, storage: Callable[..., Storage]
    ) -> None:
        self.file, self.position, self.end = file, start, end
        self.storage = storage
        self.budget = 2 * (end - start)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the object that the pickle describes."""
        while True:
            code = self.take(1)[0]
            if code == STOP:
                return self.stack.pop()
            INSTRUCTIONS[code](self)

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes and step over them."""
        position = self.position + count
        if not 0 <= count <= self.end - self.position:
            raise Malformed("a length reaches beyond the end")
        taken = self.file[self.position : position]
        self.position = position
        return taken

    def number(self, form: str) -> Any:
        """Return the next number, in a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Return the text up to the next line break, which is at most 1000 bytes away."""
        end = self.file.find(b"\n", self.position, min(self.end, self.position + 1000))
        text = self.take(end - self.position)
        self.take(1)
        return text.decode()

    def spend(self, count: int) -> None:
        """Take `count` elements from the budget. Raises Malformed if it is used up."""
        self.budget -= count
        if self.budget < 0:
            raise Malformed("the objects are much larger than their file")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def to_mark(self) -> list[Any]:
        """Take all values off the stack down to the last mark, and return them."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def call(self, function: Any, arguments: tuple) -> Any:
        """Return the result of a known function. Raises Refused for a name that is not called."""
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise Malformed("something else than a function is called")
        if function.call is None:
            raise Refused(function.name)
        return function.call(self, *arguments)

    def mark(self) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def text(self, form: str) -> None:
        self.push(self.take(self.number(form)).decode("utf-8", "surrogatepass"))

    def bytes_or_text(self, form: str) -> None:
        """Push a string of Python 2, which has one type for bytes and text."""
        data = self.take(self.number(form))
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(data)

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise Malformed("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def get(self, form: str) -> None:
        self.push(self.memo[self.number(form)])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise Malformed("items are appended to something else than a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Malformed("items are set in something else than a dictionary")
        target.update(
            (hashable(key), value) for key, value in zip(items[::2], items[1::2], strict=True)
        )

    def add_items(self) -> None:
        items, target = self.to_mark(), self.stack[-1]
        if type(target) is not set:
            raise Malformed("items are added to something else than a set")
        target.update(map(hashable, items))

    def find(self, module: str, name: str) -> None:
        self.push(named_global(module, name))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("a global has no name")
        self.find(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.call(function, arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.ndarray):
            fill_array(self, target, state)
        elif not isinstance(target, dict):  # its attributes: `_metadata` of a state_dict
            raise Malformed("a state belongs to no object")

    def persistent(self) -> None:
        """Push the storage that a persistent id describes."""
        kind, storage, key, _, size, *view = self.stack.pop()
        if kind != "storage" or storage.dtype is None or not is_index(size):
            raise Malformed("a persistent id is not that of a storage")
        if not isinstance(key, str) or len(view) > 1:
            raise Malformed("a storage has no name")
        self.push(self.storage(storage.dtype, key, size, view[0] if view else None))


STOP = ord(".")
INSTRUCTIONS: dict[int, Callable[[Machine], Any]] = {
    0x80: lambda m: m.take(1),  # protocol
    0x95: lambda m: m.take(8),  # frame
    ord("("): Machine.mark,
    ord("0"): Machine.pop,
    ord("1"): lambda m: m.to_mark(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: lambda m: m.push(int.from_bytes(m.take(m.number("<B")), "little", signed=True)),
    ord("G"): lambda m: m.push(m.number(">d")),
    0x8C: lambda m: m.text("<B"),
    ord("X"): lambda m: m.text("<I"),
    0x8D: lambda m: m.text("<Q"),
    ord("U"): lambda m: m.bytes_or_text("<B"),
    ord("T"): lambda m: m.bytes_or_text("<i"),
    ord("C"): lambda m: m.push(m.take(m.number("<B"))),
    ord("B"): lambda m: m.push(m.take(m.number("<I"))),
    0x8E: lambda m: m.push(m.take(m.number("<Q"))),
    0x96: lambda m: m.push(m.take(m.number("<Q"))),  # bytearray
    ord("]"): lambda m: m.push([]),
    ord("}"): lambda m: m.push({}),
    ord(")"): lambda m: m.push(()),
    0x8F: lambda m: m.push(set()),
    ord("t"): lambda m: m.push(tuple(m.to_mark())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.to_mark()),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.to_mark()),
    0x90: Machine.add_items,
    0x91: lambda m: m.push(set(map(hashable, m.to_mark()))),  # frozenset
    ord("h"): lambda m: m.get("<B"),
    ord("j"): lambda m: m.get("<I"),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: Machine.stack_global,
    ord("R"): Machine.reduce,
    0x81: Machine.reduce,  # cls.__new__(cls, *arguments)
    ord("b"): Machine.build,
    ord("Q"): Machine.persistent,
}
