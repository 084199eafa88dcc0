"""Reads what `torch.save` wrote, with NumPy alone, and runs nothing that the file names.

Both formats are known: the zip of torch 1.6 and later, whose members are stored uncompressed, and
the chain of pickles before it. Either way a pickle describes the objects, and the numbers of the
tensors lie outside it, so they are mapped into memory and read when they are used.

The pickle is executed by a machine of its own (`_Machine`) that has the instructions of protocols
2 to 5 and no import. A global is a key of `GLOBALS`; any other ends the reading with its name.
"""

import dataclasses
import math
import mmap
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from flaxnets.errors import InputError

ZIP = b"PK\x03\x04"
# The first pickle of the older format: protocol 2 and the number 0x1950a86a20f9469cfc6c.
CHAIN = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL_VERSION = 1001  # of the older format
LACKING = "numbers that NumPy lacks; use float32"
MAX_DIMENSIONS = 64  # of torch and of NumPy

# What the machine and the zip reader raise on bytes that were not written by torch.save.
MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
    NotImplementedError, RecursionError, RuntimeError, TypeError, ValueError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


class Malformed(ValueError):
    """The bytes are not those of torch.save."""


class Refused(ValueError):
    """The file holds what is not read here; the message completes "FILE holds "."""

    def __init__(self, name: str, why: str = "which is more than data; save model.state_dict()"):
        super().__init__(f"{name[:100]!r}, {why}")


@dataclasses.dataclass(eq=False)
class Record:
    """An object that is no tensor, as inert data: the name of its class and what it was made of."""

    name: str
    arguments: tuple = ()
    state: Any = None


@dataclasses.dataclass(eq=False)
class Storage:
    """`size` numbers of `dtype` that lie in the file from byte `start` on."""

    dtype: np.dtype
    size: int
    start: int | None = None
    file: mmap.mmap | None = None

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage; offset and strides count its elements."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Return a read-only array on the file's pages."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        assert self.storage.start is not None
        itemsize = self.dtype.itemsize
        return np.ndarray(
            self.shape,
            self.dtype,
            self.storage.file,
            self.storage.start + self.offset * itemsize,
            tuple(stride * itemsize for stride in self.strides),
        )


def is_torch_file(start: bytes) -> bool:
    """Tell from the first bytes of a file whether `torch.save` may have written it."""
    return start.startswith((ZIP, CHAIN))


def read_torch_file(path: pathlib.Path) -> Any:
    """Return what was saved, with a `Tensor` for each tensor and a `Record` for other objects.

    Dictionaries, lists, tuples, numbers and strings are themselves, as are NumPy's scalars and
    arrays. Subclasses of `dict` become dictionaries.

    Raises InputError if the file is incomplete or damaged, or holds objects of other kinds.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[: len(ZIP)] == ZIP:
            return _read_zip(path, mapped)
        return _read_chain(mapped)
    except InputError:
        raise
    except Refused as error:
        raise InputError(f"{path} holds {error}") from None
    except MALFORMED as error:
        raise InputError(f"{path} is not a complete file of torch weights") from error


# --- The two formats ------------------------------------------------------------------------------


def _read_zip(path: pathlib.Path, file: mmap.mmap) -> Any:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if re.fullmatch("[^/]+/data.pkl", name)]
    if len(pickles) != 1:
        raise InputError(f"{path} is a zip file, but none of torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise InputError(f"{path} holds a TorchScript program; save model.state_dict() instead")

    def place(name: str) -> tuple[int, int]:
        """Return where a member's bytes begin in the file, and where they end."""
        member = members[root + name]
        header = member.header_offset
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Malformed("a compressed or encrypted member")
        if header < 0 or file[header : header + 4] != ZIP:
            raise Malformed("no member at its place")
        start = header + 30 + sum(struct.unpack("<HH", file[header + 26 : header + 30]))
        end = start + member.file_size
        if member.compress_size != member.file_size or end > len(file):
            raise Malformed("a member longer than the file")
        return start, end

    if f"{root}byteorder" in members:
        start, end = place("byteorder")
        if file[start : min(end, start + 6)] != b"little":
            raise InputError(f"{path} was written on a big-endian machine; expected little-endian")

    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        if key not in storages:
            start, end = place(f"data/{key}")
            storages[key] = Storage(dtype, size, start, file)
            if storages[key].nbytes != end - start or view is not None:
                raise Malformed("a storage of another size")
        return _same(storages[key], dtype, size)

    start, end = place("data.pkl")
    return _Machine(file, start, end, storage).run()


def _read_chain(file: mmap.mmap) -> Any:
    storages: dict[str, Storage] = {}
    views: list[tuple[Storage, Storage, int]] = []

    def storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        found = _same(storages.setdefault(key, Storage(dtype, size, file=file)), dtype, size)
        if view is None:
            return found
        _, offset, view_size = view  # of torch before 0.4: a storage inside another one
        if not (_is_index(offset, view_size) and offset + view_size <= size):
            raise Malformed("a view beyond its storage")
        part = Storage(dtype, view_size, file=file)
        views.append((part, found, offset))
        return part

    position, objects = 0, []
    for _ in range(5):
        machine = _Machine(file, position, len(file), storage)
        objects.append(machine.run())
        position = machine.position
    _, version, system, saved, keys = objects
    if version != PROTOCOL_VERSION or not system["little_endian"]:
        raise Malformed("another version, or a big-endian machine")
    for key in dict.fromkeys(keys):
        found = storages.pop(key)
        (size,) = struct.unpack("<q", file[position : position + 8])
        found.start = position + 8
        position = found.start + found.nbytes
        if size != found.size or position > len(file):
            raise Malformed("a storage of another size")
    if storages:
        raise Malformed("a storage that is not in the file")
    for part, whole, offset in views:
        assert whole.start is not None
        part.start = whole.start + offset * part.dtype.itemsize
    return saved


def _same(storage: Storage, dtype: np.dtype, size: int) -> Storage:
    if (storage.dtype, storage.size) != (dtype, size):
        raise Malformed("a storage of two kinds")
    return storage


# --- The objects that a pickle may name -----------------------------------------------------------


def _is_index(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, dtype: np.dtype | None = None
) -> Tensor:
    dtype = storage.dtype if dtype is None else dtype
    if not (isinstance(dtype, np.dtype) and isinstance(storage, Storage)):
        raise Malformed("a tensor of no storage")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Malformed("a shape of other dimensions than its strides")
    if not _is_index(offset, *shape, *strides):
        raise Malformed("a shape of other than integers")
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= 2**63:
        raise Malformed("a shape beyond all memory")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
        raise Malformed("a tensor beyond its storage")
    # The strides of dimensions of one element are arbitrary.
    strides = tuple(s if size > 1 else 0 for size, s in zip(shape, strides, strict=True))
    return Tensor(storage, dtype, offset, tuple(shape), strides)


def _check_metadata(metadata: Any) -> None:
    if metadata:  # conjugated or negated when read: of complex numbers
        raise Refused("tensor.conj()", LACKING)


def _rebuild_tensor(machine, storage, offset, shape, strides) -> Tensor:
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    machine, storage, offset, shape, strides, requires_grad, hooks, metadata=None
) -> Tensor:
    _check_metadata(metadata)
    return _tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    machine, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None
) -> Tensor:
    _check_metadata(metadata)
    if isinstance(dtype, Record):
        raise Refused(dtype.name, LACKING)
    return _tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(machine, data, requires_grad, hooks, state=None) -> Tensor:
    return data


def _rebuild_from_type(machine, function, kind, arguments, state) -> Any:
    return machine.call(function, arguments)


def _mapping(machine, *arguments: Any) -> dict:
    """Return a dictionary for `OrderedDict(items)`, `defaultdict(factory)` or `Counter(counts)`."""
    items = arguments[-1] if arguments else ()
    if isinstance(items, _Global):
        items = ()
    items = items.items() if isinstance(items, dict) else items
    if not isinstance(items, list | tuple | type({}.items())):
        raise Malformed("a dictionary of no items")
    machine.spend(len(items))
    return {_key(key): value for key, value in items}


def _set(machine, items: Any = ()) -> set:
    machine.spend(len(items))
    return {_key(item) for item in items}


def _key(value: Any) -> Any:
    """Return a value that takes constant time to hash, and no chosen one to collide."""
    simple = isinstance(value, str | bytes | float | bool | None)
    return value if simple or _is_index(value) else Record("key", (value,))


def _encoded(machine, text: str, encoding: str = "utf-8") -> bytes:
    """Return the bytes that protocol 2 has as `_codecs.encode(text, "latin1")`."""
    machine.spend(len(text))
    return text.encode({"latin1": "latin1", "utf-8": "utf-8"}[encoding])


def _bytes(machine, data: Any = b"", encoding: Any = None) -> bytes:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise Malformed("bytes of something else")
    return data


class _Dtype(Record):
    """NumPy's, whose byte order comes after it was made and referred to."""

    def get(self) -> np.dtype:
        name = self.arguments[0]
        if not re.fullmatch(r"[biufcSU][1-9]\d{0,3}", name):
            raise Refused(f"numpy.dtype({name})", LACKING)
        dtype = np.dtype(name)
        return dtype.newbyteorder(self.state[1]) if self.state else dtype


def _dtype(machine, *arguments: Any) -> _Dtype:
    return _Dtype("numpy.dtype", arguments)


def _scalar(machine, dtype: _Dtype, data: Any) -> np.generic:
    (value,) = np.frombuffer(_raw(data), dtype.get())
    return value


def _new_array(machine, *arguments: Any) -> np.ndarray:
    return np.empty(0, np.uint8)


def _from_buffer(machine, data: Any, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(_raw(data), dtype.get()).reshape(shape, order="F" if order == "F" else "C")


def _fill(machine, array: np.ndarray, state: tuple) -> None:
    """Set an array to the numbers in its pickled state."""
    version, shape, dtype, fortran, data = state
    dtype, data = dtype.get(), _raw(data)
    if not _is_index(*shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise Malformed("an array of another size")
    machine.spend(len(data))
    set_state: Any = array.__setstate__
    set_state((version, shape, dtype, fortran is True, data))


def _raw(data: Any) -> bytes:
    """Return the bytes of what Python 2 calls a string, too."""
    data = data.encode() if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise Malformed("numbers of no bytes")
    return data


@dataclasses.dataclass(frozen=True, eq=False)
class _Global:
    """What a name of the file stands for here. Without `call` it is a name and no more."""

    name: str
    call: Callable[..., Any] | None = None
    dtype: np.dtype | None = None  # of the numbers in a class of storages


def _extended(*names: str) -> dict[str, np.dtype]:
    """NumPy's types of numbers that NumPy itself lacks, as far as ml_dtypes has them."""
    return {name: np.dtype(getattr(ml_dtypes, name)) for name in names if hasattr(ml_dtypes, name)}


# torch's types of numbers and the classes of storages. `torch.float4_e2m1fn_x2`, bits and quantised
# numbers have no counterpart.
DTYPES = {
    **{name: np.dtype(name) for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "complex64", "complex128",
    )},
    **_extended(
        "bfloat16", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
        "float8_e5m2fnuz", "float8_e8m0fnu",
    ),
}  # fmt: skip
STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
UNTYPED = "torch.storage.UntypedStorage"  # counted in bytes

DICTIONARIES = (
    "builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter",
    # settings beside the weights
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "easydict.EasyDict", "yacs.config.CfgNode",
)  # fmt: skip
RECORDS = (
    "argparse.Namespace", "types.SimpleNamespace", "builtins.complex", "builtins.slice",
    "builtins.range", "builtins.xrange", "datetime.date", "datetime.datetime", "datetime.timedelta",
    "datetime.timezone", "torch.device", "torch.serialization._get_layout",
    "torch.torch_version.TorchVersion",
    *(f"{module}.{kind}"
      for module in ("pathlib", "pathlib._local")
      for kind in ("Path", "PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")),
)  # fmt: skip
FUNCTIONS = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": lambda machine, sizes=(): sizes,
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "_codecs.encode": _encoded,
    "numpy.dtype": _dtype,
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _new_array for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _from_buffer for core in ("core", "_core")},
}
NAMES = (
    *(f"builtins.{kind}" for kind in ("bool", "float", "int", "list", "object", "str", "tuple")),
    "numpy.ndarray", "torch.Tensor", "torch.nn.parameter.Parameter",
)  # fmt: skip
CALLBACKS = re.compile(r"(pytorch_lightning|lightning\.pytorch)\.callbacks\.[\w.]+")  # as keys


def _make_record(name: str) -> Callable[..., Record]:
    return lambda machine, *arguments: Record(name, arguments)


GLOBALS: dict[str, Any] = {
    **{name: _Global(name, call) for name, call in FUNCTIONS.items()},
    **{name: _Global(name, _mapping) for name in DICTIONARIES},
    **{name: _Global(name, _make_record(name)) for name in RECORDS},
    **{name: _Global(name) for name in NAMES},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{
        f"{module}.{name}": _Global(name, dtype=DTYPES[dtype])
        for module in ("torch", "torch.cuda")
        for name, dtype in STORAGES.items()
    },
    UNTYPED: _Global(UNTYPED, dtype=DTYPES["uint8"]),
}


# --- The machine ----------------------------------------------------------------------------------


class _Machine:
    """Executes one pickle, file[start:end], with a stack and a memo, and without an import.

    Every instruction takes time in proportion to its own bytes and to the values that it takes off
    the stack. What copies a value that others may refer to has to `spend` from a budget of twice
    the pickle's length, so that a short file cannot ask for much time or memory.
    """

    def __init__(
        self, file: mmap.mmap, start: int, end: int, storage: Callable[..., Storage]
    ) -> None:
        self.file, self.position, self.end = file, start, end
        self.storage = storage
        self.budget = 2 * (end - start)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            code = self.take(1)[0]
            if code == STOP:
                return self.stack.pop()
            INSTRUCTIONS[code](self)

    def take(self, count: int) -> bytes:
        position = self.position + count
        if not 0 <= count <= self.end - self.position:
            raise Malformed("a length beyond the end")
        taken = self.file[self.position : position]
        self.position = position
        return taken

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        end = self.file.find(b"\n", self.position, min(self.end, self.position + 1000))
        text = self.take(end - self.position)
        self.take(1)
        return text.decode()

    def spend(self, count: int) -> None:
        self.budget -= count
        if self.budget < 0:
            raise Malformed("objects that take more than their file")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def call(self, function: Any, arguments: tuple) -> Any:
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise Malformed("a call of no function")
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
        """Push a string of Python 2, which has one kind for both."""
        data = self.take(self.number(form))
        try:
            self.push(data.decode())
        except UnicodeDecodeError:
            self.push(data)

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise Malformed("an empty stack")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def get(self, form: str) -> None:
        self.push(self.memo[self.number(form)])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise Malformed("items of no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise Malformed("items of no dictionary")
        target.update(
            (_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True)
        )

    def add_items(self) -> None:
        items, target = self.to_mark(), self.stack[-1]
        if type(target) is not set:
            raise Malformed("items of no set")
        target.update(map(_key, items))

    def find(self, module: str, name: str) -> None:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if full in GLOBALS:
            self.push(GLOBALS[full])
        elif CALLBACKS.fullmatch(full):
            self.push(_Global(full))
        elif module == "torch" and re.fullmatch(r"(float|complex|q?u?int|bits)\d\w*", name):
            self.push(Record(full))  # a type of numbers that matters where a tensor has it
        else:
            raise Refused(full)

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Malformed("a global without a name")
        self.find(module, name)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.push(self.call(function, arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.ndarray):
            _fill(self, target, state)
        elif not isinstance(target, dict):  # its attributes: `_metadata` of a state_dict
            raise Malformed("a state of no object")

    def persistent(self) -> None:
        kind, storage, key, _, size, *view = self.stack.pop()
        if kind != "storage" or storage.dtype is None or not _is_index(size):
            raise Malformed("no storage")
        if not isinstance(key, str) or len(view) > 1:
            raise Malformed("a storage without a name")
        self.push(self.storage(storage.dtype, key, size, view[0] if view else None))


STOP = ord(".")
INSTRUCTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.take(1),  # protocol
    0x95: lambda m: m.take(8),  # frame
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop,
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
    0x90: _Machine.add_items,
    0x91: lambda m: m.push(set(map(_key, m.to_mark()))),  # frozenset
    ord("h"): lambda m: m.get("<B"),
    ord("j"): lambda m: m.get("<I"),
    ord("q"): lambda m: m.put(m.number("<B")),
    ord("r"): lambda m: m.put(m.number("<I")),
    0x94: lambda m: m.put(len(m.memo)),
    ord("c"): lambda m: m.find(m.line(), m.line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    0x81: _Machine.reduce,  # cls.__new__(cls, *arguments)
    ord("b"): _Machine.build,
    ord("Q"): _Machine.persistent,
}
