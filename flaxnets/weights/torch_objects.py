"""The objects that a pickle in a torch file may name, and what is made of them here: plain data."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from flaxnets.weights.torch_tensors import (
    DTYPES,
    LACKING,
    STORAGES,
    UNTYPED,
    Malformed,
    Refused,
    Tensor,
    checked_tensor,
    is_index,
)


@dataclasses.dataclass(eq=False)
class Record:
    """An object that is no tensor, as inert data: the name of its class and what it was made of."""

    name: str
    arguments: tuple = ()
    state: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """The counterpart of a name in the file. Without `call` it is a name and nothing more."""

    name: str
    call: Callable[..., Any] | None = None
    """Called with the machine that executes the pickle, then the pickle's arguments."""
    dtype: np.dtype | None = None
    """Number type, if the name is that of a class of storages."""


# --- Tensors --------------------------------------------------------------------------------------


def _check_metadata(metadata: Any) -> None:
    if metadata:  # a complex tensor that is conjugated or negated when it is read
        raise Refused("tensor.conj()", LACKING)


def _rebuild_tensor(machine, storage, offset, shape, strides) -> Tensor:
    return checked_tensor(storage, offset, shape, strides)


def _rebuild_tensor_v2(
    machine, storage, offset, shape, strides, requires_grad, hooks, metadata=None
) -> Tensor:
    _check_metadata(metadata)
    return checked_tensor(storage, offset, shape, strides)


def _rebuild_tensor_v3(
    machine, storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None
) -> Tensor:
    _check_metadata(metadata)
    if isinstance(dtype, Record):
        raise Refused(dtype.name, LACKING)
    return checked_tensor(storage, offset, shape, strides, dtype)


def _rebuild_parameter(machine, data, requires_grad, hooks, state=None) -> Tensor:
    return data


def _rebuild_from_type(machine, function, kind, arguments, state) -> Any:
    return machine.call(function, arguments)


# --- Collections and bytes ------------------------------------------------------------------------


def _mapping(machine, *arguments: Any) -> dict:
    """Return a dictionary for `OrderedDict(items)`, `defaultdict(factory)` or `Counter(counts)`."""
    items = arguments[-1] if arguments else ()
    if isinstance(items, Global):
        items = ()
    items = items.items() if isinstance(items, dict) else items
    if not isinstance(items, list | tuple | type({}.items())):
        raise Malformed("a dictionary is made of something else than items")
    machine.spend(len(items))
    return {hashable(key): value for key, value in items}


def _set(machine, items: Any = ()) -> set:
    machine.spend(len(items))
    return {hashable(item) for item in items}


def hashable(value: Any) -> Any:
    """Return a key for a dictionary or set that takes constant time to hash.

    The author of a file cannot choose keys that collide.
    """
    is_simple = isinstance(value, str | bytes | float | bool | None)
    return value if is_simple or is_index(value) else Record("key", (value,))


def _encoded(machine, text: str, encoding: str = "utf-8") -> bytes:
    """Return bytes, which protocol 2 writes as `_codecs.encode(text, "latin1")`."""
    machine.spend(len(text))
    return text.encode({"latin1": "latin1", "utf-8": "utf-8"}[encoding])


def _bytes(machine, data: Any = b"", encoding: Any = None) -> bytes:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise Malformed("bytes are made of something else")
    return data


# --- NumPy ----------------------------------------------------------------------------------------


class _Dtype(Record):
    """NumPy's dtype. The pickle sets its byte order after it has made it and referred to it."""

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


def fill_array(machine, array: np.ndarray, state: tuple) -> None:
    """Set an array to the numbers in its pickled state.

    Raises Malformed if the state has another number of bytes than its shape says.
    """
    version, shape, dtype, fortran, data = state
    dtype, data = dtype.get(), _raw(data)
    if not is_index(*shape) or math.prod(shape) * dtype.itemsize != len(data):
        raise Malformed("an array has another size than its numbers")
    machine.spend(len(data))
    set_state: Any = array.__setstate__
    set_state((version, shape, dtype, fortran is True, data))


def _raw(data: Any) -> bytes:
    """Return the bytes of an array or number; Python 2 wrote them as a string."""
    data = data.encode() if isinstance(data, str) else data
    if not isinstance(data, bytes):
        raise Malformed("numbers are made of something else than bytes")
    return data


# --- Names ----------------------------------------------------------------------------------------


DICTIONARIES = (
    "builtins.dict", "collections.OrderedDict", "collections.defaultdict", "collections.Counter",
    # settings that training scripts save with the weights
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
# Lightning saves the state of each callback under its class as the key.
CALLBACKS = re.compile(r"(pytorch_lightning|lightning\.pytorch)\.callbacks\.[\w.]+")


def _make_record(name: str) -> Callable[..., Record]:
    return lambda machine, *arguments: Record(name, arguments)


GLOBALS: dict[str, Any] = {
    **{name: Global(name, call) for name, call in FUNCTIONS.items()},
    **{name: Global(name, _mapping) for name in DICTIONARIES},
    **{name: Global(name, _make_record(name)) for name in RECORDS},
    **{name: Global(name) for name in NAMES},
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
    **{
        f"{module}.{name}": Global(name, dtype=DTYPES[dtype])
        for module in ("torch", "torch.cuda")
        for name, dtype in STORAGES.items()
    },
    UNTYPED: Global(UNTYPED, dtype=DTYPES["uint8"]),
}


def named_global(module: str, name: str) -> Any:
    """Return the counterpart of a name in the file. Raises Refused for a name that is not known."""
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in GLOBALS:
        return GLOBALS[full]
    if CALLBACKS.fullmatch(full):
        return Global(full)
    if module == "torch" and re.fullmatch(r"(float|complex|q?u?int|bits)\d\w*", name):
        return Record(full)  # a number type, which matters only where a tensor has it
    raise Refused(full)
