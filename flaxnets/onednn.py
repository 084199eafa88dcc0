"""oneDNN's convolutions for XLA's CPU backend: the library behind torch's convolutions on CPUs.

XLA's own convolutions are up to six times slower there, the filter gradients on large maps above
all. Compiled programs call the library (`flaxnets.dnnl`) by a handler of XLA's foreign function
interface (xla/ffi/api/c_api.h in jaxlib), in ctypes. Where the library is missing, or with
FLAXNETS_ONEDNN=0 in the environment, `available()` is False and XLA's operations stay.
"""

import atexit
import contextlib
import ctypes
import functools
import math
import struct
import time
from collections.abc import Sequence

import jax
import numpy as np

import flaxnets.dnnl as dnnl
from flaxnets.dnnl import ROLES, Shape

TARGET = "flaxnets_onednn_convolution"


@functools.cache
def available() -> bool:
    """Whether this machine has the library; the first call loads it and tells XLA of it."""
    if dnnl.library() is None:
        return False
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(_handler), platform="cpu")
    atexit.register(_finish)
    return True


def _finish() -> None:
    """Waits for what is under way: a convolution that begins while Python ends waits for ever."""
    for array in jax.live_arrays():
        with contextlib.suppress(Exception):  # whoever asked for the array has seen its error
            array.block_until_ready()
    idle = 0.0
    while idle < 0.2:  # seconds, for results that nobody holds any more
        time.sleep(0.05)
        with dnnl.lock:  # not while one is computed
            idle = time.monotonic() - _last_call[0]


def describe(result: str, shapes: Sequence[Shape], geometry: Sequence[int]) -> np.ndarray:
    """The arguments of `flaxnets.dnnl.Convolution` as the numbers that `TARGET` takes for its
    attribute `description`.
    """
    return np.array([ROLES.index(result), *sum(shapes, ()), *geometry], np.int64)


@functools.cache
def _convolution(description: bytes) -> dnnl.Convolution:
    result, *numbers = struct.unpack("20q", description)
    shapes = [tuple(numbers[first : first + 4]) for first in (0, 4, 8)]
    return dnnl.Convolution(ROLES[result], shapes, numbers[12:])


# --------------------------------------------------------------------------- c_api.h


def _structure(name: str, **fields) -> type[ctypes.Structure]:
    """One of XLA's, which all begin with their size and a list of extensions."""
    head = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p)]
    return type(name, (ctypes.Structure,), {"_fields_": head + list(fields.items())})


_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_Buffer = _structure("Buffer", dtype=_INT, data=_POINTER, rank=_LONG, dims=_POINTER)
_Buffers = _structure(
    "Buffers", size=_LONG, types=_POINTER, items=ctypes.POINTER(ctypes.POINTER(_Buffer))
)
_Version = _structure("Version", major=_INT, minor=_INT)
_ErrorCreate = _structure("ErrorCreate", message=ctypes.c_char_p, code=_INT)
_Api = _structure(
    "Api", version=_Version, internal=_POINTER,
    error_create=ctypes.CFUNCTYPE(_POINTER, ctypes.POINTER(_ErrorCreate)),
)  # fmt: skip


class _Array(ctypes.Structure):
    _fields_ = [("dtype", _INT), ("size", ctypes.c_size_t), ("data", _POINTER)]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("version", _Version), ("traits", _INT)]


class _MetadataRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t), ("type", _INT), ("next", _POINTER),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]  # fmt: skip


_Attributes = _structure(
    "Attributes", size=_LONG, types=_POINTER, names=_POINTER,
    items=ctypes.POINTER(ctypes.POINTER(_Array)),
)  # fmt: skip
_CallFrame = _structure(
    "CallFrame", api=ctypes.POINTER(_Api), context=_POINTER, stage=_INT,
    operands=_Buffers, results=_Buffers, attributes=_Attributes,
)  # fmt: skip

_METADATA, _INTERNAL_ERROR = 1, 13
_last_call = [-math.inf]  # seconds of time.monotonic()


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
def _handler(pointer) -> int | None:
    """What XLA calls: first for the handler's version, then for each convolution."""
    frame = pointer.contents
    if frame.extension:
        request = _MetadataRequest.from_address(frame.extension)
        if request.type == _METADATA:
            # What is read here has kept its place since the interface's first version.
            request.metadata.contents.version = frame.api.contents.version
            return None
    _last_call[0] = time.monotonic()
    try:
        description = frame.attributes.items[0].contents
        convolution = _convolution(ctypes.string_at(description.data, 8 * description.size))
        operands, results = frame.operands.items, frame.results.items
        convolution([each.contents.data for each in (operands[0], operands[1], results[0])])
    except Exception as failure:  # into XLA's hands: nothing can be raised through its frames
        message = f"{type(failure).__name__}: {failure}".encode()
        error = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message, _INTERNAL_ERROR)
        return frame.api.contents.error_create(ctypes.byref(error))
    return None
